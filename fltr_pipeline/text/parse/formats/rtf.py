"""RTF, through striprtf. Belongs here: RTF to text. Does not: pictures and objects in it."""

from fltr_pipeline.errors import Corrupt
from fltr_pipeline.text.parse.extraction import Extraction, Format


def extract(data: bytes, filename: str) -> Extraction:
    """The text as one page; RTF is ASCII that names the encodings of what is not."""
    from importlib.metadata import version  # noqa: PLC0415

    from striprtf.striprtf import rtf_to_text  # noqa: PLC0415

    try:
        text: str = rtf_to_text(data.decode("latin-1"), encoding="cp1252", errors="replace")  # type: ignore[no-untyped-call]
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # noqa: BLE001  it raises nearly anything on damaged files
        reason = f"{type(error).__name__}: {error}"
        raise Corrupt(f"{filename}: the RTF is damaged ({reason}); save it again and upload it anew") from None
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")  # it leaves halves of characters
    return Extraction([text], f"striprtf {version('striprtf')}")


FORMAT = Format(
    kind="rtf",
    title="RTF documents",
    suffixes=(".rtf",),
    extract=extract,
    recognises=lambda sample: sample.head.startswith("{\\rtf"),
)
