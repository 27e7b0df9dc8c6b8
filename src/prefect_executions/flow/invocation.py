"""The invocation of one Method by `executions run` or `replay`: callbacks, and the image for its scripts."""

from __future__ import annotations

import multiprocessing
import os
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from prefect_executions.flow.context import current_id

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from prefect_executions.bundles.open_bundle import OpenBundle
    from prefect_executions.operations.replay import ExactImage


class Invocation(NamedTuple):
    """What the caller of a Method wants besides its result."""

    on_opened: Callable[[str], None] = lambda _execution_id: None
    """Called with the execution id as soon as the record is open, for each attempt."""
    on_returned: Callable[[], None] = lambda: None
    """Called when the Method's code has ended and its logs are closed, for each attempt."""
    on_gathered: Callable[[OpenBundle, BaseException | None], None] = lambda _bundle, _error: None
    """Called when the outputs are gathered, before the bundle is sealed, with the exception that the Method raised."""
    interruption: Callable[[], str | None] = lambda: None
    """Called after a KeyboardInterrupt; returns who interrupted the run, or None if the Method itself raised it."""
    image: ExactImage | None = None
    """The image in which the Method's scripts run, whatever the settings say."""


_NO_INVOCATION = Invocation()
_invocation: ContextVar[Invocation | None] = ContextVar("invocation", default=None)


@contextmanager
def invoked(invocation: Invocation) -> Iterator[None]:
    """Let *invocation* apply to the Method that the block calls, but not to Methods that this one calls."""
    token = _invocation.set(invocation)
    try:
        yield
    finally:
        _invocation.reset(token)


def current_invocation() -> Invocation:
    """Return the invocation of the Method that is being called; an empty one if another Method calls it."""
    invocation = _invocation.get()
    return invocation if invocation is not None and current_id() is None else _NO_INVOCATION


def interruption() -> str | None:
    """Return who interrupted this run or the Method that called it; call it after a KeyboardInterrupt."""
    invocation = _invocation.get()
    return invocation.interruption() if invocation is not None else None


def is_interruption(error: object) -> bool:
    """Whether Ctrl-C may have raised *error*: asyncio cancels the main task for it."""
    return isinstance(error, KeyboardInterrupt | CancelledError)


def owns_process(run: FlowRun) -> bool:
    """Whether this process was started for *run* alone: by a worker, by serve, or by `executions run`."""
    if _invocation.get() is not None or os.environ.get("PREFECT__FLOW_RUN_ID") == str(run.id):
        return True
    # `.serve()` passes the flow to a child process without the id of the run.
    served = run.deployment_id is not None and run.parent_task_run_id is None
    return served and multiprocessing.parent_process() is not None
