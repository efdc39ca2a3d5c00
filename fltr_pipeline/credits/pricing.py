"""From work to units of the price list. Pure; a unit's price is frozen in the charge.

Belongs here: how pages and tokens are counted, and estimated. Does not: credits (a unit costs what the charge says).
"""

from collections.abc import Mapping
from pathlib import PurePosixPath

from fltr_pipeline.models import Op
from fltr_pipeline.settings import Prices

CHARACTERS_PER_PAGE = 3000
"""A page, in formats that have none."""

PDF_BYTES_PER_PAGE = 2000
"""A dense page of text compresses to about this; the estimate is meant to be high, the rest comes back at settle."""

CHARACTERS_PER_BYTE = {
    **dict.fromkeys((".docx", ".docm", ".dotx", ".odt", ".ott", ".odp", ".odg", ".epub"), 4),
    **dict.fromkeys((".pptx", ".pptm", ".ppsx", ".potx"), 4),
    **dict.fromkeys((".xlsx", ".xlsm", ".xlsb", ".ods", ".csv", ".tsv", ".psv", ".tab"), 2),
    **dict.fromkeys((".json", ".jsonl", ".ndjson", ".geojson", ".ipynb"), 2),
}
"""Of names whose text is longer than the file: prose is packed to a third, tables and outlines get marks. Else 1."""

OCR_BYTES_PER_PAGE = 10_000
"""A page scanned in black and white takes about 20,000, one in colour many times that."""

_SCANS = (".pdf", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp", ".webp")


def unit_prices(prices: Prices) -> Mapping[Op, int]:
    """Credits per unit of each op."""
    return {
        Op.DATASET_SETUP: prices.dataset_setup,
        Op.DOCUMENT_EXTRACT: prices.extract,
        Op.DOCUMENT_PLAN: prices.plan,
        Op.DOCUMENT_EMBED: prices.embed,
    }


def begun(quantity: int, per: int) -> int:
    """Units begun: quantity / per, rounded up."""
    return -(-max(0, quantity) // per)


def estimated_pages(filename: str, size: int) -> int:
    """The pages of a dense file of that name and `size` in bytes, at least 1: most files have fewer."""
    suffix = PurePosixPath(filename).suffix.lower()
    if suffix == ".pdf":
        return max(1, begun(size, PDF_BYTES_PER_PAGE))
    return max(1, begun(size * CHARACTERS_PER_BYTE.get(suffix, 1), CHARACTERS_PER_PAGE))


def estimated_ocr_pages(filename: str, size: int, most: int) -> int:
    """An upper estimate of the pages that OCR reads in a file of `size` bytes: none but in PDFs and images."""
    return min(most, begun(size, OCR_BYTES_PER_PAGE)) if filename.lower().endswith(_SCANS) else 0


def counted_pages(kind: str, pages: int, characters: int) -> int:
    """The pages that are charged: a PDF's and an image's own, else 3,000 characters each; at least 1."""
    return max(1, pages if kind in {"pdf", "image"} else begun(characters, CHARACTERS_PER_PAGE))


def extract_units(prices: Prices, pages: int, ocr_pages: int = 0) -> int:
    """Units of extraction in `pages` pages, the text of `ocr_pages` of which was read from their pictures."""
    return begun(pages, prices.extract_pages) + begun(ocr_pages, prices.ocr_pages)


def embed_units(prices: Prices, tokens: int) -> int:
    """Units of embedding in `tokens` tokens; 0 where nothing is embedded."""
    return begun(tokens, prices.embed_tokens)
