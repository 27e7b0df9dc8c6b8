"""What is known of executions without a seal, from Prefect, the archive's marks, this workbench and its processes."""

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
    """All that one look found: what is open here and in the archive, and what Prefect says of it.

    `here` has the Workbench on which each bundle lies that can be reached, `silences`
    are by the store's clock and `now` is by Prefect's, which is that much `ahead` of it.
    """

    here: Mapping[str, Workbench]
    silences: Mapping[str, timedelta]
    runs: Mapping[UUID, FlowRun]
    now: datetime
    ahead: timedelta

    @property
    def ids(self) -> list[str]:
        """The ids of all executions that may be open, in order."""
        return sorted(self.here | self.silences.keys())


def take_snapshot(workbench: Workbench, here: Collection[str]) -> Snapshot:
    """Look at everything that may be open; *here* are the unfinished executions of this workbench.

    Raises:
        ArchiveError: If the archive cannot be asked.
        OrchestratorError: If Prefect's API cannot be asked.
    """
    marks = workbench.archive.marks
    clock = marks.clock()
    silences = {mark.id: max(clock - mark.renewed, timedelta(0)) for mark in marks.open()}
    found = _reachable(workbench, marks.places(silences.keys() - set(here)))
    now = prefect_queries.server_time()
    runs = prefect_queries.runs_by_id({flow_run_of(execution_id) for execution_id in {*here, *silences}})
    return Snapshot(found | dict.fromkeys(here, workbench), silences, runs, now, now - clock)


def observe(workbench: Workbench, known: Snapshot, execution_id: str, state: ObservedState | None) -> RunObservation:
    """Return what is known of one execution; *state* is Prefect's newest state of it.

    Raises:
        BundleError: If its bundle here is damaged.
        ArchiveError: If the archive cannot be asked.
        OrchestratorError: If Prefect's API cannot be asked.
    """
    instance, job_status = _documents(workbench, known, execution_id)
    run = known.runs.get(flow_run_of(execution_id))
    pool, worker, kind = _worker(run)
    silent = prefect_queries.worker_silence(pool, worker, known.now) if pool and worker else None
    return RunObservation(
        state=state,
        now=known.now,
        here=execution_id in known.here,
        alive=alive(instance.process) if instance and instance.process else None,
        silence=known.silences.get(execution_id),
        worker_silence=silent,
        pool_type=kind,
        claimed=bool(worker) or not _waits_unclaimed(run, state, known.now),
        process=f"{instance.pid} on {instance.hostname}" if instance else None,
        status=job_status.execution_status if job_status else None,
        usage=instance.usage if instance else None,
    )


def flow_run_of(execution_id: str) -> UUID:
    """Return the flow run of an execution."""
    return ExecutionId.parse(execution_id).flow_run_uuid


def _reachable(workbench: Workbench, places: Mapping[str, str]) -> dict[str, Workbench]:
    """The bundles that lie on other Workbenches of this machine, or on a disk that it shares with others."""
    return {one: workbench.at(Path(place)) for one, place in places.items() if os.access(Path(place, one), os.W_OK)}


def _documents(workbench: Workbench, known: Snapshot, execution_id: str) -> tuple[Instance | None, JobStatus | None]:
    if execution_id in known.here:
        bundle = OpenBundle.load(known.here[execution_id].folder, execution_id)
        return bundle.read(Instance), bundle.read(JobStatus)
    if execution_id not in known.silences:
        return None, None
    if workbench.archive.opening(execution_id) is None:
        if flow_run_of(execution_id) in known.runs:  # a power cut took it; Prefect has to do
            return None, None
        raise BundleError(f"execution {execution_id} is marked as open in the archive and has no opening record")
    record = workbench.archived_record(execution_id)
    return record.instance, record.job_status


def _waits_unclaimed(run: FlowRun | None, state: ObservedState | None, now: datetime) -> bool:
    """Whether a run is pending for long in a place where whoever took it would have said so, or ended."""
    if run is None or state is None or state.state.type != "PENDING" or now - state.time < STUCK:
        return False
    return run.work_pool_name is None or prefect_queries.has_workers(run.work_pool_name)


def _worker(run: FlowRun | None) -> tuple[str | None, str | None, str | None]:
    """The work pool, the worker and the pool's type that Prefect's labels of a flow run name."""
    labels = (run.labels or {}) if run else {}
    told = (labels.get(f"prefect.{name}") for name in ("work-pool.name", "worker.name", "worker.type"))
    pool, worker, kind = (str(one) if one else None for one in told)
    return pool, worker, kind
