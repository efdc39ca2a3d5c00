"""`python -m benchmarks.ocr [PAGES]`: how well scans are read, and how fast, as Markdown. Needs the extra `ocr`.

Belongs here: pages of PDFs whose text is known, drawn, kept as JPEG as a scanner does, and read back: word-bag F1 and
seconds of one core per page. Does not: assertions.

PAGES (default 5) are taken from the middle of each PDF of `extraction` in `FLTR_TEST_DATA`, else of the samples.
"""

import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import pypdfium2
from PIL import Image

from benchmarks.extraction import f1
from benchmarks.machine import machine
from fltr_pipeline.samples import sample_files
from fltr_pipeline.text.parse import parse
from fltr_pipeline.text.parse.ocr import Recogniser
from fltr_pipeline.text.parse.pdf_engines import Pypdfium2

_DPI = 150
_LEAST_CHARACTERS = 500


def scans(data: bytes, most: int) -> Iterator[tuple[bytes, str]]:
    """Pages as image-only PDFs, each with the text that it shows."""
    texts = {i: text for i, text in enumerate(Pypdfium2(data)()) if text and len(text) > _LEAST_CHARACTERS}
    middle = sorted(texts)[len(texts) // 2 :][:most]
    document = pypdfium2.PdfDocument(data)
    for index in middle:
        picture = document[index].render(scale=_DPI / 72).to_pil().convert("L")
        yield _scanned(picture), texts[index]


def _scanned(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PDF", resolution=float(_DPI), quality=75)
    return out.getvalue()


def main(pages: int) -> None:
    """Print the table."""
    given = os.environ.get("FLTR_TEST_DATA")
    files = sorted((Path(given) / "extraction").rglob("*.pdf")) if given else [path for _, path in sample_files()]
    print(f"Pages drawn at {_DPI} dpi, read on one core; {machine(('rapidocr', 'onnxruntime'))}\n")
    print("| document | pages | F1 | confidence | CPU s a page |\n| --- | --- | --- | --- | --- |")
    for path in (path for path in files if path.suffix == ".pdf"):
        scores, confidences, seconds = [], [], []
        for scan, text in scans(path.read_bytes(), pages):
            begun = time.process_time()
            parsed = parse(scan, path.name, recogniser=Recogniser(1))
            seconds.append(time.process_time() - begun)
            scores.append(f1(parsed.text, text))
            confidences.append(parsed.recognised[0].confidence)
        if scores:
            print(
                f"| {path.stem} | {len(scores)} | {mean(scores):.3f} | {mean(confidences):.2f} | {mean(seconds):.1f} |"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
