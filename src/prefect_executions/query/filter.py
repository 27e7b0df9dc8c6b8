"""The filter on executions: the conditions that a row of the ledger must meet to be listed.

A new condition is a field here, an SQL condition in `ledger.queries.newest`, and an option in `cli.arguments`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from prefect_executions.lifecycle.status import Status


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


EVERYTHING = Filter()
