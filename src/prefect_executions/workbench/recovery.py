"""A suspended run leaves its open bundle in the archive, and whoever resumes it goes on with that.

The process that resumes may be on this machine or on another one. What the
archive holds is newer than what lies here when the bundle here does not know the
suspension that Prefect told last.
"""

from __future__ import annotations

from uuid import UUID

from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.suspend import pack, unpack
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.workbench.workbench import Place, Workbench


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


def resume(workbench: Workbench, place: Place, suspension: UUID | None) -> Place:
    """Return *place* with the bundle that was suspended last, brought from the archive when it is not here.

    *suspension* is the id of the last state of Prefect by which the run was suspended.

    Raises:
        BundleError: If what the archive holds is damaged.
        ArchiveError: If the archive cannot be asked.
    """
    if place.bundle is not None and _knows(place.bundle, suspension):
        return place
    return Place(place.id, bring_back(workbench, place.id, over=place.bundle) or place.bundle)


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
