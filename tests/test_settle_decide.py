"""What settle does with an execution that has no seal, by what is known of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from prefect_executions.executions.record import Raised, Usage
from prefect_executions.lifecycle.history import ObservedState, PrefectState
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.settle.decide import HANDOVER, SILENCE, STUCK, UNANNOUNCED, Decision, RunObservation, judge

NOW = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
WELL = Usage(exit_code=0)
RAISED = Usage(exception=Raised(type="ValueError", message="no", traceback=""))


def known(state: str | None, ago: timedelta = SILENCE, *, here: bool = True, **told: Any) -> RunObservation:
    """Return evidence with Prefect's state, as TYPE or TYPE/Name, entered that long ago."""
    if state is None:
        return RunObservation(None, NOW, here, **told)
    kind, _, name = state.partition("/")
    seen = ObservedState(PrefectState(type=kind, name=name or kind.title()), NOW - ago, told.pop("said", None))
    return RunObservation(seen, NOW, here, **told)


RUNS = {"status": Status.EXECUTING, "process": "4711 on far"}
LEFT = [
    known("RUNNING", alive=True, silence=10 * STUCK, **RUNS),  # suspended, or on a slow disk
    known("CANCELLING", alive=True, silence=10 * STUCK, **RUNS),
    known("RUNNING", here=False, silence=SILENCE - SECOND, **RUNS),
    known("RUNNING", here=False, silence=STUCK, worker_silence=SILENCE - SECOND, **RUNS),
    known("RUNNING", here=False, alive=False, silence=SECOND, **RUNS),  # the settle of its own workbench comes first
    known("RUNNING", UNANNOUNCED - SECOND, here=False),
    known("PENDING", STUCK - SECOND, worker_silence=STUCK, pool_type="process"),
    known("PENDING", STUCK - SECOND, claimed=False),
    known("SCHEDULED/AwaitingRetry", STUCK, alive=False, silence=STUCK, **RUNS),
    known("PAUSED/Suspended", STUCK, alive=False, silence=STUCK, **RUNS),
    known("COMPLETED", SECOND, alive=True, silence=SECOND, **RUNS),  # its hook is at work
    known("CRASHED", HANDOVER - SECOND, alive=False, silence=STUCK, **RUNS),  # its worker starts the hook
    known("CRASHED", STUCK, here=False, silence=SILENCE - SECOND, **RUNS),
    known("CANCELLED", SILENCE - SECOND, here=False),
    known(None, alive=True, silence=STUCK, **RUNS),
    known(None, here=False, silence=SILENCE - SECOND, **RUNS),
]


@pytest.mark.parametrize("evidence", LEFT)
def test_who_lives_or_is_about_to_be_sealed_is_left_alone(evidence):
    assert judge(evidence).act is Decision.LEAVE


@pytest.mark.parametrize(
    "evidence",
    [
        known("SCHEDULED/Late", STUCK, here=False),
        known("PENDING", STUCK + SECOND, here=False, worker_silence=SECOND, pool_type="process"),
        known("PENDING", STUCK + SECOND, here=False, worker_silence=STUCK, pool_type="kubernetes"),
        known("PENDING", STUCK + SECOND, here=False),
    ],
)
def test_what_waits_too_long_is_reported_and_not_sealed(evidence):
    judgement = judge(evidence)
    assert judgement.act is Decision.REPORT
    assert judgement.end is None
    assert "cancel it" in judgement.why


@pytest.mark.parametrize(
    ("evidence", "reason", "words"),
    [
        (
            known("RUNNING", alive=False, silence=SECOND, **RUNS),
            Reason.CRASHED,
            "4711 on far is gone; it was killed in",
        ),
        (known("RUNNING", alive=False, status=Status.STARTED), Reason.CRASHED, "own code had not begun"),
        (known("RUNNING", alive=False, usage=WELL, **RUNS), Reason.CRASHED, "own code had ended well before"),
        (known("RUNNING", alive=False, usage=RAISED, **RUNS), Reason.CRASHED, "own code had raised ValueError before"),
        (known("RUNNING", here=False, silence=SILENCE, **RUNS), Reason.LOST, "machine is gone or out of reach"),
        (known("RUNNING", here=False, silence=STUCK, worker_silence=SILENCE, **RUNS), Reason.LOST, "for 10 min 0 s"),
        (known("RUNNING", UNANNOUNCED, here=False), Reason.LOST, "never heard of"),
        (
            known("PENDING", STUCK, here=False, worker_silence=STUCK, pool_type="process"),
            Reason.INFRASTRUCTURE,
            "worker was gone",
        ),
        (
            known("PENDING", STUCK, here=False, claimed=False),
            Reason.INFRASTRUCTURE,
            "none has said within 10 min 0 s that it took it",
        ),
    ],
)
def test_the_dead_are_put_to_their_end_with_reason_and_words(evidence, reason, words):
    judgement = judge(evidence)
    assert judgement.act is Decision.END
    assert (judgement.end.status, judgement.end.reason) == (Status.FAILED, reason)
    assert words in judgement.end.message
    assert not judgement.cancelled


def test_a_dead_run_that_was_to_be_cancelled_is_cancelled():
    judgement = judge(known("CANCELLING", alive=False, silence=SECOND, **RUNS))
    assert (judgement.act, judgement.cancelled, judgement.end.status) == (Decision.END, True, Status.CANCELLED)
    assert judgement.end.reason is None


@pytest.mark.parametrize(
    ("evidence", "status", "reason"),
    [
        (known("CANCELLED", here=False), Status.CANCELLED, None),
        (known("COMPLETED", alive=False, **RUNS), Status.COMPLETED, None),
        (known("FAILED", **RUNS), Status.FAILED, Reason.ERROR),
        (known("FAILED/TimedOut", **RUNS), Status.FAILED, Reason.TIMED_OUT),
        (known("CRASHED", alive=False, silence=STUCK, **RUNS), Status.FAILED, Reason.CRASHED),
        (
            known("CRASHED", here=False, said="Flow run could not be submitted to infrastructure: no"),
            Status.FAILED,
            Reason.INFRASTRUCTURE,
        ),
        (known("CRASHED", alive=True, silence=SILENCE, **RUNS), Status.FAILED, Reason.CRASHED),  # a notebook lives on
        (known(None, alive=False, usage=WELL, **RUNS), Status.COMPLETED, None),
        (known(None, alive=False, usage=RAISED, **RUNS), Status.FAILED, Reason.ERROR),
        (known(None, alive=False, **RUNS), Status.FAILED, Reason.LOST),
        (known(None, here=False, silence=SILENCE, **RUNS), Status.FAILED, Reason.LOST),
    ],
)
def test_what_has_ended_is_sealed_as_it_ended(evidence, status, reason):
    judgement = judge(evidence)
    assert judgement.act is Decision.SEAL
    assert (judgement.end.status, judgement.end.reason) == (status, reason)


@pytest.mark.parametrize(
    "dead",
    [
        known("RUNNING", here=False, silence=SILENCE, **RUNS),
        known("RUNNING", UNANNOUNCED, here=False),
        known("PENDING", STUCK, here=False, worker_silence=STUCK, pool_type="process"),
        known("RUNNING", alive=False, silence=SECOND, **RUNS),
        known("RUNNING", alive=False, usage=WELL, **RUNS),
        known("RUNNING", alive=False, usage=RAISED, **RUNS),
    ],
)
def test_whoever_seals_what_another_settle_put_to_its_end_says_the_same(dead):
    first = judge(dead)
    left = dead._replace(state=known("CRASHED", STUCK, said=first.why).state, silence=dead.silence and STUCK)
    assert judge(left).act is Decision.SEAL
    assert judge(left).end[:2] == first.end[:2]
    assert judge(left).end.message == first.end.message


def test_a_crash_after_the_code_had_ended_well_says_so():
    judgement = judge(known("CRASHED", alive=False, said="Process exited", usage=WELL, **RUNS))
    assert judgement.end.message == "Process exited (the Method's own code had ended well before)"
