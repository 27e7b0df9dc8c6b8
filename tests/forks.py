"""Processes that fork as multiprocessing does on Linux: their children carry no environment of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prefect_executions.capture.processes import alive, send
from prefect_executions.executions.record import Instance, Process

_FORKS = """
import json, multiprocessing, time
from prefect_executions.capture.processes import this_process_with_layout

forking = multiprocessing.get_context("fork")
told = forking.SimpleQueue()

def works(_):
    told.put(this_process_with_layout().model_dump_json())
    time.sleep(300)

with forking.Pool(2) as pool:
    pool.map_async(works, range(2), chunksize=1)
    print(json.dumps([this_process_with_layout().model_dump_json(), told.get(), told.get()]), flush=True)
    time.sleep(300)
"""


@dataclass(frozen=True)
class Family:
    """A process and the two of its pool, which are at work until they are ended."""

    popen: subprocess.Popen[str]
    process: Process
    children: tuple[Process, ...]

    @property
    def instance(self) -> Instance:
        """The process as one that was started for an execution alone."""
        return Instance(pid=self.process.pid, process=self.process, own_process=True)

    @property
    def living(self) -> int:
        """How many children live."""
        return sum(alive(child) is True for child in self.children)

    def kill(self) -> None:
        """Kill the process, but none of its children."""
        self.popen.kill()
        self.popen.wait()


@contextmanager
def family(*before: str) -> Iterator[Family]:
    """Start a process with a pool, by the words *before* where there are any; nothing is left of it at the end."""
    with subprocess.Popen([*before, sys.executable, "-c", _FORKS], stdout=subprocess.PIPE, text=True) as popen:
        assert popen.stdout is not None
        process, *children = map(Process.model_validate_json, json.loads(popen.stdout.readline()))
        try:
            yield Family(popen, process, tuple(children))
        finally:
            for one in (process, *children):
                send(one, signal.SIGKILL)
