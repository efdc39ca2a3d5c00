"""The command line `fltr-pipeline`: the list of commands, and how a command's errors reach the terminal.

Belongs here: nothing else. A command's module is imported when that command runs, so that `--help` is fast and each
module may have its imports at the top.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from fltr_pipeline.cli import output

if TYPE_CHECKING:
    from collections.abc import Callable

    from typer._click import Command, Context

COMMANDS = {
    "up": ("stack:up", "Start the embedded stack with the Dagster UI."),
    "down": ("stack:down", "Stop the embedded stack."),
    "demo": ("demo:demo", "Run the main job from nothing and check all of its results."),
    "upload": ("documents:upload", "Upload files or folders into a dataset."),
    "status": ("status:status", "Show documents by status, progress and failures."),
    "reprocess": ("documents:reprocess", "Do a dataset's documents again."),
    "search": ("search:search", "Search a dataset."),
    "credits": ("credits:app", "Grant credits, show balances and statements, audit the ledger."),
    "reconcile": ("reconcile:reconcile", "End what is left over, sweep what is deleted, repair vectors."),
    "db": ("db:app", "Create, verify, rebuild and migrate the schemas of both databases."),
}
"""Name → (`module:function` or `module:sub-app` in this package, the line that `--help` shows)."""


class _LazyGroup(TyperGroup):
    """Knows its commands by name and help line, and imports the one that runs."""

    def __init__(self, **attributes: Any) -> None:  # noqa: ANN401 - Typer's own
        super().__init__(**attributes)
        self.commands = {name: _stub(name, line) for name, (_, line) in COMMANDS.items()}

    def resolve_command(self, ctx: "Context", args: list[str]) -> "tuple[str | None, Command | None, list[str]]":
        """Puts the real command in the place of its stub."""
        name, stub, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name and stub else None, rest


def _stub(name: str, line: str) -> "Command":
    def nothing() -> None: ...

    return _command(name, nothing, line)


def _load(name: str) -> "Command":
    module, _, attribute = COMMANDS[name][0].partition(":")
    return _command(name, getattr(import_module(f"{__name__}.{module}"), attribute))


def _command(name: str, target: "typer.Typer | Callable[..., None]", line: str | None = None) -> "Command":
    """Typer makes commands only as members of an application."""
    holder = typer.Typer(cls=TyperGroup)
    holder.callback()(lambda: None)
    if isinstance(target, typer.Typer):
        holder.add_typer(target, name=name, help=line)
    else:
        holder.command(name, help=line)(target)
    return get_group(holder).commands[name]


app = typer.Typer(cls=_LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _fltr_pipeline() -> None:
    """Turns uploaded documents into searchable embeddings, and charges exactly what the work cost."""


def main() -> None:
    """The entry point. Exit codes: 0 done, 1 something is not as it should be, 2 wrong usage."""
    as_json = output.JSON_OPTION in sys.argv
    with output.errors_told(as_json=as_json):
        code = get_group(app)(standalone_mode=not as_json)
    raise SystemExit(code if isinstance(code, int) else 0)
