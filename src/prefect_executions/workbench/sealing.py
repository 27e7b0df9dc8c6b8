"""How an execution ended, as far as the one who seals it knows, and the final status that follows from it.

Which files of a bundle go to the archive, in which form, and what is done when another was sealed first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from typing import ClassVar, NamedTuple

from prefect_executions.archive.archive import Archive, Content, goes_along
from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.gather import Gathered
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.seal import Sealed
from prefect_executions.documents import Document, Time
from prefect_executions.executions.record import BundleFile
from prefect_executions.lifecycle.history import EntryKind, JobStatus, PrefectState, add_entry, advance
from prefect_executions.lifecycle.status import Observer, Reason, Status
from prefect_executions.settings import ArchiveLevel


class Ending(NamedTuple):
    """How an execution ended, as far as the one who seals it knows."""

    status: Status
    reason: Reason | None
    at: datetime
    observer: Observer
    prefect_state: PrefectState | None = None
    message: str | None = None


def ended(job_status: JobStatus, end: Ending, gathered: Gathered, notes: Sequence[str] = ()) -> JobStatus:
    """Return the final job status: what could not be kept and other *notes*, the end, the outputs.

    One that is terminal already keeps its end.
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
    return job_status.model_copy(update={"outputs": gathered.outputs})


def lost_with(hostname: str | None, job_status: JobStatus, end: Ending) -> JobStatus:
    """Return the job status with the note that outputs and logs were lost with the Workbench on that machine."""
    told = f"outputs and logs were lost with the workbench on {hostname}"
    if hostname is None:  # its record was never opened
        told = "outputs and logs, if there were any, were lost with the workbench on a machine that nobody told"
    return add_entry(job_status, EntryKind.NOTE, end.at, observer=end.observer, message=told)


class LateSeal(Document):
    """What was heard of an execution after another had sealed it; it changes nothing in the record."""

    file_name: ClassVar[str] = "late.json"

    execution_id: str
    status: Status
    finished: Time | None = None
    message: str | None = None
    hostname: str | None = None
    manifest_sha256: str
    """The digest of the manifest that was sealed too late; its bundle lies aside on that machine."""
    noted: Time


def late_seal(sealed: Sealed, at: datetime) -> LateSeal:
    """Return what a bundle that was sealed too late has to say."""
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
    """Return what of a sealed bundle is to be archived at its archive level."""
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
        finished=record.finished,
        at=at,
    )


def data_of(gathered: Gathered, level: ArchiveLevel) -> list[BundleFile]:
    """Return the big files that go to the archive at that level, which may be sent before the bundle is sealed."""
    return [file for file in (*gathered.inputs_and_code, gathered.output_zip) if _is_data(file.path, level)]


def upload(archive: Archive, bundle: OpenBundle, data: Sequence[BundleFile]) -> None:
    """Send big files that are not there yet; what is little goes along with the seal.

    Raises:
        ArchiveError: If the store fails; the same call goes on from there.
    """
    for file in () if goes_along(data) else data:
        archive.keep_data(bundle.id, bundle.folder / file.path, file.sha256)


def is_bulk(path: str) -> bool:
    """Whether *path* is data, which lies in the archive by its digest or inside output.zip."""
    return path == layout.OUTPUT_ZIP or path.startswith((f"{layout.OUTPUTS}/", f"{layout.INPUTS}/"))


def _is_data(path: str, level: ArchiveLevel) -> bool:
    if path == layout.OUTPUT_ZIP:
        return level is not ArchiveLevel.NONE
    return path.startswith(f"{layout.INPUTS}/") and level is ArchiveLevel.FULL


def _is_absent(path: str, level: ArchiveLevel) -> bool:
    """Whether the archive holds *path* in no form: single outputs lie in output.zip."""
    inside_zip = path.startswith(f"{layout.OUTPUTS}/") and level is not ArchiveLevel.NONE
    return is_bulk(path) and not _is_data(path, level) and not inside_zip


def _listed(bundle: OpenBundle, sealed: Sealed) -> Iterator[BundleFile]:
    for path, digest in manifest.parse(sealed.manifest).items():
        yield BundleFile(path, digest, (bundle.folder / path).stat().st_size)
