"""Look over an archive: what was changed in it, what is gone, and what is merely not complete.

Law: a violation is what no interruption, no late word and no missing key explains; all
else is incomplete. Each finding names the execution that it is about. It works by
one listing and small reads; only a deep audit reads what is big.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from itertools import groupby, islice
from typing import Literal, NamedTuple

from prefect_executions.archive.archive import Archive
from prefect_executions.archive.imports import IMPORTED
from prefect_executions.archive.marks import LONG_AGO, SKEW
from prefect_executions.archive.objects import INCLUSION, LATE, OPENING, SEAL, SUSPENDED, Seal, folder_of, parse_seal
from prefect_executions.archive.removals import Removed
from prefect_executions.attestation.keys import VerifyingKey
from prefect_executions.bundles import layout
from prefect_executions.bundles.verify import verify
from prefect_executions.errors import ArchiveError, BundleError, NameRefusedError
from prefect_executions.objectstore.interface import Head
from prefect_executions.operations.records import SealedRecord
from prefect_executions.operations.witnesses import Witness, witnesses
from prefect_executions.workbench.archived import ArchivedSource

_AT_ONCE = 100
"""Executions whose small files are read together."""

_LATE = timedelta(days=1)
"""How long after its end an execution may be sealed and nobody asks why."""

Weight = Literal["violation", "incomplete"]


class Finding(NamedTuple):
    """One thing that an audit found; `execution` is empty where it is about the archive itself."""

    weight: Weight
    kind: str
    execution: str
    what: str


def audit(
    archive: Archive,
    trusted: Mapping[str, VerifyingKey],
    *,
    deep: bool = False,
    told: Callable[[int], object] = lambda _: None,
) -> Iterator[Finding]:
    """Yield what is wrong or not complete in *archive*; *trusted* are the keys of those whose signature is believed.

    *told* is called with the number of executions that were looked at.

    Raises:
        ArchiveError: If the archive cannot be asked.
    """
    looking = _Audit(archive, trusted, deep=deep)
    yield from looking.checkpoints()
    count = 0
    for batch in _batches(archive.listing()):
        yield from looking.executions(batch)
        told(count := count + len(batch))
    yield from looking.gone()


class _Audit:
    def __init__(self, archive: Archive, trusted: Mapping[str, VerifyingKey], *, deep: bool) -> None:
        self._archive, self._trusted, self._deep = archive, trusted, deep
        self._seen: set[str] = set()
        self._witness = Witness()
        self._marks: dict[str, set[str]] = {}

    def checkpoints(self) -> Iterator[Finding]:
        """Read what witnesses there are: the checkpoints, which are checked, and the marks of seals."""
        self._witness, faults = witnesses(self._archive, self._trusted)
        for weight, what in faults:
            yield Finding(weight, "checkpoint", "", what)
        for mark in self._archive.marks.sealed_since(LONG_AGO):
            self._marks.setdefault(mark.id, set()).add(mark.manifest_sha256)

    def executions(self, batch: Mapping[str, Mapping[str, int]]) -> Iterator[Finding]:
        """Look at some executions, each with the sizes of its objects by their names below its folder."""
        if "" in batch:
            strays = sorted(batch[""])
            yield Finding("incomplete", "stray", "", f"{strays[0]!r} belongs to nothing ({len(strays)} such objects)")
        batch = {one: objects for one, objects in batch.items() if one}
        self._seen |= batch.keys()
        seals: dict[str, Seal] = {}
        raw = self._archive.store.get_many([folder_of(one) + SEAL for one in batch])
        for one in batch:
            data = raw.get(folder_of(one) + SEAL)
            try:
                if data is not None:
                    seals[one] = parse_seal(one, data)
            except ArchiveError as error:
                yield Finding("violation", "damaged", one, str(error))
            if data is None:
                yield self._unsealed(one, batch[one])
        wanted = {one: [*SealedRecord.wanted(seal, batch[one])] for one, seal in seals.items()}
        keys = {folder_of(one) + name for one, names in wanted.items() for name in names}
        found = self._archive.store.get_many(keys)
        for one, seal in seals.items():
            files = {name: found[folder_of(one) + name] for name in wanted[one] if folder_of(one) + name in found}
            yield from self._sealed(one, SealedRecord(seal, batch[one], files))

    def gone(self) -> Iterator[Finding]:
        """Tell which executions were sealed, as a checkpoint or a mark says, and are not there."""
        for one in sorted((self._witness.sealed.keys() | self._marks.keys()) - self._seen):
            yield self._removal(one, f"it is gone; {self._said_by(one)} says that it was sealed")

    def _said_by(self, one: str) -> str:
        number = self._witness.number.get(one)
        return f"checkpoint {number}" if number else "its mark"

    def _removal(self, one: str, what: str) -> Finding:
        note = self._removed(one)
        if note is None:
            return Finding("violation", "removed", one, what)
        return Finding("incomplete", "removed", one, f"it was removed on {note.removed:%Y-%m-%d}: {note.why}")

    def _removed(self, one: str) -> Removed | None:
        try:
            return self._archive.removed(one)
        except (ArchiveError, NameRefusedError):
            return None

    def _unsealed(self, one: str, objects: Mapping[str, int]) -> Finding:
        if one in self._witness.sealed or one in self._marks:
            return self._removal(one, f"its {SEAL} is gone; {self._said_by(one)} says that it was sealed")
        if OPENING in objects:
            return Finding("incomplete", "unsealed", one, "it has not ended, or waits for 'executions settle'")
        return Finding("incomplete", "stray", one, f"{len(objects)} objects without a seal, of a writer that died")

    def _sealed(self, one: str, record: SealedRecord) -> Iterator[Finding]:
        yield from (Finding("violation", kind, one, what) for kind, what in record.faults())
        strays = [name for name in record.objects if not _belongs(name, record.seal)]
        if strays:
            yield Finding("incomplete", "stray", one, f"{strays[0]!r} belongs to nothing ({len(strays)} such objects)")
        yield from self._witnessed(one, record)
        yield from self._proved(one, record)
        report = verify(record, only={"signature", "inclusion"}, trusted=self._trusted)
        yield from (Finding("violation", "signature", one, fault) for check in report.checks for fault in check.faults)
        if layout.ATTESTATION not in record.files:
            yield Finding("incomplete", "unsigned", one, "it is not signed")
        elif not self._trusted:
            yield Finding("incomplete", "unknown-signer", one, "no key is trusted here: executions keys trust FILE")
        if self._deep:
            yield from self._read_whole(one)

    def _witnessed(self, one: str, record: SealedRecord) -> Iterator[Finding]:
        found, seal = record.seal.manifest_sha256, record.seal
        said = self._witness.sealed.get(one, set())
        replaced = (said or self._marks.get(one, set())) - {found}
        note = self._removed(one) if replaced else None
        for digest in sorted(replaced - {note.manifest_sha256 if note else None}):
            yield Finding(
                "violation", "replaced", one, f"{self._said_by(one)} says that {digest} was sealed; there is {found}"
            )
        if found not in said:
            if self._witness.last:
                yield Finding("incomplete", "no-checkpoint", one, "it is in no checkpoint yet")
            return
        since, until = self._witness.when[one]
        if seal.finished and IMPORTED not in record.objects:
            if seal.finished > until + SKEW:
                yield Finding(
                    "violation", "time", one, f"it ended at {seal.finished}, after the checkpoint that has its seal"
                )
            elif since and seal.finished < since - _LATE:
                what = f"it ended at {seal.finished} and was sealed after {since}: late, or back-dated"
                yield Finding("incomplete", "late", one, what)

    def _proved(self, one: str, record: SealedRecord) -> Iterator[Finding]:
        """The proof beside a seal outlives its checkpoint, so the newest ones are missed as well."""
        try:
            told = record.proof()
        except BundleError as error:
            yield Finding("violation", "damaged", one, str(error))
            return
        number = told.told().number if told else 0
        # Looked for once more: it may have been written since this audit began.
        if number > self._witness.last and not list(self._archive.checkpoints.read([number])):
            yield Finding("violation", "checkpoint", one, f"checkpoint {number} is gone, which the proof of it is of")

    def _read_whole(self, one: str) -> Iterator[Finding]:
        try:
            source = ArchivedSource(self._archive, self._archive.bundle(one))
            faults = [*source.seal_faults(), *verify(source, trusted=self._trusted).faults]
        except (ArchiveError, BundleError) as error:
            faults = [str(error)]
        yield from (Finding("violation", "content", one, fault) for fault in faults)


def _belongs(name: str, seal: Seal) -> bool:
    return name in {SEAL, OPENING, IMPORTED, INCLUSION, SUSPENDED} or name.startswith(LATE) or seal.names(name)


def _place(key: str) -> tuple[str, str]:
    """Return of which execution an object is, and its name there; of none, and its key, where no execution can be."""
    execution_id, _, name = key.partition("/")[2].partition("/")
    try:
        return (layout.check_execution_id(execution_id), name) if name else ("", key)
    except NameRefusedError:
        return "", key


def _batches(listing: Iterable[Head]) -> Iterator[dict[str, dict[str, int]]]:
    """The executions of a listing, some at a time: what belongs to one stands together in it."""
    grouped = groupby(listing, key=lambda head: _place(head.key)[0])
    each = ((one, {_place(head.key)[1]: head.size for head in heads}) for one, heads in grouped)
    while batch := dict(islice(each, _AT_ONCE)):
        yield batch
