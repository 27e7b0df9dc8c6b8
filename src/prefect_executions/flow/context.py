"""`current_execution()`: the running execution, for outputs, inputs, progress, metrics, parameters and notes.

Law: nothing that user code reports is lost because Prefect or the disk fails. A
report is kept in memory at once, written to the bundle within a second, and shown
in Prefect if Prefect is available.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from math import inf
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from prefect_executions import background
from prefect_executions.documents import TOO_LONG, clean_text
from prefect_executions.errors import InputError, NoExecutionError, RequestError
from prefect_executions.executions.ids import ExecutionId
from prefect_executions.executions.record import ExecuteRequest, Metric, Metrics
from prefect_executions.executions.values import readable_form
from prefect_executions.lifecycle.history import EntryKind, JobStatus, add_entry
from prefect_executions.lifecycle.status import Observer
from prefect_executions.methods.model import Method

_FLUSH_SECONDS = 1.0
_MAX_WARNINGS = 100
"""How many different warnings about reports one record gets."""
_ROUNDING = 1e-6
"""Percent that a sum of rounded numbers may be outside of 0 to 100."""


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Identity, Method, request, attempt and start of the running execution."""

    execution_id: str
    method: Method
    request: ExecuteRequest
    attempt: int
    started: datetime | None


@dataclass(frozen=True, kw_only=True)
class RecordSink:
    """Callbacks by which a running execution writes and shows what it reports; each gets the complete new value.

    `show_progress` may be slow and may fail: a background thread calls it.
    """

    write_status: Callable[[JobStatus], None]
    write_metrics: Callable[[Metrics], None]
    show_progress: Callable[[float, str | None], None]
    log: Callable[[str], None]
    failed: Callable[[str], None]
    mask: Callable[[str], str]
    """Mask the secrets of the execution in a text of its code."""
    param: Callable[[str, Any], Any]
    """Withhold the value of a param whose name looks secret."""


class Execution:
    """A running execution, as `current_execution()` returns it to the Method's code.

    Safe to use from several threads. When the Method has ended, every report raises
    `NoExecutionError`, because the record is closed.
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
        self._unwritten_metrics = False
        self._warned: set[str] = set()
        self._warnings: list[str] = []
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._flusher: threading.Thread | None = None

    @property
    def id(self) -> str:
        """The execution's id, which is its Prefect flow run id."""
        return self._metadata.execution_id

    @property
    def metadata(self) -> Metadata:
        """Method, request, attempt and start of this execution."""
        return self._metadata

    def output(self, name: str | os.PathLike[str]) -> Path:
        """Return the path of the output *name*; the caller writes the file.

        *name* is relative to the outputs and may contain folders (``plots/area.png``), which are created.

        Raises:
            RequestError: If *name* is neither a string nor a path.
            NameRefusedError: If *name* would leave the outputs or is not a valid file name.
        """
        if not isinstance(name, str | os.PathLike):
            raise RequestError(f"the name of an output must be a string; {name!r} is of type {type(name).__name__}")
        return self._output_path(os.fspath(name))

    def input(self, name: str) -> Path:
        """Return the path of the file that was staged for the input *name*.

        Raises:
            InputError: If no such input has files, or it has several (use `inputs`).
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
            names = ", ".join(sorted(self._staged)) or "none"
            raise InputError(f"no file was staged for an input '{name}'; inputs with files: {names}")
        return tuple(self._staged[name])

    def progress(self, percent: float, message: str | None = None) -> None:
        """Report the progress of the Method: *percent* from 0 to 100, with an optional message.

        May be called at any rate; about once a second the latest report is recorded and
        shown. A *percent* that a rounding error puts outside the range is 0 or 100; any other
        is not recorded, and a warning says so.
        """
        with self._open(), self._reporting("progress"):
            self._latest = (_percent(percent), message and self._clean(message), self._clock())
        self._flush_soon()

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record named numbers, with an optional *step* (an epoch, an iteration).

        Scalars of NumPy and similar libraries are converted to Python numbers. A value that
        is not a single number, is masked or missing, or has more than 4300 digits is not
        recorded, and neither are values whose *step* is not an integer: a warning and a note
        in the history say so.
        """
        at = self._clock()
        with self._open():
            for name, value in self._named("metrics", values):
                with self._reporting(f"metric {name!r}"):
                    number = _number(value)
                    metric = Metric(name=self._clean(name), value=number, step=_step(step), time=at)
                    self._metrics.append(metric)
                    self._unwritten_metrics = True
                    if _is_rounded(value, number):
                        self._warn(f"metric {name!r} is recorded as {number!r}, the nearest double to its value")
        self._flush_soon()

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Record parameters that the Method chose itself (a learning rate, a model), as JSON values.

        A part without a JSON form is recorded by its type, an array also by shape and digest;
        a warning and a note in the history say so.
        """
        with self._open():
            for name, value in self._named("params", values):
                with self._reporting(f"param {name!r}"):
                    form, missing = readable_form(value)
                    self._params[self._clean(name)] = _masked(self._sink.param(name, form), self._sink.mask)
                    self._unwritten_metrics = True
                    if missing:
                        self._warn(f"param {name!r} is recorded without its value: {', '.join(missing)}")
        self._flush_soon()

    def note(self, text: str) -> None:
        """Add a note to the history of this execution; another object is noted as its text."""
        with self._open(), self._reporting("a note"):
            self._add_note(self._clean(text))

    def _add_note(self, message: str) -> None:
        self._take_progress()  # reported before the note, so it comes first in the history
        self._job_status = add_entry(
            self._job_status, EntryKind.NOTE, self._clock(), observer=Observer.HOOK, message=message
        )
        self._sink.write_status(self._job_status)

    def _named(self, what: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield the members of *values* whose name is text; warn of others."""
        items: list[tuple[str, Any]] = []
        with self._reporting(f"a report of {what}"):
            if not isinstance(values, Mapping):
                kind = type(values).__name__
                raise _UnrecordedError(f"it must be a mapping such as {{'loss': 0.1}}, not {kind}")
            items = list(values.items())
        for name, value in items:
            with self._reporting(f"a name in {what}"):
                yield _text(name), value

    @contextmanager
    def _reporting(self, what: str) -> Iterator[None]:
        """Warn that *what* is unrecorded if the block fails: a report never ends the Method."""
        try:
            yield
        except _UnrecordedError as error:
            self._warn(f"{what} is unrecorded: {error}")
        except Exception as error:  # noqa: BLE001 - the author's own classes may raise anything
            self._warn(f"{what} is unrecorded: {type(error).__name__}: {error}")

    def _warn(self, text: str) -> None:
        """Note *text* in the history and log it, once; of very many different warnings, only the first."""
        with suppress(Exception):
            text = self._clean(text)
            if text in self._warned or len(self._warned) >= _MAX_WARNINGS:
                return
            self._warned.add(text)
            self._warnings.append(text)
            self._flush_soon()
            self._add_note(text)

    def change(self, change: Callable[[JobStatus], JobStatus], *, write: bool = True) -> JobStatus:
        """Apply *change* to the job status and return the result; used by the recording, not by user code.

        Without *write*, the job status is written with the next change or when the execution is closed.
        """
        with self._lock:
            self._take_progress()
            self._job_status = change(self._job_status)
            if write:
                self._sink.write_status(self._job_status)
            return self._job_status

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._lock:
            if self._closed.is_set():
                raise NoExecutionError(
                    f"Execution {self.id} has ended and its record is closed. Report before the Method returns."
                )
            yield

    def _clean(self, text: object) -> str:
        return clean_text(self._sink.mask(str(text)))

    def close(self) -> tuple[JobStatus, Metrics | None]:
        """Close the execution and return its last job status, and its metrics if there are any.

        The second call returns an equal result.
        """
        self._closed.set()
        self._wake.set()
        if self._flusher is not None and self._flusher is not threading.current_thread():
            self._flusher.join()
        with self._lock:
            self._take_progress()
            metrics = self._all_metrics() if self._params or self._metrics else None
            return self._job_status, metrics

    def _flush_soon(self) -> None:
        with self._lock:
            if self._flusher is None and not self._closed.is_set():
                self._flusher = background.submit(self._flush_until_closed, name=f"executions-{self.id[:8]}")
        self._wake.set()

    def _flush_until_closed(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            with self._lock:
                closing = self._closed.is_set()
                self._take_progress()
                progress, self._unshown = self._unshown, None
                metrics = self._all_metrics() if self._unwritten_metrics else None
                self._unwritten_metrics = False
                warnings, self._warnings = self._warnings, []
            try:
                for warning in warnings:
                    self._sink.failed(warning)
                self._flush(progress, metrics, last=closing)
            except Exception as error:  # noqa: BLE001 - a failed report must never end the Method; it is logged
                self._sink.failed(f"progress or metrics could not be written: {error}")
            if closing:
                return
            self._closed.wait(_FLUSH_SECONDS)

    def _flush(self, progress: tuple[float, str | None] | None, metrics: Metrics | None, *, last: bool) -> None:
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


class _UnrecordedError(Exception):
    """A report cannot be recorded; the message says why."""


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _UnrecordedError(f"a name must be a string; {_shown(value)} is of type {type(value).__name__}")
    return value


def _shown(value: object) -> str:
    try:
        return shortened(value)
    except Exception:  # noqa: BLE001 - the author's own class, or an integer of too many digits
        return f"a {type(value).__name__}"


def _percent(value: float) -> float:
    try:
        percent = float(value) if isinstance(value, str) else float(_number(value))
    except (_UnrecordedError, OverflowError, ValueError):
        percent = -1.0
    if not -_ROUNDING <= percent <= 100 + _ROUNDING:  # NaN is outside as well
        raise _UnrecordedError(f"it must be a number from 0 to 100; {_shown(value)} was given")
    return min(max(percent, 0.0), 100.0)


def _step(value: float | None) -> int | None:
    if value is None:
        return None
    step = _number(value, f"its step must be an integer; {_shown(value)} was given")
    if step != step or step in (inf, -inf) or step != int(step):  # noqa: PLR0124 - NaN
        raise _UnrecordedError(f"its step must be an integer; {_shown(value)} was given")
    return int(step)


def _number(value: object, problem: str | None = None) -> int | float:
    """Return the number in *value*, which may be a scalar of NumPy or a similar library."""
    problem = problem or f"its value must be a single number, not {_kind(value)}"
    if isinstance(value, int):
        return _readable(int(value))
    kind = getattr(getattr(value, "dtype", None), "kind", "f")
    if not hasattr(value, "__float__") or kind not in "biuf" or _is_missing(value):
        raise _UnrecordedError(problem)
    try:
        plain = value.item() if hasattr(value, "item") else value
        number = _readable(int(plain)) if isinstance(plain, int) else float(plain)
    except _UnrecordedError:
        raise
    except Exception as error:
        raise _UnrecordedError(problem) from error
    if number in (inf, -inf) and plain != number:
        raise _UnrecordedError("its value is too large for a double")
    return number


def _kind(value: object) -> str:
    """Return the type of *value*; of an array or a table also its shape."""
    shape = getattr(value, "shape", None)
    of_shape = f" of shape {_shown(shape)}" if isinstance(shape, tuple) and shape else ""
    return f"{type(value).__name__}{of_shape}"


def _is_missing(value: Any) -> bool:
    """Whether a value is masked, or a missing value of pandas, which converts to a number that was never measured."""
    mask = getattr(value, "mask", None)
    masked = mask is not None and not callable(mask) and bool(getattr(mask, "any", lambda: mask)())
    return masked or type(value).__name__ in {"NaTType", "NAType"}


def _is_rounded(value: Any, number: float) -> bool:
    """Whether *number* is not the exact value, as of a fraction; digits that JSON repeats count as exact."""
    if type(value) in {int, float, bool} or hasattr(value, "item"):
        return False
    with suppress(Exception):
        return bool(number == number and value != number and str(value) != repr(number))  # noqa: PLR0124 - NaN
    return False


def _readable(number: int) -> int:
    if abs(number) >= TOO_LONG:
        raise _UnrecordedError("it has more than 4300 digits, which JSON readers refuse; write it to an output")
    return number


_current: ContextVar[Execution | None] = ContextVar("current_execution", default=None)


def current_execution() -> Execution:
    """Return the running execution.

    Works in the Method's function and in tasks that it calls in the same process. Pass
    the result to threads that the Method starts: the context of the caller does not reach them.

    Raises:
        NoExecutionError: If no execution is running in this context.
    """
    execution = _current.get()
    if execution is None:
        raise NoExecutionError(
            "No execution is running here. Call current_execution() inside a function decorated with @method "
            "while it runs as a flow: call the Method, not its plain function, or use 'executions run'. It works "
            "in the Method's tasks, too. Pass its result to threads that you start; processes that you start "
            "cannot report, so let them return their results."
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
    """Return the id of the running execution, or None."""
    execution = _current.get()
    return None if execution is None else execution.id


def running_id() -> str | None:
    """Return the flow run id of the running execution, or None."""
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
