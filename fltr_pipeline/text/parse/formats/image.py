"""Pictures of text: scans and photographs, read by OCR where that is on.

Belongs here: which files are pictures, and their frames as pages. Does not: decoding (`page_images`), OCR (`ocr`).
"""

from fltr_pipeline.errors import NoTextLayer, Unsupported
from fltr_pipeline.text.parse import page_images
from fltr_pipeline.text.parse.extraction import Extraction, Format
from fltr_pipeline.text.parse.ocr import Recogniser
from fltr_pipeline.text.parse.sample import Sample

_MAGIC = (
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"II*\x00", "a TIFF image"),
    (0, b"MM\x00*", "a TIFF image"),
    (0, b"BM", "a BMP image"),
    (8, b"WEBP", "a WebP image"),
)


def extract(data: bytes, filename: str, *, recogniser: Recogniser | None = None) -> Extraction:
    """The text of each frame, as `recogniser` reads it.

    Raises:
        Unsupported: there is no recogniser, OCR is off.
        Corrupt: the picture can't be decoded.
        TooLarge: it has too many pixels or frames.
        NoTextLayer: no text was found on it.
    """
    if recogniser is None:
        raise Unsupported(f"{filename}: the text of images is read only where OCR is on (FLTR_OCR)")
    pictures = page_images.of_file(data, filename, lambda frames: recogniser.check(frames, filename))
    pages = [recogniser.text(picture, number) for number, picture in enumerate(pictures, start=1)]
    if not any(pages):
        raise NoTextLayer(f"{filename}: no text was recognised in the image; upload a sharper or larger one")
    return Extraction(pages, recogniser.engine, tuple(recogniser.recognised))


def name_of(data: bytes) -> str | None:
    """`a PNG image`; None for what is no image."""
    return next((name for offset, magic, name in _MAGIC if data.startswith(magic, offset)), None)


def recognises(sample: Sample) -> bool:
    """Whether it is an image of a kind that can be read."""
    name = name_of(sample.data)
    return name is not None and (name != "a BMP image" or sample.data[6:10] == bytes(4))  # "BM" begins texts, too


FORMAT = Format(
    kind="image",
    title="images of text (PNG, JPEG, TIFF, GIF, BMP, WebP)",
    suffixes=(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp", ".webp"),
    extract=extract,
    recognises=recognises,
)
