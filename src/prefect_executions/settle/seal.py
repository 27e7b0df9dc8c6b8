"""Seal what was judged to have ended, from the bundle here or from what the archive and Prefect know.

The record of a run whose Method's code never began and whose Method we do not have: from Prefect alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.processes import kill_execution_processes
from prefect_executions.errors import NotFoundError, SecretError
from prefect_executions.executions.record import Instance
from prefect_executions.lifecycle.history import ObservedState, merge_states
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.prefect_api import finish as prefect_finish
from prefect_executions.prefect_api import flow_runs
from prefect_executions.settings import ArchiveLevel
from prefect_executions.settle.decide import Judgement
from prefect_executions.settle.observe import Snapshot, flow_run_of
from prefect_executions.workbench.recovery import bring_back, end_runs, recover, restore
from prefect_executions.workbench.sealing import Ending
from prefect_executions.workbench.workbench import Outcome, Workbench

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


from typing import TYPE_CHECKING, Any

from prefect.exceptions import ObjectNotFound

from prefect_executions.capture.parameters import recorded_method
from prefect_executions.descriptors.schema import inputs_of
from prefect_executions.executions.record import Agent, ExecutionRecord
from prefect_executions.lifecycle.history import new_job_status
from prefect_executions.lifecycle.status import Observer
from prefect_executions.methods.model import Method
from prefect_executions.methods.secrets import MARK, marked_version, unmarked
from prefect_executions.prefect_api import client as api_client

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


def unstarted_record(
    run: FlowRun, execution_id: str, states: Sequence[ObservedState], archive: ArchiveLevel
) -> ExecutionRecord:
    """Return the record of *run* as far as Prefect tells it; *states* are those of this life of it.

    The Method is as its deployment describes it, without code, which nobody saw.
    """
    method = recorded_method(_method(run))
    created = new_job_status(
        execution_id,
        method.id,
        status=Status.CREATED,
        at=states[0].time,
        observer=Observer.PREFECT,
        prefect_state=states[0].state,
    )
    maker = flow_runs.created_by(run)
    return ExecutionRecord(
        method=method,
        request=flow_runs.request_of(run, method, execution_id, None, archive=archive, environment={}),
        infrastructure=flow_runs.infrastructure(run, {}),
        instance=Instance(),
        job_status=merge_states(created, states),
        agent=Agent(source="prefect", claims={"sub": maker["name"], **maker}) if maker and "name" in maker else Agent(),
    )


def _method(run: FlowRun) -> Method:
    name = api_client.client().read_flow(run.flow_id).name
    schema, description, version = _deployed(run)
    marks = [told[MARK] for told in schema.get("properties", {}).values() if isinstance(told, dict) and MARK in told]
    return Method(
        id=name,
        version=str(marks[0] if marks else marked_version(description) or version or run.flow_version or "unknown"),
        title=name.replace("-", " ").replace("_", " ").capitalize(),
        description=unmarked(description),
        inputs=inputs_of(schema),
    )


def _deployed(run: FlowRun) -> tuple[dict[str, Any], str | None, str | None]:
    if run.deployment_id is None:
        return {}, None, None
    try:
        told = api_client.client().read_deployment(run.deployment_id)
    except ObjectNotFound:
        return {}, None, None
    return told.parameter_openapi_schema or {}, told.description, told.version


def seal(
    workbench: Workbench,
    known: Snapshot,
    execution_id: str,
    states: Sequence[ObservedState],
    judgement: Judgement,
    *,
    archive: ArchiveLevel,
) -> Outcome:
    """Seal an execution whose record was opened, as *judgement* says it ended; *states* are Prefect's of this life.

    Where the record was lost, it is made of what Prefect knows, for the level *archive*.

    Raises:
        NotFoundError: If neither this workbench nor the archive has its record, nor Prefect the run.
        BundleError: If it cannot be sealed now.
        ArchiveError: If the archive cannot be asked.
    """
    end, run = _end(judgement, states), known.runs.get(flow_run_of(execution_id))
    if execution_id in known.here:
        if end.status is Status.CANCELLED or end.reason in {Reason.CRASHED, Reason.LOST}:
            bundle = OpenBundle.load(known.here[execution_id].folder, execution_id)
            kill_execution_processes(execution_id, instance=bundle.read(Instance))
        return known.here[execution_id].seal(
            execution_id, end, states=states, before_seal=lambda bundle: (*end_runs(bundle), *_make_up(bundle, run))
        )
    suspended = bring_back(workbench, execution_id)
    if suspended is not None:
        suspended.mark_stand_in()
        return workbench.seal(execution_id, end, states=states)
    recovered = recover(workbench.archive, execution_id)
    if recovered is None and run is not None and states:
        return seal_unstarted(workbench, run, execution_id, states=states, judgement=judgement, archive=archive)
    if recovered is None:
        raise NotFoundError(f"the archive has no opening record of {execution_id}, and neither has this workbench")
    return workbench.stand_in(
        replace(recovered.record, job_status=merge_states(recovered.record.job_status, states)),
        recovered.code,
        end,
        fill=partial(restore, workbench.archive, recovered),
        has_outputs=recovered.outputs is not None,
    )


def seal_unstarted(
    workbench: Workbench,
    run: FlowRun,
    execution_id: str,
    *,
    states: Sequence[ObservedState],
    judgement: Judgement,
    archive: ArchiveLevel,
) -> Outcome:
    """Seal a life of a run of which nothing was ever recorded, from what Prefect knows; *states* are of that life.

    Raises:
        BundleError: If it cannot be sealed now.
        ArchiveError: If the archive cannot be asked.
    """
    record = unstarted_record(run, execution_id, states, archive)
    return workbench.stand_in(record, {}, _end(judgement, states))


def _end(judgement: Judgement, states: Sequence[ObservedState]) -> Ending:
    """The end as judged, with the time and the state that Prefect has for it now."""
    assert judgement.end is not None  # noqa: S101 - only such a judgement is acted on
    last = states[-1] if states else None
    if last is None or not last.state.is_terminal:
        return judgement.end
    end = judgement.end._replace(at=last.time, prefect_state=last.state)
    asked = flow_runs.cancel_request(states) if end.reason is Reason.CRASHED else None
    if asked is None:
        return end
    # Who is killed because somebody asked for it was cancelled, whatever its supervisor calls it.
    return end._replace(status=Status.CANCELLED, reason=None, message=asked.message or end.message)


def _make_up(bundle: OpenBundle, run: FlowRun | None) -> tuple[str, ...]:
    """Do what the process could not do at its end; where a secret cannot be told any more the logs are not kept."""
    try:
        prefect_finish.finish_interrupted(bundle, run.parameters if run else {}, os.environ)
    except SecretError as error:
        aside = bundle.withhold_logs()
        return (f"the logs may hold a secret that cannot be told any more ({error}); they lie in {aside}",)
    return ()
