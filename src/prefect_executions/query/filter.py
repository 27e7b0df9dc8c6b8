"""The filter on executions: the conditions that a row of the ledger must meet to be listed.

A new condition is a field here and a term of `terms`, an SQL condition in `ledger.queries.newest`, and an option in
`cli.arguments`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from prefect_executions.lifecycle.status import Status

if TYPE_CHECKING:
    from prefect_executions.query.tree import QueryTree


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Conditions on executions; all must hold. None, or an empty tuple, sets no condition."""

    status: tuple[Status, ...] = ()
    """Any of these."""
    method: str | None = None
    """The id of the Method."""
    since: datetime | None = None
    """Earliest time at which the execution was first known, inclusive."""
    until: datetime | None = None
    """Latest time at which the execution was first known, exclusive."""

    def terms(self) -> Iterator[QueryTree]:
        """Yield each condition as a term of a query."""
        # Start-up time of the CLI: every command has a filter, and few have a query.
        from prefect_executions.query.literals import Text, instant  # noqa: PLC0415
        from prefect_executions.query.tree import Condition, FieldTarget, Operator  # noqa: PLC0415

        if self.status:
            words = tuple(Text((status.lower(),)) for status in self.status)
            yield Condition(FieldTarget("status"), Operator.EQUAL, words)
        if self.method is not None:
            yield Condition(FieldTarget("method"), Operator.EQUAL, (Text((self.method,)),))
        if self.since is not None:
            yield Condition(FieldTarget("date"), Operator.GREATER_EQUAL, (instant(self.since),))
        if self.until is not None:
            yield Condition(FieldTarget("date"), Operator.LESS, (instant(self.until),))


EVERYTHING = Filter()
