"""The raw uploads: one object per document, in a folder or in any store that fsspec reaches (S3, R2, ...).

Belongs here: keys, bytes, and that no half-written blob can be read. Does not: what is in them.
The contract with other uploaders is the key alone: `{dataset_id}/{document_id}/{filename}`.
"""

import hashlib
import os
import re
import shutil
import time
import unicodedata
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from fltr_pipeline.errors import ConfigurationError, FltrError, InvalidValue, NotFound, StoreUnavailable
from fltr_pipeline.stores.ids import checked_id

FILENAME_BYTES = 200
"""File systems take 255 bytes, S3 keys 1,024."""
SUFFIX_BYTES = 20

_PART = 1 << 20

# fsspec cuts a URL at `::`, too.
_AUTHORITY_ENDS = re.compile(r"[/?#]|::")

# Not an id, so no dataset's folder: what is being written lies here, in the same file system as where it will go.
_UNFINISHED = "~unfinished"

# A copy bears its original's time: by the store's clock it would be newer than an upload that it must not stand before.
_COPY = re.compile(r"\A~(\d{16})~")


def safe_filename(filename: str) -> str:
    """The filename as one harmless path component: unicode and a short suffix kept, length limited in bytes."""
    name = filename.encode("utf-8", "replace").decode()
    name = "".join("_" if c in "/\\" or unicodedata.category(c) == "Cc" else c for c in name).strip()
    if not name.strip("."):
        name = "_" * len(name) or "unnamed"
    suffix = PurePosixPath(name).suffix
    if len(suffix.encode()) > SUFFIX_BYTES:
        suffix = ""
    stem = name.removesuffix(suffix).encode()[: FILENAME_BYTES - len(suffix.encode())]
    return stem.decode("utf-8", "ignore") + suffix


@dataclass(frozen=True, slots=True)
class Blob:
    """Where a document's bytes are, and how many."""

    key: str
    size: int
    uploaded_at: int
    """Microseconds since 1970, by the store's clock; of a copy, those of its original; 0: its driver tells none."""

    @property
    def is_copy(self) -> bool:
        """Whether it was copied from another dataset, rather than uploaded."""
        return _COPY.match(self.key.rpartition("/")[2]) is not None


@dataclass(frozen=True)
class BlobStore:
    """The blob store at a folder or an fsspec URL. Opened at the first use; safe to share by threads.

    Each method raises:
        StoreUnavailable: the store does not answer or refuses.
        InvalidValue: an id, or a key, that is none of ours.
        ConfigurationError: the address can't be read, there is no such kind of store, or its driver is not installed.
    """

    url: str = field(repr=False)

    def put(self, dataset_id: str, document_id: str, filename: str, data: bytes | Path) -> str:
        """Store bytes, or a local file's bytes, and return their key. Replaces a blob of the same key in one step.

        A filename that would pass for that of a copy is changed by a letter.

        Raises:
            InvalidValue: `data` is a path without a file.
        """
        if isinstance(data, Path) and not data.is_file():
            raise InvalidValue(f"there is no file {data}")
        name = _COPY.sub(r"_\1~", safe_filename(filename))
        key = f"{_folder(dataset_id, document_id)}/{name}"
        with self._translated(key):
            if self._is_local:
                self._put_local(key, data)
            elif isinstance(data, Path):
                self._fs.put_file(str(data), self._path(key))
            else:
                self._fs.pipe_file(self._path(key), data)
        return key

    def copy(self, blob: Blob, dataset_id: str) -> str:
        """Copy a document's blob to the same document of another dataset, and return the copy's key.

        The copy has a name of its own, so it overwrites no upload, and it is as old as the original. May be repeated.

        Raises:
            NotFound: there is none of this key.
        """
        _, document_id, filename = _checked_key(blob.key).split("/")
        name = filename if _COPY.match(filename) else safe_filename(f"~{blob.uploaded_at:016}~{filename}")
        target = f"{_folder(dataset_id, document_id)}/{name}"
        with self._translated(blob.key):
            if self._is_local:
                self._put_local(target, Path(self._path(blob.key)))
            else:
                self._fs.copy(self._path(blob.key), self._path(target))
        return target

    def read(self, key: str) -> bytes:
        """The bytes of a blob.

        Raises:
            NotFound: there is none of this key.
        """
        path = self._path(_checked_key(key))
        with self._translated(key):
            return bytes(self._fs.cat_file(path))

    def size(self, key: str) -> int:
        """The size of a blob in bytes.

        Raises:
            NotFound: there is none of this key.
        """
        path = self._path(_checked_key(key))
        with self._translated(key):
            self._fs.invalidate_cache(path.rpartition("/")[0])
            return int(self._fs.size(path))

    def digest(self, key: str) -> tuple[str, int]:
        """SHA-256 of a blob, in hex, and its size; in little memory, however large it is.

        Raises:
            NotFound: there is none of this key.
        """
        path = self._path(_checked_key(key))
        digest, size = hashlib.sha256(), 0
        with self._translated(key), self._fs.open(path, "rb") as file:
            while part := file.read(_PART):
                digest.update(part)
                size += len(part)
        return digest.hexdigest(), size

    def find(self, dataset_id: str, document_id: str) -> str | None:
        """The key of the document's blob, the newest if there are several, None if there is none."""
        blob = self.locate(dataset_id, document_id)
        return None if blob is None else blob.key

    def locate(self, dataset_id: str, document_id: str) -> Blob | None:
        """The document's blob with its size, from one listing; the newest if there are several."""
        folder = _folder(dataset_id, document_id)
        path = self._path(folder)
        with self._translated(folder):
            self._fs.invalidate_cache(path)
            try:
                files = {e["name"]: int(e["size"]) for e in self._fs.ls(path, detail=True) if e["type"] == "file"}
            except FileNotFoundError:
                self._refuse_missing_root()
                return None
            return max(self._blobs(folder, files), key=_rank, default=None)

    def check(self) -> None:
        """That the store answers at all: what it refuses all the same is a single blob's or folder's trouble."""
        path = self._path(_UNFINISHED)
        with self._translated(_UNFINISHED):
            self._fs.invalidate_cache(path)
            with suppress(FileNotFoundError):
                self._fs.ls(path, detail=False)
            self._refuse_missing_root()

    def remove_unfinished(self, *, seconds: float) -> int:
        """Remove what writers left that died at it, once it is that old; returns how many. Of a folder alone."""
        removed = 0
        if not self._is_local:
            return removed
        with self._translated(_UNFINISHED), suppress(FileNotFoundError):
            for file in Path(self._path(_UNFINISHED)).iterdir():
                with suppress(FileNotFoundError):  # just finished, or removed by another pass
                    if file.is_file() and time.time() - file.stat().st_mtime > seconds:
                        file.unlink()
                        removed += 1
        return removed

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs  # noqa: PLC0415

        _ = self._secrets  # checks the address
        try:
            filesystem, root = url_to_fs(self.url)
        except (ImportError, TypeError, ValueError) as error:
            raise ConfigurationError(f"FLTR_BLOB_URL can't be opened: {self._words(error)}") from None
        except Exception as error:  # noqa: BLE001 - some drivers connect at once: FTP, SFTP, SMB
            raise StoreUnavailable(f"the blob store can't be opened: {self._words(error)}") from None
        return filesystem, root.rstrip("/")

    @cached_property
    def _secrets(self) -> frozenset[str]:
        """The URL's password, or its user where that is all: a token. As written, and as drivers read it.

        A password with a `/` of its own, or behind no scheme, would be read as a path, and so told.
        """
        _, scheme, rest = self.url.partition("://")
        authority, *path = _AUTHORITY_ENDS.split(rest if scheme else self.url, maxsplit=1)
        if ":" in authority and "@" in "".join(path if scheme else [authority, *path]):
            raise ConfigurationError(
                "FLTR_BLOB_URL must be a folder or a URL such as s3://bucket, with no `@` after its host; a password "
                "with special characters belongs in a variable of the driver, such as AWS_SECRET_ACCESS_KEY or "
                "FSSPEC_FTP_PASSWORD"
            )
        user, _, password = authority.rpartition("@")[0].partition(":")
        secret = password or (user if scheme else "")
        return frozenset({secret, unquote(secret)} - {""})

    def _words(self, error: Exception) -> str:
        # What is raised with them is raised `from None`: the driver's own error may quote the URL.
        words = f"{type(error).__name__}: {error}"
        for secret in self._secrets:
            words = words.replace(secret, "***")
        return words

    @property
    def _fs(self) -> Any:  # noqa: ANN401
        return self._opened[0]

    @property
    def _is_local(self) -> bool:
        return "file" in self._fs.protocol

    def _path(self, key: str) -> str:
        # Joined as text: path classes read `..`, `#` or `s3://` in a filename as more than a filename.
        return f"{self._opened[1]}/{key}"

    def _blobs(self, folder: str, sizes: Mapping[str, int]) -> Iterator[Blob]:
        for path, size in sizes.items():
            filename = path.rpartition("/")[2]
            copy = _COPY.match(filename)
            with suppress(FileNotFoundError):  # removed since it was listed
                at = self._modified(path, alone=len(sizes) == 1)
                # No copy is older than its original: other uploaders may give a file such a name, and any time.
                yield Blob(f"{folder}/{filename}", size, min(at, int(copy[1])) if copy else at)

    def _modified(self, path: str, *, alone: bool) -> int:
        try:
            seconds: float = self._fs.modified(path).timestamp()
        except NotImplementedError:  # a driver without times: a file that is alone need not be compared
            if alone:
                return 0
            raise
        return round(seconds * 1_000_000)

    def _put_local(self, key: str, data: bytes | Path) -> None:
        target = Path(self._path(key))
        unfinished = Path(self._path(_UNFINISHED)) / uuid.uuid4().hex
        for folder in (target.parent, unfinished.parent):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("xb") as file:
                if isinstance(data, Path):
                    with data.open("rb") as source:
                        shutil.copyfileobj(source, file)
                else:
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)

    def _refuse_missing_root(self) -> None:
        # An unmounted volume looks like a store without blobs; taken for that, it would fail every document for good.
        if self._is_local and not Path(self._opened[1]).is_dir():
            raise StoreUnavailable(f"the blob store's folder {self._opened[1]} is not there: is its volume mounted?")

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except FltrError:
            raise
        except (FileNotFoundError, IsADirectoryError):
            self._refuse_missing_root()
            document = key.split("/")[1]
            raise NotFound(f"document {document} has no blob {key!r} in the blob store") from None
        except Exception as error:  # noqa: BLE001 - each driver has its own network errors, with no common class
            raise StoreUnavailable(f"the blob store failed on {key!r}: {self._words(error)}") from None


def _folder(dataset_id: str, document_id: str) -> str:
    return f"{checked_id(dataset_id, 'dataset id')}/{checked_id(document_id, 'document id')}"


def _rank(blob: Blob) -> tuple[int, bool, str]:
    """The greatest is a document's: what was uploaded last; of the same time, rather an upload than a copy."""
    return blob.uploaded_at, not blob.is_copy, blob.key


def _checked_key(key: str) -> str:
    dataset_id, _, rest = key.partition("/")
    document_id, _, filename = rest.partition("/")
    folder = _folder(dataset_id, document_id)
    if filename in {"", ".", ".."} or "/" in filename or "\0" in filename:
        raise InvalidValue(f"{filename[:80]!r} is not the filename of a blob in {folder}")
    return key
