"""A world for faults: a Prefect server, an archive, a workbench and a ledger of its own, and victims in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import servers
from faults.victim import Job
from prefect_executions.archive.identity import IDENTITY
from prefect_executions.settings import Settings
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.workbench import Workbench

LONGEST = 240.0
"""Seconds that a victim may live."""

_STARTING = threading.Lock()
"""One server starts after the other: each keeps a core busy, and all would be late together."""

_PROGRAM = Path(__file__).with_name("victim.py")


class Death(NamedTuple):
    """How a victim ended: its exit code (a negative signal), and the executions and steps of its trace, in order."""

    code: int
    ids: tuple[str, ...]
    steps: tuple[str, ...]
    log: str


class World:
    """One of each, in *folder*; *told* are the variables that say where archive and server are."""

    def __init__(self, folder: Path, told: Mapping[str, str]) -> None:
        self.folder = folder
        self.told = {"EXECUTIONS_HOME": str(folder / "home"), "PREFECT_LOGGING_TO_API_ENABLED": "false", **told}
        self.text = folder / "text.txt"
        self.text.write_text("some words\n")
        self._count = 0
        clean = {name: value for name, value in os.environ.items() if not _ours(name)}
        self._zygote = subprocess.Popen(
            [sys.executable, str(_PROGRAM)],
            env=clean | self.told,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def close(self) -> None:
        """End the victims' parent."""
        self._zygote.communicate(timeout=60)

    # --- victims ---------------------------------------------------------------

    def run(self, method: str = "writes", *, tag: str = "", size: int = 1000, **how: Any) -> Death:
        """Call a Method in a victim."""
        arguments = json.dumps({"text": str(self.text), "size": size})
        return self.start(["run", method, arguments], tag=tag, **how)

    def executions(self, *words: str, **how: Any) -> Death:
        """Run a command of `executions` in a victim."""
        return self.start(["executions", *words], **how)

    def start(
        self,
        words: list[str],
        *,
        strike: Callable[[], object] | None = None,
        environment: Mapping[str, str] | None = None,
        preloaded: bool = True,
        **told: Any,
    ) -> Death:
        """Start a victim and wait for its end; where it halts, *strike* is called and the victim goes on."""
        self._count += 1
        trace = self.folder / f"trace-{self._count}"
        job = Job(words, dict(environment or {}), str(trace), **told)
        code = self._forked(job, strike) if preloaded else self._fresh(job, strike)
        return _death(code, trace)

    def _forked(self, job: Job, strike: Callable[[], object] | None) -> int:
        stdin, stdout = self._zygote.stdin, self._zygote.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(job._asdict()) + "\n")
        stdin.flush()
        pid = int(stdout.readline())
        with _striking(job, strike), _at_most(pid):
            return int(stdout.readline())

    def _fresh(self, job: Job, strike: Callable[[], object] | None) -> int:
        clean = {name: value for name, value in os.environ.items() if not _ours(name)}
        with Path(f"{job.trace}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(_PROGRAM), json.dumps(job._asdict())],
                env=clean | self.told | job.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        with _striking(job, strike), _at_most(process.pid):
            return process.wait()

    # --- what is there -----------------------------------------------------------

    def settings(self, **more: str) -> Settings:
        """Return the settings of this world."""
        told = {**self.told, **more}
        named = {name.removeprefix("EXECUTIONS_").lower(): told[name] for name in told if name[:11] == "EXECUTIONS_"}
        return Settings(**named)  # type: ignore[arg-type]

    @property
    def archive_folder(self) -> Path:
        """The folder of the archive, where it is one."""
        return Path(self.told["EXECUTIONS_ARCHIVE"])

    def workbench(self, **more: str) -> Workbench:
        """Return the workbench of this world, as a door of its own sees it."""
        return Workbench.of(self.settings(**more), archive_block=_no_block)

    def reader(self, **more: str) -> Catalog:
        """Return the reading side of this world."""
        return Catalog(self.workbench(**more))

    def flow_runs(self, tag: str) -> list[dict[str, Any]]:
        """Return what Prefect's API has of the flow runs with *tag*."""
        return list(self.ask("flow_runs/filter", {"flow_runs": {"tags": {"all_": [tag]}}}))

    def ask(self, path: str, body: object) -> Any:
        """Post *body* to Prefect's API."""
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{self.told['PREFECT_API_URL']}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310 - the same
            return json.load(reply)


@contextmanager
def a_world(folder: Path, told: Mapping[str, str]) -> Iterator[World]:
    """Run a world in *folder* with a Prefect server of its own; *told* says which archive it has."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with _STARTING:
            server = servers.environment(folder / "prefect", servers.free_port())
            stack.enter_context(servers.running(server))
        world = World(folder, {**server, **told})
        stack.callback(world.close)
        world.workbench().archive_identity.claim()  # otherwise only the first victim takes the steps that create it
        yield world


def _ours(name: str) -> bool:
    return name.startswith(("EXECUTIONS_", "PREFECT_")) and not name.startswith("EXECUTIONS_TEST_")


def _no_block(name: str) -> tuple[str, Mapping[str, Any]]:
    raise LookupError(name)


def _death(code: int, trace: Path) -> Death:
    lines = [line.split("\t", 1) for line in trace.read_text().splitlines()] if trace.exists() else []
    ids = dict.fromkeys(of for of, _ in lines if of and "/" not in of and of != IDENTITY)
    log = Path(f"{trace}.log")
    return Death(code, tuple(ids), tuple(step for _, step in lines), log.read_text(errors="replace"))


@contextmanager
def _at_most(pid: int) -> Iterator[None]:
    """Kill *pid* when it lives too long."""
    timer = threading.Timer(LONGEST, os.kill, (pid, signal.SIGKILL))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _striking(job: Job, strike: Callable[[], object] | None) -> Iterator[None]:
    """Call *strike* when the victim waits for it."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            if Path(f"{job.trace}.reached").exists():
                assert strike is not None
                strike()
                Path(f"{job.trace}.struck").touch()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    if job.halt:
        watcher.start()
    try:
        yield
    finally:
        over.set()
        if job.halt:
            watcher.join(LONGEST)


def waited(ask: Callable[[], bool], seconds: float) -> bool:
    """Return whether *ask* says yes within *seconds*."""
    until = time.monotonic() + seconds
    while not ask():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
