"""The ledger's tables as SQLAlchemy knows them: what Alembic compares a real database with.

The statements that read and write them are in `statements`, because importing
SQLAlchemy costs 0.4 s and `executions list` has less than that. A test holds
these tables, the migrations and the statements together.
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

# SQLite numbers rows by itself only in a column that is exactly INTEGER.
_KEY: TypeEngine[int] = BigInteger().with_variant(Integer(), "sqlite")
# Ids sort by code points in both databases, so that a cursor and a prefix mean the same.
_ID: TypeEngine[str] = Text().with_variant(Text(collation="C"), "postgresql")


def _time(name: str, *, nullable: bool = True) -> Column[int]:
    """Return a column of a time: microseconds since 1970 in UTC, exact in both databases."""
    return Column(name, BigInteger, nullable=nullable)


def _part(name: str, *columns: SchemaItem) -> Table:
    """Return a table of what an execution has several of, in the order of its documents."""
    return Table(
        name,
        METADATA,
        Column("execution", _KEY, ForeignKey("executions.key", ondelete="CASCADE"), primary_key=True),
        Column("position", Integer, primary_key=True, autoincrement=False),
        *columns,
        sqlite_with_rowid=False,  # the rows of one execution lie together
    )


def _value() -> tuple[Column[str], Column[str], Column[float], Column[str], Column[bool]]:
    """Return the columns of a JSON value: its text, and itself in the column of its type.

    A number is in `number` to be compared, and exactly in `json`.
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
    # One index for each way to ask for the newest, so that none of them sorts.
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
