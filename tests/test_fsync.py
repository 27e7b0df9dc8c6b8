"""fsync of many files at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prefect_executions.fsync import sync

AT_THE_END = """
import atexit, sys
from prefect_executions.fsync import sync

def late():
    sync(sys.argv[1:])
    print("synced")

atexit.register(late)
sync(sys.argv[1:])
"""


def test_many_files_and_folders_are_synced_together(tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(200)]
    for file in files:
        file.write_text("some words")

    sync([*files, tmp_path])
    sync([])


def test_a_path_that_cannot_be_synced_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "exists").touch()
    for names in (["missing"], ["exists", "missing"], ["exists"] * 5 + ["missing"]):
        with pytest.raises(FileNotFoundError, match="missing"):
            sync(tmp_path / name for name in names)


def test_sync_works_while_the_interpreter_shuts_down(tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(9)]
    for file in files:
        file.touch()
    done = subprocess.run([sys.executable, "-c", AT_THE_END, *files], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "synced\n", "")
