"""Replace the rows of each step of a metric by one row with count, first, last, min and max."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby, islice
from operator import itemgetter

import sqlalchemy as sa
from alembic import op

from prefect_executions.ledger.values import summary

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_NUMBERS = ("first", "last", "min", "max")
_EXACT = tuple(f"{name}_exact" for name in _NUMBERS)
_BATCH = 10_000


def upgrade() -> None:
    """Summarize the steps that the ledger has."""
    op.execute(sa.text("CREATE TEMPORARY TABLE old_metrics AS SELECT * FROM metrics"))
    op.drop_table("metrics")
    metrics = op.create_table(
        "metrics",
        sa.Column("execution", _KEY, nullable=False),
        sa.Column("position", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.Double) for name in _NUMBERS),
        *(sa.Column(name, sa.Text) for name in _EXACT),
        sa.PrimaryKeyConstraint("execution", "position", name="metrics_pkey"),
        sa.ForeignKeyConstraint(["execution"], ["executions.key"], name="metrics_execution_fkey", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
    summaries = _summaries(op.get_bind())
    while rows := list(islice(summaries, _BATCH)):
        op.bulk_insert(metrics, rows)
    op.drop_table("old_metrics")


def _summaries(connection: sa.Connection) -> Iterator[dict[str, object]]:
    steps = sa.text("SELECT execution, name, number, exact FROM old_metrics ORDER BY execution, position")
    result = connection.execute(steps, execution_options={"yield_per": _BATCH})
    for execution, group in groupby(result, key=itemgetter(0)):
        series: dict[str, list[int | float]] = {}
        for _, name, number, exact in group:
            series.setdefault(name, []).append(_value(number, exact))
        for position, (name, values) in enumerate(series.items()):
            columns = ("count", *_NUMBERS, *_EXACT)
            summarized = dict(zip(columns, summary(values), strict=True))
            yield {"execution": execution, "position": position, "name": name, **summarized}


def _value(number: float | None, exact: str | None) -> int | float:
    if exact == "NaN" or number is None:
        return math.nan
    return number if exact is None else int(exact, 0)
