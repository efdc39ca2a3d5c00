"""The real model that ships with the package."""

import math
from pathlib import Path

import pytest

from fltr_pipeline.errors import ConfigurationError, WindowExceeded
from fltr_pipeline.text.model import DEFAULT_MODEL, EmbeddingModel


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return EmbeddingModel(DEFAULT_MODEL, batch_size=4, threads=2)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_facts(model: EmbeddingModel) -> None:
    assert (model.window, model.special_tokens, model.dimension) == (256, 2, 384)
    assert model.chunk_tokens(254) == 254
    assert model.chunk_tokens(1_000) == 254
    assert model.chunk_tokens(100) == 100


def test_the_tokenizer_never_truncates(model: EmbeddingModel) -> None:
    assert model.tokenizer.count(["", "word", "word " * 5_000]) == [2, 3, 5_002]
    assert model.tokenizer.offsets("Two words") == [(0, 3), (4, 9)]
    assert model.tokenizer.count(["a", "word " * 300]) == [3, 302]


def test_vectors_have_length_one_and_keep_their_order(model: EmbeddingModel) -> None:
    texts = [
        "A cat sits on the mat.",
        "x",
        "The invoice is due in thirty days. " * 20,
        "A kitten is lying on a rug.",
    ] * 3
    vectors = model.encode(texts)
    assert [len(vector) for vector in vectors] == [384] * 12
    assert all(math.isclose(math.sqrt(dot(v, v)), 1, abs_tol=1e-5) for v in vectors)
    for text, vector in zip(texts, vectors, strict=True):
        assert dot(vector, model.encode([text])[0]) == pytest.approx(1, abs=1e-4)


def test_similar_sentences_are_closer(model: EmbeddingModel) -> None:
    cat, kitten, invoice = model.encode(
        ["A cat sits on the mat.", "A kitten is lying on a rug.", "The invoice is due in thirty days."]
    )
    assert dot(cat, kitten) > dot(cat, invoice) + 0.2


def test_the_end_of_a_full_window_counts(model: EmbeddingModel) -> None:
    full = "word " * 253
    one, other = model.encode([full + "cat", full + "tax"])
    assert model.tokenizer.count([full + "cat"]) == [256]
    assert dot(one, other) < 1 - 1e-5


def test_a_longer_text_is_refused(model: EmbeddingModel) -> None:
    with pytest.raises(WindowExceeded, match="text 1 of 2 has 257 tokens"):
        model.encode(["fine", "word " * 255])


def test_no_texts_no_vectors(model: EmbeddingModel) -> None:
    assert model.encode([]) == []


def test_a_folder_is_a_model_and_the_same_one(model: EmbeddingModel) -> None:
    same = EmbeddingModel(str(model.folder), batch_size=1, threads=0)
    assert same.fingerprint == model.fingerprint
    assert dot(same.encode(["word"])[0], model.encode(["word"])[0]) == pytest.approx(1, abs=1e-5)


def test_another_tokenizer_is_another_model(model: EmbeddingModel, tmp_path: Path) -> None:
    for path in model.folder.rglob("*"):
        if path.is_file() and path.suffix in {".json", ".safetensors"}:
            copy = tmp_path / path.relative_to(model.folder)
            copy.parent.mkdir(exist_ok=True)
            copy.symlink_to(path)
    other = EmbeddingModel(str(tmp_path), batch_size=1, threads=1)
    assert other.fingerprint == model.fingerprint
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").write_text("{}")
    assert EmbeddingModel(str(tmp_path), batch_size=1, threads=1).fingerprint != model.fingerprint


def test_an_unknown_model_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match="FLTR_EMBEDDING_MODEL"):
        _ = EmbeddingModel("nobody/no-such-model", batch_size=1, threads=1).folder
