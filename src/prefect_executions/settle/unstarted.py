"""The record of a run whose Method's code never began and whose Method we do not have: from Prefect alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prefect.exceptions import ObjectNotFound

from prefect_executions.capture.parameters import recorded_method
from prefect_executions.descriptors.openapi import inputs_of
from prefect_executions.executions.record import Agent, ExecutionRecord, Instance
from prefect_executions.lifecycle.following import follow
from prefect_executions.lifecycle.history import Seen, begin
from prefect_executions.lifecycle.status import Observer, Status
from prefect_executions.methods.model import Method
from prefect_executions.methods.secrets import MARK, marked_version, unmarked
from prefect_executions.prefect_api import client as api_client
from prefect_executions.prefect_api import flow_runs, requests
from prefect_executions.settings import ArchiveLevel

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


def unstarted_record(run: FlowRun, execution_id: str, states: Sequence[Seen], archive: ArchiveLevel) -> ExecutionRecord:
    """Return the record of *run* as far as Prefect tells it; *states* are those of this life of it.

    The Method is as its deployment describes it, without code, which nobody saw.
    """
    method = recorded_method(_method(run))
    created = begin(
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
        request=requests.request_of(run, method, execution_id, None, archive=archive, environment={}),
        infrastructure=flow_runs.infrastructure(run, {}),
        instance=Instance(),
        job_status=follow(created, states),
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
