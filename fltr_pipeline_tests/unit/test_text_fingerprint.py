"""Fingerprints: the same everywhere, different when the output may differ."""

import subprocess
import sys

import pytest

from fltr_pipeline.errors import ConfigurationError
from fltr_pipeline.settings import Settings
from fltr_pipeline.text.fingerprint import extractor_fingerprint, pipeline_fingerprint
from fltr_pipeline.text.model import DEFAULT_MODEL, EmbeddingModel
from fltr_pipeline.text.parse import ocr

MODEL = EmbeddingModel(DEFAULT_MODEL, batch_size=1, threads=1)


def test_is_sixteen_hex_digits() -> None:
    for digest in (extractor_fingerprint(Settings()), pipeline_fingerprint(Settings(), MODEL), MODEL.fingerprint):
        assert len(digest) == 16
        int(digest, 16)


def test_is_the_same_in_another_process_that_never_loads_torch() -> None:
    code = (
        "import sys; from fltr_pipeline.settings import Settings; from fltr_pipeline.text.fingerprint import *;"
        "from fltr_pipeline.text.model import EmbeddingModel, DEFAULT_MODEL;"
        "print(pipeline_fingerprint(Settings(), EmbeddingModel(DEFAULT_MODEL, batch_size=9, threads=2)));"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == pipeline_fingerprint(Settings(), MODEL)


@pytest.mark.parametrize(
    "change", [{"pdf_engine": "pypdf"}, {"ocr": True}, {"chunk_tokens": 100}, {"chunk_overlap": 8}]
)
def test_changes_with_what_changes_the_output(change: dict[str, object]) -> None:
    assert pipeline_fingerprint(Settings.model_validate(change), MODEL) != pipeline_fingerprint(Settings(), MODEL)


def test_ocr_without_its_libraries_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "LIBRARIES", ("no-such-library",))
    with pytest.raises(
        ConfigurationError, match=r"no-such-library is not installed: pip install 'fltr-pipeline\[ocr\]'"
    ):
        extractor_fingerprint(Settings(ocr=True))


@pytest.mark.parametrize("change", [{"embedding_batch_size": 7}, {"parse_workers": 5}, {"chunk_tokens": 5_000}])
def test_stays_with_what_does_not(change: dict[str, object]) -> None:
    assert pipeline_fingerprint(Settings.model_validate(change), MODEL) == pipeline_fingerprint(Settings(), MODEL)
