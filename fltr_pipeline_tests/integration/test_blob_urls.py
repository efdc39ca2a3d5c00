"""A blob store at a URL: one that is down before it is opened, and the password that its address may hold."""

import traceback
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from fltr_pipeline.errors import ConfigurationError, NotFound, StoreUnavailable
from fltr_pipeline.stores.blobs import Blob, BlobStore
from fltr_pipeline_tests.milvus_lite import free_port

USES: dict[str, Callable[[BlobStore], object]] = {
    "put": lambda blobs: blobs.put("ds", "doc", "a.txt", b"text"),
    "put a file": lambda blobs: blobs.put("ds", "doc", "a.txt", Path(__file__)),
    "copy": lambda blobs: blobs.copy(Blob("ds/doc/a.txt", 4, 0), "other"),
    "read": lambda blobs: blobs.read("ds/doc/a.txt"),
    "size": lambda blobs: blobs.size("ds/doc/a.txt"),
    "digest": lambda blobs: blobs.digest("ds/doc/a.txt"),
    "find": lambda blobs: blobs.find("ds", "doc"),
    "locate": lambda blobs: blobs.locate("ds", "doc"),
    "check": lambda blobs: blobs.check(),
    "remove unfinished": lambda blobs: blobs.remove_unfinished(seconds=60),
}


def everything_told(error: BaseException) -> str:
    """As Dagster shows it: with the errors that it came from."""
    return "".join(traceback.format_exception(error, limit=0))


@pytest.mark.parametrize("use", USES)
def test_a_store_that_is_down_before_it_is_opened_is_unavailable(use: str) -> None:
    blobs = BlobStore(f"ftp://ann:hunter2@127.0.0.1:{free_port()}/uploads")  # this driver connects when it is made
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=r"the blob store can't be opened: .*refused") as raised:
            USES[use](blobs)
        assert "hunter2" not in everything_told(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://root:hunter/two@127.0.0.1:1/x",
        "ftp://root:hunter#two@127.0.0.1:1/x",
        "ftp://root:hunter?two@127.0.0.1:1/x",
        "ftp://root:12/hunter@127.0.0.1:1/x",
        "ftp://root:a@hunter/two@127.0.0.1:1/x",
        "ftp://root:hunter[two@127.0.0.1:1/x",
        "ftp://root:hunter\N{CARE OF}two@127.0.0.1:1/x",
        "ftp://root:hunter::two@127.0.0.1:1/x",
        "ftp://root:hunter://two@127.0.0.1:1/x",
        "s3://AKIA:hunter/two@bucket/x",
        "root:hunter@127.0.0.1/x",
        "root:a/hunter@127.0.0.1/x",
        "some_user:hunter@127.0.0.1/x",
        "nosuch://root:hunter@127.0.0.1/x",
        "webhdfs:///hunter",
    ],
)
def test_an_address_that_is_misread_is_a_configuration_error_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for use in USES.values():
        with pytest.raises(ConfigurationError, match="FLTR_BLOB_URL") as raised:
            use(BlobStore(url))
        assert "hunter" not in everything_told(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_driver_that_quotes_its_address_is_told_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://ann:hunter2@{uuid.uuid4().hex}"

    def quoting(*_: object, **__: object) -> None:
        raise OSError(f"no answer from {url}")

    for name in ("ls", "cat_file", "pipe_file"):
        monkeypatch.setattr(MemoryFileSystem, name, quoting)
    for use in ("put", "read", "locate"):
        with pytest.raises(StoreUnavailable, match=r"no answer from memory://ann:\*\*\*@") as raised:
            USES[use](BlobStore(url))
        assert "hunter2" not in everything_told(raised.value)


@pytest.mark.parametrize(
    ("user", "quoted"),
    [
        ("ann:hun%2Fter", "ann:hun/ter"),
        ("ann:hun%2Fter", "ann:hun%2Fter"),
        ("hun%2Fter", "hun/ter"),
        ("hunter", "hunter"),
    ],
)
def test_nor_with_its_decoded_form_nor_with_a_token(monkeypatch: pytest.MonkeyPatch, user: str, quoted: str) -> None:
    """A user without a password is a token."""

    def quoting(*_: object, **__: object) -> None:
        raise OSError(f"no answer from {quoted}")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", quoting)
    with pytest.raises(StoreUnavailable, match=r"no answer from (ann:)?\*\*\*") as raised:
        USES["read"](BlobStore(f"memory://{user}@{uuid.uuid4().hex}"))
    assert "hun" not in everything_told(raised.value)


def test_a_blob_that_is_not_there_is_told_without_the_address() -> None:
    with pytest.raises(NotFound) as raised:
        BlobStore(f"memory://ann:hunter2@{uuid.uuid4().hex}").read("ds/doc/a.txt")
    assert "hunter2" not in everything_told(raised.value)


@pytest.mark.parametrize("place", ["a@b", "a:b@c", "memory://a@b", "memory://a/b@c", "simplecache::memory://a/b@c"])
def test_an_at_sign_that_is_no_passwords_is_part_of_the_place(tmp_path: Path, place: str) -> None:
    blobs = BlobStore(place if "memory" in place else str(tmp_path / place))
    assert blobs.read(blobs.put("ds", "doc", "a.txt", b"text")) == b"text"
