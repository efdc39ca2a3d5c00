"""Makes text fit to be stored, whatever produced it.

Belongs here: what no stored text may hold. Does not: judging or rewriting what the text says.
"""

import re

CLEANER_VERSION = "2"
"""Part of the pipeline's fingerprint: raise it when the same input gives another output."""

_NEWLINE = re.compile("\r\n|[\r\x0b\x85\u2028\u2029]")
_REMOVED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff\u2060-\u2064]")
_SOFT_HYPHEN = re.compile("\u00ad(?:[^\\S\n\f]*\n[^\\S\n\f]*)?")
"""With the line break that it was used for."""

_LIGATURES = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}
_LIGATURE = re.compile("[ﬀ-ﬆ]")


def clean(text: str) -> str:
    r"""`text` without NULs, lone surrogates, control characters and trailing blanks; every line ends in `\n`.

    Ligatures are spelled out and soft hyphens gone, so that words are found as they are typed.

    Form feeds stay as they are: they separate pages. Idempotent.
    """
    text = _NEWLINE.sub("\n", text)
    text = _REMOVED.sub("", text)
    if not text.isascii():
        text = _SOFT_HYPHEN.sub("", text)
        text = _LIGATURE.sub(lambda match: _LIGATURES[match[0]], text)
    return "\f".join("\n".join(line.rstrip() for line in page.split("\n")) for page in text.split("\f"))
