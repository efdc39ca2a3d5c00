"""What a file is: its content decides; its name only where content shows nothing, as among kinds of text.

Belongs here: choosing a format, and naming what is of none. Does not: how a format is recognised (its own module).
"""

from pathlib import PurePosixPath

from fltr_pipeline.errors import Encrypted, Unsupported
from fltr_pipeline.text.parse.decode import looks_like_text
from fltr_pipeline.text.parse.extraction import Format
from fltr_pipeline.text.parse.formats import formats, plain
from fltr_pipeline.text.parse.sample import OLE, Sample

_MAGIC = (
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"II*\x00", "a TIFF image"),
    (0, b"MM\x00*", "a TIFF image"),
    (0, b"BM", "a BMP image"),
    (8, b"WEBP", "a WebP image"),
    (8, b"WAVE", "a WAV audio file"),
    (0, b"ID3", "an MP3 audio file"),
    (0, b"\xff\xfb", "an MP3 audio file"),
    (0, b"OggS", "an Ogg audio file"),
    (0, b"fLaC", "a FLAC audio file"),
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


def format_of(data: bytes, filename: str) -> Format:
    """The format that the bytes are of; of text that shows no sign, the one that its name says, else plain text.

    Raises:
        Unsupported: of no format that is read.
        Encrypted: an Office document in the container that a password puts around it.
    """
    sample = Sample(data)
    shown = next((form for form in formats() if form.recognises and form.recognises(sample)), None)
    if shown:
        return shown
    if sample.has_ole_stream("EncryptedPackage"):
        raise Encrypted(f"{filename}: needs a password; upload it without one")
    suffix = PurePosixPath(filename).suffix.lower()
    named = next((form for form in formats() if suffix in form.suffixes), None)
    found = next((name for offset, magic, name in _MAGIC if data.startswith(magic, offset)), None)
    if looks_like_text(data) and not data.startswith(b"%!PS"):
        return named if named and named.is_text else plain.FORMAT
    if named and not named.is_text and (found is None or data.startswith(_CONTAINERS)):
        return named  # damaged at its head: the format itself judges it
    raise Unsupported(
        f"{filename}: holds {found or 'binary data of an unknown kind'}; "
        f"what can be read: {', '.join(form.title for form in formats())}"
    )
