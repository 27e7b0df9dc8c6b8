"""Executions that use each other's files, for tests and benchmarks of lineage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256

from ledgers import SEAL, an_id
from prefect_executions.executions.record import ExecutionRecord, Relative, Usage
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.lifecycle.history import OutputFile
from prefect_executions.lifecycle.status import Status
from records import NOON, a_job_status, a_record, a_request, a_staged_input, an_instance


def digest(name: object) -> str:
    """Return the digest of the file that execution *name* makes."""
    return sha256(str(name).encode()).hexdigest()


def an_execution(
    number: int, uses: Iterable[object] = (), *, relatives: Iterable[Relative] = (), makes: object = None
) -> ExecutionRecord:
    """Return execution *number*, which began so many seconds after noon and uses the files of others."""
    execution_id = an_id(number)
    output = OutputFile(
        path=f"outputs/{number}.csv", sha256=digest(number if makes is None else makes), size=10, media_type="text/csv"
    )
    files = tuple(a_staged_input(f"from_{name}", sha256=digest(name)) for name in uses)
    job_status = a_job_status(
        Status.COMPLETED, execution_id=execution_id, begins=NOON + timedelta(seconds=number), outputs=[output]
    )
    return replace(
        a_record(job_status=job_status),
        request=a_request(execution_id=execution_id, files=files, relatives=tuple(relatives)),
        instance=an_instance(usage=Usage(cpu_seconds=2.0)),
    )


def record_graph(ledger: Ledger, graph: Mapping[int, Iterable[object]]) -> None:
    """Record executions that use the files of others, which *graph* names."""
    with ledger.bulk() as bulk:
        for number, uses in graph.items():
            bulk.record(an_execution(number, uses), archive="archived", manifest_sha256=SEAL)


def diamonds(depth: int) -> dict[int, list[object]]:
    """Return *depth* diamonds one after the other: 0 → 1, 2 → 3 → 4, 5 → 6 …"""
    graph: dict[int, list[object]] = {0: []}
    for level in range(depth):
        top = 3 * level
        graph |= {top + 1: [top], top + 2: [top], top + 3: [top + 1, top + 2]}
    return graph
