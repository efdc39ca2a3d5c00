"""What a generation of a document was made with, as a short digest: when it differs, the generation is stale.

Belongs here: naming everything that can change the text, the chunks or the vectors. Does not: what to do about it.
"""

import hashlib
import json
from importlib.metadata import version

from fltr_pipeline.settings import Settings
from fltr_pipeline.text.chunk import CHUNKER_VERSION
from fltr_pipeline.text.clean import CLEANER_VERSION
from fltr_pipeline.text.model import EmbeddingModel
from fltr_pipeline.text.parse import PARSER_VERSION

_LIBRARIES = ("charset-normalizer", "lxml", "pypdf", "pypdfium2", "python-calamine", "striprtf")


def extractor_fingerprint(pdf_engine: str) -> str:
    """16 hex digits: what turns a file into cleaned text, with the libraries' versions."""
    return _digest(PARSER_VERSION, CLEANER_VERSION, pdf_engine, *(f"{name} {version(name)}" for name in _LIBRARIES))


def pipeline_fingerprint(settings: Settings, model: EmbeddingModel) -> str:
    """16 hex digits: all from a file to its vectors, the same in every process of the same configuration."""
    return _digest(
        extractor_fingerprint(settings.pdf_engine),
        CHUNKER_VERSION,
        model.chunk_tokens(settings.chunk_tokens),
        settings.chunk_overlap,
        model.fingerprint,
    )


def attempt_fingerprint(settings: Settings, model: EmbeddingModel) -> str:
    """16 hex digits: all that decides whether a file can be processed, but for its bytes; the limits, too."""
    return _digest(pipeline_fingerprint(settings, model), str(settings.parse_seconds), settings.parse_memory_mb)


def _digest(*parts: str | int) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
