"""The scenario matrix: for each way in which Prefect lets a run go, the record that is left of it.

The numbers are those of the reference "How Prefect 3.8.8 really behaves",
section 1.3. One row may have several runs; each has a name that begins with
the row's number.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import NamedTuple

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.flow_runs import pause_flow_run
from prefect.states import Cancelled, Cancelling, Completed, Failed, Pending
from prefect.tasks import task_input_hash
from prefect.transactions import transaction
from pydantic import BaseModel, model_validator

from homes import WHOLE_WAY, kinds
from prefect_executions import current_execution, method
from prefect_executions.lifecycle.status import Observer, Reason, Status
from prefect_executions.operations.verify import verify_execution
from prefect_executions.workbench.catalog import Catalog
from scenarios import (
    ALONE,
    SERVED,
    WORKED,
    Stage,
    cannot_be_made,
    dies_when_it_is_sealed,
    goes_on,
    is_cancelled,
    is_cancelled_before_it_runs,
    is_evicted,
    is_held,
    is_left,
    is_put,
    is_retried_by_hand,
    is_suspended,
    runs,
    worker_and_run_are_killed,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]  # the first test waits for all that is brought about

ALL_ROWS = range(1, 39)
ELSEWHERE = {
    25: "a server that is away at the end takes the client 149 s: tests/test_settle_decide.py has what it leaves, "
    "a crash after the code had ended well",
    32: "needs Docker: comes with the containers",
    33: "needs Kubernetes: comes with the containers",
}
"""Rows that are not brought about here, and why."""

COMPLETED, FAILED, CANCELLED = Status.COMPLETED, Status.FAILED, Status.CANCELLED
NEVER_RAN = ["CREATED", "SCHEDULED"]
EXECUTED = ["CREATED", "STARTED", "EXECUTING"]  # nobody makes it PENDING
TIMED_OUT = "The flow run was cancelled: cancellation timed out"


# --- in this process -------------------------------------------------------------------


@method(version="1")
def plain(how: str = "returns") -> object:
    execution = current_execution()
    execution.output("half.txt").write_text("half")
    if how == "raises":
        raise LookupError("no such star")
    if how == "exits":
        raise SystemExit(3)
    if how == "is interrupted":
        raise KeyboardInterrupt
    if how == "is forced":
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(FlowRunContext.get().flow_run.id, Cancelled(message="by force"), force=True)
    return {"says failed": Failed(name="Refused", message="too dim"), "says completed": Completed(name="Seen")}.get(how)


class Limits(BaseModel):
    low: int
    high: int

    @model_validator(mode="after")
    def _ordered(self) -> Limits:
        if self.high <= self.low:
            raise ValueError("high must be above low")
        return self


@method(version="1")
def within(limits: Limits) -> int:
    return limits.high


@method(version="1")
@flow(timeout_seconds=0.2)
def slow() -> None:
    current_execution().output("half.txt").write_text("half")
    until = time.monotonic() + 60
    while time.monotonic() < until:
        time.sleep(0.01)


@method(version="1")
@flow(retries=2)
def flaky() -> int:
    attempt = current_execution().metadata.attempt
    current_execution().output(f"{attempt}.txt").write_text("tried")
    if attempt < 3:
        raise LookupError(f"not at {attempt}")
    return attempt


@method(version="1")
def pauses() -> None:
    flow_run_id = FlowRunContext.get().flow_run.id

    def resume() -> None:
        with get_client(sync_client=True) as client:
            for _ in range(600):
                if client.read_flow_run(flow_run_id).state_name == "Paused":
                    client.resume_flow_run(flow_run_id)
                    return
                time.sleep(0.1)

    threading.Thread(target=resume, daemon=True).start()
    pause_flow_run(timeout=120, poll_interval=1)


@method(version="1")
def inner() -> None:
    raise LookupError("inside")


@method(version="1")
def outer() -> None:
    inner()


@task(cache_key_fn=task_input_hash, persist_result=True)
def looks(star: str) -> str:
    return star


@method(version="1")
def caches() -> None:
    name = current_execution().id
    looks(name)
    assert looks(name, return_state=True).name == "Cached"


@task
def moves() -> None:
    current_execution().output("moved.txt").write_text("moved")


@moves.on_rollback
def _moves_back(_: object) -> None:
    current_execution().output("moved.txt").unlink()


@method(version="1")
def rolls_back() -> None:
    with transaction():
        moves()
        raise LookupError("the second step failed")


DIRECT: dict[str, Callable[[], object]] = {
    "1": plain,
    "2": lambda: plain("raises"),
    "3": lambda: within({"low": 5, "high": 1}),
    "5 failed": lambda: plain("says failed"),
    "5 completed": lambda: plain("says completed"),
    "6": slow,
    "7": flaky,
    "8 exits": lambda: plain("exits"),
    "8 interrupted": lambda: plain("is interrupted"),
    "24": lambda: plain("is forced"),
    "26": pauses,
    "36 parent": outer,
    "37": caches,
    "38": rolls_back,
}

# --- with workers ----------------------------------------------------------------------

TOGETHER = {
    "4": runs("4", SERVED, "waits", parameters={"nonsense": 1}),
    "9": runs("9", SERVED, "terminates itself"),
    "10": dies_when_it_is_sealed("10", SERVED),
    "11": runs("11", WORKED, "kills itself"),
    "12": runs("12", SERVED, "kills itself"),
    "13": worker_and_run_are_killed("13", "14"),
    "15": is_held("15", WORKED),
    "16": is_held("16", ALONE),
    "16 of many": is_held("16 of many", SERVED),
    "17": is_put("17", Cancelling()),
    "18": is_put("18", Pending(), Cancelling(), Cancelled(message=TIMED_OUT)),
    "19": is_cancelled_before_it_runs("19"),
    "20": is_cancelled("20", WORKED, "waits"),
    "21": is_cancelled("21", SERVED, "waits"),
    "22": is_cancelled("22", WORKED, "cleans up"),
    "23": runs("23", SERVED, "is terminated"),
    "27": is_suspended("27"),
    "28": is_retried_by_hand("28"),
    "29": is_evicted("29", again=False),
    "30": is_evicted("30", "reschedule", again=True),
    "31": is_evicted("31", "relinquish", again=True),
    "34": cannot_be_made("34"),
    "35": is_put("35", until="Late"),
}
AT_LAST = {
    "15": is_left("15", lambda stage: stage.worker),
    "16": goes_on("16", lambda stage: stage.alone),
    "16 of many": is_left("16 of many", lambda stage: stage.server),
}


@pytest.fixture(scope="module")
def stage(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Bring all rows about, as many at once as go together, and settle what is left."""
    stage = Stage(tmp_path_factory.mktemp("scenarios"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in os.environ:
                if name.startswith("EXECUTIONS_") and not name.startswith("EXECUTIONS_TEST_"):
                    patch.delenv(name)
            patch.setenv("EXECUTIONS_HOME", str(stage.home))
            for run, call in DIRECT.items():  # before the workers, whose start keeps two cores busy
                stage.call(run, call)
        stage.set_up()
        stage.play(TOGETHER)
        stage.play(AT_LAST)
        stage.settle("17", "18", "19", "34")
        yield stage
    finally:
        stage.tear_down()


class Row(NamedTuple):
    """The record that a run leaves: how it ended, who told its end, what is in its history, what was written."""

    run: str
    status: Status
    reason: Reason | None
    entries: list[str]
    partial: bool | None = None
    outputs: tuple[str, ...] = ()
    told_by: Observer | None = Observer.HOOK
    message: str | None = None
    life: int = 1


HALF, DONE = ("half.txt",), ("done.txt", "half.txt")
RUNNER_CANCELS = not version("prefect").startswith("3.8.")
"""Since Prefect 3.9 a runner that is stopped cancels its runs, also one of `.serve()`."""

STOPPED_BY_ITS_RUNNER = Row(
    "16",
    CANCELLED,
    None,
    [*WHOLE_WAY, "CANCELLED"],
    partial=True,
    outputs=HALF,
    told_by=None,
    message="Runner is shutting down.",
)

ROWS = [
    Row("1", COMPLETED, None, [*WHOLE_WAY, "COMPLETED"], outputs=HALF),
    Row("2", FAILED, Reason.ERROR, [*WHOLE_WAY, "FAILED"], outputs=HALF, message="no such star"),
    Row("3", FAILED, Reason.ERROR, [*NEVER_RAN, "FAILED"], message="high must be above low"),
    Row("4", FAILED, Reason.CRASHED, [*NEVER_RAN, "FAILED"], message="status code: 1"),
    Row("5 failed", FAILED, Reason.ERROR, [*WHOLE_WAY, "FAILED"], outputs=HALF, message="too dim"),
    Row("5 completed", COMPLETED, None, [*WHOLE_WAY, "COMPLETED"], outputs=HALF),
    Row("6", FAILED, Reason.TIMED_OUT, [*WHOLE_WAY, "FAILED"], partial=True, outputs=HALF),
    Row(
        "7",
        COMPLETED,
        None,
        [*WHOLE_WAY, "attempt-failed", "attempt", "attempt-failed", "attempt", "COMPLETED"],
        outputs=("1.txt", "2.txt", "3.txt"),
    ),
    Row("8 exits", FAILED, Reason.CRASHED, [*WHOLE_WAY, "FAILED"], partial=True, outputs=HALF),
    Row("8 interrupted", FAILED, Reason.CRASHED, [*WHOLE_WAY, "FAILED"], partial=True, outputs=HALF),
    Row("9", FAILED, Reason.CRASHED, [*WHOLE_WAY, "FAILED"], partial=True, outputs=HALF, message="termination signal"),
    Row("10", COMPLETED, None, [*WHOLE_WAY, "COMPLETED"], outputs=("done.txt",)),
    Row("11", FAILED, Reason.CRASHED, [*WHOLE_WAY, "FAILED"], partial=True, outputs=HALF, message="SIGKILL"),
    Row("12", FAILED, Reason.CRASHED, [*WHOLE_WAY, "FAILED"], partial=True, outputs=HALF),
    Row(
        "13",
        FAILED,
        Reason.CRASHED,
        [*WHOLE_WAY, "FAILED"],
        partial=True,
        outputs=HALF,
        told_by=Observer.SETTLE,
        message="in the Method's own code",
    ),
    Row("14", COMPLETED, None, [*WHOLE_WAY, "COMPLETED"], outputs=DONE),
    STOPPED_BY_ITS_RUNNER if RUNNER_CANCELS else Row("16", COMPLETED, None, [*WHOLE_WAY, "COMPLETED"], outputs=DONE),
    # Unlike `.serve()`, a worker and `prefect.serve` do not wait for their runs: they take them along without a word.
    Row("15", FAILED, Reason.CRASHED, [*WHOLE_WAY, "FAILED"], partial=True, outputs=HALF, told_by=Observer.SETTLE),
    STOPPED_BY_ITS_RUNNER._replace(run="16 of many")
    if RUNNER_CANCELS
    else Row(
        "16 of many",
        FAILED,
        Reason.CRASHED,
        [*WHOLE_WAY, "FAILED"],
        partial=True,
        outputs=HALF,
        told_by=Observer.SETTLE,
    ),
    Row("17", CANCELLED, None, ["CREATED", "CANCELLED"], told_by=Observer.SETTLE),
    Row("18", CANCELLED, None, [*NEVER_RAN, "CANCELLED"], told_by=Observer.SETTLE, message=TIMED_OUT),
    Row("19", CANCELLED, None, [*NEVER_RAN, "CANCELLED"], told_by=None),  # the hook finds the flow's files, or not
    Row("20", CANCELLED, None, [*WHOLE_WAY, "CANCELLED"], partial=True, outputs=HALF),
    Row("21", CANCELLED, None, [*WHOLE_WAY, "CANCELLED"], partial=True, outputs=HALF),
    Row("22", CANCELLED, None, [*WHOLE_WAY, "CANCELLED"], partial=True, outputs=("cleaned.txt", "half.txt")),
    Row("23", FAILED, Reason.CRASHED, [*WHOLE_WAY, "FAILED"], partial=True, outputs=("cleaned.txt", "half.txt")),
    Row("24", COMPLETED, None, [*WHOLE_WAY, "COMPLETED"], outputs=HALF),
    Row("26", COMPLETED, None, [*WHOLE_WAY, "paused", "resumed", "COMPLETED"]),
    Row("27", COMPLETED, None, [*WHOLE_WAY, "paused", "resumed", "note", "COMPLETED"], outputs=DONE),
    Row("28", FAILED, Reason.ERROR, [*WHOLE_WAY, "FAILED"], outputs=HALF, message="not yet"),
    Row("28", COMPLETED, None, [*WHOLE_WAY, "COMPLETED"], outputs=DONE, life=2),
    Row("29", FAILED, Reason.CRASHED, [*EXECUTED, "FAILED"], partial=True, outputs=HALF, told_by=Observer.SETTLE),
    Row("30", COMPLETED, None, [*EXECUTED, "attempt-failed", "attempt", "note", "COMPLETED"], outputs=DONE),
    Row("31", COMPLETED, None, [*EXECUTED, "attempt", "note", "COMPLETED"], outputs=DONE),
    Row("34", FAILED, Reason.INFRASTRUCTURE, [*NEVER_RAN, "FAILED"], told_by=Observer.SETTLE),
    Row("36 parent", FAILED, Reason.ERROR, [*WHOLE_WAY, "FAILED"], message="inside"),
    Row("36 child", FAILED, Reason.ERROR, [*WHOLE_WAY, "FAILED"], message="inside"),
    Row("37", COMPLETED, None, [*WHOLE_WAY, "COMPLETED"]),
    Row("38", FAILED, Reason.ERROR, [*WHOLE_WAY, "FAILED"], message="the second step failed"),
]


def number(run: str) -> int:
    return int(run.partition(" ")[0])


SLOW = "Prefect did not return the end of"
"""The beginning of a note that is true if the server was busy, whatever the scenario."""


def test_every_row_of_the_matrix_is_here_or_says_why_not():
    assert sorted({number(row.run) for row in ROWS} | {35} | set(ELSEWHERE)) == [*ALL_ROWS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.run} life {row.life}" if row.life > 1 else row.run)
def test_the_record_tells_what_happened(stage, row):
    assert stage.failures.get({"14": "13"}.get(row.run, row.run)) is None
    execution_id = stage.bundle(row.run, row.life).name
    copies = list(verify_execution(Catalog(stage.bench), execution_id))
    record = stage.bench.record(execution_id)
    logs = {"outputs/stdout.log", "outputs/stderr.log"}

    assert {copy.place: [str(fault) for fault in copy.report.faults] for copy in copies}["archive"] == []
    assert [str(fault) for copy in copies for fault in copy.report.faults] == []
    assert (record.status, record.job_status.reason) == (row.status, row.reason), record.job_status.message
    assert kinds(record, without=SLOW) == row.entries
    assert record.job_status.partial is row.partial
    written = [one.path for one in record.job_status.outputs if one.path not in logs]
    assert written == [f"outputs/{name}" for name in row.outputs]
    assert row.told_by in {None, record.job_status.history[-1].observer}
    assert (row.message or "") in (record.job_status.message or "")
    assert stage.bench.ledger.get(execution_id).archive == "archived"


def test_a_run_that_nobody_picks_up_is_reported_and_has_no_record(stage):
    assert stage.failures.get("35") is None
    told = stage.told[str(stage.runs["35"])]
    assert (told.result, stage.bench.archive.seal_of(told.id)) == ("report", None)


def test_each_run_is_one_execution_and_nothing_is_left_open(stage):
    sealed = sorted(path.parent.name for path in (stage.home / "archive" / "executions").glob("*/seal.json"))
    assert sealed == sorted(stage.bundle(row.run, row.life).name for row in ROWS)
    assert list(stage.bench.unfinished()) == []
    assert [mark.id for mark in stage.bench.archive.marks.open()] == []
