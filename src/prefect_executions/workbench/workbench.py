"""Keep a record: open, gather, seal, settle, archive, index, and rebuild the index.

Doors (flow, hooks, settle, command line) parse, call this room and show the
answer. It holds the order of things (design, laws 2 to 5): before the work it
refuses, after the work it never loses; data, then metadata, then the seal.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from prefect_executions.archive.archive import Archive, Sealing
from prefect_executions.archive.objects import Imported
from prefect_executions.attestation.keys import SigningKey
from prefect_executions.bundles import layout
from prefect_executions.bundles.gather import Gathered, gather
from prefect_executions.bundles.open_bundle import SCRATCH, OpenBundle
from prefect_executions.bundles.seal import Sealed, seal
from prefect_executions.errors import ArchiveError, LedgerError, NotFoundError
from prefect_executions.executions.ids import each_generation
from prefect_executions.executions.record import DOCUMENTS, ExecutionRecord, OpeningRecord
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.ledger.rows import ArchiveState, ImportOrigin
from prefect_executions.lifecycle.history import EntryKind, JobStatus, ObservedState, merge_states
from prefect_executions.lifecycle.status import Status
from prefect_executions.objectstore.open import open_store
from prefect_executions.settings import ArchiveLevel, Settings
from prefect_executions.tracepoints import TracePoint, trace_point
from prefect_executions.workbench import background
from prefect_executions.workbench.background import DeliverEvents, EventDelivery, tell_nobody
from prefect_executions.workbench.heartbeat import Leases
from prefect_executions.workbench.keyring import KeyRing
from prefect_executions.workbench.sealing import Ending, content_of, data_of, ended, late_seal, lost_with, upload

log = logging.getLogger("prefect_executions")

BLOCK = "block:"

_MOST_CODE = 1024**2


class Outcome(NamedTuple):
    """What became of a sealed execution: its final status, its folder, and whether the archive has it."""

    job_status: JobStatus
    folder: Path
    archived: bool


class BundleSlot(NamedTuple):
    """Where a flow run's record goes: the execution's id and, when it is on this workbench already, its bundle."""

    id: str
    bundle: OpenBundle | None


class Workbench:
    """The live executions of one machine, with the archive and the ledger that they go to.

    The archive and the ledger are opened at the first use, so that a door pays
    only for what it needs.
    """

    def __init__(
        self,
        folder: Path,
        *,
        open_archive: Callable[[], Archive],
        open_ledger: Callable[[], Ledger],
        tell: DeliverEvents = tell_nobody,
        signing_key: Callable[[], SigningKey | None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.signing_key = signing_key
        self._tell = tell
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
        tell: DeliverEvents = tell_nobody,
    ) -> Workbench:
        """Return the workbench that *settings* describe.

        *archive_block* looks up a Prefect block's URL and options; *tell* tells the
        world of each end. What this process has still in hand is waited for, so that
        it is seen.
        """
        background.drain()

        def open_archive() -> Archive:
            url, options = settings.archive_url, dict[str, Any]()
            if url.startswith(BLOCK):
                url, found = archive_block(url.removeprefix(BLOCK))
                options = dict(found)
            return Archive(open_store(url, options=options, timeout=settings.archive_timeout))

        return cls(
            settings.workbench_folder,
            open_archive=open_archive,
            open_ledger=lambda: Ledger.open(settings.ledger_url),
            tell=tell,
            signing_key=KeyRing(settings).signing_key,
        )

    def at(self, folder: Path) -> Workbench:
        """Return another Workbench of this machine that has the same archive and ledger."""
        return Workbench(
            folder,
            open_archive=lambda: self.archive,
            open_ledger=lambda: self.ledger,
            tell=self._tell,
            signing_key=self.signing_key,
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

    # --- a run -----------------------------------------------------------------

    def latest(self, flow_run_id: str) -> BundleSlot:
        """Return the newest execution of a flow run on this workbench: the open one, else the last that was sealed."""
        found = BundleSlot(flow_run_id, None)
        for slot in map(self._at, each_generation(flow_run_id)):
            if slot.bundle is None:
                break
            found = slot
        return found

    def next_place(self, flow_run_id: str, *, revisited: bool) -> BundleSlot:
        """Return where a starting run's record goes.

        An open bundle is continued: another attempt, or a resumed run. A sealed one
        is never touched: a manual retry is a new execution, ``<flow run id>.2``. With
        *revisited* (Prefect says that the run started before) the archive is asked,
        too, because the first generation may have been on another machine.
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
        """Make the bundle of *record*, before any work is done, as `OpenBundle.create` does; `announce` follows.

        Raises:
            BundleError: If the disk refuses; nothing is left then.
        """
        return OpenBundle.create(self.folder, record.id, record.to_json() | dict(code), fill=fill)

    def announce(self, record: ExecutionRecord) -> None:
        """Tell the archive what is known now, when user code is about to run; `index_open` follows.

        Raises:
            ArchiveError: If the archive refuses; the Method must not run then.
            SettingsError: If its seal could not be signed; nor then.
        """
        self.signing_key()
        opening = OpeningRecord.of(record, code=_code(self.folder / record.id))
        self.archive.open_record(record.id, opening.to_json(), place=str(self.folder))
        trace_point(TracePoint.ANNOUNCED, record.id)
        self.leases.hold(record.id, str(self.folder))

    def index_open(self, record: ExecutionRecord) -> None:
        """Take an execution that is open into the ledger; where it was sealed meanwhile, nothing changes."""
        self._index(record, archive="local")

    def gather(self, bundle: OpenBundle, level: ArchiveLevel) -> Gathered:
        """Do the heavy part of sealing: digests, `output.zip`, and the upload of what is big at the archive *level*.

        Raises:
            BundleError: If the outputs cannot be gathered.
        """
        with bundle.lock():
            gathered = gather(bundle)
            try:
                upload(self.archive, bundle, data_of(gathered, level))
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
            NotFoundError: If this workbench has no such execution.
            BundleError: If it cannot be sealed now; calling again goes on from there.
        """
        self.leases.release(execution_id)
        bundle = OpenBundle.load(self.folder, execution_id)
        with bundle.lock():
            if not bundle.sealed:
                notes = before_seal(bundle)
                gathered = gather(bundle)
                job_status = merge_states(bundle.read(JobStatus), states)
                bundle.write_document(ended(job_status, end, gathered, notes))
                trace_point(TracePoint.FINAL_STATUS, bundle.id)
            sealed = seal(bundle, self.signing_key())
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
        """Seal an execution whose bundle is on no disk that can be reached, from what is known elsewhere.

        *fill* puts what is known of its files into the folder that is about to become
        its bundle; unless that *has_outputs*, the record says that they were lost.
        Where its bundle is here after all, that is sealed. Once it is archived nothing of it stays here.

        Raises:
            BundleError: If the disk refuses.
            ArchiveError: If *fill* cannot ask the archive.
        """
        if self._at(record.id).bundle is None:
            if not has_outputs and record.status in {Status.STARTED, Status.EXECUTING}:
                record = replace(record, job_status=lost_with(record.instance.hostname, record.job_status, end))
            OpenBundle(self.folder, record.id).mark_stand_in()
            self.begin(record, code, fill=fill)
        try:
            return self.seal(record.id, end)
        except NotFoundError:  # another made it, sealed it and took it away
            return self.index(record.id)

    def index(self, execution_id: str) -> Outcome:
        """Take a sealed execution of the archive into the ledger.

        Raises:
            NotFoundError: If the archive has no such sealed execution.
        """
        found = self.archive.bundle(execution_id).seal
        record = self.archived_record(execution_id)
        came = came_from(self.archive.imported(execution_id))
        self._index(record, archive="archived", manifest_sha256=found.manifest_sha256, came=came)
        return Outcome(record.job_status, self.folder / execution_id, archived=True)

    def settle(self, execution_id: str) -> Outcome | None:
        """Finish an execution of this workbench that ended but is not all done; None while it is still open.

        Raises:
            BundleError: If the bundle is damaged.
        """
        bundle = OpenBundle.load(self.folder, execution_id)
        with bundle.lock():
            if bundle.sealed:
                return self._close(bundle, seal(bundle))
            job_status = bundle.read(JobStatus)
            if not job_status.execution_status.terminal:
                return None
            bundle.write_document(job_status.model_copy(update={"outputs": gather(bundle).outputs}))
            return self._close(bundle, seal(bundle, self.signing_key()))

    def unfinished(self) -> Iterator[str]:
        """Yield the ids of executions on this workbench that are not sealed, archived, indexed and told."""
        scratch = self.folder / SCRATCH
        if scratch.is_dir():
            yield from sorted(entry.name for entry in scratch.iterdir() if (self.folder / entry.name).is_dir())

    # --- afterwards --------------------------------------------------------------

    def record(self, execution_id: str) -> ExecutionRecord:
        """Return what is known of an execution: from this workbench, else from the archive.

        Raises:
            NotFoundError: If neither has it.
        """
        place = self._at(execution_id)
        if place.bundle is not None:
            return place.bundle.record()
        return self.archived_record(execution_id)

    def archived_record(self, execution_id: str) -> ExecutionRecord:
        """Return what the archive tells of an execution: the sealed record, else the opening record.

        Raises:
            NotFoundError: If the archive has neither.
        """
        if self.archive.seal_of(execution_id) is not None:
            bundle = self.archive.bundle(execution_id)
            names = [kind.file_name for kind in DOCUMENTS.values() if kind.file_name in bundle.manifest]
            return ExecutionRecord.from_json(bundle.read_many(names))
        opening = self.archive.opening(execution_id)
        if opening is None:
            raise NotFoundError(f"there is no execution {execution_id} on this workbench or in the archive")
        return OpeningRecord.from_json(opening).record()

    def rebuild_ledger(self) -> int:
        """Make the ledger anew from the archive and this workbench; return how many executions it has."""
        count = 0
        self.ledger.clear()
        with self.ledger.bulk() as bulk:
            for execution_id in self.archive.ids():
                found = self.archive.seal_of(execution_id)
                try:
                    record = self.archived_record(execution_id)
                except NotFoundError:  # of a writer that is at work or was killed: settle sweeps it up
                    continue
                bulk.record(
                    record,
                    archive="archived" if found else "local",
                    manifest_sha256=found.manifest_sha256 if found else None,
                    came=came_from(self.archive.imported(execution_id)) if found else None,
                )
                count += 1
            for execution_id in self.unfinished():
                bundle = OpenBundle.load(self.folder, execution_id)
                if self.archive.seal_of(execution_id) is None:
                    sealed = seal(bundle) if bundle.sealed else None
                    bulk.record(
                        sealed.record if sealed else bundle.record(),
                        archive="pending" if sealed else "local",
                        manifest_sha256=sealed.sha256 if sealed else None,
                    )
        return count

    # --- inside --------------------------------------------------------------------

    def _at(self, execution_id: str) -> BundleSlot:
        there = (self.folder / layout.check_execution_id(execution_id)).is_dir()
        return BundleSlot(execution_id, OpenBundle(self.folder, execution_id) if there else None)

    def _close(self, bundle: OpenBundle, sealed: Sealed) -> Outcome:
        """Archive, index and tell a sealed bundle; whatever fails is left to settle, and the scratch folder says so."""
        record = sealed.record
        telling = self._tell(record.job_status)
        sealing = self._try_archive(bundle, sealed, telling)
        if sealing is not None and not sealing.ours:
            telling.withdraw()
            return self._come_late(bundle, sealed)
        archived = sealing is not None
        if archived:
            telling.archived(sealed.sha256)
        indexed = self._index(record, archive="archived" if archived else "pending", manifest_sha256=sealed.sha256)
        if archived and indexed:
            telling.on_acknowledged(partial(_clear, bundle))
        return Outcome(record.job_status, bundle.folder, archived)

    def _try_archive(self, bundle: OpenBundle, sealed: Sealed, telling: EventDelivery) -> Sealing | None:
        content = content_of(bundle, sealed, datetime.now(UTC))
        try:
            upload(self.archive, bundle, content.data)
            sealing = self.archive.seal(bundle.id, content)
        except ArchiveError as error:
            log.warning("execution %s is sealed but not archived yet: %s", bundle.id, error)
            telling.not_archived(str(error))
            return None
        if any(entry.kind is EntryKind.PAUSED for entry in sealed.record.job_status.history):
            with suppress(ArchiveError):  # a sweep takes it
                self.archive.forget_suspended(bundle.id)
        return sealing

    def _come_late(self, bundle: OpenBundle, sealed: Sealed) -> Outcome:
        """Another sealed the execution before: its record stands; what is here lies aside and is told as a late word.

        What never ran has nothing to tell, and neither has a stand-in.
        """
        if sealed.record.started is not None and not bundle.stand_in:
            self.archive.note_late(bundle.id, late_seal(sealed, datetime.now(UTC)).to_json())
            log.warning("execution %s was sealed by another before; what is here lies in %s", bundle.id, bundle.aside)
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
        came: ImportOrigin | None = None,
    ) -> bool:
        try:
            self.ledger.record(record, archive=archive, manifest_sha256=manifest_sha256, came=came)
            trace_point(TracePoint.INDEXED, record.id, archive)
        except LedgerError as error:
            log.warning("execution %s is not in the ledger yet: %s", record.id, error)
            return False
        return True


def came_from(imported: Imported | None) -> ImportOrigin | None:
    """Return what the ledger holds of the mark of an import, or None where there is no mark."""
    return ImportOrigin(at=imported.imported, origin=imported.origin) if imported else None


def _clear(bundle: OpenBundle) -> None:
    """Take away what says that something is still to be done."""
    if bundle.stand_in:
        bundle.discard()
    else:
        shutil.rmtree(bundle.scratch, ignore_errors=True)
    trace_point(TracePoint.CLEARED, bundle.id)


def _code(folder: Path) -> dict[str, str]:
    """The Method's own files in an open bundle, as far as they are text and not too much for an opening record."""
    found: dict[str, str] = {}
    left = _MOST_CODE
    for above, _, names in sorted(os.walk(folder / layout.CODE)):
        for path in (Path(above, name) for name in sorted(names)):
            with suppress(OSError, UnicodeDecodeError):
                if path.stat().st_size <= left:
                    text = path.read_bytes().decode()
                    found[path.relative_to(folder).as_posix()] = text
                    left -= len(text)
    return found
