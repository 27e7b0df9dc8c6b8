"""Prefect's event stream: live events, and reconnection after the server was unavailable."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_executions import events
from prefect_executions.errors import OrchestratorError
from prefect_executions.events import EventName, ExecutionEvent
from prefect_executions.lifecycle.status import Status
from prefect_executions.prefect_api import events as prefect_events
from prefect_executions.prefect_api.events import StreamState
from records import a_job_status


class Relay:
    """A port that leads to a server, byte by byte, until somebody closes it."""

    def __init__(self, upstream: str) -> None:
        self._to = urlsplit(upstream)
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.come_back()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self._to.path}"

    def go_away(self) -> None:
        self._do(self._close())

    def come_back(self) -> None:
        self._do(self._open())

    def end(self) -> None:
        self.go_away()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._lead, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, on = await asyncio.open_connection(self._to.hostname, self._to.port)
        self._writers |= {writer, on}
        await asyncio.gather(self._copy(reader, on), self._copy(there, writer))
        self._writers -= {writer, on}

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while block := await reader.read(65536):
                writer.write(block)
                await writer.drain()
        writer.close()


@pytest.fixture
def relay(prefect_server: str) -> Iterator[Relay]:
    relay = Relay(prefect_server)
    yield relay
    relay.end()


THERE = {True: "there", False: "away"}


def until(stream: Iterator[StreamState | ExecutionEvent], wanted: str) -> list[StreamState | ExecutionEvent]:
    """Return what the stream yields up to a status, or a state of the connection."""
    words = []
    for word in stream:
        words.append(word)
        if (word.status if isinstance(word, ExecutionEvent) else THERE[word.connected]) == wanted:
            return words
    raise AssertionError(f"the stream ended before {wanted}")


def test_only_the_events_of_the_execution_arrive_and_the_stream_reconnects(relay):
    mine, other = str(uuid4()), str(uuid4())

    def tell(execution_id: str, status: Status) -> None:
        now = datetime.now(UTC)
        prefect_events.emit(events.status_events(a_job_status(status, execution_id=execution_id, begins=now), now))

    with temporary_settings({PREFECT_API_URL: relay.url}), closing(prefect_events.listen([mine])) as stream:
        assert next(stream) == StreamState(connected=True)
        tell(other, Status.FAILED)
        tell(mine, Status.EXECUTING)
        words = until(stream, Status.EXECUTING)
        assert {word.execution_id for word in words if isinstance(word, ExecutionEvent)} == {mine}

        relay.go_away()
        *_, broken = until(stream, "away")
        assert isinstance(broken, StreamState)
        assert broken.reason

        relay.come_back()
        until(stream, "there")
        tell(mine, Status.COMPLETED)
        *_, end = until(stream, Status.COMPLETED)
        assert isinstance(end, ExecutionEvent)
        assert (end.name, end.method_id) == (EventName.COMPLETED, "segment-coins")


@pytest.mark.long
def test_events_emitted_just_before_the_connection_arrive_too(prefect_server):
    execution_id, then = str(uuid4()), datetime.now(UTC) - timedelta(seconds=10)
    prefect_events.emit(events.status_events(a_job_status(Status.FAILED, execution_id=execution_id, begins=then), then))
    with closing(prefect_events.listen([execution_id])) as stream:
        *_, end = until(stream, Status.FAILED)

    assert isinstance(end, ExecutionEvent)
    assert end.execution_id == execution_id


def test_an_unavailable_server_is_an_error_at_once(prefect_server):
    away = temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"})
    with (
        away,
        closing(prefect_events.listen(None)) as stream,
        pytest.raises(OrchestratorError, match="is unavailable"),
    ):
        next(stream)


def test_without_a_configured_server_there_is_no_stream(prefect_server):
    nowhere = temporary_settings(restore_defaults={PREFECT_API_URL})
    with (
        nowhere,
        closing(prefect_events.listen(None)) as stream,
        pytest.raises(OrchestratorError, match="PREFECT_API_URL"),
    ):
        next(stream)
