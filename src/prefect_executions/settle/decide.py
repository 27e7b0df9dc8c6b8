"""What is to be done with an execution that has no seal, judged from what is known of it.

Law: the living are left alone. An execution is declared dead only where its
process is known to be gone, or where it and its worker are both silent.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from prefect_executions.executions.record import Usage
from prefect_executions.lifecycle.history import ObservedState
from prefect_executions.lifecycle.status import Observer, Reason, Status, terminal_status_of
from prefect_executions.workbench.sealing import Ending

SILENCE = timedelta(seconds=45)
"""How long signs of life may be missing: more than four of them, and more than one of a worker's."""

HANDOVER = timedelta(seconds=15)
"""How long a state hook in another process may take to begin: it imports Prefect first."""

UNANNOUNCED = timedelta(minutes=2)
"""How long a running Method may take to open its record: it takes milliseconds."""

STUCK = timedelta(minutes=10)
"""How long a run may be pending before it is reported, or, where its worker is gone or none took it, given up."""

_LOCAL_POOLS = frozenset({"process"})

_WORKER_GONE = "Its worker was gone before it started the run"
_NEVER_HEARD = "It was never heard of after Prefect saw it start"
_SILENT = "Nothing was heard of it or its worker"
_OWN_WORDS = {_WORKER_GONE: Reason.INFRASTRUCTURE, _NEVER_HEARD: Reason.LOST, _SILENT: Reason.LOST}
"""How the message begins that a settle leaves in Prefect: another may have to seal what it has put to its end."""


class Decision(StrEnum):
    """What is to be done."""

    LEAVE = "leave"
    REPORT = "report"
    """Nothing, but an operator should know."""
    END = "end"
    """Put the flow run into its end in Prefect, then seal."""
    SEAL = "seal"


class RunObservation(NamedTuple):
    """What is known of an execution without a seal.

    `state` is Prefect's newest state of it, None when Prefect does not know the
    flow run. `alive` says of its process whether it lives, None when that cannot
    be seen from here. `silence` is the time since its last sign of life in the
    archive, None when it was never announced; `worker_silence` that of its worker,
    None when it has none or nobody knows it. `now` is the time by Prefect's clock.
    """

    state: ObservedState | None
    now: datetime
    here: bool
    alive: bool | None = None
    silence: timedelta | None = None
    worker_silence: timedelta | None = None
    pool_type: str | None = None
    claimed: bool = True
    """Whether a worker has said that it took the run, or none could: it does so before it starts anything."""
    process: str | None = None
    """Words for the process: its id and machine."""
    status: Status | None = None
    """The status in its record, if it has one."""
    usage: Usage | None = None


class Judgement(NamedTuple):
    """What is to be done, why, and how the execution ended; `cancelled` says that its end was asked for."""

    act: Decision
    why: str
    end: Ending | None = None
    cancelled: bool = False


def judge(evidence: RunObservation) -> Judgement:
    """Return what is to be done with an execution that has no seal."""
    state = evidence.state
    if state is None:
        return _forgotten(evidence)
    if not state.state.is_cancelling:
        decided = terminal_status_of(
            state.state.type, state.state.name, state.message, started=evidence.status is not None
        )
        if decided is not None:
            return _ended(evidence, state, decided)
    if state.state.type == "PENDING":
        return _pending(evidence, state)
    if state.state.type == "RUNNING" or state.state.is_cancelling:
        return _running(evidence, state)
    if state.state.name == "Late":
        return Judgement(Decision.REPORT, "no worker has picked it up; start one for its work pool, or cancel it")
    return Judgement(Decision.LEAVE, f"Prefect says {state.state.name}")


def _ended(evidence: RunObservation, state: ObservedState, decided: tuple[Status, Reason | None]) -> Judgement:
    since = evidence.now - state.time
    if evidence.silence is None:
        busy = since < (HANDOVER if evidence.here else SILENCE)
    elif evidence.here and evidence.alive is False:
        busy = since < HANDOVER
    else:
        busy = evidence.silence < SILENCE
    if busy:
        return Judgement(Decision.LEAVE, "it has ended and its own process or worker is about to seal it")
    status, reason = decided
    message = state.message
    if reason is Reason.CRASHED:
        own = (told for words, told in _OWN_WORDS.items() if (message or "").startswith(words))
        reason = next(own, reason)
    before = _ended_before(evidence)
    if reason is Reason.CRASHED and before and before not in (message or ""):  # another settle may have said it
        message = f"{message or 'Crashed'} ({before})"
    end = Ending(status, reason, state.time, Observer.SETTLE, state.state, message)
    return Judgement(Decision.SEAL, f"Prefect says {state.state.name}", end)


def _pending(evidence: RunObservation, state: ObservedState) -> Judgement:
    waits = evidence.now - state.time
    if waits < STUCK:
        return Judgement(Decision.LEAVE, "it is about to start")
    silent = evidence.worker_silence is not None and evidence.worker_silence > STUCK / 2
    if silent and evidence.pool_type in _LOCAL_POOLS and evidence.alive is not True:
        message = f"{_WORKER_GONE}, {_words(evidence.worker_silence)} ago"
        end = Ending(Status.FAILED, Reason.INFRASTRUCTURE, evidence.now, Observer.SETTLE, message=message)
        return Judgement(Decision.END, message, end)
    if not evidence.claimed and evidence.alive is not True:
        message = f"{_WORKER_GONE}: none has said within {_words(waits)} that it took it"
        end = Ending(Status.FAILED, Reason.INFRASTRUCTURE, evidence.now, Observer.SETTLE, message=message)
        return Judgement(Decision.END, message, end)
    return Judgement(Decision.REPORT, f"it is pending for {_words(waits)}; look at its infrastructure, or cancel it")


def _running(evidence: RunObservation, state: ObservedState) -> Judgement:
    if evidence.alive is True:
        return Judgement(Decision.LEAVE, "its process lives")
    cancelled = state.state.is_cancelling
    handed = evidence.here or evidence.silence is None or evidence.silence >= SILENCE
    if evidence.alive is False and not handed:
        return Judgement(Decision.LEAVE, "its process is gone, but its bundle cannot be reached from here")
    if evidence.alive is False:
        why = f"Its process {evidence.process} is gone"
        return _end(evidence, Reason.CRASHED, why, cancelled=cancelled)
    return _out_of_sight(evidence, state, cancelled=cancelled)


def _out_of_sight(evidence: RunObservation, state: ObservedState, *, cancelled: bool) -> Judgement:
    if evidence.worker_silence is not None and evidence.worker_silence < SILENCE:
        return Judgement(Decision.LEAVE, "its worker lives and watches it")
    if evidence.silence is None:
        if evidence.now - state.time < UNANNOUNCED:
            return Judgement(Decision.LEAVE, "it is about to open its record")
        return _end(evidence, Reason.LOST, _NEVER_HEARD, cancelled=cancelled)
    if evidence.silence < SILENCE:
        return Judgement(Decision.LEAVE, "it gives signs of life")
    why = f"{_SILENT} for {_words(evidence.silence)}; its machine is gone or out of reach"
    return _end(evidence, Reason.LOST, why, cancelled=cancelled)


def _forgotten(evidence: RunObservation) -> Judgement:
    """Prefect does not know the flow run: its database was wiped or vacuumed. What we saw ourselves has to do."""
    heard = evidence.silence is not None and evidence.silence < SILENCE
    if evidence.alive or (evidence.alive is None and heard):
        return Judgement(Decision.LEAVE, "Prefect does not know it, but it lives")
    why = "Prefect no longer knows this flow run"
    usage = evidence.usage
    if _well(usage):
        end = Ending(Status.COMPLETED, None, evidence.now, Observer.SETTLE, message=f"{why}; its code had ended well")
    elif usage and usage.exception:
        told = f"{usage.exception.type}: {usage.exception.message}"
        end = Ending(Status.FAILED, Reason.ERROR, evidence.now, Observer.SETTLE, message=f"{told} ({why})")
    else:
        end = Ending(Status.FAILED, Reason.LOST, evidence.now, Observer.SETTLE, message=f"{why}; {_where(evidence)}")
    return Judgement(Decision.SEAL, why, end)


def _end(evidence: RunObservation, reason: Reason, why: str, *, cancelled: bool) -> Judgement:
    message = f"{why}; {_where(evidence)}"
    status = Status.CANCELLED if cancelled else Status.FAILED
    end = Ending(status, None if cancelled else reason, evidence.now, Observer.SETTLE, message=message)
    return Judgement(Decision.END, message, end, cancelled)


def _where(evidence: RunObservation) -> str:
    if before := _ended_before(evidence):
        return before
    if evidence.status is Status.EXECUTING:
        return "it was killed in the Method's own code"
    return "the Method's own code had not begun"


def _ended_before(evidence: RunObservation) -> str | None:
    """Words for how the Method's own code ended, where it did before its process was gone."""
    if _well(evidence.usage):
        return "the Method's own code had ended well before"
    if evidence.usage and evidence.usage.exception and evidence.status is Status.EXECUTING:
        return f"the Method's own code had raised {evidence.usage.exception.type} before"
    return None


def _well(usage: Usage | None) -> bool:
    return usage is not None and usage.exit_code == 0 and usage.exception is None


def _words(time: timedelta | None) -> str:
    seconds = int(time.total_seconds()) if time else 0
    return f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"  # noqa: PLR2004 - a minute
