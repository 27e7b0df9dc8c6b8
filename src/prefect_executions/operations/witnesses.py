"""What the checkpoints of an archive witness, as far as they are sound: which seals there were, and when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Literal

from prefect_executions.archive.archive import Archive
from prefect_executions.attestation.keys import VerifyingKey
from prefect_executions.attestation.transparency import Checkpoint
from prefect_executions.errors import BundleError

Fault = tuple[Literal["violation", "incomplete"], str]


@dataclass
class Witness:
    """The seals of all checkpoints, by execution."""

    sealed: dict[str, set[str]] = field(default_factory=dict)
    """The digests of the manifests that were sealed."""
    number: dict[str, int] = field(default_factory=dict)
    """In which checkpoint it is first."""
    when: dict[str, tuple[datetime | None, datetime]] = field(default_factory=dict)
    """The times of the checkpoint before and of that one, between which it was sealed."""
    last: int = 0


def witnesses(archive: Archive, trusted: Mapping[str, VerifyingKey]) -> tuple[Witness, list[Fault]]:
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
        self.witness = Witness()
        self.faults: list[Fault] = []

    def add(self, number: int, data: bytes) -> None:
        """Take in the next checkpoint."""
        expected = self.witness.last + 1
        if number != expected:
            self.faults.append(("violation", f"checkpoint {expected} is gone; there is {number}"))
        try:
            told = Checkpoint.from_json(data)
            wrong = list(self._wrong(told, number, linked=number == expected))
            until = told.told().until
        except BundleError as error:
            self.faults.append(("violation", f"checkpoint {number} is damaged: {error}"))
        else:
            self.faults += wrong
            if not any(weight == "violation" for weight, _ in wrong):
                self._witness(told, number, until)
            self._until = until
        self._previous = sha256(data).hexdigest()
        self.witness.last = number

    def _wrong(self, told: Checkpoint, number: int, *, linked: bool) -> Iterator[Fault]:
        head, envelope = told.told(), told.head.envelope
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
