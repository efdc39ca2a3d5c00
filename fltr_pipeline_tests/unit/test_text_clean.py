"""What cleaning removes, keeps and promises."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fltr_pipeline.text.clean import clean

NASTY = st.text(
    st.one_of(
        st.characters(), st.sampled_from("\x00\r\n\f\v\t \x85\u2028\ud800\udfff\ufeff\ufffe\x1b\x9f\xa0\xadﬁﬅ\u2061")
    )
)


@given(NASTY)
def test_is_idempotent(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@given(NASTY)
def test_form_feeds_stay(text: str) -> None:
    assert clean(text).count("\f") == text.count("\f")


@given(NASTY)
def test_result_can_be_stored(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert not set(cleaned) & set("\x00\r\v\x85\u2028\u2029")
    assert all(line == line.rstrip() for page in cleaned.split("\f") for line in page.split("\n"))


@given(NASTY)
def test_no_letter_is_lost(text: str) -> None:
    spelled = "".join(unicodedata.normalize("NFKC", c) if "ﬀ" <= c <= "ﬆ" else c for c in text)
    assert [c for c in clean(text) if c.isalnum()] == [c for c in spelled if c.isalnum()]


def test_a_long_run_of_blanks_within_a_line_takes_no_time() -> None:
    text = "a" + " " * 1_000_000 + "b"
    assert clean(text) == text


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("a \t\nb  ", "a\nb"),
        ("a\x00b\ud800c\x07d", "abcd"),
        ("one \f two", "one\f two"),
        ("oﬃce, ﬁnd, aﬀord", "office, find, afford"),
        ("hy\xadphen\xad \n  ated\xad", "hyphenated"),
        ("sin\u2061(x)", "sin(x)"),
        ("  indented\n\tcode", "  indented\n\tcode"),
    ],
)
def test_examples(raw: str, expected: str) -> None:
    assert clean(raw) == expected
