"""A batch of executions with everything that a search needs of them, read with one statement per table."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from prefect_executions.executions.annotations import labels
from prefect_executions.ledger.database import Session
from prefect_executions.ledger.queries import PARTS
from prefect_executions.ledger.rows import ROW_COLUMNS

_SEARCHED = ("inputs", "input_files", "outputs", "params", "leaves", "metrics", "tags", "relatives")

LABELS = ("experiment", "starred", "recalled")
"""The labels that annotations add; they also change the tags and `flow_run_name`, which is the name."""

BATCH_COLUMNS = ("key", "method_title", *ROW_COLUMNS, *LABELS)
"""The columns of `Batch.executions`."""

PART_COLUMNS = {**{table: ("execution", *PARTS[table]) for table in _SEARCHED}, "notes": ("execution", "note")}
"""The columns of `Batch.parts` by table; `execution` is the key of the execution."""

_EXECUTIONS = (
    f"SELECT e.key, m.title, {', '.join(f'e.{column}' for column in ROW_COLUMNS)}, NULL, 0, 0 "  # noqa: S608  constant names
    "FROM executions AS e JOIN methods AS m ON m.key = e.method "
)
_OF_IDS = _EXECUTIONS + "WHERE e.id IN ({}) ORDER BY e.key"
_AFTER = _EXECUTIONS + "WHERE e.key > ? ORDER BY e.key LIMIT ?"
_PARTS = {
    table: f"SELECT {', '.join(columns)} FROM {table} WHERE execution "  # noqa: S608  constant names
    for table in _SEARCHED
    for columns in [PART_COLUMNS[table]]
}
_ANNOTATIONS = "SELECT execution, kind, text FROM annotations WHERE execution "
_ANNOTATIONS_OF = _ANNOTATIONS + "IN ({}) ORDER BY execution, position"
_ANNOTATIONS_BETWEEN = _ANNOTATIONS + "BETWEEN ? AND ? ORDER BY execution, position"
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
        return _empty()
    placeholders = _placeholders(keys)
    parts = {table: session.fetch_all(statement.format(placeholders), keys) for table, statement in _PARTS_OF.items()}
    return _labelled(executions, parts, session.fetch_all(_ANNOTATIONS_OF.format(placeholders), keys))


def batch_after(session: Session, key: int, limit: int) -> Batch:
    """Return the *limit* executions with the next larger keys; none after the last."""
    executions = session.fetch_all(_AFTER, (key, limit))
    if not executions:
        return _empty()
    between = (executions[0][0], executions[-1][0])
    parts = {table: session.fetch_all(statement, between) for table, statement in _PARTS_BETWEEN.items()}
    return _labelled(executions, parts, session.fetch_all(_ANNOTATIONS_BETWEEN, between))


def _empty() -> Batch:
    return Batch([], {table: [] for table in PART_COLUMNS})


def _labelled(
    executions: list[tuple[Any, ...]], parts: dict[str, list[tuple[Any, ...]]], annotations: list[tuple[Any, ...]]
) -> Batch:
    """Return the batch with the labels that *annotations* amount to; few executions have any."""
    parts["notes"] = []
    if not annotations:
        return Batch(executions, parts)
    changes: dict[int, list[tuple[str, str]]] = {}
    for key, kind, text in annotations:
        changes.setdefault(key, []).append((kind, text))
    tags: dict[int, list[str]] = {key: [] for key in changes}
    for key, tag in parts["tags"]:
        if key in tags:
            tags[key].append(tag)
    found = {key: labels(changed, tags[key]) for key, changed in changes.items()}
    kept = [row for row in parts["tags"] if row[0] not in found]
    parts["tags"] = sorted(kept + [(key, tag) for key, each in found.items() for tag in each.tags], key=itemgetter(0))
    parts["notes"] = [(key, note) for key, each in sorted(found.items()) for note in each.notes]
    for index, row in enumerate(executions):
        if each := found.get(row[0]):
            named = (*row[:_NAME], each.name or row[_NAME], *row[_NAME + 1 : -len(LABELS)])
            executions[index] = (*named, each.experiment, int(each.starred), int(each.recalled is not None))
    return Batch(executions, parts)


_NAME = BATCH_COLUMNS.index("flow_run_name")


def _placeholders(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values)) or "NULL"
