"""A run in a Docker container; each call reads its state from the engine."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from math import ceil
from typing import Any

from docker import APIClient
from docker.errors import APIError, DockerException, NotFound
from docker.types import CancellableStream
from requests.exceptions import ConnectionError as AwayError
from requests.exceptions import ReadTimeout, RequestException

from prefect_executions.documents import in_utc
from prefect_executions.errors import InfrastructureError
from prefect_executions.runtimes.container_init import OWN_FOLDER
from prefect_executions.runtimes.interface import (
    GRACE,
    LABEL_PREFIX,
    STREAMS,
    Exit,
    LogChunk,
    RunLocation,
    RunStatus,
    StreamName,
)

_CANCELLED = "-cancelled"  # a suffix of its name, which nothing inside the container can change
_WAIT_TIMEOUT = 30  # seconds that one request waits for the end
_KILL_TIMEOUT = 120.0  # seconds; the engine may be on a busy machine
_RECONNECT = 0.2  # seconds
_CONFLICT = 409


class ContainerRun:
    """A run in an existing container."""

    def __init__(self, api: APIClient, run_id: str, container: str) -> None:
        self._api = api
        self._container = container
        self.id = run_id

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it runs, and if its end was not observed."""
        end = self._end()
        return None if end is None else end.code

    def status(self) -> RunStatus:
        """Return its status now."""
        details = self._inspect()
        if details is not None and details["State"]["Status"] == "created":
            return RunStatus.WAITING
        end = self._end_of(details)
        return RunStatus.RUNNING if end is None else end.status

    def seen(self) -> RunLocation:
        """Return the container, its image and its engine, as the engine reports them."""
        details = self._inspect()
        if details is None:
            return RunLocation(container=self._container)
        with translate_errors("the engine's name"):
            node = self._api.info().get("Name")
        digest = details["Config"]["Labels"].get(f"{LABEL_PREFIX}.image-digest")
        return RunLocation(container=details["Id"], image=details["Image"], node=node, image_digest=digest)

    def wait(self, timeout: float | None = None) -> Exit:
        """Return how it ended, as soon as it has."""
        until = None if timeout is None else time.monotonic() + timeout
        while (end := self._end()) is None:
            left = _WAIT_TIMEOUT if until is None else min(_WAIT_TIMEOUT, until - time.monotonic())
            if left <= 0:
                raise TimeoutError(f"The run {self.id} still runs after {timeout:g} s")
            with translate_errors(f"the end of {self.id}"), suppress(NotFound):
                try:
                    self._api.wait(self._container, timeout=ceil(left))
                except (ReadTimeout, AwayError) as error:
                    if not _is_timeout(error):
                        raise
        return end

    def logs(self) -> Iterator[LogChunk]:
        """Yield its output, live, until it has ended and everything was read."""
        chunks: queue.Queue[LogChunk | Exception | None] = queue.Queue(maxsize=64)
        readers = [_Reader(self, stream, chunks) for stream in STREAMS]
        try:
            active = len(readers)
            while active:
                chunk = chunks.get()
                if isinstance(chunk, Exception):
                    raise chunk
                if chunk is None:
                    active -= 1
                else:
                    yield chunk
        finally:
            for reader in readers:
                reader.stop()

    def cancel(self, grace: float = GRACE) -> Exit:
        """End all of its processes; return its end when the container has stopped."""
        details = self._inspect()
        if details is not None and details["State"]["Status"] == "created":
            self.discard()
            return Exit(status=RunStatus.CANCELLED, why="it was cancelled before it started")
        end = self._end_of(details)
        if end is not None:
            return end
        with translate_errors(f"the cancellation of {self.id}"), suppress(NotFound):
            self._kill(grace)
        return self.wait(_KILL_TIMEOUT)

    def discard(self) -> None:
        """End what remains of it, and remove its container with its logs."""
        with translate_errors(f"the removal of {self.id}"), suppress(NotFound):
            try:
                self._api.remove_container(self._container, force=True, v=True)
            except APIError as error:
                if error.status_code != _CONFLICT:  # another process is removing it
                    raise

    def stream(self, name: StreamName) -> CancellableStream[bytes]:
        """Return one stream of its logs, from the beginning until the container ends."""
        return self._api.logs(
            self._container, stdout=name == "stdout", stderr=name == "stderr", stream=True, follow=True
        )

    def is_over(self) -> bool:
        """Whether the container has ended or is gone."""
        return self._end() is not None

    def _kill(self, grace: float) -> None:
        name = f"execution-{self.id}"
        with suppress(APIError):  # another process is cancelling it, too
            self._api.rename(self._container, name + _CANCELLED)
        try:
            self._api.kill(self._container, "SIGTERM")
            with suppress(TimeoutError):
                self.wait(grace)
            if self._end() is None:
                self._api.kill(self._container, "SIGKILL")
        except APIError as error:
            if error.status_code != _CONFLICT:
                raise
            if (self._inspect() or {}).get("State", {}).get("Running") is False:
                # It ended by itself first, and keeps its own end.
                self._api.rename(self._container, name)

    def _inspect(self) -> dict[str, Any] | None:
        """Return the engine's description of the container; None if it is gone."""
        with translate_errors(f"the container of {self.id}"):
            try:
                return dict(self._api.inspect_container(self._container))
            except NotFound:
                return None

    def _end(self) -> Exit | None:
        return self._end_of(self._inspect())

    def _end_of(self, details: Mapping[str, Any] | None) -> Exit | None:
        if details is None:
            return Exit(status=RunStatus.LOST, why="its container is gone")
        state = details["State"]
        if state["Status"] not in {"exited", "dead", "removing"}:
            return None
        code, started, ended = state["ExitCode"], _time(state["StartedAt"]), _time(state["FinishedAt"])
        status, why = (RunStatus.SUCCEEDED if code == 0 else RunStatus.FAILED), None
        if state["OOMKilled"] and code:
            why = "a process exceeded the memory limit"
        if details["Name"].endswith(_CANCELLED):
            status, why = RunStatus.CANCELLED, "it was cancelled"
        elif self._has_expired(details):
            status, why = RunStatus.EXPIRED, "it exceeded its time limit"
        return Exit(status=status, code=code, why=why or state["Error"] or None, started=started, ended=ended)

    def _has_expired(self, details: Mapping[str, Any]) -> bool:
        if f"{LABEL_PREFIX}.time-limit" not in details["Config"]["Labels"]:
            return False
        with translate_errors(f"the time limit of {self.id}"):
            try:
                stream, _ = self._api.get_archive(self._container, f"{OWN_FOLDER}/expired")
            except NotFound:
                return False
            for _ in stream:
                pass
        return True


class _Reader:
    """A thread that reads one stream, and reconnects if the engine closes the connection."""

    def __init__(self, run: ContainerRun, name: StreamName, chunks: queue.Queue[LogChunk | Exception | None]) -> None:
        self._run = run
        self._name = name
        self._chunks = chunks
        self._received = 0
        self._stopped = threading.Event()
        self._stream: CancellableStream[bytes] | None = None
        self._thread = threading.Thread(target=self._read, name=f"{name} of {run.id}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, even if it waits for the engine or the reader."""
        self._stopped.set()
        if self._stream is not None:
            with suppress(OSError, AttributeError, ValueError):  # it is closed, or was never open
                self._stream.close()

    def _read(self) -> None:
        try:
            over = False
            while not over and not self._stopped.is_set():
                over = self._run.is_over()
                self._read_once()
                self._stopped.wait(0 if over else _RECONNECT)
        except Exception as error:  # noqa: BLE001 - raised where the logs are read
            self._put(error)
        else:
            self._put(None)

    def _read_once(self) -> None:
        skipped = 0
        with translate_errors(f"the logs of {self._run.id}"), suppress(NotFound):
            self._stream = self._run.stream(self._name)
            for data in self._stream:
                new = data[max(0, self._received - skipped) :]
                skipped += len(data)
                if new:
                    self._received += len(new)
                    self._put(LogChunk(self._name, new))

    def _put(self, chunk: LogChunk | Exception | None) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._chunks.put(chunk, timeout=0.5)
                return


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Raise an InfrastructureError if the engine is unavailable or fails for *what*; NotFound passes."""
    try:
        yield
    except (DockerException, RequestException) as error:
        if isinstance(error, NotFound):
            raise
        detail = error.explanation if isinstance(error, APIError) else error
        raise InfrastructureError(f"The Docker engine failed for {what}: {detail}") from error


def _is_timeout(error: RequestException) -> bool:
    """Whether our own timeout expired; over a Unix socket that looks like a lost connection."""
    return isinstance(error, ReadTimeout) or "Read timed out" in str(error)


def _time(text: str) -> datetime | None:
    """Return a time of the engine, which has nanoseconds; the year 1 stands for no time."""
    if text.startswith("0001-"):
        return None
    return in_utc(datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)))
