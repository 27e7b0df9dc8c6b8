"""Executions with retries, pauses, suspensions, child runs or steps: one record has all of it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow, get_run_logger, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.states import AwaitingRetry, Crashed, Failed, Pending
from pydantic import SecretStr

from homes import WHOLE_WAY, Bundles, kinds
from journeys import waited
from prefect_executions import InputFile, MethodFlow, background, current_execution, method
from prefect_executions.cli.app import main
from prefect_executions.executions.record import ExecutionRecord, Relative
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.lifecycle.history import EntryKind
from prefect_executions.lifecycle.status import Observer, Reason, Status
from prefect_executions.prefect_api import events as prefect_events

pytestmark = pytest.mark.usefixtures("prefect_server")

TESTS = Path(__file__).parent
PLANTED = "-".join(["plAnted", "s3cret", "a71f0c"])  # noqa: FLY002 - the record keeps this file, too


@pytest.fixture
def bundles(home: Path) -> Bundles:
    return Bundles(home)


# --- retries -------------------------------------------------------------------


def test_retries_are_attempts_of_one_execution_each_with_its_times_and_its_error(bundles, monkeypatch):
    @method(version="1")
    @flow(retries=2)
    def flaky(token: SecretStr) -> str:
        attempt = current_execution().metadata.attempt
        print(f"words of {attempt}", end="")
        if attempt == 1:
            raise ValueError(f"cannot open with {token.get_secret_value()}")
        if attempt == 2:
            raise TimeoutError("too late")
        return "done"

    monkeypatch.setenv("THE_TOKEN", PLANTED)
    assert flaky("env:THE_TOKEN") == "done"
    record = bundles.record()
    first, begun, second, last = (entry for entry in record.job_status.history if entry.kind.startswith("attempt"))

    assert kinds(record) == [*WHOLE_WAY, "attempt-failed", "attempt", "attempt-failed", "attempt", "COMPLETED"]
    assert [entry.attempt for entry in (first, begun, second, last)] == [1, 2, 2, 3]
    assert record.job_status.attempt == 3
    assert first.time < begun.time < second.time < last.time
    assert (first.observer, first.reason, first.message) == (
        Observer.HOOK,
        Reason.ERROR,
        "ValueError: cannot open with ********",
    )
    assert (second.reason, second.message) == (Reason.TIMED_OUT, "TimeoutError: too late")
    assert first.prefect_state.name == second.prefect_state.name == "AwaitingRetry"
    assert begun.prefect_state.type == last.prefect_state.type == "RUNNING"

    stdout, stderr = ((bundles.one() / "outputs" / f"{name}.log").read_text() for name in ("stdout", "stderr"))
    lines = stdout.splitlines()
    assert lines[0::2] == ["words of 1", "words of 2", "words of 3"]
    assert [line.partition(",")[0] for line in lines[1::2]] == ["--- attempt 2", "--- attempt 3"]
    assert "raise ValueError" in stderr.partition("--- attempt 2")[0]
    assert "raise TimeoutError" in stderr.partition("--- attempt 2")[2].partition("--- attempt 3")[0]
    assert PLANTED not in stdout + stderr + record.job_status.to_json().decode()

    assert record.instance.usage.exception is None
    assert record.instance.usage.exit_code == 0
    assert bundles.failed_checks() == []


@pytest.mark.long
def test_a_returned_failed_state_is_an_attempt_if_prefect_retries_it(bundles):
    @method(version="1")
    @flow(retries=1)
    def says() -> Any:
        attempt = current_execution().metadata.attempt
        current_execution().output(f"{attempt}.txt").write_text("done")
        return Failed(message="no") if attempt == 1 else 1

    state = says(return_state=True)

    if version("prefect").startswith("3.8."):  # the run waits for ever in this state
        assert state.name == "AwaitingRetry"
        return
    background.drain()
    record = bundles.record()
    assert kinds(record) == [*WHOLE_WAY, "attempt-failed", "attempt", "COMPLETED"]
    (failed,) = (entry for entry in record.job_status.history if entry.kind == EntryKind.ATTEMPT_FAILED)
    assert (failed.attempt, failed.message) == (1, "no")
    assert {file.path for file in record.job_status.outputs} > {"outputs/1.txt", "outputs/2.txt"}
    assert bundles.failed_checks() == []


# --- pauses --------------------------------------------------------------------


def interruptions(record: ExecutionRecord) -> list[tuple[str, str | None]]:
    """Return pauses, resumptions and progress of a history."""
    return [
        (entry.kind.value, entry.message)
        for entry in record.job_status.history
        if entry.kind in {EntryKind.PAUSED, EntryKind.RESUMED, EntryKind.PROGRESS}
    ]


@pytest.mark.long
def test_a_pause_in_the_process_is_in_the_history_at_its_time(bundles):
    @method(version="1")
    def pauses() -> None:
        execution = current_execution()
        execution.progress(10, "before")
        flow_run_id = FlowRunContext.get().flow_run.id
        threading.Thread(target=resume_soon, args=(flow_run_id,), daemon=True).start()
        pause_flow_run(timeout=60, poll_interval=1)
        execution.note("after")

    pauses()
    record = bundles.record()

    assert kinds(record) == [*WHOLE_WAY, "progress", "paused", "resumed", "note", "COMPLETED"]
    assert interruptions(record) == [("progress", "before"), ("paused", "Paused"), ("resumed", None)]
    times = [entry.time for entry in record.job_status.history]
    assert times == sorted(times)
    assert bundles.failed_checks() == []


def resume_soon(flow_run_id: UUID) -> None:
    with get_client(sync_client=True) as client:
        for _ in range(600):
            state = client.read_flow_run(flow_run_id).state
            if state is not None and state.is_paused():
                client.resume_flow_run(flow_run_id)
                return
            time.sleep(0.1)


@method(version="1")
def sleeps() -> str:
    """Do a part, be suspended, do the next part; the function starts from the top each time."""
    execution = current_execution()
    for part in ("one", "two"):
        here = execution.output(f"{part}.txt")
        if not here.exists():
            print(f"doing {part}")
            here.write_text(f"{part} by {os.environ['EXECUTIONS_HOME']}")
        suspend_flow_run(key=part)
    return "done"


def deployed(flow: MethodFlow[Any, Any]) -> FlowRun:
    """Make a flow run of a deployment: Prefect suspends no other runs."""
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(flow)
        deployment = client.create_deployment(flow_id, name=f"test-{uuid4()}", enforce_parameter_schema=False)
        return client.create_flow_run_from_deployment(deployment)


def go_on(flow: MethodFlow[Any, Any], run: FlowRun) -> State[Any] | None:
    """Run *flow* as a worker's process does, and return its last state."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Pending())
        run = client.read_flow_run(run.id)
        with suppress(Pause):
            run_flow(flow, flow_run=run, return_type="state")
        return client.read_flow_run(run.id).state


def resume(run: FlowRun) -> None:
    with get_client(sync_client=True) as client:
        client.resume_flow_run(run.id)


OTHER_PROCESS = """
import sys
from uuid import UUID
import test_flow_attempts
from prefect.client.orchestration import get_client

with get_client(sync_client=True) as client:
    state = test_flow_attempts.go_on(test_flow_attempts.sleeps, client.read_flow_run(UUID(sys.argv[1])))
print(state.name)
"""


@pytest.mark.long
def test_a_suspended_run_continues_its_bundle_here_and_on_another_machine(bundles, home, tmp_path, monkeypatch):
    archive = tmp_path / "archive"
    monkeypatch.setenv("EXECUTIONS_ARCHIVE", str(archive))
    run = deployed(sleeps)
    assert go_on(sleeps, run).name == "Suspended"
    kept = archive / "executions" / str(run.id) / "suspended.zip"
    assert kept.exists()

    resume(run)
    there = tmp_path / "there"
    told_there = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, str(run.id)],
        env=os.environ | {"EXECUTIONS_HOME": str(there), "PYTHONPATH": os.pathsep.join([*sys.path, str(TESTS)])},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert told_there.stdout.splitlines()[-1] == "Suspended"

    resume(run)  # here lies an older bundle of it
    assert go_on(sleeps, run).name == "Completed"
    record = bundles.record()
    outputs = bundles.one() / "outputs"

    assert interruptions(record) == [("paused", "Suspended"), ("resumed", None)] * 2
    assert record.status is Status.COMPLETED
    assert (outputs / "one.txt").read_text() == f"one by {home}"
    assert (outputs / "two.txt").read_text() == f"two by {there}"
    lines = (outputs / "stdout.log").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["doing one", "--- resumed", "doing two", "--- resumed"]
    notes = [entry.message for entry in record.job_status.history if entry.kind is EntryKind.NOTE]
    assert [note.startswith("continues in process") for note in notes] == [True, True]
    assert record.instance.pid == os.getpid()
    assert record.instance.usage.cpu_seconds > 0
    assert not kept.exists()
    assert bundles.failed_checks() == []
    assert bundles.open_scratch() == []


@pytest.mark.long
def test_a_run_suspended_within_half_a_second_is_listed_as_suspended_and_sends_its_event(home):
    run = deployed(sleeps)
    assert go_on(sleeps, run).name == "Suspended"
    ledger = Ledger.open(f"sqlite:///{home / 'ledger.db'}")
    listed = ledger.dump()
    assert "'paused'" in repr(listed)
    time.sleep(0.7)  # what a run does half a second after its code began would be done by now
    assert ledger.dump() == listed
    waited(lambda: prefect_events.has_events(str(run.id)), f"events of {run.id}")  # Prefect stores them later


@method(version="1")
def vanishes() -> None:
    """Write an output and die; a restart on another machine does not find the output and ends."""
    if current_execution().metadata.attempt == 1:
        current_execution().output("half.txt").write_text("half")
        suspend_flow_run()


@pytest.mark.long
def test_a_run_restarted_on_another_machine_keeps_its_history_and_notes_that_its_outputs_are_missing(
    bundles, tmp_path, monkeypatch
):
    archive, there = tmp_path / "archive", tmp_path / "there"
    monkeypatch.setenv("EXECUTIONS_ARCHIVE", str(archive))
    run = deployed(vanishes)
    go_on(vanishes, run)
    before = bundles.record()
    (archive / "executions" / str(run.id) / "suspended.zip").unlink()

    monkeypatch.setenv("EXECUTIONS_HOME", str(there))
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, AwaitingRetry(), force=True)
    assert go_on(vanishes, run).name == "Completed"
    record = Bundles(there).record()
    begun, note = record.job_status.history[-3:-1]

    assert record.status is Status.COMPLETED
    assert record.job_status.history[:4] == before.job_status.history[:4]
    assert record.job_status.history[3].status is Status.EXECUTING
    assert (begun.kind, begun.attempt, note.kind) == (EntryKind.ATTEMPT, 2, EntryKind.NOTE)
    here = f"process {os.getpid()} of {record.instance.hostname}"
    assert (
        note.message
        == f"continues in {here}; it ran in {here} before, and the outputs of that process are missing here"
    )
    assert sorted(path.name for path in (Bundles(there).one() / "outputs").iterdir()) == ["stderr.log", "stdout.log"]
    assert Bundles(there).failed_checks() == []


# --- a Method that calls Methods ----------------------------------------------


@method(version="1")
def counts(table: InputFile) -> int:
    return len(table.read_text())


@method(version="1")
def calls(deployment: str) -> str:
    table = current_execution().output("table.csv")
    table.write_text("1,2,3")
    counts(str(table))
    return str(run_deployment(deployment, parameters={"table": str(table)}, timeout=0).id)


@flow
def plain(deployment: str) -> UUID:
    return run_deployment(deployment, timeout=0).id


def test_parent_and_child_record_their_relation_and_the_data_between_them(bundles, home, capsys):
    with get_client(sync_client=True) as client:
        name = f"test-{uuid4()}"
        client.create_deployment(client.create_flow(counts), name=name, enforce_parameter_schema=False)
        sent = UUID(calls(f"counts/{name}"))
        go_on(counts, client.read_flow_run(sent))
    (parent,) = (one for one in bundles.folders() if bundles.record(one).method.id == "calls")
    called, submitted = sorted(
        (one.name for one in bundles.folders() if one != parent), key=lambda one: one == str(sent)
    )
    capsys.readouterr()
    assert main(["show", parent.name, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert main(["show", submitted]) == 0
    child = capsys.readouterr().out.splitlines()

    for one in (called, submitted):
        assert bundles.record(home / "workbench" / one).request.relatives == (
            Relative(execution_id=parent.name, relation="parent"),
        )
    assert {(one["id"], one["relation"]) for one in shown["namedBy"]} == {(called, "parent"), (submitted, "parent")}
    assert [(one["id"], one["output"], one["input"]) for one in shown["usedBy"]] == [
        (called, "outputs/table.csv", "table"),
        (submitted, "outputs/table.csv", "table"),
    ]
    assert shown["madeFrom"] == []
    assert f"parent\t{parent.name}" in child
    assert f"made from\t{parent.name}\toutputs/table.csv\ttable" in child
    assert bundles.failed_checks() == []


@pytest.mark.long
def test_a_caller_without_a_record_is_not_a_parent(bundles):
    with get_client(sync_client=True) as client:
        name = f"test-{uuid4()}"
        client.create_deployment(client.create_flow(sleepless), name=name, enforce_parameter_schema=False)
        run = client.read_flow_run(plain(f"sleepless/{name}"))
        assert run.parent_task_run_id is not None
        go_on(sleepless, run)

    assert bundles.record().request.relatives == ()


@method(version="1")
def sleepless() -> None: ...


# --- steps -----------------------------------------------------------------------


@task
def nothing() -> None: ...


@task(task_run_name="opens-{key}")
def opens(key: str) -> str:
    return key[:1]


@task
def fails() -> None:
    raise LookupError("no such star")


@flow
def within() -> None:
    nothing()


@method(version="1")
def stepped(key: SecretStr) -> None:
    nothing()
    nothing.submit().wait()
    opens(key.get_secret_value())
    with suppress(LookupError):
        fails()
    within()


def test_the_task_runs_of_the_flow_are_steps_of_the_record(bundles, monkeypatch, capsys):
    monkeypatch.setenv("THE_KEY", PLANTED)
    stepped("env:THE_KEY")
    record = bundles.record()
    steps = record.job_status.steps
    provenance = (bundles.one() / "metadata" / "provo.xml").read_text()
    crate = (bundles.one() / "ro-crate-metadata.json").read_text()

    names = [step.name.rpartition("-")[0] for step in steps]
    assert names == ["nothing", "nothing", "opens", "fails", "within"]
    assert [step.state for step in steps] == ["COMPLETED", "COMPLETED", "COMPLETED", "FAILED", "COMPLETED"]
    for before, after in pairwise(steps):
        assert before.started <= before.finished <= after.finished
    assert [step.flow_run_id is not None for step in steps] == [False, False, False, False, True]
    for step in steps:
        assert f"here:step.{step.id}" in provenance
        assert f"#step.{step.id}" in crate
    log = (bundles.one() / "outputs" / "stderr.log").read_text()
    assert "| Task run 'opens-" in log
    assert PLANTED not in provenance + crate + record.job_status.to_json().decode() + log
    assert [entry.kind for entry in record.job_status.history if entry.kind is EntryKind.NOTE] == []
    assert bundles.failed_checks() == []

    assert main(["show", record.id]) == 0
    assert f"step\t{steps[3].name}\tFAILED" in capsys.readouterr().out


def test_a_retried_task_is_a_step_with_its_attempts_and_names_itself_in_the_log(bundles, capsys):
    failures = iter([LookupError("first"), LookupError("second")])

    @task(retries=2, task_run_name="moody")
    def moody() -> None:
        get_run_logger().warning("trying")
        for error in failures:
            raise error

    @method(version="1")
    def patient() -> None:
        get_run_logger().info("beginning")
        moody()
        nothing()

    patient()
    record = bundles.record()
    assert [step.attempts for step in record.job_status.steps] == [3, None]
    log = (bundles.one() / "outputs" / "stderr.log").read_text()
    lines = [line.split(" | ", 1)[1] for line in log.splitlines() if "trying" in line or "beginning" in line]
    assert lines == ["INFO    | beginning", *["WARNING | Task run 'moody' - trying"] * 3]
    assert main(["show", record.id]) == 0
    steps = [line.split("\t") for line in capsys.readouterr().out.splitlines() if line.startswith("step\t")]
    assert [(cells[1].partition("-")[0], cells[-1]) for cells in steps] == [("moody", "3"), ("nothing", "")]
    assert bundles.failed_checks() == []


@pytest.mark.long
def test_a_method_that_only_runs_tasks_without_a_result_has_steps_and_one_without_tasks_has_none(bundles):
    @method(version="1")
    async def quiet(*, tasks: int) -> None:
        for _ in range(tasks):
            nothing()

    asyncio.run(quiet(tasks=1))
    (step,) = bundles.record().job_status.steps
    assert step.state == "COMPLETED"
    asyncio.run(quiet(tasks=0))
    assert sorted(len(bundles.record(one).job_status.steps or ()) for one in bundles.folders()) == [0, 1]
    assert bundles.failed_checks() == []


@method(version="1")
def begins() -> None:
    nothing()
    suspend_flow_run()


def test_the_hook_records_the_steps_of_a_dead_process(bundles):
    run = deployed(begins)
    go_on(begins, run)
    assert bundles.record().job_status.steps is None
    of_the_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    with get_client(sync_client=True) as client:
        waited(lambda: [one for one in client.read_task_runs(flow_run_filter=of_the_run) if one.end_time], "the task")
        client.set_flow_run_state(run.id, Crashed(message="Process exited with status code: -9."), force=True)
        run = client.read_flow_run(run.id)
    begins.on_crashed_hooks[0](flow=begins, flow_run=run, state=run.state)
    record = bundles.record()

    assert kinds(record) == [*WHOLE_WAY, "paused", "FAILED"]
    assert [step.state for step in record.job_status.steps] == ["COMPLETED"]
    assert bundles.failed_checks() == []
