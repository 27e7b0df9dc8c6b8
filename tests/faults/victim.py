"""The process that a fault strikes: an audit hook sees each of its trace points and kills or halts it at the given one.

Run as a program it imports all that is slow and then forks for each job it reads
from its input: a job begins in a fresh process, without its three seconds of imports.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
import time
import traceback
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from prefect_executions.tracepoints import EVENT

PATIENCE = 120.0
"""Seconds that a victim waits for the fault that it was told to wait for."""

_OWN = (
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(\.\d+)?"), "ID"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d"), "HOUR"),
    (re.compile(r"[0-9a-f]{64}"), "SHA256"),
    (re.compile(r"sealed-[0-9a-f]{16}"), "sealed"),
)


class Job(NamedTuple):
    """What a victim is to do: run a Method (``run writes {"size": 5}``) or a command (``executions settle``).

    It kills itself at the step `kill`. At the step `halt` it makes the file
    ``<trace>.reached`` and goes on when ``<trace>.struck`` is there.
    """

    words: list[str]
    environment: dict[str, str]
    trace: str
    kill: str = ""
    halt: str = ""
    tag: str = ""
    humble: bool = False
    """Without root's right to pass over the permissions of files."""


def step_of(point: str, subject: str, detail: str) -> str:
    """Return the name of a step that is the same in each execution."""
    place = detail if detail or point.startswith("user code") else subject if "/" in subject else ""
    for own, name in _OWN:
        place = own.sub(name, place)
    return f"{point}: {place}" if place else str(point)


def listen(job: Job) -> None:
    """Write each step to the trace, with how often it was reached, and do at a step what *job* says."""
    trace = os.open(job.trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    reached: Counter[str] = Counter()
    own = os.getpid()

    def on_audit_event(event: str, arguments: tuple[Any, ...]) -> None:
        if event != EVENT or os.getpid() != own:
            return
        step = step_of(*arguments)
        reached[step] += 1
        if reached[step] > 1:
            step = f"{step} #{reached[step]}"
        os.write(trace, f"{arguments[1]}\t{step}\n".encode())
        if step == job.kill:
            os.kill(own, signal.SIGKILL)
        if step == job.halt:
            _wait_for_the_fault(job)

    sys.addaudithook(on_audit_event)


def _wait_for_the_fault(job: Job) -> None:
    Path(f"{job.trace}.reached").touch()
    until = time.monotonic() + PATIENCE
    while not Path(f"{job.trace}.struck").exists() and time.monotonic() < until:
        time.sleep(0.01)


def do(job: Job) -> int:
    """Do *job* in this process and return its exit code."""
    os.environ.update(job.environment)
    if job.humble:
        _humble()
    listen(job)
    if job.words[0] == "executions":
        from prefect_executions.cli.app import main  # noqa: PLC0415 - a run of a Method needs no command line

        return main(job.words[1:])
    return _run(job, *job.words[1:])


def _run(job: Job, name: str, arguments: str) -> int:
    # Imported late, so that the first line of a trace comes as early as it can.
    from prefect import tags  # noqa: PLC0415
    from prefect.settings import (  # noqa: PLC0415
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    from faults import methods  # noqa: PLC0415

    settings = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    if "PREFECT_API_URL" in job.environment:
        settings |= {PREFECT_API_URL: job.environment["PREFECT_API_URL"], PREFECT_CLIENT_MAX_RETRIES: 2}
    with ExitStack() as stack:
        stack.enter_context(temporary_settings(settings))
        stack.enter_context(tags(job.tag))
        try:
            getattr(methods, name)(**json.loads(arguments))
        except Exception:  # noqa: BLE001 - the log tells it, and the judge
            traceback.print_exc()
            return 1
    return 0


def _humble() -> None:
    """Give up root's CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (capabilities(7)), for threads to come too."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data) == 0:
        for index in (0, 1):  # effective, permitted
            data[index] &= ~0b110
        libc.capset(header, data)


def main() -> int:
    """Read jobs, one in a line, until there are no more; answer each with the pid of its process, then its end."""
    import prefect_executions.cli.app  # noqa: PLC0415 - what takes long is imported once, before any job
    import prefect_executions.flow.decorator  # noqa: PLC0415
    from faults import methods  # noqa: F401, PLC0415

    _ = prefect_executions.cli.app.app
    for line in sys.stdin:
        job = Job(**json.loads(line))
        pid = os.fork()
        if pid == 0:
            _become(job)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return 0


def _become(job: Job) -> None:
    code = 70
    log = os.open(f"{job.trace}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        code = do(job)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - told in its log; the parent's loop must not go on in the child
        traceback.print_exc()
    finally:
        import atexit  # noqa: PLC0415 - as a process that ends does
        import threading  # noqa: PLC0415 - the same

        threading._shutdown()
        atexit._run_exitfuncs()
        os._exit(code)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    if len(sys.argv) > 1:  # one job in this process, for what must be there from its first moment
        sys.exit(do(Job(**json.loads(sys.argv[1]))))
    sys.exit(main())
