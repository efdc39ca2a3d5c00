"""The vector store: rows in by key, out by key, and searched within one dataset.

Belongs here: the operations on the collection. Does not: deciding which rows count (the manifest does).
Rows are inserted once and deleted by key, never upserted: with a partition key, Milvus 2.3 loses upserted rows.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from pydantic import SecretStr

from fltr_pipeline.errors import ConfigurationError, FltrError, InvalidValue, SchemaDrift, UnsupportedCapability
from fltr_pipeline.models import VectorHit, VectorRow
from fltr_pipeline.stores.ids import checked_id
from fltr_pipeline.stores.vectors import filters, schema
from fltr_pipeline.stores.vectors.client import MilvusServer

INSERT_BYTES = 8 * 1024 * 1024
"""Most bytes in one insert; Milvus takes messages of up to 64 MiB."""
KEYS_PER_CALL = 2_000
"""Keys in one read-back or deletion."""
PAGE_ROWS = 5_000
MAX_HITS = 16_384
"""Milvus' own limit for `k`."""
HYBRID_CANDIDATES = 50
"""Least candidates from each side of a hybrid search, before their ranks are fused."""
_MAKING_SECONDS = 2
"""How long another process may take to make the collection that this one could not."""
CONSISTENCY = "Strong"
"""A reader sees all that was written before: what is published must be found, what is retired must be gone."""


@dataclass(frozen=True, slots=True)
class CollectionFacts:
    """What `VectorStore.ensure` found or made."""

    name: str
    """The collection's own name, also when it was asked for by an alias."""
    created: bool
    """Whether this call made it; of several at once, more than one may say so."""
    dimension: int
    bm25: bool
    """Whether `bm25` and `hybrid` searches work."""
    server: str
    """The server's version as it words it."""


@dataclass(frozen=True)
class VectorStore:
    """A collection (or an alias of one) on a Milvus server. Connects at the first call; safe to share by threads.

    Each method that talks to the server raises:
        StoreUnavailable: the server does not answer within `timeout` seconds, is overloaded, or fails.
        SchemaDrift: the collection is not there.
        ConfigurationError: the server refuses our credentials.
        InvalidValue: an argument is not one that Milvus can be given.
    """

    uri: str = field(repr=False)
    token: SecretStr | None
    _: KW_ONLY
    collection: str
    dimension: int
    timeout: float = 30.0
    """Seconds per call to the server."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", self.collection):
            raise ConfigurationError(f"{self.collection!r} is not a name that a Milvus collection can have")
        if not 1 <= self.dimension <= 32_768:
            raise ConfigurationError(f"Milvus holds vectors of 1 to 32,768 dimensions, not {self.dimension}")
        _ = self._server  # checks the address

    def ensure(self) -> CollectionFacts:
        """Make the collection if it is not there, check that it is as we need it, and load it.

        May be called by any number of processes at once, and again at any time.

        Raises:
            SchemaDrift: a collection of that name exists and differs; every difference is named.
        """
        description = self._described()
        created = description is None and self._create()
        if description is None:
            description = self._server.call("describe_collection", self.collection)
        self._verify(description)
        for name in ("vector", "sparse") if schema.has_bm25(description) else ("vector",):
            self._ensure_index(name)
        self._server.load(self.collection)
        return CollectionFacts(
            name=description["collection_name"],
            created=created,
            dimension=self.dimension,
            bm25=schema.has_bm25(description),
            server=self._server.version,
        )

    def exists(self) -> bool:
        """Whether Milvus has the collection."""
        return self.own_name() is not None

    def own_name(self) -> str | None:
        """The collection's own name, also when it is asked for by an alias; None where it is not there."""
        description = self._described()
        return None if description is None else str(description["collection_name"])

    def holds(self, dataset_id: str | None = None) -> bool:
        """Whether it has a row (of the dataset); asked twice, as `datasets_of`. Not if it is not there."""
        within = filters.EVERYTHING if dataset_id is None else filters.in_dataset(dataset_id)
        try:
            return any(self._query(within, ["key"], limit=1) for _ in range(2))
        except SchemaDrift:
            return False

    def drop(self) -> None:
        """Drop the collection with all that is in it; does nothing if it is not there."""
        self._server.call("drop_collection", self.collection)

    def beside(self, collection: str, *, dimension: int | None = None) -> "VectorStore":
        """Another collection by the same connection. Without its `dimension`, only its keys may be asked for."""
        other = replace(self, collection=collection, dimension=dimension or self.dimension)
        other.__dict__["_server"] = self._server
        return other

    def insert(self, rows: Sequence[VectorRow]) -> None:
        """Add rows. The caller sees to it that no key is inserted twice: Milvus itself would keep both rows."""
        for batch in _by_size([self._checked(row) for row in rows]):
            self._server.call("insert", self.collection, data=batch)

    def present(self, keys: Sequence[str], dataset_id: str) -> set[str]:
        """Which of the keys are rows of the dataset now."""
        checked_id(dataset_id, "dataset id")
        # The dataset is compared here: asked for nothing but keys, the server looks them up and scans no rows.
        ours = [checked_id(key, "key") for key in keys]
        return {key for key, dataset in self.datasets_of(ours).items() if dataset == dataset_id}

    def datasets_of(self, keys: Sequence[str]) -> dict[str, str]:
        """The dataset of each of the keys that is a row now, whichever it is. They may be any that Milvus listed."""
        found = self._look(keys)
        # Milvus Lite overlooks rows that leave its write buffer while it looks; they are on disk when asked again.
        return found | self._look([key for key in keys if key not in found])

    def _look(self, keys: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for some in _slices(keys, KEYS_PER_CALL):
            rows = self._query(filters.with_listed_keys(some), ["key", "dataset_id"])
            found.update((row["key"], row["dataset_id"]) for row in rows)
        return found

    def vectors(self, keys: Sequence[str]) -> dict[str, list[float]]:
        """The vectors under these keys, of those that are rows now."""
        found: dict[str, list[float]] = {}
        for some in _slices(keys, KEYS_PER_CALL):
            rows = self._query(filters.with_keys(some), ["key", "vector"])
            found.update((row["key"], [float(x) for x in row["vector"]]) for row in rows)
        return found

    def delete(self, keys: Sequence[str]) -> None:
        """Remove the rows with these keys; keys without a row are fine."""
        self.delete_listed([checked_id(key, "key") for key in keys])

    def delete_listed(self, keys: Sequence[str]) -> None:
        """The same, by keys that Milvus itself listed: who put the rows there may have named them as they liked."""
        for some in _slices(keys, KEYS_PER_CALL):
            self._server.call("delete", self.collection, filter=filters.with_listed_keys(some))

    def keys(self, dataset_id: str) -> Iterator[str]:
        """All keys of a dataset, in their own order. (Counts of Milvus can be wrong after deletions; this is not.)"""
        return (row["key"] for row in self._rows(filters.in_dataset(dataset_id), "key"))

    def every_key(self) -> Iterator[tuple[str, str]]:
        """All keys, each with its dataset, page by page; none where there is no collection yet."""
        if self._described() is not None:
            for row in self._rows(filters.EVERYTHING, "key", "dataset_id"):
                yield row["key"], row["dataset_id"]

    def rows_by_dataset(self) -> Counter[str]:
        """How many rows each dataset has, by listing all of them; empty where there is no collection yet."""
        return Counter(dataset_id for _, dataset_id in self.every_key())

    def search(
        self,
        dataset_id: str,
        *,
        vector: Sequence[float] | None,
        text: str | None,
        k: int,
        mode: Literal["dense", "bm25", "hybrid"] = "dense",
        but_of: Collection[str] = (),
    ) -> list[VectorHit]:
        """The best `k` rows of the dataset, other than those of the documents `but_of`, best first.

        A score is larger for a better hit and comparable within one mode only: the cosine for `dense` (needs `vector`),
        the BM25 score for `bm25` (needs `text`), the sum of reciprocal ranks for `hybrid` (needs both).

        Raises:
            UnsupportedCapability: the collection has no BM25 field and `mode` is not `dense`.
        """
        if not 1 <= k <= MAX_HITS:
            raise InvalidValue(f"k must be 1 to {MAX_HITS:,}, not {k}")
        within = filters.in_dataset(dataset_id, but_of=but_of)
        data: dict[str, Any] = {}
        if mode != "bm25":
            data["vector"] = self._checked_vector(vector or (), "the query")
        if mode != "dense":
            data["sparse"] = self._checked_query(text, mode)
        hits = self._search_one(data, within, k) if len(data) == 1 else self._search_both(data, within, k)
        # Milvus Lite answers BM25 with distances (minus the score), Milvus with scores, which are never negative.
        sign = abs if mode == "bm25" else float
        return [VectorHit(hit.id, hit["entity"]["document_id"], sign(hit["distance"])) for hit in hits]

    @cached_property
    def _server(self) -> MilvusServer:
        return MilvusServer(self.uri, self.token, self.timeout)

    def _described(self) -> Mapping[str, Any] | None:
        try:
            return self._server.call("describe_collection", self.collection)  # type: ignore[no-any-return]
        except SchemaDrift:
            return None

    def _create(self) -> bool:
        bm25 = schema.supports_bm25(self._server.version)
        definition = schema.definition(self.dimension, bm25=bm25)
        try:
            self._server.call("create_collection", self.collection, schema=definition, consistency_level=CONSISTENCY)
        except FltrError:
            # Another process was faster. To Milvus Lite a collection that is being made is there, but not known yet.
            deadline = time.monotonic() + _MAKING_SECONDS
            while self._described() is None:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            return False
        return True

    def _verify(self, description: Mapping[str, Any]) -> None:
        self._refuse(schema.differences(description, self.dimension))

    def _ensure_index(self, name: str) -> None:
        indexes = self._indexes(name)
        if not indexes:
            try:
                # The new collection is empty: nothing to wait for.
                index = schema.index_definition(name, self._server.version)
                self._server.call("create_index", self.collection, index_params=index, sync=False)
            except FltrError:
                if not self._indexes(name):
                    raise
            indexes = self._indexes(name)
        for description in indexes:
            self._refuse(schema.index_differences(name, description))

    def _indexes(self, name: str) -> list[Mapping[str, Any]]:
        """The field's indexes, described: ours has the field's name. (Milvus Lite counts all rows at each question.)"""
        ours = self._server.call("describe_index", self.collection, index_name=name)
        if ours and ours["field_name"] == name:
            return [ours]
        others = self._server.call("list_indexes", self.collection, field_name=name)
        return [self._server.call("describe_index", self.collection, index_name=other) for other in others]

    def _refuse(self, differences: list[str]) -> None:
        if differences:
            raise SchemaDrift(
                f"the Milvus collection {self.collection} at {self._server.address} differs: {'; '.join(differences)}. "
                "Use another collection name, or drop this one and reprocess its datasets"
            )

    def _query(self, expression: str, output: list[str], **limits: int) -> list[dict[str, Any]]:
        return self._server.call(  # type: ignore[no-any-return]
            "query", self.collection, filter=expression, output_fields=output, consistency_level=CONSISTENCY, **limits
        )

    def _rows(self, expression: str, *output: str) -> Iterator[dict[str, Any]]:
        """All rows, page by page, with their keys at least."""
        pages = self._server.call(
            "query_iterator",
            self.collection,
            filter=expression,
            output_fields=list(output),
            batch_size=PAGE_ROWS,
            consistency_level=CONSISTENCY,
        )
        try:
            while page := self._server.guard("query_iterator", pages.next):
                yield from page
                # pymilvus puts the last key into its next question as it is, quotes and all.
                pages._next_id = filters.escaped(page[-1]["key"])
        finally:
            pages.close()

    def _search_one(self, data: dict[str, Any], within: str, k: int) -> list[Any]:
        ((name, value),) = data.items()
        return self._server.call(  # type: ignore[no-any-return]
            "search",
            self.collection,
            data=[value],
            anns_field=name,
            filter=within,
            limit=k,
            output_fields=["document_id"],
            consistency_level=CONSISTENCY,
        )[0]

    def _search_both(self, data: dict[str, Any], within: str, k: int) -> list[Any]:
        from pymilvus import AnnSearchRequest, RRFRanker  # noqa: PLC0415

        depth = min(max(2 * k, HYBRID_CANDIDATES), MAX_HITS)
        return self._server.call(  # type: ignore[no-any-return]
            "hybrid_search",
            self.collection,
            reqs=[
                AnnSearchRequest(data=[value], anns_field=name, param={}, limit=depth, expr=within)
                for name, value in data.items()
            ],
            ranker=RRFRanker(),
            limit=k,
            output_fields=["document_id"],
            consistency_level=CONSISTENCY,
        )[0]

    def _checked_query(self, text: str | None, mode: str) -> str:
        if not (text and text.strip()):
            raise InvalidValue(f"a {mode} search needs a text")
        description = self._server.call("describe_collection", self.collection)
        if not schema.has_bm25(description):
            raise UnsupportedCapability(
                f"the Milvus collection {self.collection} has no BM25 field, so {mode} search is not possible: "
                f"use dense, or make a new collection on Milvus 2.5 or later (this server is {self._server.version})"
            )
        return text

    def _checked(self, row: VectorRow) -> dict[str, Any]:
        size = len(row.text.encode())
        if size > schema.TEXT_BYTES:
            raise InvalidValue(
                f"chunk {row.key} of document {row.document_id} has {size:,} bytes of text, "
                f"Milvus holds {schema.TEXT_BYTES:,}: cut it smaller"
            )
        return {
            "key": checked_id(row.key, "key"),
            "dataset_id": checked_id(row.dataset_id, "dataset id"),
            "document_id": checked_id(row.document_id, "document id"),
            "text": row.text,
            "vector": self._checked_vector(row.vector, f"chunk {row.key}"),
        }

    def _checked_vector(self, vector: Sequence[float], whose: str) -> list[float]:
        if len(vector) != self.dimension:
            raise InvalidValue(f"the vector of {whose} has {len(vector)} dimensions, should have {self.dimension}")
        if not math.isfinite(sum(vector)):
            raise InvalidValue(f"the vector of {whose} holds a number that is not finite")
        return list(vector)


def _slices(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))


def _by_size(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Cut into batches of at most `INSERT_BYTES`, counted generously."""
    batch: list[dict[str, Any]] = []
    total = 0
    for row in rows:
        size = 4 * len(row["vector"]) + len(row["text"].encode()) + 4 * 64
        if batch and total + size > INSERT_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(row)
        total += size
    if batch:
        yield batch
