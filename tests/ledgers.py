"""Ledgers for tests: a fresh SQLite file, or a fresh database of a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from postgres import a_fresh_database
from prefect_executions.executions.record import (
    ExecutionRecord,
)
from prefect_executions.lifecycle.status import Status
from records import NOON, a_job_status, a_method, a_record

KINDS = ("sqlite", "postgresql")
SEAL = "5e" * 32

Need = Callable[[str, str], str]


@contextmanager
def a_fresh_url(kind: str, need: Need, folder: Path) -> Iterator[str]:
    """Yield the URL of a ledger that nobody has made yet."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'new' / 'ledger.db'}"
        return
    server = need("EXECUTIONS_TEST_POSTGRES", "a PostgreSQL server (.ci/services/postgres.sh)")
    with a_fresh_database(server, "ledger") as url:
        yield url


def as_read(record: ExecutionRecord) -> ExecutionRecord:
    """Return *record* as its bundle gives it back."""
    return ExecutionRecord.from_json(record.to_json())


def numbered(
    number: int, *, end: Status = Status.COMPLETED, method: str = "segment-coins", **told: Any
) -> ExecutionRecord:
    """Return execution *number*, created that many seconds after noon."""
    job_status = a_job_status(
        end, execution_id=an_id(number), method_id=method, begins=NOON + timedelta(seconds=number)
    )
    return a_record(job_status=job_status, method=a_method(id=method), **told)


def an_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"
