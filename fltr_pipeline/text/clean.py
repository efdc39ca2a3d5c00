"""Makes text fit to be stored, whatever produced it.

Belongs here: what no stored text may hold. Does not: judging or rewriting what the text says.
"""

import re

CLEANER_VERSION = "1"
"""Part of the pipeline's fingerprint: raise it when the same input gives another output."""

_NEWLINE = re.compile("\r\n|[\r\x0b\x85\u2028\u2029]")
_REMOVED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")
_TRAILING_BLANKS = re.compile(r"(?<![^\S\n\f])[^\S\n\f]++(?=[\n\f]|\Z)")
"""Begins only where a run of blanks begins: else a long run within a line takes quadratic time."""


def clean(text: str) -> str:
    r"""`text` without NULs, lone surrogates, control characters and trailing blanks; every line ends in `\n`.

    Form feeds stay as they are: they separate pages. Idempotent.
    """
    text = _NEWLINE.sub("\n", text)
    text = _REMOVED.sub("", text)
    return _TRAILING_BLANKS.sub("", text)
