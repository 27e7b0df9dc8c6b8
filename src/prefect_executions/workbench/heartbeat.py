"""Signs of life: while an execution is open here, its mark in the archive is written anew again and again.

Law: the lease says "alive" and nothing else. It ends with the process, with the
seal, or when the run is suspended; that it is silent is a reason to look, and no
proof of death.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextvars import Context
from functools import partial

from prefect_executions.archive.marks import Marks
from prefect_executions.errors import ExecutionsError
from prefect_executions.workbench import background

log = logging.getLogger("prefect_executions")

PERIOD = 10.0
"""Seconds between two signs of life."""


class Leases:
    """The executions of this process that are open, renewed by one thread as long as there are any."""

    def __init__(self, marks: Callable[[], Marks], *, period: float = PERIOD) -> None:
        self._marks = marks
        self._period = period
        self._held: dict[str, str] = {}
        self._changed = threading.Condition()
        self._process = 0

    def hold(self, execution_id: str, place: str) -> None:
        """Renew from now on the lease of an execution that was just opened; *place* is its Workbench's path."""
        with self._changed:
            if self._process != os.getpid():  # a forked child has neither the thread nor the executions
                self._process, self._held = os.getpid(), {}
            started = bool(self._held)
            self._held[execution_id] = place
            if not started:
                # An empty context: the thread outlives the run that starts it and must not log as that run.
                Context().run(background.submit, partial(self._renew, os.getpid()), name="heartbeat")

    def release(self, execution_id: str) -> None:
        """Say nothing more of an execution; once more changes nothing."""
        with self._changed:
            self._held.pop(execution_id, None)
            self._changed.notify_all()

    def _renew(self, process: int) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._held, timeout=self._period)
                held = dict(self._held)
            if not held or process != os.getpid():
                return
            try:
                self._marks().renew(held)
            except ExecutionsError as error:
                log.debug("the leases of %s are not renewed: %s", ", ".join(sorted(held)), error)
