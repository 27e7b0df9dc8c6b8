"""Lineage of an execution or a file, and the impact of a bad one: what was made from it, and how to make it again."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from hashlib import file_digest
from typing import NamedTuple

from prefect_executions.archive.shares import read_shares
from prefect_executions.errors import ArchiveError, RequestError
from prefect_executions.executions.lineage import Direction, Lineage, LineageNode, run_order
from prefect_executions.workbench.lookup import find, path_of
from prefect_executions.workbench.workbench import Workbench

BOTH = (Direction.UP, Direction.DOWN)

DEPTH, MOST = 10, 1_000
"""The longest distance and the most executions of a lineage that names no limits."""

MOST_AFFECTED = 1_000_000
"""The most executions of an impact; it has no limit of depth."""

_EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
_DIGEST = "sha256:"


class Affected(NamedTuple):
    """An execution that was derived from a bad one or from a bad file."""

    node: LineageNode
    depth: int
    """How many executions lie between, plus one; 0 for the bad execution itself."""
    shared: bool
    """Whether the archive has a copy of it for a link that has not expired."""

    @property
    def id(self) -> str:
        return self.node.id


class Impact(NamedTuple):
    """What was derived from an execution or a file, nearest first."""

    start: str
    """The id of the execution, or the digest of the file."""
    affected: tuple[Affected, ...]
    order: tuple[Affected, ...]
    """The executions to run again, each after those that it needs; the bad execution itself comes first."""
    cut: int

    @property
    def duration(self) -> timedelta:
        """The recorded durations of the executions to run again, added up."""
        return sum((each.node.duration or timedelta() for each in self.order), timedelta())

    @property
    def cpu(self) -> timedelta:
        """The recorded CPU times of the executions to run again, added up."""
        return sum((each.node.cpu or timedelta() for each in self.order), timedelta())


def lineage(workbench: Workbench, target: str, directions: Iterable[Direction], *, depth: int, most: int) -> Lineage:
    """Return the lineage of *target*: the id of an execution, ``sha256:`` with a digest, or a file.

    Raises:
        RequestError: If a limit is negative, or *target* is an empty file, whose digest many files share.
        NotFoundError: If *target* does not exist.
        LedgerError: If the ledger is unavailable.
    """
    if depth < 0 or most < 0:
        raise RequestError("a lineage needs limits of at least 0")
    ledger = workbench.ledger
    digest = _digest_of(workbench, target)
    if digest is None:
        return ledger.lineage(find(workbench, target), directions, depth=depth, most=most)
    return ledger.lineage_of_file(digest, directions, depth=depth, most=most)


def impact(workbench: Workbench, target: str, now: datetime) -> Impact:
    """Return what was derived from *target* through files, on any path; see `lineage` for the targets.

    Raises:
        RequestError: If *target* is an empty file.
        NotFoundError: If *target* does not exist.
        LedgerError: If the ledger is unavailable.
    """
    ledger, digest, down = workbench.ledger, _digest_of(workbench, target), (Direction.DOWN,)
    if digest is None:
        found = ledger.lineage(
            find(workbench, target), down, depth=MOST_AFFECTED, most=MOST_AFFECTED, orchestration=False
        )
    else:
        found = ledger.lineage_of_file(digest, down, depth=MOST_AFFECTED, most=MOST_AFFECTED)
    (walked,) = found.data
    shared = _shared(workbench, now)
    affected = {
        key: Affected(found.nodes[key], depth, found.nodes[key].id in shared)
        for key, depth in walked.depths.items()
        if key in found.nodes
    }
    return Impact(
        start=found.label(found.start),
        affected=tuple(each for key, each in affected.items() if key != found.start),
        order=tuple(affected[key] for key in run_order(walked) if key in affected),
        cut=walked.cut,
    )


def _shared(workbench: Workbench, now: datetime) -> frozenset[str]:
    with suppress(ArchiveError):  # the ledger answers without the archive
        return frozenset(
            share.execution_id for share in read_shares(workbench.archive.store).shares if share.expires > now
        )
    return frozenset()


def _digest_of(workbench: Workbench, target: str) -> str | None:
    """Return the digest of the file that *target* names; None if it names an execution."""
    if target.startswith(_DIGEST):
        digest = workbench.ledger.find_digest(target.removeprefix(_DIGEST))
    elif path := path_of(target):
        if path.is_dir():
            raise RequestError(f"{target} is a folder; give a file, the id of an execution, or sha256:DIGEST")
        with path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
    else:
        return None
    if digest == _EMPTY:
        raise RequestError("the file is empty; all empty files have one digest, so they have no lineage")
    return digest
