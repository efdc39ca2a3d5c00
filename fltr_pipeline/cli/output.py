"""What all commands share on the terminal: results on stdout, progress and errors on stderr, JSON for programs.

Belongs here: how things are said. Does not: what any command says.
"""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from fltr_pipeline.errors import ConfigurationError, FltrError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails
    from rich.table import Table

    from fltr_pipeline.settings import Settings

_UNLIMITED = 10_000
"""Columns of a terminal."""
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

JSON_OPTION = "--json"
AsJson = Annotated[bool, typer.Option(JSON_OPTION, help="Print JSON for programs.")]
"""The option of each command whose result a program may read."""


def out() -> Console:
    """For results."""
    return Console(soft_wrap=True, highlight=False)


def err() -> Console:
    """For progress and errors."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def plain(words: str) -> Text:
    """Words of customers as they are: no markup, and no control character for the terminal to obey."""
    return Text(_CONTROLS.sub("\N{REPLACEMENT CHARACTER}", words.replace("\f", "\n")))


def counted(number: int, noun: str) -> str:
    """`1 document`, `2,000 documents`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def print_table(table: "Table") -> None:
    """A result's table in full: nothing is cut, so that ids can be copied; a narrow terminal wraps the lines."""
    console = out()
    console.width = _UNLIMITED
    console.print(table)


def print_json(value: object) -> None:
    """One JSON document on stdout; `value` holds plain data."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")
    sys.stdout.flush()


def print_error(message: str, *, kind: str, as_json: bool) -> None:
    """One error on stderr: red, or as `{"error": {"type": …, "message": …}}`."""
    if as_json:
        sys.stderr.write(json.dumps({"error": {"type": kind, "message": message}}, ensure_ascii=False) + "\n")
    else:
        err().print(plain(message), style="red")


def read_settings() -> "Settings":
    """The settings of this process.

    Raises:
        ConfigurationError: one is wrong, or half a production configuration is given; no value is repeated.
    """
    from pydantic import ValidationError  # noqa: PLC0415 - `--help` need not wait for it

    from fltr_pipeline.settings import Settings  # noqa: PLC0415

    try:
        return Settings()
    except ValidationError as error:
        raise ConfigurationError("; ".join(_problem(item) for item in error.errors(include_input=False))) from None


def _problem(item: "ErrorDetails") -> str:
    name = "__".join(str(part) for part in item["loc"]).upper()
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"FLTR_{name}: {message}" if name else message


@contextmanager
def errors_told(*, as_json: bool) -> Iterator[None]:
    """An error raised on purpose becomes one message and exit code 1; a bug keeps its traceback."""
    try:
        yield
    except FltrError as error:
        print_error(str(error), kind=type(error).__name__, as_json=as_json)
        raise SystemExit(1) from None
    except typer.TyperException as error:  # wrong usage; without --json, Typer tells it itself
        print_error(str(error), kind=type(error).__name__, as_json=as_json)
        raise SystemExit(error.exit_code) from None


class Progress:
    """Tells what happens to what: a spinner with the latest on a terminal, one plain line each elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("") if console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, subject: str, event: str) -> None:
        """Says that `event` happens to `subject`."""
        if self._status is not None:
            self._status.update(f"{escape(subject)}: {escape(event)}")
        self._console.print(f"{subject}: {event}", markup=False)
