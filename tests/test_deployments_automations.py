"""The automations that deployments/ ships: created on a real server, once, and seen to fire."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
from deployments.automations import SETTLE, main
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from journeys import PATIENCE
from prefect_executions import events, method
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.prefect_api import events as prefect_events
from prefect_executions.prefect_api import queries as prefect_queries
from records import a_job_status, an_output

CHAIN = ["--after", "coins", "--output", "coins.csv", "--start", "next/next"]
NAMES = [
    "executions: settle on a crash",
    "executions: settle on silence",
    "executions: next/next after coins with coins.csv",
    "executions: tell of a failure",
]
T = TypeVar("T")


@contextmanager
def webhook() -> Iterator[tuple[str, list[Any]]]:
    """Listen as a chat's webhook does; its address, and what it is told."""
    told: list[Any] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client
        for name in NAMES:
            for automation in client.read_automations_by_name(name):
                client.delete_automation(automation.id)


def deployed(client: SyncPrefectClient, name: str) -> UUID:
    """Return a deployment of that name; one that does nothing is made where there is none."""

    @flow(name=name.partition("/")[0])
    def nothing(source: str = "", most: int = 1) -> None: ...

    try:
        return client.read_deployment_by_name(name).id
    except ObjectNotFound:
        return client.create_deployment(client.create_flow(nothing), name.partition("/")[2])


def ended(end: Status, method_id: str, output: str = "coins.csv", message: str | None = None) -> JobStatus:
    then = datetime.now(UTC) - timedelta(seconds=10)
    return a_job_status(
        end,
        execution_id=str(uuid4()),
        method_id=method_id,
        outputs=[an_output(f"outputs/{output}", b"1,2")],
        begins=then,
        reason=Reason.ERROR if end is Status.FAILED else None,
        message=message,
    )


def archived(*ends: JobStatus) -> None:
    prefect_events.emit([events.archived_event(one, "0" * 64, datetime.now(UTC)) for one in ends])


def made_by(client: SyncPrefectClient, automation: str) -> list[FlowRun]:
    runs = client.read_flow_runs(limit=200)
    return [run for run in runs if run.created_by is not None and run.created_by.display_value == automation]


def fired(cause: Callable[[], object], effect: Callable[[], T], *, again: float = 5.0) -> T:
    """Return the *effect*, causing it again and again: an automation takes a moment to be heard of by the server."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        cause()
        for _ in range(round(again / 0.2)):
            if found := effect():
                return found
            time.sleep(0.2)
    raise AssertionError("the automation did not fire")


@pytest.mark.long
def test_they_are_created_once_and_fire(client, capsys):
    deployed(client, SETTLE)
    deployed(client, "next/next")
    with webhook() as (url, told):
        asked = [
            *CHAIN,
            "--silence",
            "10",
            "--webhook",
            url,
            "--parameter",
            "source={{ event.payload.execution }}",
            "--parameter",
            "most=5",
        ]
        assert main(asked) == 0
        assert main(asked) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"{word}  {name}" for word in ("created", "updated") for name in NAMES
        ]
        assert [len(client.read_automations_by_name(name)) for name in NAMES] == [1, 1, 1, 1]

        _a_crash_runs_settle(client)
        _a_run_that_goes_silent_runs_settle(client)
        _an_output_of_that_name_starts_another(client)
        _a_failure_is_told(told)


def _a_crash_runs_settle(client: SyncPrefectClient) -> None:
    @method(version="1")
    def crashes() -> None: ...

    @flow
    def no_method() -> None: ...

    prefect_queries.mark_flows([client.create_flow(crashes)])

    crashed = 0

    def cause() -> None:
        nonlocal crashed
        for function in (no_method, no_method, crashes):
            client.set_flow_run_state(client.create_flow_run(function).id, Crashed())
        crashed += 1

    runs = fired(cause, lambda: made_by(client, NAMES[0]))
    assert len(runs) <= crashed
    assert {run.deployment_id for run in runs} == {client.read_deployment_by_name(SETTLE).id}


def _a_run_that_goes_silent_runs_settle(client: SyncPrefectClient) -> None:
    caused: set[str] = set()

    def heard(name: str, run_id: UUID, follows: str | None = None) -> str:
        told = {"event": f"prefect.flow-run.{name}", "resource": {"prefect.resource.id": f"prefect.flow-run.{run_id}"}}
        told |= {"id": str(uuid4()), "occurred": datetime.now(UTC).isoformat(), "follows": follows}
        client.request("POST", "/events", json=[told])
        return told["id"]

    def cause() -> None:
        silent, suspended = uuid4(), uuid4()
        heard("heartbeat", silent)
        last = heard("heartbeat", suspended)
        heard("Suspended", suspended, follows=last)  # it has said that nothing more will come
        caused.add(str(silent))

    runs = fired(cause, lambda: made_by(client, NAMES[1]), again=25.0)
    assert len(runs) <= len(caused)
    assert {run.deployment_id for run in runs} == {client.read_deployment_by_name(SETTLE).id}


def _an_output_of_that_name_starts_another(client: SyncPrefectClient) -> None:
    caused: set[str] = set()

    def cause() -> None:
        right = ended(Status.COMPLETED, "coins")
        archived(
            ended(Status.COMPLETED, "others"),
            ended(Status.COMPLETED, "coins", "coins.tsv"),
            ended(Status.FAILED, "coins"),
            right,
        )
        caused.add(right.job_id)

    runs = fired(cause, lambda: made_by(client, NAMES[2]))
    assert {run.parameters["source"] for run in runs} <= caused
    assert {run.parameters["most"] for run in runs} == {5}


def _a_failure_is_told(told: list[Any]) -> None:
    def cause() -> None:
        failed = ended(Status.FAILED, "coins", message='ValueError: no "coins"')
        well = ended(Status.COMPLETED, "coins")
        prefect_events.emit([event for one in (well, failed) for event in events.status_events(one, datetime.now(UTC))])

    first, *_ = fired(cause, lambda: told)
    assert first["text"].endswith('of coins FAILED: ValueError: no "coins"')
    assert first["event"]["status"] == "FAILED"
    assert first["event"]["outputs"] == [{"name": "coins.csv", "mediaType": "text/csv"}]


def test_what_is_not_deployed_is_named_and_nothing_else_is_lost(client, capsys):
    deployed(client, SETTLE)
    assert main(["--after", "coins", "--output", "coins.csv", "--start", "nobody/nobody"]) == 1
    said = capsys.readouterr()

    assert NAMES[0] in said.out
    assert "the deployment nobody/nobody does not exist" in said.err
