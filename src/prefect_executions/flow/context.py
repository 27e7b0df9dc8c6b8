"""The execution around the caller: outputs, inputs, progress, metrics, notes.

Law: what user code tells is never lost by a failure of telling it elsewhere. It
is kept in memory at once, written to the bundle within a second, and shown in
Prefect as far as Prefect answers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from prefect_executions.documents import TOO_LONG, clean_text, json_value
from prefect_executions.errors import InputError, NoExecutionError, RequestError
from prefect_executions.executions.ids import ExecutionId
from prefect_executions.executions.record import ExecuteRequest, Metric, Metrics
from prefect_executions.lifecycle.history import EntryKind, JobStatus, add_entry
from prefect_executions.lifecycle.status import Observer
from prefect_executions.methods.model import Method

_FLUSH_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What is known of the running execution."""

    execution_id: str
    method: Method
    request: ExecuteRequest
    attempt: int
    started: datetime | None


@dataclass(frozen=True, kw_only=True)
class RecordSink:
    """Where a running execution tells things: each is called with the whole new value.

    `show_progress` may be slow and may fail; it is called from a thread of its own.
    """

    write_status: Callable[[JobStatus], None]
    write_metrics: Callable[[Metrics], None]
    show_progress: Callable[[float, str | None], None]
    log: Callable[[str], None]
    failed: Callable[[str], None]
    mask: Callable[[str], str]
    """Takes the secrets of the execution out of a text that its code tells."""


class Execution:
    """A running execution, as `current_execution()` gives it to the Method's code.

    Safe to use from several threads. When the Method has ended it refuses to be told
    anything, with `NoExecutionError`: no record would hold it.
    """

    def __init__(
        self,
        *,
        metadata: Metadata,
        output_path: Callable[[str], Path],
        staged: Mapping[str, Sequence[Path]],
        job_status: JobStatus,
        metrics: Metrics,
        sink: RecordSink,
        clock: Callable[[], datetime],
    ) -> None:
        self._metadata = metadata
        self._output_path = output_path
        self._staged = staged
        self._job_status = job_status
        self._params = dict(metrics.params)
        self._metrics = list(metrics.metrics)
        self._sink = sink
        self._clock = clock
        self._lock = threading.RLock()
        self._latest: tuple[float, str | None, datetime] | None = None
        self._unshown: tuple[float, str | None] | None = None
        self._untold_metrics = False
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._teller: threading.Thread | None = None

    @property
    def id(self) -> str:
        """The execution's id, which is its Prefect flow run id."""
        return self._metadata.execution_id

    @property
    def metadata(self) -> Metadata:
        """What is known of this execution: its Method, request, attempt and start."""
        return self._metadata

    def output(self, name: str | os.PathLike[str]) -> Path:
        """Return the path of the output *name*, whose folders are made; the caller writes the file.

        *name* is relative to the outputs and may contain folders (``plots/area.png``).

        Raises:
            RequestError: If *name* is neither a text nor a path.
            NameRefusedError: If *name* would leave the outputs or cannot be a file's name.
        """
        told = os.fspath(name) if isinstance(name, os.PathLike) else name
        return self._output_path(_text(told))

    def input(self, name: str) -> Path:
        """Return the path of the file that was staged for the input *name*.

        Raises:
            InputError: If there is no such file input, or it has several files (use `inputs`).
        """
        paths = self.inputs(name)
        if len(paths) != 1:
            raise InputError(f"input '{name}' has {len(paths)} files; use inputs('{name}') to get them all")
        return paths[0]

    def inputs(self, name: str) -> tuple[Path, ...]:
        """Return the paths of all files that were staged for the input *name*.

        Raises:
            InputError: If no input of that name has files.
        """
        if name not in self._staged:
            known = ", ".join(sorted(self._staged)) or "none"
            raise InputError(f"no file was staged for an input '{name}'; inputs with files: {known}")
        return tuple(self._staged[name])

    def progress(self, percent: float, message: str | None = None) -> None:
        """Tell how far the Method is: *percent* of 100, with a few words.

        May be called as often as one likes; it is shown about once a second.

        Raises:
            RequestError: If *percent* is no number from 0 to 100.
        """
        told = _percent(percent)
        with self._going():
            self._latest = (told, message and self._clean(message), self._clock())
        self._soon()

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Keep numbers under names, with an optional *step* (an epoch, an iteration).

        Numbers of NumPy and the like are taken as the Python number they are.

        Raises:
            RequestError: If a value is no number, or *step* no whole one, or one has more than 4300 digits.
        """
        at = self._clock()
        new = [
            Metric(name=self._clean(name), value=_number(name, value), step=_step(step), time=at)
            for name, value in _named("metrics", values)
        ]
        with self._going():
            self._metrics.extend(new)
            self._untold_metrics = True
        self._soon()

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Keep what the Method decided for itself (a learning rate, a chosen model), as JSON values.

        Raises:
            RequestError: If *values* have no names.
        """
        named = _named("params", values)
        new = {self._clean(name): _masked(json_value(value), self._sink.mask) for name, value in named}
        with self._going():
            self._params |= new
            self._untold_metrics = True
        self._soon()

    def note(self, text: str) -> None:
        """Put a note into the history of this execution."""
        with self._going():
            self._take_progress()  # told before the note, so it stands before it
            self._job_status = add_entry(
                self._job_status, EntryKind.NOTE, self._clock(), observer=Observer.HOOK, message=self._clean(text)
            )
            self._sink.write_status(self._job_status)

    def change(self, change: Callable[[JobStatus], JobStatus], *, write: bool = True) -> JobStatus:
        """Put what *change* adds into the job status and return it; for our own code around the Method's.

        What is not written now is written with the next change, or when the execution is closed.
        """
        with self._lock:
            self._take_progress()
            self._job_status = change(self._job_status)
            if write:
                self._sink.write_status(self._job_status)
            return self._job_status

    @contextmanager
    def _going(self) -> Iterator[None]:
        with self._lock:
            if self._closed.is_set():
                raise NoExecutionError(f"Execution {self.id} has ended: its record cannot be told anything any more.")
            yield

    def _clean(self, text: str) -> str:
        return clean_text(self._sink.mask(_text(text)))

    def close(self) -> tuple[JobStatus, Metrics | None]:
        """Stop telling and return the last job status, and the metrics if there are any; again changes nothing."""
        self._closed.set()
        self._wake.set()
        if self._teller is not None and self._teller is not threading.current_thread():
            self._teller.join()
        with self._lock:
            self._take_progress()
            told = bool(self._params or self._metrics)
            return self._job_status, self._all_metrics() if told else None

    def _soon(self) -> None:
        with self._lock:
            if self._teller is None and not self._closed.is_set():
                self._teller = threading.Thread(target=self._tell, name=f"executions-{self.id[:8]}", daemon=True)
                self._teller.start()
        self._wake.set()

    def _tell(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            with self._lock:
                closing = self._closed.is_set()
                self._take_progress()
                progress, self._unshown = self._unshown, None
                metrics = self._all_metrics() if self._untold_metrics else None
                self._untold_metrics = False
            try:
                self._tell_once(progress, metrics, last=closing)
            except Exception as error:  # noqa: BLE001 - telling must never end the Method; the failure is told
                self._sink.failed(f"progress or metrics could not be written: {error}")
            if closing:
                return
            self._closed.wait(_FLUSH_SECONDS)

    def _tell_once(self, progress: tuple[float, str | None] | None, metrics: Metrics | None, *, last: bool) -> None:
        if metrics is not None:
            self._sink.write_metrics(metrics)
        if progress is None:
            return
        percent, message = progress
        if not last:
            with self._lock:
                self._sink.write_status(self._job_status)
        self._sink.log(f"{percent:.0f} %" + (f" - {message}" if message else ""))
        self._sink.show_progress(percent, message)

    def _take_progress(self) -> None:
        latest, self._latest = self._latest, None
        if latest is None:
            return
        percent, message, at = latest
        self._job_status = add_entry(
            self._job_status, EntryKind.PROGRESS, at, observer=Observer.HOOK, progress=percent, message=message
        )
        self._unshown = percent, message

    def _all_metrics(self) -> Metrics:
        return Metrics(params=dict(self._params), metrics=tuple(self._metrics))


def _text(told: object) -> str:
    if not isinstance(told, str):
        raise RequestError(f"a name or message is a text, and {told!r} is of type {type(told).__name__}")
    return told


def _named(what: str, values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    if not isinstance(values, Mapping):
        raise RequestError(f"{what} have names, such as {{'loss': 0.1}}; {type(values).__name__} was given")
    return values.items()


def _percent(told: float) -> float:
    try:
        percent = float(told)
    except (TypeError, ValueError):
        percent = -1.0
    if not 0 <= percent <= 100:  # noqa: PLR2004 - percent
        raise RequestError(f"progress is told in percent, from 0 to 100; {told!r} was given")
    return percent


def _step(told: float | None) -> int | None:
    if told is None:
        return None
    try:
        step = int(told)
    except (TypeError, ValueError, OverflowError):
        step = None
    if step is None or step != told:
        raise RequestError(f"the step of a metric is a whole number; {told!r} was given")
    return _readable("the step of a metric", step)


def _number(name: str, value: object) -> int | float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise RequestError(f"metric '{name}' is no number but {type(value).__name__}; use log_params for other values")
    if isinstance(value, int):
        return _readable(f"metric '{name}'", value)
    if getattr(value, "size", 1) != 1:  # an array or series
        raise RequestError(f"metric '{name}' is not one number but {type(value).__name__}; write it to an output")
    plain = value.item() if hasattr(value, "item") else value
    return plain if isinstance(plain, int) and not isinstance(plain, bool) else float(plain)


def _readable(name: str, number: int) -> int:
    if abs(number) >= TOO_LONG:
        raise RequestError(f"{name} has more than 4300 digits, which no reader of JSON takes; write it to an output")
    return number


_current: ContextVar[Execution | None] = ContextVar("current_execution", default=None)


def current_execution() -> Execution:
    """Return the execution that is running around the caller.

    Works in the Method's function and in tasks that it calls in the same process. A
    thread of one's own does not know it: it is given what this returned outside.

    Raises:
        NoExecutionError: If no execution is running here.
    """
    execution = _current.get()
    if execution is None:
        raise NoExecutionError(
            "No execution is running here. current_execution() works inside a function decorated with @method "
            "while it runs as a flow: call the Method itself, not its plain function, or use 'executions run'. "
            "It works in the Method's tasks as well; a thread of your own is given what current_execution() returned "
            "outside of it, and a process of its own can tell nothing but by what it returns."
        )
    return execution


@contextmanager
def enter(execution: Execution) -> Iterator[None]:
    """Make *execution* the current execution of the block."""
    token = _current.set(execution)
    try:
        yield
    finally:
        with suppress(ValueError):  # the block ended in another context, where nothing is to be reset
            _current.reset(token)


def current_id() -> str | None:
    """Return the id of the execution around the caller, or None."""
    execution = _current.get()
    return None if execution is None else execution.id


def running_id() -> str | None:
    """Return the flow run id of the execution around the caller, or None."""
    execution_id = current_id()
    return None if execution_id is None else ExecutionId.parse(execution_id).flow_run_id


def _masked(value: Any, mask: Callable[[str], str]) -> Any:
    match value:
        case str():
            return mask(value)
        case list():
            return [_masked(part, mask) for part in value]
        case dict():
            return {mask(name): _masked(part, mask) for name, part in value.items()}
        case _:
            return value
