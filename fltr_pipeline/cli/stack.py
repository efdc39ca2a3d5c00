"""`fltr-pipeline up` and `down`.

Belongs here: options, signals, what is printed. Does not: starting or stopping anything (`embedded`).
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer
from rich.table import Table

from fltr_pipeline.cli.output import AsJson, Progress, err, out, print_json, print_table, read_settings
from fltr_pipeline.embedded.stack import Stack
from fltr_pipeline.embedded.state import StackState
from fltr_pipeline.errors import ConfigurationError

WATCH_SECONDS = 2.0


def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when it runs; `down` stops it.")] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of the Dagster UI; 3000 or a free one if not given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start the embedded stack with the Dagster UI.

    What runs already is kept, what has died is started again. Without --detach it stays in the foreground, watches
    over the services, and stops all of them on Ctrl-C.
    """
    settings = read_settings()
    if settings.production:
        raise ConfigurationError(
            "the FLTR_*_URL variables name servers of your own, so there is no embedded stack to start: "
            "unset them to use it, or run Dagster itself against your servers"
        )
    stack = Stack(settings.home)
    with interruptible():
        with Progress(err()) as progress:
            state = stack.up(port, progress)
        if detach:
            _print_state(state, as_json=as_json)
        else:
            _stay(stack, state, as_json=as_json)


def down(as_json: AsJson = False) -> None:
    """Stop the embedded stack; its data stays."""
    stack = Stack(read_settings().home)
    stopped: list[str] = []

    def note(service: str, event: str) -> None:
        stopped.append(service)
        progress(service, event)

    with Progress(err()) as progress:
        stack.down(note)
    if as_json:
        print_json({"home": str(stack.home), "stopped": stopped})
    else:
        out().print("stopped" if stopped else f"nothing runs under {stack.home}")


def _stay(stack: Stack, state: StackState, *, as_json: bool) -> None:
    """Starts again what dies, until a signal comes or another command stops the stack."""
    console = err()
    try:
        _print_state(state, as_json=as_json)
        console.print("Ctrl-C stops it.")
        while stack.state() is not None:
            broken = stack.broken()
            if broken and stack.state() is None:
                break  # another command stopped it in this moment
            for service in broken:
                console.print(f"{service.name} ended unexpectedly, see {service.log}", markup=False)
            stack.repair(Progress(console))
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        pass
    finally:
        with Progress(console) as progress:
            stack.down(progress)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP do what Ctrl-C does, once: a second signal can't cut short the stopping.

    A handler is set even for an ignored SIGINT (a shell's background job), since children inherit the ignoring.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_state(state: StackState, *, as_json: bool) -> None:
    fields = ("name", "pid", "address", "log")
    if as_json:
        services = [service.model_dump(mode="json", include=set(fields)) for service in state.services]
        print_json({"home": str(state.home), "ui": state.ui, "services": services})
        return
    table = Table(*fields, box=None)
    for service in state.services:
        table.add_row(*(str(getattr(service, field)) for field in fields))
    print_table(table)
    out().print(f"Dagster UI: [bold]{state.ui}[/]")
