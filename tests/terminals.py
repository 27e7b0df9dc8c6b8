"""The command line on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("executions"))


def on_a_terminal(arguments: Sequence[str], home: Path, *, columns: int = 100) -> str:
    """Return what the command shows on a pseudo-terminal of *columns* columns; it must exit with 0."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"EXECUTIONS_HOME": str(home), "COLUMNS": str(columns), "TERM": "xterm"}
    with subprocess.Popen([COMMAND, *arguments], env=environment, stdout=theirs, stderr=theirs, close_fds=True) as made:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # Linux: the other end is closed
            while block := os.read(ours, 65536):
                shown += block
        assert made.wait(60) == 0
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")
