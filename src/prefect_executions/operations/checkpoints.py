"""Write down which seals there are: signed checkpoints in the archive, each over the seals since the one before.

Law: a checkpoint is created only where there is none, so that of two writers one
wins; the other reads the winner's and writes what is still missing after it.

What the checkpoints of an archive witness, as far as they are sound: which seals there were, and when.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Literal

from prefect_executions.archive.archive import Archive
from prefect_executions.archive.marks import LONG_AGO, SKEW
from prefect_executions.attestation.keys import SigningKey, VerifyingKey
from prefect_executions.attestation.transparency import Checkpoint, SealEntry, checkpoint_of, inclusions
from prefect_executions.errors import BundleError
from prefect_executions.workbench.workbench import Workbench

_MOST = 10_000
"""Seals in one checkpoint: it is read as a whole."""

_AT_ONCE = 500

_HOUR = timedelta(hours=1)
"""How exactly marks tell the time of their seals."""


def write_checkpoints(workbench: Workbench, *, since: datetime | None = None) -> int:
    """Write the seals that are in no checkpoint yet into new ones; return how many seals there were.

    Without a signing key, and where nothing is new, nothing is written. Seals are looked for
    among the marks since the last checkpoint, or since *since*.

    Raises:
        ArchiveError: If the archive fails.
        SettingsError: If the signing key cannot be read.
        BundleError: If the last checkpoint is damaged.
    """
    key = workbench.signing_key()
    return _Writing(workbench.archive, key).run(since) if key is not None else 0


class _Writing:
    def __init__(self, archive: Archive, key: SigningKey) -> None:
        self._archive, self._key = archive, key
        self._kept = archive.checkpoints

    def run(self, since: datetime | None) -> int:
        written = 0
        now = self._archive.marks.clock()
        start = min(now, since or self._watermark())
        while True:
            number, new = self._new(start)
            if not new:
                return written
            # Where somebody else wrote one meanwhile, the number is taken and the seals are looked at anew.
            previous = sha256(self._kept.get(number)).hexdigest() if number else None
            told = checkpoint_of(new[:_MOST], number=number + 1, previous=previous, until=now, key=self._key)
            if self._kept.add(number + 1, told.to_json()):
                self._archive.keep_inclusions(list(inclusions(told)))
                written += len(told.seals)

    def _new(self, start: datetime) -> tuple[int, list[SealEntry]]:
        """The last checkpoint, and the seals that neither it nor any before has, as marks and seals tell them alike."""
        marks = {(one.id, one.manifest_sha256) for one in self._archive.marks.sealed_since(start)}
        if not marks:
            return 0, []
        last = self._kept.last()
        marks -= self._known(start, last)
        return last, [
            SealEntry(execution_id=one, manifest_sha256=digest) for one, digest in self._sealed(sorted(marks))
        ]

    def _watermark(self) -> datetime:
        number = self._kept.last()
        if not number:
            return LONG_AGO
        return Checkpoint.from_json(self._kept.get(number)).parsed_head().until - SKEW

    def _known(self, start: datetime, last: int) -> set[tuple[str, str]]:
        """What the checkpoints up to *last* say that may speak of marks since *start*, the newest first."""
        known: set[tuple[str, str]] = set()
        for number in range(last, 0, -1):
            told = Checkpoint.from_json(self._kept.get(number))
            if start > LONG_AGO and told.parsed_head().until < start - SKEW - _HOUR:
                break
            known |= {(one.execution_id, one.manifest_sha256) for one in told.seals}
        return known

    def _sealed(self, marks: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        for start in range(0, len(marks), _AT_ONCE):
            batch = marks[start : start + _AT_ONCE]
            seals = self._archive.seals_of([execution_id for execution_id, _ in batch])
            yield from (one for one in batch if one[0] in seals and seals[one[0]].manifest_sha256 == one[1])


CheckpointFinding = tuple[Literal["violation", "incomplete"], str]


@dataclass
class SealHistory:
    """The seals of all checkpoints, by execution."""

    sealed: dict[str, set[str]] = field(default_factory=dict)
    """The digests of the manifests that were sealed."""
    number: dict[str, int] = field(default_factory=dict)
    """In which checkpoint it is first."""
    when: dict[str, tuple[datetime | None, datetime]] = field(default_factory=dict)
    """The times of the checkpoint before and of that one, between which it was sealed."""
    last: int = 0


def read_seal_history(
    archive: Archive, trusted: Mapping[str, VerifyingKey]
) -> tuple[SealHistory, list[CheckpointFinding]]:
    """Read every checkpoint, and return what those that are sound witness, and what is wrong with the chain.

    Raises:
        ArchiveError: If the archive cannot be asked.
    """
    numbers = archive.checkpoints.numbers()
    chain = _Chain(trusted)
    for kept in archive.checkpoints.read(numbers):
        chain.add(kept.number, kept.data)
    return chain.witness, chain.faults


class _Chain:
    def __init__(self, trusted: Mapping[str, VerifyingKey]) -> None:
        self._trusted = trusted
        self._previous: str | None = None
        self._until: datetime | None = None
        self.witness = SealHistory()
        self.faults: list[CheckpointFinding] = []

    def add(self, number: int, data: bytes) -> None:
        """Take in the next checkpoint."""
        expected = self.witness.last + 1
        if number != expected:
            self.faults.append(("violation", f"checkpoint {expected} is gone; there is {number}"))
        try:
            told = Checkpoint.from_json(data)
            wrong = list(self._wrong(told, number, linked=number == expected))
            until = told.parsed_head().until
        except BundleError as error:
            self.faults.append(("violation", f"checkpoint {number} is damaged: {error}"))
        else:
            self.faults += wrong
            if not any(weight == "violation" for weight, _ in wrong):
                self._witness(told, number, until)
            self._until = until
        self._previous = sha256(data).hexdigest()
        self.witness.last = number

    def _wrong(self, told: Checkpoint, number: int, *, linked: bool) -> Iterator[CheckpointFinding]:
        head, envelope = told.parsed_head(), told.head.envelope
        if head.number != number:
            yield "violation", f"checkpoint {number} says that it is {head.number}"
        if linked and head.previous != self._previous:
            yield "violation", f"checkpoint {number} names {head.previous} as the one before, which is {self._previous}"
        for fault in told.faults():
            yield "violation", f"checkpoint {number}: {fault}"
        for one in envelope.signatures:
            key = self._trusted.get(one.key_id)
            if key is not None and not key.signed(envelope.signed, one.data):
                yield "violation", f"checkpoint {number}: the signature is not that of the key {one.key_id}"
            elif key is None and self._trusted:
                yield "violation", f"checkpoint {number} is signed with the key {one.key_id}, which is not trusted here"
            elif key is None:
                yield "incomplete", f"checkpoint {number}: no key is trusted here, so its signature was not checked"

    def _witness(self, told: Checkpoint, number: int, until: datetime) -> None:
        for seal in told.seals:
            self.witness.sealed.setdefault(seal.execution_id, set()).add(seal.manifest_sha256)
            self.witness.number.setdefault(seal.execution_id, number)
            self.witness.when.setdefault(seal.execution_id, (self._until, until))
