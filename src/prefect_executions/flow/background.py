"""What a run does half a second after its author's code began, if it still runs then; a shorter one does without.

Events, the ledger's row of an open execution and the watch for a wish to cancel
are of use to nobody before, and the end of the execution tells all of it.

The tasks that a Method has submitted and not waited for, which go on when its function has returned.

Prefect waits for them where the flow ends. The record has to as well: what they
write and tell belongs to it, and a file that grows while it is sealed breaks it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from prefect.futures import PrefectWrappedFuture

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner

_SOON = 0.5

Action = Callable[[], object]

_waiting: dict[str, tuple[threading.Timer, dict[str, Action]]] = {}


def defer(execution_id: str, **acts: Action) -> None:
    """Do *acts* and what is still waiting in half a second, unless the execution ends before.

    They are done in their order in a thread, in the caller's context; an act takes
    the place of a waiting one of its name. What one raises is ignored.
    """
    todo = take_deferred(execution_id) | acts
    timer = threading.Timer(_SOON, copy_context().run, [_do, todo])
    timer.daemon = True
    _waiting[execution_id] = (timer, todo)
    timer.start()


def take_deferred(execution_id: str) -> dict[str, Action]:
    """Do nothing more beforehand, because the execution ends; return what was not done."""
    if execution_id not in _waiting:
        return {}
    timer, todo = _waiting.pop(execution_id)
    timer.cancel()
    left = todo.copy()
    todo.clear()
    return left


def _do(todo: dict[str, Action]) -> None:
    while todo:
        with suppress(Exception):  # a thread of ours must not speak up in the author's terminal
            todo.pop(next(iter(todo)))()


@contextmanager
def wait_for_submitted_tasks(runner: TaskRunner[Any]) -> Iterator[None]:
    """Let the block end when all tasks have ended that were submitted to *runner* in it.

    Of code that is stopped, or ran into its time limit, nothing is waited for.
    A runner whose futures are of another kind than Prefect's own looks after its tasks itself.
    """
    going: set[Future[Any]] = set()
    submit = runner.submit

    def noted(*args: Any, **kwargs: Any) -> Any:
        made = submit(*args, **kwargs)
        if isinstance(made, PrefectWrappedFuture) and isinstance(made.wrapped_future, Future):
            going.add(made.wrapped_future)
            made.wrapped_future.add_done_callback(going.discard)
        return made

    runner.submit = noted  # type: ignore[method-assign]  # the runner is this run's own: Prefect makes one for each
    try:
        yield
    except Exception as error:
        if not isinstance(error, TimeoutError):
            _wait(going)
        raise
    _wait(going)


def _wait(going: set[Future[Any]]) -> None:
    """Wait until no task is left; one that is going may submit another."""
    while left := [future for future in tuple(going) if not future.done()]:
        wait(left)
