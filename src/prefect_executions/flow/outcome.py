"""The outcome of the author's code: usage, exception without secrets, entry of the history."""

from __future__ import annotations

import traceback
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import prefect
from prefect.exceptions import Pause

from prefect_executions.capture.secrets import SecretMask, redact_urls
from prefect_executions.documents import clean_text
from prefect_executions.errors import ScriptError
from prefect_executions.executions.record import Raised, Usage
from prefect_executions.lifecycle.history import EntryKind, JobStatus, add_entry, merge_states
from prefect_executions.lifecycle.status import Observer, Reason
from prefect_executions.prefect_api import flow_runs

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
    return clean_text(redact_urls(mask.mask(text)))


def mask_error(error: BaseException | None, mask: SecretMask) -> None:
    """Mask secrets in *error*, its causes and the members of its group, before Prefect logs and stores its message.

    Characters that UTF-8 cannot encode are replaced by their escapes.
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if mask:
            _mask_texts(current, mask)
        _escape_surrogates(current)
        waiting += [current.__cause__, current.__context__]
        if isinstance(current, BaseExceptionGroup):
            waiting += current.exceptions


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


def _escape_surrogates(error: BaseException) -> None:
    # Prefect cannot send a lone surrogate, for example of a file name that is not UTF-8: its run would never end.
    if clean_text(text := _text(error)) != text:
        error.args = tuple(clean_text(arg) if isinstance(arg, str) else arg for arg in error.args)


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
        message=f"{error.type}: {error.message}",
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
