"""The columns of the ledger's tables, defined once.

`queries` makes the SQL statements from this definition, `tables` the SQLAlchemy metadata, and
`rows` the conversions. This module does not import SQLAlchemy: that takes 0.4 s, more than
`executions list` may take.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple


class ColumnType(Enum):
    """What a column holds."""

    ID = auto()
    """Text that sorts by code point in both databases, so that cursors and prefix searches behave identically."""
    TEXT = auto()
    SMALL = auto()
    """An integer of 32 bits."""
    INTEGER = auto()
    """An integer of 64 bits."""
    NUMBER = auto()
    """A double."""
    TRUTH = auto()
    """A boolean; SQLite stores 0 or 1."""
    DIGEST = auto()
    """The 32 bytes of a SHA-256 digest."""
    TIME = auto()
    """Microseconds since 1970 in UTC, exact in both databases."""
    DURATION = auto()
    """Microseconds."""


class ColumnSpec(NamedTuple):
    """A column: its name, its type, whether it may be NULL, and whether it is unique or has an index of its own."""

    name: str
    type: ColumnType = ColumnType.TEXT
    nullable: bool = True
    unique: bool = False
    indexed: bool = False


def _required(
    name: str, kind: ColumnType = ColumnType.TEXT, *, unique: bool = False, indexed: bool = False
) -> ColumnSpec:
    return ColumnSpec(name, kind, nullable=False, unique=unique, indexed=indexed)


METHODS = (
    _required("sha256", ColumnType.ID, unique=True),
    _required("id", ColumnType.ID),
    _required("version", ColumnType.ID),
    _required("title"),
    ColumnSpec("type"),
    ColumnSpec("description"),
    _required("descriptor"),
)
"""The table ``methods``, without its key."""

EXECUTIONS = (
    _required("id", ColumnType.ID, unique=True),
    _required("method_id", ColumnType.ID),
    _required("method_version", ColumnType.ID),
    ColumnSpec("method_type"),
    _required("status"),
    ColumnSpec("reason"),
    _required("first_known", ColumnType.TIME),
    ColumnSpec("created", ColumnType.TIME),
    ColumnSpec("scheduled", ColumnType.TIME),
    ColumnSpec("started", ColumnType.TIME),
    ColumnSpec("finished", ColumnType.TIME),
    _required("updated", ColumnType.TIME),
    ColumnSpec("duration", ColumnType.DURATION),
    ColumnSpec("attempt", ColumnType.INTEGER),
    ColumnSpec("agent"),
    _required("infrastructure"),
    ColumnSpec("work_pool"),
    ColumnSpec("worker"),
    ColumnSpec("hostname"),
    ColumnSpec("flow_run_name"),
    ColumnSpec("deployment_id"),
    ColumnSpec("deployment_name"),
    ColumnSpec("code_commit"),
    ColumnSpec("code_branch"),
    ColumnSpec("code_remote"),
    ColumnSpec("code_author"),
    ColumnSpec("code_subject"),
    ColumnSpec("code_dirty", ColumnType.TRUTH),
    ColumnSpec("code_sha256", ColumnType.DIGEST),
    ColumnSpec("python_version"),
    ColumnSpec("gpu"),
    ColumnSpec("gpu_driver"),
    ColumnSpec("cuda_version"),
    ColumnSpec("cpu", ColumnType.DURATION),
    ColumnSpec("memory", ColumnType.INTEGER),
    ColumnSpec("message"),
    ColumnSpec("progress", ColumnType.SMALL),
    ColumnSpec("partial", ColumnType.TRUTH),
    ColumnSpec("cached_from"),
    _required("archive"),
    ColumnSpec("manifest_sha256", ColumnType.DIGEST),
    ColumnSpec("imported", ColumnType.TIME),
    ColumnSpec("origin"),
    ColumnSpec("signed", ColumnType.TRUTH),
)
"""The table ``executions``, without its key and its Method; `rows.Row` has the fields of these names."""

_VALUE = (
    _required("name"),
    ColumnSpec("json"),
    ColumnSpec("number", ColumnType.NUMBER),
    ColumnSpec("text"),
    ColumnSpec("truth", ColumnType.TRUTH),
)
"""A JSON value: its text, and its value in the column of its type.

`number` is for comparisons; `json` has the exact number.
"""

_METRIC = (
    _required("name"),
    _required("count", ColumnType.INTEGER),
    ColumnSpec("first", ColumnType.NUMBER),
    ColumnSpec("last", ColumnType.NUMBER),
    ColumnSpec("min", ColumnType.NUMBER),
    ColumnSpec("max", ColumnType.NUMBER),
    ColumnSpec("first_exact"),
    ColumnSpec("last_exact"),
    ColumnSpec("min_exact"),
    ColumnSpec("max_exact"),
)
"""All values that an execution logged for one metric; the exact texts are only of values that a double cannot hold."""

PARTS: dict[str, tuple[ColumnSpec, ...]] = {
    "inputs": _VALUE,
    "input_files": (
        _required("input"),
        _required("name"),
        _required("sha256", ColumnType.DIGEST, indexed=True),
        ColumnSpec("size", ColumnType.INTEGER),
        _required("origin"),
        _required("media_type"),
    ),
    "outputs": (
        _required("path"),
        _required("sha256", ColumnType.DIGEST, indexed=True),
        ColumnSpec("size", ColumnType.INTEGER),
        _required("media_type"),
    ),
    "params": _VALUE,
    "leaves": (_required("source"), *_VALUE),
    "metrics": _METRIC,
    "history": (
        _required("kind"),
        _required("status"),
        _required("time", ColumnType.TIME),
        _required("observer"),
        ColumnSpec("attempt", ColumnType.INTEGER),
        ColumnSpec("prefect_type"),
        ColumnSpec("prefect_name"),
        ColumnSpec("prefect_id"),
        ColumnSpec("reason"),
        ColumnSpec("progress", ColumnType.NUMBER),
        ColumnSpec("message"),
    ),
    "tags": (_required("tag"),),
    "annotations": (
        _required("kind"),
        _required("text"),
        _required("time", ColumnType.TIME),
        ColumnSpec("agent"),
        ColumnSpec("signer"),
        _required("sha256", ColumnType.DIGEST),
    ),
    "relatives": (_required("other", ColumnType.ID, indexed=True), _required("relation")),
}
"""The tables with several rows per execution, without execution and position."""

CHANGES = (
    _required("token", ColumnType.INTEGER),
    ColumnSpec("execution", ColumnType.ID),
    _required("removed", ColumnType.TRUTH),
)
"""The table ``changes``, without its number; the first row of a ledger is not about an execution."""


def names(columns: tuple[ColumnSpec, ...]) -> tuple[str, ...]:
    """Return the names of *columns* in their order."""
    return tuple(column.name for column in columns)
