"""`upload`, `status`, `reprocess` and `search` against real stores: what they print, and with which exit code."""

import os
from pathlib import Path

import pytest

from fltr_pipeline.credits.holds import Payer
from fltr_pipeline.failures import ADVICE
from fltr_pipeline.models import DocumentStatus
from fltr_pipeline.stores.fltr.datasets import Dataset
from fltr_pipeline_tests.command_line import fltr_pipeline, fltr_pipeline_process
from fltr_pipeline_tests.world import World

TREATY = "The treaty of Westphalia ended the thirty years war in 1648.\n\nIt was signed in Osnabrueck and in Muenster."
BREAD = "# Bread\n\nFlour, water, salt and yeast; knead, let it rise, bake at 220 degrees for forty minutes.\n"
PASSWORD = "hunter2-very-secret"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two readable documents, one of them in a folder, and a broken one; hidden files don't count."""
    folder = tmp_path / "files"
    (folder / "kitchen").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("hidden")
    (folder / ".hidden").write_text("hidden")
    (folder / "treaty.txt").write_text(TREATY)
    (folder / "kitchen" / "bread [v2].md").write_text(BREAD)
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\nnot really")
    return folder


def email(world: World, payer: Payer) -> str:
    return str(world.auth_rows("SELECT email FROM users WHERE id = %s", payer.user_id)[0][0])


def dataset_named(world: World, name: str) -> Dataset:
    found = world.rows("SELECT id::text, user_id::text, name FROM datasets WHERE name = %s", name)
    assert len(found) == 1
    return Dataset(*found[0])


def test_from_upload_to_search(world: World, files: Path) -> None:
    payer = world.user()
    uploaded = fltr_pipeline("upload", "--dataset", "books", "--user", email(world, payer), files, "--json").document
    assert (uploaded["new"], uploaded["replaced"]) == (3, 0)
    assert [d["filename"] for d in uploaded["documents"]] == ["broken.pdf", "treaty.txt", "kitchen/bread [v2].md"]
    assert uploaded["bytes"] == sum(d["size"] for d in uploaded["documents"]) > 100

    waiting = fltr_pipeline("status", "books")
    assert "3 uploaded" in waiting.stdout
    assert "3 documents" in waiting.stdout

    dataset = dataset_named(world, "books")
    world.process(dataset)

    status = fltr_pipeline("status", "books", "--json").document
    assert status["documents"] == {"failed": 1, "ready": 2}
    assert (status["pages"], status["chunks"], status["outstanding"], status["eta_seconds"]) == (2, 2, 0, None)
    assert status["tokens"] > 20
    assert status["documents_per_second"] > 0
    assert [(f["filename"], f["code"]) for f in status["failures"]] == [("broken.pdf", "corrupt")]
    assert status["failure_codes"]["corrupt"]["customer"] == ADVICE["corrupt"].customer
    shown = fltr_pipeline("status", "books").stdout
    assert "2 ready, 1 failed" in shown
    assert "corrupt: broken.pdf: " in shown
    assert "documents/s" in shown

    found = fltr_pipeline_process("search", "books", "how do I bake a loaf?", "-k", 1)
    assert (found.exit_code, found.stderr) == (0, "")
    assert "1. kitchen/bread [v2].md, page 1, characters 0 to" in found.stdout
    assert "yeast" in found.stdout
    hits = fltr_pipeline_process("search", "books", "peace of 1648", "--json")
    assert hits.stderr == ""
    assert [h["filename"] for h in hits.document["hits"]] == ["treaty.txt", "kitchen/bread [v2].md"]
    best = hits.document["hits"][0]
    assert TREATY[best["start"] : best["end"]] == best["text"]


def test_a_file_of_a_known_name_replaces_that_document(world: World, files: Path) -> None:
    payer = world.user()
    arguments = ("upload", "--dataset", "books", "--user", email(world, payer).upper(), files / "treaty.txt")
    first = fltr_pipeline(*arguments)
    assert first.stdout == "1 document uploaded into 'books': 1 new, 0 replaced\n"
    assert first.stderr == ""
    again = fltr_pipeline(*arguments, files / "broken.pdf")
    assert again.stdout == "2 documents uploaded into 'books': 1 new, 1 replaced\n"
    assert world.statuses(dataset_named(world, "books")) == {"treaty.txt": "uploaded", "broken.pdf": "uploaded"}


def test_a_dataset_is_its_owners(world: World, files: Path) -> None:
    for payer in (world.user(), world.user()):
        done = fltr_pipeline("upload", "--dataset", "books", "--user", email(world, payer), files / "treaty.txt")
        assert done.exit_code == 0
    ambiguous = fltr_pipeline("status", "books")
    assert ambiguous.exit_code == 1
    ids = [row[0] for row in world.rows("SELECT id::text FROM datasets")]
    assert all(i in ambiguous.stderr for i in ids)
    assert "2 datasets are named 'books'" in ambiguous.stderr
    assert fltr_pipeline("status", ids[0], "--json").document["dataset"]["id"] == ids[0]


def test_the_overview_counts_each_dataset(world: World) -> None:
    assert "no dataset yet" in fltr_pipeline("status").stdout
    assert fltr_pipeline("status", "--json").document == []
    payer = world.user()
    books, empty = world.dataset(payer, "books"), world.dataset(payer, "[empty]")
    world.upload(books, {"a.txt": b"alpha", "b.txt": b"beta"})
    found = fltr_pipeline("status", "--json").document
    assert [(c["dataset"]["name"], c["documents"]) for c in found] == [("books", {"uploaded": 2}), ("[empty]", {})]
    shown = fltr_pipeline("status").stdout
    assert books.id in shown
    assert f"[empty] {empty.id}" in " ".join(shown.split())


def test_what_awaits_credits_is_told_with_the_pot_that_lacks_them(world: World) -> None:
    payer = world.user(credits=0)
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TREATY.encode(), "b.txt": BREAD.encode()})
    world.process(dataset)
    status = fltr_pipeline("status", "books", "--json").document
    assert status["documents"] == {"awaiting_credits": 2}
    awaiting = {"pot_kind": "user", "pot_id": payer.user_id, "documents": 2, "least": 2}
    assert (status["awaiting_credits"], status["outstanding"]) == ([awaiting], 0)
    assert f"2 documents, the cheapest needs 2; user {payer.user_id} pays" in fltr_pipeline("status", "books").stdout


def test_what_is_in_flight_counts_once(world: World) -> None:
    payer = world.user()
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TREATY.encode(), "b.txt": BREAD.encode(), "c.txt": b"one two three"})
    world.process(dataset)
    world.upload(dataset, {"a.txt": b"a new version"})
    world.change("UPDATE pipeline.documents SET stage = 'plan' WHERE document_id <> ALL (SELECT id::text FROM documents"
                 " WHERE filename = 'b.txt')")  # fmt: skip
    world.change("UPDATE pipeline.documents SET stage = 'embed', lease_until = now() + interval '1 minute'"
                 " WHERE stage IS NULL")  # fmt: skip
    status = fltr_pipeline("status", "books", "--json").document
    assert status["in_flight"] == [
        {"stage": "plan", "working": 0, "waiting": 1, "retrying": 0},
        {"stage": "embed", "working": 1, "waiting": 0, "retrying": 0},
    ]
    assert (status["documents"], status["outstanding"]) == ({"ready": 2, "uploaded": 1}, 3)
    assert status["eta_seconds"] == pytest.approx(3 / status["documents_per_second"])
    assert "at this pace" in fltr_pipeline("status", "books").stdout


def test_many_failures_are_cut_short_unless_asked_for(world: World) -> None:
    payer = world.user()
    dataset = world.dataset(payer)
    ids = world.upload(dataset, {f"{n:02}.txt": b"" for n in range(22)})
    world.change("UPDATE documents SET status = 'failed' WHERE dataset_id = %s", dataset.id)
    shown = fltr_pipeline("status", "books").stdout
    assert "unknown: 19.txt" in shown
    assert "20.txt" not in shown
    assert "and 2 more" in shown
    assert "21.txt" in fltr_pipeline("status", "books", "--all").stdout
    assert len(fltr_pipeline("status", "books", "--json").document["failures"]) == len(ids)


def test_control_characters_of_customers_do_not_reach_the_terminal(world: World) -> None:
    dataset = world.dataset(world.user())
    world.upload(dataset, {"\x1b[2Jred.txt": b""})
    world.change("UPDATE documents SET status = 'failed'")
    assert "\x1b" not in fltr_pipeline("status", "books").stdout


def test_reprocess_queues_by_mode(world: World) -> None:
    payer = world.user()
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TREATY.encode(), "broken.pdf": b"%PDF-1.7\n"})
    world.process(dataset)
    queued = {
        mode: fltr_pipeline("reprocess", "books", "--mode", mode, "--json").document["queued"]
        for mode in ("pending", "failed", "stale", "all")
    }
    assert queued == {"pending": 0, "failed": 1, "stale": 0, "all": 1}
    assert (
        fltr_pipeline("reprocess", dataset.id).stdout == "0 documents of 'books' queued; 2 in all wait for the sensor\n"
    )
    assert world.statuses(dataset) == {"a.txt": DocumentStatus.READY, "broken.pdf": DocumentStatus.UPLOADED}
    world.process(dataset)
    assert world.statement(payer).charged == 2


def test_reprocess_charges_when_told_to(world: World) -> None:
    payer = world.user()
    dataset = world.dataset(payer)
    world.upload(dataset, {"a.txt": TREATY.encode()})
    world.process(dataset)
    assert fltr_pipeline("reprocess", "books", "--mode", "all", "--charge").exit_code == 0
    assert world.rows("SELECT billable FROM pipeline.documents") == [(True,)]


def test_a_search_without_a_hit_says_where_to_look(world: World) -> None:
    dataset = world.dataset(world.user())
    before = fltr_pipeline("search", "books", "anything")  # nothing was ever processed: there is no collection
    assert (before.exit_code, before.stderr) == (0, "")
    world.upload(dataset, {"broken.pdf": b"%PDF-1.7\n"})
    world.process(dataset)
    nothing = fltr_pipeline("search", "books", "anything")
    assert nothing.exit_code == 0
    assert f"fltr-pipeline status {dataset.id}" in nothing.stdout
    assert fltr_pipeline("search", "books", "anything", "--json").document["hits"] == []


@pytest.mark.parametrize(
    "arguments",
    [("status", "boks"), ("search", "boks", "bread"), ("reprocess", "boks")],
)
def test_an_unknown_dataset_is_told_with_those_that_exist(world: World, arguments: tuple[str, ...]) -> None:
    world.dataset(world.user(), "books")
    result = fltr_pipeline(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no dataset is named 'boks'; there are: books" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_user_is_told_what_to_do_and_nothing_is_made(world: World, files: Path) -> None:
    result = fltr_pipeline("upload", "--dataset", "books", "--user", "nobody@example.org", files)
    assert result.exit_code == 1
    assert "'nobody@example.org'" in result.stderr
    assert "sign up" in result.stderr
    assert world.rows("SELECT 1 FROM datasets") == []


def test_nothing_is_uploaded_unless_everything_can_be(world: World, files: Path) -> None:
    user = email(world, world.user())
    (files / "dangling").symlink_to(files / "nowhere")
    os.mkfifo(files / "pipe")
    (files / "empty").mkdir()
    (files / "other").mkdir()
    (files / "other" / "treaty.txt").write_text("another")
    good = files / "treaty.txt"
    for paths, reason in (
        ([good, files / "missing.txt"], "missing.txt does not exist"),
        ([good, files / "dangling"], "dangling can't be read: No such file"),
        ([good, files / "pipe"], "not a file"),
        ([files / "empty"], "no file below"),
        ([good, files / "other"], "would both be the document 'treaty.txt'"),
    ):
        result = fltr_pipeline("upload", "--dataset", "books", "--user", user, *paths)
        assert result.exit_code == 1
        assert reason in result.words
    assert world.rows("SELECT 1 FROM datasets") == []


def test_names_of_any_bytes_are_uploaded(world: World, files: Path) -> None:
    user = email(world, world.user())
    Path(os.fsdecode(os.fsencode(files) + b"/caf\xe9.txt")).write_text(TREATY)
    done = fltr_pipeline("upload", "--dataset", "books", "--user", user, files, "--json").document
    assert "caf\N{REPLACEMENT CHARACTER}.txt" in {d["filename"] for d in done["documents"]}


@pytest.mark.parametrize(
    "arguments",
    [
        ("upload", "--user", "a@example.org", "file"),
        ("upload", "--dataset", " ", "--user", "a@example.org", "file"),
        ("upload", "--dataset", "books", "--user", "a@example.org"),
        ("search", "books"),
        ("search", "books", " "),
        ("search", "books", "bread", "-k", "0"),
        ("search", "books", "bread", "--mode", "psychic"),
        ("reprocess", "books", "--mode", "some"),
        ("status", "books", "magazines"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_wrong_usage_exits_2(world: World, arguments: tuple[str, ...], as_json: bool) -> None:
    result = fltr_pipeline(*arguments, *["--json"] * as_json)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


def test_without_a_stack_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLTR_HOME", str(tmp_path))
    for arguments in (("status",), ("search", "books", "bread"), ("credits", "balance", "ada@example.org")):
        result = fltr_pipeline(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "fltr-pipeline up" in result.words


def test_a_schema_that_is_not_there_is_told_with_what_to_do(world: World) -> None:
    world.change("DROP SCHEMA pipeline CASCADE")
    world.dataset(world.user(), "books")
    result = fltr_pipeline("status", "books")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "fltr-pipeline db verify" in result.words


def test_half_a_configuration_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLTR_DATABASE_URL", f"postgresql://u:{PASSWORD}@h/d")
    result = fltr_pipeline("status", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "FLTR_AUTH_DATABASE_URL" in result.stderr
    assert PASSWORD not in result.stderr


def test_a_database_that_does_not_answer_is_told_without_its_password(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLTR_DATABASE_URL", f"postgresql://u:{PASSWORD}@127.0.0.1:1/d")
    result = fltr_pipeline_process("status")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "database d" in result.words
    assert "Traceback" not in result.stderr
    assert PASSWORD not in result.stderr


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{PASSWORD}@127.0.0.1:port/d",
        f"postgresql://u:p@{PASSWORD}@127.0.0.1/d",
        f"postgresql://u:p@{PASSWORD}/x@127.0.0.1/d",
        f"mysql://u:{PASSWORD}@127.0.0.1/d",
    ],
)
def test_a_misspelt_url_is_told_without_its_password(world: World, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("FLTR_DATABASE_URL", url)
    result = fltr_pipeline("status")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "a database URL must" in result.words
    assert "Traceback" not in result.stderr
    assert PASSWORD not in result.stderr
