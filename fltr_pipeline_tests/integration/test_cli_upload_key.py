"""`fltr-pipeline upload --api-key-file`: the key's pool pays, and only its digest is kept."""

import io
from pathlib import Path

import pytest

from fltr_pipeline.credits.holds import Payer, key_digest
from fltr_pipeline_tests.command_line import fltr_pipeline
from fltr_pipeline_tests.world import World

KEY = "fltr_live_5f1c3c0e-the-whole-secret"


@pytest.fixture
def owner(world: World) -> Payer:
    payer = world.user(credits=10)
    world.change_auth("INSERT INTO api_key_credits (api_key, user_id, credits) VALUES (%s, %s, 50)", KEY, payer.user_id)
    return payer


def email(world: World, payer: Payer) -> str:
    return str(world.auth_rows("SELECT email FROM users WHERE id = %s", payer.user_id)[0][0])


def upload(world: World, payer: Payer, tmp_path: Path, key: str | None) -> str:
    (tmp_path / "a.txt").write_text("Some text.")
    arguments: list[object] = ["upload", "--dataset", "books", "--user", email(world, payer), tmp_path / "a.txt"]
    if key is not None:
        (tmp_path / "key").write_text(f"{key}\n")
        arguments += ["--api-key-file", tmp_path / "key"]
    outcome = fltr_pipeline(*arguments)
    assert KEY not in outcome.output
    return outcome.output


def test_the_keys_pool_pays(world: World, owner: Payer, tmp_path: Path) -> None:
    assert "1 document uploaded" in upload(world, owner, tmp_path, KEY)
    assert world.rows("SELECT api_key_id FROM pipeline.upload_keys") == [(key_digest(KEY),)]
    ((dataset_id, name),) = world.rows("SELECT id::text, name FROM datasets")
    world.process(type(world.dataset(owner))(dataset_id, owner.user_id, name))
    assert world.auth_rows("SELECT credits FROM api_key_credits") == [(48,)]
    assert world.auth_rows("SELECT credits FROM user_credits") == [(10,)]
    assert upload(world, owner, tmp_path, None)
    assert world.rows("SELECT count(*) FROM pipeline.upload_keys") == [(0,)]


def test_from_standard_input(world: World, owner: Payer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("Some text.")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{KEY}\n"))
    done = fltr_pipeline(
        "upload", "--dataset", "b", "--user", email(world, owner), "--api-key-file", "-", tmp_path / "a.txt"
    )
    assert done.exit_code == 0
    assert world.rows("SELECT api_key_id FROM pipeline.upload_keys") == [(key_digest(KEY),)]


def test_a_key_of_another_account_uploads_nothing(world: World, owner: Payer, tmp_path: Path) -> None:
    other = world.user()
    assert "belongs to another account" in " ".join(upload(world, other, tmp_path, KEY).split())
    assert world.rows("SELECT count(*) FROM documents") == [(0,)]


def test_a_file_without_a_key_is_refused(world: World, owner: Payer, tmp_path: Path) -> None:
    assert "holds no API key" in " ".join(upload(world, owner, tmp_path, "").split())
