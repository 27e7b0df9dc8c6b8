"""`executions watch`: what it shows in a pipe and on a terminal, when it ends and with which code."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from benches import begun, bench_at, kept, record_of
from prefect_executions import events
from prefect_executions.cli import exit_codes
from prefect_executions.cli.app import main
from prefect_executions.lifecycle.status import Status
from prefect_executions.prefect_api import events as prefect_events
from records import EXECUTION_ID, a_job_status, a_request
from test_cli_app import on_a_terminal

HOSTILE = "\x1b[31mred\x9b2J"


@pytest.fixture
def executions(home, capsys) -> Callable[..., str]:
    """Return a function that runs the command line in this process, checks its exit code and returns its output."""

    def run(*arguments: str, code: int = 0) -> str:
        found = main(arguments)
        shown = capsys.readouterr()
        assert found == code, shown.err
        return shown.out or shown.err

    return run


def running(home: Path) -> str:
    """Open an execution on the workbench and return its id."""
    execution_id = str(uuid4())
    then = datetime.now(UTC) - timedelta(seconds=10)
    status = a_job_status(Status.EXECUTING, execution_id=execution_id, begins=then)
    bench = bench_at(home)
    begun(bench, record_of(request=a_request(execution_id=execution_id), job_status=status))
    bench.leases.release(execution_id)
    return execution_id


@contextmanager
def going_on(execution_id: str, end: Status, message: str | None = None) -> Iterator[None]:
    """Emit the events of an execution every 0.5 s, so that a late subscriber receives them too."""
    then, over = datetime.now(UTC) - timedelta(seconds=10), threading.Event()
    status = a_job_status(end, execution_id=execution_id, begins=then, message=message)
    progress = events.progress_event(execution_id, "segment-coins", 70.0, "soon", then)

    def emit() -> None:
        while not over.wait(0.5):
            prefect_events.emit([progress, *events.status_events(status, then)])

    emitter = threading.Thread(target=copy_context().run, args=(emit,))
    emitter.start()
    try:
        yield
    finally:
        over.set()
        emitter.join()


def test_watch_ends_with_the_named_execution_and_prints_a_json_object_per_change(executions, home, prefect_server):
    execution_id = running(home)
    with going_on(execution_id, Status.FAILED, HOSTILE):
        lines = [
            json.loads(line)
            for line in executions("watch", execution_id, "--json", code=exit_codes.FAILED).splitlines()
        ]

    assert {line["id"] for line in lines} == {execution_id}
    assert (lines[0]["status"], lines[0]["progress"], lines[0]["message"]) == ("EXECUTING", 50.0, "half way")
    assert (lines[-1]["status"], lines[-1]["message"]) == ("FAILED", HOSTILE)
    assert lines[-1]["elapsed"] >= 6
    assert len(lines) == len({json.dumps(line) for line in lines})


def test_watch_in_a_pipe_prints_a_plain_line_per_change(executions, home, prefect_server):
    execution_id = running(home)
    with going_on(execution_id, Status.CANCELLED, HOSTILE):
        lines = executions("watch", execution_id[:13], code=exit_codes.FAILED).splitlines()
    first, *_, last = lines

    assert first.split("\t")[1:5] == [execution_id, "segment-coins", "EXECUTING", "50 %"]
    assert last.split("\t")[3] == "CANCELLED"
    assert last.endswith("\\x1b[31mred\\x9b2J")


@pytest.mark.long
def test_watch_on_a_terminal_leaves_its_table(home, prefect_server):
    execution_id = running(home)
    with going_on(execution_id, Status.COMPLETED):
        shown = on_a_terminal(["watch", execution_id], home)

    assert "COMPLETED" in shown
    assert "100 %" in shown
    assert "segment-coins" in shown


def test_watch_of_an_ended_execution_needs_no_server(executions, home, monkeypatch):
    kept(bench_at(home))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")

    assert json.loads(executions("watch", EXECUTION_ID, "--json"))["status"] == "COMPLETED"


def test_watch_waits_for_a_flow_run_that_has_not_started(executions, home, prefect_server):
    @flow
    def coins() -> None: ...

    with get_client(sync_client=True) as client:
        execution_id = str(client.create_flow_run(coins).id)
    with going_on(execution_id, Status.COMPLETED):
        first, *_, last = (json.loads(line) for line in executions("watch", execution_id, "--json").splitlines())

    assert (first["id"], first["status"]) == (execution_id, None)
    assert last["status"] == "COMPLETED"


def test_watch_of_an_unknown_id_is_an_error(executions, prefect_server):
    assert "no execution id begins with" in executions("watch", str(uuid4()), code=exit_codes.NOT_THERE)


@pytest.mark.parametrize("arguments", [[], [EXECUTION_ID, "--all"]])
def test_watch_requires_either_ids_or_all(executions, arguments):
    assert "give the ids of the executions to watch, a query, or --all" in executions(
        "watch", *arguments, code=exit_codes.REQUEST
    )
