"""What several tests of faults share: a scene that lasts for a module.

Belongs here: fixtures. Does not: what a scene is (ledger_scene).
"""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from fltr_pipeline_tests.faults.ledger_scene import Scene


@pytest.fixture(scope="module")
def scene(postgres_server: str, templates: tuple[str, str]) -> Iterator[Scene]:
    """Two databases of its own, under a clock and with COMMITs that can be made to fail; `begin` empties them."""
    names = {template: f"scene_{template}" for template in templates}
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        for template, name in names.items():
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (name, template))))
    fltr, auth = (postgres_server.replace("/postgres?", f"/{name}?", 1) for name in names.values())
    scene = Scene(fltr, auth)
    with pytest.MonkeyPatch.context() as patch:
        scene.clock.install(patch)
        scene.faults.install(patch)
        yield scene
    scene.close()
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        for name in names.values():
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
