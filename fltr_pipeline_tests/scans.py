"""Pictures of text, as a scanner makes them: pages drawn with Pillow, as image files and as PDFs without a text layer.

Belongs here: making them. Does not: reading them.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pypdf import PdfReader, PdfWriter

A4 = (1240, 1754)
"""Pixels at 150 dpi."""

Block = tuple[int, int, str]
"""Where a block of lines begins, from the left and from the top, and what it says."""


def page(*blocks: Block | str, turned: int = 0, size: int = 28) -> Image.Image:
    """Black on white; blocks without a place stand at the upper left. `turned` is in degrees, against the clock."""
    picture = Image.new("RGB", A4, "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size)
    for block in blocks:
        left, top, text = (120, 120, block) if isinstance(block, str) else block
        draw.multiline_text((left, top), text, fill="black", font=font, spacing=12)
    return picture.rotate(turned, expand=True, fillcolor="white")


def noise(seed: int) -> Image.Image:
    """A page full of pixels without meaning."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*A4[::-1], 3), dtype=np.uint8))


def saved(pages: Sequence[Image.Image], form: str) -> bytes:
    """The pages as one file: `PDF` without a text layer, `TIFF`; other forms keep the first one only."""
    out = io.BytesIO()
    more = {"save_all": True, "append_images": pages[1:]} if form in {"PDF", "TIFF"} else {}
    pages[0].save(out, form, **more, **({"resolution": 150.0} if form == "PDF" else {}))
    return out.getvalue()


def bound(*pdfs: bytes) -> bytes:
    """The pages of all of them in one PDF."""
    writer = PdfWriter()
    for data in pdfs:
        writer.append(PdfReader(io.BytesIO(data)))
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()
