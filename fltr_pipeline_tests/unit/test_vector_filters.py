"""Ids and filter expressions: what gets through, and what a hostile id can't do."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fltr_pipeline.errors import FltrError, InvalidValue
from fltr_pipeline.stores.ids import checked_id
from fltr_pipeline.stores.vectors import filters

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-:."
IDS = st.text(ALPHABET, min_size=1, max_size=64).filter(lambda text: text.strip("."))

HOSTILE = [
    "",
    "a" * 65,
    'x" or dataset_id != "',
    "x' or '1' == '1",
    "x\\",
    "x\n",
    "\nx",
    "x\0",
    "a b",
    "a/b",
    "..",
    ".",
    "…",
    "é",
    "١٢٣",
    '"] or key in ["',
    "{dataset}",
    "a%",
    "a*",
]


@given(IDS)
def test_an_id_passes_unchanged(value: str) -> None:
    assert checked_id(value, "id") == value


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_id_is_refused_by_every_filter(value: str) -> None:
    with pytest.raises(InvalidValue):
        filters.in_dataset(value)
    with pytest.raises(InvalidValue):
        filters.with_keys(["fine", value])
    with pytest.raises(InvalidValue):
        filters.in_dataset("fine", but_of=["fine", value])


@given(st.text())
def test_an_id_is_refused_or_of_the_alphabet(value: str) -> None:
    try:
        checked_id(value, "id")
    except InvalidValue:
        return
    assert set(value) <= set(ALPHABET)
    assert 1 <= len(value.encode()) <= 64


@given(st.lists(IDS, min_size=1))
def test_an_expression_names_its_ids_and_nothing_else(keys: list[str]) -> None:
    field, operator, names = filters.with_keys(keys).split(" ", 2)
    assert (field, operator, json.loads(names)) == ("key", "in", keys)
    field, operator, name = filters.in_dataset(keys[0]).split(" ", 2)
    assert (field, operator, json.loads(name)) == ("dataset_id", "==", keys[0])
    within, _, rest = filters.in_dataset("ds", but_of=keys).partition(" and ")
    assert (within, json.loads(rest.removeprefix("document_id not in "))) == (filters.in_dataset("ds"), keys)


def test_the_error_names_what_was_wrong_and_is_one_of_ours() -> None:
    with pytest.raises(FltrError, match=r"dataset id 'a b' is not 1 to 64 characters"):
        filters.in_dataset("a b")
    assert issubclass(InvalidValue, ValueError)
