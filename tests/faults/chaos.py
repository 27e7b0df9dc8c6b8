"""Executions through real workers, killed at random moments, with S3 failing: ``python tests/faults/random_kills.py``.

``--executions 200`` takes about 25 minutes on two idle cores. Flow processes,
whole workers with all they started, and settles are killed with SIGKILL; the S3
server that EXECUTIONS_TEST_S3 names is harmed by a proxy. Then `executions
settle` until it is quiet. All must be sealed once, verified and true, and the
ledger must come back the same. ``--seed`` gives the same dice, not the same moments.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.settings import PREFECT_API_URL, temporary_settings

import archives
import servers
from faultproxy import FaultProxy
from faults.judging import COMPLETED, Truth, judge, unfinished
from faults.settles import SETTLE
from faults.world import World
from prefect_executions import MethodFlow
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.settle.decide import STUCK
from prefect_executions.tracepoints import TracePoint
from scenes import age

POOL = "random"
AT_ONCE = 2
"""Runs at once of each of the two workers."""

LONGEST = 2700.0
"""Seconds for all executions to be ended and sealed."""

ROUND = 15.0
"""Seconds between two rounds of settle while executions run."""

CLAIMED = timedelta(minutes=1)
"""A run that is pending for longer than this has no worker any more."""

SETTLE_STEPS = (
    *(TracePoint.ZIP_KEPT, TracePoint.FINAL_STATUS, TracePoint.MANIFEST_KEPT),
    *(TracePoint.FILES_SENT, TracePoint.SEALED),
)
"""Where a settle is killed, now and then."""

S3_FAULTS: tuple[dict[str, Any], ...] = (
    {"status": 503, "every": 17},
    {"lost_reply": True, "every": 23},
    {"method": "PUT", "cut_request": 100, "every": 29},
    {"method": "GET", "cut_reply": 10, "every": 31},
    {"delay": 1.0, "every": 13},
)


class Chaos:
    """Two workers and what kills them and their flow processes; all dice come from one seed."""

    def __init__(self, world: World, dice: random.Random, *, kill_workers: int) -> None:
        self.world = world
        self.dice = dice
        self.killed: Counter[str] = Counter()
        self.over = threading.Event()
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._worker_kills = kill_workers
        self._started = 0
        self._doomed: dict[int, float] = {}

    def run(self) -> None:
        """Keep two workers running, and kill, until it is over."""
        next_worker = time.monotonic() + 30
        while not self.over.wait(0.05):
            for number in (0, 1):
                if number not in self._workers or self._workers[number].poll() is not None:
                    self._workers[number] = self._worker()
            self._kill_flows()
            if self._worker_kills and time.monotonic() > next_worker:
                next_worker = time.monotonic() + self.dice.uniform(20, 60)
                self._worker_kills -= 1
                self._kill_worker(self._workers[self.dice.randrange(2)])

    def stop(self) -> None:
        """End the workers, and what they left."""
        self.over.set()
        for worker in self._workers.values():
            worker.terminate()
        for worker in self._workers.values():
            with suppress(subprocess.TimeoutExpired):
                worker.wait(60)
            worker.kill()
            worker.wait()
        for pid in self.flows():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _worker(self) -> subprocess.Popen[bytes]:
        self._started += 1
        words = ["worker", "start", "--pool", POOL, "--type", "process", "--limit", str(AT_ONCE)]
        with (self.world.folder / f"worker-{self._started}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "prefect", *words, "--name", f"worker-{self._started}"],
                env=os.environ | self.world.told | {"PREFECT_WORKER_QUERY_SECONDS": "2"},
                cwd=self.world.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _kill_worker(self, worker: subprocess.Popen[bytes]) -> None:
        """Kill a worker, alone or as a machine dies: with all that it started."""
        alone = self.dice.random() < 0.5
        flows = [] if alone else [pid for pid in self.flows() if _parent(pid) == worker.pid]
        for pid in (worker.pid, *flows):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.killed["worker alone" if alone else "worker with all its flows"] += 1

    def _kill_flows(self) -> None:
        now = time.monotonic()
        alive = set(self.flows())
        for pid in alive - self._doomed.keys():
            self._doomed[pid] = now + self.dice.uniform(0.5, 14) if self.dice.random() < 0.5 else float("inf")
        for pid, when in list(self._doomed.items()):
            if pid in alive and now >= when:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.killed["flow process"] += 1
                self._doomed[pid] = float("inf")

    def flows(self) -> Iterator[int]:
        """The flow processes of this run of ours, and of no other."""
        ours = f"FAULTS={self.world.told['FAULTS']}".encode()
        for name in os.listdir("/proc"):  # noqa: PTH208 - names are enough
            if name.isdigit():
                with suppress(OSError):
                    place = Path("/proc", name)
                    started = b"prefect.engine" in (place / "cmdline").read_bytes()
                    if started and ours in (place / "environ").read_bytes().split(b"\0"):
                        yield int(name)


def _parent(pid: int) -> int:
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def main() -> int:
    """Run it all and return 1 when anything is not true."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--workers-killed", type=int, help="default: one for each 20 executions above 20")
    told = parser.parse_args()
    workers = told.workers_killed if told.workers_killed is not None else max(0, told.executions // 20 - 1)
    print(f"seed {told.seed}, {told.executions} executions, {workers} workers to be killed", flush=True)
    endpoint = os.environ.get("EXECUTIONS_TEST_S3", "")
    if not endpoint:
        print("EXECUTIONS_TEST_S3 is not set (see .ci/services/seaweedfs.sh)", file=sys.stderr)
        return 2
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kills-")))
        place = archives.place(endpoint)
        stack.callback(place.close)
        proxy = stack.enter_context(FaultProxy(endpoint))
        world = _world(stack, folder, place.url, proxy.url)
        dice = random.Random(told.seed)  # noqa: S311 - dice that can be thrown again
        chaos = Chaos(world, dice, kill_workers=workers)
        ids = _ordered(world, told.executions, dice)
        _let_it_happen(world, chaos, proxy, ids)
        untrue = [*_judged(world, ids), *_ledgers(world, ids), *_left(world, place)]
    print("\n".join(f"UNTRUE {line}" for line in untrue))
    print(f"killed: {dict(chaos.killed)}; seed {told.seed}; {len(untrue)} untrue")
    return int(bool(untrue))


def _world(stack: ExitStack, folder: Path, archive: str, endpoint: str) -> World:
    server = servers.environment(folder / "prefect", servers.free_port())
    told = {
        **server,
        "FAULTS": folder.name,
        "EXECUTIONS_ARCHIVE": archive,
        "EXECUTIONS_ARCHIVE_TIMEOUT": "15",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": archives.KEY,
        "AWS_SECRET_ACCESS_KEY": archives.SECRET,
    }
    os.environ.update({name: value for name, value in told.items() if name.startswith("AWS_")})
    stack.enter_context(servers.running(server))
    world = World(folder, told)
    stack.callback(world.close)
    return world


def _ordered(world: World, count: int, dice: random.Random) -> list[str]:
    """Deploy the Method and order *count* runs of it."""
    journal = world.folder / "journal"
    journal.mkdir()
    # Prefect read its settings when it was imported, before there was this world's server.
    api = temporary_settings({PREFECT_API_URL: world.told["PREFECT_API_URL"]})
    with api, get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        # The tests' own folder, because the Methods import their neighbours.
        found = MethodFlow.from_source(source=str(Path(__file__).parent), entrypoint="methods.py:journals")
        variables = {"command": f"{sys.executable} -m prefect.engine"}
        made = found.deploy(name=POOL, work_pool_name=POOL, job_variables=variables, print_next_steps=False)
        return [
            str(
                client.create_flow_run_from_deployment(
                    made, parameters={"journal": str(journal), "seconds": round(dice.uniform(0, 3), 2)}
                ).id
            )
            for _ in range(count)
        ]


def _let_it_happen(world: World, chaos: Chaos, proxy: FaultProxy, ids: Sequence[str]) -> None:
    for fault in S3_FAULTS:
        proxy.harm(**fault)
    thread = threading.Thread(target=chaos.run)
    thread.start()
    try:
        until = time.monotonic() + LONGEST
        began = time.monotonic()
        open_ones = set(ids)
        while open_ones and time.monotonic() < until:
            time.sleep(ROUND)
            kill = chaos.dice.choice(("", "", *SETTLE_STEPS))
            settle = world.executions(*SETTLE, kill=kill)
            chaos.killed["settle"] += settle.code == -signal.SIGKILL
            with suppress(Exception):  # the archive's own faults meet us, too
                archive = world.workbench().archive
                open_ones = {one for one in open_ones if archive.seal_of(one) is None}
            if open_ones:
                _let_time_pass(world, chaos, open_ones)
            print(
                f"{time.monotonic() - began:5.0f} s: {len(ids) - len(open_ones)} sealed, {dict(chaos.killed)}",
                flush=True,
            )
    finally:
        chaos.stop()
        thread.join()
        proxy.heal()
    for _ in range(3):
        world.executions(*SETTLE)


def _let_time_pass(world: World, chaos: Chaos, open_ones: set[str]) -> None:
    """Where all that is left are runs that a dead worker had claimed, let the time pass that settle gives those."""
    asked = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(one) for one in open_ones]))
    api = temporary_settings({PREFECT_API_URL: world.told["PREFECT_API_URL"]})
    with api, get_client(sync_client=True) as client:
        states = [run.state for run in client.read_flow_runs(flow_run_filter=asked) if run.state is not None]
    before = datetime.now(UTC) - CLAIMED
    if all(state.is_pending() and state.timestamp < before for state in states) and not any(chaos.flows()):
        for one in open_ones:
            age(one, STUCK, home=world.told["PREFECT_HOME"])
            chaos.killed["left pending"] += 1


def _judged(world: World, ids: Sequence[str]) -> Iterator[str]:
    ends: Counter[str] = Counter()
    for execution_id in ids:
        journal = world.folder / "journal" / execution_id
        happened = journal.read_text().splitlines() if journal.exists() else []
        verdict = judge(world, execution_id, _truth(happened))
        ends[verdict.words.rpartition(", ")[0] if "outputs" in verdict.words else verdict.words] += 1
        yield from (f"{execution_id} {verdict.words}: {one} (it did {happened})" for one in verdict.untrue)
    print(json.dumps(dict(ends), indent=2))


def _truth(happened: Sequence[str]) -> Truth:
    """What may be told of a run that did what its journal says; where it was killed in between nobody knows."""
    outputs = tuple(line for line in happened if line.startswith("outputs/"))
    crashed = {(Status.FAILED, reason) for reason in (Reason.CRASHED, Reason.LOST)}
    if "done" in happened:
        return Truth({*COMPLETED, *crashed}, executed=True, outputs=outputs, partial=...)
    if happened:
        return Truth(crashed, executed=True, outputs=outputs, partial=True)
    never = {(Status.FAILED, reason) for reason in (Reason.INFRASTRUCTURE, Reason.ERROR)}
    return Truth({*crashed, *never}, partial=...)


def _ledgers(world: World, ids: Sequence[str]) -> Iterator[str]:
    archived = sorted(world.workbench().archive.ids())
    if archived != sorted(ids):
        yield f"the archive has {len(archived)} executions, of which {len(set(archived) - set(ids))} nobody ordered"
    rebuilt = {"EXECUTIONS_LEDGER": f"sqlite:///{world.folder / 'rebuilt.db'}"}
    world.executions("ledger", "rebuild", environment=rebuilt)
    with Ledger.open(world.settings().ledger_url) as one, Ledger.open(world.settings(**rebuilt).ledger_url) as other:
        rows = [(one.get(name), other.get(name)) for name in ids]
    unlike = [before.id for before, after in rows if before != after]
    print(f"{len(rows)} rows in the ledger, {len(rows) - len(unlike)} the same after a rebuild")
    yield from (f"{name} has another row in the rebuilt ledger" for name in unlike)


def _left(world: World, place: archives.Place) -> Iterator[str]:
    yield from (f"{path} is left" for path in unfinished(world))
    yield from (f"the upload {one} is left in the archive" for one in place.unfinished())
