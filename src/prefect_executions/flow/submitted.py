"""The tasks that a Method has submitted and not waited for, which go on when its function has returned.

Prefect waits for them where the flow ends. The record has to as well: what they
write and tell belongs to it, and a file that grows while it is sealed breaks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prefect.futures import PrefectWrappedFuture

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner


@contextmanager
def seen_through(runner: TaskRunner[Any]) -> Iterator[None]:
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
