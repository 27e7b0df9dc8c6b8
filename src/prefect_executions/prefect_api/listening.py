"""What Prefect's event stream tells of executions, as it happens.

One connection, however many executions are watched; nothing is asked for again
and again. A connection that breaks is made anew, and the stream then begins a
minute before, so what is heard may be heard twice.

Prefect writes events down some seconds after they came. Who connects meanwhile
hears of them neither in the stream nor in what the stream begins with, so these
are asked for once, a little later.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Generator
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from queue import SimpleQueue
from typing import NamedTuple

from prefect.client.orchestration import get_client
from prefect.events import Event as PrefectEvent
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter

from prefect_executions.capture.secrets import redact_urls
from prefect_executions.documents import in_utc
from prefect_executions.errors import OrchestratorError
from prefect_executions.events import RESOURCE, EventName, Heard, heard
from prefect_executions.prefect_api.client import configured_api

_WRITTEN = 8.0
"""Seconds after which Prefect has written down what came before; its events are written every five seconds."""

_BEFORE = timedelta(minutes=1)
_MOST_MISSED = 50

_AGAIN = 1.0
"""Seconds between two attempts to reach a server that went away."""


class Connection(NamedTuple):
    """That the stream is there, or that it broke and why; it is tried again then."""

    there: bool
    why: str | None = None


def listen(executions: Collection[str] | None) -> Generator[Connection | Heard, None, None]:
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
    ear = _Ear(executions)
    ear.start()
    try:
        first = ear.queue.get()
        if isinstance(first, Connection) and not first.there:
            raise OrchestratorError(f"Prefect's event stream at {api} cannot be heard: {first.why}")
        yield first
        while True:
            yield ear.queue.get()
    finally:
        ear.stop()


class _Ear:
    """Prefect's subscriber on an event loop in a thread of its own."""

    def __init__(self, executions: Collection[str] | None) -> None:
        self.queue: SimpleQueue[Connection | Heard] = SimpleQueue()
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
                    self.queue.put(Connection(there=True))
                    missed = asyncio.create_task(self._hear_missed(datetime.now(UTC) - _BEFORE))
                    try:
                        async for event in subscriber:
                            self._hear(event)
                    finally:
                        missed.cancel()
            except Exception as error:  # noqa: BLE001 - whatever ended it, it is told and tried again
                why = redact_urls(str(error) or type(error).__name__)
            if there is not False:
                self.queue.put(Connection(there=False, why=why))
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
        told = heard(event.event, event.resource.root, event.payload, in_utc(event.occurred))
        if told is not None:
            self.queue.put(told)
