"""Pictures of pages, as an OCR engine takes them: a PDF's pages drawn, a picture file's frames decoded.

Belongs here: size, colour and which way is up; one picture in memory at a time. Does not: reading what they show.
"""

import io
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from fltr_pipeline.errors import Corrupt, DocumentError, TooLarge

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from pypdfium2 import PdfDocument

    Picture = NDArray[np.uint8]
    """Rows of pixels of blue, green and red."""

MOST_PIXELS_PER_SIDE = 2000
"""An A4 page at 170 dpi; what is larger is made smaller: more costs memory and time, and reads no better."""

_DPI = 200
_POINTS_PER_INCH = 72

IMAGE_FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP")
_DEEP = ("I", "F")
"""Modes of more than eight bits, by their beginnings."""


def of_pdf(data: bytes, wanted: Collection[int], check: Callable[[int], None]) -> Iterator[tuple[int, "Picture"]]:
    """The pages of these indexes, drawn; without those that are empty or that pdfium can't draw.

    `check` is told how many they will be at most, before the first one.
    """
    import pypdfium2  # noqa: PLC0415

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError:
        return
    try:
        shown = [index for index in sorted(set(wanted) & set(range(len(document)))) if _shows(document, index)]
        check(len(shown))
        for index in shown:
            if (picture := _drawn(document, index)) is not None:
                yield index, picture
    finally:
        document.close()


def _shows(document: "PdfDocument", index: int) -> bool:
    """Whether there is anything on the page."""
    import pypdfium2  # noqa: PLC0415

    try:
        page = document[index]
    except pypdfium2.PdfiumError:
        return False
    found = next(iter(page.get_objects(max_depth=1)), None)
    page.close()
    return found is not None


def _drawn(document: "PdfDocument", index: int) -> "Picture | None":
    import pypdfium2  # noqa: PLC0415

    page = document[index]
    try:
        scale = min(_DPI / _POINTS_PER_INCH, MOST_PIXELS_PER_SIDE / max(page.get_size()))
        bitmap = page.render(scale=scale, may_draw_forms=False, force_bitmap_format=pypdfium2.raw.FPDFBitmap_BGR)
        picture: Picture = bitmap.to_numpy().copy()
        bitmap.close()
    except (pypdfium2.PdfiumError, ZeroDivisionError):
        return None
    finally:
        page.close()
    return picture


def of_file(data: bytes, filename: str, check: Callable[[int], None]) -> Iterator["Picture"]:
    """The pages of a TIFF; of any other picture file its first frame. `check` is told how many, before the first one.

    Raises:
        Corrupt: it can't be decoded.
        TooLarge: it has more pixels than any scan.
    """
    from PIL import Image  # noqa: PLC0415

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
                frames = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
                check(frames)
                for index in range(frames):
                    image.seek(index)
                    yield _prepared(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"{filename}: {error}; save the picture with fewer pixels") from None
    except (MemoryError, DocumentError):
        raise
    except Exception as error:  # noqa: BLE001  Pillow raises nearly anything on damaged files
        raise Corrupt(f"{filename}: the picture is damaged ({error}); save it again and upload it anew") from None


def _prepared(frame: "Image") -> "Picture":
    """On white, upright as the camera said, no larger than is of use."""
    import numpy as np  # noqa: PLC0415
    from PIL import Image, ImageOps  # noqa: PLC0415

    size = (MOST_PIXELS_PER_SIDE, MOST_PIXELS_PER_SIDE)
    frame.draft("RGB", size)
    if frame.mode.startswith(_DEEP):
        values = np.asarray(frame, dtype=np.float32)
        low, high = float(values.min()), float(values.max())
        shown = Image.fromarray(((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8))
    elif frame.has_transparency_data:
        layer = frame.convert("RGBA")
        shown = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    else:
        shown = frame.convert("L" if frame.mode == "1" else "RGB")
    shown.thumbnail(size, reducing_gap=2.0)
    upright = ImageOps.exif_transpose(_with_exif(shown, frame)).convert("RGB")
    return np.ascontiguousarray(np.asarray(upright)[:, :, ::-1])


def _with_exif(shown: "Image", frame: "Image") -> "Image":
    """Conversions may lose which way the camera was held."""
    shown.info.update({key: frame.info[key] for key in ("exif",) if key in frame.info})
    return shown
