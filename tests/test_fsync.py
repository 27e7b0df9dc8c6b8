"""Files are brought to the disk together, whatever the moment and whoever fails."""

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


def test_one_that_cannot_be_synced_is_told(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    for places in (["gone"], ["there", "gone"], ["there"] * 5 + ["gone"]):
        with pytest.raises(FileNotFoundError, match="gone"):
            sync(tmp_path / place for place in places)


def test_it_works_when_the_interpreter_is_ending(tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(9)]
    for file in files:
        file.touch()
    done = subprocess.run([sys.executable, "-c", AT_THE_END, *files], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "synced\n", "")
