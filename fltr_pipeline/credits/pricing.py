"""From work to whole credits. Pure."""

from fltr_pipeline.settings import Prices

CHARACTERS_PER_PAGE = 3000
"""A page, in formats that have none."""

PDF_BYTES_PER_PAGE = 2000
"""A dense page of text compresses to about this; the estimate is meant to be high, the rest comes back at settle."""


def units(quantity: int, per: int) -> int:
    """Units begun: ⌈quantity / per⌉."""
    return -(-max(0, quantity) // per)


def estimated_pages(filename: str, size: int) -> int:
    """An upper estimate of the pages in a file of `size` bytes, at least 1."""
    per = PDF_BYTES_PER_PAGE if filename.lower().endswith(".pdf") else CHARACTERS_PER_PAGE
    return max(1, units(size, per))


def counted_pages(kind: str, pages: int, characters: int) -> int:
    """The pages that are charged: a PDF's own, else 3,000 characters each; at least 1."""
    return max(1, pages if kind == "pdf" else units(characters, CHARACTERS_PER_PAGE))


def extract_price(prices: Prices, pages: int) -> int:
    """Credits for extracting `pages` pages."""
    return prices.extract * units(pages, prices.extract_pages)


def embed_price(prices: Prices, tokens: int) -> int:
    """Credits for embedding `tokens` tokens; 0 where nothing is embedded."""
    return prices.embed * units(tokens, prices.embed_tokens)
