"""The promises of chunks, on the model's own tokenizer."""

import random
import statistics
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fltr_pipeline.models import Chunk
from fltr_pipeline.text.chunk import chunk_text
from fltr_pipeline.text.model import DEFAULT_MODEL, EmbeddingModel
from fltr_pipeline.text.tokenizer import Tokenizer

TOKENIZER = EmbeddingModel(DEFAULT_MODEL, batch_size=1, threads=1).tokenizer


class WholeTextTokenizer(Tokenizer):
    """One that can't be trusted word by word: every piece has to be measured."""

    word_by_word = False


def chunked(text: str, tokenizer: Tokenizer, *, max_tokens: int, overlap: int = 0) -> list[Chunk]:
    return list(chunk_text(text, tokenizer, max_tokens=max_tokens, overlap=overlap))


WHOLE = WholeTextTokenizer(EmbeddingModel(DEFAULT_MODEL, batch_size=1, threads=1).folder / "tokenizer.json")

PIECES = st.sampled_from(
    [
        *("word", "Überraschung", "naïveté", "x" * 300, "https://example.org/a/b?c=d", "3.14", "e.g.", "…", "—"),
        *(
            "。",
            "漢字かな交じり文",
            "한국어",
            "ภาษาไทย",
            "العربية",
            "👩‍👩‍👧‍👦",
            "🏳️‍🌈",
            "e\u0301\u0323",
            "\u200d",
            "\u0300" * 40,
        ),
        *(
            " ",
            "  ",
            "\n",
            "\n\n",
            "\f",
            "\t",
            "\xa0",
            "\u3000",
            ". ",
            "! ",
            "\n# Heading\n",
            "\n```\n",
            "\n- ",
            "\n12. ",
        ),
        *("A sentence of some length stands here.", "Title\n=====\n", "| a | b |\n"),
    ]
)
TEXTS = st.one_of(st.lists(PIECES, max_size=120).map("".join), st.text(max_size=400))


def check(text: str, chunks: list[Chunk], tokenizer: Tokenizer, *, max_tokens: int) -> None:
    """Everything that holds for chunks with any overlap."""
    counts = tokenizer.count([chunk.text for chunk in chunks])
    for ordinal, (chunk, tokens) in enumerate(zip(chunks, counts, strict=True)):
        assert chunk.ordinal == ordinal
        assert text[chunk.start : chunk.end] == chunk.text
        assert chunk.text
        assert chunk.text == chunk.text.strip()
        assert "\f" not in chunk.text
        assert chunk.page == text.count("\f", 0, chunk.start) + 1
        assert chunk.tokens == tokens <= max_tokens + tokenizer.special_tokens
    covered = {index for chunk in chunks for index in range(chunk.start, chunk.end)}
    assert all(char.isspace() or index in covered for index, char in enumerate(text))


@given(TEXTS, st.integers(16, 60))
@settings(deadline=None)
def test_chunks_are_exact_ordered_fitting_and_complete(text: str, max_tokens: int) -> None:
    chunks = chunked(text, TOKENIZER, max_tokens=max_tokens)
    check(text, chunks, TOKENIZER, max_tokens=max_tokens)
    assert all(a.end <= b.start for a, b in pairwise(chunks))


@given(TEXTS, st.integers(20, 60), st.data())
@settings(deadline=None)
def test_overlap_repeats_no_more_than_asked_and_keeps_the_promises(
    text: str, max_tokens: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, max_tokens // 2))
    chunks = chunked(text, TOKENIZER, max_tokens=max_tokens, overlap=overlap)
    check(text, chunks, TOKENIZER, max_tokens=max_tokens)
    for before, chunk in pairwise(chunks):
        assert before.start < chunk.start or not overlap
        assert before.end < chunk.end
        shared = text[chunk.start : before.end]
        assert len(TOKENIZER.offsets(shared)) <= overlap


def test_overlap_repeats_whole_words() -> None:
    text = " ".join(f"word{index} goes on" for index in range(200))
    chunks = chunked(text, TOKENIZER, max_tokens=60, overlap=15)
    assert len(chunks) > 3
    for before, chunk in pairwise(chunks):
        assert chunk.start < before.end
        assert text[chunk.start - 1] == " "


@pytest.mark.parametrize("max_tokens", [16, 64, 254])
@pytest.mark.parametrize(
    "text",
    [
        "x" * 100_000,
        "漢" * 20_000,
        "👩‍👩‍👧‍👦" * 3_000,
        "e\u0301" * 10_000,
        "\u0300" * 5_000,
        "a" + " " * 50_000 + "b",
        "word " * 20_000,
        "same line\n" * 5_000,
        "\n# H" * 3_000,
        "\f" * 2_000 + "end",
        "a.b" * 20_000,
        "." * 200_000,
        "1." * 50_000,
        ".'" * 50_000,
    ],
    ids=[
        "word",
        "cjk",
        "emoji",
        "accents",
        "marks",
        "blanks",
        "words",
        "lines",
        "headings",
        "pages",
        "dots",
        "leader",
        "numbers",
        "quotes",
    ],
)
def test_monsters(text: str, max_tokens: int) -> None:
    chunks = chunked(text, TOKENIZER, max_tokens=max_tokens)
    check(text, chunks, TOKENIZER, max_tokens=max_tokens)
    assert max(len(chunk.text.encode()) for chunk in chunks) < 65_535  # the vector store's longest text


@pytest.mark.parametrize("text", ["", " ", "\n\f\n", "\f\f\f", "\u3000"])
def test_blank_text_has_no_chunks(text: str) -> None:
    assert chunked(text, TOKENIZER, max_tokens=64) == []


def test_a_short_text_is_one_chunk() -> None:
    assert chunked("  Hello world.\n", TOKENIZER, max_tokens=64) == [
        Chunk(ordinal=0, page=1, start=2, end=14, tokens=5, text="Hello world.")
    ]


def test_no_chunk_crosses_a_page() -> None:
    chunks = chunked("one\f\ftwo three\ffour", TOKENIZER, max_tokens=64)
    assert [(chunk.page, chunk.text) for chunk in chunks] == [(1, "one"), (3, "two three"), (4, "four")]


@given(st.lists(TEXTS, max_size=3))
@settings(deadline=None, max_examples=100)
def test_the_tokens_of_words_add_up_to_those_of_texts(texts: list[str]) -> None:
    assert TOKENIZER.count(texts) == WHOLE.count(texts)


def test_words_that_are_forgotten_count_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["one naïveté", "two " * 3 + "one", "", "x" * 300]
    monkeypatch.setattr("fltr_pipeline.text.tokenizer._KNOWN_CHARACTERS", 10)
    assert TOKENIZER.count(texts) == TOKENIZER.count(texts) == WHOLE.count(texts)


@given(TEXTS, st.integers(16, 60))
@settings(deadline=None, max_examples=30)
def test_pieces_whose_sizes_add_up_are_those_that_are_measured(text: str, max_tokens: int) -> None:
    assert TOKENIZER.word_by_word
    measured = chunked(text, WHOLE, max_tokens=max_tokens)
    assert chunked(text, TOKENIZER, max_tokens=max_tokens) == measured


def test_headings_begin_chunks_and_stay_with_their_text() -> None:
    body = "Some plain sentence about the matter at hand. " * 4
    text = "\n\n".join(f"## Section {name}\n\n{body}" for name in ("one", "two", "three", "four", "five", "six"))
    chunks = chunked(text, TOKENIZER, max_tokens=64)
    assert [chunk.text.split("\n")[0] for chunk in chunks] == [
        f"## Section {name}" for name in ("one", "two", "three", "four", "five", "six")
    ]


def test_a_comment_in_a_code_block_is_no_heading() -> None:
    code = "```bash\n" + "".join(f"# comment {index}\nmake target-{index}\n\n" for index in range(3)) + "```\n"
    text = "Introduction to the build.\n\n" + code + "\n# Real heading\n\n" + "A sentence follows the heading. " * 6
    chunks = chunked(text, TOKENIZER, max_tokens=64)
    assert [chunk.text.split("\n")[0] for chunk in chunks] == ["Introduction to the build.", "# Real heading"]


@pytest.mark.parametrize(("max_tokens", "overlap"), [(15, 0), (64, -1), (64, 33)])
def test_senseless_sizes_are_refused(max_tokens: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="no chunks"):
        chunked("text", TOKENIZER, max_tokens=max_tokens, overlap=overlap)


def book(rng: random.Random, paragraphs: int) -> list[str]:
    """Paragraphs of sentences of made-up words, as a stand-in for a real document."""
    words = ["".join(rng.choices("aeioulnrst", k=rng.randint(2, 8))) for _ in range(500)]

    def sentence() -> str:
        return " ".join(rng.choices(words, k=rng.randint(5, 20))).capitalize() + "."

    return [" ".join(sentence() for _ in range(rng.randint(1, 6))) for _ in range(paragraphs)]


@pytest.mark.parametrize("edit", ["insert", "delete", "change"])
def test_an_edit_changes_few_chunks(edit: str) -> None:
    rng = random.Random(7)
    paragraphs = book(rng, 400)
    before = Counter(chunk.text for chunk in chunked("\n\n".join(paragraphs), TOKENIZER, max_tokens=128))
    changed = []
    for _ in range(20):
        edited, place = list(paragraphs), rng.randrange(len(paragraphs))
        if edit == "insert":
            edited.insert(place, "A paragraph that was not here before. It says something else.")
        elif edit == "delete":
            del edited[place]
        else:
            edited[place] += " This sentence was added."
        after = Counter(chunk.text for chunk in chunked("\n\n".join(edited), TOKENIZER, max_tokens=128))
        changed.append((after - before).total())
    assert statistics.median(changed) <= 2
    assert max(changed) <= 6


def test_a_lost_fence_does_not_move_the_chunks_behind_it() -> None:
    rng = random.Random(3)
    parts = [f"# Part {n}\n\n{text}\n\n```python\n# note\nrun({n})\n```" for n, text in enumerate(book(rng, 200))]
    before = Counter(chunk.text for chunk in chunked("\n\n".join(parts), TOKENIZER, max_tokens=128))
    parts[20] = parts[20].replace("```python", "")
    after = Counter(chunk.text for chunk in chunked("\n\n".join(parts), TOKENIZER, max_tokens=128))
    assert (after - before).total() <= 6


class CountingTokenizer(Tokenizer):
    """Knows how many characters it was given."""

    characters = 0

    def count(self, texts: Sequence[str]) -> list[int]:
        self.characters += sum(map(len, texts))
        return super().count(texts)


@pytest.fixture
def stretch(monkeypatch: pytest.MonkeyPatch) -> int:
    """A tenth of what is divided at a time, to spare time."""
    monkeypatch.setattr("fltr_pipeline.text.chunk._STRETCH", 25_000)
    return 25_000


@pytest.mark.parametrize(
    "text",
    ["x" * 60_000, "漢" * 30_000, "ab\n" * 20_000, "a b " * 15_000, "\n" * 60_000 + "end" * 9, "page\f" * 12_000],
    ids=["word", "cjk", "lines", "words", "blanks", "pages"],
)
def test_a_long_text_is_divided_stretch_by_stretch(text: str, stretch: int) -> None:
    tokenizer = CountingTokenizer(EmbeddingModel(DEFAULT_MODEL, batch_size=1, threads=1).folder / "tokenizer.json")
    chunks = chunk_text(text, tokenizer, max_tokens=64)
    first = next(chunks)
    assert tokenizer.characters < 4 * stretch, "what is far behind the first chunk waits"
    check(text, [first, *chunks], tokenizer, max_tokens=64)
    assert tokenizer.characters < 6 * len(text)


def test_an_edit_at_the_start_of_a_long_text_leaves_its_later_stretches_alone(stretch: int) -> None:
    rng = random.Random(5)
    lines = [" ".join(rng.choices(("stone", "river", "an", "of", "green", "valley"), k=12)) for _ in range(2_000)]
    text = "\n".join(lines)
    assert len(text) > 4 * stretch
    before = Counter(chunk.text for chunk in chunked(text, TOKENIZER, max_tokens=128))
    after = Counter(chunk.text for chunk in chunked("a new line\n" + text, TOKENIZER, max_tokens=128))
    assert (after - before).total() < 20
