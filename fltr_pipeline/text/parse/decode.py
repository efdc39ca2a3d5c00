"""Bytes to text in whatever encoding: marks first, then UTF-8, then a guess among the encodings that people use.

Belongs here: encodings. Does not: what the text means.
"""

import codecs
import re
from contextlib import suppress

from fltr_pipeline.errors import Corrupt

_HEAD = 65_536
"""Bytes that the guesses look at."""

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (b"+/v8-", "utf-7"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = bytes({*range(32)} - {*b"\t\n\v\f\r\x1b"})
_MOST_CONTROLS = 0.02
"""Share of control bytes up to which bytes are text; compressed data has five times that."""

_VALID_PER_BROKEN = 10
"""Valid sequences per broken byte from which bytes are damaged UTF-8 rather than another encoding."""

_LEGACY = (
    *("cp1252", "cp1250", "iso8859_2", "cp1251", "koi8_r", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257"),
    *("cp932", "euc_jp", "gb18030", "big5", "euc_kr", "cp949", "iso8859_5", "cp866"),
)
"""The commonest first: of encodings that fit nearly as well the first is taken."""

_RARE = {"iso8859_5": 0.15, "cp866": 0.15}
"""By how much better those must fit that few people ever used."""

_NEARLY = 0.03
_MOST_CHAOS = 0.4
"""Above it a text looks like no writing, unless it has its language's own letters in their own frequency."""

_LEAST_COHERENCE = 0.4
_OWN = {
    **dict.fromkeys(("Danish", "Dutch", "English", "Finnish", "French", "German", "Italian", "Norwegian"), "cp1252"),
    **dict.fromkeys(("Portuguese", "Spanish", "Swedish"), "cp1252"),
    "Turkish": "cp1254",
}
"""What is usual for a language: a single foreign letter makes others fit as well."""

_CENTRAL_EUROPEAN = frozenset({"Croatian", "Czech", "Hungarian", "Polish", "Romanian", "Slovak", "Slovene"})
_C1 = frozenset(range(0x80, 0xA0))
"""Letters and quotes in cp1250, nothing in ISO 8859-2."""

_HZ = re.compile(rb"~\{(?:[!-w][!-~])+~\}")
_SEVEN_BIT = frozenset({"utf-7", "hz-gb-2312", "iso-2022-kr", "iso-2022-jp"})
"""What is written in them is ASCII, too."""

_ISO_2022 = re.compile(rb"\x1b(?:\$[@B]|\([BJ])")


def looks_like_text(data: bytes) -> bool:
    """Whether the bytes are text in some encoding, as opposed to binary data."""
    if unicode_encoding(data) not in {None, "utf-8-sig"}:
        return True
    head = data[:_HEAD]
    return len(head) - len(head.translate(None, _CONTROLS)) <= _MOST_CONTROLS * len(head)


def unicode_encoding(data: bytes) -> str | None:
    """What a byte order mark says, or else the zero bytes of wide characters."""
    return next((name for mark, name in _MARKS if data.startswith(mark)), None) or _wide(data)


def decode(data: bytes, filename: str, *, declared: str | None = None) -> tuple[str, str]:
    """The text and the name of its encoding; what the text itself has `declared` counts where UTF-8 does not fit.

    Raises:
        Corrupt: no encoding fits.
    """
    encoding = unicode_encoding(data)
    if encoding:
        return data.decode(encoding, errors="replace"), encoding.removesuffix("-sig")
    if _ISO_2022.search(data[:_HEAD]):
        return data.decode("iso2022_jp", errors="replace"), "iso2022_jp"
    hz = "hz" if _HZ.search(data[:_HEAD]) and data.isascii() else None
    ascii_in_disguise = declared if declared and declared.lower() in _SEVEN_BIT else None
    for name in filter(None, (hz, ascii_in_disguise, "utf-8", declared)):
        with suppress(ValueError, LookupError):
            return data.decode(name), name
    return _mostly_utf8(data) or _guess(data, filename)


def _wide(data: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark, seen by where the zero bytes of ASCII characters stand."""
    head = data[: len(data[:_HEAD]) // 4 * 4]
    if not head:
        return None
    zeros = [head[place::4].count(0) * 4 / len(head) for place in range(4)]
    often, never = 0.5, 0.02
    patterns = {"utf-32-le": "x000", "utf-32-be": "000x", "utf-16-le": "x0x0", "utf-16-be": "0x0x"}
    for encoding, pattern in patterns.items():
        if all(share >= often if mark == "0" else share <= never for share, mark in zip(zeros, pattern, strict=True)):
            with suppress(UnicodeDecodeError):
                codecs.getincrementaldecoder(encoding)().decode(head)  # not at its end: that may cut a character
                return encoding
    return None


def _mostly_utf8(data: bytes) -> tuple[str, str] | None:
    """UTF-8 with a few broken bytes: in another encoding hardly any of its longer sequences would be valid."""
    text = data.decode("utf-8", errors="replace")
    replaced = text.count("\N{REPLACEMENT CHARACTER}")
    valid = len(text) - len(text.encode("ascii", "ignore")) - replaced
    broken = replaced - text.endswith("\N{REPLACEMENT CHARACTER}")  # it may have been cut there
    return (text, "utf-8") if valid and valid >= _VALID_PER_BROKEN * broken else None


def _guess(data: bytes, filename: str) -> tuple[str, str]:
    from charset_normalizer import from_bytes  # noqa: PLC0415

    matches = list(from_bytes(data, cp_isolation=list(_LEGACY), threshold=_MOST_CHAOS))
    if not matches:  # Latin letters among Cyrillic ones that look alike are chaos
        strange = from_bytes(data, cp_isolation=list(_LEGACY), threshold=1)
        matches = [match for match in strange if match.coherence >= _LEAST_COHERENCE]
    if not matches:
        raise Corrupt(f"{filename}: its text is in no known encoding; save it as UTF-8 and upload it again")
    fits = [match.coherence - 2 * match.chaos - _RARE.get(match.encoding, 0) for match in matches]
    close = [match for match, fit in zip(matches, fits, strict=True) if fit >= max(fits) - _NEARLY]
    best = matches[fits.index(max(fits))]
    usual = _OWN.get(best.language) if best.coherence >= _LEAST_COHERENCE else None
    if best.language in _CENTRAL_EUROPEAN:
        encoding = "cp1250" if _C1.intersection(data) else "iso8859_2"
    elif usual and any(usual in match.could_be_from_charset for match in matches):
        encoding = usual
    else:
        encoding = min((name for match in close for name in match.could_be_from_charset), key=_LEGACY.index)
    return data.decode(encoding, errors="replace"), encoding
