"""Where journeys begin: Methods deployed on a real server, a real worker that runs them, a home that keeps them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest.mock import patch
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, State

from homes import Bundles
from prefect_executions import MethodFlow
from prefect_executions.cli.arguments import open_workbench
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.prefect_api.events import flush_events
from prefect_executions.settings import Settings

PATIENCE = 480.0
"""Seconds; a worker's run takes ten on an idle machine of two cores."""

LEFT = 30.0
"""Seconds after the seal: a process that ends waits five seconds for Prefect's answer and leaves the rest to settle."""

DEPLOYMENT = "journey"
METHODS = ("tells", "fails", "within", "dies", "waits", "outer", "counts", "whispers", "chats")

T = TypeVar("T")


def waited(ask: Callable[[], T | None], what: str) -> T:
    """Return the first answer of *ask* that is something."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        answer = ask()
        if answer:
            return answer
        time.sleep(0.2)
    raise AssertionError(f"waited {PATIENCE:.0f} s in vain: {what}")


def command(*words: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a program of this environment (`prefect`, `executions`) as a user does, and return what it says."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name(words[0])), *words[1:]],
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def program(words: list[str], log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program beside us, in a process group of its own, that writes to *log*; it is ended at the end."""
    # A worker passes Prefect's settings to its containers, which do not have the file of conftest's certificate.
    inherited = {name: value for name, value in os.environ.items() if name != "PREFECT_API_SSL_CERT_FILE"}
    with log.open("ab") as file:
        process = subprocess.Popen(
            words,
            env={**inherited, **environment},
            cwd=log.parent,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Line(NamedTuple):
    """One record of Prefect's log of a run."""

    logger: str
    message: str


class Run:
    """A flow run on its way through a worker, with the bundle that it leaves."""

    def __init__(self, flow_run_id: UUID, bundles: Bundles, environment: Mapping[str, str] | None = None) -> None:
        self.id = flow_run_id
        self.folder = bundles.home / "workbench" / str(flow_run_id)
        self._bundles = bundles
        self._environment = {"EXECUTIONS_HOME": str(bundles.home), **(environment or {})}

    def ask(self) -> FlowRun:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(self.id)

    def states(self) -> list[State[Any]]:
        with get_client(sync_client=True) as client:
            return sorted(client.read_flow_run_states(self.id), key=lambda state: state.timestamp)

    def says(self, text: str) -> None:
        """Wait until the run has written *text* to its stdout."""
        log = self.folder / "outputs" / "stdout.log"
        waited(lambda: log.exists() and text in log.read_text(), f"'{text}' of flow run {self.id}")

    def ended(self) -> ExecutionRecord:
        """Wait until Prefect says that the run has ended and its bundle is sealed, archived and indexed.

        A busy server acknowledges the run's events too late for the process that ends; they are then sent again here.
        """
        scratch = self.folder.parent / ".open" / self.folder.name
        manifest = self.folder / "manifest-sha256.txt"

        def done() -> bool:
            state = self.ask().state
            if state is None or not state.is_final() or not manifest.exists():
                return False
            if scratch.exists() and time.time() > manifest.stat().st_mtime + LEFT:
                self._settle()
            return not scratch.exists()

        waited(done, f"the end of flow run {self.id}")
        return self._bundles.record(self.folder)

    def _settle(self) -> None:
        with patch.dict(os.environ, self._environment):
            open_workbench(Settings.read(), with_events=True).settle(str(self.id))
            flush_events()

    def read(self, output: str) -> str:
        return (self.folder / "outputs" / output).read_text()

    def log(self, *, until: str) -> list[Line]:
        """Return what Prefect's API has of the run's log, when it has *until*; logs come some seconds late."""

        def lines() -> list[Line] | None:
            wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self.id]))
            with get_client(sync_client=True) as client:
                found = [Line(one.name, one.message) for one in client.read_logs(wanted, limit=200)]
            return found if any(until in line.message for line in found) else None

        return waited(lines, f"'{until}' in Prefect's log of flow run {self.id}")


class Station:
    """The Methods as deployments on a work pool, and a home for the executions that a worker leaves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.bundles = Bundles(self.home)
        self.methods = folder / "methods" / "methods.py"
        self.methods.parent.mkdir()
        shutil.copy(Path(__file__).with_name("journey_methods.py"), self.methods)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a worker: those of the tests' server, and nothing of the user's own home."""
        # Two writers of Prefect's SQLite may keep its server from every answer for a minute (its busy_timeout).
        patient = {"EXECUTIONS_HOOK_TIMEOUT": "150"}
        return {"EXECUTIONS_HOME": str(self.home), "PREFECT_WORKER_QUERY_SECONDS": "1", **patient}

    def deploy(self, pool: str, *names: str) -> None:
        """Deploy Methods on the work pool *pool*, which is there."""
        for name in names:
            found = MethodFlow.from_source(source=str(self.methods.parent), entrypoint=f"{self.methods.name}:{name}")
            found.deploy(name=f"{DEPLOYMENT}-{pool}", work_pool_name=pool, print_next_steps=False)

    @contextmanager
    def worker(self, pool: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a process worker of *pool*; its output is in ``<pool>.log``."""
        words = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--name", f"{pool}-worker"]
        with program([*words, "--type", "process"], self.output(pool), self.environment) as process:
            yield process

    def output(self, pool: str) -> Path:
        return self.folder / f"{pool}.log"

    def start(
        self, pool: str, name: str, parameters: Mapping[str, Any] | None = None, *, environment: Mapping[str, str] = {}
    ) -> Run:
        """Ask Prefect's API for a run of a deployed Method, as a schedule or a program does."""
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name(f"{name}/{DEPLOYMENT}-{pool}")
            made = client.create_flow_run_from_deployment(
                deployment.id,
                parameters=dict(parameters or {}),
                job_variables={"env": dict(environment)} if environment else None,
            )
        home = Path(environment.get("EXECUTIONS_HOME", self.home))
        return Run(made.id, Bundles(home), environment)
