"""What README and `docs/` say is so."""

import getpass
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from fltr_pipeline.cli import COMMANDS
from fltr_pipeline.failures import ADVICE
from fltr_pipeline.settings import Prices, Settings
from fltr_pipeline.text.parse.formats import formats

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FORMATS = (ROOT / "docs/formats.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DECISIONS = sorted((ROOT / "docs/decisions").glob("*.md"))
PARTS = ("**Context.**", "**Decision.**", "**Consequences.**")


def table(heading: str, page: str = README) -> Iterator[list[str]]:
    """The cells of the first table below that heading, its head left out."""
    section = page.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    for row in rows[2:]:
        yield [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("|"))]


def shown(default: object) -> str:
    return "" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def variables(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        if name == "prices":
            yield from variables(Prices, f"{prefix}PRICES__")
        else:
            yield f"{prefix}{name.upper()}", shown(field.default), field.description or ""


# --- docs/formats.md --------------------------------------------------------------------------------------------------


def test_the_formats_are_the_ones_that_are_read() -> None:
    told = {
        title: (kind.strip("`"), suffixes.replace("`", "").split())
        for title, kind, suffixes, *_ in table("What is read", FORMATS)
    }
    assert told == {form.title: (form.kind, list(form.suffixes)) for form in formats()}


def test_the_failures_are_the_ones_that_happen_with_their_advice() -> None:
    told = {
        code.strip("`"): (customer, operator) for code, customer, operator in table("When a document fails", FORMATS)
    }
    assert told == {code: (known.customer, known.operator) for code, known in ADVICE.items()}


# --- README -----------------------------------------------------------------------------------------------------------


def test_the_settings_table_has_exactly_the_settings_with_their_defaults() -> None:
    told = {name.strip("`"): default.strip("`") for name, default, _ in table("Settings")}
    assert told == {name: default for name, default, _ in variables(Settings, "FLTR_")}
    assert len(list(table("Settings"))) == len(told)


def test_the_settings_table_has_their_descriptions() -> None:
    told = {name.strip("`"): meaning for name, _, meaning in table("Settings")}
    described = {name: meaning for name, _, meaning in variables(Settings, "FLTR_") if meaning}
    assert {name: told[name] for name in described} == described


def test_the_command_table_names_exactly_the_commands() -> None:
    told = [
        words.split()[0]
        for cell, _ in table("The command line")
        for words in re.findall(r"`(?:fltr-pipeline )?([^`]+)`", cell)
    ]
    assert sorted(told) == sorted(COMMANDS)


def test_every_make_target_that_is_named_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    pages = "\n".join(page.read_text() for page in PAGES)
    named = set(
        re.findall(r"\bmake ([a-z][a-z-]*)(?=[ `\n]|$)", " ".join(re.findall(r"`[^`]+`|^make .*$", pages, re.M)))
    )
    assert named
    assert {target for target in named if not re.search(rf"^{target}:", makefile, re.M)} == set()


# --- all pages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_points_to_something(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    relative = [link.split("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in relative if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_heading_has_its_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)\s:#]*)#([^)\s]+)\)", page.read_text()):
        headings = re.findall(r"^#+ (.+)$", (page.parent / target if target else page).read_text(), re.M)
        assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_this_machine(page: Path) -> None:
    content = page.read_text()
    here = {str(ROOT), str(Path.home()), f"/home/{getpass.getuser()}/", socket.gethostname()}
    assert [name for name in here if len(name) > 4 and name in content] == []
    assert re.findall(r"(?:/home|/Users|/work)/\w+", content) == []


def test_every_page_of_docs_is_reached_from_the_readme() -> None:
    linked = {link.split("#")[0].rstrip("/") for link in re.findall(r"\]\((docs/[^)\s]*)\)", README)}
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert pages | {"docs/decisions"} <= linked


# --- decisions --------------------------------------------------------------------------------------------------------


def test_decisions_are_numbered_without_a_gap() -> None:
    assert [int(page.name[:4]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.name)
def test_each_decision_has_its_number_and_its_three_parts_in_order(page: Path) -> None:
    content = page.read_text()
    assert content.startswith(f"# {int(page.name[:4])}. ")
    places = [content.find(part) for part in PARTS]
    assert -1 not in places
    assert places == sorted(places)
