"""The state of a watched execution, which no late or repeated event turns back."""

from __future__ import annotations

from datetime import timedelta
from itertools import permutations

from prefect_executions import events
from prefect_executions.events import Event, ExecutionEvent
from prefect_executions.lifecycle.status import Status
from prefect_executions.operations.watch import Watched, apply_event, from_record, newer
from records import EXECUTION_ID, NOON, a_job_status, a_record

NOBODY = Watched(id=EXECUTION_ID)


def word(event: Event) -> ExecutionEvent:
    heard = events.parse_event(event.name, event.as_json()["resource"], event.payload, event.occurred)
    assert heard is not None
    return heard


def words(end: Status = Status.COMPLETED, message: str | None = None) -> list[ExecutionEvent]:
    return [word(event) for event in events.status_events(a_job_status(end, message=message), NOON)]


def after(*heard: ExecutionEvent) -> Watched:
    known = NOBODY
    for one in heard:
        known = apply_event(known, one)
    return known


def half_way() -> ExecutionEvent:
    return word(events.progress_event(EXECUTION_ID, "segment-coins", 50.0, "half way", NOON))


def test_a_record_is_shown_with_its_status():
    seen = from_record(a_record())

    assert (seen.id, seen.method, seen.status) == (EXECUTION_ID, "segment-coins", Status.COMPLETED)
    assert seen.over
    assert seen.elapsed(NOON) == timedelta(seconds=6)


def test_events_alone_give_the_state_of_the_record():
    seen = after(*words(), half_way())
    record = from_record(a_record())

    assert (seen.method, seen.status, seen.begun, seen.ended) == (
        *(record.method, record.status),
        *(record.begun, record.ended),
    )


def test_progress_is_shown_with_its_message_and_is_100_at_the_end():
    *before, end = words()
    running = after(*before, half_way())

    assert (running.status, running.progress, running.message) == (Status.EXECUTING, 50.0, "half way")
    assert apply_event(running, end).progress == 100


def test_the_first_event_may_be_progress():
    seen = after(half_way())

    assert (seen.status, seen.progress, seen.elapsed(NOON)) == (Status.EXECUTING, 50.0, None)


def test_events_in_any_order_keep_the_terminal_status():
    heard = words(Status.FAILED, "no coins")
    ends = {after(*order, half_way(), *heard) for order in permutations(heard)}

    (seen,) = ends
    assert (seen.status, seen.message, seen.ended) == (Status.FAILED, "no coins", heard[-1].time)
    assert seen.begun == heard[2].time


def test_a_failed_archive_is_shown_after_the_end():
    failed = word(events.archive_failed_event(a_job_status(), "the bucket is gone", NOON))

    assert after(*words(), failed).message == "not archived: the bucket is gone"


def test_a_stored_state_replaces_the_watched_one_only_if_it_is_newer():
    open_, ended = after(*words()[:4]), after(*words())

    assert newer(open_, ended) == ended
    assert newer(ended, open_) == ended
    assert newer(NOBODY, open_) == open_


def test_the_elapsed_time_never_decreases():
    running = after(*words()[:3])

    assert running.elapsed(NOON + timedelta(seconds=12)) == timedelta(seconds=10)
    assert running.elapsed(NOON) == timedelta(0)
