"""Marks in the archive (open executions, recent seals, the settle watermark) and signed checkpoints.

::

    open/<id>                               from the opening record to the seal; renewed while the run is alive;
                                            contains the path of the Workbench that has the bundle
    sealed/<yyyy-mm-ddThh>/<id>-<sha256>    one per seal: the hour of sealing and the digest of the manifest
    settled                                 the watermark: every execution that ended before this time is sealed
    checkpoints/<number // 1000, 8 digits>/<number, 12 digits>.json
                                            the checkpoints, numbered without gaps and never replaced

With the marks, open executions and recent seals are found by listing a few names,
however many executions the archive has. Marks are hints: a missing or superfluous
mark costs a look at the seal, and only the seal counts.

The times of marks come from the store's clock, so workers' clocks do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from prefect_executions.archive.objects import small_objects
from prefect_executions.bundles.layout import is_execution_id
from prefect_executions.documents import in_utc
from prefect_executions.errors import ArchiveError, NotFoundError
from prefect_executions.objectstore.interface import Durability, Store

_OPEN = "open/"
_SEALED = "sealed/"
_SETTLED = "settled"
_CLOCK = "clock"
_HOUR = "%Y-%m-%dT%H"
_MARK_NAME = re.compile(r"(?P<id>.+)-(?P<sha256>[0-9a-f]{64})")
_CHECKPOINTS = "checkpoints/"
_CHECKPOINTS_PER_FOLDER = 1000
_LONGEST_PATH = 4096
_LONGEST_TIME = 100
_BATCH = 50
_CHECKPOINT_NAME = re.compile(r"checkpoints/\d{8}/(\d{12})\.json")

LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
SKEW = timedelta(hours=1)
"""How far the clocks of sealing machines may differ. Searches for recent seals start this much earlier."""


class OpenMark(NamedTuple):
    """An open execution; `renewed` is the time of its last heartbeat by the store's clock."""

    id: str
    renewed: datetime


class SealMark(NamedTuple):
    """A sealed execution and the digest of its manifest; `at` is the mark's time by the store's clock."""

    id: str
    manifest_sha256: str
    at: datetime


class Marks:
    """The marks in an archive's store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def renew(self, workbenches: Mapping[str, str]) -> None:
        """Renew the open marks of running executions: a heartbeat; *workbenches* has Workbench paths by id."""
        objects = {open_key(execution_id): path.encode() for execution_id, path in workbenches.items()}
        self._store.put_many(objects, durability=Durability.ASYNC)

    def workbenches(self, ids: Iterable[str]) -> dict[str, str]:
        """Return the paths, on any machine, of the Workbenches that have these open executions."""
        objects = self._store.get_many([open_key(execution_id) for execution_id in ids], limit=_LONGEST_PATH)
        return {key.removeprefix(_OPEN): data.decode(errors="replace") for key, data in objects.items() if data}

    def open(self) -> Iterator[OpenMark]:
        """Yield the open executions with the time of their last heartbeat."""
        for info in self._store.list(_OPEN):
            if info.modified is None:
                raise self._no_times()
            yield OpenMark(info.key.removeprefix(_OPEN), info.modified)

    def close(self, execution_id: str, manifest_sha256: str, at: datetime) -> None:
        """Mark an execution as sealed at about *at*; a second call has no further effect."""
        hour = in_utc(at).strftime(_HOUR)
        self._store.put_many({f"{_SEALED}{hour}/{execution_id}-{manifest_sha256}": b""}, durability=Durability.ASYNC)
        self._store.delete(open_key(execution_id))

    def sealed_since(self, when: datetime) -> Iterator[SealMark]:
        """Yield the executions that were sealed since the hour of *when*, in any order."""
        first = in_utc(when).strftime(_HOUR)
        for hour in self._store.list_children(_SEALED):
            if hour >= first:
                for info in self._store.list(f"{_SEALED}{hour}/"):
                    name = _MARK_NAME.fullmatch(info.key.rpartition("/")[2])
                    if name and is_execution_id(name["id"]):
                        yield SealMark(name["id"], name["sha256"], info.modified or LONG_AGO)

    def clock(self) -> datetime:
        """Return the current time by the store's clock."""
        self._store.put_many({_CLOCK: b""}, durability=Durability.ASYNC)
        info = self._store.head(_CLOCK)
        if info is None or info.modified is None:
            raise self._no_times()
        return info.modified

    def settled_until(self) -> datetime | None:
        """Return the settle watermark, or None if settle has not run yet."""
        try:
            return in_utc(datetime.fromisoformat(self._store.get_range(_SETTLED, 0, _LONGEST_TIME).decode()))
        except (NotFoundError, ValueError):
            return None

    def settle_until(self, when: datetime) -> None:
        """Set the settle watermark: every execution that ended before *when* is sealed."""
        self._store.put_many({_SETTLED: in_utc(when).isoformat().encode()}, durability=Durability.ASYNC)

    def _no_times(self) -> ArchiveError:
        return ArchiveError(
            f"{self._store.url} does not report modification times, so it cannot show which executions are alive. "
            "Use a folder, s3:// or gs:// as the archive."
        )


def open_key(execution_id: str) -> str:
    """Return the key of the open mark of an execution."""
    return _OPEN + execution_id


class StoredCheckpoint(NamedTuple):
    """A checkpoint's number and content."""

    number: int
    data: bytes


class Checkpoints:
    """The checkpoints in an archive's store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def last(self) -> int:
        """Return the number of the newest checkpoint, or 0 if there are none."""
        folders = [name for name in self._store.list_children(_CHECKPOINTS) if name.isdigit()]
        return max((number for folder in sorted(folders)[-2:] for number in self._in_folder(folder)), default=0)

    def numbers(self) -> list[int]:
        """Return the numbers of all checkpoints in ascending order."""
        folders = self._store.list_children(_CHECKPOINTS)
        return sorted(number for folder in folders for number in self._in_folder(folder))

    def read(self, numbers: list[int]) -> Iterator[StoredCheckpoint]:
        """Yield the checkpoints with these numbers, in this order; missing checkpoints are left out."""
        for start in range(0, len(numbers), _BATCH):
            batch = numbers[start : start + _BATCH]
            keys = {_key(number): number for number in batch}
            for key, data in small_objects(self._store, keys):  # in the order of the keys
                yield StoredCheckpoint(keys[key], data)

    def get(self, number: int) -> bytes:
        """Return one checkpoint.

        Raises:
            NotFoundError: If there is no such checkpoint.
        """
        for checkpoint in self.read([number]):
            return checkpoint.data
        raise NotFoundError(f"There is no checkpoint {number} in the archive {self._store.url}")

    def add(self, number: int, data: bytes) -> bool:
        """Store a checkpoint if its number is free; return whether this call stored it."""
        return self._store.put_if_absent(_key(number), data)

    def _in_folder(self, folder: str) -> Iterator[int]:
        for info in self._store.list(f"{_CHECKPOINTS}{folder}/"):
            name = _CHECKPOINT_NAME.fullmatch(info.key)
            if name:
                yield int(name[1])


def _key(number: int) -> str:
    return f"{_CHECKPOINTS}{number // _CHECKPOINTS_PER_FOLDER:08}/{number:012}.json"
