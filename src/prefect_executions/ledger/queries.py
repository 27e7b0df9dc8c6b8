"""The ledger's SQL statements, the same text for both databases, with ``?`` as the placeholder.

Names of tables and columns are constants of this package; every value is a bound parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prefect_executions.executions.lineage import Direction
from prefect_executions.ledger import columns
from prefect_executions.ledger.columns import names
from prefect_executions.ledger.rows import ROW_COLUMNS, micros_of
from prefect_executions.ledger.values import clean
from prefect_executions.query.filter import Filter
from prefect_executions.query.tree import Link

PARTS = {table: names(specs) for table, specs in columns.PARTS.items()}
METHOD_COLUMNS = names(columns.METHODS)
TABLES = ("methods", "executions", *PARTS)


def _insert(table: str, columns: Sequence[str]) -> str:
    placeholders = ", ".join("?" * len(columns))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({placeholders})"  # noqa: S608  constant names


_ROW = ", ".join(ROW_COLUMNS)

INSERT_EXECUTION = _insert("executions", ("method", *ROW_COLUMNS))
INSERT_PART = {table: _insert(table, ("execution", "position", *columns)) for table, columns in PARTS.items()}
INSERT_METHOD = _insert("methods", METHOD_COLUMNS) + " ON CONFLICT (sha256) DO NOTHING"

METHOD_KEY = "SELECT key FROM methods WHERE sha256 = ?"
SEAL = "SELECT archive, manifest_sha256 FROM executions WHERE id = ?"
GET = f"SELECT {_ROW} FROM executions WHERE id = ?"  # noqa: S608  constant names
GET_AMONG = f"SELECT {_ROW} FROM executions WHERE id IN ({{}})"  # noqa: S608  constant names
DELETE = "DELETE FROM executions WHERE id = ?"
CLEAR = ("DELETE FROM executions", "DELETE FROM methods")
KEY = "SELECT key FROM executions WHERE id = ?"
ANNOTATIONS = (
    f"SELECT {', '.join(PARTS['annotations'])} FROM annotations "  # noqa: S608  constant names
    "WHERE execution = (SELECT key FROM executions WHERE id = ?) ORDER BY position"
)
DELETE_ANNOTATIONS = "DELETE FROM annotations WHERE execution = ?"
NOTE_ARCHIVED = "UPDATE executions SET archive = 'archived', manifest_sha256 = ? WHERE id = ?"
ARCHIVED_AMONG = "SELECT id FROM executions WHERE archive = 'archived' AND id IN ({})"

PENDING = "SELECT id FROM executions WHERE archive = 'pending' ORDER BY first_known, id"
# Both bounds are inclusive, because an id that equals the prefix matches.
IDS_WITH_PREFIX = "SELECT id FROM executions WHERE id >= ? AND id <= ? ORDER BY id LIMIT ?"
DESCRIPTORS = (
    "SELECT m.id, m.version, m.title, m.type, m.description, m.descriptor, m.sha256, e.first_seen, e.last_seen, e.many "
    "FROM (SELECT method, min(first_known) AS first_seen, max(first_known) AS last_seen, count(*) AS many "
    "FROM executions GROUP BY method) AS e JOIN methods AS m ON m.key = e.method ORDER BY m.id, m.version, m.sha256"
)

REFERRERS = (
    "SELECT e.id, r.relation FROM relatives AS r JOIN executions AS e ON e.key = r.execution "
    "WHERE r.other = ? ORDER BY e.first_known, e.id LIMIT ?"
)
# The producer must have started before the consumer. Empty files share one digest, so skip them.
_SHARING = (
    "input_files AS f JOIN outputs AS o ON o.sha256 = f.sha256 "
    "JOIN executions AS taker ON taker.key = f.execution JOIN executions AS maker ON maker.key = o.execution "
    "WHERE o.size > 0 AND maker.key <> taker.key AND maker.started <= taker.started "
)
_SHARED_FILES = f"FROM {_SHARING}"
MADE_FROM = (
    f"SELECT DISTINCT maker.id, o.path, f.input, o.sha256, maker.started {_SHARED_FILES}"
    "AND taker.id = ? ORDER BY maker.started DESC, maker.id, o.path, f.input LIMIT ?"
)
USED_BY = (
    f"SELECT DISTINCT taker.id, o.path, f.input, o.sha256, taker.started {_SHARED_FILES}"
    "AND maker.id = ? ORDER BY taker.started, taker.id, o.path, f.input LIMIT ?"
)

# Lineage. `usedby:` and `uses:` have the same condition, so that they agree with it.
_SHARED_EDGES = f"SELECT maker.key, taker.key, o.path, f.input, o.sha256 {_SHARED_FILES}"
DATA_EDGES = {
    Direction.UP: f"{_SHARED_EDGES}AND taker.key IN ({{}})",
    Direction.DOWN: f"{_SHARED_EDGES}AND maker.key IN ({{}})",
}
_REACHED = (
    "WITH RECURSIVE reached (key) AS (SELECT key FROM executions WHERE key IN ({{}}) "  # noqa: S608  constant names
    f"UNION SELECT {{far}}.key FROM reached, {_SHARING}AND {{near}}.key = reached.key) SELECT key FROM reached LIMIT ?"
)
REACHED = {
    Direction.UP: _REACHED.format(near="taker", far="maker"),
    Direction.DOWN: _REACHED.format(near="maker", far="taker"),
}
"""Some executions and those that a walk along the data edges reaches from them; both databases stop at the limit."""
_RELATIVE_EDGES = (
    "SELECT first.key, r.execution, r.relation FROM relatives AS r "
    "JOIN executions AS first ON first.id = r.other "
    "WHERE first.key <> r.execution "
)
RELATIVE_EDGES = {
    Direction.UP: f"{_RELATIVE_EDGES}AND r.execution IN ({{}})",
    Direction.DOWN: f"{_RELATIVE_EDGES}AND first.key IN ({{}})",
}
OF_FILE = {
    Direction.UP: "SELECT execution, min(path) FROM outputs WHERE sha256 = ? GROUP BY execution ORDER BY 1",
    Direction.DOWN: "SELECT execution, min(input) FROM input_files WHERE sha256 = ? GROUP BY execution ORDER BY 1",
}
LINEAGE_NODES = (
    "SELECT key, id, method_id, method_version, status, started, duration, cpu, agent, archive "
    "FROM executions WHERE key IN ({})"
)
RECALLS = (
    "SELECT execution, kind, text FROM annotations WHERE kind IN ('recall', 'reinstate') AND execution IN ({}) "
    "ORDER BY execution, position"
)
DIGESTS_BETWEEN = (
    "SELECT sha256 FROM outputs WHERE sha256 >= ? AND sha256 <= ? "
    "UNION SELECT sha256 FROM input_files WHERE sha256 >= ? AND sha256 <= ? LIMIT ?"
)

# The change feed. The counter's row is locked until the commit, so numbers are committed in their order.
NEXT_NUMBER = "UPDATE change_counter SET number = number + ? RETURNING number"
INSERT_CHANGE = _insert("changes", ("number", *names(columns.CHANGES)))
# Both in one statement, for PostgreSQL: SQLite has no UPDATE in a WITH clause.
APPEND_CHANGES = (
    "WITH counter AS (UPDATE change_counter SET number = number + ?::bigint RETURNING number), "
    "added AS (INSERT INTO changes (number, token, execution, removed) "
    "SELECT counter.number - ?::bigint + change.place, ?::bigint, change.execution, ?::boolean "
    "FROM counter, unnest(?::text[]) WITH ORDINALITY AS change (execution, place)) "
    "SELECT number FROM counter"
)
FORGET_CHANGES = "DELETE FROM changes WHERE number <= ?"
NEWEST_CHANGE = "SELECT number, token FROM changes ORDER BY number DESC LIMIT 1"
CHANGES_FROM = "SELECT number, token, execution, removed FROM changes WHERE number >= ? ORDER BY number LIMIT ?"

_RELATIVES = "SELECT DISTINCT e.id FROM relatives AS r JOIN executions AS e ON e.key = r.execution WHERE r.relation "
_RELATED = {
    Link.PARENT: (f"{_RELATIVES}= 'parent' ", "r.other"),
    Link.RERUNS: (f"{_RELATIVES}<> 'parent' ", "r.other"),
    Link.USES: (f"SELECT DISTINCT taker.id {_SHARED_FILES}", "maker.id"),
    Link.USED_BY: (f"SELECT DISTINCT maker.id {_SHARED_FILES}", "taker.id"),
}
"""For each link, the executions that have it, and the column with the id of the other execution."""

LAST = "\U0010ffff"
"""Sorts after every other character."""

# All rows by table, without database keys, so that ledgers with equal rows have equal dumps.
ALL = {
    "methods": f"SELECT {', '.join(METHOD_COLUMNS)} FROM methods AS m "  # noqa: S608  constant names
    "WHERE EXISTS (SELECT 1 FROM executions WHERE method = m.key) ORDER BY sha256",
    "executions": f"SELECT (SELECT sha256 FROM methods WHERE key = method), {_ROW} "  # noqa: S608  constant names
    "FROM executions ORDER BY id",
    **{
        table: f"SELECT e.id, p.position, {', '.join(f'p.{column}' for column in columns)} "  # noqa: S608  constant names
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
    """A statement and its bound values."""

    sql: str
    values: tuple[str | int, ...]


def newest(criteria: Filter, *, limit: int, after: tuple[int, str] | None = None) -> Query:
    """Return the query for the newest executions that match *criteria*, which may have at most one status.

    *after* is the time in microseconds and the id of the previous page's last row.
    Each combination of equality conditions has an index, so no query sorts.
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
    sql = f"SELECT {_ROW} FROM executions {where}ORDER BY first_known DESC, id DESC LIMIT ?"  # noqa: S608  constant names
    return Query(sql, (*(value for _, values in conditions for value in values), limit))


def related(link: Link, starts: Sequence[str]) -> list[Query]:
    """Return the queries for the ids with *link* to an execution whose id begins with one of *starts*; any if empty."""
    statement, other = _RELATED[link]
    if not starts:
        return [Query(statement, ())]
    sql = f"{statement}AND {other} >= ? AND {other} <= ?"  # both bounds are inclusive, as above
    begins = sorted({clean(spelling) for start in starts for spelling in (start, start.lower())})
    return [Query(sql, (begin, begin + LAST)) for begin in begins]
