"""How a run is stopped that nobody watches over, and that nothing which it has started outlives its being stopped.

A worker or a served flow ends its process when the run is cancelled. Where a
Method is called directly, Prefect only notes the wish; so the run looks for it
itself, and interrupts its own code as Ctrl-C would.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
import time
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from prefect.exceptions import Pause

from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.processes import (
    EXECUTION_ID_ENV,
    end_descendants,
    kill_execution_processes,
    moment_of_processes,
)
from prefect_executions.executions.record import Instance
from prefect_executions.flow.context import current_id
from prefect_executions.prefect_api import flow_runs

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

_LOOK = 0.5
"""Seconds between two looks at the mark that `executions cancel` leaves on the same workbench."""

_ASK = 10.0
"""Seconds between two questions to Prefect, which any other way to cancel is told by."""


class CancellationWatcher:
    """Holds one attempt of an execution, from just before the author's code to just after it.

    Of a Method that another one calls nothing is held: it ends with its caller.
    """

    def __init__(self, run: FlowRun, bundle: OpenBundle, *, own: bool, task: asyncio.Task[Any] | None) -> None:
        self._run = run
        self._bundle = bundle
        self._own = own
        self._task = task
        self._loop = task.get_loop() if task else None
        self._outermost = current_id() is None
        self._since = 0
        self._begun = 0.0
        self._before: str | None = None
        self._let_go = threading.Event()
        self._thread = threading.get_ident()

    def take(self) -> None:
        """Mark what is started from now on."""
        if not self._outermost:
            return
        self._since, self._begun = moment_of_processes(), time.monotonic()
        if self._own:
            self._before = os.environ.get(EXECUTION_ID_ENV)
            os.environ[EXECUTION_ID_ENV] = self._bundle.id

    def watch(self) -> None:
        """Watch for the wish to cancel, in a thread, where nobody else does."""
        if self._outermost and called(self._run):
            context = copy_context()  # the thread has no settings of its own
            threading.Thread(target=context.run, args=(self._watch,), name="cancel", daemon=True).start()

    def leave(self, error: BaseException | None, time_limit: float | None) -> None:
        """Watch no more; where the run was stopped, end what it has started.

        It was stopped where *error* is an interruption and no error of the
        author's, or where its *time_limit* was reached. After any other end nothing is
        ended: the Method may have left a server on purpose.
        """
        self._let_go.set()
        if not self._outermost:
            return
        if self._own:
            _restore(EXECUTION_ID_ENV, self._before)
        overdue = time_limit is not None and time.monotonic() - self._begun >= time_limit
        late = isinstance(error, TimeoutError) and overdue
        if error is None or isinstance(error, Pause) or (isinstance(error, Exception) and not late):
            return
        if self._own:
            kill_execution_processes(self._bundle.id, instance=self._bundle.read(Instance))
        if self._own or self._thread == threading.main_thread().ident:
            end_descendants(self._since)

    def _watch(self) -> None:
        ask_next = time.monotonic() + _ASK
        while not self._let_go.is_set():
            wanted = self._bundle.cancel_requested
            if not wanted and time.monotonic() >= ask_next:
                ask_next = time.monotonic() + _ASK
                wanted = self._is_cancelling()
            if wanted:
                if not self._let_go.is_set():
                    self._interrupt()
                return
            self._let_go.wait(_LOOK)

    def _is_cancelling(self) -> bool:
        with suppress(Exception):  # Prefect is away; it is asked again
            run = flow_runs.flow_run(self._run.id)
            return bool(run and run.state and (run.state.is_cancelling() or run.state.is_cancelled()))
        return False

    def _interrupt(self) -> None:
        """Raise KeyboardInterrupt in the thread of the author's code; where it sleeps, a signal wakes it."""
        if self._task is not None and self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._task.cancel)
            return
        if self._thread == threading.main_thread().ident:
            # What a shell without job control starts in the background has SIGINT ignored.
            for number in (signal.SIGINT, signal.SIGTERM) if self._own else (signal.SIGINT,):
                if callable(signal.getsignal(number)):
                    signal.pthread_kill(self._thread, number)
                    return
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), ctypes.py_object(KeyboardInterrupt))


def called(run: FlowRun) -> bool:
    """Whether *run* was called in a process, so that no runner or worker watches over it."""
    return run.deployment_id is None and os.environ.get("PREFECT__FLOW_RUN_ID") != str(run.id)


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
