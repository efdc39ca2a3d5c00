"""Uploading: what our command line does, and what any other uploader must do in the same order.

The contract: write the blob (or `content`), then set status `uploaded` and `updated_at` in one statement, provided that
the document is still in the dataset under whose id the blob is.
"""

import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from fltr_pipeline.credits.holds import key_digest
from fltr_pipeline.errors import InvalidValue, NotFound
from fltr_pipeline.pipeline.services import Services
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets, moved
from fltr_pipeline.stores.fltr.datasets import Dataset


@dataclass(frozen=True, slots=True)
class Uploaded:
    """One file that is in."""

    document_id: str
    filename: str
    size: int
    replaced: bool


def find_dataset(services: Services, name_or_id: str) -> Dataset:
    """The dataset of that name or id.

    Raises:
        NotFound: there is none, or several have that name.
    """
    with transaction(services.fltr) as tx:
        found = datasets.named(tx, name_or_id)
        if not found:
            found = [d for d in datasets.every(tx) if d.id == name_or_id]
        names = [] if found else sorted({d.name for d in datasets.every(tx)})
    if not found:
        known = (
            f"there are: {', '.join(names[:20])}" if names else "there is none yet: `fltr-pipeline upload` creates one"
        )
        raise NotFound(f"no dataset is named {name_or_id!r}; {known}")
    if len(found) > 1:
        raise NotFound(
            f"{len(found)} datasets are named {name_or_id!r}; name one by its id: {', '.join(d.id for d in found)}"
        )
    return found[0]


def dataset_of(services: Services, user_id: str, name: str) -> Dataset:
    """The user's dataset of that name, created if there is none."""
    with transaction(services.fltr) as tx:
        for dataset in datasets.named(tx, name):
            if dataset.user_id == user_id:
                return dataset
        dataset = Dataset(str(uuid.uuid4()), user_id, name)
        datasets.create(tx, dataset)
    return dataset


def files_below(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """(filename, path) of each file; a folder gives its files, named by their path below it, hidden ones left out.

    Raises:
        NotFound: a path does not exist, or there is no file at all.
        InvalidValue: a file or folder can't be read, or two files would have the same name.
    """
    found: dict[str, Path] = {}
    for name, path in chain.from_iterable(map(_named_files, paths)):
        if name in found:
            raise InvalidValue(
                f"{found[name]} and {path} would both be the document {name!r}: upload the folder that holds both"
            )
        _require_readable(path)
        found[name] = path
    if not found:
        raise NotFound(f"there is no file below {', '.join(map(str, paths))}")
    return list(found.items())


def _named_files(path: Path) -> Iterator[tuple[str, Path]]:
    if not path.is_dir():
        if not os.path.lexists(path):
            raise NotFound(f"{path} does not exist")
        yield _decoded(path.name), path
        return
    for folder, folders, files in os.walk(path, onerror=_refuse):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in (Path(folder, f) for f in sorted(files) if not f.startswith(".")):
            yield _decoded(file.relative_to(path).as_posix()), file


def _decoded(name: str) -> str:
    """The name as text that a database takes: file systems allow any bytes."""
    return os.fsencode(name).decode("utf-8", "replace")


def _require_readable(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise InvalidValue(f"{path} can't be uploaded: it is not a file")  # opening a pipe would wait for ever
    try:
        path.open("rb").close()
    except OSError as error:
        _refuse(error)


def _refuse(error: OSError) -> None:
    raise InvalidValue(f"{error.filename} can't be read: {error.strerror}") from error


def upload(
    services: Services, dataset: Dataset, files: Sequence[tuple[str, Path]], *, api_key: str | None = None
) -> Iterator[Uploaded]:
    """Store each file and mark it as uploaded, one by one; a file of a known name replaces that document.

    `api_key`: whose pool pays, if it has one; only its digest is kept.
    """
    key = key_digest(api_key) if api_key is not None else None
    with transaction(services.fltr) as tx:
        known = datasets.find_documents(tx, dataset.id, [name for name, _ in files])
    for name, path in files:
        replaced = name in known
        document_id = known.setdefault(name, str(uuid.uuid4()))
        dataset_id: str | None = dataset.id
        while dataset_id is not None:
            dataset_id = _store(services, dataset_id, document_id, name, path, key)
        yield Uploaded(document_id, name, path.stat().st_size, replaced)


def _store(services: Services, dataset_id: str, document_id: str, name: str, path: Path, key: str | None) -> str | None:
    """The dataset that the document was moved to meanwhile: it is not uploaded, for nobody would look for this file."""
    services.blobs.put(dataset_id, document_id, name, path)
    with transaction(services.fltr) as tx:
        if datasets.upload(tx, dataset_id, [(document_id, name)], key):
            return None
        return moved.dataset_now(tx, document_id)
