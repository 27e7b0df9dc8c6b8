"""The ledger's tables as SQLAlchemy metadata, with which Alembic compares a real database.

`queries` has the SQL statements and does not import this module: importing SQLAlchemy
takes 0.4 s, more than `executions list` may take. A test keeps the tables, the
migrations and the statements consistent.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Double, ForeignKey, Index, Integer, MetaData, Table, Text, text
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine

METADATA = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    }
)

# SQLite generates keys only for a column whose type is exactly INTEGER.
_KEY: TypeEngine[int] = BigInteger().with_variant(Integer(), "sqlite")
# Ids sort by code point in both databases, so that cursors and prefix searches behave identically.
_ID: TypeEngine[str] = Text().with_variant(Text(collation="C"), "postgresql")


def _time(name: str, *, nullable: bool = True) -> Column[int]:
    """Return a column for a time in microseconds since 1970 in UTC, exact in both databases."""
    return Column(name, BigInteger, nullable=nullable)


def _part(name: str, *columns: SchemaItem) -> Table:
    """Return a table with several rows per execution, in the order of its documents."""
    return Table(
        name,
        METADATA,
        Column("execution", _KEY, ForeignKey("executions.key", ondelete="CASCADE"), primary_key=True),
        Column("position", Integer, primary_key=True, autoincrement=False),
        *columns,
        sqlite_with_rowid=False,  # stores the rows of one execution together
    )


def _value() -> tuple[Column[str], Column[str], Column[float], Column[str], Column[bool]]:
    """Return the columns of a JSON value: its JSON text, and its value in the column of its type.

    `number` is for comparisons; `json` has the exact number.
    """
    return (
        Column("name", Text, nullable=False),
        Column("json", Text),
        Column("number", Double),
        Column("text", Text),
        Column("truth", Boolean),
    )


methods = Table(
    "methods",
    METADATA,
    Column("key", _KEY, primary_key=True),
    Column("sha256", _ID, nullable=False, unique=True),
    Column("id", _ID, nullable=False),
    Column("version", _ID, nullable=False),
    Column("title", Text, nullable=False),
    Column("type", Text),
    Column("description", Text),
    Column("descriptor", Text, nullable=False),
)

executions = Table(
    "executions",
    METADATA,
    Column("key", _KEY, primary_key=True),
    Column("method", _KEY, ForeignKey("methods.key"), nullable=False),
    Column("id", _ID, nullable=False, unique=True),
    Column("method_id", _ID, nullable=False),
    Column("method_version", _ID, nullable=False),
    Column("method_type", Text),
    Column("status", Text, nullable=False),
    Column("reason", Text),
    _time("first_known", nullable=False),
    _time("created"),
    _time("scheduled"),
    _time("started"),
    _time("finished"),
    _time("updated", nullable=False),
    Column("duration", BigInteger),
    Column("attempt", BigInteger),
    Column("agent", Text),
    Column("infrastructure", Text, nullable=False),
    Column("work_pool", Text),
    Column("worker", Text),
    Column("hostname", Text),
    Column("flow_run_name", Text),
    Column("deployment_id", Text),
    Column("deployment_name", Text),
    Column("code_commit", Text),
    Column("code_sha256", Text),
    Column("message", Text),
    Column("progress", Integer),
    Column("partial", Boolean),
    Column("cached_from", Text),
    Column("archive", Text, nullable=False),
    Column("manifest_sha256", Text),
    _time("imported"),
    Column("origin", Text),
    # One index for each filter of "newest first", so that no query sorts.
    Index("executions_newest_idx", "first_known", "id"),
    Index("executions_status_newest_idx", "status", "first_known", "id"),
    Index("executions_method_newest_idx", "method_id", "first_known", "id"),
    Index("executions_method_status_newest_idx", "method_id", "status", "first_known", "id"),
    Index("executions_descriptor_idx", "method", "first_known"),
    Index(
        "executions_pending_idx",
        "first_known",
        "id",
        sqlite_where=text("archive = 'pending'"),
        postgresql_where=text("archive = 'pending'"),
    ),
)

inputs = _part("inputs", *_value())

input_files = _part(
    "input_files",
    Column("input", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("sha256", _ID, nullable=False, index=True),
    Column("size", BigInteger),
    Column("origin", Text, nullable=False),
    Column("media_type", Text, nullable=False),
)

outputs = _part(
    "outputs",
    Column("path", Text, nullable=False),
    Column("sha256", _ID, nullable=False, index=True),
    Column("size", BigInteger),
    Column("media_type", Text, nullable=False),
)

params = _part("params", *_value())

metrics = _part(
    "metrics",
    Column("name", Text, nullable=False),
    Column("number", Double),
    Column("exact", Text),
    Column("step", BigInteger),
    _time("time", nullable=False),
)

history = _part(
    "history",
    Column("kind", Text, nullable=False),
    Column("status", Text, nullable=False),
    _time("time", nullable=False),
    Column("observer", Text, nullable=False),
    Column("attempt", BigInteger),
    Column("prefect_type", Text),
    Column("prefect_name", Text),
    Column("prefect_id", Text),
    Column("reason", Text),
    Column("progress", Double),
    Column("message", Text),
)

tags = _part("tags", Column("tag", Text, nullable=False))

relatives = _part(
    "relatives",
    Column("other", _ID, nullable=False, index=True),
    Column("relation", Text, nullable=False),
)
