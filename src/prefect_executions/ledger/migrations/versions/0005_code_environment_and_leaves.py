"""Add columns for the code's repository and the environment, and the leaves of nested values.

What the ledger knows fills them: the repository is in the Method's descriptor, and the nested
values are JSON. Python, GPU and CUDA are in the bundles; a rebuild reads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from alembic import op

from prefect_executions.ledger.values import clean, leaf_rows

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TEXTS = ("branch", "remote", "author", "subject")
_ENVIRONMENT = ("python_version", "gpu", "gpu_driver", "cuda_version")
_NESTED = ("params", "inputs")
_BATCH = 10_000


def upgrade() -> None:
    """Add the columns and the table, and fill them from the ledger's own rows."""
    for name in (*(f"code_{text}" for text in _TEXTS), *_ENVIRONMENT):
        op.add_column("executions", sa.Column(name, sa.Text))
    op.add_column("executions", sa.Column("code_dirty", sa.Boolean))
    leaves = op.create_table(
        "leaves",
        sa.Column("execution", _KEY, nullable=False),
        sa.Column("position", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("json", sa.Text),
        sa.Column("number", sa.Double),
        sa.Column("text", sa.Text),
        sa.Column("truth", sa.Boolean),
        sa.PrimaryKeyConstraint("execution", "position", name="leaves_pkey"),
        sa.ForeignKeyConstraint(["execution"], ["executions.key"], name="leaves_execution_fkey", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
    _fill_code(op.get_bind())
    found = _leaves(op.get_bind())
    while rows := list(islice(found, _BATCH)):
        op.bulk_insert(leaves, rows)


def _fill_code(connection: sa.Connection) -> None:
    assignments = ", ".join(f"code_{name} = :{name}" for name in (*_TEXTS, "dirty"))
    update = sa.text(f"UPDATE executions SET {assignments} WHERE method = :method")  # noqa: S608  names above
    descriptor_of = sa.text("SELECT descriptor FROM methods WHERE key = :method")
    for (method,) in connection.execute(sa.text("SELECT key FROM methods")).all():
        descriptor = connection.execute(descriptor_of, {"method": method}).scalar_one()
        repository = (json.loads(descriptor).get("code") or {}).get("repository") or {}
        texts = {name: text and clean(text) for name in _TEXTS for text in [repository.get(name)]}
        connection.execute(update, {**texts, "dirty": repository.get("dirty"), "method": method})


def _leaves(connection: sa.Connection) -> Iterator[dict[str, Any]]:
    selects = [f"SELECT execution, position, '{table}' AS source, name, json FROM {table}" for table in _NESTED]  # noqa: S608  names above
    nested = " UNION ALL ".join(f"{select} WHERE json LIKE '{{%'" for select in selects)
    ordered = sa.text(f"{nested} ORDER BY execution, source DESC, position")
    rows = connection.execute(ordered, execution_options={"yield_per": _BATCH})
    for execution, group in groupby(rows, key=itemgetter(0)):
        values: Mapping[str, dict[str, Any]] = {table: {} for table in _NESTED}
        for _, _, source, name, text in group:
            with suppress(ValueError):  # an integer of more than 4,300 digits
                values[source][name] = json.loads(text)
        for position, columns in enumerate(leaf_rows(values)):
            names = ("source", "name", "json", "number", "text", "truth")
            yield {"execution": execution, "position": position, **dict(zip(names, columns, strict=True))}
