"""The heartbeat: one thread renews the leases of this process's open executions in the archive.

Law: a lease says "alive" and nothing else. It ends with the process, with the
seal, or when the run is suspended. A missing heartbeat is a reason to check,
not a proof that the process is dead.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextvars import Context
from functools import partial

from prefect_executions import background
from prefect_executions.archive.marks import Marks
from prefect_executions.errors import ExecutionsError

log = logging.getLogger("prefect_executions")

PERIOD = 10.0
"""Seconds between two heartbeats."""


class Leases:
    """The leases of this process's open executions; one thread renews them while there are any."""

    def __init__(self, marks: Callable[[], Marks], *, period: float = PERIOD) -> None:
        self._marks = marks
        self._period = period
        self._held: dict[str, str] = {}
        self._changed = threading.Condition()
        self._process = 0

    def hold(self, execution_id: str, workbench: str) -> None:
        """Renew the lease of an execution from now on; *workbench* is the path of its Workbench."""
        with self._changed:
            if self._process != os.getpid():  # a forked child inherits neither the thread nor the executions
                self._process, self._held = os.getpid(), {}
            started = bool(self._held)
            self._held[execution_id] = workbench
            if not started:
                # An empty context: the thread outlives the run that starts it and must not log as that run.
                Context().run(background.submit, partial(self._renew, os.getpid()), name="heartbeat")

    def release(self, execution_id: str) -> None:
        """Stop renewing the lease of an execution; idempotent."""
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
                log.debug("cannot renew the leases of %s: %s", ", ".join(sorted(held)), error)
