"""The tutorial is true: its blocks run in their order, and print what the page shows."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
ID = re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")
VARYING = re.compile(r"\b[0-9a-f]{8,12}\b|\d+(?:\.\d+)?(?:e-\d+)?")


class Command(NamedTuple):
    """A command of the page, and the lines of its output that the page shows."""

    text: str
    shown: list[str]


def commands() -> Iterator[Command]:
    for kind, block in FENCE.findall(PAGE):
        if kind == "console":
            for text in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, *shown = text.splitlines()
                yield Command(command, shown)


def normal(line: str) -> str:
    """Return a line without what differs from run to run: ids, digests, times, sizes, the width of columns."""
    return " ".join(VARYING.sub("*", ID.sub("*", line)).split())


def in_terminal(command: str, folder: Path) -> str:
    """Run a command of Bash in a terminal of 80 columns and return what it printed."""
    primary, secondary = pty.openpty()
    environment = os.environ | {"HOME": str(folder), "COLUMNS": "80", "TERM": "xterm"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    del environment["EXECUTIONS_HOME"]
    with subprocess.Popen(
        ["bash", "-c", command], stdin=secondary, stdout=secondary, stderr=secondary, cwd=folder, env=environment
    ):
        os.close(secondary)
        parts = []
        while part := _read(primary):
            parts.append(part)
    os.close(primary)
    return CONTROL.sub("", b"".join(parts).decode())


def _read(primary: int) -> bytes:
    try:
        return os.read(primary, 1 << 16)
    except OSError:  # Linux: the last program has closed the terminal
        return b""


def test_the_first_block_is_the_installation_of_the_readme():
    installation, activation, *_ = commands()
    assert (ROOT / "README.md").read_text(encoding="utf-8").count(f"$ {installation.text} && ") == 1
    assert activation.text == "source .venv/bin/activate"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_command_of_the_tutorial_prints_what_the_page_shows(tmp_path, home, prefect_server):
    (method,) = (block for kind, block in FENCE.findall(PAGE) if kind == "python")
    (tmp_path / "pi.py").write_text(method, encoding="utf-8")
    ids: dict[str, str] = {}
    for command in [*commands()][2:]:
        text = re.sub(r"\b[0-9a-f]{8}\b", lambda prefix: ids[prefix[0]][:8], command.text)
        printed = in_terminal(text, tmp_path)
        if text.startswith("executions run"):
            documented, actual = ID.search(command.shown[0]), ID.search(printed)
            assert documented, command
            assert actual, printed
            ids[documented[0][:8]] = actual[0]
        lines = iter(map(normal, printed.splitlines()))
        missing = [line for line in command.shown if normal(line) not in lines]
        assert missing == [], f"$ {text}\n{printed}"
