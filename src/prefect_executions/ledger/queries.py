"""The ledger's SQL, one text for both databases, with ``?`` where a value is bound.

Names of tables and columns come from this room; every value is bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prefect_executions.ledger.rows import ROW_COLUMNS, clean, micros_of
from prefect_executions.query.filter import Filter

_VALUE = ("name", "json", "number", "text", "truth")

PARTS: dict[str, tuple[str, ...]] = {
    "inputs": _VALUE,
    "input_files": ("input", "name", "sha256", "size", "origin", "media_type"),
    "outputs": ("path", "sha256", "size", "media_type"),
    "params": _VALUE,
    "metrics": ("name", "number", "exact", "step", "time"),
    "history": (
        "kind",
        "status",
        "time",
        "observer",
        "attempt",
        "prefect_type",
        "prefect_name",
        "prefect_id",
        "reason",
        "progress",
        "message",
    ),
    "tags": ("tag",),
    "relatives": ("other", "relation"),
}
METHOD_COLUMNS = ("sha256", "id", "version", "title", "type", "description", "descriptor")
TABLES = ("methods", "executions", *PARTS)


def _insert(table: str, columns: Sequence[str]) -> str:
    marks = ", ".join("?" * len(columns))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608  names of this module


_ROW = ", ".join(ROW_COLUMNS)

INSERT_EXECUTION = _insert("executions", ("method", *ROW_COLUMNS))
INSERT_PART = {table: _insert(table, ("execution", "position", *columns)) for table, columns in PARTS.items()}
INSERT_METHOD = _insert("methods", METHOD_COLUMNS) + " ON CONFLICT (sha256) DO NOTHING"

METHOD_KEY = "SELECT key FROM methods WHERE sha256 = ?"
SEAL = "SELECT archive, manifest_sha256 FROM executions WHERE id = ?"
GET = f"SELECT {_ROW} FROM executions WHERE id = ?"  # noqa: S608  names of this module
DELETE = "DELETE FROM executions WHERE id = ?"
CLEAR = ("DELETE FROM executions", "DELETE FROM methods")
NOTE_ARCHIVED = "UPDATE executions SET archive = 'archived', manifest_sha256 = ? WHERE id = ?"
ARCHIVED_AMONG = "SELECT id FROM executions WHERE archive = 'archived' AND id IN ({})"

PENDING = "SELECT id FROM executions WHERE archive = 'pending' ORDER BY first_known, id"
# Both ends are inside: an id that is the prefix itself fits it too.
BEGINNING_WITH = "SELECT id FROM executions WHERE id >= ? AND id <= ? ORDER BY id LIMIT ?"
DESCRIPTORS = (
    "SELECT m.id, m.version, m.title, m.type, m.description, m.descriptor, m.sha256, e.first_seen, e.last_seen, e.many "
    "FROM (SELECT method, min(first_known) AS first_seen, max(first_known) AS last_seen, count(*) AS many "
    "FROM executions GROUP BY method) AS e JOIN methods AS m ON m.key = e.method ORDER BY m.id, m.version, m.sha256"
)

NAMING = (
    "SELECT e.id, r.relation FROM relatives AS r JOIN executions AS e ON e.key = r.execution "
    "WHERE r.other = ? ORDER BY e.first_known, e.id LIMIT ?"
)
# Who made a file had begun when it was used; an empty file is the same everywhere and tells nothing.
_HANDED = (
    "FROM input_files AS f JOIN outputs AS o ON o.sha256 = f.sha256 "
    "JOIN executions AS taker ON taker.key = f.execution JOIN executions AS maker ON maker.key = o.execution "
    "WHERE o.size > 0 AND maker.key <> taker.key AND maker.started <= taker.started "
)
MADE_FROM = (
    f"SELECT DISTINCT maker.id, o.path, f.input, o.sha256, maker.started {_HANDED}"
    "AND taker.id = ? ORDER BY maker.started DESC, maker.id, o.path, f.input LIMIT ?"
)
USED_BY = (
    f"SELECT DISTINCT taker.id, o.path, f.input, o.sha256, taker.started {_HANDED}"
    "AND maker.id = ? ORDER BY taker.started, taker.id, o.path, f.input LIMIT ?"
)

# Every row by table, without the numbers that a database gives: two ledgers with the same rows are the same.
ALL = {
    "methods": f"SELECT {', '.join(METHOD_COLUMNS)} FROM methods AS m "  # noqa: S608  names of this module
    "WHERE EXISTS (SELECT 1 FROM executions WHERE method = m.key) ORDER BY sha256",
    "executions": f"SELECT (SELECT sha256 FROM methods WHERE key = method), {_ROW} "  # noqa: S608  the same
    "FROM executions ORDER BY id",
    **{
        table: f"SELECT e.id, p.position, {', '.join(f'p.{column}' for column in columns)} "  # noqa: S608  the same
        f"FROM {table} AS p JOIN executions AS e ON e.key = p.execution ORDER BY e.id, p.position"
        for table, columns in PARTS.items()
    },
}
ALL_COLUMNS = {
    "methods": METHOD_COLUMNS,
    "executions": ("method", *ROW_COLUMNS),
    **{table: ("execution", "position", *columns) for table, columns in PARTS.items()},
}


class Query(NamedTuple):
    """A statement and the values that are bound to it."""

    sql: str
    values: tuple[str | int, ...]


def newest(criteria: Filter, *, limit: int, after: tuple[int, str] | None = None) -> Query:
    """Return the query for the newest executions that meet *criteria*, which name one status at most.

    *after* is the time in microseconds and the id of the last row of the page before.
    There is an index for each set of equalities, so no combination sorts.
    """
    conditions: list[tuple[str, tuple[str | int, ...]]] = []
    if criteria.method is not None:
        conditions.append(("method_id = ?", (clean(criteria.method),)))
    if criteria.status:
        (status,) = criteria.status
        conditions.append(("status = ?", (status,)))
    if criteria.since is not None:
        conditions.append(("first_known >= ?", (micros_of(criteria.since),)))
    if criteria.until is not None:
        conditions.append(("first_known < ?", (micros_of(criteria.until),)))
    if after is not None:
        conditions.append(("(first_known, id) < (?, ?)", after))
    where = f"WHERE {' AND '.join(condition for condition, _ in conditions)} " if conditions else ""
    sql = f"SELECT {_ROW} FROM executions {where}ORDER BY first_known DESC, id DESC LIMIT ?"  # noqa: S608  the same
    return Query(sql, (*(value for _, values in conditions for value in values), limit))
