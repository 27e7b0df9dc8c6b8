"""Background work of one run: actions deferred by half a second, and tasks that were submitted but not awaited.

A run that ends within half a second needs no events, no ledger row of an open
execution and no watcher for cancellation: its seal reports all of it. So these
actions are deferred, and most runs never pay for them.

Prefect waits for submitted tasks when the flow ends. The record must wait, too:
the files and metrics of these tasks belong to it, and a file that grows while it
is being sealed would break the seal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect.futures import PrefectWrappedFuture

from prefect_executions import background

if TYPE_CHECKING:
    from threading import Timer

    from prefect.task_runners import TaskRunner

_DELAY = 0.5
PATIENCE = 5.0
"""Seconds that the end of the process waits for deferred actions: Prefect's API may be unavailable."""

Action = Callable[[], object]

_deferred: dict[str, tuple[Timer | None, dict[str, Action]]] = {}


def defer(execution_id: str, **actions: Action) -> None:
    """Run *actions*, after those that are already deferred, in half a second, unless the execution ends before.

    They run in order in a background thread, in the caller's context. An action
    replaces a deferred action with the same name. What an action raises is ignored.
    """
    background.at_exit(_run_deferred)
    pending = take_deferred(execution_id) | actions
    _deferred[execution_id] = (None, pending)  # first, because a thread may fail to start
    _deferred[execution_id] = (background.defer(partial(_run, pending), name="deferred", delay=_DELAY), pending)


def take_deferred(execution_id: str, *, patience: float = 0.0) -> dict[str, Action]:
    """Cancel the deferred actions of an execution and return those that have not run.

    Wait up to *patience* seconds for an action that is running: it may write what the caller is about to replace.
    """
    if execution_id not in _deferred:
        return {}
    timer, pending = _deferred.pop(execution_id)
    if timer is not None:
        timer.cancel()
    actions = pending.copy()
    pending.clear()
    if timer is not None and patience > 0:
        timer.join(patience)
    return actions


def _run_deferred() -> None:
    """Run what is still deferred: the process ends, and the execution does not, for example because it is paused."""
    for execution_id, (timer, _) in tuple(_deferred.items()):
        if timer is None or not timer.is_alive():  # in a forked child, the timer is the parent's
            continue
        if actions := take_deferred(execution_id):
            background.submit(partial(_run, actions), name="deferred", patience=PATIENCE)
        timer.join(PATIENCE)  # it may be in the middle of an action
    background.drain()


def _run(pending: dict[str, Action]) -> None:
    while pending:
        with suppress(Exception):  # a background thread must not print to the author's terminal
            pending.pop(next(iter(pending)))()


@contextmanager
def wait_for_submitted_tasks(runner: TaskRunner[Any]) -> Iterator[None]:
    """At the end of the block, wait for all tasks that were submitted to *runner* in it.

    Do not wait if the block was stopped or exceeded its time limit. A runner whose
    futures are not Prefect's own must wait for its tasks itself.
    """
    futures: set[Future[Any]] = set()
    submit = runner.submit

    def submit_and_add(*args: Any, **kwargs: Any) -> Any:
        prefect_future = submit(*args, **kwargs)
        if isinstance(prefect_future, PrefectWrappedFuture) and isinstance(prefect_future.wrapped_future, Future):
            futures.add(prefect_future.wrapped_future)
            prefect_future.wrapped_future.add_done_callback(futures.discard)
        return prefect_future

    runner.submit = submit_and_add  # type: ignore[method-assign]  # Prefect makes a runner for each run
    try:
        yield
    except Exception as error:
        if not isinstance(error, TimeoutError):
            _wait(futures)
        raise
    _wait(futures)


def _wait(futures: set[Future[Any]]) -> None:
    """Wait until no task is left; a running task may submit another."""
    while unfinished := [future for future in tuple(futures) if not future.done()]:
        wait(unfinished)
