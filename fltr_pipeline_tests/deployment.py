"""`docker-compose.yml` as Docker Compose reads it, for the tests.

Belongs here: reading it, with variables filled in. Does not: what must be true of it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]

_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^${}]*))?\}")


def compose(variables: Mapping[str, str]) -> dict[str, Any]:
    """The file with `${NAME}`, `${NAME:-default}` and `${NAME:?}` filled in.

    Raises:
        KeyError: a variable without default is missing.
    """
    text = (ROOT / "docker-compose.yml").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    loaded: dict[str, Any] = yaml.safe_load(_filled("\n".join(lines), variables))
    return loaded


def environment(service: Mapping[str, Any]) -> dict[str, str]:
    """A service's variables; those that are merely passed through are not set here."""
    return {name: str(value) for name, value in service["environment"].items() if value is not None}


def operations_blocks(language: str) -> list[str]:
    """The fenced blocks of a language in `docs/operations.md`."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs/operations.md").read_text(), re.M | re.S)


def _filled(text: str, variables: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        name, kind, default = match.groups()
        return variables.get(name) or (default if kind == "-" else variables[name])

    while (after := _VARIABLE.sub(value, text)) != text:  # the innermost first
        text = after
    return text


def required_variables() -> set[str]:
    """The variables that must be given."""
    return set(re.findall(r"\$\{(\w+):\?\}", (ROOT / "docker-compose.yml").read_text()))
