"""A dump holds the whole database, for this user's eyes only, and says plainly why it could not be made."""

import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from psycopg import pq

from fltr_pipeline.errors import ConfigurationError, StoreUnavailable
from fltr_pipeline.stores.schema import dump as module
from fltr_pipeline.stores.schema.connection import libpq_url, transaction
from fltr_pipeline.stores.schema.dump import SECRETS, dump, obstacle
from fltr_pipeline_tests import old_auth

NewDatabase = Callable[[], str]

KEY_OF_32_BYTES = "c2VjcmV0" * 5 + "c2U"
"""In base64, as libpq wants a SCRAM key to be, without the last `=`."""


def only(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Makes that script the only `pg_dump` there is."""
    program = folder / "bin" / "pg_dump"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(module, "_programs", lambda: iter([str(program)]))


def test_a_dump_restores_to_the_same_database(
    old_auth_copy: NewDatabase, new_database: NewDatabase, tmp_path: Path
) -> None:
    source, target = old_auth_copy(), new_database()
    path = dump(source, tmp_path / "dumps")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.is_absolute()
    assert list(path.parent.iterdir()) == [path]
    (restore,) = [Path(p).with_name("pg_restore") for p in module._programs() if "pginstall18" in p]
    subprocess.run([restore, "--exit-on-error", "--dbname", libpq_url(target), path], check=True)
    assert old_auth.fingerprint(target) == old_auth.fingerprint(source)


def test_schemas_can_be_left_out_and_only_these(new_database: NewDatabase, tmp_path: Path) -> None:
    url = new_database()
    names = ('it\'s "mine"', "mine*", "mineral", "Mine")
    old_auth.execute(url, *('CREATE SCHEMA "{}" CREATE TABLE t ()'.format(name.replace('"', '""')) for name in names))
    path = dump(url, tmp_path, without=names[:2])
    (restore,) = [Path(p).with_name("pg_restore") for p in module._programs() if "pginstall18" in p]
    listed = subprocess.run([restore, "--list", path], check=True, capture_output=True, text=True).stdout
    assert [line.split()[5] for line in listed.splitlines() if " SCHEMA - " in line] == ["Mine", "mineral"]


def test_each_dump_has_a_name_of_its_own(new_database: NewDatabase, tmp_path: Path) -> None:
    url = new_database()
    assert len({dump(url, tmp_path) for _ in range(3)}) == len(list(tmp_path.iterdir())) == 3


def test_a_pg_dump_older_than_the_server_is_not_taken(
    new_database: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(tmp_path, monkeypatch, "echo 'pg_dump (PostgreSQL) 12.4'")
    with pytest.raises(ConfigurationError, match=r"PostgreSQL 18.* is version 12.*install"):
        dump(new_database(), tmp_path / "dumps")


def test_without_a_pg_dump_the_message_says_so(
    new_database: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_programs", lambda: iter([]))
    with pytest.raises(ConfigurationError, match="there is none on PATH"):
        dump(new_database(), tmp_path)


def test_a_dump_that_fails_leaves_no_file(
    new_database: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(
        tmp_path, monkeypatch, '[ "$1" = --version ] && echo "pg_dump 99" && exit; echo half; echo no disk >&2; exit 1'
    )
    with pytest.raises(StoreUnavailable, match="no disk"):
        dump(new_database(), tmp_path / "dumps")
    assert list((tmp_path / "dumps").iterdir()) == []


def test_a_folder_that_is_a_file_is_told(new_database: NewDatabase, tmp_path: Path) -> None:
    (tmp_path / "dumps").write_text("")
    with pytest.raises(ConfigurationError, match="name another folder"):
        dump(new_database(), tmp_path / "dumps")


def test_the_password_is_in_no_command_line(
    new_database: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    only(
        tmp_path,
        monkeypatch,
        f'[ "$1" = --version ] && echo "pg_dump 99" && exit; echo "$@" > {seen}; echo "$PGPASSWORD" >> {seen}',
    )
    url = new_database().replace("postgres:@", "postgres:s3cr%25t@")
    dump(url, tmp_path / "dumps")
    arguments, password = seen.read_text().splitlines()
    assert password == "s3cr%t"
    assert "s3cr" not in arguments
    assert "--format=custom" in arguments


@pytest.mark.parametrize("keyword", sorted(SECRETS - {"password"}))
def test_a_secret_that_could_only_travel_on_the_command_line_does_not_travel(
    new_database: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keyword: str
) -> None:
    only(tmp_path, monkeypatch, f'[ "$1" = --version ] && echo "pg_dump 99" && exit; echo run > {tmp_path}/run')
    with pytest.raises(ConfigurationError, match=f"{keyword}.*service") as refused:
        dump(f"{new_database()}&{keyword}={KEY_OF_32_BYTES}%3D", tmp_path / "dumps")
    assert KEY_OF_32_BYTES not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_url_that_cannot_be_parsed_is_not_quoted(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        dump("postgresql://me:hun%ter2@/fltr?nonsense", tmp_path)
    assert "ter2" not in str(refused.value)


def test_every_keyword_that_libpq_keeps_hidden_is_known_as_a_secret() -> None:
    hidden = {option.keyword.decode() for option in pq.Conninfo.get_defaults() if option.dispchar == b"*"}
    assert hidden <= SECRETS


def test_what_stands_against_a_dump_is_known_before(
    new_database: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_database()
    with transaction(url) as connection:
        assert obstacle(url, connection) is None
        assert "service" in str(obstacle(f"{url}&sslpassword=s3cr3t", connection))
        only(tmp_path, monkeypatch, "echo 'pg_dump (PostgreSQL) 12.4'")
        assert "version 12" in str(obstacle(url, connection))
        monkeypatch.setattr(module, "_programs", lambda: iter([]))
        assert "there is none on PATH" in str(obstacle(url, connection))
