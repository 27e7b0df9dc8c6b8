"""The workbench: open, gather, seal, settle, archive and index the executions of one machine.

Its callers are the flow, its hooks, settle and the command line.

Law: an error before the work refuses the run; an error after the work loses
nothing. The archive gets the data first, then the metadata, then the seal.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from prefect_executions import background
from prefect_executions.archive.archive import Archive, Sealing, sent_with_seal
from prefect_executions.archive.identity import ArchiveIdentity
from prefect_executions.attestation.keys import SigningKey
from prefect_executions.bundles import layout
from prefect_executions.bundles.gather import Gathered, gather
from prefect_executions.bundles.open_bundle import SCRATCH, OpenBundle
from prefect_executions.bundles.seal import Sealed, seal
from prefect_executions.errors import ArchiveError, BundleError, LedgerError, NotFoundError
from prefect_executions.executions.ids import each_generation
from prefect_executions.executions.record import DOCUMENTS, ExecutionRecord, OpeningRecord
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.ledger.rows import ArchiveState
from prefect_executions.lifecycle.history import EntryKind, JobStatus, ObservedState, merge_states
from prefect_executions.lifecycle.status import Status
from prefect_executions.objectstore.open import open_store
from prefect_executions.settings import ArchiveLevel, Settings
from prefect_executions.tracepoints import TracePoint, trace_point
from prefect_executions.workbench.heartbeat import Leases
from prefect_executions.workbench.keyring import KeyRing, LocalSeals
from prefect_executions.workbench.local_copy import LocalCopy, check_archivable
from prefect_executions.workbench.origin import ArchivedFacts, archived_facts
from prefect_executions.workbench.sealing import (
    DeliverEvents,
    Ending,
    EventDelivery,
    content_of,
    data_of,
    discard_events,
    ended,
    late_seal,
    note_lost_outputs,
    upload,
)

log = logging.getLogger("prefect_executions")

BLOCK = "block:"
"""Prefix of an archive URL that names a Prefect block."""

NO_LOCAL_SEALS = LocalSeals(None)
_NO_FACTS = ArchivedFacts()

SEEN_ARCHIVES = ".archives"
"""The folder of the workbench with the identity of each archive that it used."""

_NEWEST = 20
"""How many of the newest executions are looked up in an archive that may have lost them."""

_MAX_OPENING_CODE = 1 << 20
"""Bytes of the Method's code in an opening record."""


class Outcome(NamedTuple):
    """The result of sealing: the final job status, the bundle's folder, and whether the archive has it."""

    job_status: JobStatus
    folder: Path
    archived: bool


class BundleSlot(NamedTuple):
    """The place of an execution on this workbench: its id, and its bundle if that exists already."""

    id: str
    bundle: OpenBundle | None


class Workbench:
    """The open executions of one machine, with the archive and the ledger that receive them.

    The archive and the ledger are opened at the first use.
    """

    def __init__(
        self,
        folder: Path,
        *,
        open_archive: Callable[[], Archive],
        open_ledger: Callable[[], Ledger],
        deliver_events: DeliverEvents = discard_events,
        signing_key: Callable[[], SigningKey | None] = lambda: None,
        local_seals: LocalSeals = NO_LOCAL_SEALS,
        seen_archives: Path | None = None,
    ) -> None:
        self.folder = folder
        self._seen_archives = seen_archives or folder / SEEN_ARCHIVES
        self.local_seals = local_seals
        self.signing_key = signing_key
        self._deliver_events = deliver_events
        self._open_archive = open_archive
        self._open_ledger = open_ledger
        self.leases = Leases(lambda: self.archive.marks)
        self._archive: Archive | None = None
        self._ledger: Ledger | None = None
        self._opening = threading.Lock()

    @classmethod
    def of(
        cls,
        settings: Settings,
        *,
        archive_block: Callable[[str], tuple[str, Mapping[str, Any]]],
        deliver_events: DeliverEvents = discard_events,
    ) -> Workbench:
        """Return the workbench that *settings* describe, after this process has finished its background work.

        *archive_block* returns the URL and the options of a Prefect block;
        *deliver_events* starts the delivery of a sealed execution's events.
        """
        background.drain()

        def open_archive() -> Archive:
            url, options = settings.archive_url, dict[str, Any]()
            if url.startswith(BLOCK):
                url, block_options = archive_block(url.removeprefix(BLOCK))
                options = dict(block_options)
            return Archive(open_store(url, options=options, timeout=settings.archive_timeout))

        return cls(
            settings.workbench_folder,
            open_archive=open_archive,
            open_ledger=lambda: Ledger.open(settings.ledger_url),
            deliver_events=deliver_events,
            signing_key=KeyRing(settings).signing_key,
            local_seals=LocalSeals(settings.local_seals_file),
        )

    def at(self, folder: Path) -> Workbench:
        """Return a Workbench in another *folder* of this machine, with this archive and ledger."""
        return Workbench(
            folder,
            open_archive=lambda: self.archive,
            open_ledger=lambda: self.ledger,
            deliver_events=self._deliver_events,
            signing_key=self.signing_key,
            local_seals=self.local_seals,
            seen_archives=self._seen_archives,
        )

    @property
    def archive(self) -> Archive:
        """The archive, opened at the first use."""
        with self._opening:
            self._archive = self._archive or self._open_archive()
            return self._archive

    @property
    def ledger(self) -> Ledger:
        """The ledger, opened at the first use."""
        with self._opening:
            self._ledger = self._ledger or self._open_ledger()
            return self._ledger

    @property
    def archive_identity(self) -> ArchiveIdentity:
        """The identity of the archive; `claim` it before a write."""
        return ArchiveIdentity(self.archive.store, self._seen_archives, lost=self.lost_execution)

    def lost_execution(self) -> str | None:
        """Return the newest archived execution of the ledger, if the archive lacks all of the newest."""
        with suppress(LedgerError):
            archived = [row.id for row in self.ledger.list(limit=_NEWEST).rows if row.archive == "archived"]
            return archived[0] if archived and not self.archive.seals_of(archived) else None
        return None

    # --- during a run ------------------------------------------------------------

    def latest(self, flow_run_id: str) -> BundleSlot:
        """Return the newest execution of a flow run on this workbench: the open one, else the last sealed one."""
        latest = BundleSlot(flow_run_id, None)
        for slot in map(self._at, each_generation(flow_run_id)):
            if slot.bundle is None:
                break
            latest = slot
        return latest

    def next_slot(self, flow_run_id: str, *, revisited: bool) -> BundleSlot:
        """Return the slot for the record of a flow run that starts.

        An open bundle is continued: by another attempt, or by a resumed run. A sealed
        bundle never changes: a manual retry is a new generation, ``<flow run id>.2``.
        With *revisited* (Prefect reports an earlier start) the archive is checked as
        well, because the first generation may have run on another machine.
        """

        def usable(slot: BundleSlot) -> bool:
            if slot.bundle is not None:
                return not slot.bundle.sealed
            return not revisited or self.archive.seal_of(slot.id) is None

        return next(filter(usable, map(self._at, each_generation(flow_run_id))))

    def begin(
        self,
        record: ExecutionRecord,
        code: Mapping[str, bytes],
        *,
        fill: Callable[[Path], None] | None = None,
    ) -> OpenBundle:
        """Create the bundle of *record* before the work starts, as `OpenBundle.create` does; call `announce` next.

        Raises:
            BundleError: If the disk cannot be written; no partial bundle is left.
        """
        return OpenBundle.create(self.folder, record.id, record.to_json() | dict(code), fill=fill)

    def announce(self, record: ExecutionRecord) -> None:
        """Write the opening record to the archive, before user code runs, and start the heartbeat.

        Call `index_open` next. After an error the Method must not run.

        Raises:
            ArchiveError: If the archive refuses, or is not the one that this workbench used before.
            SettingsError: If the signing key cannot be read, so that the seal could not be signed.
        """
        self.signing_key()
        self.archive_identity.claim()
        opening = OpeningRecord.of(record, code=OpenBundle(self.folder, record.id).code_texts(_MAX_OPENING_CODE))
        self.archive.put_opening(record.id, opening.to_json(), workbench=str(self.folder))
        trace_point(TracePoint.ANNOUNCED, record.id)
        self.leases.hold(record.id, str(self.folder))

    def index_open(self, record: ExecutionRecord) -> None:
        """Index an open execution in the ledger; a row of a sealed execution stays as it is."""
        self._index(record, archive="local")

    def gather(self, bundle: OpenBundle, level: ArchiveLevel) -> Gathered:
        """Do the heavy part of sealing: digests, `output.zip`, and the upload of data at the archive *level*.

        Raises:
            BundleError: If the outputs cannot be gathered.
        """
        with bundle.lock():
            gathered = gather(bundle)
            data = data_of(gathered, level)
            if sent_with_seal(data):
                return gathered
            try:
                self.archive_identity.claim()
                upload(self.archive, bundle, data)
            except ArchiveError as error:
                log.warning("the data of execution %s is not archived yet: %s", bundle.id, error)
        return gathered

    def seal(
        self,
        execution_id: str,
        end: Ending,
        *,
        states: Sequence[ObservedState] = (),
        before_seal: Callable[[OpenBundle], Sequence[str]] = lambda _: (),
        on_sealed: Callable[[Outcome], None] = lambda _: None,
    ) -> Outcome:
        """Seal an execution that ended as *end* says, archive it and index it; the only way to seal.

        Idempotent, and safe when several processes call it at once: a sealed bundle
        stays as it is, and only the missing steps are done. *before_seal* finishes an
        open bundle under its lock and returns notes on it. The notes, and those of
        Prefect's *states* that the history lacks, are added to the history before the
        end. *on_sealed* is called when the bundle is sealed on this machine, before it
        is archived.

        Raises:
            NotFoundError: If this workbench does not have the execution.
            BundleError: If it cannot be sealed now; a second call continues from there.
        """
        self.leases.release(execution_id)
        bundle = OpenBundle.load(self.folder, execution_id)
        with bundle.lock():
            new = not bundle.sealed
            if new:
                notes = before_seal(bundle)
                gathered = gather(bundle)
                job_status = merge_states(bundle.read(JobStatus), states)
                bundle.write_document(ended(job_status, end, gathered, notes))
                trace_point(TracePoint.FINAL_STATUS, bundle.id)
            sealed = seal(bundle, self.signing_key())
            if new and not bundle.stand_in:  # the archive has supplied the code of a stand-in
                self.local_seals.add(sealed.sha256)
            on_sealed(Outcome(sealed.record.job_status, bundle.folder, archived=False))
            return self._close(bundle, sealed)

    def stand_in(
        self,
        record: ExecutionRecord,
        code: Mapping[str, bytes],
        end: Ending,
        *,
        fill: Callable[[Path], None] | None = None,
        has_outputs: bool = False,
    ) -> Outcome:
        """Seal an execution whose bundle is out of reach, from the copy of its record in *record* and *code*.

        *fill* writes the files that were recovered into the new bundle folder; without
        *has_outputs* the record notes that the outputs were lost. If the bundle is on
        this workbench after all, that bundle is sealed. The stand-in is removed from
        the workbench when it is archived.

        Raises:
            BundleError: If the disk cannot be written.
            ArchiveError: If *fill* cannot read the archive.
        """
        if self._at(record.id).bundle is None:
            if not has_outputs and record.status in {Status.STARTED, Status.EXECUTING}:
                record = replace(record, job_status=note_lost_outputs(record.instance.hostname, record.job_status, end))
            OpenBundle(self.folder, record.id).mark_stand_in()
            self.begin(record, code, fill=fill)
        try:
            return self.seal(record.id, end)
        except NotFoundError:  # another process created, sealed and removed it
            return self.index(record.id)

    def index(self, execution_id: str) -> Outcome:
        """Index a sealed execution of the archive in the ledger.

        Raises:
            NotFoundError: If the archive does not have it sealed.
            ArchiveError: If it is damaged. With a damaged object beside the seal, it is indexed without that.
        """
        archived = self.archive.bundle(execution_id).seal
        record = self.archived_record(execution_id)
        facts = archived_facts(self.archive, execution_id, archived)
        self._index(record, archive="archived", manifest_sha256=archived.manifest_sha256, facts=facts)
        if facts.damaged is not None:
            raise facts.damaged
        return Outcome(record.job_status, self.folder / execution_id, archived=True)

    def settle(self, execution_id: str) -> Outcome | None:
        """Seal, archive and index an execution that ended on this workbench; return None if it is still open.

        Raises:
            BundleError: If the bundle is damaged.
        """
        bundle = OpenBundle.load(self.folder, execution_id)
        with bundle.lock():
            if bundle.sealed:
                check_archivable(bundle)
                return self._close(bundle, seal(bundle))
            job_status = bundle.read(JobStatus)
            if not job_status.execution_status.terminal:
                return None
            bundle.write_document(job_status.model_copy(update={"outputs": gather(bundle).outputs}))
            sealed = seal(bundle, self.signing_key())
            self.local_seals.add(sealed.sha256)
            return self._close(bundle, sealed)

    def unfinished(self) -> Iterator[str]:
        """Yield the ids of executions here that are not yet sealed, archived, indexed and their events delivered."""
        scratch = self.folder / SCRATCH
        if scratch.is_dir():
            yield from sorted(entry.name for entry in scratch.iterdir() if (self.folder / entry.name).is_dir())

    # --- after a run -------------------------------------------------------------

    def record(self, execution_id: str) -> ExecutionRecord:
        """Return the record of an execution, from this workbench or else from the archive.

        A document that was changed on this workbench after the seal is not used.

        Raises:
            NotFoundError: If neither has it.
            BundleError: If it was changed here, and the archive does not have it.
        """
        bundle = self._at(execution_id).bundle
        if bundle is None:
            return self.archived_record(execution_id)
        if not bundle.sealed:
            return bundle.record()
        try:
            return LocalCopy(bundle).record()
        except BundleError:
            with suppress(ArchiveError):
                if self.archive.seal_of(execution_id) is not None:
                    return self.archived_record(execution_id)
            raise

    def archived_record(self, execution_id: str) -> ExecutionRecord:
        """Return the record of an execution in the archive: the sealed record, else the opening record.

        Raises:
            NotFoundError: If the archive has neither.
        """
        if self.archive.seal_of(execution_id) is not None:
            bundle = self.archive.bundle(execution_id)
            names = [kind.file_name for kind in DOCUMENTS.values() if kind.file_name in bundle.manifest]
            return ExecutionRecord.from_json(bundle.read_many(names))
        opening = self.archive.opening(execution_id)
        if opening is None:
            raise NotFoundError(f"execution {execution_id} is neither on this workbench nor in the archive")
        return OpeningRecord.of_execution(execution_id, opening).record()

    # --- private -----------------------------------------------------------------

    def _at(self, execution_id: str) -> BundleSlot:
        exists = (self.folder / layout.check_execution_id(execution_id)).is_dir()
        return BundleSlot(execution_id, OpenBundle(self.folder, execution_id) if exists else None)

    def _close(self, bundle: OpenBundle, sealed: Sealed) -> Outcome:
        """Archive and index a sealed bundle and deliver its events.

        The scratch folder is removed last: while it exists, settle repeats the steps that failed.
        """
        record = sealed.record
        delivery = self._deliver_events(record.job_status)
        sealing = self._try_archive(bundle, sealed, delivery)
        if sealing is not None and not sealing.ours:
            delivery.withdraw()
            return self._lose_race(bundle, sealed)
        archived = sealing is not None
        if archived:
            delivery.archived(sealed.sha256)
        facts = ArchivedFacts(signed=sealed.attestation is not None)
        state: ArchiveState = "archived" if archived else "pending"
        indexed = self._index(record, archive=state, manifest_sha256=sealed.sha256, facts=facts)
        if archived and indexed:
            delivery.on_acknowledged(partial(_clear, bundle))
        return Outcome(record.job_status, bundle.folder, archived)

    def _try_archive(self, bundle: OpenBundle, sealed: Sealed, delivery: EventDelivery) -> Sealing | None:
        content = content_of(bundle, sealed, datetime.now(UTC))
        try:
            self.archive_identity.claim()
            upload(self.archive, bundle, content.data)
            sealing = self.archive.seal(bundle.id, content)
        except ArchiveError as error:
            log.warning("execution %s is sealed but not archived yet: %s", bundle.id, error)
            delivery.not_archived(str(error))
            return None
        if any(entry.kind is EntryKind.PAUSED for entry in sealed.record.job_status.history):
            with suppress(ArchiveError):  # a later sweep removes it
                self.archive.delete_suspended(bundle.id)
        return sealing

    def _lose_race(self, bundle: OpenBundle, sealed: Sealed) -> Outcome:
        """Keep the record of the process that sealed first; set this bundle aside and note it in the archive.

        A bundle that never ran, or a stand-in, has nothing to add and is discarded.
        """
        if sealed.record.started is not None and not bundle.stand_in:
            self.archive.put_late_seal(bundle.id, late_seal(sealed, datetime.now(UTC)).to_json())
            log.warning("another process sealed execution %s first; this bundle moves to %s", bundle.id, bundle.aside)
            bundle.set_aside()
        else:
            bundle.discard()
        return self.index(bundle.id)

    def _index(
        self,
        record: ExecutionRecord,
        *,
        archive: ArchiveState,
        manifest_sha256: str | None = None,
        facts: ArchivedFacts = _NO_FACTS,
    ) -> bool:
        try:
            self.ledger.record(
                record,
                archive=archive,
                manifest_sha256=manifest_sha256,
                imported=facts.imported,
                signed=facts.signed,
                annotations=facts.annotations,
            )
            trace_point(TracePoint.INDEXED, record.id, archive)
        except LedgerError as error:
            log.warning("execution %s is not in the ledger yet: %s", record.id, error)
            return False
        return True


def _clear(bundle: OpenBundle) -> None:
    """Remove the scratch folder, by which `unfinished` finds the bundle."""
    if bundle.stand_in:
        bundle.discard()
    else:
        shutil.rmtree(bundle.scratch, ignore_errors=True)
    trace_point(TracePoint.CLEARED, bundle.id)
