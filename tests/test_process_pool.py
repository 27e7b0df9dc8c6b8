"""A process work pool for real: a schedule starts a run by itself, and its end starts another one by an event."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from deployments.automations import main as automate
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate

from homes import WHOLE_WAY, Bundles, way
from journeys import program, waited
from prefect_executions.cli.app import main
from prefect_executions.cli.doctor import check_version
from prefect_executions.executions.record import ExecutionRecord

ROOT = Path(__file__).parents[1]
POOL = "triggered"


def completed(bundles: Bundles, method_id: str, maker: str) -> ExecutionRecord | None:
    """Return a sealed execution of the Method that Prefect says something of that type has created."""
    for folder in bundles.folders():
        if (folder / "manifest-sha256.txt").exists() and not (folder.parent / ".open" / folder.name).exists():
            record = bundles.record(folder)
            if record.method.id == method_id and (record.request.created_by or {}).get("type") == maker:
                return record
    return None


@pytest.fixture
def client(prefect_server: str) -> SyncPrefectClient:
    return get_client(sync_client=True)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_schedule_and_an_event_each_start_a_run(home, client, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template={}))
    chained = f"separate-irises/separate-irises-{POOL}"
    found = check_version("sqlalchemy", version("sqlalchemy"), version("prefect"))
    assert found.outcome == "ok", "Prefect's schedules do not fire with it"
    assert main(["deploy", "flows/separate_irises/method.yaml", "--pool", POOL]) == 0
    automate(["--after", "count-words", "--output", "counts.csv", "--start", chained, "--parameter", "one=virginica"])
    assert (
        main(["deploy", "flows/count_words.py:count_words", "--pool", POOL, "-p", "most=4", "--schedule", "20s"]) == 0
    )

    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    bundles = Bundles(home)
    with program(worker, home.parent / "worker.log", {**os.environ, "PREFECT_WORKER_QUERY_SECONDS": "1"}):
        scheduled = waited(lambda: completed(bundles, "count-words", "SCHEDULE"), "a run that the schedule started")
        client.delete_deployment(client.read_deployment_by_name(f"count-words/count-words-{POOL}").id)
        triggered = waited(lambda: completed(bundles, "separate-irises", "AUTOMATION"), "a run that the event started")

    assert way(scheduled) == way(triggered) == [*WHOLE_WAY, "COMPLETED"]
    assert scheduled.request.values["most"] == 4
    assert triggered.request.values["one"] == "virginica"
    assert triggered.request.created_by["name"] == f"executions: {chained} after count-words with counts.csv"
    for record in (scheduled, triggered):
        assert (record.infrastructure.type, record.infrastructure.work_pool) == ("process", POOL)
        assert main(["verify", record.id, "--json"]) == 0
    for automation in client.read_automations_by_name(triggered.request.created_by["name"]):
        client.delete_automation(automation.id)
