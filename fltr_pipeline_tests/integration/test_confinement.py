"""What a parser process can't do, tried from within one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

REFUSED = re.compile("PermissionError: a parser may not|No usable temporary directory")
ATTEMPTS = {
    "read": "open('/etc/passwd').read()",
    "read by climbing": "import os; open(os.path.dirname(os.__file__) + '/..' * 20 + '/etc/passwd')",
    "write": "open({folder!r} + '/file', 'w')",
    "write beside the program": "import os; open(os.__file__ + '.new', 'w')",
    "make a folder": "import os; os.mkdir({folder!r} + '/folder')",
    "temporary file": "import tempfile; tempfile.NamedTemporaryFile()",
    "connect": "import socket; socket.create_connection(('127.0.0.1', 9))",
    "look up a name": "import socket; socket.getaddrinfo('localhost', 80)",
    "start a process": "import subprocess; subprocess.run(['true'])",
    "shell": "import os; os.system('true')",
    "fork": "import os; os.fork()",
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_parser_can_not(attempt: str, tmp_path: Path) -> None:
    code = "from fltr_pipeline.text.parse.confinement import confine; confine(1024)\n" + ATTEMPTS[attempt].format(
        folder=str(tmp_path)
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.returncode == 1
    assert REFUSED.search(ended.stderr)
    assert list(tmp_path.iterdir()) == []
