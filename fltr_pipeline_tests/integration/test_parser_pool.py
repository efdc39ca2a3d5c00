"""The pool with real parser processes: what goes well, each way to fail, and that nothing stays behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fltr_pipeline.errors import (
    ConfigurationError,
    Corrupt,
    DocumentError,
    Encrypted,
    MemoryLimit,
    NoTextLayer,
    ParserCrash,
    TimeLimit,
    TooLarge,
    Unsupported,
)
from fltr_pipeline.models import ParsedDocument
from fltr_pipeline.text.parse import parse, process
from fltr_pipeline.text.parse import pool as pool_module
from fltr_pipeline.text.parse.pool import ParserPool
from fltr_pipeline_tests.pdfs import pdf
from fltr_pipeline_tests.processes import children

MB = 1 << 20

FAULTS = '''
import os, signal, sys, time
from fltr_pipeline.models import ParsedDocument
from fltr_pipeline.text.parse import worker

served = []

def parse(data, filename, *, pdf_engine, recogniser):
    """A parser that does what the document says."""
    word = data.decode()
    if word == "hang":
        time.sleep(600)
    served.append(word)
    if word == "crash" or word == "tired" and len(served) > 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == "pages":
        for _ in range(4):
            recogniser.on_page()
            time.sleep(1.5)
    if word == "noise":
        print("noise" * 1000, flush=True)
        os.write(1, b"more noise")
    if word == "bug":
        raise RecursionError("too deep")
    if word == "memory":
        bytearray(10 << 30)
    if word == "flood":
        word = "x" * (4 << 20)
    return ParsedDocument(f"{word} {os.getpid()}", 1, "text", "test")

as_json = worker._json
worker._json = lambda value: b"no json" if "garbage" in str(value)[:99] else as_json(value)
worker.parse = parse
worker.main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
'''


@pytest.fixture(autouse=True)
def nothing_stays_behind() -> Iterator[None]:
    yield
    assert children("text.parse.worker") == []


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parser processes whose parser obeys the document: sleeps, crashes, prints, leaks."""
    script = tmp_path / "faulty_worker.py"
    script.write_text(FAULTS)
    monkeypatch.setattr(process, "WORKER", ("-P", str(script)))


def pool(*, seconds: float = 60, workers: int = 2, memory_mb: int = 1024, max_bytes: int = MB) -> ParserPool:
    return ParserPool(workers, seconds, memory_mb, max_bytes)


def outcomes(parsers: ParserPool, *words: str) -> dict[str, ParsedDocument | DocumentError]:
    return dict(parsers.parse_all((word, f"{word}.txt", word.encode()) for word in words))


@pytest.mark.usefixtures("faulty")
def test_each_page_that_ocr_reads_has_the_time_for_itself() -> None:
    begun: list[str] = []
    with ParserPool(1, seconds=4, memory_mb=1024, max_bytes=MB, ocr_pages=9) as parsers:
        ((_, result),) = parsers.parse_all([("a", "a.txt", b"pages")], on_page=lambda: begun.append("page"))
    assert isinstance(result, ParsedDocument), result
    assert len(begun) == 4


def test_every_kind_comes_back_as_parse_gives_it() -> None:
    files = {"a.pdf": pdf(["one", "", "three"]), "a.html": b"<p>H</p>", "a.md": b"# M", "a.txt": "\fx é 漢 👍".encode()}
    with pool() as parsers:
        got = dict(parsers.parse_all((name, name, data) for name, data in files.items()))
    assert got == {name: parse(data, name) for name, data in files.items()}


def test_failures_keep_their_type_and_name_the_file() -> None:
    files = {
        "locked.pdf": (pdf(["x"], password="p"), Encrypted),
        "scan.pdf": (pdf([""]), NoTextLayer),
        "broken.pdf": (b"%PDF-1.4 nothing", Corrupt),
        "wrong.pdf": (b"GIF89a" + bytes(64), Unsupported),
        "large.txt": (b"x" * (MB + 1), TooLarge),
    }
    with pool() as parsers:
        got = dict(parsers.parse_all((name, name, data) for name, (data, _) in files.items()))
    assert {name: type(error) for name, error in got.items()} == {name: kind for name, (_, kind) in files.items()}
    assert all(name in str(error) for name, error in got.items())


@pytest.mark.usefixtures("faulty")
def test_a_crash_is_a_crash_however_large_the_parent_is() -> None:
    ballast = b"x" * (700 * MB)  # more than half of the parser's limit, touched
    with pool(workers=1) as parsers:
        assert isinstance(outcomes(parsers, "crash")["crash"], ParserCrash)
    assert len(ballast) == 700 * MB


@pytest.mark.usefixtures("faulty")
def test_a_bad_document_costs_only_itself() -> None:
    with pool(seconds=3) as parsers:
        got = outcomes(parsers, "a", "hang", "b", "crash", "c", "bug", "memory", "d", "flood", "garbage", "e")
    assert {word: type(got[word]) for word in ("hang", "crash", "bug", "memory", "flood", "garbage")} == {
        "hang": TimeLimit,
        "crash": ParserCrash,
        "bug": ParserCrash,
        "memory": MemoryLimit,
        "flood": TooLarge,
        "garbage": ParserCrash,
    }
    assert all(f"{word}.txt" in str(outcome) for word, outcome in got.items() if isinstance(outcome, DocumentError))
    assert all(isinstance(got[word], ParsedDocument) for word in "abcde")


@pytest.mark.usefixtures("faulty")
def test_what_a_library_prints_harms_nothing() -> None:
    with pool() as parsers:
        got = outcomes(parsers, "noise", "a")
    assert all(isinstance(outcome, ParsedDocument) for outcome in got.values())


@pytest.mark.usefixtures("faulty")
def test_a_process_serves_many_documents() -> None:
    with pool(workers=1) as parsers:
        got = outcomes(parsers, *(f"word{index}" for index in range(20)))
    pids = {outcome.text.split()[1] for outcome in got.values() if isinstance(outcome, ParsedDocument)}
    assert len(got) == 20
    assert len(pids) == 1


@pytest.mark.usefixtures("faulty")
def test_a_process_is_replaced_before_its_leaks_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_DOCUMENTS_PER_PROCESS", 5)
    with pool(workers=1) as parsers:
        got = outcomes(parsers, *(f"word{index}" for index in range(20)))
    assert len({outcome.text.split()[1] for outcome in got.values() if isinstance(outcome, ParsedDocument)}) == 4


@pytest.mark.usefixtures("faulty")
def test_a_document_does_not_pay_for_its_predecessors() -> None:
    with pool(workers=1) as parsers:
        got = outcomes(parsers, "a", "b", "tired")
    assert isinstance(got["tired"], ParsedDocument)


def test_native_code_that_gets_no_memory_is_a_memory_limit() -> None:
    data = b"<html><body>" + b"<p>word</p>" * 3_000_000
    with pool(memory_mb=256, max_bytes=64 * MB) as parsers:
        got = dict(parsers.parse_all([("big", "big.html", data), ("small", "small.html", b"<p>fine</p>")]))
    assert isinstance(got["big"], MemoryLimit)
    assert isinstance(got["small"], ParsedDocument)


def test_bytes_are_fetched_no_further_ahead_than_two_per_process() -> None:
    fetched: list[int] = []

    def fetch(index: int) -> Callable[[], bytes]:
        def data() -> bytes:
            fetched.append(index)
            return b"words"

        return data

    with pool(workers=1) as parsers:
        results = parsers.parse_all((str(index), "a.txt", fetch(index)) for index in range(50))
        for count, _ in enumerate(results, start=1):
            assert len(fetched) <= count + 2


def test_what_fetching_raises() -> None:
    def missing() -> bytes:
        raise Corrupt("gone.txt: no upload")

    def down() -> bytes:
        raise ConnectionError("store is down")

    with pool() as parsers:
        ((document_id, outcome),) = parsers.parse_all([("1", "gone.txt", missing)])
        assert (document_id, type(outcome)) == ("1", Corrupt)
        with pytest.raises(ConnectionError):
            list(parsers.parse_all([("1", "a.txt", down)]))


@pytest.mark.usefixtures("faulty")
def test_leaving_early_ends_what_is_in_flight() -> None:
    with pool() as parsers:
        results = parsers.parse_all((word, "a.txt", word.encode()) for word in ["a", "hang", "hang", "hang"])
        assert next(results)[0] == "a"


def test_a_closed_pool_says_so() -> None:
    with pytest.raises(RuntimeError, match="with"):
        list(pool().parse_all([]))


def test_a_process_that_does_not_start_is_no_fault_of_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WORKER", ("-c", "raise SystemExit(3)"))
    with pool() as parsers, pytest.raises(ConfigurationError, match="FLTR_PARSE_MEMORY_MB"):
        list(parsers.parse_all([("1", "a.txt", b"words")]))


def test_parsers_see_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLTR_DATABASE_URL", "postgresql://user:secret@host/db")
    with pool(workers=1) as parsers:
        results = parsers.parse_all([("1", "a.txt", b"words")] * 3)
        next(results)
        (worker,) = children("text.parse.worker")
        assert not [name for name in worker.environ() if name.startswith("FLTR_")]
        assert len(list(results)) == 2


def test_processes_end_with_a_killed_parent() -> None:
    code = (
        "import sys; from fltr_pipeline.text.parse.pool import ParserPool\n"
        "with ParserPool(2, 60, 1024, 1 << 20) as parsers:\n"
        "    list(parsers.parse_all((str(i), 'a.txt', b'words') for i in range(9)))\n"
        "    print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"ready\n"
        workers = psutil.Process(parent.pid).children()
        assert workers
        for worker in workers:
            os.kill(worker.pid, signal.SIGINT)  # Ctrl-C reaches the whole group; they wait for their parent
        time.sleep(0.2)
        assert all(worker.is_running() for worker in workers)
        parent.kill()
        assert psutil.wait_procs(workers, timeout=30)[1] == []


def files() -> list[Path]:
    """The package's own sources, and all files of the folder in `FLTR_TEST_DATA` where that is set."""
    folders = [Path(process.__file__).parent]
    if given := os.environ.get("FLTR_TEST_DATA"):
        folders.append(Path(given))
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]


def test_every_file_of_a_folder_gives_text_or_a_type() -> None:
    paths = files()
    with pool(max_bytes=200 * MB, memory_mb=2048) as parsers:
        got = dict(parsers.parse_all((str(path), path.name, path.read_bytes) for path in paths))
    assert len(got) == len(paths)
    for outcome in got.values():
        assert not isinstance(outcome, ParserCrash | TimeLimit | MemoryLimit)
        if isinstance(outcome, ParsedDocument):
            assert outcome.text.count("\f") == outcome.pages - 1
            assert outcome.text.strip()
