"""How long the ledger takes at 100,000 executions: the newest 50, one record, a rebuild.

usage: python tests/benchmarks/bench_ledger.py [EXECUTIONS] [LEDGER URL]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from statistics import median
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[1]))

from ledgers import SEAL, an_id
from prefect_executions.errors import AmbiguousIdError
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.lifecycle.status import Status
from prefect_executions.query.filter import Filter
from records import NOON, a_job_status, a_method, a_record

MANY = 100_000
RARE = 1000  # one execution in so many is cancelled


def records(many: int) -> Iterator[ExecutionRecord]:
    """Yield executions of 20 Methods, a tenth of them failed, each with all kinds of rows."""
    methods = [a_method(id=f"method-{number}") for number in range(20)]
    ends = {end: a_job_status(end) for end in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)}
    template = a_record()
    for number in range(many):
        end = Status.CANCELLED if number % RARE == 0 else Status.FAILED if number % 10 == 0 else Status.COMPLETED
        created = NOON + timedelta(seconds=number)
        told = ends[end].model_copy(update={"job_id": an_id(number), "created": created})
        yield replace(template, method=methods[number % 20], job_status=told)


def milliseconds(act: Callable[[], object], times: int = 31) -> float:
    """Return the median time of *act*."""
    taken = []
    for _ in range(times):
        began = perf_counter()
        act()
        taken.append(perf_counter() - began)
    return median(taken) * 1000


def opened_and_listed(url: str) -> None:
    """Do what `executions list` asks of the ledger, from nothing to rows."""
    with Ledger.open(url) as ledger:
        ledger.list(limit=50)


def measure(url: str, many: int) -> Iterator[tuple[str, str, str]]:
    """Yield measure, what is to be reached, and what was measured."""
    began = perf_counter()
    with Ledger.open(url) as ledger, ledger.bulk() as bulk:
        for record in records(many):
            bulk.record(record, archive="archived", manifest_sha256=SEAL)
    yield f"rebuild of {many:,} executions, a second", "thousands", f"{many / (perf_counter() - began):,.0f}"
    yield "open and list the newest 50", "≤ 20 ms", f"{milliseconds(lambda: opened_and_listed(url)):.2f} ms"
    with Ledger.open(url) as ledger:
        rare = Filter(status=(Status.CANCELLED, Status.FAILED), method="method-0")
        middle = ledger.list(Filter(until=NOON + timedelta(seconds=many // 2)), limit=1).after
        asked: list[tuple[str, str, Callable[[], object]]] = [
            ("list, page in the middle", "≤ 20 ms", lambda: ledger.list(after=middle)),
            ("list, one rare status", "≤ 20 ms", lambda: ledger.list(Filter(status=(Status.CANCELLED,)))),
            (
                "list, two statuses of one Method",
                "≤ 20 ms",
                lambda: ledger.list(rare),
            ),
            ("find an ambiguous prefix", "", lambda: ambiguous(ledger)),
            ("methods", "", ledger.methods),
        ]
        for name, reach, act in asked:
            yield name, reach, f"{milliseconds(act):.2f} ms"
        coming = iter(list(records(501)))
        yield (
            "record, a new row for an old one",
            "< 2 ms",
            f"{milliseconds(lambda: again(ledger, next(coming)), 500):.2f} ms",
        )
        new = iter(
            [replace(r, job_status=r.job_status.model_copy(update={"job_id": f"new-{r.id}"})) for r in records(501)]
        )
        yield (
            "record, an execution that is new",
            "< 2 ms",
            f"{milliseconds(lambda: again(ledger, next(new)), 500):.2f} ms",
        )


def ambiguous(ledger: Ledger) -> None:
    """Ask for a prefix that all ids begin with."""
    try:
        ledger.find("0000")
    except AmbiguousIdError:
        return
    raise AssertionError("a prefix of all ids fits one only")


def again(ledger: Ledger, record: ExecutionRecord) -> None:
    """Record as a hook does."""
    ledger.record(record, archive="pending", manifest_sha256=SEAL)


def listing(home: str, url: str, rounds: int = 15) -> tuple[str, str, str]:
    """Return the CPU time of `executions list` against `executions --help`: fresh processes, interleaved."""
    command = [sys.executable, "-c", "from prefect_executions.cli.app import main; raise SystemExit(main())"]
    environment = {**os.environ, "EXECUTIONS_HOME": home, "EXECUTIONS_LEDGER": url}

    def seconds(*words: str) -> float:
        began = os.times()
        subprocess.run(
            [*command, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        ended = os.times()
        return ended.children_user - began.children_user + ended.children_system - began.children_system

    pairs = [(seconds("--help"), seconds("list", "--limit", "50")) for _ in range(rounds)]
    base, ours = (median(column) for column in zip(*pairs, strict=True))
    return "`executions list` against `--help`", "<= 1.5 x", f"{ours / base:.2f} x ({ours:.2f} s, {base:.2f} s CPU)"


def main() -> None:
    """Print a table."""
    many = int(sys.argv[1]) if len(sys.argv) > 1 else MANY
    with tempfile.TemporaryDirectory() as folder:
        url = sys.argv[2] if len(sys.argv) > 2 else f"sqlite:///{folder}/ledger.db"
        print("| ledger | to reach | measured |\n|---|---|---|")
        for row in measure(url, many):
            print(f"| {' | '.join(row)} |", flush=True)
        if url.startswith("sqlite"):
            print(f"| {' | '.join(listing(folder, url))} |", flush=True)
            size = Path(folder, "ledger.db").stat().st_size
            print(f"| size, bytes an execution | |  {size / many:,.0f} |")


if __name__ == "__main__":
    main()
