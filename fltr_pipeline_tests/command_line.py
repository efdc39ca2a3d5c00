"""Running `fltr-pipeline`: as its entry point does, in this process or in its own.

Belongs here: what a test sees of a command. Does not: what any command should say.
"""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from fltr_pipeline.cli import main


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    @property
    def document(self) -> Any:
        """What a program reads: all of stdout is one JSON document."""
        assert self.exit_code == 0, self.output
        return json.loads(self.stdout)

    @property
    def words(self) -> str:
        """All that was said, however it was wrapped."""
        return " ".join(self.output.split())


def fltr_pipeline(*arguments: object) -> Outcome:
    """The command in this process, with its environment."""
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    with (
        patch.object(sys, "argv", ["fltr-pipeline", *map(str, arguments)]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    assert code is None or isinstance(code, int)
    return Outcome(code or 0, out.getvalue(), err.getvalue())


def fltr_pipeline_process(*arguments: object) -> Outcome:
    """The command as people run it."""
    program = "import sys; from fltr_pipeline.cli import main; sys.argv[0] = 'fltr-pipeline'; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
