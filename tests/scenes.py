"""Scenes for settle: a deployed Method, its runs in any state and of any age, and open records of killed processes."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Pending, Running
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

import servers
from benches import begun, bench_at, record_of
from prefect_executions import MethodFlow
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.processes import this_process
from prefect_executions.executions.record import ExecutionRecord, Process
from prefect_executions.lifecycle.status import Status
from prefect_executions.operations.verify import verify_execution
from prefect_executions.settings import Settings
from prefect_executions.settle.loop import settle
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.recovery import Settled
from prefect_executions.workbench.workbench import Workbench
from records import OUTPUTS, a_job_status, a_request, an_instance

_AGES = {
    "flow_run_state": ("flow_run_id", ("timestamp",)),
    "flow_run": ("id", ("created", "expected_start_time", "start_time", "end_time", "state_timestamp")),
    "worker": ("name", ("last_heartbeat_time",)),
}
_MOVED = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', {column}, :by || ' seconds') || '000'",
    "postgresql": "{column} + make_interval(secs => :by)",
}
NOW = timedelta(0)
FAR = Process(host="far", boot="another boot", pids="pid:[1]", pid=4711, started="1")
"""The name of a process of a machine that is not this one."""


def dead_process() -> Process:
    """Return the name of a process that was here and is gone."""
    child = subprocess.Popen(["sleep", "60"])
    started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    child.kill()
    child.wait()
    return this_process().model_copy(update={"pid": child.pid, "started": started})


def age(what: UUID | str, by: timedelta, table: str = "flow_run_state", *, home: str = "") -> None:
    """Set the times that Prefect's server keeps of something back, in its own database: its API takes none.

    The server is that of PREFECT_HOME, where no other *home* is named.
    """
    key, columns = _AGES[table]
    engine = create_engine(servers.database(Path(home or os.environ["PREFECT_HOME"])), poolclass=NullPool)
    with engine.begin() as database:
        for column in columns:
            moved = _MOVED[engine.dialect.name].format(column=column)
            statement = (
                f"UPDATE {table} SET {column} = {moved} WHERE CAST({key} AS TEXT) = :what AND {column} IS NOT NULL"  # noqa: S608 - our own words
            )
            database.execute(text(statement), {"by": -by.total_seconds(), "what": str(what)})


def forget_flows() -> None:
    """Let the server know no flow and no run of one: what other tests left there would be settled, too."""
    with get_client(sync_client=True) as client:
        for flow in client.read_flows():
            client.request("DELETE", "/flows/{id}", path_params={"id": flow.id})


class Scene:
    """A home with its workbench, archive and ledger, and a server that knows no flow but those of this scene."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.bench = bench_at(home)
        forget_flows()

    # --- what happens in Prefect -------------------------------------------------

    def deploy(self, flow: MethodFlow[Any, Any], name: str = "scene", *, pool: str | None = None) -> UUID:
        """Deploy a Method as `.serve()` does, or to a work pool."""
        return flow.to_deployment(name, work_pool_name=pool).apply()

    def run(
        self,
        deployment: UUID,
        *states: State[Any],
        ago: timedelta = NOW,
        parameters: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> FlowRun:
        """Make a flow run of a deployment and put it into *states*; all of it happened that long *ago*."""
        with get_client(sync_client=True) as client:
            made = client.create_flow_run_from_deployment(deployment, parameters=dict(parameters or {}))
            for state in states:
                client.set_flow_run_state(made.id, state, force=True)
            if labels:
                client.update_flow_run_labels(made.id, dict(labels))
            if ago:
                age(made.id, ago)
                age(made.id, ago, "flow_run")
            return client.read_flow_run(made.id)

    def put(self, run: FlowRun, state: State[Any], ago: timedelta = NOW) -> None:
        """Put a run into one more state, which happened that long *ago*."""
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run.id, state, force=True)
        if ago:
            age(run.id, ago)
            age(run.id, ago, "flow_run")

    def state(self, run: FlowRun) -> State[Any]:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(run.id).state
        assert state is not None
        return state

    # --- what is left of a run ---------------------------------------------------

    def opened(
        self,
        deployment: UUID,
        *,
        process: Process | None = None,
        at: Path | None = None,
        outputs: Mapping[str, bytes] = OUTPUTS,
        status: Status = Status.EXECUTING,
        **changes: Any,
    ) -> tuple[FlowRun, OpenBundle]:
        """Make a run that is RUNNING, with the record that it has opened; *at* is the home of its machine."""
        run = self.run(deployment, Pending(), Running())
        execution_id = str(run.id)
        bench = self.bench if at is None else self.bench_at(at)
        begins = datetime.now(UTC) - timedelta(hours=1)
        job_status = a_job_status(status, execution_id=execution_id, started=status is Status.EXECUTING, begins=begins)
        process = process or dead_process()
        where = an_instance(hostname=process.host, pid=process.pid, process=process, usage=None)
        record = record_of(
            execution_id,
            job_status=job_status.model_copy(update={"outputs": ()}),
            request=a_request(execution_id=execution_id, relatives=()),
            instance=where,
            **changes,
        )
        bundle = begun(bench, record, outputs)
        bench.leases.release(execution_id)
        return run, bundle

    def silence(self, run: FlowRun, seconds: float = 600) -> None:
        """Make the last heartbeat of an execution that old, on a workbench that cannot be reached."""
        heartbeat, mark = time.time() - seconds, self.archive / "open" / str(run.id)
        mark.write_text("/nowhere")
        os.utime(mark, (heartbeat, heartbeat))

    def bench_at(self, home: Path) -> Workbench:
        """Return the workbench of another machine with the same archive."""
        return bench_at(home, archive=self.bench)

    def sealed_before(self, by: timedelta) -> None:
        """Set the times of all marks of seals back."""
        for mark in (self.archive / "sealed").rglob("*-*"):
            if mark.is_file():
                then = mark.stat().st_mtime - by.total_seconds()
                os.utime(mark, (then, then))

    # --- what settle does --------------------------------------------------------

    @property
    def archive(self) -> Path:
        return self.home / "archive"

    def settle(
        self,
        home: Path | None = None,
        *,
        since: datetime | None = None,
        pause: Callable[[float], None] = lambda _: None,
    ) -> dict[str, Settled]:
        """Run one round from *home* and return its results by id; it calls *pause* before the second look."""
        bench = self.bench if home is None else self.bench_at(home)
        return {one.id: one for one in settle(bench, Settings(home=self.home), since=since, pause=pause)}

    def record(self, run: FlowRun | str, *benches: Workbench) -> ExecutionRecord:
        """Return the one record of a run, when every copy of it verifies, here and on the other *benches*."""
        execution_id = run if isinstance(run, str) else str(run.id)
        for bench in (self.bench, *benches):
            reader = Catalog(bench)
            for copy in verify_execution(reader, execution_id):
                assert not copy.report.faults, f"{copy.place} of {bench.folder}: {copy.report.faults}"
        assert self.bench.archive.seal_of(execution_id) is not None
        assert not (self.archive / "open" / execution_id).exists()
        assert len(list((self.archive / "executions" / execution_id).glob("sealed-*"))) == 1
        return self.bench.archived_record(execution_id)

    def seals(self) -> list[str]:
        """Return the ids of the sealed executions, in order."""
        return sorted(name.parent.name for name in (self.archive / "executions").glob("*/seal.json"))

    def seen_to_have_been(self, run: FlowRun, process: Process) -> None:
        """Write into the opening record of an execution that another process had opened it."""
        place = self.archive / "executions" / str(run.id) / "opening.json"
        content = json.loads(place.read_text())
        content["instance"]["process"] = json.loads(process.model_dump_json(by_alias=True))
        content["instance"] |= {"hostname": process.host, "pid": process.pid}  # as `verify` compares them
        place.write_text(json.dumps(content))
