"""The door that opened a run: one that runs a single Method in this process and nothing else."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.flow.context import current_id
from prefect_executions.operations.replay import ExactImage

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


class Invocation(NamedTuple):
    """What such a door wants to know: the execution's id, as soon as its record is open, and its end."""

    begun: Callable[[str], None]
    gathered: Callable[[OpenBundle, BaseException | None], None] = lambda _bundle, _error: None
    """Called when the outputs are gathered and the bundle is not sealed, with what the Method raised."""
    image: ExactImage | None = None
    """What the scripts of the Method are to run in, whatever is asked of it otherwise."""


door: ContextVar[Invocation | None] = ContextVar("door", default=None)


def notify_opened(execution_id: str) -> None:
    """Tell the door, if there is one, that the record of the execution it asked for is open."""
    waiting = door.get()
    if waiting is not None and current_id() is None:  # a Method that another calls was not asked for
        waiting.begun(execution_id)


def image_asked() -> ExactImage | None:
    """Return the image that the door wants the Method's scripts to run in, if there is one."""
    waiting = door.get()
    return waiting.image if waiting is not None and current_id() is None else None


def notify_gathered(bundle: OpenBundle, error: BaseException | None) -> None:
    """Give the door, if there is one, the gathered *bundle* that it asked for, before it is sealed."""
    waiting = door.get()
    if waiting is not None and current_id() is None:
        waiting.gathered(bundle, error)


def owns_process(run: FlowRun) -> bool:
    """Whether this process was started for *run* alone: by a worker, by serve, or by `executions run`."""
    if door.get() is not None or os.environ.get("PREFECT__FLOW_RUN_ID") == str(run.id):
        return True
    # `.serve()` hands the flow itself to a child of its own, and no id with it.
    served = run.deployment_id is not None and run.parent_task_run_id is None
    return served and multiprocessing.parent_process() is not None
