"""How hard a process is pressed to end that was cancelled: it is asked, then told, then ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress

from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.processes import alive, end_carriers, send
from prefect_executions.errors import ExecutionsError
from prefect_executions.executions.record import ExecutionRecord, Instance
from prefect_executions.workbench.catalog import Reader

# Prefect's runners give a process 30 s between SIGTERM and SIGKILL, and the Method's own cleaning up has as long here.
_OF_A_CALL = ((10.0, signal.SIGTERM), (40.0, signal.SIGKILL))
# A worker that lives has ended it by then.
_OF_A_WORKER = ((50.0, signal.SIGTERM), (80.0, signal.SIGKILL))


class Pressure:
    """What is done to the process of one execution, step by step; nothing where it cannot be reached."""

    def __init__(self, hall: Reader, record: ExecutionRecord | None) -> None:
        self._record = record
        self._process = record.instance.process if record else None
        self._here = self._process is not None and alive(self._process) is not None
        self._called = record is not None and record.infrastructure.type == "direct"
        self._bundle = OpenBundle(hall.workbench.folder, record.id) if record else None
        self._left = list(_OF_A_CALL if self._called else _OF_A_WORKER)
        self._asked = False

    @property
    def dead(self) -> bool:
        """Whether the process is known to be gone, and nobody else is there to tell."""
        return self._called and self._process is not None and alive(self._process) is False

    def step(self, waited: float) -> Iterator[str]:
        """Do what is due after *waited* seconds and tell it in a few words."""
        if self._record is None or self._bundle is None:
            return
        if not self._asked:
            self._asked = True
            yield from self._ask(self._record, self._bundle)
        if not self._here or not self._record.instance.own_process or self._is_leaving():
            return
        while self._left and waited >= self._left[0][0]:
            _, number = self._left.pop(0)
            yield from self._send(number)

    def _ask(self, record: ExecutionRecord, bundle: OpenBundle) -> Iterator[str]:
        where = f"process {record.instance.pid} on {record.instance.hostname}"
        if not self._called:
            worker = record.infrastructure.worker
            yield f"{f'Worker {worker}' if worker else 'Its runner'} ends {where}"
            return
        if self._here and bundle.scratch.is_dir():
            with suppress(ExecutionsError):  # it asks Prefect all the same
                bundle.ask_to_cancel()
        yield f"It was called in {where}, which looks for its cancellation every ten seconds and stops by itself"

    def _send(self, number: signal.Signals) -> Iterator[str]:
        assert self._process is not None  # noqa: S101 - it is here
        try:
            sent = send(self._process, number)
        except PermissionError:
            yield f"Process {self._process.pid} is another user's and cannot be ended from here"
            return
        if sent:
            yield f"Process {self._process.pid} does not stop and was sent {number.name}"
        if number is signal.SIGKILL and self._record is not None:
            end_carriers(self._record.id, instance=self._record.instance)

    def _is_leaving(self) -> bool:
        """Whether the Method's code has ended, so that its record is being sealed right now."""
        with suppress(ExecutionsError):
            usage = self._bundle.read(Instance).usage if self._bundle else None
            return usage is not None and (usage.exit_code is not None or usage.exception is not None)
        return False
