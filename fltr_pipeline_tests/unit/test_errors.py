"""The tree of errors is the one that the module draws."""

import inspect
import re
from collections import Counter

import pytest

from fltr_pipeline import errors
from fltr_pipeline.errors import DocumentError, FltrError, TransientError
from fltr_pipeline.failures import ADVICE, advice

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and value.__module__ == errors.__name__
}
NAME = re.compile(r"[A-Z][A-Za-z]+")
DEPTH = 4
"""Characters by which a level is indented."""


def drawn() -> dict[str, str]:
    """Error → its parent, as the docstring draws them."""
    assert errors.__doc__
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        tree = re.match(r"    ([│├└─ ]*)(.*)", line)
        if not tree or not (tree[1] or path == []):
            continue
        words = re.split(r"\s{3,}| {2,}(?=[a-z≤])", tree[2])[0]
        names = NAME.findall(words)
        depth = len(tree[1]) // DEPTH
        parents |= dict.fromkeys(names, path[depth - 1] if depth else "Exception")
        path[depth:] = [names[-1]]
    return parents


def test_every_class_is_drawn_under_its_parent_and_every_one_drawn_exists() -> None:
    assert drawn() == {name: value.__bases__[0].__name__ for name, value in CLASSES.items()}


def test_everything_raised_on_purpose_has_one_root_and_a_docstring() -> None:
    assert all(issubclass(value, FltrError) for value in CLASSES.values())
    assert all(value.__doc__ and value.__doc__.endswith(".") for value in CLASSES.values())


def test_each_document_error_has_a_code_of_its_own() -> None:
    codes = Counter(value.code for value in CLASSES.values() if issubclass(value, DocumentError))
    assert {code for code, n in codes.items() if n > 1} == set()
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_documents_own_failure_is_never_worth_a_retry(name: str) -> None:
    assert not (issubclass(CLASSES[name], DocumentError) and issubclass(CLASSES[name], TransientError))


def test_each_document_error_has_advice() -> None:
    codes = {
        value.code for value in CLASSES.values() if issubclass(value, DocumentError) and value is not DocumentError
    }
    assert codes <= set(ADVICE)
    assert [(code, known.customer) for code, known in advice(["empty", "of tomorrow", "empty"])] == [
        ("empty", ADVICE["empty"].customer),
        ("of tomorrow", "Processing failed."),
    ]


def test_only_the_parsers_death_and_what_was_not_tried_or_not_given_are_not_the_customers_fault() -> None:
    ours = {value.code for value in CLASSES.values() if issubclass(value, DocumentError) and not value.user_error}
    assert ours == {"parser_crash", "quarantined", "inaccessible"}
