"""The events of an execution: their contents, and that they are idempotent."""

from __future__ import annotations

import json
from datetime import timedelta
from uuid import uuid4

import pytest

from prefect_executions import events
from prefect_executions.events import EventName
from prefect_executions.lifecycle.history import JobStatus, PrefectState, advance, new_job_status
from prefect_executions.lifecycle.status import Observer, Status
from records import EXECUTION_ID, NOON, a_job_status, an_output, some_events

PENDING, RUNNING, COMPLETED = uuid4(), uuid4(), uuid4()


def led() -> JobStatus:
    """Return a completed execution whose every state Prefect told with its id."""
    job_status = new_job_status(
        EXECUTION_ID,
        "coins",
        status=Status.SCHEDULED,
        at=NOON,
        observer=Observer.PREFECT,
        prefect_state=PrefectState(type="PENDING", name="Pending", id=PENDING),
    )
    running = PrefectState(type="RUNNING", name="Running", id=RUNNING)
    ended = PrefectState(type="COMPLETED", name="Completed", id=COMPLETED)
    job_status = advance(job_status, Status.STARTED, NOON, observer=Observer.PREFECT, prefect_state=running)
    job_status = advance(job_status, Status.EXECUTING, NOON, observer=Observer.HOOK)
    return advance(job_status, Status.COMPLETED, NOON, observer=Observer.HOOK, prefect_state=ended)


def test_each_change_of_status_is_an_event_with_the_records_time():
    job_status = a_job_status(Status.FAILED)

    assert [(event.name, event.occurred) for event in events.status_events(job_status, NOON)] == [
        (f"execution.{entry.status.lower()}", entry.time) for entry in job_status.history if entry.kind == "status"
    ]


def test_events_are_idempotent():
    ended, later = a_job_status(), NOON + timedelta(hours=1)
    first, repeated = ({event.id for event in events.status_events(ended, now)} for now in (NOON, later))
    other = {event.id for event in events.status_events(a_job_status(execution_id=f"{EXECUTION_ID}.2"), NOON)}

    assert first == repeated
    assert len(first) == 5
    assert first.isdisjoint(other)
    assert events.archived_event(ended, "a", NOON).id == events.archived_event(ended, "a", later).id
    assert events.archive_failed_event(ended, "gone", NOON).id == events.archive_failed_event(ended, "gone", later).id
    assert events.archive_failed_event(ended, "full", NOON).id != events.archive_failed_event(ended, "gone", NOON).id


def test_a_status_follows_prefects_event_and_executing_follows_running():
    assert [event.follows for event in events.status_events(led(), NOON)] == [PENDING, RUNNING, RUNNING, COMPLETED]


def test_an_old_status_follows_no_event_because_prefect_has_forgotten_it():
    later = NOON + events.FOLLOWS_WINDOW

    assert {event.follows for event in events.status_events(led(), later)} == {None}


def test_the_last_event_lists_outputs_and_relates_them():
    *_, end = (event.as_json() for event in events.status_events(a_job_status(), NOON))

    assert end["payload"]["outputs"] == [
        {"name": "regions.csv", "mediaType": "text/csv"},
        {"name": "maps/labels.tif", "mediaType": "image/tiff"},
        {"name": "stdout.log", "mediaType": "text/plain"},
        {"name": "stderr.log", "mediaType": "text/plain"},
    ]
    assert {
        related["prefect.resource.id"] for related in end["related"] if related["prefect.resource.role"] == "output"
    } == {
        f"prefect-executions.output.{name}" for name in ("regions.csv", "maps/labels.tif", "stdout.log", "stderr.log")
    }


def test_an_event_names_the_method_and_its_execution():
    event = next(events.status_events(a_job_status(), NOON)).as_json()
    names = {each["prefect.resource.role"]: each.get("prefect.resource.name") for each in event["related"]}

    assert event["resource"]["prefect.resource.name"] == f"segment-coins {a_job_status().job_id}"
    assert names["method"] == "segment-coins"


def test_an_event_of_ten_thousand_outputs_is_small_and_omits_the_logs():
    outputs = [an_output("outputs/stdout.log"), *(an_output(f"outputs/{number}.csv") for number in range(10_000))]
    *_, end = (event.as_json() for event in events.status_events(a_job_status(outputs=outputs), NOON))

    assert len(end["payload"]["outputs"]) == 100
    assert len(end["related"]) == 52
    assert "stdout.log" not in json.dumps(end)
    assert len(json.dumps(end)) < 20_000


def test_a_long_message_is_cut():
    long = "x" * 100_000
    *_, end = events.status_events(a_job_status(Status.FAILED, message=long), NOON)

    assert len(end.payload["message"]) == 2000
    assert len(events.archive_failed_event(a_job_status(), long, NOON).payload["message"]) == 2000


def test_an_end_that_settle_found_has_a_settled_event():
    ran = a_job_status(Status.EXECUTING)
    lost = advance(ran, Status.FAILED, NOON + timedelta(minutes=2), observer=Observer.SETTLE, message="its machine")
    *_, failed, settled = events.status_events(lost, NOON)

    assert (failed.name, settled.name) == (EventName.FAILED, EventName.SETTLED)
    assert settled.payload["message"] == "its machine"
    assert settled.occurred > failed.occurred


def test_every_event_is_emitted_by_something():
    assert {event.name for event in some_events()} == set(EventName) == set(events.WHEN)


@pytest.mark.parametrize("event", some_events(), ids=lambda event: event.name)
def test_a_listener_parses_what_was_emitted(event):
    body = event.as_json()
    parsed = events.parse_event(body["event"], body["resource"], body["payload"], event.occurred)

    assert parsed is not None
    assert (parsed.name, parsed.execution_id, parsed.method_id) == (event.name, EXECUTION_ID, "segment-coins")
    assert parsed.message == event.payload.get("message")
    assert parsed.progress == event.payload.get("progress")
    assert (parsed.status or "") == event.payload.get("status", "")


@pytest.mark.parametrize(
    ("name", "resource"), [("prefect.flow-run.Completed", "prefect.flow-run.1"), ("execution.completed", "others.1")]
)
def test_foreign_events_are_ignored(name, resource):
    assert events.parse_event(name, {"prefect.resource.id": resource}, {}, NOON) is None
