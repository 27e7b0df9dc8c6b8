"""A run in a container: all that is known of it is asked of the engine, each time anew."""

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

_CANCELLED = "-cancelled"  # the end of its name; nothing inside the container can forge it
_PATIENCE = 30  # seconds that one request waits for the end
_AFTER_KILL = 120.0  # an engine on a busy machine
_BEFORE_AGAIN = 0.2
_CONFLICT = 409


class ContainerRun:
    """A run whose container is known."""

    def __init__(self, api: APIClient, run_id: str, container: str) -> None:
        self._api = api
        self._container = container
        self.id = run_id

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it runs, and when nobody saw it."""
        end = self._end()
        return None if end is None else end.code

    def status(self) -> RunStatus:
        """Return how it stands now."""
        told = self._inspected()
        if told is not None and told["State"]["Status"] == "created":
            return RunStatus.WAITING
        end = self._end_of(told)
        return RunStatus.RUNNING if end is None else end.status

    def seen(self) -> RunLocation:
        """Return the container, its image and its engine, as the engine says them."""
        told = self._inspected()
        if told is None:
            return RunLocation(container=self._container)
        with translate_errors("the engine's name"):
            node = self._api.info().get("Name")
        digest = told["Config"]["Labels"].get(f"{LABEL_PREFIX}.image-digest")
        return RunLocation(container=told["Id"], image=told["Image"], node=node, image_digest=digest)

    def wait(self, timeout: float | None = None) -> Exit:
        """Return how it ended, as soon as it has."""
        until = None if timeout is None else time.monotonic() + timeout
        while (end := self._end()) is None:
            left = _PATIENCE if until is None else min(_PATIENCE, until - time.monotonic())
            if left <= 0:
                raise TimeoutError(f"The run {self.id} still runs after {timeout:g} s")
            with translate_errors(f"the end of {self.id}"), suppress(NotFound):
                try:
                    self._api.wait(self._container, timeout=ceil(left))
                except (ReadTimeout, AwayError) as error:
                    if not _is_impatience(error):
                        raise
        return end

    def logs(self) -> Iterator[LogChunk]:
        """Yield what it has written and will write, until it is over and all was told."""
        pieces: queue.Queue[LogChunk | Exception | None] = queue.Queue(maxsize=64)
        readers = [_Reader(self, stream, pieces) for stream in STREAMS]
        try:
            reading = len(readers)
            while reading:
                piece = pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                if piece is None:
                    reading -= 1
                else:
                    yield piece
        finally:
            for reader in readers:
                reader.stop()

    def cancel(self, grace: float = GRACE) -> Exit:
        """End every process of it; return its end when the container has stopped."""
        told = self._inspected()
        if told is not None and told["State"]["Status"] == "created":
            self.discard()
            return Exit(status=RunStatus.CANCELLED, why="it was cancelled before it began")
        end = self._end_of(told)
        if end is not None:
            return end
        with translate_errors(f"to cancel {self.id}"), suppress(NotFound):
            self._kill(grace)
        return self.wait(_AFTER_KILL)

    def discard(self) -> None:
        """Forget it: end what is left of it, and remove its container with its logs."""
        with translate_errors(f"to remove the container of {self.id}"), suppress(NotFound):
            try:
                self._api.remove_container(self._container, force=True, v=True)
            except APIError as error:
                if error.status_code != _CONFLICT:  # somebody else removes it at this moment
                    raise

    def stream(self, name: StreamName) -> CancellableStream[bytes]:
        """Return one stream of its logs from the beginning, which ends with the container."""
        return self._api.logs(
            self._container, stdout=name == "stdout", stderr=name == "stderr", stream=True, follow=True
        )

    def is_over(self) -> bool:
        """Whether the container has ended or is gone."""
        return self._end() is not None

    def _kill(self, grace: float) -> None:
        name = f"execution-{self.id}"
        with suppress(APIError):  # another one cancels it, too
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
            if (self._inspected() or {}).get("State", {}).get("Running") is False:
                # It had ended by itself, and stays as it ended.
                self._api.rename(self._container, name)

    def _inspected(self) -> dict[str, Any] | None:
        """What the engine says of the container; None when it is gone."""
        with translate_errors(f"the container of {self.id}"):
            try:
                return dict(self._api.inspect_container(self._container))
            except NotFound:
                return None

    def _end(self) -> Exit | None:
        return self._end_of(self._inspected())

    def _end_of(self, told: Mapping[str, Any] | None) -> Exit | None:
        if told is None:
            return Exit(status=RunStatus.LOST, why="its container is gone")
        state = told["State"]
        if state["Status"] not in {"exited", "dead", "removing"}:
            return None
        code, started, ended = state["ExitCode"], _time(state["StartedAt"]), _time(state["FinishedAt"])
        status, why = (RunStatus.SUCCEEDED if code == 0 else RunStatus.FAILED), None
        if state["OOMKilled"] and code:
            why = "a process of it wanted more memory than its limit"
        if told["Name"].endswith(_CANCELLED):
            status, why = RunStatus.CANCELLED, "it was cancelled"
        elif self._has_expired(told):
            status, why = RunStatus.EXPIRED, "it ran longer than its time limit"
        return Exit(status=status, code=code, why=why or state["Error"] or None, started=started, ended=ended)

    def _has_expired(self, told: Mapping[str, Any]) -> bool:
        if f"{LABEL_PREFIX}.time-limit" not in told["Config"]["Labels"]:
            return False
        with translate_errors(f"whether {self.id} has expired"):
            try:
                stream, _ = self._api.get_archive(self._container, f"{OWN_FOLDER}/expired")
            except NotFound:
                return False
            for _ in stream:
                pass
        return True


class _Reader:
    """A thread that reads one stream; it connects again when the engine has cut it."""

    def __init__(self, run: ContainerRun, name: StreamName, pieces: queue.Queue[LogChunk | Exception | None]) -> None:
        self._run = run
        self._name = name
        self._pieces = pieces
        self._told = 0
        self._stopped = threading.Event()
        self._stream: CancellableStream[bytes] | None = None
        self._thread = threading.Thread(target=self._read, name=f"{name} of {run.id}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, whoever it waits for."""
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
                self._stopped.wait(0 if over else _BEFORE_AGAIN)
        except Exception as error:  # noqa: BLE001 - raised where the logs are read
            self._put(error)
        else:
            self._put(None)

    def _read_once(self) -> None:
        skipped = 0
        with translate_errors(f"the logs of {self._run.id}"), suppress(NotFound):
            self._stream = self._run.stream(self._name)
            for data in self._stream:
                new = data[max(0, self._told - skipped) :]
                skipped += len(data)
                if new:
                    self._told += len(new)
                    self._put(LogChunk(self._name, new))

    def _put(self, piece: LogChunk | Exception | None) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._pieces.put(piece, timeout=0.5)
                return


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Tell as one error that the engine does not answer, or answers that it failed."""
    try:
        yield
    except (DockerException, RequestException) as error:
        if isinstance(error, NotFound):
            raise
        said = error.explanation if isinstance(error, APIError) else error
        raise InfrastructureError(f"The Docker engine failed when asked for {what}: {said}") from error


def _is_impatience(error: RequestException) -> bool:
    """Whether only our own time ran out; over a socket of the file system that looks like a lost connection."""
    return isinstance(error, ReadTimeout) or "Read timed out" in str(error)


def _time(told: str) -> datetime | None:
    """A time of the engine, which has nanoseconds; the year 1 means that there is none."""
    if told.startswith("0001-"):
        return None
    return in_utc(datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", told)))
