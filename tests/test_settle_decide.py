"""The decisions of settle about an execution without a seal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from prefect_executions.executions.record import Raised, Usage
from prefect_executions.lifecycle.history import ObservedState, PrefectState
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.settle.decide import (
    HANDOVER,
    SILENCE,
    STUCK,
    UNANNOUNCED,
    Death,
    Decision,
    RunObservation,
    judge,
)

NOW = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
WELL = Usage(exit_code=0)
RAISED = Usage(exception=Raised(type="ValueError", message="no", traceback=""))


def run(state: str | None, ago: timedelta = SILENCE, *, here: bool = True, **fields: Any) -> RunObservation:
    """Return an observation with Prefect's state, as TYPE or TYPE/Name, entered that long ago."""
    if state is None:
        return RunObservation(None, NOW, here, **fields)
    kind, _, name = state.partition("/")
    seen = ObservedState(PrefectState(type=kind, name=name or kind.title()), NOW - ago, fields.pop("message", None))
    return RunObservation(seen, NOW, here, **fields)


RUNS = {"status": Status.EXECUTING, "process": "4711 on far"}
LEFT = [
    run("RUNNING", alive=True, silence=10 * STUCK, **RUNS),  # suspended, or on a slow disk
    run("CANCELLING", alive=True, silence=10 * STUCK, **RUNS),
    run("RUNNING", here=False, silence=SILENCE - SECOND, **RUNS),
    run("RUNNING", here=False, silence=STUCK, worker_silence=SILENCE - SECOND, **RUNS),
    run("RUNNING", here=False, alive=False, silence=SECOND, **RUNS),  # the settle of its own workbench comes first
    run("RUNNING", UNANNOUNCED - SECOND, here=False),
    run("PENDING", STUCK - SECOND, worker_silence=STUCK, pool_type="process"),
    run("PENDING", STUCK - SECOND, claimed=False),
    run("SCHEDULED/AwaitingRetry", STUCK, alive=False, silence=STUCK, **RUNS),
    run("PAUSED/Suspended", STUCK, alive=False, silence=STUCK, **RUNS),
    run("COMPLETED", SECOND, alive=True, silence=SECOND, **RUNS),  # its hook is at work
    run("CRASHED", HANDOVER - SECOND, alive=False, silence=STUCK, **RUNS),  # its worker starts the hook
    run("CRASHED", STUCK, here=False, silence=SILENCE - SECOND, **RUNS),
    run("CANCELLED", SILENCE - SECOND, here=False),
    run(None, alive=True, silence=STUCK, **RUNS),
    run(None, here=False, silence=SILENCE - SECOND, **RUNS),
]


@pytest.mark.parametrize("observation", LEFT)
def test_a_running_execution_or_one_about_to_be_sealed_is_left_alone(observation):
    assert judge(observation).decision is Decision.LEAVE


@pytest.mark.parametrize(
    "observation",
    [
        run("SCHEDULED/Late", STUCK, here=False),
        run("PENDING", STUCK + SECOND, here=False, worker_silence=SECOND, pool_type="process"),
        run("PENDING", STUCK + SECOND, here=False, worker_silence=STUCK, pool_type="kubernetes"),
        run("PENDING", STUCK + SECOND, here=False),
    ],
)
def test_a_run_that_waits_too_long_is_reported_and_not_sealed(observation):
    judgement = judge(observation)
    assert judgement.decision is Decision.REPORT
    assert judgement.end is None
    assert "cancel it" in judgement.why


@pytest.mark.parametrize(
    ("observation", "reason", "words"),
    [
        (
            run("RUNNING", alive=False, silence=SECOND, **RUNS),
            Reason.CRASHED,
            "4711 on far is gone; it ended in the Method's own code",
        ),
        (run("RUNNING", alive=False, status=Status.STARTED), Reason.CRASHED, "own code had not begun"),
        (run("RUNNING", alive=False, usage=WELL, **RUNS), Reason.CRASHED, "own code had ended well before"),
        (run("RUNNING", alive=False, usage=RAISED, **RUNS), Reason.CRASHED, "own code had raised ValueError before"),
        (run("RUNNING", here=False, silence=SILENCE, **RUNS), Reason.LOST, "machine is gone or out of reach"),
        (run("RUNNING", here=False, silence=STUCK, worker_silence=SILENCE, **RUNS), Reason.LOST, "for 10 min 0 s"),
        (run("RUNNING", UNANNOUNCED, here=False), Reason.LOST, "never opened its record"),
        (
            run("PENDING", STUCK, here=False, worker_silence=STUCK, pool_type="process"),
            Reason.INFRASTRUCTURE,
            "worker was gone",
        ),
        (
            run("PENDING", STUCK, here=False, claimed=False),
            Reason.INFRASTRUCTURE,
            "no worker took it within 10 min 0 s",
        ),
    ],
)
def test_a_dead_run_is_ended_with_a_reason_and_a_message(observation, reason, words):
    judgement = judge(observation)
    assert judgement.decision is Decision.END
    assert (judgement.end.status, judgement.end.reason) == (Status.FAILED, reason)
    assert words in judgement.end.message
    assert not judgement.cancelled


@pytest.mark.parametrize(
    ("observation", "unobserved"),
    [
        (run("RUNNING", alive=False, silence=SECOND, **RUNS), True),
        (run("RUNNING", here=False, silence=SILENCE, **RUNS), True),
        (run("CANCELLING", alive=False, silence=SECOND, **RUNS), True),
        (run(None, alive=False, **RUNS), True),
        (run("CRASHED", STUCK, alive=False, silence=STUCK + SILENCE, **RUNS), False),  # its worker saw the end
        (run("CRASHED", STUCK, alive=False, silence=STUCK + 2 * SILENCE, **RUNS), True),  # an automation found it
        (run("CRASHED", STUCK, alive=False, message="Its process 4711 on far is gone; no", **RUNS), True),
        (run("CRASHED", STUCK, alive=False, message="Process exited with -9", **RUNS), False),
        (run("COMPLETED", STUCK, alive=False, silence=10 * STUCK, **RUNS), False),
        (run("PENDING", STUCK, here=False, claimed=False), False),
    ],
)
def test_an_end_that_nothing_observed_has_no_exact_time(observation, unobserved):
    judgement = judge(observation)
    assert judgement.end is not None
    assert judgement.unobserved is unobserved


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "SCHEDULED/AwaitingRetry", "CANCELLING"])
def test_a_death_that_its_parent_observed_ends_the_run_at_that_time(state):
    death = Death("died of SIGSEGV", NOW - SECOND)
    judgement = judge(run(state, SECOND, silence=SECOND, death=death, **RUNS))
    assert (judgement.decision, judgement.died, judgement.unobserved) == (Decision.END, death.at, False)
    assert judgement.end.message == "Its process 4711 on far died of SIGSEGV; it was in the Method's own code"
    assert judgement.cancelled is (state == "CANCELLING")


def test_a_process_that_died_after_the_end_does_not_change_the_end():
    judgement = judge(run("COMPLETED", SECOND, silence=SECOND, death=Death("died", NOW), **RUNS))
    assert (judgement.decision, judgement.end.status) == (Decision.SEAL, Status.COMPLETED)


def test_a_suspended_run_is_left_although_its_process_died():
    judgement = judge(run("PAUSED/Suspended", SECOND, silence=SECOND, death=Death("died", NOW), **RUNS))
    assert judgement.decision is Decision.LEAVE


def test_a_dead_run_with_a_cancel_request_is_cancelled():
    judgement = judge(run("CANCELLING", alive=False, silence=SECOND, **RUNS))
    assert (judgement.decision, judgement.cancelled, judgement.end.status) == (Decision.END, True, Status.CANCELLED)
    assert judgement.end.reason is None


@pytest.mark.parametrize("death", [None, Death("was killed by SIGKILL", NOW)])
def test_a_cancelled_run_that_was_killed_names_who_cancelled_it(death):
    judgement = judge(run("CANCELLING", alive=False, message="cancelled by ada", death=death, **RUNS))
    assert judgement.end.status is Status.CANCELLED
    assert judgement.end.message.endswith("; cancelled by ada")


@pytest.mark.parametrize(
    "words", ["It was never heard of after Prefect saw it start", "Nothing was heard of it or its worker"]
)
def test_a_run_that_an_earlier_version_declared_lost_stays_lost(words):
    judgement = judge(run("CRASHED", STUCK, alive=False, silence=STUCK, message=f"{words}; no", **RUNS))
    assert (judgement.end.reason, judgement.unobserved) == (Reason.LOST, True)


@pytest.mark.parametrize(
    ("observation", "status", "reason"),
    [
        (run("CANCELLED", here=False), Status.CANCELLED, None),
        (run("COMPLETED", alive=False, **RUNS), Status.COMPLETED, None),
        (run("FAILED", **RUNS), Status.FAILED, Reason.ERROR),
        (run("FAILED/TimedOut", **RUNS), Status.FAILED, Reason.TIMED_OUT),
        (run("CRASHED", alive=False, silence=STUCK, **RUNS), Status.FAILED, Reason.CRASHED),
        (
            run("CRASHED", here=False, message="Flow run could not be submitted to infrastructure: no"),
            Status.FAILED,
            Reason.INFRASTRUCTURE,
        ),
        (run("CRASHED", alive=True, silence=SILENCE, **RUNS), Status.FAILED, Reason.CRASHED),  # a notebook lives on
        (run(None, alive=False, usage=WELL, **RUNS), Status.COMPLETED, None),
        (run(None, alive=False, usage=RAISED, **RUNS), Status.FAILED, Reason.ERROR),
        (run(None, alive=False, **RUNS), Status.FAILED, Reason.LOST),
        (run(None, here=False, silence=SILENCE, **RUNS), Status.FAILED, Reason.LOST),
    ],
)
def test_an_ended_run_is_sealed_with_its_own_end(observation, status, reason):
    judgement = judge(observation)
    assert judgement.decision is Decision.SEAL
    assert (judgement.end.status, judgement.end.reason) == (status, reason)


@pytest.mark.parametrize(
    "dead",
    [
        run("RUNNING", here=False, silence=SILENCE, **RUNS),
        run("RUNNING", UNANNOUNCED, here=False),
        run("PENDING", STUCK, here=False, worker_silence=STUCK, pool_type="process"),
        run("RUNNING", alive=False, silence=SECOND, **RUNS),
        run("RUNNING", alive=False, usage=WELL, **RUNS),
        run("RUNNING", alive=False, usage=RAISED, **RUNS),
    ],
)
def test_a_second_settle_gives_a_run_that_the_first_ended_the_same_end(dead):
    first = judge(dead)
    left = dead._replace(state=run("CRASHED", STUCK, message=first.why).state, silence=dead.silence and STUCK)
    assert judge(left).decision is Decision.SEAL
    assert judge(left).end[:2] == first.end[:2]
    assert judge(left).end.message == first.end.message


def test_a_crash_after_the_code_succeeded_records_both():
    judgement = judge(run("CRASHED", alive=False, message="Process exited", usage=WELL, **RUNS))
    assert judgement.end.message == "Process exited (the Method's own code had ended well before)"
