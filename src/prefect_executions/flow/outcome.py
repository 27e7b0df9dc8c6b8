"""The outcome of the author's code: usage, exception without secrets, entry of the history."""

from __future__ import annotations

import os
import traceback
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsIndex

import prefect
from prefect.client.schemas.objects import State
from prefect.exceptions import Pause

from prefect_executions.capture.secrets import SecretMask, redact_urls
from prefect_executions.documents import clean_text
from prefect_executions.errors import ScriptError
from prefect_executions.executions.record import Raised, Usage
from prefect_executions.executions.summary import error_text
from prefect_executions.lifecycle.history import EntryKind, JobStatus, add_entry, merge_states
from prefect_executions.lifecycle.status import Observer, Reason
from prefect_executions.prefect_api import flow_runs

LONGEST_MESSAGE = 1 << 20
"""Characters of an exception's message and of its traceback; Prefect stores the message in its database."""

_OMITTED = " [… {} characters …] "

_set = object.__setattr__
"""An exception class may forbid `setattr`."""

_OUR_FOLDER = str(Path(__file__).parents[1])
_PREFECT_FOLDER = str(Path(prefect.__file__).parent)


def outcome(error: BaseException | None, mask: SecretMask) -> dict[str, Any]:
    """Return the exit code and the exception of the author's code, as fields of `Usage`."""
    if error is None:
        return {"exit_code": 0}
    if isinstance(error, Pause):
        return {}
    fields: dict[str, Any] = {"exception": raised(error, mask)}
    if isinstance(error, ScriptError) and error.exit_code is not None:
        fields["exit_code"] = error.exit_code
    if isinstance(error, SystemExit):
        fields["exit_code"] = error.code if isinstance(error.code, int) else int(error.code is not None)
    return fields


def raised(error: BaseException, mask: SecretMask) -> Raised:
    """Return *error* for the record: without frames of this package, secrets masked."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and not _is_authors(trace):
        trace = trace.tb_next
    lines = traceback.format_exception(type(error), error, trace)
    return Raised(
        type=f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins."),
        message=_masked_text(_text(error), mask),
        traceback=_masked_text("".join(lines), mask),
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - `__str__` is the author's code
        return "<exception str() failed>"  # the text of Python's traceback


def _masked_text(text: str, mask: SecretMask) -> str:
    return _shortened(clean_text(redact_urls(mask.mask(text))))


def mask_error(error: BaseException | None, mask: SecretMask) -> None:
    """Prepare *error*, its causes and the members of its group for Prefect, which logs and stores their messages.

    Secrets are masked. A message that Prefect cannot send is replaced: see `_make_printable`.
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if mask:
            with suppress(Exception):  # an exception that refuses changes; the others are masked all the same
                _mask_texts(current, mask)
        with suppress(Exception):  # the same
            _make_printable(current)
        waiting += [current.__cause__, current.__context__]
        if isinstance(current, BaseExceptionGroup):
            waiting += current.exceptions


def sendable_state(returned: Any, mask: SecretMask) -> Any:
    """Return what a Method *returned*; of a state, a copy whose texts Prefect's API accepts, with secrets masked.

    Since 3.9 Prefect does not end a run whose final state its API refuses.
    """
    if not isinstance(returned, State):
        return returned
    texts = {"name": returned.name, "message": returned.message}
    sendable = {name: text and _shortened(_sendable(mask.mask(text))) for name, text in texts.items()}
    return returned if sendable == texts else returned.model_copy(update=sendable)


def _mask_texts(error: BaseException, mask: SecretMask) -> None:
    if (args := mask.mask_inside(error.args)) != error.args:
        error.args = args
    # Attributes such as the command of a CalledProcessError. An exception class may forbid setattr, so update the dict.
    attributes = vars(error)
    attributes.update(
        {name: masked for name, value in attributes.items() if (masked := mask.mask_inside(value)) is not value}
    )
    if isinstance(error, OSError):
        for name in ("filename", "filename2"):
            masked = mask.mask_inside(value := getattr(error, name))
            if (
                masked != value
            ):  # setting None on an OSError without a file changes its text to "[Errno None] None: None"
                setattr(error, name, masked)


def _make_printable(error: BaseException) -> None:
    """Give *error* a text that Prefect can put into a state, if it has none; otherwise its run would never end.

    Prefect cannot format an exception whose `__str__` or `__repr__` raises, and its API refuses lone
    surrogates (of a file name that is not UTF-8), null characters (PostgreSQL) and very long messages.
    """
    if _is_printable(error):
        return
    text = _shortened(_sendable(_text(error)))
    with suppress(Exception):  # the class is built in, or refuses a subclass
        _set(error, "__class__", _with_text(type(error), text))
    if not _is_printable(error):
        _replace_texts(error, text)


def _is_printable(error: BaseException) -> bool:
    try:
        text = str(error)
        repr(error)
    except Exception:  # noqa: BLE001 - both are the author's code
        return False
    return len(text) <= LONGEST_MESSAGE and _sendable(text) == text


def _sendable(text: str) -> str:
    return clean_text(text).replace("\0", "\\x00")


def _shortened(text: str) -> str:
    if len(text) <= LONGEST_MESSAGE:
        return text
    half = LONGEST_MESSAGE // 2 - len(_OMITTED)
    return text[:half] + _OMITTED.format(len(text) - 2 * half) + text[-half:]


def _with_text(kind: type[BaseException], text: str) -> type[BaseException]:
    """Return a subclass of *kind*, with its name, whose instances have this text and pickle as *kind*."""

    def reduce(self: BaseException, protocol: SupportsIndex) -> Any:
        reduced = super(printable, self).__reduce_ex__(protocol)
        return (kind, *reduced[1:]) if isinstance(reduced, tuple) and reduced[0] is printable else reduced

    members = {
        "__slots__": (),  # the same layout, so that an instance of *kind* can become one of the subclass
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__str__": lambda _: text,
        "__repr__": lambda _: f"{kind.__name__}({text!r})",
        "__reduce_ex__": reduce,
    }
    printable: type[BaseException] = type(kind.__name__, (kind,), members)
    return printable


def _replace_texts(error: BaseException, text: str) -> None:
    """Replace the values that a built-in exception makes its text from."""
    if isinstance(error, OSError) and error.strerror is not None:
        for name in ("errno", "strerror", "filename", "filename2"):
            value = getattr(error, name)
            if isinstance(value, bytes | str) and (clean := _sendable(os.fsdecode(value))) != value:
                _set(error, name, clean)
            elif not isinstance(value, bytes | str | int | None):
                _set(error, name, text)
    if isinstance(error, SyntaxError):
        _set(error, "msg", text)
    _set(error, "args", tuple(_sendable(arg) if isinstance(arg, str) else arg for arg in error.args))
    if not _is_printable(error):
        _set(error, "args", (text,))


def _is_authors(trace: TracebackType) -> bool:
    file = trace.tb_frame.f_code.co_filename
    return not file.startswith((_OUR_FOLDER, _PREFECT_FOLDER)) and Path(file).name != "contextlib.py"


def attempt_failed(job_status: JobStatus, error: Raised, at: datetime, *, timed_out: bool) -> JobStatus:
    """Return *job_status* with the end of an attempt that Prefect will retry."""
    return add_entry(
        job_status,
        EntryKind.ATTEMPT_FAILED,
        at,
        observer=Observer.HOOK,
        reason=Reason.TIMED_OUT if timed_out else Reason.ERROR,
        message=error_text(error),
    )


def suspended(job_status: JobStatus, pause: Pause) -> JobStatus:
    """Return *job_status* with the suspension that Prefect accepted and that ends this process."""
    return job_status if pause.state is None else merge_states(job_status, [flow_runs.observed_state(pause.state)])


def merge_usage(earlier: Usage | None, last: Usage) -> Usage:
    """Return the usage of all attempts: the sum of the seconds, the highest peak, the end of the *last* attempt."""
    if earlier is None:
        return last
    return last.model_copy(
        update={
            "wall_seconds": _sum(earlier.wall_seconds, last.wall_seconds),
            "cpu_seconds": _sum(earlier.cpu_seconds, last.cpu_seconds),
            "peak_memory": max(earlier.peak_memory or 0, last.peak_memory or 0) or None,
        }
    )


def _sum(earlier: float | None, last: float | None) -> float | None:
    return earlier if last is None else last if earlier is None else earlier + last
