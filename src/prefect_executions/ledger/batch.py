"""A batch of executions with everything that a search needs of them, read with one statement per table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from prefect_executions.ledger.database import Session
from prefect_executions.ledger.queries import PARTS
from prefect_executions.ledger.rows import ROW_COLUMNS

_SEARCHED = ("inputs", "input_files", "outputs", "params", "leaves", "metrics", "tags", "relatives")

BATCH_COLUMNS = ("key", "method_title", *ROW_COLUMNS)
"""The columns of `Batch.executions`."""

PART_COLUMNS = {table: ("execution", *PARTS[table]) for table in _SEARCHED}
"""The columns of `Batch.parts` by table; `execution` is the key of the execution."""

_EXECUTIONS = (
    f"SELECT e.key, m.title, {', '.join(f'e.{column}' for column in ROW_COLUMNS)} "  # noqa: S608  constant names
    "FROM executions AS e JOIN methods AS m ON m.key = e.method "
)
_OF_IDS = _EXECUTIONS + "WHERE e.id IN ({}) ORDER BY e.key"
_AFTER = _EXECUTIONS + "WHERE e.key > ? ORDER BY e.key LIMIT ?"
_PARTS = {
    table: f"SELECT {', '.join(columns)} FROM {table} WHERE execution "  # noqa: S608  constant names
    for table, columns in PART_COLUMNS.items()
}
_PARTS_OF = {table: f"{part}IN ({{}}) ORDER BY execution, position" for table, part in _PARTS.items()}
_PARTS_BETWEEN = {table: f"{part}BETWEEN ? AND ? ORDER BY execution, position" for table, part in _PARTS.items()}


class Batch(NamedTuple):
    """The rows of some executions as stored, ordered by key and position.

    Keys connect the tables. They are valid inside one batch only, because a key is
    used again after its execution was recorded again or removed. Digests are bytes.
    SQLite's truth values are 0 and 1.
    """

    executions: list[tuple[Any, ...]]
    parts: dict[str, list[tuple[Any, ...]]]


def batch_of(session: Session, ids: Sequence[str]) -> Batch:
    """Return the executions of *ids* that exist."""
    executions = session.fetch_all(_OF_IDS.format(_placeholders(ids)), ids)
    keys = [row[0] for row in executions]
    if not keys:
        return Batch([], {table: [] for table in _SEARCHED})
    placeholders = _placeholders(keys)
    parts = {table: session.fetch_all(statement.format(placeholders), keys) for table, statement in _PARTS_OF.items()}
    return Batch(executions, parts)


def batch_after(session: Session, key: int, limit: int) -> Batch:
    """Return the *limit* executions with the next larger keys; none after the last."""
    executions = session.fetch_all(_AFTER, (key, limit))
    if not executions:
        return Batch([], {table: [] for table in _SEARCHED})
    between = (executions[0][0], executions[-1][0])
    parts = {table: session.fetch_all(statement, between) for table, statement in _PARTS_BETWEEN.items()}
    return Batch(executions, parts)


def _placeholders(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values)) or "NULL"
