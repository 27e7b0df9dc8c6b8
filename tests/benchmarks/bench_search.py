"""How long the column index takes to answer: twelve queries, facets, statistics, a new process, a new execution.

The table begins with the build of the index, and ends with `executions list`, which does not use the index.

usage: python tests/benchmarks/bench_search.py [EXECUTIONS] [LEDGER URL] [FOLDER OF THE INDEX]

The executions are made with the skew of real ledgers: 40 Methods by Zipf's law, 8 params and 5
metrics each, 60 agents, 20,000 commits, 50,000 input files. A ledger that has executions is not filled again.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, NamedTuple
from uuid import UUID

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from prefect_executions.ledger.bulk import BATCH, put
from prefect_executions.ledger.index.index import ColumnIndex
from prefect_executions.ledger.index.keys import SortKey
from prefect_executions.ledger.index.search import Found, search
from prefect_executions.ledger.index.statistics import Period
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.ledger.rows import LedgerEntry, MethodEntry, Row
from prefect_executions.ledger.values import summary, value_columns
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.query.parser import parse, parse_target
from prefect_executions.query.tree import FieldTarget, resolve
from records import a_method

MANY = 200_000
METHODS = 40
COMMITS = 20_000
FILES = 50_000
BRANCHES = 202
START = datetime(2024, 1, 1, tzinfo=UTC)
MESSAGES = (
    "connection timeout after 30 s while reading input",
    "MemoryError: cannot allocate array",
    "ValueError: negative calibration factor",
    "killed by signal 9",
    "FileNotFoundError: data/missing.tif",
)
SCAN = 1_000_000
"""Doubles that are compared with a number, as the unit of the machine's speed."""


def skewed(rng: np.random.Generator, values: int, many: int, power: float) -> list[int]:
    """Return *many* numbers below *values*, the small ones more often."""
    weights = 1 / np.arange(1, values + 1) ** power
    return rng.choice(values, many, p=weights / weights.sum()).tolist()


def entries(many: int) -> Iterator[LedgerEntry]:
    """Yield the rows of *many* executions over three years, ever more of them."""
    rng, random = np.random.default_rng(7), Random(3)  # noqa: S311
    names = [
        "mnist",
        "segment",
        "ndvi",
        "align",
        "calibrate",
        *(f"method-{number:02d}" for number in range(5, METHODS)),
    ]
    methods = [method_entry(name, number) for number, name in enumerate(names)]
    commits = [f"{random.getrandbits(160):040x}" for _ in range(COMMITS)]
    chosen = {
        "method": skewed(rng, METHODS, many, 1.1),
        "agent": skewed(rng, 60, many, 1.2),
        "file": skewed(rng, FILES, many, 0.8),
        "status": rng.choice(4, many, p=[0.885, 0.097, 0.012, 0.006]).tolist(),
        "begin": np.sort(np.sqrt(rng.random(many)) * 3 * 365 * 86_400e6).astype(np.int64).tolist(),
        "duration": (np.exp(rng.normal(3.5, 1.8, many)) * 1e6).astype(np.int64).tolist(),
        "commit": np.minimum(np.arange(many) / many * COMMITS + rng.exponential(30, many), COMMITS - 1)
        .astype(int)
        .tolist(),
        "lr": (10.0 ** rng.choice([-1, -2, -3, -4], many, p=[0.1, 0.3, 0.45, 0.15])).tolist(),
        "epochs": rng.choice([1, 5, 10, 20, 50, 100], many, p=[0.1, 0.2, 0.25, 0.2, 0.2, 0.05]).tolist(),
        "batch": (2 ** rng.integers(3, 10, many)).tolist(),
        "optimizer": rng.choice(["adam", "sgd", "rmsprop", "lion"], many, p=[0.6, 0.3, 0.08, 0.02]).tolist(),
        "seed": rng.integers(0, 10**6, many).tolist(),
        "accuracy": rng.beta(8, 2, many).tolist(),
        "loss": rng.exponential(0.4, many).tolist(),
        "x": rng.normal(0, 1, (many, 3)).tolist(),
    }
    for number in range(many):
        one = {name: values[number] for name, values in chosen.items()}
        yield entry(number, one, methods[one["method"]], commits[one["commit"]], random)


def method_entry(name: str, number: int) -> MethodEntry:
    method = a_method(id=name, version=f"1.{number % 7}.0", type=["train", "process", "evaluate"][number % 3])
    descriptor = method.to_json()
    digest = sha256(descriptor).hexdigest()
    return MethodEntry(digest, name, method.version, method.title, method.type, method.description, descriptor.decode())


def entry(number: int, one: dict[str, Any], method: MethodEntry, commit: str, random: Random) -> LedgerEntry:
    status = (Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.EXECUTING)[one["status"]]
    begin = START + timedelta(microseconds=one["begin"])
    started = begin + timedelta(seconds=0.5)
    took = timedelta(microseconds=one["duration"])
    ended = status is not Status.EXECUTING
    kind, x = one["method"], one["x"]
    row = Row(
        id=str(UUID(int=random.getrandbits(128), version=4)),
        method_id=method.id,
        method_version=method.version,
        method_type=method.type,
        status=status,
        reason=Reason.ERROR if status is Status.FAILED else None,
        first_known=begin,
        created=begin,
        scheduled=begin + timedelta(milliseconds=1),
        started=started,
        finished=started + took if ended else None,
        updated=started + took,
        duration=took if ended else None,
        attempt=1,
        agent=f"user{one['agent']:02d}",
        infrastructure="process",
        work_pool="pool",
        worker="worker-1",
        hostname=f"node{number % 50}",
        flow_run_name=f"brave-{number % 5000}",
        deployment_id=None,
        deployment_name=None,
        code_commit=commit,
        code_branch=["main", "develop", f"feature/{number % BRANCHES}"][one["method"] % 3],
        code_remote="https://example.org/coins.git",
        code_author=f"user{one['agent']:02d}",
        code_subject=None,
        code_dirty=False,
        python_version="3.11.9",
        gpu=None,
        gpu_driver=None,
        cuda_version=None,
        cpu=None,
        memory=None,
        code_sha256=sha256(commit.encode()).hexdigest(),
        message=MESSAGES[number % 5] if status is Status.FAILED else None,
        progress=100,
        partial=None,
        cached_from=None,
        archive="archived",
        manifest_sha256=None,
    )
    params = {
        "learning_rate": one["lr"],
        "epochs": one["epochs"],
        "batch_size": one["batch"],
        "optimizer": one["optimizer"],
        "seed": one["seed"],
        f"p{kind}_alpha": x[0],
        f"p{kind}_mode": f"m{number % 5}",
        f"p{kind}_fast": bool(number % 3),
    }
    metrics = {
        "accuracy": one["accuracy"],
        "loss": one["loss"],
        "runtime": one["duration"] / 1e6,
        f"m{kind}_score": x[1],
        f"m{kind}_err": x[2],
    }
    parts: dict[str, list[Any]] = {
        "inputs": [],
        "input_files": [("data", f"f{one['file']}.csv", digest(one["file"], "in"), 1000, "file", "text/csv")],
        "outputs": [("model.bin", digest(number, "out"), 1000, "application/octet-stream")],
        "params": [value_columns(name, value) for name, value in params.items()],
        "metrics": [(name, *summary([value])) for name, value in metrics.items()] if ended else [],
        "history": [],
        "leaves": [],
        "annotations": [],
        "tags": [],
        "relatives": [],
    }
    return LedgerEntry(method, row, parts)


def digest(number: int, kind: str) -> bytes:
    return sha256(f"{kind}{number}".encode()).digest()


def fill(ledger: Ledger, many: int) -> None:
    """Write the executions with the statements of `Ledger.bulk`; records of pydantic would take an hour."""
    batch: list[LedgerEntry] = []
    for one in entries(many):
        batch.append(one)
        if len(batch) == BATCH:
            write(ledger, batch)
            batch = []
    write(ledger, batch)


def write(ledger: Ledger, batch: list[LedgerEntry]) -> None:
    with ledger._database.writing(None) as session:
        put(session, batch)


QUERIES = (
    ("Q1 newest", "", ""),
    ("Q2 one status", "status:failed", ""),
    ("Q3 Method, status, param", "method:mnist AND status:completed AND epochs>10", ""),
    ("Q4 a param", "learning_rate=0.1", ""),
    ("Q5 a month", "date:2026-01", ""),
    ("Q6 a commit", "commit:{commit}", ""),
    ("Q7 all, by a metric", "", "metric:accuracy"),
    ("Q8 status, param, by a metric", "status:completed AND epochs>10", "metric:accuracy"),
    ("Q9 OR and NOT, by duration", "(optimizer:lion OR batch_size>=512) AND NOT status:failed", "duration"),
    ("Q10 an input by digest", "input:sha256:{digest}", ""),
    ("Q11 a rare Method, by a metric", "method:method-37 AND metric:accuracy>0.95", "metric:loss"),
    ("Q13 free text", '"connection timeout"', ""),
)
FACETS = tuple(map(FieldTarget, ("status", "method", "branch", "agent")))


class Taken(NamedTuple):
    """The median time and CPU time of something, in milliseconds; on a busy machine, only the latter is comparable."""

    wall: float
    cpu: float


def milliseconds(act: Callable[[], object], times: int = 15) -> Taken:
    """Return the median times of *act*."""
    taken = []
    for _ in range(times):
        began, cpu = time.perf_counter(), time.process_time()
        act()
        taken.append(((time.perf_counter() - began) * 1000, (time.process_time() - cpu) * 1000))
    return Taken(*map(median, zip(*taken, strict=True)))


def scan() -> Taken:
    """Return the median times to compare a million doubles with a number."""
    doubles = np.random.default_rng(1).random(SCAN)
    return milliseconds(lambda: np.count_nonzero(doubles > 0.5), 31)


def answer(index: ColumnIndex, query: str) -> Found:
    return search(index.snapshot(), resolve(parse(query), datetime.now(UTC)), index.ledger.related)


def page_of(index: ColumnIndex, query: str, sort: str) -> int:
    """Return the exact total, after a page of 50."""
    found = answer(index, query)
    found.page([SortKey(parse_target(sort), descending=True)] if sort else [], limit=50)
    return found.total


def newest_of(index: ColumnIndex, execution_id: str) -> None:
    """Check that a search finds an execution."""
    assert answer(index, f"id:{execution_id}").page(limit=1).ids == (execution_id,)


def facets_of(index: ColumnIndex) -> None:
    found = answer(index, "epochs>10")
    for target in FACETS:
        found.facet(target)


STATISTICS = (("all", (), None), ("by Method", ("method",), None), ("per day", (), Period.DAY))


def statistics_of(index: ColumnIndex, by: tuple[str, ...], per: Period | None) -> int:
    """Return the number of groups, after the statistics of all executions in these groups."""
    return len(answer(index, "").statistics([parse_target(name) for name in by], per))


FRESH = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from bench_search import page_of
from prefect_executions.ledger.index.index import ColumnIndex
from prefect_executions.ledger.ledger import Ledger
began, cpu = time.perf_counter(), time.process_time()
page_of(ColumnIndex(Ledger.open(sys.argv[1]), Path(sys.argv[2])), "status:completed AND epochs>10", "metric:accuracy")
took, cpu = (time.perf_counter() - began) * 1000, (time.process_time() - cpu) * 1000
status = Path("/proc/self/status").read_text()  # the largest memory of getrusage is that of the parent
print(took, cpu, int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


def fresh(url: str, folder: Path) -> tuple[Taken, int]:
    """Return the times of the first query of a new process, and its largest resident memory in MB."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    runs = [
        subprocess.run(
            [sys.executable, "-c", FRESH, url, str(folder), *paths], capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(5)
    ]
    took = Taken(*(median(float(run[index]) for run in runs) for index in (0, 1)))
    return took, max(int(memory) for *_, memory in runs)


def measure(ledger: Ledger, url: str, folder: Path, many: int) -> Iterator[tuple[str, str, str]]:
    """Yield measure, what is to be reached, and what was measured."""
    unit = scan()
    yield f"scan of {SCAN:,} doubles, the unit", "", f"{unit.wall:.2f} ms, CPU {unit.cpu:.2f} ms"

    def shown(took: Taken) -> str:
        return f"{took.wall:.1f} ms, CPU {took.cpu:.1f} ms, {took.cpu / unit.cpu:.0f} scans"

    began = time.process_time()
    index = ColumnIndex(ledger, folder)
    total = index.snapshot().total
    yield f"build from {total:,} executions", "<= 60 s CPU", f"{time.process_time() - began:.1f} s CPU"
    size = sum(path.stat().st_size for path in folder.iterdir())
    yield "bytes an execution", "<= 250", f"{size / max(total, 1):.0f}"
    middle = next(iter(answer(index, "").page(limit=1).ids))
    commit = ledger.get(middle).code_commit or ""
    for name, text, sort in QUERIES:
        query = text.format(commit=commit[:8], digest=digest(999, "in").hex()[:16])
        hits = page_of(index, query, sort)
        took = milliseconds(lambda query=query, sort=sort: page_of(index, query, sort))
        yield f"{name}: {hits:,} hits", "<= 25 ms", shown(took)
    yield "Q12 facets of four fields", "<= 40 ms", shown(milliseconds(lambda: facets_of(index)))
    for what, by, per in STATISTICS:
        took = milliseconds(lambda by=by, per=per: statistics_of(index, by, per), 5)
        yield f"statistics, {what}: {statistics_of(index, by, per):,} groups", "<= 2,000 ms", shown(took)
    took, memory = fresh(url, folder)
    yield "first query of a new process", "<= 300 ms, <= 200 MB", f"{shown(took)}, {memory} MB"
    changes = entries(200)
    writes, reads = [], []
    for one in changes:
        writes.append(milliseconds(lambda one=one: write(ledger, [one]), 1))
        reads.append(milliseconds(lambda one=one: newest_of(index, one.row.id), 1))
    found, written = (Taken(*map(median, zip(*taken, strict=True))) for taken in (reads, writes))
    yield "a new execution is found", "<= 1 s", f"{shown(found)}; its write {shown(written)}"
    name, query, sort = QUERIES[7]
    yield f"{name}, with these changes", "<= 2 x", shown(milliseconds(lambda: page_of(index, query, sort)))
    yield (
        "largest resident memory, with the build",
        "",
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB",
    )


def main() -> None:
    """Print a table."""
    many = int(sys.argv[1]) if len(sys.argv) > 1 else MANY
    # Not at the top: it would add to the memory of the new process that is measured.
    from bench_ledger import listing  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        url = sys.argv[2] if len(sys.argv) > 2 else f"sqlite:///{folder}/ledger.db"
        place = Path(sys.argv[3]) if len(sys.argv) > 3 else Path(folder) / "index"
        with Ledger.open(url) as ledger:
            if not ledger.list(limit=1).rows:
                began = time.process_time()
                fill(ledger, many)
                print(f"wrote {many:,} executions: {time.process_time() - began:.0f} s CPU", file=sys.stderr)
            print("| search | to reach | measured |\n|---|---|---|")
            for row in measure(ledger, url, place, many):
                print(f"| {' | '.join(row)} |", flush=True)
            print(f"| {' | '.join(listing(folder, url))} |")


if __name__ == "__main__":
    main()
