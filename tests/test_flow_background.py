"""Actions that a run defers by half a second, and that a shorter run never does."""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar
from uuid import uuid4

import pytest

from prefect_executions.flow.background import defer, take_deferred

USER: ContextVar[str] = ContextVar("user", default="unset")


@pytest.fixture
def execution_id():
    """Return a new execution id; afterwards cancel its deferred actions."""
    one = str(uuid4())
    yield one
    take_deferred(one)


def test_deferred_actions_run_in_order_in_the_callers_context(execution_id):
    done, last = [], threading.Event()
    token = USER.set("Ada")
    defer(execution_id, row=lambda: done.append(("row", USER.get())), tell=lambda: done.append(("tell", USER.get())))
    defer(execution_id, watch=last.set)
    USER.reset(token)
    assert last.wait(30)
    assert done == [("row", "Ada"), ("tell", "Ada")]


def test_no_action_runs_at_once(execution_id):
    done = threading.Event()
    defer(execution_id, row=done.set)
    assert not done.is_set()


def test_an_action_replaces_an_action_with_its_name(execution_id):
    done, last = [], threading.Event()
    defer(execution_id, row=lambda: done.append("first"))
    defer(execution_id, row=lambda: done.append("second"), last=last.set)
    assert last.wait(30)
    assert done == ["second"]


def test_taken_actions_do_not_run(execution_id):
    done = []
    defer(execution_id, row=lambda: done.append("row"))
    assert list(take_deferred(execution_id)) == ["row"]
    assert take_deferred(execution_id) == {}
    time.sleep(0.7)
    assert done == []


def test_taking_waits_for_an_action_that_is_running(execution_id):
    done, begun, may_end = [], threading.Event(), threading.Event()

    def write():
        begun.set()
        may_end.wait(30)
        done.append("row")

    defer(execution_id, row=write)
    assert begun.wait(30)
    threading.Timer(0.2, may_end.set).start()
    assert take_deferred(execution_id, patience=30) == {}
    assert done == ["row"]


def test_actions_survive_a_thread_that_fails_to_start(execution_id, monkeypatch):
    def refuse(*_args, **_options):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        defer(execution_id, row=lambda: None)

    assert list(take_deferred(execution_id)) == ["row"]


def test_a_failing_action_does_not_stop_the_others(execution_id, capfd):
    last = threading.Event()
    defer(execution_id, row=lambda: 1 / 0, tell=last.set)
    assert last.wait(30)
    assert capfd.readouterr().err == ""
