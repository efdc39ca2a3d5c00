"""Whether a page's text is what a reader would see there, or an engine's misreading of fonts and spaces.

Belongs here: judging text by itself. Does not: getting a better one.
"""

import re

_UNREADABLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ue000-\uf8ff\ufffd\U000f0000-\U0010ffff]")
"""Controls, private use and replacement characters: a font without a map to Unicode."""

_CID = re.compile(r"\(cid:\d+\)")
"""The same, as some engines tell it."""

_LONG = 22
_FUSED = re.compile(
    r"[^\W\d_\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]"
    rf"{{{_LONG},}}"
)
"""Letters without a blank, longer than words are; of scripts that have blanks between words."""

_DOUBTFUL = 0.25


def badness(text: str) -> float:
    """The share of what is not white space that is unreadable or fused, from 0 to 1."""
    words = text.split()
    bad = len(_UNREADABLE.findall(text)) + sum(map(len, _CID.findall(text)))
    bad += sum(len(run) for word in words if len(word) >= _LONG for run in _FUSED.findall(word))
    return bad / sum(map(len, words)) if bad and words else 0.0


def is_doubtful(text: str) -> bool:
    """Whether so much of it is garbage that another engine should be asked."""
    return badness(text) > _DOUBTFUL
