"""Sealing of ended executions from the bundle on this machine, the archive, or Prefect alone.

If the Method's code never began and the Method is not available, the record is
built from what Prefect has.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from prefect.exceptions import ObjectNotFound

from prefect_executions.archive.marks import LONG_AGO
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.parameters import recorded_method
from prefect_executions.capture.processes import kill_execution_processes
from prefect_executions.descriptors.schema import inputs_of
from prefect_executions.errors import NotFoundError, SecretError
from prefect_executions.executions.record import Agent, ExecutionRecord, Instance
from prefect_executions.lifecycle.history import ObservedState, merge_states, new_job_status
from prefect_executions.lifecycle.status import Observer, Reason, Status
from prefect_executions.methods.model import Method
from prefect_executions.methods.secrets import MARK, marked_version, unmarked
from prefect_executions.prefect_api import client as api_client
from prefect_executions.prefect_api import finish as prefect_finish
from prefect_executions.prefect_api import flow_runs, run_labels
from prefect_executions.settings import Settings
from prefect_executions.settle.decide import Judgement
from prefect_executions.settle.observe import Snapshot, flow_run_of
from prefect_executions.workbench.annotations import annotate
from prefect_executions.workbench.recovery import bring_back, end_script_runs, recover, restore
from prefect_executions.workbench.sealing import Ending
from prefect_executions.workbench.workbench import Outcome, Workbench

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse


def seal(
    workbench: Workbench,
    snapshot: Snapshot,
    execution_id: str,
    states: Sequence[ObservedState],
    judgement: Judgement,
    *,
    settings: Settings,
) -> Outcome:
    """Seal an execution that ended as *judgement* states; *states* are Prefect's states of its generation.

    If its record was lost, it is built from Prefect's data, as *settings* say.

    Raises:
        NotFoundError: If this workbench, the archive and Prefect have no data of it.
        BundleError: If it cannot be sealed now.
        ArchiveError: If the archive is unavailable.
    """
    run = snapshot.runs.get(flow_run_of(execution_id))
    end = _end(judgement, states)
    if judgement.unobserved:
        end = end._replace(alive_until=_alive_until(snapshot, execution_id, end.at))
    if execution_id in snapshot.reachable:
        if end.status is Status.CANCELLED or end.reason in {Reason.CRASHED, Reason.LOST}:
            bundle = OpenBundle.load(snapshot.reachable[execution_id].folder, execution_id)
            kill_execution_processes(execution_id, instance=bundle.read(Instance))
        return snapshot.reachable[execution_id].seal(
            execution_id,
            end,
            states=states,
            before_seal=lambda bundle: (*end_script_runs(bundle), *_finish(bundle, run, settings.secret_names)),
        )
    suspended = bring_back(workbench, execution_id)
    if suspended is not None:
        suspended.mark_stand_in()
        return workbench.seal(execution_id, end, states=states)
    recovered = recover(workbench.archive, execution_id)
    if recovered is None and run is not None and states:
        return seal_unstarted(workbench, run, execution_id, states=states, judgement=judgement, settings=settings)
    if recovered is None:
        raise NotFoundError(f"the opening record of {execution_id} is neither in the archive nor on this workbench")
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
    settings: Settings,
) -> Outcome:
    """Seal a generation of *run* that recorded nothing, from Prefect's data; *states* are those of the generation.

    Raises:
        BundleError: If it cannot be sealed now.
        ArchiveError: If the archive is unavailable.
    """
    record = _unstarted_record(run, execution_id, states, settings)
    outcome = workbench.stand_in(record, {}, _end(judgement, states))
    if changes := run_labels.changes_in(run):
        annotate(workbench, execution_id, changes, agent=record.agent.name, at=states[0].time)
    return outcome


def _end(judgement: Judgement, states: Sequence[ObservedState]) -> Ending:
    """Return the judged end with the time and state that Prefect has by now."""
    end = judgement.end
    assert end is not None  # noqa: S101 - only such judgements lead here
    if judgement.unobserved:  # without other evidence, the history's last entry counts
        end = end._replace(alive_until=LONG_AGO)
    last = states[-1] if states else None
    if last is None or not last.state.is_terminal:
        return end
    end = end._replace(at=judgement.died or last.time, prefect_state=last.state)
    request = flow_runs.cancel_request(states) if end.reason is Reason.CRASHED else None
    if request is None:
        return end
    # A run killed after a cancel request is CANCELLED, even if its worker reports CRASHED.
    return end._replace(status=Status.CANCELLED, reason=None, message=request.message or end.message)


def _alive_until(snapshot: Snapshot, execution_id: str, found: datetime) -> datetime:
    """Return the last evidence of life: the last heartbeat, or the last change of a file of the bundle here.

    Changes after the end was *found* are those of an earlier settle.
    """
    times = [LONG_AGO]
    if (silence := snapshot.silences.get(execution_id)) is not None:
        times.append(snapshot.now - silence)
    if execution_id in snapshot.reachable:
        bundle = OpenBundle.load(snapshot.reachable[execution_id].folder, execution_id)
        times += filter(None, [bundle.last_change(found)])
    return max(times)


def _finish(bundle: OpenBundle, run: FlowRun | None, names: tuple[str, ...]) -> tuple[str, ...]:
    """Do what the killed process left undone; without a secret's value the logs stay out of the bundle."""
    try:
        prefect_finish.finish_interrupted(bundle, run.parameters if run else {}, os.environ, names)
    except SecretError as error:
        aside = bundle.withhold_logs()
        return (f"the logs may hold a secret whose value is unavailable ({error}); they are in {aside}",)
    return ()


def _unstarted_record(
    run: FlowRun, execution_id: str, states: Sequence[ObservedState], settings: Settings
) -> ExecutionRecord:
    """Return the record of *run* from Prefect's data; the Method is as its deployment describes it, without code."""
    deployed = _deployed(run)
    method = recorded_method(_method(run, deployed), settings.secret_names)
    created = new_job_status(
        execution_id,
        method.id,
        status=Status.CREATED,
        at=states[0].time,
        observer=Observer.PREFECT,
        prefect_state=states[0].state,
    )
    return ExecutionRecord(
        method=method,
        request=flow_runs.request_of(
            run,
            method,
            execution_id,
            None,
            archive=settings.archive_level,
            environment={"PREFECT__DEPLOYMENT_NAME": deployed.name} if deployed else {},
            names=settings.secret_names,
        ),
        infrastructure=flow_runs.infrastructure(run, {}, settings.secret_names),
        instance=Instance(),
        job_status=merge_states(created, states),
        agent=flow_runs.requester(run) or Agent(),
    )


def _method(run: FlowRun, deployed: DeploymentResponse | None) -> Method:
    name = api_client.client().read_flow(run.flow_id).name
    schema = (deployed.parameter_openapi_schema if deployed else None) or {}
    description, version = (deployed.description, deployed.version) if deployed else (None, None)
    properties = [value for value in schema.get("properties", {}).values() if isinstance(value, dict)]
    marks = [value[MARK] for value in properties if MARK in value]
    return Method(
        id=name,
        version=str(marks[0] if marks else marked_version(description) or version or run.flow_version or "unknown"),
        title=name.replace("-", " ").replace("_", " ").capitalize(),
        description=unmarked(description),
        inputs=inputs_of(schema),
    )


def _deployed(run: FlowRun) -> DeploymentResponse | None:
    """Return the deployment of *run*, if it has one that still exists."""
    if run.deployment_id is None:
        return None
    try:
        return api_client.client().read_deployment(run.deployment_id)
    except ObjectNotFound:
        return None
