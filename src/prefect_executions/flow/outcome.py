"""How the author's code ended: as usage, as an error that may be told, as an entry of the history."""

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
    """Return how the author's code ended, as members of `Usage`."""
    if error is None:
        return {"exit_code": 0}
    if isinstance(error, Pause):
        return {}
    told: dict[str, Any] = {"exception": raised(error, mask)}
    if isinstance(error, ScriptError) and error.exit_code is not None:
        told["exit_code"] = error.exit_code
    if isinstance(error, SystemExit):
        told["exit_code"] = error.code if isinstance(error.code, int) else int(error.code is not None)
    return told


def raised(error: BaseException, mask: SecretMask) -> Raised:
    """Return *error* as the record holds it: our own frames left out, secrets masked."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and not _is_authors(trace):
        trace = trace.tb_next
    lines = traceback.format_exception(type(error), error, trace)
    return Raised(
        type=f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins."),
        message=_told(_text(error), mask),
        traceback=_told("".join(lines), mask),
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the author's own code
        return "<exception str() failed>"  # as Python's traceback says


def _told(text: str, mask: SecretMask) -> str:
    return clean_text(redact_urls(mask.mask(text)))


def mask_error(error: BaseException | None, mask: SecretMask) -> None:
    """Mask known secrets in *error*'s texts, before Prefect logs it and stores its message.

    So are those of its causes, and of the errors that a group holds. What UTF-8 cannot hold is written as its escape.
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if mask:
            _mask_texts(one, mask)
        _write_out(one)
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions


def _mask_texts(error: BaseException, mask: SecretMask) -> None:
    if (args := mask.mask_inside(error.args)) != error.args:
        error.args = args
    members = vars(error)  # such as the command of a CalledProcessError; an error may forbid to set them one by one
    members.update({name: told for name, value in members.items() if (told := mask.mask_inside(value)) is not value})
    if isinstance(error, OSError):
        for name in ("filename", "filename2"):
            told = mask.mask_inside(value := getattr(error, name))
            if told != value:  # one without a file that is given None says "[Errno None] None: None"
                setattr(error, name, told)


def _write_out(error: BaseException) -> None:
    # Prefect cannot send a message with a lone surrogate, as in a file name that is no UTF-8: its run never ends.
    if clean_text(text := _text(error)) != text:
        error.args = tuple(clean_text(one) if isinstance(one, str) else one for one in error.args)


def _is_authors(trace: TracebackType) -> bool:
    file = trace.tb_frame.f_code.co_filename
    return not file.startswith((_OUR_FOLDER, _PREFECT_FOLDER)) and Path(file).name != "contextlib.py"


def attempt_failed(job_status: JobStatus, error: Raised, at: datetime, *, timed_out: bool) -> JobStatus:
    """Return *job_status* with the end of an attempt that Prefect will repeat."""
    return add_entry(
        job_status,
        EntryKind.ATTEMPT_FAILED,
        at,
        observer=Observer.HOOK,
        reason=Reason.TIMED_OUT if timed_out else Reason.ERROR,
        message=f"{error.type}: {error.message}",
    )


def suspended(job_status: JobStatus, pause: Pause) -> JobStatus:
    """Return *job_status* with the suspension that ends this process, as Prefect accepted it."""
    return job_status if pause.state is None else merge_states(job_status, [flow_runs.observed_state(pause.state)])


def merge_usage(earlier: Usage | None, last: Usage) -> Usage:
    """Return what all attempts used: seconds added up, the higher peak, and how the *last* one ended."""
    if earlier is None:
        return last
    return last.model_copy(
        update={
            "wall_seconds": _sum(earlier.wall_seconds, last.wall_seconds),
            "cpu_seconds": _sum(earlier.cpu_seconds, last.cpu_seconds),
            "peak_memory": max(earlier.peak_memory or 0, last.peak_memory or 0) or None,
        }
    )


def _sum(one: float | None, other: float | None) -> float | None:
    return one if other is None else other if one is None else one + other
