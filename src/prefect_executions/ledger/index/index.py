"""The column index of a ledger: follows the ledger's change feed, and keeps what it read in files.

Law: one process at a time writes the files, under a lock; any number reads them. A process
that is killed at any moment leaves the old manifest or the new one, and both are correct.
"""

from __future__ import annotations

import fcntl
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from prefect_executions.errors import StaleMarkError
from prefect_executions.ledger.changes import FeedMark
from prefect_executions.ledger.index.build import SegmentBuilder
from prefect_executions.ledger.index.files import (
    MANIFEST,
    DamagedIndexError,
    IndexManifest,
    open_segment,
    read_manifest,
    write_manifest,
    write_segment,
)
from prefect_executions.ledger.index.merge import LiveSegment, merged
from prefect_executions.ledger.index.segment import Segment
from prefect_executions.ledger.ledger import Ledger

KEPT_IN_MEMORY = 2_000
"""So many changed executions are written to a file: a new process reads fewer than these from the ledger, in 0.1 s."""

MOST_IN_MEMORY = 8
"""So many segments in memory are merged: each costs a query some 0.3 ms."""

GROWTH = 4
"""A segment is merged with the newer ones when they have more than a fourth of its rows, or of it are out of date."""

SCAN = 5_000
"""Executions that are read from the ledger in one transaction."""

_LOCK = "lock"


class IndexSnapshot(NamedTuple):
    """The executions at one moment: segments from old to new, each with the rows that are up to date."""

    segments: tuple[LiveSegment, ...]

    @property
    def total(self) -> int:
        return sum(part.total for part in self.segments)


class ColumnIndex:
    """The column index of *ledger* in *folder*; safe for use by several threads."""

    def __init__(self, ledger: Ledger, folder: Path | None, *, most_in_memory: int = KEPT_IN_MEMORY) -> None:
        """*folder* is created if necessary; None, or a folder that cannot be written, keeps the index in memory."""
        self.ledger, self._folder, self._most_in_memory = ledger, folder, most_in_memory
        self._guard = Lock()
        self._manifest: IndexManifest | None = None
        self._stamp: tuple[int, ...] = ()
        self._mark: FeedMark | None = None
        self._segments: list[LiveSegment] = []
        self._on_disk = 0
        """How many of the segments are in files; the newer ones are in memory only."""

    def snapshot(self) -> IndexSnapshot:
        """Read the changes of the ledger since the last call, and return the executions as they are now.

        The first call builds the index if there is none: a minute for 1,000,000 executions.

        Raises:
            LedgerError: If the ledger's database fails.
        """
        with self._guard:
            if self._mark is None or self._replaced():
                self._load()
            try:
                self._follow()
            except StaleMarkError:
                self._rebuild()
                self._follow()
            self._keep()
            return IndexSnapshot(tuple(self._segments))

    @property
    def segment_names(self) -> tuple[str, ...]:
        """The files of the segments that this process has open."""
        return self._manifest.segments if self._manifest else ()

    # --- the files ---------------------------------------------------------------

    def _replaced(self) -> bool:
        """Return whether another process replaced the manifest; a missing one changes nothing."""
        stamp = self._read_stamp()
        return bool(stamp) and stamp != self._stamp

    def _read_stamp(self) -> tuple[int, ...]:
        if self._folder is None:
            return ()
        try:
            found = os.stat(self._folder / MANIFEST)  # noqa: PTH116  called before every query
        except OSError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _load(self) -> None:
        """Open the segments of the manifest, or build the index if that is impossible."""
        for _ in range(3):  # a writer may remove a segment between the two reads; the manifest then has a new one
            with suppress(DamagedIndexError):
                return self._open()
        return self._rebuild()

    def _open(self) -> None:
        if self._folder is None:
            raise DamagedIndexError("the index is in memory only")
        stamp = self._read_stamp()
        manifest = read_manifest(self._folder)
        known = dict(zip(self._manifest.segments, self._segments, strict=False)) if self._manifest else {}
        segments = [
            known[name].segment if name in known else open_segment(self._folder / name) for name in manifest.segments
        ]
        self._segments = []
        for segment in segments:
            self._append(segment)
        self._manifest, self._stamp, self._mark = manifest, stamp, manifest.mark
        self._on_disk = len(segments)

    def _append(self, segment: Segment) -> None:
        """Add a segment; the rows of older segments that it replaces are out of date."""
        for index, (older, live) in enumerate(self._segments):
            rows = older.rows_of(segment.replaced)
            rows = rows[rows >= 0]
            if len(rows):
                live = np.ones(older.size, np.bool_) if live is None else live.copy()  # noqa: PLW2901
                live[rows] = False
                self._segments[index] = LiveSegment(older, live)
        self._segments.append(LiveSegment(segment, None))

    def _follow(self) -> None:
        assert self._mark is not None  # noqa: S101  for the type checker
        while True:
            changes, mark = self.ledger.changes(self._mark, limit=SCAN)
            if changes:
                ids = {change.id for change in changes}
                builder = SegmentBuilder()
                builder.add(self.ledger.batch(ids))
                self._append(builder.segment(replaced=ids))
                if len(self._segments) - self._on_disk > MOST_IN_MEMORY:
                    newest = merged(self._segments[self._on_disk :])
                    self._segments = [*self._segments[: self._on_disk], LiveSegment(newest, None)]
            self._mark = mark
            if len(changes) < SCAN:
                return

    def _rebuild(self) -> None:
        """Read the whole ledger, unless another process does or did so."""
        with self._lock(wait=True) as locked:
            if locked and self._read_stamp() not in {(), self._stamp}:
                with suppress(DamagedIndexError, StaleMarkError):
                    self._open()
                    self._follow()
                    return
            self._mark = self.ledger.mark()
            builder = SegmentBuilder()
            with _without_garbage_collection():
                for batch in self.ledger.scan(size=SCAN):
                    builder.add(batch)
            self._segments, self._on_disk, self._manifest = [_without_repeats(builder.segment())], 0, None
            if locked:
                self._write(self._segments)

    def _keep(self) -> None:
        """Write what is in memory to a file if it is much, unless another process is writing."""
        fresh = self._segments[self._on_disk :]
        if sum(len(part.segment.replaced.high) for part in fresh) < self._most_in_memory or self._folder is None:
            return
        with self._lock(wait=False) as locked:
            if not locked:
                return
            if self._replaced():  # another process has written these changes
                self._load()
                self._follow()
                return
            if not self._read_stamp():  # the files were deleted, so all segments are written again
                self._on_disk = 0
            self._write(self._segments)

    def _write(self, segments: list[LiveSegment]) -> None:
        """Write the segments that are in memory, merged with those on the disk that are not much larger."""
        assert self._folder is not None  # noqa: S101  for the type checker
        assert self._mark is not None  # noqa: S101  for the type checker
        first = self._on_disk
        while first and _is_due(segments[first - 1], sum(part.total for part in segments[first:])):
            first -= 1
        parts = segments[first:]
        newest = parts[0].segment if len(parts) == 1 and parts[0].live is None else merged(parts)
        if first == 0:
            newest = newest.oldest()
        try:
            name = write_segment(self._folder, newest)
            kept = [*segments[:first], LiveSegment(open_segment(self._folder / name), None)]
            names = (*(self._manifest.segments[:first] if self._manifest else ()), name)
            manifest = IndexManifest(mark=self._mark, segments=names)
            write_manifest(self._folder, manifest, rows=[part.segment.size for part in kept])
        except (OSError, DamagedIndexError):  # the disk is full: go on in memory
            self._segments = [*segments[:first], LiveSegment(newest, None)]
            self._on_disk = min(first, self._on_disk)
            return
        self._segments, self._on_disk = kept, len(kept)
        self._manifest, self._stamp = manifest, self._read_stamp()

    @contextmanager
    def _lock(self, *, wait: bool) -> Iterator[bool]:
        """Hold the writers' lock; False if another process has it and *wait* is False, or the folder is read-only."""
        if self._folder is None:
            yield False
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            yield False
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
        finally:
            os.close(descriptor)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Millions of rows make no cycles, and the collector would visit all of them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _is_due(segment: LiveSegment, newer: int) -> bool:
    """Return whether a segment is merged: *newer* executions are many, or many of its rows are out of date."""
    return newer * GROWTH > segment.total or (segment.segment.size - segment.total) * GROWTH > segment.segment.size


def _without_repeats(segment: Segment) -> LiveSegment:
    """Return the segment without all but the newest row of each execution that was read twice."""
    high, low = segment.keys.take(segment.by_key)
    repeated = np.flatnonzero((high[1:] == high[:-1]) & (low[1:] == low[:-1]))
    if not len(repeated):
        return LiveSegment(segment, None)
    live = np.ones(segment.size, np.bool_)
    live[segment.by_key.take(repeated)] = False
    return LiveSegment(merged([LiveSegment(segment, live)]), None)
