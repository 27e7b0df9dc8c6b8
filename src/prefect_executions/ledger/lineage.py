"""The reading of lineage: the neighbours of many executions with one statement per depth, in one snapshot.

A long chain would need a statement for each execution. Where a walk stays narrow, two statements read several depths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import chain
from typing import Any

from prefect_executions.executions.annotations import labels
from prefect_executions.executions.lineage import Direction, Lineage, LineageEdge, LineageNode, Walk, walk
from prefect_executions.ledger import queries
from prefect_executions.ledger.database import Session
from prefect_executions.ledger.rows import time_of

FILE = -1
"""The key of the file at the start of a lineage."""

_WIDE = 8
"""From so many nodes on, a walk reads one depth at a time."""
_FIRST_DEPTHS = 3
"""So many depths are read one at a time: most walks end here."""
_AHEAD = 250
"""The most nodes whose edges are read ahead."""

_MOST_KEYS = 5_000  # values of one statement; SQLite accepts 32,766


def lineage_of_execution(
    session: Session, key: int, directions: Iterable[Direction], *, depth: int, most: int, orchestration: bool
) -> Lineage:
    """Return the lineage of the execution *key*; see `walk` for the limits."""
    wanted = tuple(directions)
    data = tuple(walk(key, _data(session), each, depth=depth, most=most) for each in wanted)
    other = tuple(walk(key, _orchestration(session), each, depth=depth, most=most) for each in wanted)
    return _lineage(session, key, None, data, other if orchestration else ())


def lineage_of_file(
    session: Session, sha256: bytes, directions: Iterable[Direction], *, depth: int, most: int
) -> Lineage:
    """Return the lineage of the file with this digest: who made and who used it, and so on."""
    read = _data(session)

    def neighbours(keys: Sequence[int], direction: Direction) -> Iterator[LineageEdge]:
        if FILE in keys:
            for other, name in session.fetch_all(queries.OF_FILE[direction], (sha256,)):
                if direction is Direction.UP:
                    yield LineageEdge(other, FILE, output=name, sha256=sha256.hex())
                else:
                    yield LineageEdge(FILE, other, input=name, sha256=sha256.hex())
        yield from read([key for key in keys if key != FILE], direction)

    data = tuple(walk(FILE, neighbours, each, depth=depth, most=most) for each in directions)
    return _lineage(session, FILE, sha256.hex(), data, ())


def _data(session: Session) -> Callable[[Sequence[int], Direction], Iterator[LineageEdge]]:
    ahead: dict[Direction, dict[int, list[tuple[Any, ...]]]] = {direction: {} for direction in Direction}
    depths = 0

    def read_ahead(keys: Sequence[int], direction: Direction) -> None:
        statement = queries.REACHED[direction].format(", ".join("?" * len(keys)))
        reached = [key for (key,) in session.fetch_all(statement, (*keys, _AHEAD))]
        known = ahead[direction] = {key: [] for key in reached}
        near = 1 if direction is Direction.UP else 0
        for row in _rows(session, queries.DATA_EDGES[direction], reached):
            known[row[near]].append(row)

    def rows(keys: Sequence[int], direction: Direction) -> Iterable[tuple[Any, ...]]:
        if depths > _FIRST_DEPTHS and len(keys) < _WIDE and any(key not in ahead[direction] for key in keys):
            read_ahead(keys, direction)
        known = ahead[direction]
        if all(key in known for key in keys):
            return chain.from_iterable(known[key] for key in keys)
        return _rows(session, queries.DATA_EDGES[direction], keys)

    def neighbours(keys: Sequence[int], direction: Direction) -> Iterator[LineageEdge]:
        nonlocal depths
        depths += 1
        for source, target, output, name, sha256 in sorted(rows(keys, direction)):
            yield LineageEdge(source, target, output=output, input=name, sha256=sha256.hex())

    return neighbours


def _orchestration(session: Session) -> Callable[[Sequence[int], Direction], Iterator[LineageEdge]]:
    def neighbours(keys: Sequence[int], direction: Direction) -> Iterator[LineageEdge]:
        for source, target, relation in sorted(_rows(session, queries.RELATIVE_EDGES[direction], keys)):
            yield LineageEdge(source, target, relation)

    return neighbours


def _lineage(
    session: Session, start: int, file: str | None, data: tuple[Walk, ...], orchestration: tuple[Walk, ...]
) -> Lineage:
    keys = dict.fromkeys(key for each in (*data, *orchestration) for key in each.depths if key != FILE)
    changes: dict[int, list[tuple[str, str]]] = {}
    for key, kind, text in _rows(session, queries.RECALLS, list(keys)):
        changes.setdefault(key, []).append((kind, text))
    nodes = {
        row[0]: _node(row[1:], changes.get(row[0], [])) for row in _rows(session, queries.LINEAGE_NODES, list(keys))
    }
    ordered = {key: nodes[key] for key in keys}
    return Lineage(start=start, file=file, nodes=ordered, data=data, orchestration=orchestration)


def _node(columns: Sequence[Any], changes: list[tuple[str, str]]) -> LineageNode:
    execution_id, method, version, status, started, duration, cpu, agent, archive = columns
    return LineageNode(
        id=execution_id,
        method=method,
        version=version,
        status=status,
        started=None if started is None else time_of(started),
        duration=None if duration is None else timedelta(microseconds=duration),
        cpu=None if cpu is None else timedelta(microseconds=cpu),
        agent=agent,
        archive=archive,
        recalled=labels(changes).recalled if changes else None,
    )


def _rows(session: Session, statement: str, keys: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    for first in range(0, len(keys), _MOST_KEYS):
        part = keys[first : first + _MOST_KEYS]
        yield from session.fetch_all(statement.format(", ".join("?" * len(part))), part)
