"""The ledger's change feed: which executions were inserted, updated or removed, in the order of the commits.

Law: a reader that follows the feed from a mark misses no change and reads none twice. Each
change has the next number; a transaction holds the counter's row from its last statement
to its commit, so numbers become visible in their order. PostgreSQL's own transaction ids do
not: a reader would have to wait for the oldest transaction of the whole server, which may
belong to another application.

A mark is a number with the random token that was stored with it. A ledger that was
rebuilt, restored from a backup or rolled back by a power failure may use the number
again, but with another token, so an old mark is refused instead of misread.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import NamedTuple

from prefect_executions.errors import StaleMarkError
from prefect_executions.ledger import queries
from prefect_executions.ledger.database import Session

KEPT = 100_000
"""The number of changes that the ledger keeps; a reader that is further behind reads all executions."""

_TRIM = 1000  # once in so many changes, the oldest ones are deleted


class FeedMark(NamedTuple):
    """A position in the change feed: the number of a change and its token."""

    number: int
    token: int


class Change(NamedTuple):
    """An execution that was inserted, updated or removed.

    A later change may have removed an execution that was inserted here.
    """

    number: int
    id: str
    removed: bool


class Changes(NamedTuple):
    """Consecutive changes, oldest first, and the mark after the last one."""

    changes: tuple[Change, ...]
    mark: FeedMark


def new_token() -> int:
    """Return a random number of 63 bits."""
    return int.from_bytes(os.urandom(8)) >> 1


def note_changes(session: Session, ids: Collection[str], *, removed: bool = False) -> None:
    """Append a change of each execution in *ids*; this must be the last statement of the transaction."""
    if not ids:
        return
    last = session.append_changes(tuple(ids), new_token(), removed=removed)
    if last // _TRIM != (last - len(ids)) // _TRIM:
        session.execute(queries.FORGET_CHANGES, (last - KEPT,))


def restart(session: Session) -> None:
    """Delete all changes, so that every mark is refused."""
    ((number,),) = session.fetch_all(queries.NEXT_NUMBER, (1,))
    session.execute(queries.FORGET_CHANGES, (number,))
    session.execute(queries.INSERT_CHANGE, (number, new_token(), None, False))


def newest_mark(session: Session) -> FeedMark:
    """Return the mark after the newest change."""
    (row,) = session.fetch_all(queries.NEWEST_CHANGE)
    return FeedMark(*row)


def changes_after(session: Session, mark: FeedMark, limit: int) -> Changes:
    """Return at most *limit* changes after *mark*.

    Raises:
        StaleMarkError: If the mark belongs to another history of the ledger, or is too old.
    """
    rows = session.fetch_all(queries.CHANGES_FROM, (mark.number, limit + 1))
    if not rows or tuple(rows[0][:2]) != mark:
        raise StaleMarkError(
            f"change {mark.number} is not in the ledger: it was rebuilt or restored, or more than {KEPT} changes ago. "
            "Read all executions instead."
        )
    changes = tuple(Change(number, execution_id, bool(removed)) for number, _, execution_id, removed in rows[1:])
    return Changes(changes, FeedMark(*rows[-1][:2]))
