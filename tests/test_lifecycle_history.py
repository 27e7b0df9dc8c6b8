"""The lifecycle: the tables are complete, and a status never goes back."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.schemas.objects import StateType
from pydantic import ValidationError

from prefect_executions.errors import TransitionError
from prefect_executions.lifecycle.history import (
    INTERRUPTED,
    EntryKind,
    JobStatus,
    ObservedState,
    PrefectState,
    Step,
    add_entry,
    advance,
    faults,
    merge_states,
    new_job_status,
    with_end_after,
    with_steps_ended,
)
from prefect_executions.lifecycle.status import (
    AS_OGC,
    FOLLOWS,
    FROM_PREFECT,
    Observer,
    Reason,
    Status,
    terminal_status_of,
)

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def created() -> JobStatus:
    return new_job_status("id-1", "a-method", status=Status.CREATED, at=NOON, observer=Observer.PREFECT)


def executing() -> JobStatus:
    started = advance(created(), Status.STARTED, at(1), observer=Observer.PREFECT)
    return advance(started, Status.EXECUTING, at(2), observer=Observer.HOOK)


def a_state(kind: str, name: str, seconds: float, message: str | None = None) -> ObservedState:
    return ObservedState(PrefectState(type=kind, name=name, id=uuid4()), at(seconds), message)


def found_later() -> JobStatus:
    noted = add_entry(executing(), EntryKind.NOTE, at(100), observer=Observer.SETTLE, message="a log was lost")
    return advance(noted, Status.FAILED, at(100), observer=Observer.SETTLE, reason=Reason.CRASHED)


def test_an_end_that_was_found_later_is_after_the_last_evidence_of_life():
    ended = with_end_after(found_later(), at(9))
    assert (ended.finished, ended.finished_before, ended.updated) == (at(9), at(100), at(100))
    assert ended.end_found == ended.history[-1].time == at(100)
    assert [*faults(ended.history)] == []


def test_entries_of_the_run_and_its_steps_are_evidence_of_life():
    assert with_end_after(found_later(), at(-50)).finished == at(2)
    steps = (a_step(at(3), at(5)), a_step(at(7), None), a_step(at(500), None))
    assert with_end_after(found_later().model_copy(update={"steps": steps}), at(-50)).finished == at(7)


@pytest.mark.parametrize("seconds", [100, 200])
def test_an_end_right_after_a_sign_of_life_is_exact(seconds):
    ended = found_later()
    assert with_end_after(ended, at(seconds)) is ended
    assert (ended.finished, ended.finished_before, ended.end_found) == (at(100), None, at(100))


def a_step(started: datetime, finished: datetime | None) -> Step:
    state = "RUNNING" if finished is None else "COMPLETED"
    return Step(id=uuid4(), name="a-step", state=state, state_name=state.title(), started=started, finished=finished)


def test_steps_that_had_not_ended_end_with_their_execution():
    steps = (a_step(at(3), at(5)), a_step(at(7), None))
    ended = with_steps_ended(found_later().model_copy(update={"steps": steps}))
    assert [(step.state, step.state_name, step.finished) for step in ended.steps] == [
        ("COMPLETED", "Completed", at(5)),
        ("CRASHED", INTERRUPTED, None),
    ]
    assert with_steps_ended(ended) is ended


def test_every_state_type_of_prefect_is_mapped():
    assert set(FROM_PREFECT) == {kind.value for kind in StateType}


def test_every_status_has_a_row_in_each_table():
    assert set(FOLLOWS) == set(AS_OGC) == set(Status)


def test_only_the_three_ends_are_terminal():
    assert {status for status in Status if status.terminal} == {Status.COMPLETED, Status.FAILED, Status.CANCELLED}


def test_no_status_can_come_back():
    for status, nexts in FOLLOWS.items():
        for later in nexts:
            assert status not in FOLLOWS[later]


def test_repeating_the_current_status_changes_nothing():
    job_status = executing()

    assert advance(job_status, Status.EXECUTING, at(9), observer=Observer.HOOK) is job_status


def test_forward_skips_are_legal():
    ended = advance(created(), Status.FAILED, at(1), observer=Observer.HOOK, reason=Reason.CRASHED)

    assert (ended.status, ended.execution_status, ended.reason) == ("failed", Status.FAILED, Reason.CRASHED)


def test_a_step_back_is_refused():
    with pytest.raises(TransitionError, match="SCHEDULED may not follow EXECUTING"):
        advance(executing(), Status.SCHEDULED, at(3), observer=Observer.PREFECT)


def test_a_status_after_the_end_becomes_a_note():
    ended = advance(executing(), Status.COMPLETED, at(3), observer=Observer.HOOK)

    late = advance(ended, Status.FAILED, at(4), observer=Observer.PREFECT, message="heartbeat lost")

    assert late.execution_status is Status.COMPLETED
    assert late.finished == ended.finished
    assert late.history[-1].kind is EntryKind.NOTE
    assert "heartbeat lost" in (late.history[-1].message or "")


def test_a_clock_that_is_turned_back_leaves_a_legal_history_and_a_note():
    back = timedelta(hours=-1)

    job_status = add_entry(executing(), EntryKind.PROGRESS, at(3) + back, observer=Observer.HOOK, progress=10)
    job_status = add_entry(job_status, EntryKind.PROGRESS, at(4) + back, observer=Observer.HOOK, progress=20)
    job_status = advance(job_status, Status.COMPLETED, at(5) + back, observer=Observer.HOOK)

    assert list(faults(job_status.history)) == []
    assert job_status.finished == at(2)
    notes = [entry.message for entry in job_status.history if entry.kind is EntryKind.NOTE]
    assert len(notes) == 1
    assert (at(3) + back).isoformat() in (notes[0] or "")


def test_a_clock_that_is_put_right_by_less_than_a_second_needs_no_note():
    job_status = advance(executing(), Status.COMPLETED, at(1.9), observer=Observer.HOOK)

    assert list(faults(job_status.history)) == []
    assert (job_status.finished, len(job_status.history)) == (at(2), 4)


def test_after_the_end_only_notes_are_accepted():
    ended = advance(executing(), Status.COMPLETED, at(3), observer=Observer.HOOK)

    with pytest.raises(TransitionError, match="add a note instead of a"):
        add_entry(ended, EntryKind.PROGRESS, at(4), observer=Observer.HOOK, progress=50)


def test_progress_moves_no_status_and_ends_at_a_hundred():
    half = add_entry(executing(), EntryKind.PROGRESS, at(3), observer=Observer.HOOK, progress=50.5, message="half")

    assert (half.progress, half.message, half.execution_status) == (50, "half", Status.EXECUTING)
    assert advance(half, Status.COMPLETED, at(4), observer=Observer.HOOK).progress == 100


def test_a_failed_execution_keeps_the_progress_it_had():
    half = add_entry(executing(), EntryKind.PROGRESS, at(3), observer=Observer.HOOK, progress=50)

    assert advance(half, Status.FAILED, at(4), observer=Observer.HOOK).progress == 50


def test_the_ogc_status_must_match_the_execution_status():
    forged = executing().to_json().replace(b'"status": "running"', b'"status": "successful"')

    with pytest.raises(ValidationError, match="does not match"):
        JobStatus.model_validate_json(forged)


def test_a_document_reads_back_as_it_was_written():
    assert JobStatus.from_json(executing().to_json()) == executing()


def test_prefects_history_is_merged_with_its_own_times():
    job_status = merge_states(
        created(),
        [
            a_state("SCHEDULED", "Scheduled", 0),
            a_state("PENDING", "Pending", 2),
            a_state("PENDING", "Submitting", 3),
            a_state("RUNNING", "Running", 5),
        ],
    )

    assert [(entry.status, entry.time) for entry in job_status.history] == [
        (Status.CREATED, at(0)),
        (Status.SCHEDULED, at(2)),
        (Status.STARTED, at(5)),
    ]
    assert job_status.started == at(5)


def test_merging_states_is_idempotent():
    states = [a_state("PENDING", "Pending", 1), a_state("RUNNING", "Running", 2)]
    once = merge_states(created(), states)

    assert merge_states(once, states) == once


def test_a_retry_is_an_attempt_not_a_status():
    first = [a_state("PENDING", "Pending", 1), a_state("RUNNING", "Running", 2)]
    running = advance(merge_states(created(), first), Status.EXECUTING, at(3), observer=Observer.HOOK)

    retried = merge_states(
        running, [*first, a_state("SCHEDULED", "AwaitingRetry", 4, "boom"), a_state("RUNNING", "Running", 5)]
    )

    assert (retried.attempt, retried.execution_status) == (2, Status.EXECUTING)
    assert [(entry.kind, entry.attempt, entry.time, entry.message) for entry in retried.history[-2:]] == [
        (EntryKind.ATTEMPT_FAILED, 1, at(4), "boom"),
        (EntryKind.ATTEMPT, 2, at(5), None),
    ]


def test_a_failed_attempt_that_the_run_recorded_is_not_added_twice():
    first = [a_state("PENDING", "Pending", 1), a_state("RUNNING", "Running", 2)]
    retry = [a_state("SCHEDULED", "AwaitingRetry", 5), a_state("RUNNING", "Running", 6)]
    running = advance(merge_states(created(), first), Status.EXECUTING, at(3), observer=Observer.HOOK)
    failed = add_entry(
        running, EntryKind.ATTEMPT_FAILED, at(4), observer=Observer.HOOK, reason=Reason.ERROR, message="no"
    )

    retried = merge_states(failed, [*first, *retry])

    assert [(entry.kind, entry.time, entry.message) for entry in retried.history[-2:]] == [
        (EntryKind.ATTEMPT_FAILED, at(4), "no"),
        (EntryKind.ATTEMPT, at(6), None),
    ]
    assert retried.history[-2].prefect_state == retry[0].state
    assert merge_states(retried, [*first, *retry]) == retried


def test_a_pause_that_is_reported_late_is_inserted_by_its_time():
    running = [a_state("RUNNING", "Running", 2)]
    begun = advance(merge_states(created(), running), Status.EXECUTING, at(3), observer=Observer.HOOK)
    for second in (4, 900):
        begun = add_entry(begun, EntryKind.PROGRESS, at(second), observer=Observer.HOOK, progress=second / 10)

    job_status = merge_states(begun, [*running, a_state("PAUSED", "Paused", 5), a_state("RUNNING", "Running", 60)])

    assert [entry.kind for entry in job_status.history[-4:]] == ["progress", "paused", "resumed", "progress"]
    assert list(faults(job_status.history)) == []
    assert job_status.updated == at(900)


def test_after_the_end_no_state_is_merged():
    ended = advance(executing(), Status.COMPLETED, at(3), observer=Observer.HOOK)

    assert merge_states(ended, [a_state("PAUSED", "Suspended", 1), a_state("SCHEDULED", "AwaitingRetry", 2)]) is ended


def test_a_pause_and_its_end_are_entries():
    running = [a_state("RUNNING", "Running", 2)]
    begun = advance(merge_states(created(), running), Status.EXECUTING, at(3), observer=Observer.HOOK)

    job_status = merge_states(begun, [*running, a_state("PAUSED", "Suspended", 4), a_state("RUNNING", "Running", 60)])

    assert [(entry.kind, entry.time) for entry in job_status.history[-2:]] == [
        (EntryKind.PAUSED, at(4)),
        (EntryKind.RESUMED, at(60)),
    ]


@pytest.mark.parametrize(
    ("kind", "name", "message", "started", "expected"),
    [
        ("COMPLETED", "Completed", None, True, (Status.COMPLETED, None)),
        ("COMPLETED", "Cached", None, True, (Status.COMPLETED, None)),
        ("FAILED", "Failed", "boom", True, (Status.FAILED, Reason.ERROR)),
        ("FAILED", "TimedOut", None, True, (Status.FAILED, Reason.TIMED_OUT)),
        ("CRASHED", "Crashed", "exit 137", True, (Status.FAILED, Reason.CRASHED)),
        (
            "CRASHED",
            "Crashed",
            "Failed to submit flow run to infrastructure: x",
            False,
            (Status.FAILED, Reason.INFRASTRUCTURE),
        ),
        ("CRASHED", "Crashed", "Flow run could not start: no such file", False, (Status.FAILED, Reason.INFRASTRUCTURE)),
        ("CANCELLING", "Cancelling", None, True, (Status.CANCELLED, None)),
        ("CANCELLED", "Cancelled", None, False, (Status.CANCELLED, None)),
        ("RUNNING", "Running", None, True, None),
        ("PAUSED", "Suspended", None, True, None),
        ("SCHEDULED", "AwaitingRetry", None, True, None),
    ],
)
def test_the_end_is_read_from_the_state(kind, name, message, started, expected):
    assert terminal_status_of(kind, name, message, started=started) == expected


def test_a_legal_history_has_no_faults():
    assert list(faults(advance(executing(), Status.COMPLETED, at(3), observer=Observer.HOOK).history)) == []


def test_a_forged_history_is_found():
    done = advance(executing(), Status.COMPLETED, at(3), observer=Observer.HOOK).history
    turned = (*done, done[0])
    early = (*done[:-1], done[-1].model_copy(update={"time": at(-3)}))

    assert any("may not follow" in fault for fault in faults(turned))
    assert any("earlier than the entry before it" in fault for fault in faults(early))


def test_clocks_of_two_machines_may_differ_a_little():
    behind = advance(executing(), Status.COMPLETED, at(-60), observer=Observer.SETTLE).history
    far_behind = [*behind[:-1], behind[-1].model_copy(update={"time": at(-3600)})]

    assert list(faults(behind)) == []
    assert len(list(faults(far_behind))) == 1


def test_the_earliest_and_the_latest_time_can_be_compared():
    done = advance(executing(), Status.COMPLETED, at(3), observer=Observer.SETTLE).history
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    ends = (*done[:-2], done[-2].model_copy(update={"time": first}), done[-1].model_copy(update={"time": last}))

    assert [fault for fault in faults(ends) if "earlier than the entry before it" not in fault] == []


@given(st.lists(st.tuples(st.sampled_from(Status), st.floats(0, 1e6)), max_size=12))
def test_any_sequence_of_statuses_leaves_a_legal_history(words):
    job_status = created()
    for status, seconds in sorted(words, key=lambda word: word[1]):
        try:
            job_status = advance(job_status, status, at(seconds), observer=Observer.HOOK)
        except TransitionError:
            continue

    assert list(faults(job_status.history)) == []
    assert job_status.status == AS_OGC[job_status.execution_status]
