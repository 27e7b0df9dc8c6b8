"""A flow run as the request for an execution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefect_executions.capture.parameters import recorded_parameters
from prefect_executions.executions.record import ExecuteRequest, Relative, tagged
from prefect_executions.methods.model import Method
from prefect_executions.prefect_api.flow_runs import created_by, deployment
from prefect_executions.settings import ArchiveLevel

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


def request_of(
    run: FlowRun,
    method: Method,
    execution_id: str,
    values: Mapping[str, Any] | None,
    *,
    archive: ArchiveLevel,
    environment: Mapping[str, str],
    parent: str | None = None,
) -> ExecuteRequest:
    """Return what was asked for with *run*; *values* are None where Prefect could not validate the parameters.

    *archive* is the level where the Method says none, *parent* the execution whose Method called this one.
    """
    raw = recorded_parameters(method, run.parameters)
    return ExecuteRequest(
        execution_id=execution_id,
        method_id=method.id,
        method_version=method.version,
        values=raw if values is None else dict(values),
        parameters=raw,
        validated=values is not None,
        archive=method.archive or archive,
        relatives=_relatives(run, execution_id, parent),
        flow_run_name=run.name,
        deployment=deployment(run, environment),
        tags=tuple(run.tags),
        created_by=created_by(run),
    )


def _relatives(run: FlowRun, execution_id: str, parent: str | None) -> tuple[Relative, ...]:
    first = str(run.id)
    retried = [Relative(execution_id=first, relation="retry-of")] if execution_id != first else []
    called = [Relative(execution_id=parent, relation="parent")] if parent else []
    # A run that a Method calls inherits the tags of the one around it.
    again = () if run.parent_task_run_id else tagged(run.tags)
    return (*retried, *called, *again)
