"""RapidOCR, PP-OCR's models on ONNX Runtime: finds lines on a picture, turns them upright, reads them.

Belongs here: the engine's settings, and its boxes as lines of an upright page. Does not: their order (`reading_order`).
The package brings its models; they are named by path, so that nothing is ever fetched.
"""

from functools import cache
from importlib.resources import files
from math import atan2
from statistics import median
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from rapidocr import RapidOCR
from rapidocr.main import RapidOCRError

from fltr_pipeline.text.parse.page_images import MOST_PIXELS_PER_SIDE
from fltr_pipeline.text.parse.reading_order import Line

if TYPE_CHECKING:
    from fltr_pipeline.text.parse.page_images import Picture

_LEAST_CONFIDENCE = 0.5
_TURNED = 1.5
"""A box that much higher than wide is a line that runs up or down."""

_LONG = 5
"""Lines of that many heights show how the page is skewed."""

_MODELS = {
    "Det.model_path": "PP-OCRv6_det_small.onnx",
    "Cls.model_path": "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
    "Rec.model_path": "PP-OCRv6_rec_small.onnx",
}
_Points = NDArray[np.float64]
"""Of each line its four corners from the upper left, clockwise: (lines, 4, 2)."""


@cache
def _engine() -> RapidOCR:
    """On one core: parser processes work side by side. Lines are read one by one, which takes least memory."""
    cv2.setNumThreads(1)
    models = files("rapidocr") / "models"
    return RapidOCR(
        params={
            **{name: str(models / model) for name, model in _MODELS.items()},
            "Global.max_side_len": MOST_PIXELS_PER_SIDE,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Rec.rec_batch_num": 1,
        }
    )


def lines_on(picture: "Picture") -> list[Line]:
    """The lines of text on a page, however it lies, in no order."""
    engine = _engine()
    try:
        cut, found = engine.detect_and_crop(picture, {})
        upright, turns = engine.cls_and_rotate(cut)
        read = engine.recognize_txt(upright)
    except RapidOCRError:  # there is none
        return []
    upside_down = np.array(
        ["180" in label and score > engine.cfg.Cls.cls_thresh for label, score in turns.cls_res or ()]
    )
    corners = _straightened(_turned(np.asarray(found.boxes, dtype=np.float64), upside_down, picture.shape))
    return [
        Line(text.strip(), float(score), *(float(n) for n in (*box.min(axis=0), *box.max(axis=0))))
        for text, score, box in zip(read.txts or (), read.scores or (), corners, strict=True)
        if text.strip() and score >= _LEAST_CONFIDENCE
    ]


def _turned(corners: _Points, upside_down: NDArray[np.bool_], shape: tuple[int, ...]) -> _Points:
    """The page the way most of its lines are read; the engine has turned each line by itself already."""
    across = np.linalg.norm(corners[:, 1] - corners[:, 0], axis=1)
    down = np.linalg.norm(corners[:, 3] - corners[:, 0], axis=1)
    length = np.maximum(across, down)
    sideways = _most(down >= _TURNED * across, length)
    x, y = corners[..., 0], corners[..., 1]
    height, width = shape[:2]
    if sideways:
        x, y, width, height = y, width - x, height, width
    if _most(upside_down, length):
        x, y = width - x, height - y
    return np.stack((x, y), axis=-1)


def _most(which: NDArray[np.bool_], length: NDArray[np.float64]) -> bool:
    return bool((which * length).sum() > length.sum() / 2)


def _straightened(corners: _Points) -> _Points:
    """The page without its skew, which would mix up neighbouring lines."""
    angles = [angle for box in corners if (angle := _angle(box)) is not None]
    skew = median(angles) if angles else 0.0
    cos, sin = np.cos(skew), np.sin(skew)
    straight: _Points = corners @ np.array([[cos, -sin], [sin, cos]])
    return straight


def _angle(box: NDArray[np.float64]) -> float | None:
    """How a long line runs: 0 is to the right, more is downwards."""
    edges = sorted((box[1] - box[0], box[2] - box[1]), key=np.linalg.norm)
    if np.linalg.norm(edges[1]) < _LONG * np.linalg.norm(edges[0]):
        return None
    x, y = edges[1] if edges[1][0] >= 0 else -edges[1]
    return atan2(y, x)
