"""What a run does half a second after its author's code began, and what a shorter one does without."""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar
from uuid import uuid4

import pytest

from prefect_executions.flow.background import defer, take_deferred

ASKED: ContextVar[str] = ContextVar("asked", default="nobody")


@pytest.fixture
def execution_id():
    """Return an id of its own, and leave nothing waiting for it."""
    one = str(uuid4())
    yield one
    take_deferred(one)


def test_all_acts_are_done_in_their_order_and_in_the_callers_context(execution_id):
    done, last = [], threading.Event()
    token = ASKED.set("Ada")
    defer(execution_id, row=lambda: done.append(("row", ASKED.get())), tell=lambda: done.append(("tell", ASKED.get())))
    defer(execution_id, watch=last.set)
    ASKED.reset(token)
    assert last.wait(30)
    assert done == [("row", "Ada"), ("tell", "Ada")]


def test_nothing_is_done_at_once(execution_id):
    done = threading.Event()
    defer(execution_id, row=done.set)
    assert not done.is_set()


def test_an_act_takes_the_place_of_one_of_its_name(execution_id):
    done, last = [], threading.Event()
    defer(execution_id, row=lambda: done.append("first"))
    defer(execution_id, row=lambda: done.append("second"), last=last.set)
    assert last.wait(30)
    assert done == ["second"]


def test_an_execution_that_ends_sooner_does_without(execution_id):
    done = []
    defer(execution_id, row=lambda: done.append("row"))
    assert list(take_deferred(execution_id)) == ["row"]
    assert take_deferred(execution_id) == {}
    time.sleep(0.7)
    assert done == []


def test_an_act_that_fails_keeps_no_other_from_being_done(execution_id, capfd):
    last = threading.Event()
    defer(execution_id, row=lambda: 1 / 0, tell=last.set)
    assert last.wait(30)
    assert capfd.readouterr().err == ""
