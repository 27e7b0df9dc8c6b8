"""The ledger's tables as SQLAlchemy metadata, with which Alembic compares a real database.

The columns come from `columns`; keys, indexes and what differs between the two databases are defined here.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)
from sqlalchemy.types import TypeEngine

from prefect_executions.ledger.columns import CHANGES, EXECUTIONS, METHODS, PARTS, ColumnSpec, ColumnType

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

_SQL_TYPES: dict[ColumnType, TypeEngine[Any]] = {
    ColumnType.ID: Text().with_variant(Text(collation="C"), "postgresql"),
    ColumnType.TEXT: Text(),
    ColumnType.SMALL: Integer(),
    ColumnType.INTEGER: BigInteger(),
    ColumnType.NUMBER: Double(),
    ColumnType.TRUTH: Boolean(),
    ColumnType.DIGEST: LargeBinary(),
    ColumnType.TIME: BigInteger(),
    ColumnType.DURATION: BigInteger(),
}


def _columns(specs: tuple[ColumnSpec, ...]) -> list[Column[Any]]:
    return [
        Column(name, _SQL_TYPES[kind], nullable=nullable, unique=unique or None, index=indexed or None)
        for name, kind, nullable, unique, indexed in specs
    ]


methods = Table("methods", METADATA, Column("key", _KEY, primary_key=True), *_columns(METHODS))

executions = Table(
    "executions",
    METADATA,
    Column("key", _KEY, primary_key=True),
    Column("method", _KEY, ForeignKey("methods.key"), nullable=False),
    *_columns(EXECUTIONS),
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

for _name, _specs in PARTS.items():
    Table(
        _name,
        METADATA,
        Column("execution", _KEY, ForeignKey("executions.key", ondelete="CASCADE"), primary_key=True),
        Column("position", Integer, primary_key=True, autoincrement=False),
        *_columns(_specs),
        sqlite_with_rowid=False,  # stores the rows of one execution together
    )

Table("changes", METADATA, Column("number", _KEY, primary_key=True, autoincrement=False), *_columns(CHANGES))

# Its only row has the number of the newest change.
Table(
    "change_counter",
    METADATA,
    Column("key", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
)
