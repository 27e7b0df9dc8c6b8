"""Acknowledged events of ends in Prefect: after the shortest run, after a kill, with an unavailable server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from benches import begun, record_of
from homes import WHOLE_WAY
from journeys import waited
from prefect_executions import background, current_execution, method
from prefect_executions.lifecycle.status import Observer, Status
from prefect_executions.prefect_api import client as api_client
from prefect_executions.prefect_api import events as prefect_events
from prefect_executions.prefect_api.events import FLUSH_TIMEOUT
from prefect_executions.settings import Settings
from prefect_executions.workbench.recovery import settle_all
from prefect_executions.workbench.sealing import Ending
from prefect_executions.workbench.workbench import Workbench
from records import a_job_status, a_request

pytestmark = pytest.mark.usefixtures("prefect_server")

AWAY = "http://127.0.0.1:9/api"


def stored(resource: str, until: str) -> list[Mapping[str, Any]]:
    """Return the events of a resource, in the order of their times, when *until* is there."""
    wanted = {"filter": {"resource": {"id": [resource]}}, "limit": 50}

    def read() -> list[Mapping[str, Any]] | None:
        events = api_client.client().request("POST", "/events/filter", json=wanted).json()["events"]
        return events if until in {event["event"] for event in events} else None

    return sorted(waited(read, f"{until} of {resource}"), key=lambda event: (event["occurred"], event["event"]))


def names(stored_events: list[Mapping[str, Any]]) -> list[str]:
    return [event["event"] for event in stored_events]


STATUSES = [f"execution.{status.lower()}" for status in [*WHOLE_WAY, "COMPLETED"]]


def test_a_run_emits_its_statuses_after_prefects_events_and_then_the_archives(home):
    @method(version="1")
    def counts(token: str) -> None:
        current_execution().output("counts.csv").write_text(token)

    counts("a text that no event tells")
    background.drain()
    (folder,) = (entry for entry in (home / "workbench").iterdir() if not entry.name.startswith("."))
    assert [*(home / "workbench" / ".open").iterdir()] == []

    ours = stored(f"prefect-executions.execution.{folder.name}", "archive.completed")
    states = {
        event["event"]: event["id"] for event in stored(f"prefect.flow-run.{folder.name}", "prefect.flow-run.Completed")
    }
    leads = {event["event"]: event["follows"] for event in ours if event["follows"]}

    assert sorted(names(ours)) == sorted([*STATUSES, "archive.completed"])
    assert leads == {
        "execution.started": states["prefect.flow-run.Running"],
        "execution.executing": states["prefect.flow-run.Running"],
        "execution.completed": states["prefect.flow-run.Completed"],
    }
    assert {"name": "counts.csv", "mediaType": "text/csv"} in ours[-1]["payload"]["outputs"]
    related = {one["prefect.resource.role"]: one["prefect.resource.id"] for one in ours[0]["related"]}
    assert related == {"method": "prefect-executions.method.counts", "flow-run": f"prefect.flow-run.{folder.name}"}
    assert "a text that no event tells" not in str(ours)


KILLED = """
import os, signal, sys, time
from prefect_executions import current_execution, method
from prefect_executions.tracepoints import EVENT, TracePoint

def killing(event, arguments):
    if event == EVENT and arguments[0] is TracePoint.CLEARED:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(killing)

@method(version="1")
def works():
    current_execution().progress(40, "half way")
    print(current_execution().id, flush=True)
    current_execution().output("words.txt").write_text("words")

works()
"""


@pytest.mark.long
def test_a_kill_right_after_the_end_loses_no_event(home, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    done = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"EXECUTIONS_CAPTURE_STREAMS": "false"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == -9
    ours = stored(f"prefect-executions.execution.{done.stdout.strip()}", "archive.completed")
    progress = next(event for event in ours if event["event"] == "execution.progress")

    assert sorted(names(ours)) == sorted([*STATUSES, "execution.progress", "archive.completed"])
    assert (progress["payload"]["progress"], progress["payload"]["message"]) == (40.0, "half way")


@pytest.mark.long
def test_an_unavailable_server_delays_a_run_little_and_settle_emits_the_events_later(tmp_path):
    execution_id, now = str(uuid4()), datetime.now(UTC)
    # Prefect does not list events of the future, and the last status of `a_job_status` is seconds after the first.
    began = now - timedelta(minutes=1)
    bench = Workbench.of(
        Settings(home=tmp_path), archive_block=lambda name: (name, {}), deliver_events=prefect_events.TerminalEvents
    )
    status = a_job_status(Status.EXECUTING, execution_id=execution_id, begins=began)
    begun(bench, record_of(request=a_request(execution_id=execution_id), job_status=status))
    with temporary_settings({PREFECT_API_URL: AWAY, PREFECT_CLIENT_MAX_RETRIES: 0}):
        before = time.monotonic()
        outcome = bench.seal(execution_id, Ending(Status.COMPLETED, None, now, Observer.SETTLE))
        took = time.monotonic() - before
        prefect_events.flush_events()

    assert outcome.archived
    assert list(bench.unfinished()) == [execution_id]
    assert took < FLUSH_TIMEOUT  # nobody waits for it

    assert [one.result for one in settle_all(bench)] == ["archived"]
    prefect_events.flush_events()
    assert list(bench.unfinished()) == []
    ours = stored(f"prefect-executions.execution.{execution_id}", "record.settled")
    assert sorted(names(ours)) == sorted([*STATUSES, "archive.completed", "record.settled"])


def test_an_end_older_than_prefects_retention_is_not_emitted():
    done: list[str] = []
    prefect_events.TerminalEvents(a_job_status()).on_acknowledged(lambda: done.append("at once"))

    assert done == ["at once"]
