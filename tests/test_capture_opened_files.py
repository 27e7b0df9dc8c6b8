"""The interpreter's audit hook notes which files a process reads, and never disturbs it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import prefect_executions


def opened(code: str, folder) -> list[str]:
    """Run *code* in a new interpreter after `watch`, and return the noted files below *folder*, relative to it."""
    program = (
        "import json, sys\n"
        "from prefect_executions.capture.opened_files import ignore, opened_files, watch\n"
        "watch()\nwatch()\n" + textwrap.dedent(code) + "\n"
        "print(json.dumps([path[len(sys.argv[1]) + 1:] for path in opened_files() if path.startswith(sys.argv[1])]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], cwd=folder, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_files_are_noted_once_by_whatever_means_python_opens_them(tmp_path):
    for name in ("a.txt", "b.txt", "c.json", "d.txt"):
        (tmp_path / name).write_text("1")
    (tmp_path / "module.py").write_text("")
    code = """
        import os, pathlib
        open("a.txt").close(); open(b"a.txt").close(); pathlib.Path("b.txt").read_text()
        os.close(os.open("d.txt", os.O_RDONLY)); json.load(open("c.json"))
        exec(open("module.py").read()); os.fdopen(os.open("a.txt", os.O_RDONLY)).close()
        """
    assert opened(code, tmp_path) == ["a.txt", "b.txt", "d.txt", "c.json", "module.py"]


def test_files_that_are_opened_for_writing_and_ignored_folders_are_left_out(tmp_path):
    (tmp_path / "own").mkdir()
    for name in ("own/x", "log", "both"):
        (tmp_path / name).write_text("")
    code = """
        open("new", "w").close(); open("log", "a").close(); open("both", "r+").close()
        open("own/x").close(); ignore(sys.argv[1] + "/own")
        """
    assert opened(code, tmp_path) == []


def test_files_of_this_package_are_left_out():
    folder = Path(prefect_executions.__file__).parent
    code = """
        import prefect_executions.ledger.sqlite
        open(sys.argv[1] + "/py.typed").close()
        """
    assert opened(code, folder) == []


def test_a_missing_file_or_a_wrong_argument_fails_as_always(tmp_path):
    code = """
        for wrong in ("missing", 3.5, None, "nul\\0"):
            try:
                open(wrong)
            except (OSError, TypeError, ValueError) as error:
                pass
            else:
                raise SystemExit("it was opened")
        """
    assert opened(code, tmp_path) == ["missing"]


@pytest.mark.parametrize("cache", ["", "cache"])
def test_bytecode_stands_for_its_source(cache, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path / cache) if cache else "")
    (tmp_path / "late.py").write_text("X = 1")
    subprocess.run([sys.executable, "-c", "import late"], cwd=tmp_path, check=True)
    assert opened("sys.path.insert(0, sys.argv[1])\nimport late", tmp_path) == ["late.py"]


@pytest.mark.long
def test_after_very_many_files_only_those_below_a_project_are_noted_and_too_many_of_them_are_reported(tmp_path):
    (tmp_path / "project").mkdir()
    code = """
        from prefect_executions.capture import opened_files as module
        project = sys.argv[1] + "/project"
        module.keep_noting(project)
        def read(folder, count):
            for number in range(count):
                try:
                    open(f"{folder}/{number}.txt").close()
                except OSError:
                    pass
        read(sys.argv[1] + "/elsewhere", module.MOST_NOTED + 5)
        assert not module.has_unnoted(project)
        read(project, module.MOST_NOTED)
        assert not module.has_unnoted(project)
        read(sys.argv[1] + "/elsewhere", module.MOST_NOTED + 50)
        assert not module.has_unnoted(project)
        read(project, module.MOST_NOTED + 1)
        assert module.has_unnoted(project)
        """
    names = opened(code, tmp_path)
    assert len(names) == 20_000
    assert sum(name.startswith("project/") for name in names) == 10_000
