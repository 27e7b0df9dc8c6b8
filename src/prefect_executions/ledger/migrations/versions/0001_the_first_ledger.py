"""Create the tables of the first ledger."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create the tables methods and executions, and the tables with several rows per execution."""
    _make_methods()
    _make_executions()
    _make_values("inputs")
    _make_part(
        "input_files",
        sa.Column("input", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("sha256", _ID, nullable=False),
        sa.Column("size", sa.BigInteger),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("media_type", sa.Text, nullable=False),
    )
    op.create_index("input_files_sha256_idx", "input_files", ["sha256"])
    _make_part(
        "outputs",
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("sha256", _ID, nullable=False),
        sa.Column("size", sa.BigInteger),
        sa.Column("media_type", sa.Text, nullable=False),
    )
    op.create_index("outputs_sha256_idx", "outputs", ["sha256"])
    _make_values("params")
    _make_part(
        "metrics",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("number", sa.Double),
        sa.Column("exact", sa.Text),
        sa.Column("step", sa.BigInteger),
        sa.Column("time", sa.BigInteger, nullable=False),
    )
    _make_history()
    _make_part("tags", sa.Column("tag", sa.Text, nullable=False))
    _make_part(
        "relatives",
        sa.Column("other", _ID, nullable=False),
        sa.Column("relation", sa.Text, nullable=False),
    )
    op.create_index("relatives_other_idx", "relatives", ["other"])


def _make_methods() -> None:
    op.create_table(
        "methods",
        sa.Column("key", _KEY, nullable=False),
        sa.Column("sha256", _ID, nullable=False),
        sa.Column("id", _ID, nullable=False),
        sa.Column("version", _ID, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("type", sa.Text),
        sa.Column("description", sa.Text),
        sa.Column("descriptor", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("key", name="methods_pkey"),
        sa.UniqueConstraint("sha256", name="methods_sha256_key"),
    )


def _make_executions() -> None:
    op.create_table(
        "executions",
        sa.Column("key", _KEY, nullable=False),
        sa.Column("method", _KEY, nullable=False),
        sa.Column("id", _ID, nullable=False),
        sa.Column("method_id", _ID, nullable=False),
        sa.Column("method_version", _ID, nullable=False),
        sa.Column("method_type", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("first_known", sa.BigInteger, nullable=False),
        sa.Column("created", sa.BigInteger),
        sa.Column("scheduled", sa.BigInteger),
        sa.Column("started", sa.BigInteger),
        sa.Column("finished", sa.BigInteger),
        sa.Column("updated", sa.BigInteger, nullable=False),
        sa.Column("duration", sa.BigInteger),
        sa.Column("attempt", sa.BigInteger),
        sa.Column("agent", sa.Text),
        sa.Column("infrastructure", sa.Text, nullable=False),
        *(sa.Column(name, sa.Text) for name in ("work_pool", "worker", "hostname", "flow_run_name")),
        *(sa.Column(name, sa.Text) for name in ("deployment_id", "deployment_name", "code_commit", "code_sha256")),
        sa.Column("message", sa.Text),
        sa.Column("progress", sa.Integer),
        sa.Column("partial", sa.Boolean),
        sa.Column("cached_from", sa.Text),
        sa.Column("archive", sa.Text, nullable=False),
        sa.Column("manifest_sha256", sa.Text),
        sa.PrimaryKeyConstraint("key", name="executions_pkey"),
        sa.UniqueConstraint("id", name="executions_id_key"),
        sa.ForeignKeyConstraint(["method"], ["methods.key"], name="executions_method_fkey"),
    )
    newest = ["first_known", "id"]
    op.create_index("executions_newest_idx", "executions", newest)
    op.create_index("executions_status_newest_idx", "executions", ["status", *newest])
    op.create_index("executions_method_newest_idx", "executions", ["method_id", *newest])
    op.create_index("executions_method_status_newest_idx", "executions", ["method_id", "status", *newest])
    op.create_index("executions_descriptor_idx", "executions", ["method", "first_known"])
    pending = sa.text("archive = 'pending'")
    op.create_index("executions_pending_idx", "executions", newest, sqlite_where=pending, postgresql_where=pending)


def _make_history() -> None:
    _make_part(
        "history",
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("observer", sa.Text, nullable=False),
        sa.Column("attempt", sa.BigInteger),
        sa.Column("prefect_type", sa.Text),
        sa.Column("prefect_name", sa.Text),
        sa.Column("prefect_id", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("progress", sa.Double),
        sa.Column("message", sa.Text),
    )


def _make_values(name: str) -> None:
    _make_part(
        name,
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("json", sa.Text),
        sa.Column("number", sa.Double),
        sa.Column("text", sa.Text),
        sa.Column("truth", sa.Boolean),
    )


def _make_part(name: str, *columns: sa.Column[Any]) -> None:
    op.create_table(
        name,
        sa.Column("execution", _KEY, nullable=False),
        sa.Column("position", sa.Integer, nullable=False, autoincrement=False),
        *columns,
        sa.PrimaryKeyConstraint("execution", "position", name=f"{name}_pkey"),
        sa.ForeignKeyConstraint(["execution"], ["executions.key"], name=f"{name}_execution_fkey", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
