"""An edit embeds few chunks: one paragraph of a real document of 200 to 1,500 chunks, inserted, deleted or changed.

The packaged documents, and larger ones where `FLTR_TEST_DATA` is set. FLTR_FAULTS=long makes many more edits;
FLTR_SEED replays them.
"""

import os
import random
import statistics
from pathlib import Path

import pytest

from benchmarks import corpus
from benchmarks.edits import EDITS, edited, new_chunks
from fltr_pipeline.text.model import DEFAULT_MODEL, EmbeddingModel
from fltr_pipeline_tests.seed import SEED

LONG = os.environ.get("FLTR_FAULTS") == "long"
TIMES = 100 if LONG else 4
MODEL = EmbeddingModel(DEFAULT_MODEL, batch_size=1, threads=1)
DOCUMENTS = corpus.large_documents()


def test_the_documents_are_there() -> None:
    assert len(DOCUMENTS) >= (4 if "FLTR_TEST_DATA" in os.environ else 2)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_an_edit_of_a_paragraph_embeds_two_chunks_in_the_median_and_six_at_most(name: str) -> None:
    print(f"FLTR_SEED={SEED}")
    text, rng = DOCUMENTS[name], random.Random(SEED)
    found: list[int] = []
    for edit in EDITS:
        chunks, new = new_chunks(text, list(edited(text, edit, TIMES, rng)), MODEL.tokenizer, MODEL.chunk_tokens(254))
        assert 200 <= chunks <= 1_600
        assert max(new) <= 6, edit
        found += new
    assert statistics.median(found) <= 2


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_made_where_it_should_be(edit: str) -> None:
    """The property above would hold of edits that change nothing."""
    text = Path(__file__).with_name("edited_text.md").read_text(encoding="utf-8")
    before = text.split("\n\n")
    for after in edited(text, edit, 4, random.Random(SEED)):
        parts = after.split("\n\n")
        kept = sum(part in before for part in parts)
        assert {"insert": (len(before), 1), "delete": (len(before) - 1, 0), "change": (len(before) - 1, 1)}[edit] == (
            kept, len(parts) - kept
        )  # fmt: skip
        assert "```" not in "".join(set(before) - set(parts))
