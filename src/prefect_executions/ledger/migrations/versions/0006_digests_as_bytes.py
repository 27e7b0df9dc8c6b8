"""Store digests as 32 bytes; the digest of a Method's descriptor stays text, because there are few of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

from prefect_executions.ledger.values import digest_bytes

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_OF_EXECUTIONS = ("code_sha256", "manifest_sha256")


def upgrade() -> None:
    """Convert the digests of executions and files; a text that is not a digest becomes NULL."""
    if op.get_bind().dialect.name == "postgresql":
        _in_postgresql()
    else:
        _in_sqlite()


def _in_postgresql() -> None:
    of_executions = [("executions", name) for name in _OF_EXECUTIONS]
    for table, column in [*of_executions, ("input_files", "sha256"), ("outputs", "sha256")]:
        # The CASE keeps decode from a text that is not hexadecimal.
        digest = f"CASE WHEN {column} ~ '^[0-9a-f]{{64}}$' THEN decode({column}, 'hex') END"
        op.execute(sa.text(f"ALTER TABLE {table} ALTER COLUMN {column} TYPE bytea USING {digest}"))


def _in_sqlite() -> None:
    # SQLite before 3.41 lacks unhex().
    connection: Any = op.get_bind().connection.driver_connection
    connection.create_function("digest_bytes", 1, digest_bytes, deterministic=True)
    for name in _OF_EXECUTIONS:
        # The table itself must stay: dropping it would delete the rows that refer to it.
        op.execute(sa.text(f"ALTER TABLE executions RENAME COLUMN {name} TO old_{name}"))
        op.add_column("executions", sa.Column(name, sa.LargeBinary))
        op.execute(sa.text(f"UPDATE executions SET {name} = digest_bytes(old_{name})"))  # noqa: S608  names above
        op.execute(sa.text(f"ALTER TABLE executions DROP COLUMN old_{name}"))
    _convert_files("input_files", ("input", "name", "sha256", "size", "origin", "media_type"))
    _convert_files("outputs", ("path", "sha256", "size", "media_type"))


def _column(name: str) -> sa.Column[Any]:
    types: dict[str, sa.types.TypeEngine[Any]] = {"sha256": sa.LargeBinary(), "size": sa.BigInteger()}
    return sa.Column(name, types.get(name, sa.Text()), nullable=name == "size")


def _convert_files(table: str, columns: Sequence[str]) -> None:
    op.execute(sa.text(f"CREATE TEMPORARY TABLE old_{table} AS SELECT * FROM {table}"))  # noqa: S608  names above
    op.drop_table(table)
    op.create_table(
        table,
        sa.Column("execution", sa.Integer, nullable=False),
        sa.Column("position", sa.Integer, nullable=False, autoincrement=False),
        *map(_column, columns),
        sa.PrimaryKeyConstraint("execution", "position", name=f"{table}_pkey"),
        sa.ForeignKeyConstraint(["execution"], ["executions.key"], name=f"{table}_execution_fkey", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
    names = ["execution", "position", *columns]
    values = ["digest_bytes(sha256)" if name == "sha256" else name for name in names]
    copy = f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(values)} FROM old_{table}"  # noqa: S608  names above
    op.execute(sa.text(copy))
    op.drop_table(f"old_{table}")
    op.create_index(f"{table}_sha256_idx", table, ["sha256"])
