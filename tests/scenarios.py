"""How the situations of the scenario matrix are brought about: one worker, one served process, many runs at once.

A production is a generator: it does a step and yields what it waits for. One
loop asks Prefect about all runs at once and lets each go on when what it waits
for is there, so that as many situations go on together as the machine can bear.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelling, Scheduled

from benches import bench_at
from journeys import PATIENCE, program
from prefect_executions import MethodFlow
from prefect_executions.settings import Settings
from prefect_executions.settle.loop import settle
from prefect_executions.workbench.recovery import Settled
from scenes import age

Ready = Callable[[], object]
Production = Callable[["Stage"], Iterator[Ready]]

WORKED, DOOMED, LONELY = "scenarios", "scenarios-doomed", "scenarios-lonely"
SERVED, ALONE = "served", "alone"
"""`prefect.serve` with two Methods, and a Method's own `.serve()`."""
A_WHILE = timedelta(minutes=5)


class Stage:
    """Where all of it goes on: a home, work pools, a worker, a served process, and the runs by the row's number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.bench = bench_at(self.home)
        self.methods = folder / "methods" / "methods.py"
        self.methods.parent.mkdir()
        shutil.copy(Path(__file__).with_name("scenario_methods.py"), self.methods)
        self.runs: dict[str, UUID] = {}
        self.failures: dict[str, str] = {}
        self.told: dict[str, Settled] = {}
        self._known: dict[UUID, FlowRun] = {}
        self._left = ExitStack()
        self._open: dict[str, Iterator[Ready]] = {}

    @property
    def environment(self) -> dict[str, str]:
        return {
            "EXECUTIONS_HOME": str(self.home),
            "EXECUTIONS_HOOK_TIMEOUT": "150",  # Prefect's server may be silent for a minute: two writers of its SQLite
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        }

    # --- who runs it ---------------------------------------------------------------

    def set_up(self) -> None:
        with get_client(sync_client=True) as client:
            for pool in (WORKED, DOOMED, LONELY):
                client.create_work_pool(WorkPoolCreate(name=pool, type="process"), overwrite=True)
        for name in ("plays", "dies_in_its_hook"):
            found = MethodFlow.from_source(source=str(self.methods.parent), entrypoint=f"{self.methods.name}:{name}")
            for pool in (WORKED, DOOMED, LONELY):
                found.deploy(name=pool, work_pool_name=pool, print_next_steps=False)
        self.worker, self.doomed = self._worker(WORKED), self._worker(DOOMED)
        self.server = self._program([sys.executable, str(self.methods)], SERVED)
        self.alone = self._program([sys.executable, str(self.methods), ALONE], ALONE)

    def _worker(self, pool: str) -> subprocess.Popen[bytes]:
        words = ["prefect", "worker", "start", "--pool", pool, "--name", f"{pool}-worker", "--type", "process"]
        return self._program([sys.executable, "-m", *words], pool)

    def _program(self, words: list[str], name: str, **more: str) -> subprocess.Popen[bytes]:
        return self._left.enter_context(program(words, self.folder / f"{name}.log", self.environment | more))

    def execute(self, run: str, times: int = 1, **environment: str) -> subprocess.Popen[bytes]:
        """Run a flow run as a container does."""
        words = [sys.executable, "-m", "prefect", "flow-run", "execute", str(self.runs[run])]
        return self._program(words, f"execute-{run}-{times}", **environment)

    def tear_down(self) -> None:
        self._left.close()

    # --- runs --------------------------------------------------------------------------

    def start(
        self,
        run: str,
        place: str,
        part: str = "",
        flag: str = "",
        *,
        parameters: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Ask for a run at a place, by the name that the table has for it."""
        flow = "plays" if part else "dies-in-its-hook"
        told = {"part": part, "flag": flag} if part else {}
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name(f"{flow}/{place}").id
            made = client.create_flow_run_from_deployment(deployment, parameters=told | dict(parameters or {}), **more)
        self.runs[run] = made.id

    def put(self, run: str, state: State[Any]) -> None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(self.runs[run], state)

    def call(self, run: str, flow: Callable[[], object]) -> None:
        """Call a Method here, whatever it raises; a Method that it calls is the run ``<number> child``."""
        before = {path.name for path in self.executions()}
        with suppress(BaseException):
            flow()
        for path in self.executions():
            if path.name not in before:
                child = self.bench.record(path.name).request.relatives
                self.runs[run.replace("parent", "child") if child else run] = UUID(path.name)

    def executions(self) -> list[Path]:
        folder = self.home / "workbench"
        return [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []

    def ready(self, place: str) -> Ready:
        """Whether runs may be asked for at a place."""
        log = self.folder / f"{place}.log"
        return lambda: place not in {SERVED, ALONE} or "polling" in log.read_text()

    def state(self, run: str) -> str:
        """Return the name of the state that a run had lately."""
        known = self._known.get(self.runs[run])
        return known.state_name or "" if known else ""

    def flag(self, name: str) -> Path:
        return self.folder / name

    def bundle(self, run: str, life: int = 1) -> Path:
        return self.home / "workbench" / (str(self.runs[run]) + (f".{life}" if life > 1 else ""))

    def says(self, run: str, text: str, life: int = 1) -> Ready:
        log = self.bundle(run, life) / "outputs" / "stdout.log"

        def said() -> bool:
            there = log.exists() and text in log.read_text()
            assert there or not self.ended(run)(), f"the run is {self.state(run)}, and never said {text!r}"
            return there

        return said

    def process(self, run: str) -> int:
        return int(json.loads((self.bundle(run) / "metadata" / "instance.json").read_text())["pid"])

    def sealed(self, run: str, life: int = 1) -> Ready:
        """Whether Prefect says that it has ended, and it is sealed, archived and in the ledger."""
        bundle = self.bundle(run, life)
        seal = self.home / "archive" / "executions" / bundle.name / "seal.json"
        scratch = bundle.parent / ".open" / bundle.name
        return lambda: self.ended(run)() and seal.exists() and not scratch.exists()

    def ended(self, run: str) -> Ready:
        def ended() -> bool:
            known = self._known.get(self.runs[run])
            return bool(known and known.state and known.state.is_final())

        return ended

    # --- all at once -------------------------------------------------------------------

    def play(self, productions: Mapping[str, Production], patience: float = 3 * PATIENCE) -> None:
        """Let all *productions* go on until each has ended; what fails or waits in vain is kept for its row."""
        waiting: dict[str, tuple[Iterator[Ready], Ready]] = {}
        for name, produce in productions.items():
            waiting[name] = (produce(self), lambda: True)
        until = time.monotonic() + patience
        while waiting and time.monotonic() < until:
            self._ask()
            for name, (steps, ready) in list(waiting.items()):
                try:
                    if ready():
                        waiting[name] = (steps, next(steps))
                except StopIteration:
                    del waiting[name]
                except Exception as error:  # noqa: BLE001 - it is told at its row
                    self.failures[name] = f"{type(error).__name__}: {error}"
                    del waiting[name]
            time.sleep(0.2)
        for name in waiting:
            states = {run: self.state(run) for run in self.runs if run.partition(" ")[0] == name.partition(" ")[0]}
            self.failures[name] = f"waited {patience:.0f} s in vain; {states}"

    def _ask(self) -> None:
        ids = [*self.runs.values()]
        with get_client(sync_client=True) as client:
            wanted = FlowRunFilter(id=FlowRunFilterId(any_=ids))
            self._known = {run.id: run for run in client.read_flow_runs(flow_run_filter=wanted)} if ids else {}

    def settle(self, *aged: str) -> None:
        """Go one round when all is over; that what *aged* names was a while ago is written into Prefect's database."""
        for run in aged:
            age(self.runs[run], A_WHILE)
            age(self.runs[run], A_WHILE, "flow_run")
        told = settle(self.bench, Settings(home=self.home), pause=lambda _: None)
        self.told |= {one.id: one for one in told}


# --- productions -----------------------------------------------------------------------


def runs(run: str, place: str, part: str = "", **more: Any) -> Production:
    """Let a run play its *part* to its end."""

    def produce(stage: Stage) -> Iterator[Ready]:
        yield stage.ready(place)
        stage.start(run, place, part, **more)
        yield stage.sealed(run)

    return produce


def dies_when_it_is_sealed(run: str, place: str) -> Production:
    """Let a signal end the process once its bundle is sealed there; what is left to do is settle's."""

    def produce(stage: Stage) -> Iterator[Ready]:
        yield stage.ready(place)
        stage.start(run, place)
        manifest = stage.bundle(run) / "manifest-sha256.txt"
        yield lambda: stage.ended(run)() and manifest.exists()

    return produce


def is_cancelled(run: str, place: str, part: str) -> Production:
    """Cancel a run in the middle of its part."""

    def produce(stage: Stage) -> Iterator[Ready]:
        yield stage.ready(place)
        stage.start(run, place, part)
        yield stage.says(run, "begins")
        stage.put(run, Cancelling())
        yield stage.sealed(run)

    return produce


def is_held(run: str, place: str) -> Production:
    """Let a run wait in its part; `goes_on` lets it go on."""

    def produce(stage: Stage) -> Iterator[Ready]:
        yield stage.ready(place)
        stage.start(run, place, "waits", str(stage.flag(run)))
        yield stage.says(run, "begins")

    return produce


def goes_on(run: str, end: Callable[[Stage], subprocess.Popen[bytes]]) -> Production:
    """Ask its worker to end, and let the run that waits go on."""

    def produce(stage: Stage) -> Iterator[Ready]:
        end(stage).terminate()
        then = time.monotonic() + 3
        yield lambda: time.monotonic() > then
        stage.flag(run).touch()
        yield stage.sealed(run)

    return produce


def is_left(run: str, end: Callable[[Stage], subprocess.Popen[bytes]]) -> Production:
    """Ask the worker or the serving process of a run to end, which takes the run with it."""

    def produce(stage: Stage) -> Iterator[Ready]:
        end(stage).terminate()
        yield lambda: end(stage).poll() is not None and not Path(f"/proc/{stage.process(run)}").exists()

    return produce


def is_retried_by_hand(run: str) -> Production:
    def produce(stage: Stage) -> Iterator[Ready]:
        yield stage.ready(SERVED)
        stage.start(run, SERVED, "raises unless", str(stage.flag(run)))
        yield stage.sealed(run)
        stage.flag(run).touch()
        stage.put(run, Scheduled())
        yield stage.sealed(run, 2)

    return produce


def is_suspended(run: str) -> Production:
    def produce(stage: Stage) -> Iterator[Ready]:
        yield stage.ready(SERVED)
        stage.start(run, SERVED, "is suspended")
        yield lambda: stage.state(run) == "Suspended"
        with get_client(sync_client=True) as client:
            client.resume_flow_run(stage.runs[run])
        yield stage.sealed(run)

    return produce


def worker_and_run_are_killed(run: str, survivor: str) -> Production:
    """Kill a worker with one of its two runs, as the loss of half a machine; the other one goes on."""

    def produce(stage: Stage) -> Iterator[Ready]:
        stage.start(run, DOOMED, "waits")
        stage.start(survivor, DOOMED, "waits", str(stage.flag(survivor)))
        begun = stage.says(run, "begins"), stage.says(survivor, "begins")
        yield lambda: all(one() for one in begun)
        stage.doomed.kill()
        stage.doomed.wait()
        os.kill(stage.process(run), signal.SIGKILL)
        stage.flag(survivor).touch()
        yield stage.sealed(survivor)

    return produce


def is_cancelled_before_it_runs(run: str) -> Production:
    def produce(stage: Stage) -> Iterator[Ready]:
        stage.start(run, WORKED, "waits", job_variables={"env": {"SCENARIO_SLOW_IMPORT": str(stage.flag(run))}})
        yield lambda: stage.state(run) == "Submitting"
        stage.put(run, Cancelling())
        yield stage.ended(run)

    return produce


def is_put(run: str, *states: State[Any], until: str = "") -> Production:
    """Put a run that nobody picks up into *states*, and wait until Prefect calls its state as told."""

    def produce(stage: Stage) -> Iterator[Ready]:
        stage.start(run, LONELY, "waits")
        for state in states:
            stage.put(run, state)
        yield lambda: stage.state(run) == until or (not until and stage.ended(run)())

    return produce


def cannot_be_made(run: str) -> Production:
    def produce(stage: Stage) -> Iterator[Ready]:
        stage.start(run, WORKED, "waits", job_variables={"working_dir": str(stage.folder / "nowhere")})
        yield stage.ended(run)

    return produce


def is_evicted(run: str, behaviour: str = "", *, again: bool) -> Production:
    """End `prefect flow-run execute`, as Kubernetes ends a pod, and with it all that is in the pod."""
    told = {"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": behaviour} if behaviour else {}

    def produce(stage: Stage) -> Iterator[Ready]:
        stage.start(run, LONELY, "waits", str(stage.flag(run)))
        pod = stage.execute(run, **told)
        yield stage.says(run, "begins")
        pod.terminate()
        yield lambda: pod.poll() is not None
        with suppress(ProcessLookupError):
            os.kill(stage.process(run), signal.SIGKILL)
        if again:
            stage.flag(run).touch()
            stage.execute(run, 2, **told)
            yield stage.sealed(run)

    return produce
