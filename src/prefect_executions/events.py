"""The Prefect events of executions: names, ids, resources and payloads.

Law: an event is idempotent. Its id follows from the execution and the change that
it reports, so any process may emit it again. Times are those of the record. A
payload holds the names of outputs, never the value of an input or an output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid5

from prefect_executions.documents import text_of_time
from prefect_executions.executions.ids import ExecutionId
from prefect_executions.lifecycle.history import EntryKind, JobStatus, OutputFile, StatusEntry
from prefect_executions.lifecycle.status import Observer, Status

RESOURCE = "prefect-executions.execution"
METHOD_RESOURCE = "prefect-executions.method"
OUTPUT_RESOURCE = "prefect-executions.output"

STATUS_LABEL = "prefect-executions.status"
METHOD_LABEL = "prefect-executions.method"
REASON_LABEL = "prefect-executions.reason"
MEDIA_TYPE_LABEL = "prefect-executions.media-type"

RETENTION = timedelta(days=7)
"""How long Prefect keeps events; no event is emitted for an end that is older."""

FOLLOWS_WINDOW = timedelta(minutes=5)
"""How long an event names Prefect's own event as the event that it ``follows``.

Prefect holds an event back until it has seen the event that it follows, and it
remembers only recent events. After minutes, the times give the order.
"""

_MAX_LISTED = 100
_MAX_RELATED = 50  # Prefect accepts 100 related resources and adds some of its own
_LONGEST_TEXT = 2000
_OUTPUTS = "outputs/"
_LOGS = frozenset({"outputs/stdout.log", "outputs/stderr.log"})


class SeenLabel(StrEnum):
    """A label that a worker puts on a flow run: a fact about its container from the platform."""

    IMAGE = "prefect-executions.seen.image"
    IMAGE_ID = "prefect-executions.seen.image-id"
    IMAGE_DIGEST = "prefect-executions.seen.image-digest"
    CONTAINER = "prefect-executions.seen.container"
    POD = "prefect-executions.seen.pod"
    NODE = "prefect-executions.seen.node"


class EventName(StrEnum):
    """The name of an event that this package emits."""

    CREATED = "execution.created"
    SCHEDULED = "execution.scheduled"
    STARTED = "execution.started"
    EXECUTING = "execution.executing"
    PROGRESS = "execution.progress"
    COMPLETED = "execution.completed"
    FAILED = "execution.failed"
    CANCELLED = "execution.cancelled"
    ARCHIVED = "archive.completed"
    ARCHIVE_FAILED = "archive.failed"
    SETTLED = "record.settled"


WHEN: Mapping[EventName, str] = {
    EventName.CREATED: "the request was accepted",
    EventName.SCHEDULED: "the execution was assigned to infrastructure",
    EventName.STARTED: "preparation began",
    EventName.EXECUTING: "the Method's own code began",
    EventName.PROGRESS: "the Method called `progress()`; at most about once a second",
    EventName.COMPLETED: "the execution succeeded and its record is sealed",
    EventName.FAILED: "the execution failed and its record is sealed",
    EventName.CANCELLED: "the execution was cancelled and its record is sealed",
    EventName.ARCHIVED: "the archive has the complete record",
    EventName.ARCHIVE_FAILED: "the record is sealed but could not be archived; this is retried",
    EventName.SETTLED: "`executions settle` sealed the record instead of the run itself",
}
"""When each event is emitted, as the documentation says it."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event for Prefect's API."""

    name: EventName
    id: UUID
    occurred: datetime
    execution_id: str
    method_id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    payload: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[OutputFile, ...] = ()
    follows: UUID | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the event as it stands in the body of a request."""
        flow_run_id = ExecutionId.parse(self.execution_id).flow_run_id
        listed = {"outputs": [_listed(output) for output in self.outputs[:_MAX_LISTED]]} if self.outputs else {}
        return {
            "event": self.name.value,
            "id": str(self.id),
            "occurred": text_of_time(self.occurred),
            "follows": self.follows and str(self.follows),
            "resource": {
                "prefect.resource.id": f"{RESOURCE}.{self.execution_id}",
                "prefect.resource.name": f"{self.method_id} {self.execution_id}",
                METHOD_LABEL: self.method_id,
                **self.labels,
            },
            "related": [
                {"prefect.resource.id": f"prefect.flow-run.{flow_run_id}", "prefect.resource.role": "flow-run"},
                {
                    "prefect.resource.id": f"{METHOD_RESOURCE}.{self.method_id}",
                    "prefect.resource.role": "method",
                    "prefect.resource.name": self.method_id,
                },
                *(_related(output) for output in self.outputs[:_MAX_RELATED]),
            ],
            "payload": {"execution": self.execution_id, "method": self.method_id, **self.payload, **listed},
        }


def status_events(job_status: JobStatus, now: datetime) -> Iterator[Event]:
    """Yield an event for each change of status so far, in order; the last event lists the outputs.

    Each event follows Prefect's own event for that state; EXECUTING follows RUNNING.
    If settle ended the execution, `record.settled` comes last.
    """
    leader: UUID | None = None
    for entry in job_status.history:
        if entry.kind is not EntryKind.STATUS:
            continue
        leader = (entry.prefect_state and entry.prefect_state.id) or (
            leader if entry.status is Status.EXECUTING else None
        )
        yield _event(
            EventName(f"execution.{entry.status.value.lower()}"),
            job_status,
            entry.time,
            entry.status.value,
            labels=_labels(entry),
            payload=_payload(entry),
            outputs=_results_first(job_status) if entry.status.terminal else (),
            follows=leader if now - entry.time < FOLLOWS_WINDOW else None,
        )
    if job_status.execution_status.terminal and job_status.history:
        yield from _settled(job_status)


def archived_event(job_status: JobStatus, manifest_sha256: str, at: datetime) -> Event:
    """Return the event that the archive has the complete record."""
    return _event(
        EventName.ARCHIVED,
        job_status,
        at,
        manifest_sha256,
        labels={STATUS_LABEL: job_status.execution_status.value},
        payload={"status": job_status.execution_status.value, "manifestSha256": manifest_sha256},
        outputs=_results_first(job_status),
    )


def archive_failed_event(job_status: JobStatus, why: str, at: datetime) -> Event:
    """Return the event that archiving the record failed; *why* must hold no secret.

    Events with equal reasons have the same id.
    """
    message = why[:_LONGEST_TEXT]
    labels = {STATUS_LABEL: job_status.execution_status.value}
    return _event(EventName.ARCHIVE_FAILED, job_status, at, message, labels=labels, payload={"message": message})


def progress_event(execution_id: str, method_id: str, percent: float, message: str | None, at: datetime) -> Event:
    """Return the event that the Method reported progress."""
    payload: dict[str, Any] = {"progress": percent, "time": text_of_time(at)}
    return Event(
        name=EventName.PROGRESS,
        id=_id(execution_id, EventName.PROGRESS, text_of_time(at)),
        occurred=at,
        execution_id=execution_id,
        method_id=method_id,
        labels={STATUS_LABEL: Status.EXECUTING.value},
        payload=payload | ({"message": message[:_LONGEST_TEXT]} if message else {}),
    )


@dataclass(frozen=True, kw_only=True)
class ExecutionEvent:
    """A received event of this package."""

    name: EventName
    execution_id: str
    method_id: str
    time: datetime
    status: Status | None = None
    progress: float | None = None
    message: str | None = None


def parse_event(
    name: str, resource: Mapping[str, str], payload: Mapping[str, Any], occurred: datetime
) -> ExecutionEvent | None:
    """Return a received event; None if this package did not emit it."""
    resource_id = resource.get("prefect.resource.id", "")
    if name not in set(EventName) or not resource_id.startswith(f"{RESOURCE}."):
        return None
    status, progress, message = payload.get("status"), payload.get("progress"), payload.get("message")
    return ExecutionEvent(
        name=EventName(name),
        execution_id=resource_id.removeprefix(f"{RESOURCE}."),
        method_id=resource.get(METHOD_LABEL, ""),
        time=occurred,
        status=Status(status) if status in set(Status) else None,
        progress=float(progress) if isinstance(progress, int | float) else None,
        message=str(message) if message else None,
    )


def _event(name: EventName, job_status: JobStatus, at: datetime, what: str, **more: Any) -> Event:
    return Event(
        name=name,
        id=_id(job_status.job_id, name, what),
        occurred=at,
        execution_id=job_status.job_id,
        method_id=job_status.process_id,
        **more,
    )


def _id(execution_id: str, name: EventName, what: str) -> UUID:
    return uuid5(ExecutionId.parse(execution_id).flow_run_uuid, f"{execution_id} {name} {what}")


def _settled(job_status: JobStatus) -> Iterator[Event]:
    end = next(entry for entry in reversed(job_status.history) if entry.kind is EntryKind.STATUS)
    if end.observer is Observer.SETTLE:
        # One microsecond after the end, so that events sorted by time stay in order.
        at = end.time + timedelta(microseconds=1)
        yield _event(EventName.SETTLED, job_status, at, end.status.value, labels=_labels(end), payload=_payload(end))


def _labels(entry: StatusEntry) -> dict[str, str]:
    reason = {REASON_LABEL: entry.reason.value} if entry.reason else {}
    return {STATUS_LABEL: entry.status.value, **reason}


def _payload(entry: StatusEntry) -> dict[str, Any]:
    payload = entry.model_dump(mode="json", by_alias=True, exclude_none=True)
    return payload | ({"message": entry.message[:_LONGEST_TEXT]} if entry.message else {})


def _results_first(job_status: JobStatus) -> tuple[OutputFile, ...]:
    # The logs come last, so that a list that is cut off names the Method's own files.
    return tuple(sorted(job_status.outputs, key=lambda output: output.path in _LOGS))


def _listed(output: OutputFile) -> dict[str, str]:
    return {"name": output.path.removeprefix(_OUTPUTS), "mediaType": output.media_type}


def _related(output: OutputFile) -> dict[str, str]:
    name = output.path.removeprefix(_OUTPUTS)
    return {
        "prefect.resource.id": f"{OUTPUT_RESOURCE}.{name}",
        "prefect.resource.role": "output",
        "prefect.resource.name": name,
        MEDIA_TYPE_LABEL: output.media_type,
    }
