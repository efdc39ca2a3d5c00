"""Every filter expression that is sent to Milvus is made here, from checked ids or from what Milvus itself listed.

Belongs here: expressions. Does not: sending them. (Templates, `filter_params`, fail on Milvus Lite 3.2.)
"""

from collections.abc import Iterable

from fltr_pipeline.stores.ids import checked_id

EVERYTHING = 'key != ""'
"""Each row: Milvus wants to be told something."""

_ESCAPES = str.maketrans({'"': r"\"", "\\": r"\\", "\n": r"\n", "\r": r"\r"})
"""Milvus Lite knows hardly more of them, and all else stands for itself on every server."""


def in_dataset(dataset_id: str, *, but_of: Iterable[str] = ()) -> str:
    """The rows of one dataset, other than those of the documents `but_of`.

    Raises:
        InvalidValue: an id has characters that no id of ours has.
    """
    within = f"dataset_id == {_literal(checked_id(dataset_id, 'dataset id'))}"
    refused = [checked_id(i, "document id") for i in but_of]
    return f"{within} and document_id not in {_literals(refused)}" if refused else within


def with_keys(keys: Iterable[str]) -> str:
    """The rows with these keys, in the plain form that every server answers from its primary-key index.

    Raises:
        InvalidValue: a key has characters that no key of ours has.
    """
    return with_listed_keys(checked_id(key, "key") for key in keys)


def with_listed_keys(keys: Iterable[str]) -> str:
    """The same; whoever put the rows there, their keys may be anything that Milvus holds."""
    return f"key in {_literals(keys)}"


def escaped(text: str) -> str:
    """The text as it stands between the quotes of an expression."""
    return text.translate(_ESCAPES)


def _literal(text: str) -> str:
    return f'"{escaped(text)}"'


def _literals(texts: Iterable[str]) -> str:
    return f"[{', '.join(map(_literal, texts))}]"
