"""The decision about an execution that has no seal: leave it, report it, end its flow run, or seal it.

Law: a running execution is left alone. It is declared dead only if its process is
gone, or if both its heartbeat and its worker's are missing.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from prefect_executions.executions.record import Usage
from prefect_executions.executions.summary import error_text
from prefect_executions.lifecycle.history import ObservedState
from prefect_executions.lifecycle.status import Observer, Reason, Status, terminal_status_of
from prefect_executions.workbench.sealing import Ending

SILENCE = timedelta(seconds=45)
"""How long heartbeats may be missing: more than four of an execution's, and more than one of a worker's."""

HANDOVER = timedelta(seconds=15)
"""How long a state hook in another process may take to begin: it imports Prefect first."""

UNANNOUNCED = timedelta(minutes=2)
"""How long a running Method may take to open its record, which normally takes milliseconds."""

STUCK = timedelta(minutes=10)
"""How long a run may be pending before it is reported, or given up if its worker is gone or none took it."""

_LOCAL_POOLS = frozenset({"process"})

# A contract with other versions: settle writes these beginnings into Prefect and recognises them there.
_PROCESS = "Its process"
_WORKER_GONE = "Its worker was gone before it started the run"
_NEVER_OPENED = "Prefect saw it start, but it never opened its record"
_SILENT = "Neither the run nor a worker sent a heartbeat"
_OLD_LOST = ("It was never heard of after Prefect saw it start", "Nothing was heard of it or its worker")
"""The beginnings that earlier versions wrote."""
_LOST = (_NEVER_OPENED, _SILENT, *_OLD_LOST)
_OWN_WORDS = {_WORKER_GONE: Reason.INFRASTRUCTURE, **dict.fromkeys(_LOST, Reason.LOST)}
"""The reason that belongs to each message of settle: one settle may have to seal a run that another has ended."""


class Decision(StrEnum):
    """What to do with an execution."""

    LEAVE = "leave"
    REPORT = "report"
    """Change nothing, but inform an operator."""
    END = "end"
    """Move the flow run to a terminal state in Prefect, then seal."""
    SEAL = "seal"


class Death(NamedTuple):
    """How and when the process of an execution died, as its parent observed it."""

    how: str
    at: datetime


class RunObservation(NamedTuple):
    """What Prefect, the archive and this machine show of an execution without a seal."""

    state: ObservedState | None
    """Prefect's newest state of the flow run; None if Prefect does not have the flow run."""
    now: datetime
    """The time by Prefect's clock."""
    reachable: bool
    """Whether the bundle is on this workbench, or on another one that this process can write to."""
    alive: bool | None = None
    """Whether its process is alive; None if that cannot be seen from this machine."""
    silence: timedelta | None = None
    """Time since its last heartbeat in the archive; None if it has no mark there."""
    worker_silence: timedelta | None = None
    """Time since its worker's last heartbeat; None if it has no worker or Prefect does not have the worker."""
    pool_type: str | None = None
    claimed: bool = True
    """Whether a worker has reported that it took the run, which it does before it starts anything; or none could."""
    process: str | None = None
    """The process as text: its id and machine."""
    status: Status | None = None
    """The status in its record; None if it has no record."""
    usage: Usage | None = None
    death: Death | None = None
    """How its process died, if that was observed."""


class Judgement(NamedTuple):
    """A decision, its reason, and how the execution ended."""

    decision: Decision
    why: str
    end: Ending | None = None
    cancelled: bool = False
    """Whether its end was requested."""
    unobserved: bool = False
    """Whether nothing observed the end itself, so that its time is not exact."""
    died: datetime | None = None
    """When its process died, if that was observed."""


def judge(run: RunObservation) -> Judgement:
    """Decide about an execution that has no seal."""
    state = run.state
    if state is None:
        return _without_flow_run(run)
    if not state.state.is_cancelling:
        terminal = terminal_status_of(state.state.type, state.state.name, state.message, started=run.status is not None)
        if terminal is not None:
            return _ended(run, state, terminal)
    return _open(run, state)


def _open(run: RunObservation, state: ObservedState) -> Judgement:
    if run.death is not None and state.state.type != "PAUSED":
        return _died(run, run.death, cancelled=state.state.is_cancelling)
    if state.state.type == "PENDING":
        return _pending(run, state)
    if state.state.type == "RUNNING" or state.state.is_cancelling:
        return _running(run, state)
    if state.state.name == "Late":
        return Judgement(Decision.REPORT, "no worker has picked it up; start one for its work pool, or cancel it")
    return Judgement(Decision.LEAVE, f"Prefect says {state.state.name}")


def _ended(run: RunObservation, state: ObservedState, terminal: tuple[Status, Reason | None]) -> Judgement:
    since = run.now - state.time
    if run.silence is None:
        busy = since < (HANDOVER if run.reachable else SILENCE)
    elif run.reachable and run.alive is False:
        busy = since < HANDOVER
    else:
        busy = run.silence < SILENCE
    if busy and run.death is None:
        return Judgement(Decision.LEAVE, "it has ended, and its process or worker is about to seal it")
    status, reason = terminal
    message = state.message
    if reason is Reason.CRASHED:
        own = (other for words, other in _OWN_WORDS.items() if (message or "").startswith(words))
        reason = next(own, reason)
    outcome = _code_outcome(run)
    if reason is Reason.CRASHED and outcome and outcome not in (message or ""):  # another settle may have added it
        message = f"{message or 'Crashed'} ({outcome})"
    end = Ending(status, reason, state.time, Observer.SETTLE, state.state, message)
    unobserved = state.state.type == "CRASHED" and (_is_own(state.message) or _was_silent(run, state.time))
    return Judgement(Decision.SEAL, f"Prefect says {state.state.name}", end, unobserved=unobserved)


def _is_own(message: str | None) -> bool:
    return (message or "").startswith((_PROCESS, *_LOST))


def _was_silent(run: RunObservation, ended: datetime) -> bool:
    """Whether the last heartbeat was so long before the end in Prefect that its reporter did not observe the end."""
    return run.silence is not None and run.silence - (run.now - ended) > SILENCE


def _pending(run: RunObservation, state: ObservedState) -> Judgement:
    waited = run.now - state.time
    if waited < STUCK:
        return Judgement(Decision.LEAVE, "it is about to start")
    silent = run.worker_silence is not None and run.worker_silence > STUCK / 2
    if silent and run.pool_type in _LOCAL_POOLS and run.alive is not True:
        message = f"{_WORKER_GONE}, {_as_text(run.worker_silence)} ago"
        end = Ending(Status.FAILED, Reason.INFRASTRUCTURE, run.now, Observer.SETTLE, message=message)
        return Judgement(Decision.END, message, end)
    if not run.claimed and run.alive is not True:
        message = f"{_WORKER_GONE}: no worker took it within {_as_text(waited)}"
        end = Ending(Status.FAILED, Reason.INFRASTRUCTURE, run.now, Observer.SETTLE, message=message)
        return Judgement(Decision.END, message, end)
    return Judgement(Decision.REPORT, f"it is pending for {_as_text(waited)}; check its infrastructure, or cancel it")


def _running(run: RunObservation, state: ObservedState) -> Judgement:
    if run.alive is True:
        return Judgement(Decision.LEAVE, "its process is alive")
    cancelled = state.state.is_cancelling
    may_seal = run.reachable or run.silence is None or run.silence >= SILENCE
    if run.alive is False and not may_seal:
        return Judgement(Decision.LEAVE, "its process is gone, but its bundle cannot be reached from this machine")
    if run.alive is False:
        why = f"{_PROCESS} {run.process} is gone"
        return _end(run, Reason.CRASHED, why, cancelled=cancelled)
    return _process_unseen(run, state, cancelled=cancelled)


def _died(run: RunObservation, death: Death, *, cancelled: bool) -> Judgement:
    judgement = _end(run, Reason.CRASHED, f"{_PROCESS} {run.process} {death.how}", cancelled=cancelled)
    return judgement._replace(unobserved=False, died=death.at)


def _process_unseen(run: RunObservation, state: ObservedState, *, cancelled: bool) -> Judgement:
    if run.worker_silence is not None and run.worker_silence < SILENCE:
        return Judgement(Decision.LEAVE, "its worker is alive and watches it")
    if run.silence is None:
        if run.now - state.time < UNANNOUNCED:
            return Judgement(Decision.LEAVE, "it is about to open its record")
        return _end(run, Reason.LOST, _NEVER_OPENED, cancelled=cancelled)
    if run.silence < SILENCE:
        return Judgement(Decision.LEAVE, "its heartbeat is recent")
    why = f"{_SILENT} for {_as_text(run.silence)}; its machine is gone or out of reach"
    return _end(run, Reason.LOST, why, cancelled=cancelled)


def _without_flow_run(run: RunObservation) -> Judgement:
    """Decide without Prefect, whose database was wiped or vacuumed, from what was recorded."""
    recent = run.silence is not None and run.silence < SILENCE
    if run.alive or (run.alive is None and recent):
        return Judgement(Decision.LEAVE, "its flow run is missing in Prefect, but it is running")
    why = "Prefect no longer knows this flow run"
    usage = run.usage
    if _succeeded(usage):
        end = Ending(Status.COMPLETED, None, run.now, Observer.SETTLE, message=f"{why}; its code had ended well")
    elif usage and usage.exception:
        error = error_text(usage.exception)
        end = Ending(Status.FAILED, Reason.ERROR, run.now, Observer.SETTLE, message=f"{error} ({why})")
    else:
        end = Ending(Status.FAILED, Reason.LOST, run.now, Observer.SETTLE, message=f"{why}; {_progress(run)}")
    return Judgement(Decision.SEAL, why, end, unobserved=True)


def _end(run: RunObservation, reason: Reason, why: str, *, cancelled: bool) -> Judgement:
    request = run.state.message if cancelled and run.state else None  # names who cancelled the run
    message = "; ".join(part for part in (why, _progress(run), request) if part)
    status = Status.CANCELLED if cancelled else Status.FAILED
    end = Ending(status, None if cancelled else reason, run.now, Observer.SETTLE, message=message)
    return Judgement(Decision.END, message, end, cancelled, unobserved=True)


def _progress(run: RunObservation) -> str:
    if outcome := _code_outcome(run):
        return outcome
    if run.status is Status.EXECUTING and run.death is not None:
        return "it was in the Method's own code"
    if run.status is Status.EXECUTING and run.alive is False:
        return "it ended in the Method's own code: it was killed, crashed, or called os._exit"
    if run.status is Status.EXECUTING:
        return "it was last seen in the Method's own code"
    return "the Method's own code had not begun"


def _code_outcome(run: RunObservation) -> str | None:
    """Describe how the Method's own code ended; None if its process was gone first."""
    if _succeeded(run.usage):
        return "the Method's own code had ended well before"
    if run.usage and run.usage.exception and run.status is Status.EXECUTING:
        return f"the Method's own code had raised {run.usage.exception.type} before"
    return None


def _succeeded(usage: Usage | None) -> bool:
    return usage is not None and usage.exit_code == 0 and usage.exception is None


def _as_text(duration: timedelta | None) -> str:
    seconds = int(duration.total_seconds()) if duration else 0
    return f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"  # noqa: PLR2004 - a minute
