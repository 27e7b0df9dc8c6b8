"""The steps of sealing as values: the final job status, the files to archive, the note on a lost race, the events.

`Workbench.seal` puts them in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from typing import ClassVar, NamedTuple, Protocol

from prefect_executions.archive.archive import Archive, Content, sent_with_seal
from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.gather import Gathered
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.seal import Sealed
from prefect_executions.documents import ArchiveDocument, Time
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import BundleFile
from prefect_executions.lifecycle.history import (
    EntryKind,
    JobStatus,
    PrefectState,
    add_entry,
    advance,
    with_end_after,
    with_steps_ended,
)
from prefect_executions.lifecycle.status import Observer, Reason, Status
from prefect_executions.settings import ArchiveLevel


class Ending(NamedTuple):
    """How an execution ended, as observed by the process that seals it."""

    status: Status
    reason: Reason | None
    at: datetime
    observer: Observer
    prefect_state: PrefectState | None = None
    message: str | None = None
    alive_until: datetime | None = None
    """The last evidence of life, if the end itself was not observed: it was found at `at`."""


def ended(job_status: JobStatus, end: Ending, gathered: Gathered, notes: Sequence[str] = ()) -> JobStatus:
    """Return the final job status: *job_status* with the notes, the end and the outputs.

    The notes are *notes*, and the notes of *gathered* on files that could not be kept.
    A terminal status stays as it is and only receives the outputs.
    """
    if not job_status.execution_status.terminal:
        for note in (*gathered.notes, *notes):
            job_status = add_entry(job_status, EntryKind.NOTE, end.at, observer=end.observer, message=note)
        interrupted = end.status is Status.CANCELLED or end.reason not in {None, Reason.ERROR}
        ran = job_status.execution_status in {Status.STARTED, Status.EXECUTING}
        job_status = advance(
            job_status,
            end.status,
            end.at,
            observer=end.observer,
            prefect_state=end.prefect_state,
            reason=end.reason,
            message=end.message,
        )
        job_status = job_status.model_copy(update={"partial": True if interrupted and ran else None})
        if end.alive_until is not None:
            job_status = with_end_after(job_status, end.alive_until)
        if interrupted:
            job_status = with_steps_ended(job_status)
    return job_status.model_copy(update={"outputs": gathered.outputs})


def note_lost_outputs(hostname: str | None, job_status: JobStatus, end: Ending) -> JobStatus:
    """Return *job_status* with a note that outputs and logs were lost with the workbench on that machine."""
    message = f"outputs and logs were lost with the workbench on {hostname}"
    if hostname is None:  # the record was never opened
        message = "outputs and logs, if any, were lost with the workbench on an unknown machine"
    return add_entry(job_status, EntryKind.NOTE, end.at, observer=end.observer, message=message)


class LateSeal(ArchiveDocument):
    """The result of a process that lost the race to seal an execution; it does not change the record."""

    file_name: ClassVar[str] = "late.json"

    execution_id: str
    status: Status
    finished: Time | None = None
    message: str | None = None
    hostname: str | None = None
    manifest_sha256: str
    """Digest of the manifest that was sealed too late; that machine keeps its bundle aside."""
    noted: Time


def late_seal(sealed: Sealed, at: datetime) -> LateSeal:
    """Return the note on a bundle that was sealed too late."""
    record = sealed.record
    return LateSeal(
        execution_id=record.id,
        status=record.status,
        finished=record.finished,
        message=record.job_status.message,
        hostname=record.instance.hostname,
        manifest_sha256=sealed.sha256,
        noted=at,
    )


def content_of(bundle: OpenBundle, sealed: Sealed, at: datetime) -> Content:
    """Return the files of a sealed bundle to archive at its archive level."""
    record, level = sealed.record, sealed.record.request.archive
    files = [*_listed(bundle, sealed), BundleFile(layout.MANIFEST, sealed.sha256, len(sealed.manifest))]
    if sealed.attestation is not None:
        files.append(BundleFile(layout.ATTESTATION, sha256(sealed.attestation).hexdigest(), len(sealed.attestation)))
    return Content(
        folder=bundle.folder,
        files=[file for file in files if not is_bulk(file.path)],
        data=[file for file in files if _is_data(file.path, level)],
        absent=[file.path for file in files if _is_absent(file.path, level)],
        status=record.status,
        finished=record.job_status.end_found,
        at=at,
    )


def data_of(gathered: Gathered, level: ArchiveLevel) -> list[BundleFile]:
    """Return the data files that go to the archive at *level*; they may be uploaded before the bundle is sealed."""
    return [file for file in (*gathered.inputs_and_code, gathered.output_zip) if _is_data(file.path, level)]


def upload(archive: Archive, bundle: OpenBundle, data: Sequence[BundleFile]) -> None:
    """Upload data files that the archive does not have yet; small ones are uploaded together with the seal.

    Raises:
        ArchiveError: If the store fails; a second call continues from there.
    """
    for file in () if sent_with_seal(data) else data:
        archive.put_data(bundle.id, bundle.folder / file.path, file.sha256)


def is_bulk(path: str) -> bool:
    """Whether *path* is data, which the archive stores by its digest or inside output.zip."""
    return path == layout.OUTPUT_ZIP or path.startswith((f"{layout.OUTPUTS}/", f"{layout.INPUTS}/"))


def _is_data(path: str, level: ArchiveLevel) -> bool:
    if path == layout.OUTPUT_ZIP:
        return level is not ArchiveLevel.NONE
    return path.startswith(f"{layout.INPUTS}/") and level is ArchiveLevel.FULL


def _is_absent(path: str, level: ArchiveLevel) -> bool:
    """Whether the archive has *path* in neither form: as a file of its own, or as an output inside output.zip."""
    inside_zip = path.startswith(f"{layout.OUTPUTS}/") and level is not ArchiveLevel.NONE
    return is_bulk(path) and not _is_data(path, level) and not inside_zip


def _listed(bundle: OpenBundle, sealed: Sealed) -> Iterator[BundleFile]:
    for path, digest in manifest.parse(sealed.manifest).items():
        try:
            size = (bundle.folder / path).stat().st_size
        except OSError as error:
            raise BundleError(f"{path} of {bundle.id} cannot be read for the archive: {error.strerror}") from error
        yield BundleFile(path, digest, size)


class EventDelivery(Protocol):
    """The delivery of one sealed execution's events, which runs beside its archiving."""

    def archived(self, manifest_sha256: str) -> None:
        """Report that the archive has the complete record."""

    def not_archived(self, why: str) -> None:
        """Report why the archive refused the record."""

    def withdraw(self) -> None:
        """Deliver nothing: another process sealed the execution first."""

    def on_acknowledged(self, act: Callable[[], None]) -> None:
        """Call *act* when all events are acknowledged; otherwise settle delivers them again."""


DeliverEvents = Callable[[JobStatus], EventDelivery]


class _NoDelivery:
    def archived(self, manifest_sha256: str) -> None:
        pass

    def not_archived(self, why: str) -> None:
        pass

    def withdraw(self) -> None:
        pass

    def on_acknowledged(self, act: Callable[[], None]) -> None:
        act()


def discard_events(job_status: JobStatus) -> EventDelivery:  # noqa: ARG001 - it is a `DeliverEvents`
    """Deliver no events, for a workbench without Prefect."""
    return _NoDelivery()
