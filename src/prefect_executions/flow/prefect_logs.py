"""Prefect's logging around an execution: a console that cannot harm, run logs in the record, secrets masked.

When a worker dies, its flow's stderr is a broken pipe, and the console that
Prefect logs to answers the next line with SystemExit, out of the author's code
or out of a hook. So the console gets a stream that swallows this.
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
"""What Prefect's log calls our hook."""

_RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")
_LINE = "%(asctime)s.%(msecs)03d | %(levelname)-7s | %(message)s"
_LINE_OF_OTHERS = "%(asctime)s.%(msecs)03d | %(levelname)-7s | %(name)s - %(message)s"

_streams: ContextVar[Streams | None] = ContextVar("execution_streams", default=None)
_task_logs: ContextVar[set[TaskLog] | None] = ContextVar("execution_tasks", default=None)
_mask: ContextVar[SecretMask | None] = ContextVar("execution_mask", default=None)


class TaskLog(NamedTuple):
    """A task run that said something; `ended` is its last word."""

    flow_run_id: str
    task_run_id: str
    ended: bool


@contextmanager
def enter(streams: Streams | None, mask: SecretMask, task_logs: set[TaskLog]) -> Iterator[None]:
    """Copy the log records of the block's flow run, masked, to the stderr log of *streams*.

    Collect in *task_logs* which task runs have logged something.
    """
    consoles = _shielded_consoles()
    _listen()
    if isinstance(streams, OwnedStreams):  # file descriptor 2 is a log now; the console goes past it
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


def tell_of_tasks() -> bool:
    """Whether the end of a task run is heard at all: its loggers may be set to say less."""
    return logging.getLogger("prefect.task_runs").isEnabledFor(logging.INFO)


def shield() -> None:
    """Set up Prefect's logging, which a worker's hook process does not, and make its console harmless.

    Done when a Method is declared, it is before Prefect's first line about a run.
    Again changes nothing.
    """
    ensure_logging_setup()
    _shielded_consoles()


def send_now() -> None:
    """Send Prefect the log lines that wait to be sent, before a signal ends this process; at most five seconds."""
    APILogHandler().flush()


def forwarder(run: FlowRun) -> Callable[[str, str], None]:
    """Return the call that puts a chunk of a stream into Prefect's log of *run*, and nowhere else."""
    context = copy_context()  # the thread that tails the logs has no settings of its own
    handler = APILogHandler()

    def forward(stream: str, text: str) -> None:
        level = logging.INFO if stream == "stdout" else logging.WARNING
        record = logging.LogRecord(f"prefect_executions.{stream}", level, "", 0, text.rstrip("\n"), None, None)
        record.flow_run_id = str(run.id)
        context.run(handler.handle, record)

    return forward


class _RunLog(logging.Handler):
    """Writes what a run's loggers say into the log of the execution around the caller."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(_LINE, datefmt="%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        task_logs, task = _task_logs.get(), getattr(record, "task_run_id", None)
        if task_logs is not None and task is not None:
            ended = isinstance(record.msg, str) and record.msg.startswith("Finished in state")
            task_logs.add(TaskLog(str(getattr(record, "flow_run_id", "")), str(task), ended))
        streams = _streams.get()
        if streams is not None and getattr(record, "send_to_api", True):
            streams.append_line("stderr", _line(self, record))


class _OthersLog(logging.Handler):
    """Writes what other loggers say on Prefect's console into the log of the execution that the thread belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(_LINE_OF_OTHERS, datefmt="%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        streams = current_receiver()
        if isinstance(streams, Streams) and record.name.partition(".")[0] != "prefect":
            streams.append_line("stderr", _line(self, record))


class _Quiet(logging.Filter):
    """Keeps off the terminal that Prefect calls our hook: the hook's own line tells what it did."""

    def filter(self, record: logging.LogRecord) -> bool:
        named = isinstance(record.msg, str) and record.msg.startswith(("Running hook ", "Hook "))
        return not (named and record.levelno == logging.INFO and f"ook '{HOOK}' " in _said(record))


_QUIET = _Quiet()


class _Masking(logging.Filter):
    """Masks the secrets of the execution around the caller in whatever its loggers say."""

    def filter(self, record: logging.LogRecord) -> bool:
        mask = _mask.get()
        if mask:
            _mask_trace(record, mask)
            record.msg, record.args = mask.mask(_said(record)), None
        return True


def _line(handler: logging.Handler, record: logging.LogRecord) -> str:
    try:
        return handler.format(record)
    except Exception:  # noqa: BLE001 - what cannot be said well must not end the run
        plain = copy(record)
        plain.msg, plain.args, plain.exc_info = _said(record), None, None
        return handler.format(plain)


def _said(record: logging.LogRecord) -> str:
    """Return what *record* says, also where its arguments do not fit: logging tells of such a line and goes on."""
    with suppress(Exception):
        return record.getMessage()
    with suppress(Exception):
        return f"{record.msg!r} with {record.args!r}"
    return "a line that cannot be written"


def _mask_trace(record: logging.LogRecord, mask: SecretMask) -> None:
    """Mask the error that *record* tells of: Prefect logs that of a task before it stores its message."""
    if record.exc_info and not record.exc_text:
        with suppress(Exception):  # an error with a mind of its own; its text is masked below
            mask_error(record.exc_info[1], mask)
        record.exc_text = logging.Formatter().formatException(record.exc_info)
    if record.exc_text:
        record.exc_text = mask.mask(record.exc_text)


def _shielded_consoles() -> tuple[SafeStream, ...]:
    """Give each console of Prefect's logging a stream that swallows a broken pipe, where it has none yet."""
    shields = []
    for logger in (logging.getLogger(), logging.getLogger("prefect"), *map(logging.getLogger, _RUN_LOGGERS)):
        for handler in logger.handlers:
            if isinstance(handler, PrefectConsoleHandler):
                there: object = handler.console.file
                shield = there if isinstance(there, SafeStream) else SafeStream(handler.stream)
                handler.console.file = cast("IO[str]", shield)
                handler.addFilter(_QUIET)
                shields.append(shield)
    return tuple(shields)


@cache
def _listen() -> None:
    for name in _RUN_LOGGERS:
        logger = logging.getLogger(name)
        masking = _Masking()
        for handler in (*logger.handlers, *logging.getLogger("prefect").handlers, *logging.getLogger().handlers):
            handler.addFilter(masking)
        logger.addHandler(_RunLog())
        logger.handlers[-1].addFilter(masking)
    # The console goes past the logs, and what it shows of libraries would be on the terminal alone.
    if any(isinstance(handler, PrefectConsoleHandler) for handler in logging.getLogger().handlers):
        logging.getLogger().addHandler(_OthersLog())
