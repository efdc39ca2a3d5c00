"""What a parser process can't do, tried from within one."""

import importlib.util
import os
import re
import shutil
import socket
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


NATIVE = """
import ctypes, errno, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
known = libc.syscall(444, None, ctypes.c_size_t(0), 1) > 0
from fltr_pipeline.text.parse.confinement import confine
confine(1024)
def told(result):
    print("done" if result >= 0 else errno.errorcode[ctypes.get_errno()], flush=True)
print(known)
told(libc.open(os.__file__.encode(), os.O_RDONLY))
told(libc.open({secret!r}.encode(), os.O_RDONLY))
told(libc.open({new!r}.encode(), os.O_WRONLY | os.O_CREAT, 0o600))
told(libc.unlink({secret!r}.encode()))
address = struct.pack("=H2s4s8x", 2, struct.pack(">H", {port}), bytes([127, 0, 0, 1]))
told(libc.connect(libc.socket(2, 1, 0), address, len(address)))
told(libc.execv(b"/bin/true", (ctypes.c_char_p * 2)(b"true", None)))
"""


def test_neither_can_native_code_where_the_kernel_knows_landlock(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = NATIVE.format(secret=str(secret), new=str(tmp_path / "new"), port=server.getsockname()[1])
        ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    known, program, *rest = ended.stdout.split()
    assert program == "done", "its own modules stay readable"
    assert rest == (["EACCES"] * 5 if known == "True" else ["done"] * 4)


def test_packages_that_are_links_to_files_elsewhere_are_read_all_the_same(tmp_path: Path) -> None:
    package = importlib.util.find_spec("pypdfium2")
    assert package is not None
    assert package.origin is not None
    (tmp_path / "site").mkdir()
    shutil.copytree(Path(package.origin).parent, tmp_path / "cache")
    (tmp_path / "site/pypdfium2").symlink_to(tmp_path / "cache")
    confined = "from fltr_pipeline.text.parse.confinement import confine; confine(2048)"
    code = f"{confined}; import pypdfium2; print(pypdfium2.__file__)"
    paths = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert ended.stdout.strip() == str(tmp_path / "site/pypdfium2/__init__.py")
