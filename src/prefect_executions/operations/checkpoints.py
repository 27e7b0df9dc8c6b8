"""Checkpoints: signed Merkle trees over the seals of an archive, in a chain (`write_checkpoints`, `read_seal_history`).

Law: a checkpoint is created only if it does not exist, so one of two racing writers
wins; the loser reads the winner's checkpoint and writes the seals that it lacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Literal

from prefect_executions.archive.archive import Archive
from prefect_executions.archive.marks import LONG_AGO, SKEW
from prefect_executions.attestation.keys import SigningKey
from prefect_executions.attestation.policy import SignaturePolicy, SignatureState
from prefect_executions.attestation.transparency import Checkpoint, SealEntry, checkpoint_of, inclusions
from prefect_executions.errors import BundleError, RequestError
from prefect_executions.workbench.workbench import Workbench

CheckpointFinding = tuple[Literal["violation", "incomplete"], str]

_MAX_SEALS = 10_000
"""Seals in one checkpoint, which is read as a whole."""

_BATCH = 500
"""Seals that are read together."""

_MARK_PRECISION = timedelta(hours=1)
"""Precision of the times of seal marks."""


def write_checkpoints(workbench: Workbench, *, since: datetime | None = None) -> int:
    """Write new checkpoints with the seals that are in none yet; return the number of seals.

    Without a signing key or without new seals nothing is written. New seals are found by
    their marks since the last checkpoint, or since *since*.

    Raises:
        ArchiveError: If the archive fails.
        SettingsError: If the signing key cannot be read.
        BundleError: If the last checkpoint is damaged.
    """
    key = workbench.signing_key()
    return _Writer(workbench.archive, key).run(since) if key is not None else 0


class _Writer:
    def __init__(self, archive: Archive, key: SigningKey) -> None:
        self._archive, self._key = archive, key
        self._checkpoints = archive.checkpoints

    def run(self, since: datetime | None) -> int:
        written = 0
        now = self._archive.marks.clock()
        start = min(now, since or self._watermark())
        while True:
            number, new = self._new_seals(start)
            if not new:
                return written
            # If another writer took the number meanwhile, `add` refuses and the seals are read again.
            previous = sha256(self._checkpoints.get(number)).hexdigest() if number else None
            checkpoint = checkpoint_of(new[:_MAX_SEALS], number=number + 1, previous=previous, until=now, key=self._key)
            if self._checkpoints.add(number + 1, checkpoint.to_json()):
                self._archive.put_inclusions(list(inclusions(checkpoint)))
                written += len(checkpoint.seals)

    def _new_seals(self, start: datetime) -> tuple[int, list[SealEntry]]:
        """The number of the last checkpoint, and the seals that have a mark since *start* and no checkpoint."""
        marks = {(mark.id, mark.manifest_sha256) for mark in self._archive.marks.sealed_since(start)}
        if not marks:
            return 0, []
        last = self._checkpoints.last()
        marks -= self._in_checkpoints(start, last)
        seals = self._sealed(sorted(marks))
        return last, [SealEntry(execution_id=id_, manifest_sha256=digest) for id_, digest in seals]

    def _watermark(self) -> datetime:
        number = self._checkpoints.last()
        if not number:
            return LONG_AGO
        return Checkpoint.from_json(self._checkpoints.get(number)).parsed_head().until - SKEW

    def _in_checkpoints(self, start: datetime, last: int) -> set[tuple[str, str]]:
        """The seals in the checkpoints up to *last* that may contain marks since *start*, newest first."""
        seals: set[tuple[str, str]] = set()
        for number in range(last, 0, -1):
            checkpoint = Checkpoint.from_json(self._checkpoints.get(number))
            if start > LONG_AGO and checkpoint.parsed_head().until < start - SKEW - _MARK_PRECISION:
                break
            seals |= {(seal.execution_id, seal.manifest_sha256) for seal in checkpoint.seals}
        return seals

    def _sealed(self, marks: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """Those of *marks* that agree with the seal in the archive."""
        for start in range(0, len(marks), _BATCH):
            batch = marks[start : start + _BATCH]
            seals = self._archive.seals_of([execution_id for execution_id, _ in batch])
            yield from ((id_, digest) for id_, digest in batch if id_ in seals and seals[id_].manifest_sha256 == digest)


@dataclass
class SealHistory:
    """The seals in all valid checkpoints of an archive, by execution id."""

    sealed: dict[str, set[str]] = field(default_factory=dict)
    """Digests of the sealed manifests."""
    number: dict[str, int] = field(default_factory=dict)
    """The first checkpoint that contains a seal."""
    when: dict[str, tuple[datetime | None, datetime]] = field(default_factory=dict)
    """The times of the checkpoint before and of the first one: the execution was sealed between them."""
    last: int = 0
    """The number of the newest checkpoint."""


def read_seal_history(
    archive: Archive, signatures: SignaturePolicy, *, witness: bytes | None = None
) -> tuple[SealHistory, list[CheckpointFinding]]:
    """Read all checkpoints; return the seals of the valid ones and the findings on the chain.

    *witness* is a copy of a checkpoint from elsewhere. If the archive lacks it or has
    another one with its number, the seals of the copy count as well.

    Raises:
        RequestError: If *witness* is not a checkpoint with an accepted signature.
        ArchiveError: If the archive is unavailable.
    """
    numbers = archive.checkpoints.numbers()
    chain = _Chain(signatures)
    for stored in archive.checkpoints.read(numbers):
        chain.add(stored.number, stored.data)
    if witness is not None:
        chain.compare(witness)
    return chain.history, chain.findings


class _Chain:
    def __init__(self, signatures: SignaturePolicy) -> None:
        self._signatures = signatures
        self._digests: dict[int, str] = {}
        self._previous: str | None = None
        self._until: datetime | None = None
        self.history = SealHistory()
        self.findings: list[CheckpointFinding] = []

    def add(self, number: int, data: bytes) -> None:
        """Check the next checkpoint and take in its seals."""
        expected = self.history.last + 1
        if number != expected:
            self.findings.append(("violation", f"checkpoint {expected} is missing; the next one is {number}"))
        try:
            checkpoint = Checkpoint.from_json(data)
            findings = list(self._check(checkpoint, number, linked=number == expected))
            until = checkpoint.parsed_head().until
        except BundleError as error:
            self.findings.append(("violation", f"checkpoint {number} is damaged: {error}"))
        else:
            self.findings += findings
            if not any(weight == "violation" for weight, _ in findings):
                self._add_seals(checkpoint, number, until)
            self._until = until
        self._previous = self._digests[number] = sha256(data).hexdigest()
        self.history.last = number

    def compare(self, witness: bytes) -> None:
        """Check that the archive still has the checkpoint of which *witness* is a copy."""
        try:
            checkpoint = Checkpoint.from_json(witness)
            head = checkpoint.parsed_head()
            findings = list(self._check(checkpoint, head.number, linked=False))
        except BundleError as error:
            raise RequestError(f"the copy of a checkpoint cannot be read: {error}") from error
        faults = [what for weight, what in findings if weight == "violation"]
        if faults:
            raise RequestError(f"the copy of a checkpoint cannot be used: {faults[0]}")
        stored, digest = self._digests.get(head.number), sha256(witness).hexdigest()
        if stored != digest:
            has = f"the archive has {stored}" if stored else "the archive does not have it"
            self.findings.append(("violation", f"checkpoint {head.number} has the digest {digest} in the copy; {has}"))
            self._until = None
            self._add_seals(checkpoint, head.number, head.until)

    def _check(self, checkpoint: Checkpoint, number: int, *, linked: bool) -> Iterator[CheckpointFinding]:
        head, envelope = checkpoint.parsed_head(), checkpoint.head.envelope
        if head.number != number:
            yield "violation", f"checkpoint {number} contains the number {head.number}"
        if linked and head.previous != self._previous:
            what = f"checkpoint {number} names the previous checkpoint {head.previous}; that has {self._previous}"
            yield "violation", what
        for fault in checkpoint.faults():
            yield "violation", f"checkpoint {number}: {fault}"
        for signature in self._signatures.judge(envelope):
            if signature.state is SignatureState.INVALID:
                yield "violation", f"checkpoint {number}: the signature is not from the key {signature.key_id}"
            elif signature.state is SignatureState.UNKNOWN and self._signatures.allow_unknown:
                what = f"checkpoint {number}: the key {signature.key_id} is not trusted here, so it was not checked"
                yield "incomplete", what
            elif signature.state is SignatureState.UNKNOWN:
                what = f"checkpoint {number} is signed with the key {signature.key_id}, which is not trusted here"
                yield "violation", what

    def _add_seals(self, checkpoint: Checkpoint, number: int, until: datetime) -> None:
        for seal in checkpoint.seals:
            self.history.sealed.setdefault(seal.execution_id, set()).add(seal.manifest_sha256)
            self.history.number.setdefault(seal.execution_id, number)
            self.history.when.setdefault(seal.execution_id, (self._until, until))
