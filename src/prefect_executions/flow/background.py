"""What a run does half a second after its author's code began, if it still runs then; a shorter one does without.

Events, the ledger's row of an open execution and the watch for a wish to cancel
are of use to nobody before, and the end of the execution tells all of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context

_SOON = 0.5

Act = Callable[[], object]

_waiting: dict[str, tuple[threading.Timer, dict[str, Act]]] = {}


def soon(execution_id: str, **acts: Act) -> None:
    """Do *acts* and what is still waiting in half a second, unless the execution ends before.

    They are done in their order in a thread, in the caller's context; an act takes
    the place of a waiting one of its name. What one raises is ignored.
    """
    todo = leave_to_end(execution_id) | acts
    timer = threading.Timer(_SOON, copy_context().run, [_do, todo])
    timer.daemon = True
    _waiting[execution_id] = (timer, todo)
    timer.start()


def leave_to_end(execution_id: str) -> dict[str, Act]:
    """Do nothing more beforehand, because the execution ends; return what was not done."""
    if execution_id not in _waiting:
        return {}
    timer, todo = _waiting.pop(execution_id)
    timer.cancel()
    left = todo.copy()
    todo.clear()
    return left


def _do(todo: dict[str, Act]) -> None:
    while todo:
        with suppress(Exception):  # a thread of ours must not speak up in the author's terminal
            todo.pop(next(iter(todo)))()
