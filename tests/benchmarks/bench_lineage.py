"""How long lineage takes: a diamond of depth 10, a chain of 1,000, the impact of a file with 10,000 descendants.

Baseline in the same run: reading the executions of the result by their ids, 500 with one statement for each table.

usage: python tests/benchmarks/bench_lineage.py [LEDGER URL]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

sys.path.insert(0, str(Path(__file__).parents[1]))

from ledgers import an_id
from lineages import diamonds, digest, record_graph
from prefect_executions.executions.lineage import Direction, Lineage, run_order
from prefect_executions.ledger.ledger import Ledger

ALL = 1 << 30
DOWN = (Direction.DOWN,)


def shifted(graph: dict[int, list[object]], by: int) -> dict[int, list[object]]:
    """Return *graph* with other numbers."""
    moved = {number: [name + by if isinstance(name, int) else name for name in uses] for number, uses in graph.items()}
    return {number + by: uses for number, uses in moved.items()}


def milliseconds(act: Callable[[], object], times: int = 15, clock: Callable[[], float] = perf_counter) -> float:
    """Return the median time of *act*."""
    taken = []
    for _ in range(times):
        began = clock()
        act()
        taken.append(clock() - began)
    return median(taken) * 1000


def impact_of(ledger: Ledger, sha256: str) -> Lineage:
    """Return what `executions impact` reads, and sort it as its plan."""
    found = ledger.lineage_of_file(sha256, DOWN, depth=ALL, most=ALL)
    run_order(found.data[0])
    return found


def main(url: str) -> None:
    """Record the graphs and print a table."""
    with Ledger.open(url) as ledger:
        record_graph(ledger, diamonds(10))
        record_graph(ledger, shifted({0: [], **{number: [number - 1] for number in range(1, 1000)}}, 1_000))
        # 100 executions use the file; each has a file that 99 others use.
        fan = {number: ["bad"] for number in range(100)}
        fan |= {100 + number: [number % 100] for number in range(9_900)}
        record_graph(ledger, shifted(fan, 10_000))
        measures: list[tuple[str, int, Callable[[], Lineage]]] = [
            ("diamond of depth 10, down", 10, lambda: ledger.lineage(an_id(0), DOWN, depth=99, most=1_000)),
            ("chain of 1,000, down", 50, lambda: ledger.lineage(an_id(1_000), DOWN, depth=ALL, most=ALL)),
            ("impact of a file with 10,000 descendants", 500, lambda: impact_of(ledger, digest("bad"))),
        ]
        for what, reach, act in measures:
            ids = [node.id for node in act().nodes.values()]
            took, cpu = milliseconds(act), milliseconds(act, clock=process_time)
            parts = [ids[first : first + 500] for first in range(0, len(ids), 500)]
            base = milliseconds(lambda parts=parts: [ledger.batch(part) for part in parts], 5)  # type: ignore[misc]
            compared = f"{took / base:.2f} times the baseline"
            print(f"{what}: {len(ids):,} executions, {took:.1f} ms (at most {reach} ms), CPU {cpu:.1f} ms, {compared}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{folder}/ledger.db")
