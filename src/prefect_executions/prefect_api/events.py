"""Events in Prefect: emit status changes with acknowledgement, subscribe to them; progress artifacts.

Law: an event counts as emitted once Prefect's API has acknowledged it. No run
waits for that, and the end of a process waits at most `FLUSH_TIMEOUT`. `settle`
emits what was not acknowledged.

The subscription is one connection for any number of executions. After it breaks
it is opened again, a minute in the past, so events may arrive twice. Prefect
stores events some seconds after they arrive; those that it received just before
the connection are in neither the stream nor its backlog, so they are fetched
once, a little later.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from queue import SimpleQueue
from typing import NamedTuple
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    ArtifactFilterType,
)
from prefect.events import Event as PrefectEvent
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter

from prefect_executions import background, events
from prefect_executions.capture.secrets import redact_urls
from prefect_executions.documents import in_utc
from prefect_executions.errors import OrchestratorError
from prefect_executions.events import RESOURCE, Event, EventName, ExecutionEvent, parse_event
from prefect_executions.executions.ids import ExecutionId
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.prefect_api.client import client, configured_api, process_client

log = logging.getLogger("prefect_executions")

FLUSH_TIMEOUT = 5.0
"""Seconds that the end of a process may wait for Prefect's acknowledgement."""

_ARCHIVE_WAIT = 1.0
"""Seconds to wait for the archive's result: one request then carries both, and the loser of a race emits nothing."""

_STORED = 8.0
"""Seconds after which Prefect has stored the events that it received; it stores them every five seconds."""

_BACKLOG = timedelta(minutes=1)
_MAX_MISSED = 50

_PROGRESS = "progress"
"""Prefect's type of an artifact that is a progress bar."""

_RECONNECT = 1.0
"""Seconds between two attempts to connect to a server that is unavailable."""

_emitting: set[TerminalEvents] = set()


class Progress(NamedTuple):
    """A progress artifact in the Prefect UI; `id` is None until it is created."""

    id: UUID | None


def emit(batch: Iterable[Event]) -> None:
    """Send events to Prefect's API in one request; they are acknowledged when it returns.

    Raises:
        Exception: Any error of Prefect's client, if they are not acknowledged.
    """
    bodies = [event.as_json() for event in batch]
    if bodies:
        process_client().request("POST", "/events", json=bodies)


def emit_changes(job_status: JobStatus) -> None:
    """Emit the status changes so far; idempotent, because event ids follow from the execution and the status.

    Raises:
        Exception: As `emit`.
    """
    emit(events.status_events(job_status, datetime.now(UTC)))


def has_events(execution_id: str) -> bool:
    """Return whether Prefect has events of an execution, which means that a record of it exists.

    Raises:
        OrchestratorError: If Prefect's API is unavailable.
    """
    query = {"filter": {"resource": {"id": [f"{events.RESOURCE}.{execution_id}"]}}, "limit": 1}
    try:
        return bool(client().request("POST", "/events/filter", json=query).json()["events"])
    except Exception as error:
        raise OrchestratorError(f"the events of {execution_id} cannot be read from Prefect's API: {error}") from error


class TerminalEvents:
    """Emits the end of one sealed execution in a background thread, while the record is archived.

    It emits all status changes: the process that should have emitted the first ones
    may have been killed. Emitting is idempotent.
    """

    def __init__(self, job_status: JobStatus) -> None:
        self._job_status = job_status
        self._archive: Event | None = None
        self._decided = threading.Event()
        self._withdrawn = False
        self._lock = threading.Lock()
        self._acknowledged = _is_too_old(job_status)
        self._action: Callable[[], None] | None = None
        self._thread: threading.Thread | None = None
        if not self._acknowledged:
            _emitting.add(self)
            self._thread = background.submit(self._run, name="emit")

    def archived(self, manifest_sha256: str) -> None:
        """Report that the archive has the whole record."""
        self._archive = events.archived_event(self._job_status, manifest_sha256, datetime.now(UTC))
        self._decided.set()

    def not_archived(self, why: str) -> None:
        """Report why the archive did not accept the record."""
        self._archive = events.archive_failed_event(self._job_status, redact_urls(why), datetime.now(UTC))
        self._decided.set()

    def withdraw(self) -> None:
        """Emit nothing: another process sealed the execution first and emits its end."""
        self._withdrawn = True
        self._decided.set()

    def on_acknowledged(self, act: Callable[[], None]) -> None:
        """Run *act* once everything is acknowledged: now, or later in the emitting thread."""
        with self._lock:
            if not self._acknowledged:
                self._action = act
                return
        act()

    def join(self, timeout: float) -> None:
        """Wait until the end is emitted, or could not be, at most *timeout* seconds."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self._emit_all()
        except Exception as error:  # noqa: BLE001 - a background thread stays silent; settle emits the events
            log.debug("the end of execution %s was not emitted: %s", self._job_status.job_id, error)
        finally:
            _emitting.discard(self)

    def _emit_all(self) -> None:
        in_one = self._decided.wait(_ARCHIVE_WAIT)
        if self._withdrawn:
            return
        emit([*events.status_events(self._job_status, datetime.now(UTC)), *([self._archive] if self._archive else [])])
        if not in_one:
            self._decided.wait()
            if self._archive:
                emit([self._archive])
        with self._lock:
            self._acknowledged = True
        if self._action is not None:
            self._action()
        end_progress(self._job_status)


def flush_events(timeout: float = FLUSH_TIMEOUT) -> None:
    """Wait until this process has emitted the events of all ends, at most *timeout* seconds."""
    until = time.monotonic() + timeout
    for end in tuple(_emitting):
        end.join(max(0.0, until - time.monotonic()))


def _is_too_old(job_status: JobStatus) -> bool:
    """Whether Prefect would have deleted the events by now, so that no automation reacts to them."""
    ended = job_status.end_found
    return ended is not None and datetime.now(UTC) - ended > events.RETENTION


def show_progress(
    artifact: Progress, flow_run_id: UUID, method_id: str, percent: float, message: str | None
) -> Progress:
    """Show *percent* (0-100) on the run's page in the Prefect UI; return the artifact, created by the first call.

    Its key names the Method, so that Prefect's list of artifacts has an entry for each Method, with its runs.
    """
    if artifact.id is None:
        created = client().create_artifact(
            ArtifactCreate(
                type=_PROGRESS,
                key=_progress_key(method_id),
                description=message,
                data=percent,
                flow_run_id=flow_run_id,
            )
        )
        return Progress(created.id)
    client().update_artifact(artifact.id, ArtifactUpdate(data=percent, description=message))
    return artifact


def end_progress(job_status: JobStatus) -> None:
    """Let the progress artifact of an ended execution say how it ended, if the execution has any.

    Raises:
        Exception: Any error of Prefect's client.
    """
    if job_status.progress is None:
        return
    shown = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[ExecutionId.parse(job_status.job_id).flow_run_uuid]),
        type=ArtifactFilterType(any_=[_PROGRESS]),
        key=ArtifactFilterKey(any_=[_progress_key(job_status.process_id)]),  # the Method may show bars of its own
    )
    end = ArtifactUpdate(data=float(job_status.progress), description=job_status.execution_status.value.lower())
    for artifact in process_client().read_artifacts(artifact_filter=shown):
        process_client().update_artifact(artifact.id, end)


def _progress_key(method_id: str) -> str:
    """Return the key of a Method's progress artifacts; Prefect accepts small letters, digits and dashes."""
    return f"{re.sub('[^a-z0-9]+', '-', method_id.lower()).strip('-')}-progress".lstrip("-")


class StreamState(NamedTuple):
    """A change of the connection: it is open, or it broke for a *reason* and will be opened again."""

    connected: bool
    reason: str | None = None


def listen(executions: Collection[str] | None) -> Generator[StreamState | ExecutionEvent, None, None]:
    """Yield the events of *executions*, or of all, from a minute ago on, until the generator is closed.

    A `StreamState` comes first, and whenever the connection breaks or is open again.

    Raises:
        OrchestratorError: If no server is configured, or the first connection fails.
    """
    api = configured_api()
    if api is None:
        raise OrchestratorError(
            "No Prefect server is configured, and an embedded server has only the events of its own process. "
            "Set PREFECT_API_URL."
        )
    stream = EventStream(executions)
    stream.start()
    try:
        first = stream.queue.get()
        if isinstance(first, StreamState) and not first.connected:
            raise OrchestratorError(f"Prefect's event stream at {api} is unavailable: {first.reason}")
        yield first
        while True:
            yield stream.queue.get()
    finally:
        stream.stop()


class EventStream:
    """Prefect's subscriber, on an event loop in a thread of its own."""

    def __init__(self, executions: Collection[str] | None) -> None:
        self.queue: SimpleQueue[StreamState | ExecutionEvent] = SimpleQueue()
        ids = None if executions is None else [f"{RESOURCE}.{execution_id}" for execution_id in executions]
        resource = EventResourceFilter(id_prefix=[f"{RESOURCE}."]) if ids is None else EventResourceFilter(id=ids)
        self._filter = EventFilter(event=EventNameFilter(name=[name.value for name in EventName]), resource=resource)
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = background.submit(self._run, name="listen")

    def stop(self) -> None:
        """Close the stream; a connection attempt under way ends with the process."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._stopped.set)
        if self._thread is not None:
            self._thread.join(2)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._until_stopped())

    async def _until_stopped(self) -> None:
        listening = asyncio.create_task(self._listen())
        await self._stopped.wait()
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening

    async def _listen(self) -> None:
        connected: bool | None = None
        while True:
            reason = "the server closed it"
            try:
                async with get_events_subscriber(self._filter, reconnection_attempts=0) as subscriber:
                    connected = True
                    self.queue.put(StreamState(connected=True))
                    missed = asyncio.create_task(self._fetch_missed(datetime.now(UTC) - _BACKLOG))
                    try:
                        async for event in subscriber:
                            self._receive(event)
                    finally:
                        missed.cancel()
            except Exception as error:  # noqa: BLE001 - any error is reported and the connection opened again
                reason = redact_urls(str(error) or type(error).__name__)
            if connected is not False:
                self.queue.put(StreamState(connected=False, reason=reason))
            connected = False
            await asyncio.sleep(_RECONNECT)

    async def _fetch_missed(self, since: datetime) -> None:
        await asyncio.sleep(_STORED)
        missed = self._filter.model_copy(update={"occurred": EventOccurredFilter(since=since)})
        with suppress(Exception):  # the stream reports a server that becomes unavailable
            async with get_client() as client:
                page = await client.read_events(missed, limit=_MAX_MISSED)
            for event in reversed(page.events):
                self._receive(event)

    def _receive(self, event: PrefectEvent) -> None:
        parsed = parse_event(event.event, event.resource.root, event.payload, in_utc(event.occurred))
        if parsed is not None:
            self.queue.put(parsed)
