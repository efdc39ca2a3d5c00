"""OCR in a real, confined parser process: scans, images, mixed files, pages that lie on their side, and garbage."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from fltr_pipeline.errors import Corrupt, DocumentError, NoTextLayer, TooLarge, Unsupported
from fltr_pipeline.models import PAGE_BREAK, ParsedDocument, ReprocessMode
from fltr_pipeline.pipeline.reprocess import datasets_to_backfill, requeue
from fltr_pipeline.pipeline.search import search
from fltr_pipeline.stores.database import transaction
from fltr_pipeline.stores.fltr import datasets
from fltr_pipeline.text.parse.pool import ParserPool
from fltr_pipeline_tests import scans
from fltr_pipeline_tests.pdfs import pdf
from fltr_pipeline_tests.seed import SEED
from fltr_pipeline_tests.world import World

TREATY = "The treaty of Westphalia ended the war in 1648.\nIt was signed in two cities on one day."
LEFT = "The orchard lies above the river\nand its apples are picked late\nin the year, when frost has come."
RIGHT = "A violin is made of spruce and\nmaple and it takes a maker two\nmonths to build one by hand."


@pytest.fixture(scope="module")
def parsers() -> Iterator[ParserPool]:
    with ParserPool(1, seconds=120, memory_mb=2048, max_bytes=100 << 20, ocr_pages=4) as pool:
        yield pool


def outcome(pool: ParserPool, name: str, data: bytes) -> ParsedDocument | DocumentError:
    ((_, result),) = pool.parse_all([(name, name, data)])
    return result


def read(pool: ParserPool, name: str, data: bytes) -> ParsedDocument:
    result = outcome(pool, name, data)
    assert isinstance(result, ParsedDocument), result
    return result


def words(text: str) -> list[str]:
    return text.split()


def test_only_pages_without_text_are_recognised_and_each_keeps_its_confidence(parsers: ParserPool) -> None:
    data = scans.bound(pdf(["A page with text"]), scans.saved([scans.page(TREATY)], "PDF"), pdf([""]))
    begun: list[int] = []
    ((_, parsed),) = parsers.parse_all([("a", "mixed.pdf", data)], on_page=lambda: begun.append(1))
    assert isinstance(parsed, ParsedDocument)
    first, second, third = parsed.text.split(PAGE_BREAK)
    assert (first.strip(), words(second), third.strip()) == ("A page with text", words(TREATY), "")
    assert (parsed.pages, parsed.blank_pages, parsed.kind) == (3, (3,), "pdf")
    assert [r.page for r in parsed.recognised] == [2]
    assert 0.9 < parsed.recognised[0].confidence <= 1
    assert parsed.engine.startswith("pypdfium2 ")
    assert " + rapidocr " in parsed.engine
    assert len(begun) == 1


@pytest.mark.parametrize("turned", [90, 180, 270, 3])
def test_a_page_is_read_whichever_way_it_lies(parsers: ParserPool, turned: int) -> None:
    parsed = read(parsers, "a.pdf", scans.saved([scans.page(TREATY, turned=turned)], "PDF"))
    assert words(parsed.text) == words(TREATY)


def test_columns_are_read_one_after_the_other_below_their_heading(parsers: ParserPool) -> None:
    title = "Of orchards and violins and of what else there is to be told here"
    picture = scans.page((120, 100, title), (120, 220, LEFT), (660, 226, RIGHT))
    parsed = read(parsers, "a.png", scans.saved([picture], "PNG"))
    assert words(parsed.text) == words(f"{title} {LEFT} {RIGHT}")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_images_are_documents_of_a_page(parsers: ParserPool, form: str) -> None:
    parsed = read(parsers, "a.bin", scans.saved([scans.page(TREATY)], form))
    assert (words(parsed.text), parsed.kind, parsed.pages) == (words(TREATY), "image", 1)


def test_a_tiff_is_a_document_of_several(parsers: ParserPool) -> None:
    pages = [scans.page(TREATY).convert("1"), scans.page(), scans.page("Third page").convert("P")]
    parsed = read(parsers, "a.tif", scans.saved(pages, "TIFF"))
    assert [words(text) for text in parsed.text.split(PAGE_BREAK)] == [words(TREATY), [], ["Third", "page"]]
    assert (parsed.blank_pages, [r.page for r in parsed.recognised]) == ((2,), [1, 3])


def test_what_a_camera_says_of_its_position_and_transparency_are_heeded(parsers: ParserPool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    photo = io.BytesIO()
    scans.page(TREATY, turned=90).save(photo, "JPEG", exif=exif)
    assert words(read(parsers, "a.jpg", photo.getvalue()).text) == words(TREATY)
    clear = scans.page(TREATY).convert("L").point(lambda v: 255 - v)
    layer = Image.new("RGBA", clear.size, (0, 0, 0, 0))
    layer.putalpha(clear)
    assert words(read(parsers, "a.png", scans.saved([layer], "PNG")).text) == words(TREATY)


def test_what_says_nothing_fails_for_its_reason(parsers: ParserPool) -> None:
    print(f"FLTR_SEED={SEED}")
    png = scans.saved([scans.page(TREATY)], "PNG")
    files = {
        "empty.pdf": (scans.saved([scans.page()], "PDF"), NoTextLayer),
        "noise.png": (scans.saved([scans.noise(SEED)], "PNG"), NoTextLayer),
        "cut.png": (png[: len(png) // 2], Corrupt),
        "head.jpg": (b"\xff\xd8\xff\xe0" + bytes(40), Corrupt),
        "bomb.png": (_bomb(), TooLarge),
        "bare.tif": (b"II*\x00\x08" + bytes(9), Corrupt),
        "long.pdf": (scans.saved([scans.page(f"Page {n}") for n in range(5)], "PDF"), TooLarge),
    }
    got = {name: type(outcome(parsers, name, data)) for name, (data, _) in files.items()}
    assert got == {name: kind for name, (_, kind) in files.items()}


@pytest.mark.parametrize("kind", ["PDF", "TIFF"])
def test_what_has_too_many_pages_is_refused_before_any_is_read(parsers: ParserPool, kind: str) -> None:
    looked_at: list[None] = []
    scan = scans.saved([scans.page(f"Page {n}") for n in range(5)], kind)
    ((_, refused),) = parsers.parse_all([("id", "long", scan)], lambda: looked_at.append(None))
    assert isinstance(refused, TooLarge)
    assert "5 pages" in str(refused)
    assert looked_at == []


def _bomb() -> bytes:
    out = io.BytesIO()
    Image.new("1", (20_000, 20_000), 1).save(out, "PNG")
    return out.getvalue()


def test_without_ocr_an_image_says_how_it_could_be_read() -> None:
    with ParserPool(1, seconds=60, memory_mb=1024, max_bytes=1 << 20) as pool:
        error = outcome(pool, "a.png", scans.saved([scans.page(TREATY)], "PNG"))
    assert isinstance(error, Unsupported)
    assert "a.png: holds a PNG image, whose text is read only where OCR is on (FLTR_OCR)" in str(error)


def test_real_scans_are_read_on_every_page(parsers: ParserPool) -> None:
    """Made here, and some of the folder in `FLTR_TEST_DATA` where that is set."""
    files = {"made.pdf": scans.saved([scans.page(TREATY)], "PDF")}
    if given := os.environ.get("FLTR_TEST_DATA"):
        folder = Path(given) / "pdf/ocrmypdf"
        files |= {name: (folder / name).read_bytes() for name in ("ccitt.pdf", "skew.pdf")}
    for name, data in files.items():
        parsed = read(parsers, name, data)
        assert [r.page for r in parsed.recognised] == list(range(1, parsed.pages + 1))
        assert all(r.confidence > 0.9 for r in parsed.recognised)
        assert all(len(words(page)) > 15 for page in parsed.text.split(PAGE_BREAK))


def test_turning_it_on_reads_what_could_not_be_read_once_and_charges_what_was_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer = world.user(credits=60)
    dataset = world.dataset(payer)
    scan = scans.bound(scans.saved([scans.page(TREATY)], "PDF"), pdf(["A page with text"]))
    files = {
        "scan.pdf": scans.saved([scans.page(TREATY)] * 2, "PDF"), "mixed.pdf": scan, "empty.pdf": pdf([""]),
        "photo.png": scans.saved([scans.page(TREATY)], "PNG"), "tool.exe": b"MZ\x90\x00" + bytes(200),
    }  # fmt: skip
    ids = world.upload(dataset, files)
    world.process(dataset)
    without = dict.fromkeys(files, "failed") | {"mixed.pdf": "ready"}
    assert world.statuses(dataset) == without
    assert datasets_to_backfill(world.services) == []
    spent = world.statement(payer).charged

    monkeypatch.setenv("FLTR_OCR", "true")
    monkeypatch.setenv("FLTR_PARSE_WORKERS", "1")
    del world.services
    assert datasets_to_backfill(world.services) == [dataset.id]
    assert requeue(world.services, dataset.id, ReprocessMode.stale, charge=False, retryable_only=True) == len(files)
    _, extracted, *_ = world.process(dataset)

    assert world.statuses(dataset) == dict.fromkeys(files, "ready") | {"empty.pdf": "failed", "tool.exe": "failed"}
    assert (extracted.counts["ocr_pages"], extracted.counts["blank_pages"]) == (4, 0)
    assert world.statement(payer).held == 0
    kept = dict(world.rows("SELECT document_id, ocr_pages FROM pipeline.generations"))
    assert (kept[ids["scan.pdf"]], kept[ids["mixed.pdf"]], kept[ids["photo.png"]]) == ([1, 2], [1], [1])
    assert world.statement(payer).charged - spent == 6, "two units of extraction and one of embedding for each of two"
    best = search(world.services, dataset.id, "Where was the treaty signed?", k=1)[0].place
    assert best.filename in {"scan.pdf", "mixed.pdf", "photo.png"}
    with transaction(world.services.fltr) as tx:
        status = datasets.status(tx, dataset)
    assert status.ocr_pages == 4
    assert status.ocr_confidence is not None
    assert 0.9 < status.ocr_confidence <= 1
    assert datasets_to_backfill(world.services) == []
