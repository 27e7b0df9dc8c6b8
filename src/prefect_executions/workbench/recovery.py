"""A suspended run leaves its open bundle in the archive, and whoever resumes it goes on with that.

The process that resumes may be on this machine or on another one. What the
archive holds is newer than what lies here when the bundle here does not know the
suspension that Prefect told last.

What the archive has of an execution whose Workbench is out of reach: its opening record, and data sent early.

What still runs of an execution whose own process is gone: the scripts of a descriptor Method outlive it.

Finish what is left to do on a workbench: seal what has ended, archive and index what is sealed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple
from uuid import UUID

from prefect_executions.archive.archive import Archive
from prefect_executions.archive.objects import folder_of
from prefect_executions.bundles import layout
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.suspend import pack, unpack
from prefect_executions.bundles.zip_reader import TRUSTED_LIMITS, ZipReader
from prefect_executions.errors import BundleError, ExecutionsError, NotFoundError
from prefect_executions.executions.record import ExecutionRecord, OpeningRecord, kept_files
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.lifecycle.status import Status
from prefect_executions.workbench.workbench import BundleSlot, Outcome, Workbench


def suspend(workbench: Workbench, bundle: OpenBundle) -> None:
    """Put what the open bundle holds into the archive, because its process is about to end.

    Raises:
        BundleError: If it cannot be packed.
        ArchiveError: If the archive refuses; on this machine the run can still be resumed.
    """
    with bundle.lock():
        packed = pack(bundle)
        try:
            workbench.archive.keep_suspended(bundle.id, packed)
        finally:
            packed.unlink(missing_ok=True)


def resume(workbench: Workbench, place: BundleSlot, suspension: UUID | None) -> BundleSlot:
    """Return *place* with the bundle that was suspended last, brought from the archive when it is not here.

    *suspension* is the id of the last state of Prefect by which the run was suspended.

    Raises:
        BundleError: If what the archive holds is damaged.
        ArchiveError: If the archive cannot be asked.
    """
    if place.bundle is not None and _knows(place.bundle, suspension):
        return place
    return BundleSlot(place.id, bring_back(workbench, place.id, over=place.bundle) or place.bundle)


def bring_back(workbench: Workbench, execution_id: str, *, over: OpenBundle | None = None) -> OpenBundle | None:
    """Make the bundle here what the archive holds of a suspended run, in the place of *over*; None where it has none.

    Raises:
        BundleError: If what the archive holds is damaged, or another bundle than *over* is there.
        ArchiveError: If the archive cannot be asked.
    """
    stream = workbench.archive.suspended(execution_id)
    if stream is None:
        return None
    with stream:
        if over is not None:
            over.discard()
        return unpack(stream, workbench.folder, execution_id)


def _knows(bundle: OpenBundle, suspension: UUID | None) -> bool:
    told = (entry.prefect_state for entry in bundle.read(JobStatus).history)
    return suspension in {state.id for state in told if state is not None}


_DATA = "data/"


class Recovered(NamedTuple):
    """A record as it was opened, with the Method's code; `outputs` is the key of an output.zip that was sent early."""

    record: ExecutionRecord
    code: dict[str, bytes]
    inputs: dict[str, str]
    outputs: str | None


def recover(archive: Archive, execution_id: str) -> Recovered | None:
    """Return what the archive has of an execution that was never sealed, or None where it was not announced.

    Raises:
        ArchiveError: If the archive cannot be asked.
        BundleError: If its opening record is damaged.
    """
    data = archive.opening(execution_id)
    if data is None:
        return None
    opening = OpeningRecord.from_json(data)
    record = opening.record()
    found = {one.key.rpartition("/")[2]: one for one in archive.store.list(folder_of(execution_id) + _DATA)}
    staged = {file.sha256 for file in record.request.files}
    kept = {file.path: file.sha256 for file in record.request.files if file.path and file.sha256 in found}
    record = replace(record, request=kept_files(record.request, kept))
    zips = sorted((one for digest, one in found.items() if digest not in staged), key=lambda one: str(one.modified))
    code = {path: text.encode() for path, text in opening.code.items()}
    return Recovered(record, code, kept, zips[-1].key if zips else None)


def restore(archive: Archive, recovered: Recovered, folder: Path) -> None:
    """Bring what was sent early into the *folder* that is about to become a bundle.

    Raises:
        ArchiveError: If the archive cannot be asked.
        BundleError: If what lies there is damaged.
        OSError: If the disk cannot be written.
    """
    data = folder_of(recovered.record.id) + _DATA
    for path, digest in recovered.inputs.items():
        _fetch(archive, data + digest, folder / path)
    if recovered.outputs is not None:
        zipped = folder / layout.OUTPUT_ZIP
        _fetch(archive, recovered.outputs, zipped)
        with zipped.open("rb") as stream:
            _unpack(stream, folder)
        zipped.unlink()


def _fetch(archive: Archive, key: str, to: Path) -> None:
    found = archive.store.head(key)
    if found is not None:
        to.parent.mkdir(parents=True, exist_ok=True)
        archive.store.download(key, to, found.size, key.rpartition("/")[2])


def _unpack(stream: BinaryIO, folder: Path) -> None:
    reader = ZipReader.open(stream, TRUSTED_LIMITS)
    for entry in reader.entries.values():
        if not entry.name.startswith(f"{layout.OUTPUTS}/"):
            raise BundleError(f"{layout.OUTPUT_ZIP} of {folder.name} holds {entry.name!r}, which is no output")
        place = folder / entry.name
        if entry.is_folder:
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("wb") as file:
            for block in reader.blocks(entry):
                file.write(block)


PLANS = "plan"
"""The folder below ``code/`` that has a plan for each run of scripts."""

_GRACE = 1.0


def end_runs(bundle: OpenBundle) -> tuple[str, ...]:
    """End the runs of scripts of *bundle* that nobody waits for any more, remove them, and return a note on each."""
    plans = sorted((bundle.paths.code / PLANS).glob("*/plan.json"))
    return tuple(note for path in plans for note in _end(bundle, *_named(path.read_bytes())))


def _named(plan: bytes) -> tuple[str, str]:
    told = json.loads(plan)
    return str(told["runtime"]), str(told["request"]["id"])


def _end(bundle: OpenBundle, name: str, run_id: str) -> Iterator[str]:
    # Few executions have scripts, and the runtimes take long to import.
    from prefect_executions.runtimes.registry import open_runtime  # noqa: PLC0415

    try:
        runtime = open_runtime(name, state=bundle.scratch / "runs")
        try:
            run = runtime.find(run_id)
            end = run.cancel(_GRACE)
            run.discard()
            code = "" if end.code is None else f" with exit code {end.code}"
            yield f"nobody waited any more for the scripts of {run_id}: {end.status}{code}"
        finally:
            runtime.close()
    except NotFoundError:
        return
    except (ExecutionsError, TimeoutError) as error:
        yield f"the scripts of {run_id} may still run, on {name}: {error}"


STALE = timedelta(days=1)
"""An upload that was begun so long ago is not going on any more: one is tried for minutes."""


class Settled(NamedTuple):
    """What became of one execution; `message` says why. One that is to be reported needs somebody to look at it."""

    id: str
    result: Literal["archived", "pending", "open", "report", "failed"]
    message: str | None = None
    status: Status | None = None

    @classmethod
    def of(cls, execution_id: str, outcome: Outcome) -> Settled:
        """Return what a sealing came to."""
        told = outcome.job_status
        return cls(execution_id, "archived" if outcome.archived else "pending", told.message, told.execution_status)


def settle_all(workbench: Workbench) -> Iterator[Settled]:
    """Try once to finish each unfinished execution of *workbench*; one that fails hinders no other.

    An execution that has not ended is told as ``open`` and left alone.
    """
    for execution_id in list(workbench.unfinished()):
        try:
            outcome = workbench.settle(execution_id)
        except ExecutionsError as error:
            yield Settled(execution_id, "failed", str(error))
            continue
        if outcome is None:
            yield Settled(execution_id, "open")
        else:
            yield Settled.of(execution_id, outcome)


def sweep_uploads(workbench: Workbench, now: datetime) -> int:
    """Remove what uploads that died long ago left in the archive's store; return how many there were.

    Raises:
        ArchiveError: If the store fails.
    """
    return workbench.archive.store.abort_stale(now - STALE)
