"""Cancellation of a run that no runner or worker supervises, and the end of the processes that a stopped run started.

A worker or a served flow kills its process when the run is cancelled. If a Method
is called directly, Prefect only sets the state Cancelling. So the run watches for
that state itself, and interrupts its own code as Ctrl-C would.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prefect.exceptions import Pause

from prefect_executions import background
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.processes import (
    EXECUTION_ID_ENV,
    clock_ticks_since_boot,
    end_descendants,
    kill_execution_processes,
)
from prefect_executions.executions.record import Instance
from prefect_executions.flow.context import current_id
from prefect_executions.flow.shared_secrets import restore_variable
from prefect_executions.prefect_api import flow_runs

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

_MARKER_SECONDS = 0.5
"""Seconds between two checks of the marker that `executions cancel` writes into the bundle."""

_PREFECT_SECONDS = 10.0
"""Seconds between two requests to Prefect, which learns of every other way to cancel."""


class CancellationWatcher:
    """Watches one attempt of an execution for cancellation, from just before the author's code to just after it.

    A Method that another Method calls is not watched: it ends with its caller.
    """

    def __init__(self, run: FlowRun, bundle: OpenBundle, *, own: bool, task: asyncio.Task[Any] | None) -> None:
        self._run = run
        self._bundle = bundle
        self._own = own
        self._task = task
        self._loop = task.get_loop() if task else None
        self._outermost = current_id() is None
        self._processes_since = 0
        self._started = 0.0
        self._previous_id: str | None = None
        self._left = threading.Event()
        self._thread = threading.get_ident()

    def take(self) -> None:
        """Mark the processes that are started from now on."""
        if not self._outermost:
            return
        self._processes_since, self._started = clock_ticks_since_boot(), time.monotonic()
        if self._own:
            self._previous_id = os.environ.get(EXECUTION_ID_ENV)
            os.environ[EXECUTION_ID_ENV] = self._bundle.id

    def watch(self) -> None:
        """Watch in a background thread, unless a runner or worker supervises the run."""
        if self._outermost and is_unsupervised(self._run):
            background.submit(self._watch, name="cancel")

    def leave(self, error: BaseException | None, time_limit: float | None) -> None:
        """Stop watching; if the run was stopped, kill the processes that it started.

        A run was stopped if *error* is an interruption (not an error of the author's
        code), or if it reached its *time_limit*. After any other end no process is
        killed: the Method may have left a server running on purpose.
        """
        self._left.set()
        if not self._outermost:
            return
        if self._own:
            restore_variable(EXECUTION_ID_ENV, self._previous_id)
        reached = time_limit is not None and time.monotonic() - self._started >= time_limit
        timed_out = isinstance(error, TimeoutError) and reached
        if error is None or isinstance(error, Pause) or (isinstance(error, Exception) and not timed_out):
            return
        if self._own:
            kill_execution_processes(self._bundle.id, instance=self._bundle.read(Instance))
        if self._own or self._thread == threading.main_thread().ident:
            end_descendants(self._processes_since)

    def _watch(self) -> None:
        next_request = time.monotonic() + _PREFECT_SECONDS
        while not self._left.is_set():
            cancelled = self._bundle.cancel_requested
            if not cancelled and time.monotonic() >= next_request:
                next_request = time.monotonic() + _PREFECT_SECONDS
                cancelled = self._is_cancelling()
            if cancelled:
                if not self._left.is_set():
                    self._interrupt()
                return
            self._left.wait(_MARKER_SECONDS)

    def _is_cancelling(self) -> bool:
        with suppress(Exception):  # Prefect is unavailable; the next request may succeed
            run = flow_runs.flow_run(self._run.id)
            return bool(run and run.state and (run.state.is_cancelling() or run.state.is_cancelled()))
        return False

    def _interrupt(self) -> None:
        """Raise KeyboardInterrupt in the thread of the author's code; if it sleeps, a signal wakes it."""
        if self._task is not None and self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._task.cancel)
            return
        if self._thread == threading.main_thread().ident:
            # A shell without job control starts background processes with SIGINT ignored.
            for number in (signal.SIGINT, signal.SIGTERM) if self._own else (signal.SIGINT,):
                if callable(signal.getsignal(number)):
                    signal.pthread_kill(self._thread, number)
                    return
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), ctypes.py_object(KeyboardInterrupt))


def is_unsupervised(run: FlowRun) -> bool:
    """Whether *run* was called directly in a process, so that no runner or worker supervises it."""
    return run.deployment_id is None and os.environ.get("PREFECT__FLOW_RUN_ID") != str(run.id)
