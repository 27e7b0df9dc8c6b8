"""What deployments/ ships: every flow of flows/, deployed by Prefect's own command as its README says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benches import begun, bench_at, record_of
from flows.settle import settle
from prefect_executions import engine
from prefect_executions.lifecycle import Status
from records import EXECUTION_ID
from scenes import Scene

ROOT = Path(__file__).parents[1]


def test_every_flow_is_deployed_and_the_methods_are_known_as_such(prefect_server, home):
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    subprocess.run([*prefect, "work-pool", "create", "executions", "--type", "process"], cwd=ROOT, check=True)
    deploying = [*prefect, "deploy", "--all", "--prefect-file", "deployments/prefect.yaml"]
    subprocess.run(deploying, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    names = {flow.id: flow.name for flow in engine.client().read_flows()}
    deployed = {names[one.flow_id]: one for one in engine.client().read_deployments()}
    assert {path.stem.replace("_", "-") for path in (ROOT / "flows").glob("*.py")} <= deployed.keys()
    methods = {names[flow_id] for flow_id in engine.method_flows(None) if flow_id in names}
    assert {"count-words", "segment-coins", "train-digits"} <= methods
    assert "settle" not in methods
    [schedule] = deployed["settle"].schedules
    assert schedule.schedule.interval.total_seconds() == 60
    assert deployed["settle"].concurrency_options.collision_strategy.value == "CANCEL_NEW"


def test_the_settle_flow_seals_what_was_left(prefect_server, home):
    Scene(home)  # the server forgets the runs that other tests left: they would be settled here, too
    begun(bench_at(home), record_of(EXECUTION_ID))
    assert settle() == {"archived": 1}
    assert settle() == {}
    assert bench_at(home).ledger.get(EXECUTION_ID).status is Status.COMPLETED
