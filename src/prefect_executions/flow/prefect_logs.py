"""Prefect's logging in an execution: run logs copied to the record, secrets masked, console errors suppressed.

When a worker dies, the stderr of its flow is a broken pipe. Prefect's console
then raises SystemExit at the next log record, inside the author's code or a
hook. So the console writes to a stream that ignores broken pipes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from copy import copy
from functools import cache
from typing import IO, TYPE_CHECKING, NamedTuple, TextIO, cast

from prefect.logging.configuration import ensure_logging_setup
from prefect.logging.handlers import APILogHandler, PrefectConsoleHandler

from prefect_executions.capture.secrets import SecretMask
from prefect_executions.capture.stdio_router import current_receiver
from prefect_executions.capture.streams import OwnedStreams, SafeStream, Streams
from prefect_executions.flow.outcome import mask_error

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

HOOK = "seal_execution"
"""The name of the sealing hook in Prefect's log."""

_RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")
_LINE = "%(asctime)s.%(msecs)03d | %(levelname)-7s | %(message)s"
_TASK_LINE = "%(asctime)s.%(msecs)03d | %(levelname)-7s | Task run %(task_run_name)r - %(message)s"  # as on the console
_LIBRARY_LINE = "%(asctime)s.%(msecs)03d | %(levelname)-7s | %(name)s - %(message)s"

_streams: ContextVar[Streams | None] = ContextVar("execution_streams", default=None)
_task_logs: ContextVar[set[TaskLog] | None] = ContextVar("execution_tasks", default=None)
_mask: ContextVar[SecretMask | None] = ContextVar("execution_mask", default=None)


class TaskLog(NamedTuple):
    """A log record of a task run; `ended` marks its last one."""

    flow_run_id: str
    task_run_id: str
    ended: bool


@contextmanager
def enter(streams: Streams | None, mask: SecretMask, task_logs: set[TaskLog]) -> Iterator[None]:
    """Copy the log records of the block's flow run, masked, to the stderr log of *streams*.

    Collect in *task_logs* which task runs have logged something.
    """
    consoles = _shielded_consoles()
    _add_handlers()
    if isinstance(streams, OwnedStreams):  # file descriptor 2 is the captured log; the console bypasses it
        for console in consoles:
            console.retarget(cast("TextIO", streams.terminal("stderr")))
    tokens = _streams.set(streams), _mask.set(mask), _task_logs.set(task_logs)
    try:
        yield
    finally:
        with suppress(ValueError):  # the block ended in another context, where nothing is to be reset
            _streams.reset(tokens[0])
            _mask.reset(tokens[1])
            _task_logs.reset(tokens[2])


def logs_task_ends() -> bool:
    """Whether the end of a task run is logged: the level of its logger may be above INFO."""
    return logging.getLogger("prefect.task_runs").isEnabledFor(logging.INFO)


def shield() -> None:
    """Set up Prefect's logging and make its console ignore broken pipes; idempotent.

    Called when a Method is declared, before Prefect's first log record of a run. The
    process in which a worker calls hooks does not set up logging itself.
    """
    ensure_logging_setup()
    _shielded_consoles()


def flush() -> None:
    """Send queued log records to Prefect, for at most five seconds, before a signal kills this process."""
    APILogHandler().flush()


def forwarder(run: FlowRun) -> Callable[[str, str], None]:
    """Return a function that sends a chunk of a stream to Prefect's log of *run*, and to no other handler."""
    context = copy_context()  # the thread that tails the logs has no Prefect settings
    handler = APILogHandler()

    def forward(stream: str, text: str) -> None:
        level = logging.INFO if stream == "stdout" else logging.WARNING
        record = logging.LogRecord(f"prefect_executions.{stream}", level, "", 0, text.rstrip("\n"), None, None)
        record.flow_run_id = str(run.id)
        context.run(handler.handle, record)

    return forward


class _RunLog(logging.Handler):
    """Writes log records of Prefect's run loggers into the stderr log of the running execution."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(_LINE, datefmt="%H:%M:%S"))
        self._of_task = logging.Formatter(_TASK_LINE, datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        name, mask = getattr(record, "task_run_name", None), _mask.get()
        if name is None:
            return super().format(record)
        named = copy(record)
        named.task_run_name = mask.mask(str(name)) if mask else name
        return self._of_task.format(named)

    def emit(self, record: logging.LogRecord) -> None:
        task_logs, task = _task_logs.get(), getattr(record, "task_run_id", None)
        if task_logs is not None and task is not None:
            ended = isinstance(record.msg, str) and record.msg.startswith("Finished in state")
            task_logs.add(TaskLog(str(getattr(record, "flow_run_id", "")), str(task), ended))
        streams = _streams.get()
        if streams is not None and getattr(record, "send_to_api", True):
            streams.append_line("stderr", _line(self, record))


class _LibraryLog(logging.Handler):
    """Writes log records of other libraries into the stderr log of the execution that the thread belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(_LIBRARY_LINE, datefmt="%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        streams = current_receiver()
        if isinstance(streams, Streams) and record.name.partition(".")[0] != "prefect":
            streams.append_line("stderr", _line(self, record))


class _HideSealingHook(logging.Filter):
    """Hides Prefect's lines about calling the sealing hook from the terminal; the hook logs its own line."""

    def filter(self, record: logging.LogRecord) -> bool:
        about_hook = isinstance(record.msg, str) and record.msg.startswith(("Running hook ", "Hook "))
        return not (about_hook and record.levelno == logging.INFO and f"ook '{HOOK}' " in _message(record))


_HIDE_SEALING_HOOK = _HideSealingHook()


class _Masking(logging.Filter):
    """Masks the secrets of the running execution in log records."""

    def filter(self, record: logging.LogRecord) -> bool:
        mask = _mask.get()
        if mask:
            _mask_trace(record, mask)
            record.msg, record.args = mask.mask(_message(record)), None
        return True


def _line(handler: logging.Handler, record: logging.LogRecord) -> str:
    try:
        return handler.format(record)
    except Exception:  # noqa: BLE001 - a failing formatter must not end the run
        plain = copy(record)
        plain.msg, plain.args, plain.exc_info = _message(record), None, None
        return handler.format(plain)


def _message(record: logging.LogRecord) -> str:
    """Return the message of *record*, even if its arguments do not fit its format."""
    with suppress(Exception):
        return record.getMessage()
    with suppress(Exception):
        return f"{record.msg!r} with {record.args!r}"
    return "a log record that cannot be formatted"


def _mask_trace(record: logging.LogRecord, mask: SecretMask) -> None:
    """Mask the exception of *record*: Prefect logs the exception of a task before it stores its message."""
    if record.exc_info and not record.exc_text:
        with suppress(Exception):  # an exception that refuses changes; its text is masked below
            mask_error(record.exc_info[1], mask)
        record.exc_text = logging.Formatter().formatException(record.exc_info)
    if record.exc_text:
        record.exc_text = mask.mask(record.exc_text)


def _shielded_consoles() -> tuple[SafeStream, ...]:
    """Let each console of Prefect's logging write to a stream that ignores broken pipes; idempotent."""
    shields = []
    for logger in (logging.getLogger(), logging.getLogger("prefect"), *map(logging.getLogger, _RUN_LOGGERS)):
        for handler in logger.handlers:
            if isinstance(handler, PrefectConsoleHandler):
                file: object = handler.console.file
                shield = file if isinstance(file, SafeStream) else SafeStream(handler.stream)
                handler.console.file = cast("IO[str]", shield)
                handler.addFilter(_HIDE_SEALING_HOOK)
                shields.append(shield)
    return tuple(shields)


@cache
def _add_handlers() -> None:
    for name in _RUN_LOGGERS:
        logger = logging.getLogger(name)
        masking = _Masking()
        for handler in (*logger.handlers, *logging.getLogger("prefect").handlers, *logging.getLogger().handlers):
            handler.addFilter(masking)
        logger.addHandler(_RunLog())
        logger.handlers[-1].addFilter(masking)
    # The console bypasses the captured streams, so log records of libraries would be missing in the record.
    if any(isinstance(handler, PrefectConsoleHandler) for handler in logging.getLogger().handlers):
        logging.getLogger().addHandler(_LibraryLog())
