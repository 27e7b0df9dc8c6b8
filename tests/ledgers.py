"""Ledgers for tests: a fresh SQLite file, or a fresh database of a real PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Boolean, NullPool, create_engine, inspect, text

from postgres import a_fresh_database
from prefect_executions.executions.record import (
    ExecutionRecord,
)
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.ledger.migrate import MIGRATIONS, SCHEMA, alembic_lock
from prefect_executions.ledger.rows import ImportOrigin
from prefect_executions.lifecycle.status import Status
from records import NOON, a_job_status, a_method, a_record

KINDS = ("sqlite", "postgresql")
SEAL = "5e" * 32

OLD = json.loads(Path(__file__).with_name("data").joinpath("ledger_0002.json").read_text())
"""Four executions with their rows, as the package of revision 0002 wrote them to SQLite."""

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


def an_old_ledger(url: str, revision: str) -> None:
    """Make the tables of *revision*, 0001 or 0002, with the rows that the package of that time wrote."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
            connection.execute(text(f"SET search_path TO {SCHEMA}"))
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(MIGRATIONS))
        with alembic_lock():  # a background thread of an earlier test may make a ledger
            command.upgrade(config, revision)
        for name in ("methods", "executions", *sorted(OLD["tables"].keys() - {"methods", "executions"})):
            columns = {column["name"]: column["type"] for column in inspect(connection).get_columns(name)}
            insert = text(f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({', '.join(f':{c}' for c in columns)})")  # noqa: S608  a name above
            for values in OLD["tables"][name]["rows"]:
                row = dict(zip(OLD["tables"][name]["columns"], values, strict=True))
                truths = [c for c, kind in columns.items() if isinstance(kind, Boolean) and row[c] is not None]
                connection.execute(insert, row | {c: bool(row[c]) for c in truths})


def record_old(ledger: Ledger) -> None:
    """Record the executions of the old ledgers, as a rebuild does."""
    for old in OLD["executions"]:
        documents = {name: json.dumps(document).encode() for name, document in old["documents"].items()}
        imported = old.get("imported")
        ledger.record(
            ExecutionRecord.from_json(documents),
            archive=old["archive"],
            manifest_sha256=old.get("manifest_sha256"),
            imported=imported and ImportOrigin(at=datetime.fromisoformat(imported["at"]), origin=imported["origin"]),
        )
