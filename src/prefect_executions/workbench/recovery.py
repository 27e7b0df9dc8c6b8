"""Recovery: resume a suspended run, restore a lost bundle from the archive, end orphaned scripts, finish sealing.

- A suspended run stores its open bundle in the archive. The process that resumes the run, on this
  machine or another one, continues with that bundle (`suspend`, `resume`, `bring_back`).
- The archive has the opening record, and data that was uploaded early, of an execution whose
  workbench is out of reach (`recover`, `restore`).
- The scripts of a descriptor Method may outlive the process of their execution (`end_script_runs`).
- A bundle may have ended without being sealed, archived or indexed (`settle_all`, `sweep_uploads`).
- A sealed bundle may have been changed since (`restore_changed`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
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
from prefect_executions.executions.record import ExecutionRecord, OpeningRecord, keep_files
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.lifecycle.status import Status
from prefect_executions.workbench.local_copy import restore_copy, trust_if_intact
from prefect_executions.workbench.lookup import local_ids
from prefect_executions.workbench.workbench import BundleSlot, Outcome, Workbench

STALE = timedelta(days=1)
"""Age after which an unfinished upload is abandoned; a living upload is retried for minutes only."""

_DATA = "data/"

_GRACE = 1.0
"""Seconds that scripts get to exit before they are killed."""


def suspend(workbench: Workbench, bundle: OpenBundle) -> None:
    """Store the open bundle in the archive, because its process is about to end.

    Raises:
        BundleError: If it cannot be packed.
        ArchiveError: If the archive refuses; this machine can still resume the run.
    """
    with bundle.lock():
        packed = pack(bundle)
        try:
            workbench.archive_identity.claim()
            workbench.archive.put_suspended(bundle.id, packed)
        finally:
            packed.unlink(missing_ok=True)


def resume(workbench: Workbench, slot: BundleSlot, suspension: UUID | None) -> BundleSlot:
    """Return *slot* with the newest suspended bundle, fetched from the archive unless it is here.

    *suspension* is the id of the Prefect state that suspended the run last. A bundle
    here that does not have that state in its history is older than the archive's.

    Raises:
        BundleError: If the archive's copy is damaged.
        ArchiveError: If the archive is unavailable.
    """
    if slot.bundle is not None and _has_state(slot.bundle, suspension):
        return slot
    return BundleSlot(slot.id, bring_back(workbench, slot.id, over=slot.bundle) or slot.bundle)


def bring_back(workbench: Workbench, execution_id: str, *, over: OpenBundle | None = None) -> OpenBundle | None:
    """Unpack the archive's copy of a suspended bundle here, replacing *over*; return None if the archive has none.

    Raises:
        BundleError: If the copy is damaged, or another bundle than *over* is in its place.
        ArchiveError: If the archive is unavailable.
    """
    stream = workbench.archive.suspended(execution_id)
    if stream is None:
        return None
    with stream:
        if over is not None:
            over.discard()
        return unpack(stream, workbench.folder, execution_id)


def _has_state(bundle: OpenBundle, suspension: UUID | None) -> bool:
    states = (entry.prefect_state for entry in bundle.read(JobStatus).history)
    return suspension in {state.id for state in states if state is not None}


class Recovered(NamedTuple):
    """An opening record with the Method's code and the data that was uploaded before the seal."""

    record: ExecutionRecord
    code: dict[str, bytes]
    inputs: dict[str, str]
    """Digests of the archived input files, by their paths in the bundle."""
    outputs: str | None
    """The key of the archived output.zip."""


def recover(archive: Archive, execution_id: str) -> Recovered | None:
    """Return what the archive has of an unsealed execution, or None without an opening record.

    Raises:
        ArchiveError: If the archive is unavailable.
        BundleError: If the opening record is damaged, or says that the execution has ended, which only a forger writes.
    """
    opening_json = archive.opening(execution_id)
    if opening_json is None:
        return None
    opening = OpeningRecord.of_execution(execution_id, opening_json)
    record = opening.record()
    if record.status.terminal:
        raise BundleError(f"{OpeningRecord.file_name} of {execution_id} says that it is {record.status}: it was forged")
    data = {info.key.rpartition("/")[2]: info for info in archive.store.list(folder_of(execution_id) + _DATA)}
    staged = {file.sha256 for file in record.request.files}
    inputs = {file.path: file.sha256 for file in record.request.files if file.path and file.sha256 in data}
    record = replace(record, request=keep_files(record.request, inputs))
    zips = sorted((info for digest, info in data.items() if digest not in staged), key=lambda info: str(info.modified))
    code = {path: text.encode() for path, text in opening.code.items()}
    return Recovered(record, code, inputs, zips[-1].key if zips else None)


def restore(archive: Archive, recovered: Recovered, folder: Path) -> None:
    """Download the data that was uploaded before the seal into *folder*, which becomes the bundle.

    Raises:
        ArchiveError: If the archive is unavailable.
        BundleError: If the data is damaged.
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
    info = archive.store.head(key)
    if info is not None:
        to.parent.mkdir(parents=True, exist_ok=True)
        archive.store.download(key, to, info.size, key.rpartition("/")[2])


def _unpack(stream: BinaryIO, folder: Path) -> None:
    reader = ZipReader.open(stream, TRUSTED_LIMITS)
    for entry in reader.entries.values():
        if not entry.name.startswith(f"{layout.OUTPUTS}/"):
            raise BundleError(f"{layout.OUTPUT_ZIP} of {folder.name} contains {entry.name!r}, which is not an output")
        path = folder / entry.name
        if entry.is_folder:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for block in reader.blocks(entry):
                file.write(block)


def end_script_runs(bundle: OpenBundle) -> tuple[str, ...]:
    """Cancel and remove the orphaned script runs of *bundle*, and return a note on each."""
    plans = sorted((bundle.paths.code / layout.PLANS).glob("*/plan.json"))
    return tuple(note for path in plans for note in _end(bundle, *_runtime_and_run_id(path.read_bytes())))


def _runtime_and_run_id(plan: bytes) -> tuple[str, str]:
    document = json.loads(plan)
    return str(document["runtime"]), str(document["request"]["id"])


def _end(bundle: OpenBundle, name: str, run_id: str) -> Iterator[str]:
    # Few executions have scripts, and the runtimes are slow to import.
    from prefect_executions.runtimes.registry import open_runtime  # noqa: PLC0415

    try:
        runtime = open_runtime(name, state=bundle.scratch / "runs")
        try:
            run = runtime.find(run_id)
            end = run.cancel(_GRACE)
            run.discard()
            code = "" if end.code is None else f" with exit code {end.code}"
            yield f"the orphaned scripts of {run_id} were stopped: {end.status}{code}"
        finally:
            runtime.close()
    except NotFoundError:
        return
    except (ExecutionsError, TimeoutError) as error:
        yield f"the scripts of {run_id} may still run on {name}: {error}"


class Settled(NamedTuple):
    """The result of settling one execution, and the reason in `message`. A "report" needs an operator's attention."""

    id: str
    result: Literal["archived", "pending", "open", "report", "failed", "restored"]
    message: str | None = None
    status: Status | None = None

    @classmethod
    def of(cls, execution_id: str, outcome: Outcome) -> Settled:
        """Return the result for the outcome of a seal."""
        status = outcome.job_status
        return cls(execution_id, "archived" if outcome.archived else "pending", status.message, status.execution_status)


def settle_all(workbench: Workbench) -> Iterator[Settled]:
    """Try once to finish each unfinished execution of *workbench*; a failure does not affect the others.

    An execution that has not ended is reported as ``open`` and not changed.
    """
    for execution_id in list(workbench.unfinished()):
        try:
            outcome = workbench.settle(execution_id)
        except (ExecutionsError, OSError) as error:
            yield Settled(execution_id, "failed", str(error))
            continue
        if outcome is None:
            yield Settled(execution_id, "open")
        else:
            yield Settled.of(execution_id, outcome)


def restore_changed(workbench: Workbench, now: datetime) -> Iterator[Settled]:
    """Restore the bundles of *workbench* that were sealed lately and changed since; a failure does not stop the others.

    What a run leaves behind (a thread, a child, a log handler) writes soon after the seal. A later change is
    found when the file is read.
    """
    for execution_id in local_ids(workbench):
        bundle = OpenBundle(workbench.folder, execution_id)
        with suppress(FileNotFoundError):
            if now.timestamp() - bundle.paths.manifest.stat().st_mtime > STALE.total_seconds():
                continue
        try:
            if bundle.sealed and not trust_if_intact(bundle):
                yield from _restored(workbench, bundle)
        except (ExecutionsError, OSError) as error:
            yield Settled(execution_id, "failed", str(error))


def _restored(workbench: Workbench, bundle: OpenBundle) -> Iterator[Settled]:
    done = restore_copy(workbench.archive, bundle)
    if done.restored:
        paths = ", ".join(done.restored)
        yield Settled(bundle.id, "restored", f"changed after the seal, now in {done.aside}: {paths}")
    if done.lost:
        paths = ", ".join(done.lost)
        yield Settled(bundle.id, "report", f"changed after the seal, and not in the archive: {paths}")


def sweep_uploads(workbench: Workbench, now: datetime) -> int:
    """Remove the remains of abandoned uploads from the archive's store; return their number.

    Raises:
        ArchiveError: If the store fails, or is not the archive that *workbench* used before.
    """
    workbench.archive_identity.check()
    return workbench.archive.store.abort_stale(now - STALE)
