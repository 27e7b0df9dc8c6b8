"""The code identity that is prefetched while Prefect creates the run: each run records the code at its own start."""

from __future__ import annotations

import importlib
import subprocess
import time
from pathlib import Path

import pytest

from homes import Bundles

pytestmark = pytest.mark.usefixtures("prefect_server")

METHODS = """\
from pathlib import Path

from prefect_executions import method

DATA = Path(__file__).with_name("data.txt")


@method(version="1.0.0")
def quiet() -> str:
    return DATA.read_text()


@method(version="1.0.0")
async def waits() -> str:
    return DATA.read_text()


@method(version="1.0.0")
def changes() -> str:
    DATA.write_text("changed")
    return quiet()
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with three Methods and a file that they read, all committed and loaded."""
    name = f"methods_of_{tmp_path.name}".replace("-", "_")
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / f"{name}.py").write_text(METHODS)
    (folder / "data.txt").write_text("data")
    (folder / ".gitignore").write_text("__pycache__/\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        git = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-C", str(folder)]
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.syspath_prepend(str(folder))
    time.sleep(0.08)  # what was written lies long enough back to be trusted
    return importlib.import_module(name)


@pytest.fixture
def changed(home: Path):
    """Return a function: the changed tracked files in the newest record of a Method."""
    bundles = Bundles(home)

    def changed_files(method_id: str) -> tuple[str, ...]:
        records = [record for record in map(bundles.record, bundles.folders()) if record.method.id == method_id]
        return max(records, key=lambda record: record.started).method.code.repository.changed

    return changed_files


def test_a_file_changed_between_two_runs_is_recorded_by_the_second(project, changed):
    project.quiet()
    assert changed("quiet") == ()
    project.DATA.write_text("other")
    project.quiet()
    assert changed("quiet") == ("data.txt",)


def test_a_file_that_a_method_changes_is_recorded_by_the_method_that_it_calls(project, changed):
    project.quiet()
    project.changes()
    assert changed("changes") == ()
    assert changed("quiet") == ("data.txt",)


async def test_a_file_changed_before_an_async_run_is_recorded(project, changed):
    await project.waits()
    assert changed("waits") == ()
    project.DATA.write_text("other")
    await project.waits()
    assert changed("waits") == ("data.txt",)


def test_a_refused_dirty_tree_fails_the_run(project, monkeypatch):
    monkeypatch.setenv("EXECUTIONS_DIRTY", "refuse")
    project.DATA.write_text("other")
    with pytest.raises(Exception, match=r"data\.txt"):
        project.quiet()
