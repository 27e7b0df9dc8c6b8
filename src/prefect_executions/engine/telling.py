"""What Prefect is told: status changes as events, progress as an artifact."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID, uuid5

from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.events import emit_event

from prefect_executions.engine.client import client
from prefect_executions.lifecycle import JobStatus, StatusEntry

RESOURCE = "prefect-executions.execution"
METHOD_RESOURCE = "prefect-executions.method"


class Progress(NamedTuple):
    """A progress artifact in the Prefect UI; `id` is None before the first one is made."""

    id: UUID | None


def tell(job_status: JobStatus, entry: StatusEntry) -> None:
    """Emit the status change *entry* as the Prefect event ``execution.<status>``, so that automations can react.

    The event's id follows from the execution and the status: telling it twice
    gives one event. It makes no request of its own, because Prefect sends events
    in the background.
    """
    execution_id = job_status.job_id
    flow_run_id = execution_id.partition(".")[0]
    emit_event(
        event=f"execution.{entry.status.value.lower()}",
        resource={
            "prefect.resource.id": f"{RESOURCE}.{execution_id}",
            "prefect.resource.name": execution_id,
            "prefect-executions.status": entry.status.value,
        },
        related=[
            {"prefect.resource.id": f"prefect.flow-run.{flow_run_id}", "prefect.resource.role": "flow-run"},
            {"prefect.resource.id": f"{METHOD_RESOURCE}.{job_status.process_id}", "prefect.resource.role": "method"},
        ],
        payload=entry.model_dump(mode="json", by_alias=True, exclude_none=True)
        | {"execution": execution_id, "method": job_status.process_id},
        occurred=entry.time,
        id=uuid5(UUID(flow_run_id), f"{execution_id} {entry.status.value}"),
    )


def show_progress(artifact: Progress, flow_run_id: UUID, percent: float, message: str | None) -> Progress:
    """Show *percent* (0-100) on the run's page in the Prefect UI and return the artifact, made at the first call."""
    if artifact.id is None:
        made = client().create_artifact(
            ArtifactCreate(
                type="progress",
                key=f"progress-{flow_run_id}",
                description=message,
                data=percent,
                flow_run_id=flow_run_id,
            )
        )
        return Progress(made.id)
    client().update_artifact(artifact.id, ArtifactUpdate(data=percent, description=message))
    return artifact
