"""Marks in the archive: which executions are open, which are sealed, and up to when all was settled.

::

    open/<id>                               from the opening record to the seal; written anew while it runs;
                                            holds the path of the Workbench that has the bundle
    sealed/<yyyy-mm-ddThh>/<id>-<sha256>    one for each seal, by the hour of sealing and with its manifest's digest
    settled                                 the time up to which every ended execution is known to be sealed

So what is unfinished, and what was sealed lately, is found by listing a few
names, however many executions there are. Marks are hints and decide nothing: a
mark that is missing or too many costs a look at the seal, which is the truth.

Times of marks are the store's own, so that no clock of a worker matters.

The checkpoints in the archive, one object each, numbered without a gap and never replaced.

::

    checkpoints/<number // 1000, 8 digits>/<number, 12 digits>.json
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from prefect_executions.documents import in_utc
from prefect_executions.errors import ArchiveError, NotFoundError
from prefect_executions.objectstore.interface import Durability, Store

_OPEN = "open/"
_SEALED = "sealed/"
_SETTLED = "settled"
_CLOCK = "clock"
_HOUR = "%Y-%m-%dT%H"
_MARK_NAME = re.compile(r"(?P<id>.+)-(?P<sha256>[0-9a-f]{64})")


class OpenMark(NamedTuple):
    """An execution that was announced and is not known to be sealed; `renewed` is by the store's clock."""

    id: str
    renewed: datetime


class SealMark(NamedTuple):
    """An execution that was sealed, and its manifest's digest; `at` is the mark's time by the store's clock."""

    id: str
    manifest_sha256: str
    at: datetime


class Marks:
    """The marks in one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def renew(self, places: Mapping[str, str]) -> None:
        """Say of executions, each with the path of its Workbench, that they are open and alive."""
        self._store.put_many(
            {open_key(one): place.encode() for one, place in places.items()}, durability=Durability.ASYNC
        )

    def places(self, ids: Iterable[str]) -> dict[str, str]:
        """Return the paths of the Workbenches, on whatever machine, that have these open executions."""
        found = self._store.get_many([open_key(execution_id) for execution_id in ids])
        return {key.removeprefix(_OPEN): data.decode(errors="replace") for key, data in found.items() if data}

    def open(self) -> Iterator[OpenMark]:
        """Yield the executions that are open, with the time of the last sign of life."""
        for found in self._store.list(_OPEN):
            if found.modified is None:
                raise ArchiveError(f"{self._store.url} tells no times, so nobody can say which executions are alive")
            yield OpenMark(found.key.removeprefix(_OPEN), found.modified)

    def close(self, execution_id: str, manifest_sha256: str, at: datetime) -> None:
        """Say that an execution is sealed, at about *at*; doing it again changes nothing that matters."""
        hour = in_utc(at).strftime(_HOUR)
        self._store.put_many({f"{_SEALED}{hour}/{execution_id}-{manifest_sha256}": b""}, durability=Durability.ASYNC)
        self._store.delete(open_key(execution_id))

    def sealed_since(self, when: datetime) -> Iterator[SealMark]:
        """Yield the executions that were sealed since the hour of *when*, in no order."""
        first = in_utc(when).strftime(_HOUR)
        for hour in self._store.list_children(_SEALED):
            if hour >= first:
                for found in self._store.list(f"{_SEALED}{hour}/"):
                    named = _MARK_NAME.fullmatch(found.key.rpartition("/")[2])
                    if named:
                        yield SealMark(named["id"], named["sha256"], found.modified or LONG_AGO)

    def clock(self) -> datetime:
        """Return the time by the store's clock."""
        self._store.put_many({_CLOCK: b""}, durability=Durability.ASYNC)
        found = self._store.head(_CLOCK)
        if found is None or found.modified is None:
            raise ArchiveError(f"{self._store.url} tells no times, so nobody can say which executions are alive")
        return found.modified

    def settled_until(self) -> datetime | None:
        """Return the time up to which every ended execution is known to be sealed, or None where nobody settled yet."""
        try:
            told = self._store.get(_SETTLED).decode()
            return in_utc(datetime.fromisoformat(told))
        except (NotFoundError, ValueError):
            return None

    def settle_until(self, when: datetime) -> None:
        """Remember that every execution that ended before *when* is sealed."""
        self._store.put_many({_SETTLED: in_utc(when).isoformat().encode()}, durability=Durability.ASYNC)


def open_key(execution_id: str) -> str:
    """Return the key of the mark that says that an execution is open."""
    return _OPEN + execution_id


LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
SKEW = timedelta(hours=1)
"""How far the clocks of those who seal may differ, for who looks for what they sealed."""

_ROOT = "checkpoints/"
_BLOCK = 1000
_AT_ONCE = 50
_CHECKPOINT_NAME = re.compile(r"checkpoints/\d{8}/(\d{12})\.json")


class Kept(NamedTuple):
    """A checkpoint as it is kept."""

    number: int
    data: bytes


class Checkpoints:
    """The checkpoints in one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def last(self) -> int:
        """Return the number of the newest, or 0 where there is none."""
        blocks = [name for name in self._store.list_children(_ROOT) if name.isdigit()]
        return max((number for block in sorted(blocks)[-2:] for number in self._in_block(block)), default=0)

    def numbers(self) -> list[int]:
        """Return the numbers of all that are there, from the first on."""
        return sorted(number for block in self._store.list_children(_ROOT) for number in self._in_block(block))

    def read(self, numbers: list[int]) -> Iterator[Kept]:
        """Yield these checkpoints in this order; one that is not there is left out."""
        for start in range(0, len(numbers), _AT_ONCE):
            batch = numbers[start : start + _AT_ONCE]
            found = self._store.get_many([_key(number) for number in batch])
            yield from (Kept(number, found[_key(number)]) for number in batch if _key(number) in found)

    def get(self, number: int) -> bytes:
        """Return one checkpoint.

        Raises:
            NotFoundError: If it is not there.
        """
        for kept in self.read([number]):
            return kept.data
        raise NotFoundError(f"There is no checkpoint {number} in the archive {self._store.url}")

    def add(self, number: int, data: bytes) -> bool:
        """Keep the checkpoint *number*, unless another has; return whether this call did."""
        return self._store.put_if_absent(_key(number), data)

    def _in_block(self, block: str) -> Iterator[int]:
        for found in self._store.list(f"{_ROOT}{block}/"):
            named = _CHECKPOINT_NAME.fullmatch(found.key)
            if named:
                yield int(named[1])


def _key(number: int) -> str:
    return f"{_ROOT}{number // _BLOCK:08}/{number:012}.json"
