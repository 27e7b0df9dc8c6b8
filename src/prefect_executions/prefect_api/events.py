"""What Prefect is told: status changes and the archive's word as acknowledged events, progress as an artifact.

Law: an event counts as told when Prefect's API has acknowledged it. No run waits
for that, and who ends a process not longer than `PATIENCE`; what is not
acknowledged is told again by settle.

What Prefect's event stream tells of executions, as it happens.

One connection, however many executions are watched; nothing is asked for again
and again. A connection that breaks is made anew, and the stream then begins a
minute before, so what is heard may be heard twice.

Prefect writes events down some seconds after they came. Who connects meanwhile
hears of them neither in the stream nor in what the stream begins with, so these
are asked for once, a little later.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from queue import SimpleQueue
from typing import NamedTuple
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.events import Event as PrefectEvent
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter

from prefect_executions import events
from prefect_executions.capture.secrets import redact_urls
from prefect_executions.documents import in_utc
from prefect_executions.errors import OrchestratorError
from prefect_executions.events import RESOURCE, Event, EventName, ExecutionEvent, parse_event
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.prefect_api.client import client, configured_api, process_client

log = logging.getLogger("prefect_executions")

FLUSH_TIMEOUT = 5.0
"""Seconds that the end of a process may wait for Prefect's acknowledgement."""

_TOGETHER = 1.0
"""Seconds that the end waits for the archive's word: both are one request then, and who was too late tells nothing."""

_telling: set[threading.Thread] = set()


class Progress(NamedTuple):
    """A progress artifact in the Prefect UI; `id` is None before the first one is made."""

    id: UUID | None


def emit(told: Iterable[Event]) -> None:
    """Tell events to Prefect's API in one request; when it returns they are acknowledged.

    Raises:
        Exception: Whatever Prefect's client raises, if they are not.
    """
    bodies = [event.as_json() for event in told]
    if bodies:
        process_client().request("POST", "/events", json=bodies)


def emit_changes(job_status: JobStatus) -> None:
    """Tell the status changes so far; ids follow from execution and status, so an event told twice is one event.

    Raises:
        Exception: As `tell`.
    """
    emit(events.changes(job_status, datetime.now(UTC)))


def has_events(execution_id: str) -> bool:
    """Return whether Prefect has events of an execution, so that somebody keeps a record of it.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    wanted = {"filter": {"resource": {"id": [f"{events.RESOURCE}.{execution_id}"]}}, "limit": 1}
    try:
        return bool(client().request("POST", "/events/filter", json=wanted).json()["events"])
    except Exception as error:
        raise OrchestratorError(f"Prefect's API does not tell the events of {execution_id}: {error}") from error


class TerminalEvents:
    """The telling of one sealed execution's end, in a thread beside its archiving and what comes after.

    All its status changes are told, because the process that should have told the
    first of them may have been killed. Telling once more changes nothing.
    """

    def __init__(self, job_status: JobStatus) -> None:
        self._job_status = job_status
        self._archive: Event | None = None
        self._known = threading.Event()
        self._withdrawn = False
        self._lock = threading.Lock()
        self._acknowledged = _too_old(job_status)
        self._afterwards: Callable[[], None] | None = None
        if not self._acknowledged:
            # A new thread has none of Prefect's settings.
            thread = threading.Thread(target=copy_context().run, args=(self._tell,), name="tell", daemon=True)
            _telling.add(thread)
            thread.start()

    def archived(self, manifest_sha256: str) -> None:
        """Say that the archive has all of the record."""
        self._archive = events.archived(self._job_status, manifest_sha256, datetime.now(UTC))
        self._known.set()

    def not_archived(self, why: str) -> None:
        """Say why the archive did not take the record."""
        self._archive = events.archive_failed(self._job_status, redact_urls(why), datetime.now(UTC))
        self._known.set()

    def withdraw(self) -> None:
        """Tell nothing: another sealed the execution before, and its end is another's to tell."""
        self._withdrawn = True
        self._known.set()

    def on_acknowledged(self, act: Callable[[], None]) -> None:
        """Do *act* when all is acknowledged: at once if it is, else in the thread that tells."""
        with self._lock:
            if not self._acknowledged:
                self._afterwards = act
                return
        act()

    def _tell(self) -> None:
        try:
            self._tell_all()
        except Exception as error:  # noqa: BLE001 - a thread of ours must not speak up; settle tells again
            log.debug("the end of execution %s is not told: %s", self._job_status.job_id, error)
        finally:
            _telling.discard(threading.current_thread())

    def _tell_all(self) -> None:
        together = self._known.wait(_TOGETHER)
        if self._withdrawn:
            return
        emit([*events.changes(self._job_status, datetime.now(UTC)), *([self._archive] if self._archive else [])])
        if not together:
            self._known.wait()
            if self._archive:
                emit([self._archive])
        with self._lock:
            self._acknowledged = True
        if self._afterwards is not None:
            self._afterwards()


def flush_events(patience: float = FLUSH_TIMEOUT) -> None:
    """Return when all ends are told that this process is telling, after *patience* seconds at the latest."""
    until = time.monotonic() + patience
    for thread in tuple(_telling):
        thread.join(max(0.0, until - time.monotonic()))


def _too_old(job_status: JobStatus) -> bool:
    """Whether Prefect would have forgotten the end by now, so that nobody reacts to it."""
    return job_status.finished is not None and datetime.now(UTC) - job_status.finished > events.KEPT


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


_WRITTEN = 8.0
"""Seconds after which Prefect has written down what came before; its events are written every five seconds."""

_BEFORE = timedelta(minutes=1)
_MOST_MISSED = 50

_AGAIN = 1.0
"""Seconds between two attempts to reach a server that went away."""


class StreamState(NamedTuple):
    """That the stream is there, or that it broke and why; it is tried again then."""

    there: bool
    why: str | None = None


def listen(executions: Collection[str] | None) -> Generator[StreamState | ExecutionEvent, None, None]:
    """Yield what is told of *executions*, or of all, from now and the minute before on, until it is closed.

    A `Connection` comes first and whenever the stream breaks or is there again.

    Raises:
        OrchestratorError: If no server is configured, or it cannot be reached at the beginning.
    """
    api = configured_api()
    if api is None:
        raise OrchestratorError(
            "No Prefect server is configured, and an embedded one tells its own process alone. Set PREFECT_API_URL."
        )
    ear = EventStream(executions)
    ear.start()
    try:
        first = ear.queue.get()
        if isinstance(first, StreamState) and not first.there:
            raise OrchestratorError(f"Prefect's event stream at {api} cannot be heard: {first.why}")
        yield first
        while True:
            yield ear.queue.get()
    finally:
        ear.stop()


class EventStream:
    """Prefect's subscriber on an event loop in a thread of its own."""

    def __init__(self, executions: Collection[str] | None) -> None:
        self.queue: SimpleQueue[StreamState | ExecutionEvent] = SimpleQueue()
        only = None if executions is None else [f"{RESOURCE}.{execution_id}" for execution_id in executions]
        resource = EventResourceFilter(id_prefix=[f"{RESOURCE}."]) if only is None else EventResourceFilter(id=only)
        self._filter = EventFilter(event=EventNameFilter(name=[name.value for name in EventName]), resource=resource)
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        context = copy_context()  # a new thread has none of Prefect's settings
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="listen", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End; a connection that is just being made is left to end with the process."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._stopped.set)
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
        there: bool | None = None
        while True:
            why = "the server closed it"
            try:
                async with get_events_subscriber(self._filter, reconnection_attempts=0) as subscriber:
                    there = True
                    self.queue.put(StreamState(there=True))
                    missed = asyncio.create_task(self._hear_missed(datetime.now(UTC) - _BEFORE))
                    try:
                        async for event in subscriber:
                            self._hear(event)
                    finally:
                        missed.cancel()
            except Exception as error:  # noqa: BLE001 - whatever ended it, it is told and tried again
                why = redact_urls(str(error) or type(error).__name__)
            if there is not False:
                self.queue.put(StreamState(there=False, why=why))
            there = False
            await asyncio.sleep(_AGAIN)

    async def _hear_missed(self, since: datetime) -> None:
        await asyncio.sleep(_WRITTEN)
        wanted = self._filter.model_copy(update={"occurred": EventOccurredFilter(since=since)})
        with suppress(Exception):  # a server that goes away now is told by the stream
            async with get_client() as client:
                page = await client.read_events(wanted, limit=_MOST_MISSED)
            for event in reversed(page.events):
                self._hear(event)

    def _hear(self, event: PrefectEvent) -> None:
        told = parse_event(event.event, event.resource.root, event.payload, in_utc(event.occurred))
        if told is not None:
            self.queue.put(told)
