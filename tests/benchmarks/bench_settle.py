"""What a round of settle costs among many flow runs, and how long after a ``kill -9`` a record is sealed.

By itself, by the deployment that runs each minute, and by the automation that runs it on a crash.

It runs a Prefect server of its own: ``python tests/benchmarks/bench_settle.py``.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

sys.path.insert(0, str(Path(__file__).parents[1]))

import servers

if TYPE_CHECKING:
    from prefect_executions.workbench.workbench import Workbench

ROOT = Path(__file__).parents[2]

WORKING = """
import time
from prefect_executions import current_execution, method

@method(version="1")
def works() -> None:
    current_execution().output("half.txt").write_text("half")
    time.sleep(600)

works()
"""
NEED_WORK = 10


def row(measure: str, figure: str, against: str, goal: str) -> None:
    print(f"| {measure} | {figure} | {against} | {goal} |", flush=True)


@contextmanager
def counted_requests() -> Iterator[list[str]]:
    from prefect_executions.prefect_api import client as api_client  # noqa: PLC0415 - after the environment is set

    made: list[str] = []
    hooks = api_client.client()._client.event_hooks["request"]
    hooks.append(listen := lambda request: made.append(request.url.path))
    yield made
    hooks.remove(listen)


class Crowd:
    """One deployed Method and many runs of it, most of them sealed before."""

    def __init__(self, home: Path, database: Path) -> None:
        from benches import bench_at  # noqa: PLC0415 - after the environment is set
        from prefect_executions import method  # noqa: PLC0415 - the same

        @method(version="1")
        def crowded(number: int = 1) -> int:
            return number

        self.database = database
        self.bench = bench_at(home)
        self.deployment = crowded.to_deployment("crowd").apply()

    def ended(self, count: int, newest: timedelta, oldest: timedelta) -> list[str]:
        """Write *count* runs that ended between these times ago into Prefect's database; return their ids."""
        from prefect.client.orchestration import get_client  # noqa: PLC0415 - after the environment is set
        from prefect.states import Crashed, Pending  # noqa: PLC0415 - the same

        with get_client(sync_client=True) as client:
            model = client.create_flow_run_from_deployment(self.deployment)
            for state in (Pending(), Crashed(message="no")):
                client.set_flow_run_state(model.id, state)
        ids = [str(uuid4()) for _ in range(count)]
        now, step = datetime.now(UTC), (oldest - newest) / count
        with closing(sqlite3.connect(self.database, timeout=60)) as database, database:
            database.row_factory = sqlite3.Row
            [state] = database.execute(
                "SELECT s.* FROM flow_run_state s JOIN flow_run r ON r.state_id = s.id WHERE r.id = ?", (str(model.id),)
            )
            [run] = database.execute("SELECT * FROM flow_run WHERE id = ?", (str(model.id),))
            states, runs = [], []
            for number, run_id in enumerate(ids):
                at = (now - newest - number * step).strftime("%Y-%m-%d %H:%M:%S.%f")
                own = {"id": str(uuid4()), "flow_run_id": run_id, "timestamp": at}
                states.append(dict(state) | own)
                times = {"state_timestamp": at, "end_time": at, "expected_start_time": at, "created": at}
                runs.append(dict(run) | times | {"id": run_id, "state_id": own["id"], "name": f"run-{run_id}"})
            for table, rows in (("flow_run", runs), ("flow_run_state", states)):
                columns = ", ".join(rows[0])
                values = ", ".join(f":{name}" for name in rows[0])
                database.executemany(f"INSERT INTO {table} ({columns}) VALUES ({values})", rows)  # noqa: S608 - our own words
            database.execute("DELETE FROM flow_run WHERE id = ?", (str(model.id),))
        return ids

    def sealed(self, ids: list[str], newest: timedelta, oldest: timedelta) -> None:
        """Say in the archive's marks and in the ledger that these were sealed."""
        from records import a_never_started_record, a_request  # noqa: PLC0415 - from tests/

        now, step = datetime.now(UTC), (oldest - newest) / len(ids)
        with self.bench.ledger.bulk() as bulk:
            for number, execution_id in enumerate(ids):
                at = now - newest - number * step
                self.bench.archive.marks.close(execution_id, "a" * 64, at)
                told = a_never_started_record()
                told = a_never_started_record(
                    request=a_request(execution_id=execution_id, files=()),
                    job_status=told.job_status.model_copy(update={"job_id": execution_id}),
                )
                bulk.record(told, archive="archived", manifest_sha256="a" * 64)


def a_round(crowd: Crowd, home: Path) -> tuple[float, int, int, int]:
    """Return what one round took: seconds, requests to Prefect, MiB of memory more, executions sealed."""
    from prefect_executions.settings import Settings  # noqa: PLC0415 - after the environment is set
    from prefect_executions.settle.loop import settle  # noqa: PLC0415 - the same

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with counted_requests() as requests:
        begun = time.perf_counter()
        told = [one for one in settle(crowd.bench, Settings(home=home)) if one.result == "archived"]
        took = time.perf_counter() - begun
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    return took, len(requests), more, len(told)


def scan(home: Path, database: Path, count: int) -> None:
    crowd = Crowd(home, database)
    minute, day = timedelta(minutes=1), timedelta(days=1)
    for what, newest, oldest in (
        (f"a round over {count:,} flow runs of 30 days", 15 * minute, 30 * day),
        (f"the same with {count:,} more that ended in the last ten minutes", 2 * minute, 9 * minute),
    ):
        ids = crowd.ended(count - NEED_WORK, newest, oldest)
        crowd.sealed(ids, newest, oldest)
        crowd.bench.archive.marks.settle_until(datetime.now(UTC))
        a_round(crowd, home)
        crowd.ended(NEED_WORK, minute, 2 * minute)
        took, requests, more, done = a_round(crowd, home)
        row(f"{what}, {done} to seal", f"{took:.2f} s", f"{requests} requests, {more} MiB more", "seconds, bounded")
        took, requests, more, done = a_round(crowd, home)
        row(f"{what}, {done} to seal", f"{took:.2f} s", f"{requests} requests, {more} MiB more", "seconds, bounded")


def works(home: Path, there: Path, bench: Workbench) -> tuple[subprocess.Popen[bytes], str]:
    """Begin a run with its home *there*; it is at work when this returns, with its id."""
    told = os.environ | {"EXECUTIONS_HOME": str(there), "EXECUTIONS_ARCHIVE": bench.archive.store.url}
    script = home / "works.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(WORKING)
    process = subprocess.Popen([sys.executable, str(script)], env=told, stderr=subprocess.DEVNULL)
    while True:
        for one in bench.archive.marks.open():
            if (there / "workbench" / one.id / "outputs/half.txt").exists():
                return process, one.id
        time.sleep(0.05)


def killed(home: Path, *, reachable: bool) -> float:
    """Return the seconds from the ``kill -9`` of a run to its sealed record, with one round after the other."""
    from benches import bench_at  # noqa: PLC0415 - after the environment is set
    from prefect_executions.settings import Settings  # noqa: PLC0415 - the same
    from prefect_executions.settle.loop import settle  # noqa: PLC0415 - the same

    there = home / "there"
    bench = bench_at(home)
    process, execution_id = works(home, there, bench)
    begun = time.perf_counter()
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not reachable:
        there.rename(home / "away")
    while bench.archive.seal_of(execution_id) is None:
        list(settle(bench, Settings(home=home)))
    return time.perf_counter() - begun


@contextmanager
def operated(home: Path) -> Iterator[None]:
    """Deploy `settle` as `deployments/` says, and run the worker that it runs on; its schedule begins now."""
    asked("prefect", "work-pool", "create", "executions", "--type", "process")
    asked("prefect", "--no-prompt", "deploy", "--name", "settle", "--prefect-file", "deployments/prefect.yaml")
    words = [str(Path(sys.executable).with_name("prefect")), "worker", "start", "--pool", "executions"]
    told = os.environ | {"EXECUTIONS_HOME": str(home)}
    worker = subprocess.Popen(words, cwd=ROOT, env=told, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        worker.kill()
        worker.wait()
        asked("prefect", "deployment", "delete", "settle/settle")


def asked(*words: str) -> None:
    program = str(Path(sys.executable).with_name(words[0]))
    subprocess.run([program, *words[1:]], cwd=ROOT, capture_output=True, check=True)


def crashed(home: Path) -> float:
    """Return the seconds from the ``kill -9`` of a run to its sealed record, where a worker tells Prefect of the crash.

    No hook runs, as for runs in containers; nothing but the operator's deployment settles.
    """
    from benches import bench_at  # noqa: PLC0415 - after the environment is set
    from prefect_executions.prefect_api import flow_runs  # noqa: PLC0415 - the same
    from prefect_executions.prefect_api import queries as prefect_queries  # noqa: PLC0415 - the same

    bench = bench_at(home)
    process, execution_id = works(home, home, bench)
    run = flow_runs.flow_run(UUID(execution_id))
    assert run is not None
    prefect_queries.mark_flows({run.flow_id})
    begun = time.perf_counter()
    process.send_signal(signal.SIGKILL)
    process.wait()
    prefect_queries.force_terminal(run.id, "Process exited with status code: -9", cancelled=False)
    while bench.archive.seal_of(execution_id) is None:
        time.sleep(0.1)
    return time.perf_counter() - begun


def with_and_without_the_automation(home: Path) -> None:
    with operated(home):
        by_the_minute = [crashed(home) for _ in range(3)]
        asked("python", "deployments/automations.py")
        at_once = [crashed(home) for _ in range(3)]
    for what, times in (("the schedule of a minute", by_the_minute), ("the automation besides", at_once)):
        told = ", ".join(f"{one:.1f}" for one in sorted(times))
        row(f"kill -9 to sealed record, no hook, {what}", f"{told} s", "Prefect hears of it at once", "<= 120 s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        told: dict[str, Any] = dict(servers.environment(here / "prefect", servers.free_port()))
        os.environ.update(told | {"PREFECT_LOGGING_LEVEL": "ERROR", "EXECUTIONS_HOME": str(here / "crowd")})
        with servers.running(told):
            row("measure", "figure", "beside", "goal")
            found = killed(here / "killed", reachable=True)
            row(
                "kill -9 to sealed record, bundle within reach",
                f"{found:.1f} s",
                "rounds without a pause",
                "<= 120 s",
            )
            found = killed(here / "lost", reachable=False)
            row("kill -9 to sealed record, its machine gone", f"{found:.1f} s", "45 s of silence of it", "<= 120 s")
            with_and_without_the_automation(here / "operated")
            scan(here / "crowd", here / "prefect" / "prefect.db", arguments.runs)


if __name__ == "__main__":
    main()
