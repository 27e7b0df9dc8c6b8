"""Observation of executions without a seal: Prefect, the archive's marks, workbenches and processes."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.processes import alive
from prefect_executions.errors import BundleError
from prefect_executions.executions.ids import ExecutionId
from prefect_executions.executions.record import Instance
from prefect_executions.lifecycle.history import JobStatus, ObservedState
from prefect_executions.prefect_api import queries as prefect_queries
from prefect_executions.settle.decide import STUCK, RunObservation
from prefect_executions.workbench.workbench import Workbench

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


class Snapshot(NamedTuple):
    """The executions that are open at one moment, on this machine and in the archive, and their flow runs."""

    reachable: Mapping[str, Workbench]
    """The workbench of each bundle that this process can write to, by execution id."""
    silences: Mapping[str, timedelta]
    """The time since the last heartbeat of each execution that is open in the archive, by the store's clock."""
    runs: Mapping[UUID, FlowRun]
    now: datetime
    """The time by Prefect's clock."""
    clock_offset: timedelta
    """Prefect's clock minus the store's."""

    @property
    def ids(self) -> list[str]:
        """The ids of all executions that may be open, in order."""
        return sorted(self.reachable | self.silences.keys())


def take_snapshot(workbench: Workbench, unfinished: Collection[str]) -> Snapshot:
    """Read everything that may be open; *unfinished* are the executions of this workbench.

    Raises:
        ArchiveError: If the archive is unavailable.
        OrchestratorError: If Prefect's API is unavailable.
    """
    marks = workbench.archive.marks
    clock = marks.clock()
    silences = {mark.id: max(clock - mark.renewed, timedelta(0)) for mark in marks.open() if _is_of_run(mark.id)}
    elsewhere = _writable(workbench, marks.workbenches(silences.keys() - set(unfinished)))
    now = prefect_queries.server_time()
    runs = prefect_queries.runs_by_id({flow_run_of(execution_id) for execution_id in {*unfinished, *silences}})
    return Snapshot(elsewhere | dict.fromkeys(unfinished, workbench), silences, runs, now, now - clock)


def observe(workbench: Workbench, snapshot: Snapshot, execution_id: str, state: ObservedState | None) -> RunObservation:
    """Return the observation of one execution; *state* is Prefect's newest state of it.

    Raises:
        BundleError: If its bundle on this machine is damaged.
        ArchiveError: If the archive is unavailable.
        OrchestratorError: If Prefect's API is unavailable.
    """
    instance, job_status = _documents(workbench, snapshot, execution_id)
    run = snapshot.runs.get(flow_run_of(execution_id))
    pool, worker, pool_type = _worker(run)
    return RunObservation(
        state=state,
        now=snapshot.now,
        reachable=execution_id in snapshot.reachable,
        alive=alive(instance.process) if instance and instance.process else None,
        silence=snapshot.silences.get(execution_id),
        worker_silence=prefect_queries.worker_silence(pool, worker, snapshot.now) if pool and worker else None,
        pool_type=pool_type,
        claimed=bool(worker) or not _is_unclaimed(run, state, snapshot.now),
        process=f"{instance.pid} on {instance.hostname}" if instance else None,
        status=job_status.execution_status if job_status else None,
        usage=instance.usage if instance else None,
    )


def flow_run_of(execution_id: str) -> UUID:
    """Return the flow run of an execution."""
    return ExecutionId.parse(execution_id).flow_run_uuid


def _is_of_run(execution_id: str) -> bool:
    """Whether a mark has the id of a flow run: any writer to the archive can add other names."""
    try:
        flow_run_of(execution_id)
    except ValueError:
        return False
    return True


def _writable(workbench: Workbench, places: Mapping[str, str]) -> dict[str, Workbench]:
    """Return the bundles on other workbenches of this machine, or on a disk that it shares with others."""
    return {
        execution_id: workbench.at(Path(place))
        for execution_id, place in places.items()
        if "\0" not in place and os.access(Path(place, execution_id), os.W_OK)
    }


def _documents(workbench: Workbench, snapshot: Snapshot, execution_id: str) -> tuple[Instance | None, JobStatus | None]:
    if execution_id in snapshot.reachable:
        bundle = OpenBundle.load(snapshot.reachable[execution_id].folder, execution_id)
        return bundle.read(Instance), bundle.read(JobStatus)
    if execution_id not in snapshot.silences:
        return None, None
    if workbench.archive.opening(execution_id) is None:
        if flow_run_of(execution_id) in snapshot.runs:  # lost in a power cut; Prefect's data must do
            return None, None
        raise BundleError(f"execution {execution_id} is marked as open in the archive, but its opening record is gone")
    record = workbench.archived_record(execution_id)
    return record.instance, record.job_status


def _is_unclaimed(run: FlowRun | None, state: ObservedState | None, now: datetime) -> bool:
    """Whether *run* is stuck in PENDING although its worker, had one taken it, would have reported that."""
    if run is None or state is None or state.state.type != "PENDING" or now - state.time < STUCK:
        return False
    return run.work_pool_name is None or prefect_queries.has_workers(run.work_pool_name)


def _worker(run: FlowRun | None) -> tuple[str | None, str | None, str | None]:
    """Return the work pool, the worker and the pool's type from Prefect's labels of a flow run."""
    labels = (run.labels or {}) if run else {}
    values = (labels.get(f"prefect.{name}") for name in ("work-pool.name", "worker.name", "worker.type"))
    pool, worker, pool_type = (str(value) if value else None for value in values)
    return pool, worker, pool_type
