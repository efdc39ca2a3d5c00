"""The model's own tokenizer: how many tokens a text has, and where they are.

Belongs here: a thin wrapper that never truncates and never pads. Does not: the model.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

SEPARATORS = " \t\n\u00a0\u3000"
"""White space to every tokenizer; other kinds are control characters to some, which join what they stand between."""

_BATCH = 512
"""Texts per call into the tokenizer: an encoding takes some hundred bytes per token while it lives."""
_WORD = re.compile(f"[^{SEPARATORS}]+")
_KNOWN_CHARACTERS = 500_000
"""Of words whose tokens are remembered, some ten megabytes with all that belongs to them."""


class Tokenizer:
    """Counts and locates tokens; loads in milliseconds, without torch."""

    def __init__(self, path: Path) -> None:
        """Read `path`, a `tokenizer.json`; its truncation and padding are switched off."""
        from tokenizers import Tokenizer as Backend  # noqa: PLC0415

        self._backend = Backend.from_file(str(path))
        self._backend.no_truncation()
        self._backend.no_padding()
        self._known: dict[str, int] = {}
        self._known_characters = 0

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
            batch = distinct[first : first + _BATCH]
            counts += self._added_up(batch) if self.word_by_word else self._measured(batch)
        known = dict(zip(distinct, counts, strict=True))
        return [known[text] for text in texts]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each token in characters of `text`, without special tokens."""
        return list(self._backend.encode(text, add_special_tokens=False).offsets)

    def _measured(self, texts: Sequence[str]) -> list[int]:
        return list(map(len, self._backend.encode_batch_fast(list(texts))))

    def _added_up(self, texts: Sequence[str]) -> list[int]:
        """By words, of which few are new: a tenth of the time that it takes to measure the texts."""
        words = [_WORD.findall(text) for text in texts]
        known, special = self._known, self.special_tokens
        new = list(set().union(*words).difference(known))
        for first in range(0, len(new), _BATCH):
            batch = new[first : first + _BATCH]
            known.update(zip(batch, (count - special for count in self._measured(batch)), strict=True))
        self._known_characters += sum(map(len, new))
        if self._known_characters > _KNOWN_CHARACTERS:
            self._known, self._known_characters = {}, 0
        return [special + sum(map(known.__getitem__, part)) for part in words]
