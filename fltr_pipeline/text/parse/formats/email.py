"""E-mail (EML), and web pages saved as such (MHTML): who, to whom, when, about what; the text; names of attachments.

Belongs here: MIME to text. Does not: reading attachments, which are files of their own.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import Message

from fltr_pipeline.text.parse.decode import decode
from fltr_pipeline.text.parse.extraction import Extraction, Format
from fltr_pipeline.text.parse.formats import html
from fltr_pipeline.text.parse.sample import Sample

_SHOWN = ("From", "To", "Cc", "Date")
_HEADER = re.compile(
    r"^(?:received|from|to|subject|date|message-id|mime-version|return-path|delivered-to|reply-to|content-type|"
    r"x-[\w-]+|dkim-signature|content-transfer-encoding|cc):",
    re.MULTILINE,
)
_FIRST = re.compile(r"(?:from \S+ [^\n]*\n)?[!-9;-~]+:[ \t]")
_LEAST_HEADERS = 3
_STYLES = frozenset({"text/css", "text/javascript", "text/ecmascript"})


def extract(data: bytes, filename: str) -> Extraction:
    """The message, with the messages within it, as one page.

    Raises:
        RecursionError: its parts are nested too deep.
    """
    import platform  # noqa: PLC0415

    # compat32 because the newer policies raise on many of the malformed headers that real messages have.
    message = message_from_bytes(data, policy=policy.compat32)
    text = "\n\n".join(part for part in _parts(message, filename) if part.strip())
    return Extraction([text], f"email of Python {platform.python_version()}")


def _parts(message: Message, filename: str) -> Iterator[str]:
    if subject := _header(message, "Subject"):
        yield f"# {subject}"
    yield "\n".join(f"{name}: {value}" for name in _SHOWN if (value := _header(message, name)))
    attached = []
    for part in _leaves(message):
        if part.get_content_type() == "message/rfc822":
            for inner in _within(part):
                yield from _parts(inner, filename)
        elif part.get_content_disposition() == "attachment" or part.get_content_maintype() not in {"text", "multipart"}:
            attached.append(part.get_filename())
        elif part.get_content_type() not in _STYLES:
            yield _text(part, filename)
    yield "\n".join(f"Attached: {name}" for name in attached if name)


def _header(message: Message, name: str) -> str:
    """Decoded; as it stands where that fails."""
    value = str(message.get(name, ""))
    with suppress(ValueError, LookupError):  # its encoding is unknown, or another than it says
        value = str(make_header(decode_header(value)))
    return " ".join(value.split())


def _leaves(message: Message) -> Iterator[Message]:
    """The parts in their order; of alternatives the plain one, where there is one with text."""
    parts = _within(message)
    if not parts or message.get_content_type() == "message/rfc822":
        yield message
        return
    if message.get_content_type() == "multipart/alternative":
        plain = [part for part in parts if part.get_content_type() == "text/plain" and _content(part).strip()]
        parts = plain[:1] or parts[-1:]
    for part in parts:
        yield from _leaves(part)


def _within(message: Message) -> Sequence[Message]:
    payload = message.get_payload()
    return [part for part in payload if isinstance(part, Message)] if isinstance(payload, list) else []


def _content(part: Message) -> bytes:
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _text(part: Message, filename: str) -> str:
    content = _content(part)
    if not content.strip():
        return ""
    declared = part.get_content_charset()
    if part.get_content_subtype() == "html":
        return html.text_of(content, filename, declared=declared)
    return decode(content, filename, declared=declared)[0]


def _recognises(sample: Sample) -> bool:
    """Headers at the very beginning, three of the usual ones among them."""
    headers = sample.head.replace("\r\n", "\n").partition("\n\n")[0]
    return _FIRST.match(headers) is not None and len(set(_HEADER.findall(headers))) >= _LEAST_HEADERS


FORMAT = Format(
    kind="email",
    title="e-mail messages (EML) and saved web pages (MHTML)",
    suffixes=(".eml", ".mht", ".mhtml"),
    extract=extract,
    recognises=_recognises,
    is_text=True,
)
