"""The ledger's rows as values: what it keeps of an execution and of a Method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

from prefect_executions.lifecycle.status import Reason, Status

ArchiveState = Literal["archived", "pending", "local"]
"""Sealed and in the archive; sealed and on its way there; on this machine alone."""

Stored = str | int | float | bool | None
"""What a column holds in both databases."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One execution in the ledger.

    `first_known` is when it was created or, where that was not observed, the
    time of the first thing that was. `manifest_sha256` is absent until the
    execution is sealed.
    """

    id: str
    method_id: str
    method_version: str
    method_type: str | None
    status: Status
    reason: Reason | None
    first_known: datetime
    created: datetime | None
    scheduled: datetime | None
    started: datetime | None
    finished: datetime | None
    updated: datetime
    duration: timedelta | None
    attempt: int | None
    agent: str | None
    infrastructure: str
    work_pool: str | None
    worker: str | None
    hostname: str | None
    flow_run_name: str | None
    deployment_id: str | None
    deployment_name: str | None
    code_commit: str | None
    code_sha256: str | None
    message: str | None
    progress: int | None
    partial: bool | None
    cached_from: str | None
    archive: ArchiveState
    manifest_sha256: str | None
    imported: datetime | None = None
    """When it was imported, if it was."""
    origin: str | None = None
    """Where it was imported from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRow:
    """One version of a Method, as its newest execution described it.

    `descriptor` is the text of that execution's ``method.json``, and `sha256`
    its digest.
    """

    id: str
    version: str
    title: str
    type: str | None
    description: str | None
    descriptor: str
    sha256: str
    first_seen: datetime
    last_seen: datetime
    executions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some rows, newest first, and the cursor that asks for those after them, if there are any."""

    rows: tuple[Row, ...]
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """An execution that names this one as its `relation`: its parent, or what it runs again."""

    id: str
    relation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """A file that was an output of one execution and an input of another, which its digest tells."""

    id: str
    """The other execution."""
    output: str
    input: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Came:
    """That an execution was imported: when, and from where."""

    at: datetime
    origin: str


ROW_COLUMNS = tuple(field.name for field in fields(Row))


def micros_of(time: datetime) -> int:
    """Return *time* as microseconds since 1970 in UTC, exactly."""
    return (time - _EPOCH) // _MICROSECOND


def time_of(micros: int) -> datetime:
    """Return the time that `micros_of` stored, in UTC."""
    return _EPOCH + timedelta(microseconds=micros)


def stored(value: object) -> Stored:
    """Return a member of a row as its column holds it."""
    if isinstance(value, datetime):
        return micros_of(value)
    if isinstance(value, timedelta):
        return value // _MICROSECOND
    if isinstance(value, StrEnum):
        return value.value
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a column holds no {type(value).__name__}")


def stored_row(row: Row) -> tuple[Stored, ...]:
    """Return *row* as the columns `ROW_COLUMNS` hold it."""
    return tuple(stored(getattr(row, name)) for name in ROW_COLUMNS)


_READ: dict[str, Callable[[Any], object]] = {
    "status": Status,
    "reason": Reason,
    "first_known": time_of,
    "created": time_of,
    "scheduled": time_of,
    "started": time_of,
    "finished": time_of,
    "updated": time_of,
    "imported": time_of,
    "duration": lambda micros: timedelta(microseconds=micros),
    "partial": bool,  # SQLite keeps a truth as 0 or 1
}


def read_row(columns: Sequence[Any]) -> Row:
    """Return the row that the columns `ROW_COLUMNS` hold."""
    told: dict[str, Any] = dict(zip(ROW_COLUMNS, columns, strict=True))
    for name, read in _READ.items():
        if told[name] is not None:
            told[name] = read(told[name])
    return Row(**told)
