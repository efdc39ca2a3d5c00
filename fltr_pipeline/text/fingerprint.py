"""What a generation of a document was made with, as a short digest: when it differs, the generation is stale.

Belongs here: naming everything that can change the text, the chunks or the vectors. Does not: what to do about it.
"""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version

from fltr_pipeline.errors import ConfigurationError
from fltr_pipeline.settings import Settings
from fltr_pipeline.text.chunk import CHUNKER_VERSION
from fltr_pipeline.text.clean import CLEANER_VERSION
from fltr_pipeline.text.model import EmbeddingModel
from fltr_pipeline.text.parse import PARSER_VERSION, ocr

_LIBRARIES = ("charset-normalizer", "lxml", "pypdf", "pypdfium2", "python-calamine", "striprtf")


def extractor_fingerprint(settings: Settings) -> str:
    """16 hex digits: what turns a file into cleaned text, with the libraries' versions.

    Raises:
        ConfigurationError: OCR is on, and its libraries are not installed.
    """
    parts = [PARSER_VERSION, CLEANER_VERSION, settings.pdf_engine, *map(_versioned, _LIBRARIES)]
    if settings.ocr:
        try:
            parts += [f"ocr {ocr.OCR_VERSION}", *map(_versioned, ocr.LIBRARIES)]
        except PackageNotFoundError as error:
            raise ConfigurationError(
                f"FLTR_OCR is on, but {error.name} is not installed: pip install 'fltr-pipeline[ocr]', or turn it off"
            ) from None
    return _digest(*parts)


def pipeline_fingerprint(settings: Settings, model: EmbeddingModel) -> str:
    """16 hex digits: all from a file to its vectors, the same in every process of the same configuration."""
    return _digest(
        extractor_fingerprint(settings),
        CHUNKER_VERSION,
        model.chunk_tokens(settings.chunk_tokens),
        settings.chunk_overlap,
        model.fingerprint,
    )


def attempt_fingerprint(settings: Settings, model: EmbeddingModel) -> str:
    """16 hex digits: all that decides whether a file can be processed, but for its bytes; the limits, too."""
    return _digest(pipeline_fingerprint(settings, model), str(settings.parse_seconds), settings.parse_memory_mb)


def _versioned(library: str) -> str:
    return f"{library} {version(library)}"


def _digest(*parts: str | int) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
