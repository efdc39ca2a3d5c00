"""The blob store on a real folder, and its other path on fsspec's memory file system."""

import hashlib
import os
import time
import uuid
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fltr_pipeline.errors import ConfigurationError, InvalidValue, NotFound, StoreUnavailable
from fltr_pipeline.stores.blobs import FILENAME_BYTES, Blob, BlobStore, safe_filename


@pytest.fixture(params=["folder", "url", "object store"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    urls = {"folder": str(tmp_path), "url": tmp_path.as_uri(), "object store": f"memory://{uuid.uuid4().hex}"}
    return BlobStore(urls[request.param])


def test_a_blob_is_read_back_by_its_key(blobs: BlobStore) -> None:
    key = blobs.put("ds", "doc", "report.pdf", b"%PDF-1.7")
    assert key == "ds/doc/report.pdf"
    assert blobs.read(key) == b"%PDF-1.7"
    assert blobs.size(key) == 8
    assert blobs.find("ds", "doc") == key


def test_a_blob_is_digested_part_by_part(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fltr_pipeline.stores.blobs._PART", 3)
    key = blobs.put("d", "x", "a.txt", b"ten bytes.")
    assert blobs.digest(key) == (hashlib.sha256(b"ten bytes.").hexdigest(), 10)
    with pytest.raises(NotFound):
        blobs.digest("d/x/none.txt")


def test_a_file_is_stored_without_reading_it_whole(blobs: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "source.txt"
    source.write_bytes(b"x" * 100_000)
    key = blobs.put("ds", "doc", "big.txt", source)
    assert blobs.size(key) == 100_000
    assert blobs.read(key) == source.read_bytes()


def test_a_path_without_a_file_is_the_callers_mistake(blobs: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="there is no file"):
        blobs.put("ds", "doc", "a.txt", tmp_path / "missing")


def test_a_second_put_replaces_the_first(blobs: BlobStore) -> None:
    blobs.put("ds", "doc", "a.txt", b"a much longer first version")
    key = blobs.put("ds", "doc", "a.txt", b"second")
    assert blobs.read(key) == b"second"
    assert blobs.size(key) == 6
    assert (found := blobs.locate("ds", "doc"))
    assert (found.key, found.size) == (key, 6)
    assert blobs.digest(key) == (hashlib.sha256(b"second").hexdigest(), 6)


def test_a_copy_for_another_dataset_leaves_the_blob_where_it_was(blobs: BlobStore) -> None:
    original = located(blobs, "ds", blobs.put("ds", "doc", "a b#1.txt", b"text"))
    copied = blobs.copy(original, "other")
    assert copied.startswith("other/doc/~")
    assert copied.endswith("~a b#1.txt")
    copy = located(blobs, "other", copied)
    assert (copy.size, copy.uploaded_at) == (4, original.uploaded_at)
    assert blobs.read(copied) == blobs.read(original.key) == b"text"
    assert blobs.copy(original, "other") == copied
    assert blobs.copy(copy, "third").rpartition("/")[2] == copied.rpartition("/")[2]
    with pytest.raises(NotFound):
        blobs.copy(Blob("ds/doc/none.txt", 0, 0), "other")
    with pytest.raises(InvalidValue):
        blobs.copy(original, "../elsewhere")


def located(blobs: BlobStore, dataset_id: str, key: str) -> Blob:
    """The blob, which is that of this key."""
    found = blobs.locate(dataset_id, "doc")
    assert found is not None
    assert found.key == key
    return found


@pytest.mark.parametrize("name", ["a.txt", "z.txt"])
def test_an_upload_stands_before_a_copy_of_what_is_older_and_of_what_is_as_old(blobs: BlobStore, name: str) -> None:
    older = located(blobs, "ds", blobs.put("ds", "doc", "a.txt", b"old"))
    newer = blobs.put("other", "doc", name, b"new")
    blobs.copy(older, "other")
    uploaded = located(blobs, "other", newer)
    blobs.copy(Blob(older.key, older.size, uploaded.uploaded_at), "other")
    assert blobs.read(located(blobs, "other", newer).key) == b"new"
    time.sleep(0.02)  # a kernel's clock of files has ticks, and no copy is older than its original
    later = blobs.copy(Blob(older.key, older.size, uploaded.uploaded_at + 1), "other")
    located(blobs, "other", later)


FUTURE = "~9999999999999999~x.pdf"


def test_no_upload_passes_for_a_copy(blobs: BlobStore) -> None:
    key = blobs.put("ds", "doc", FUTURE, b"old")
    assert not located(blobs, "ds", key).is_copy
    newer = blobs.put("ds", "doc", "~0000000000000001~.pdf", b"new")
    assert blobs.read(located(blobs, "ds", newer).key) == b"new"


def test_what_another_uploader_calls_a_copy_of_the_future_is_as_old_as_it_is(tmp_path: Path) -> None:
    blobs = BlobStore(str(tmp_path))
    (tmp_path / "ds" / "doc").mkdir(parents=True)
    (tmp_path / "ds" / "doc" / FUTURE).write_bytes(b"old")
    os.utime(tmp_path / "ds" / "doc" / FUTURE, (1_700_000_000, 1_700_000_000))
    assert located(blobs, "ds", f"ds/doc/{FUTURE}").uploaded_at == 1_700_000_000_000_000
    located(blobs, "ds", blobs.put("ds", "doc", "a.pdf", b"new"))


def test_a_driver_that_tells_no_times_finds_a_blob_that_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = BlobStore(f"memory://{uuid.uuid4().hex}")
    key = blobs.put("ds", "doc", "a.txt", b"text")

    def modified(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(MemoryFileSystem, "modified", modified)
    assert located(blobs, "ds", key).uploaded_at == 0
    blobs.copy(located(blobs, "ds", key), "other")
    assert blobs.find("other", "doc") is not None
    blobs.put("ds", "doc", "b.txt", b"text")
    with pytest.raises(StoreUnavailable, match="NotImplementedError"):
        blobs.locate("ds", "doc")


def test_a_name_of_any_length_is_copied(tmp_path: Path) -> None:
    blobs = BlobStore(str(tmp_path))
    (tmp_path / "ds" / "doc").mkdir(parents=True)
    (tmp_path / "ds" / "doc" / ("x" * 251 + ".txt")).write_bytes(b"text")
    found = blobs.locate("ds", "doc")
    assert found is not None
    assert blobs.read(located(blobs, "other", blobs.copy(found, "other")).key) == b"text"


def test_what_is_not_there_is_not_found_beside_what_is(blobs: BlobStore) -> None:
    there, absent = blobs.put("ds", "doc2", "a.txt", b"2"), "ds/doc/a.txt"
    assert blobs.find("ds", "doc") is None
    with pytest.raises(NotFound, match=r"document doc has no blob 'ds/doc/a.txt'"):
        blobs.read(absent)
    with pytest.raises(NotFound):
        blobs.size(absent)
    with pytest.raises(NotFound):
        blobs.digest(absent)
    assert blobs.locate("ds", "doc") is None
    assert blobs.read(there) == b"2"


def test_an_empty_blob_is_a_blob(blobs: BlobStore) -> None:
    assert blobs.read(blobs.put("ds", "doc", "empty.txt", b"")) == b""


def test_find_sees_what_another_uploader_wrote_and_takes_the_newest(tmp_path: Path) -> None:
    blobs = BlobStore(str(tmp_path))
    folder = tmp_path / "ds" / "doc"
    folder.mkdir(parents=True)
    for age, name in [(300, "z old.pdf"), (100, "a#1?v=2.pdf"), (200, "m.pdf")]:
        (folder / name).write_bytes(name.encode())
        os.utime(folder / name, (1_800_000_000 - age, 1_800_000_000 - age))
    (folder / "not a blob").mkdir()
    key = blobs.find("ds", "doc")
    assert key == "ds/doc/a#1?v=2.pdf"
    assert blobs.read(key) == b"a#1?v=2.pdf"


def test_a_failed_put_leaves_the_last_version_and_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = BlobStore(str(tmp_path))
    key = blobs.put("ds", "doc", "a.txt", b"whole")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StoreUnavailable, match=r"ds/doc/a.txt.*No space left"):
        blobs.put("ds", "doc", "a.txt", b"another")
    assert blobs.read(key) == b"whole"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / key]


def test_a_store_that_refuses_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnavailable):
        BlobStore(str(tmp_path / "file" / "below")).put("ds", "doc", "a.txt", b"")


def test_a_folder_that_is_not_mounted_is_not_an_empty_store(tmp_path: Path) -> None:
    blobs = BlobStore(str(tmp_path / "mount"))
    with pytest.raises(StoreUnavailable, match="is its volume mounted"):
        blobs.read("ds/doc/a.txt")
    with pytest.raises(StoreUnavailable):
        blobs.find("ds", "doc")
    with pytest.raises(StoreUnavailable):
        blobs.check()


def test_a_store_answers_before_anything_is_in_it_and_after(blobs: BlobStore) -> None:
    blobs.check()
    blobs.put("ds", "doc", "a.txt", b"text")
    blobs.check()


def test_an_unknown_kind_of_store_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="FLTR_BLOB_URL"):
        BlobStore("nosuch://bucket").find("ds", "doc")


@pytest.mark.parametrize(
    "key",
    ["", "ds", "ds/doc", "ds/doc/", "ds/doc/..", "../doc/a", "ds/../a", "/etc/passwd", "ds/doc/a/b", "ds/doc/a\0"],
)
def test_a_key_that_leaves_its_folder_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(InvalidValue):
        BlobStore(str(tmp_path)).read(key)


@pytest.mark.parametrize("hostile", ["..", ".", "", "a/b", "~unfinished", "a\0"])
def test_ids_that_are_no_ids_are_refused(tmp_path: Path, hostile: str) -> None:
    blobs = BlobStore(str(tmp_path))
    with pytest.raises(InvalidValue):
        blobs.put(hostile, "doc", "a.txt", b"")
    with pytest.raises(InvalidValue):
        blobs.find("ds", hostile)


FILENAMES = st.text(st.characters(), max_size=300) | st.sampled_from(
    [
        "",
        ".",
        "..",
        "../../etc/passwd",
        "C:\\x\\y.pdf",
        "s3://bucket/x",
        "~",
        "a\0b",
        "\ud800.pdf",
        "*",
        "[x]",
        " ",
        "x" * 300 + ".pdf",
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(filename=FILENAMES)
def test_any_filename_stays_inside_its_folder_and_reads_back(tmp_path: Path, filename: str) -> None:
    blobs = BlobStore(str(tmp_path))
    document = uuid.uuid4().hex
    key = blobs.put("ds", document, filename, filename.encode("utf-8", "replace"))
    assert [path.name for path in (tmp_path / "ds" / document).iterdir()] == [key.rpartition("/")[2]]
    assert (tmp_path / key).resolve().parent == tmp_path.resolve() / "ds" / document
    assert blobs.read(key) == filename.encode("utf-8", "replace")
    assert blobs.find("ds", document) == key


@given(FILENAMES)
def test_a_safe_filename_is_short_and_safe_already(filename: str) -> None:
    safe = safe_filename(filename)
    assert 1 <= len(safe.encode()) <= FILENAME_BYTES
    assert safe_filename(safe) == safe


@pytest.mark.parametrize(
    ("filename", "safe"),
    [
        ("Jahresbericht größer.pdf", "Jahresbericht größer.pdf"),
        ("報告書.pdf", "報告書.pdf"),
        ("a/b\\c.txt", "a_b_c.txt"),
        ("..", "__"),
        ("", "unnamed"),
        ("報" * 100 + ".pdf", "報" * 65 + ".pdf"),
    ],
)
def test_filenames_keep_what_is_harmless(filename: str, safe: str) -> None:
    assert safe_filename(filename) == safe


def test_what_a_dead_writer_left_is_removed_when_it_is_old(blobs: BlobStore, tmp_path: Path) -> None:
    key = blobs.put("ds", "doc", "a.txt", b"a")
    assert blobs.remove_unfinished(seconds=60) == 0
    folder = tmp_path / "~unfinished"
    folder.mkdir(exist_ok=True)
    for name, age in (("dead", 100), ("living", 10)):
        (folder / name).write_bytes(b"half a fi")
        os.utime(folder / name, (time.time() - age, time.time() - age))
    (folder / "nobody's").mkdir()  # a folder: no writer leaves one
    os.utime(folder / "nobody's", (time.time() - 100, time.time() - 100))
    is_local = "memory" not in blobs.url
    assert blobs.remove_unfinished(seconds=60) == is_local
    assert {f.name for f in folder.iterdir()} == {"nobody's", "living", *(() if is_local else ("dead",))}
    assert blobs.read(key) == b"a"


def test_an_unmounted_volume_has_nothing_unfinished(tmp_path: Path) -> None:
    assert BlobStore(str(tmp_path / "gone")).remove_unfinished(seconds=60) == 0


def test_what_is_unfinished_and_refused_says_so(tmp_path: Path) -> None:
    (tmp_path / "~unfinished").write_bytes(b"not a folder")
    with pytest.raises(StoreUnavailable, match="~unfinished"):
        BlobStore(str(tmp_path)).remove_unfinished(seconds=60)
