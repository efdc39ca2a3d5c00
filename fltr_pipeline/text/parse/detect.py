"""What a file is: its content decides; its name only where content shows nothing, as among kinds of text.

Belongs here: choosing a format, and naming what is of none. Does not: how a format is recognised (its own module).
"""

from pathlib import PurePosixPath

from fltr_pipeline.errors import Encrypted, Unsupported
from fltr_pipeline.text.parse.decode import looks_like_text
from fltr_pipeline.text.parse.extraction import Format
from fltr_pipeline.text.parse.formats import formats, image, plain
from fltr_pipeline.text.parse.sample import OLE, Sample

_MAGIC = (
    (8, b"WAVE", "a WAV audio file"),
    (0, b"ID3", "an MP3 audio file"),
    (0, b"\xff\xfb", "an MP3 audio file"),
    (0, b"OggS", "an Ogg audio file"),
    (0, b"fLaC", "a FLAC audio file"),
    *((4, b"ftyp" + brand, "a HEIC image; save it as JPEG or PDF") for brand in (b"heic", b"heix", b"mif1", b"msf1")),
    (4, b"ftypavif", "an AVIF image; save it as JPEG or PDF"),
    (4, b"ftyp", "an MP4 audio or video file"),
    (0, b"\x1aE\xdf\xa3", "a Matroska video"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\x00", "an xz archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, OLE, "an Office document from before 2007 (DOC, PPT or MSG); save it as DOCX, PPTX or PDF"),
    (0, b"%!PS", "a PostScript file"),
    (0, b"MZ", "a Windows program"),
    (0, b"\x7fELF", "a Linux program"),
    (0, b"\xca\xfe\xba\xbe", "a Java class or macOS program"),
    (0, b"SQLite format 3\x00", "an SQLite database"),
)
_CONTAINERS = (b"PK\x03\x04", OLE)
"""What is so packed may be a damaged document, if its name says so."""


def format_of(data: bytes, filename: str, *, ocr: bool = False) -> Format:
    """The format that the bytes are of; of text that shows no sign, the one that its name says, else plain text.

    Raises:
        Unsupported: of no format that is read; an image, where OCR is off.
        Encrypted: an Office document in the container that a password puts around it.
    """
    sample = Sample(data)
    readable = [form for form in formats() if ocr or form is not image.FORMAT]
    if shown := next((form for form in readable if form.recognises and form.recognises(sample)), None):
        return shown
    if sample.has_ole_stream("EncryptedPackage"):
        raise Encrypted(f"{filename}: needs a password; upload it without one")
    suffix = PurePosixPath(filename).suffix.lower()
    named = next((form for form in readable if suffix in form.suffixes), None)
    found = _name_of(sample)
    if looks_like_text(data) and not data.startswith(b"%!PS"):
        return named if named and named.is_text else plain.FORMAT
    if named and not named.is_text and (found is None or data.startswith(_CONTAINERS)):
        return named  # damaged at its head: the format itself judges it
    raise Unsupported(
        f"{filename}: holds {found or 'binary data of an unknown kind'}; "
        f"what can be read: {', '.join(form.title for form in readable)}"
    )


def _name_of(sample: Sample) -> str | None:
    if image.recognises(sample):
        return f"{image.name_of(sample.data)}, whose text is read only where OCR is on (FLTR_OCR)"
    return next((name for offset, magic, name in _MAGIC if sample.data.startswith(magic, offset)), None)
