"""The code identity that is prefetched while Prefect creates the run: each run records the code at its own start."""

from __future__ import annotations

import importlib
import subprocess
import time
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import CreatedBy, FlowRun

from homes import Bundles
from prefect_executions import method
from prefect_executions.capture.host import this_user
from prefect_executions.executions.record import Agent
from prefect_executions.flow.opening import agent
from prefect_executions.prefect_api import flow_runs
from prefect_executions.settings import Settings

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


def a_run(**members) -> FlowRun:
    return FlowRun(id=uuid4(), flow_id=uuid4(), name="a-run", **members)


SCHEDULE = CreatedBy(id=UUID(int=7), type="SCHEDULE", display_value="nightly")


@pytest.mark.parametrize(
    ("run", "source", "name", "claims"),
    [
        (a_run(), "system", this_user(), {"sub": this_user()}),
        (a_run(deployment_id=uuid4()), "prefect", None, {}),
        (
            a_run(deployment_id=uuid4(), created_by=SCHEDULE),
            "prefect",
            "nightly",
            {"sub": "nightly", "type": "SCHEDULE", "id": str(UUID(int=7)), "name": "nightly"},
        ),
        (a_run(deployment_id=uuid4(), created_by=CreatedBy(type="USER")), "prefect", None, {"type": "USER"}),
        (
            a_run(deployment_id=uuid4(), labels={flow_runs.REQUESTER_LABEL: "ada"}),
            "prefect",
            "ada",
            {"sub": "ada"},
        ),
    ],
)
def test_the_requester_is_whom_prefect_knows_and_not_the_account_of_a_worker(run, source, name, claims):
    requester = agent(run, Settings())
    assert (requester.source, requester.name, dict(requester.claims)) == (source, name, claims)


def test_a_setting_names_the_requester_of_every_run():
    assert agent(a_run(deployment_id=uuid4()), Settings(agent="Ada")).name == "Ada"


def test_a_method_that_another_calls_has_the_requester_of_its_caller(home, monkeypatch):
    @method(version="1")
    def inner() -> None: ...

    @method(version="1")
    def outer() -> None:
        inner()

    # Only Prefect's commercial server knows who asked for a run, and only for the outer run.
    known = [Agent(source="prefect", claims={"sub": "Ada"})]
    monkeypatch.setattr(flow_runs, "requester", lambda run: known.pop() if known else None)
    outer()
    records = [Bundles(home).record(folder) for folder in Bundles(home).folders()]
    assert {record.method.id: record.agent.name for record in records} == {"outer": "Ada", "inner": "Ada"}


def test_a_file_changed_between_two_runs_is_recorded_by_the_second(project, changed):
    project.quiet()
    assert changed("quiet") == ()
    project.DATA.write_text("other")
    project.quiet()
    assert changed("quiet") == ("data.txt",)


@pytest.mark.long
def test_a_file_that_a_method_changes_is_recorded_by_the_method_that_it_calls(project, changed):
    project.quiet()
    project.changes()
    assert changed("changes") == ()
    assert changed("quiet") == ("data.txt",)


@pytest.mark.long
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
