"""Makes the two samples that can't be read: `python -m fltr_pipeline.samples.make_broken`.

Belongs here: how they were made. They are kept as files, since a password nobody has gives other bytes each time.
"""

import io
import secrets
import sys
from pathlib import Path

from fltr_pipeline.samples import folder

ORIGINAL = "debmake-doc.en.pdf"
"""Under a licence that allows changes (Expat)."""
PAGES = 4
UPLOADED_BYTES = 60_000
"""Where the upload was cut off: a PDF's table of contents is at its end."""


def encrypted(original: bytes) -> bytes:
    """The first pages, with AES-256 and a password that is thrown away."""
    from pypdf import PdfReader, PdfWriter  # noqa: PLC0415

    writer = PdfWriter()
    for page in PdfReader(io.BytesIO(original)).pages[:PAGES]:
        writer.add_page(page)
    writer.remove_links()
    writer.compress_identical_objects(remove_unreferenced=True)
    writer.encrypt(secrets.token_urlsafe(), algorithm="AES-256")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def corrupt(original: bytes) -> bytes:
    """The beginning of the file, without what says where its pages are."""
    return original[:UPLOADED_BYTES]


def write(target: Path) -> None:
    """Write `encrypted.pdf` and `corrupt.pdf` into the folder `target`."""
    original = (folder() / "debian" / ORIGINAL).read_bytes()
    (target / "encrypted.pdf").write_bytes(encrypted(original))
    (target / "corrupt.pdf").write_bytes(corrupt(original))


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else folder() / "debian")
