"""Run an execution again through a deployment of its Method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect_executions.dispatch.submit import Request, Submitted, submit
from prefect_executions.operations.replay import asked_again
from prefect_executions.workbench.catalog import Reader


def submit_again(
    reader: Reader, execution_id: str, edits: Mapping[str, Any] | None = None, *, pool: str | None = None
) -> Submitted:
    """Start a run with the inputs of an execution, those in *edits* in place of its own.

    It goes through the deployment that the execution came through, else through the one of its Method on
    *pool*. The inputs' files are told by where they came from: a worker cannot see this machine's copies.

    Raises:
        NotFoundError: If there is no such execution or deployment.
        RequestError: If an input is wrong or not known, or the Method has several deployments.
        SecretError: If a secret input is not named anew.
        OrchestratorError: If Prefect's API cannot be asked.
    """
    record = reader.record(execution_id)
    again = asked_again(record, edits or {})
    came, name = record.request.deployment, record.method.id
    if pool is None and came is not None and came.name:
        name = f"{name}/{came.name}"
    elif pool is None:
        pool = record.infrastructure.work_pool
    return submit(name, Request(parameters=again.parameters, pool=pool, tags=(again.relative.tag,)))
