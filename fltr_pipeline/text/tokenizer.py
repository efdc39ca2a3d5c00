"""The model's own tokenizer: how many tokens a text has, and where they are.

Belongs here: a thin wrapper that never truncates and never pads. Does not: the model.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

_BATCH = 512
"""Texts per call into the tokenizer: an encoding takes some hundred bytes per token while it lives."""


class Tokenizer:
    """Counts and locates tokens; loads in milliseconds, without torch."""

    def __init__(self, path: Path) -> None:
        """Read `path`, a `tokenizer.json`; its truncation and padding are switched off."""
        from tokenizers import Tokenizer as Backend  # noqa: PLC0415

        self._backend = Backend.from_file(str(path))
        self._backend.no_truncation()
        self._backend.no_padding()

    @property
    def special_tokens(self) -> int:
        """Tokens that the model adds to every text."""
        return int(self._backend.num_special_tokens_to_add(is_pair=False))

    @cached_property
    def word_by_word(self) -> bool:
        """Whether white space ends every token, and a word's tokens are the same wherever it stands, as with BERT."""
        added = self._backend.get_added_tokens_decoder().values()
        if any(char.isspace() for token in added for char in token.content):
            return False
        from tokenizers.models import WordPiece  # noqa: PLC0415
        from tokenizers.normalizers import BertNormalizer  # noqa: PLC0415
        from tokenizers.pre_tokenizers import BertPreTokenizer  # noqa: PLC0415

        parts = (self._backend.normalizer, self._backend.pre_tokenizer, self._backend.model)
        return all(map(isinstance, parts, (BertNormalizer, BertPreTokenizer, WordPiece)))

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens included."""
        distinct = list(dict.fromkeys(texts))  # of single characters, and in tables, there are few
        counts: list[int] = []
        for first in range(0, len(distinct), _BATCH):
            counts += map(len, self._backend.encode_batch_fast(distinct[first : first + _BATCH]))
        known = dict(zip(distinct, counts, strict=True))
        return [known[text] for text in texts]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each token in characters of `text`, without special tokens."""
        return list(self._backend.encode(text, add_special_tokens=False).offsets)
