"""Every filter expression that is sent to Milvus is made here, from checked ids.

Belongs here: expressions. Does not: sending them. (Templates, `filter_params`, fail on Milvus Lite 3.2.)
"""

import json
from collections.abc import Iterable

from fltr_pipeline.stores.ids import checked_id

EVERYTHING = 'key != ""'
"""Each row: Milvus wants to be told something."""


def in_dataset(dataset_id: str, *, but_of: Iterable[str] = ()) -> str:
    """The rows of one dataset, other than those of the documents `but_of`.

    Raises:
        InvalidValue: an id has characters that no id of ours has.
    """
    within = f"dataset_id == {json.dumps(checked_id(dataset_id, 'dataset id'))}"
    refused = [checked_id(i, "document id") for i in but_of]
    return f"{within} and document_id not in {json.dumps(refused)}" if refused else within


def with_keys(keys: Iterable[str]) -> str:
    """The rows with these keys, in the plain form that every server answers from its primary-key index.

    Raises:
        InvalidValue: a key has characters that no key of ours has.
    """
    return f"key in {json.dumps([checked_id(key, 'key') for key in keys])}"
