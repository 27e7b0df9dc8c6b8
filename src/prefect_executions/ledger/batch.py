"""A batch of executions with everything that a search needs of them, read with few statements for all of them.

Most values and metrics are plain numbers, which need fewer columns than the others. They have
statements of their own, because a scan spends most of its time on the objects that it makes of columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from prefect_executions.executions.annotations import labels
from prefect_executions.ledger.database import Session
from prefect_executions.ledger.rows import ROW_COLUMNS

LABELS = ("experiment", "starred", "recalled")
"""The labels that annotations add; they also change the tags and `flow_run_name`, which is the name."""

BATCH_COLUMNS = ("key", "method", *ROW_COLUMNS, *LABELS)
"""The columns of `Batch.executions`; `method` is a key of `Batch.titles`."""

INEXACT = 2**53
"""From here on, a double may differ from the integer that it stands for."""


class BatchPart(NamedTuple):
    """Rows of a table that has several per execution: the columns besides `execution`, and which rows."""

    table: str
    columns: tuple[str, ...]
    condition: str


_NUMBER = f"text IS NULL AND number BETWEEN {1 - INEXACT} AND {INEXACT - 1}"
_OTHER = f"({_NUMBER}) IS NOT TRUE"
_VALUE = ("name", "json", "number", "text", "truth")
_STATISTICS = ("first", "last", "min", "max", "first_exact", "last_exact", "min_exact", "max_exact")
_ALL = "0 = 0"

PARTS = {
    "input_numbers": BatchPart("inputs", ("name", "number"), _NUMBER),
    "inputs": BatchPart("inputs", _VALUE, _OTHER),
    "param_numbers": BatchPart("params", ("name", "number"), _NUMBER),
    "params": BatchPart("params", _VALUE, _OTHER),
    "leaves": BatchPart("leaves", ("source", *_VALUE), _ALL),
    "single_metrics": BatchPart("metrics", ("name", "last", "last_exact"), "count = 1"),
    "metrics": BatchPart("metrics", ("name", *_STATISTICS), "count <> 1"),
    "input_files": BatchPart("input_files", ("input", "name", "sha256"), _ALL),
    "outputs": BatchPart("outputs", ("path", "sha256", "size", "media_type"), _ALL),
    "tags": BatchPart("tags", ("tag",), _ALL),
}
"""What `Batch.parts` has of each table. The values come before the leaves, which may have their names."""

PART_COLUMNS = {**{name: ("execution", *part.columns) for name, part in PARTS.items()}, "notes": ("execution", "note")}
"""The columns of `Batch.parts`; `execution` is the key of the execution."""

_EXECUTIONS = f"SELECT key, method, {', '.join(ROW_COLUMNS)}, NULL, 0, 0 FROM executions "  # noqa: S608  constant names
_OF_IDS = _EXECUTIONS + "WHERE id IN ({}) ORDER BY key"
_AFTER = _EXECUTIONS + "WHERE key > ? ORDER BY key LIMIT ?"
_TITLES = "SELECT key, title FROM methods WHERE key IN ({})"
_PARTS = {
    name: f"SELECT {', '.join(PART_COLUMNS[name])} FROM {part.table} WHERE {part.condition} AND execution "  # noqa: S608  constant names
    for name, part in PARTS.items()
}
_ANNOTATIONS = "SELECT execution, kind, text FROM annotations WHERE execution "
_ANNOTATIONS_OF = _ANNOTATIONS + "IN ({}) ORDER BY execution, position"
_ANNOTATIONS_BETWEEN = _ANNOTATIONS + "BETWEEN ? AND ? ORDER BY execution, position"
_PARTS_OF = {name: f"{part}IN ({{}}) ORDER BY execution, position" for name, part in _PARTS.items()}
_PARTS_BETWEEN = {name: f"{part}BETWEEN ? AND ? ORDER BY execution, position" for name, part in _PARTS.items()}


class Batch(NamedTuple):
    """The rows of some executions as stored, ordered by key and position.

    Keys connect the tables. They are valid inside one batch only, because a key is
    used again after its execution was recorded again or removed. Digests are bytes.
    SQLite's truth values are 0 and 1.
    """

    executions: list[tuple[Any, ...]]
    parts: dict[str, list[tuple[Any, ...]]]
    titles: Mapping[int, str]
    """The titles of the Methods by key."""


def batch_of(session: Session, ids: Sequence[str]) -> Batch:
    """Return the executions of *ids* that exist."""
    executions = session.fetch_all(_OF_IDS.format(_placeholders(ids)), ids)
    keys = [row[0] for row in executions]
    if not keys:
        return _empty()
    placeholders = _placeholders(keys)
    parts = {name: session.fetch_all(statement.format(placeholders), keys) for name, statement in _PARTS_OF.items()}
    annotations = session.fetch_all(_ANNOTATIONS_OF.format(placeholders), keys)
    return _labelled(Batch(executions, parts, _titles(session, executions)), annotations)


def batch_after(session: Session, key: int, limit: int) -> Batch:
    """Return the *limit* executions with the next larger keys; none after the last."""
    executions = session.fetch_all(_AFTER, (key, limit))
    if not executions:
        return _empty()
    between = (executions[0][0], executions[-1][0])
    parts = {name: session.fetch_all(statement, between) for name, statement in _PARTS_BETWEEN.items()}
    annotations = session.fetch_all(_ANNOTATIONS_BETWEEN, between)
    return _labelled(Batch(executions, parts, _titles(session, executions)), annotations)


def _titles(session: Session, executions: list[tuple[Any, ...]]) -> dict[int, str]:
    # A join would look up the Method of each execution: a fourth of the time to read them.
    keys = sorted({row[1] for row in executions})
    return dict(session.fetch_all(_TITLES.format(_placeholders(keys)), keys))


def _empty() -> Batch:
    return Batch([], {name: [] for name in PART_COLUMNS}, {})


def _labelled(batch: Batch, annotations: list[tuple[Any, ...]]) -> Batch:
    """Return the batch with the labels that *annotations* amount to; few executions have any."""
    executions, parts, _ = batch
    parts["notes"] = []
    if not annotations:
        return batch
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
    return batch


_NAME = BATCH_COLUMNS.index("flow_run_name")


def _placeholders(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values)) or "NULL"
