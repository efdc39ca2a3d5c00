"""Where the deaths happen: one world for all of them, a worker in it that lives, and the time that passes.

Belongs here: what a case needs before and after the operation. Does not: its scene (operations).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import psycopg

from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.crashes import victim
from fltr_pipeline_tests.crashes.hands import COLLECTION, Hands, Place
from fltr_pipeline_tests.crashes.points import First, Point
from fltr_pipeline_tests.crashes.victim import Outcome, Watch, statements
from fltr_pipeline_tests.crashes.workers import Scene
from fltr_pipeline_tests.queries import Fltr
from fltr_pipeline_tests.world import World

S = TypeVar("S")

_DEADLINE = 60.0

_OURS = """
    SELECT format('%%I.%%I', schemaname, tablename) FROM pg_tables
    WHERE schemaname IN ('public', 'pipeline') AND tablename <> 'schema_version' ORDER BY 1
"""


class BusyWorld(World):
    """A world that is looked at thousands of times: through one connection per database, kept open."""

    @cached_property
    def _fltr(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.fltr_admin, autocommit=True)

    @cached_property
    def _auth(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.auth_admin, autocommit=True)

    @cached_property
    def _milvus(self) -> Any:
        from pymilvus import MilvusClient

        return MilvusClient(uri=self.milvus_uri)

    def close(self) -> None:
        super().close()
        self._fltr.close()
        self._auth.close()
        if "_milvus" in vars(self):
            self._milvus.close()

    def vectors(self, dataset: Dataset) -> list[dict[str, str]]:
        """The dataset's rows in Milvus: key, document_id, text."""
        if not self._milvus.has_collection(COLLECTION):
            return []
        self._milvus.load_collection(COLLECTION)
        return list(
            self._milvus.query(
                COLLECTION, filter=f'dataset_id == "{dataset.id}"', output_fields=["key", "document_id", "text"],
                consistency_level="Strong",
            )
        )  # fmt: skip

    def drop_collection(self) -> None:
        self._milvus.drop_collection(COLLECTION)

    def empty(self) -> None:
        """Nothing is left in any store."""
        self.change(f"TRUNCATE {', '.join(table for (table,) in self.rows(_OURS))}")
        self.change_auth("TRUNCATE users, teams CASCADE")
        if self._milvus.has_collection(COLLECTION):
            keys = self._milvus.query(COLLECTION, filter='key != ""', output_fields=["key"], consistency_level="Strong")
            if keys:
                self._milvus.delete(COLLECTION, ids=[row["key"] for row in keys])

    def rows(self, query: str, *parameters: object) -> Sequence[tuple[Any, ...]]:
        return self._fltr.execute(query.encode(), parameters).fetchall()

    def auth_rows(self, query: str, *parameters: object) -> Sequence[tuple[Any, ...]]:
        return self._auth.execute(query.encode(), parameters).fetchall()

    def change(self, query: str, *parameters: object) -> None:
        self._fltr.execute(query.encode(), parameters)

    def change_auth(self, query: str, *parameters: object) -> None:
        self._auth.execute(query.encode(), parameters)


@dataclass(frozen=True, slots=True)
class Site:
    """The world, and a worker in it that lives."""

    world: BusyWorld
    place: Place
    hands: Hands

    @classmethod
    def of(cls, world: BusyWorld) -> "Site":
        """Its worker's services become the world's."""
        place = Place.of(world)
        hands = Hands.at(place, "worker")
        world.services = hands.services
        return cls(world, place, hands)

    @property
    def fltr(self) -> Fltr:
        """Short words for what is done to `fltr`."""
        return Fltr(self.hands.services.fltr)

    def kill(
        self, work: Callable[[S, Hands], object], scene: S, point: Point | First | None, watch: Watch = statements
    ) -> Outcome:
        """See victim.run. Waits for the servers to see that their client is dead: until then they keep its locks."""
        outcome = victim.run(self.place, partial(work, scene), point, watch)
        deadline = time.monotonic() + _DEADLINE
        alive = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"  # of all databases
        while self.world.auth_rows(alive, victim.SESSION) != [(0,)]:
            assert time.monotonic() < deadline, "the dead process's sessions do not end"
            time.sleep(0.002)
        return outcome

    def an_hour_passes(self, scene: Scene) -> None:
        """Leases run out, retries come due, charges and holds grow old."""
        for column, table in (("lease_until", "documents"), ("retry_at", "documents"), ("created_at", "charges")):
            self.world.change(
                f"UPDATE pipeline.{table} SET {column} = {column} - interval '1 hour' WHERE dataset_id = %s",
                scene.dataset.id,
            )
        self.world.change_auth(
            "UPDATE credit_transactions SET created_at = created_at - interval '1 hour' WHERE user_id = %s",
            scene.payer.user_id,
        )

    def clear(self, scene: Scene) -> None:
        """Remove what a later sweep could find."""
        for table in ("documents", "charges", "datasets"):
            self.world.change(f"DELETE FROM pipeline.{table} WHERE dataset_id = %s", scene.dataset.id)
        self.world.change("DELETE FROM pipeline.collections")  # each case notes its own, whatever ran before
        self.world.change_auth("DELETE FROM users WHERE id = %s", scene.payer.user_id)
