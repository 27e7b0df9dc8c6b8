"""The ledger as an index: its rebuild from the archive and the workbench.

Law: a damaged execution does not stop the others. It is reported with its problem.
"""

from __future__ import annotations

from typing import NamedTuple

from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.seal import seal
from prefect_executions.errors import ArchiveError, BundleError, ExecutionsError, NotFoundError, RequestError
from prefect_executions.ledger.bulk import Bulk
from prefect_executions.workbench.origin import archived_facts
from prefect_executions.workbench.workbench import Workbench


class Problem(NamedTuple):
    """An execution that is damaged, and how."""

    id: str
    problem: str


class Rebuilt(NamedTuple):
    """How many executions of the archive a rebuilt ledger has, and the problems with damaged ones."""

    executions: int
    problems: tuple[Problem, ...]


class _Indexed(NamedTuple):
    """Whether an execution got a row, and what is damaged."""

    written: bool
    damage: ExecutionsError | None = None


def rebuild_ledger(workbench: Workbench) -> Rebuilt:
    """Rebuild the ledger of *workbench* from its archive and its unfinished executions.

    If an execution is damaged in the archive, its sealed bundle on this workbench is indexed, if there is one.

    Raises:
        ArchiveError: If the archive is unavailable, or is not the one that *workbench* used before.
        LedgerError: If the ledger's database fails.
    """
    workbench.archive_identity.check()  # an empty mount point must not clear the ledger
    count, problems = 0, dict[str, str]()
    workbench.ledger.clear()
    with workbench.ledger.bulk() as bulk:
        for rebuild, ids in ((_archived, workbench.archive.ids()), (_local, workbench.unfinished())):
            for execution_id in ids:
                row = rebuild(workbench, bulk, execution_id)
                count += row.written
                if row.damage is not None:
                    workbench.archive.check_available()
                    problems.setdefault(execution_id, str(row.damage))
    return Rebuilt(count, tuple(Problem(*problem) for problem in problems.items()))


def _archived(workbench: Workbench, bulk: Bulk, execution_id: str) -> _Indexed:
    """Write the row of an execution that the archive has."""
    try:
        archived = workbench.archive.seal_of(execution_id)
        record = workbench.archived_record(execution_id)
    except NotFoundError:  # its writer is not done or was killed; settle cleans up
        return _Indexed(written=False)
    except (ArchiveError, BundleError) as error:
        bundle = OpenBundle(workbench.folder, execution_id)
        return _Indexed(written=bundle.sealed and _bundle_row(bulk, bundle).written, damage=error)
    facts = archived_facts(workbench.archive, execution_id, archived)
    bulk.record(
        record,
        archive="archived" if archived else "local",
        manifest_sha256=archived.manifest_sha256 if archived else None,
        imported=facts.imported,
        signed=facts.signed,
        annotations=facts.annotations,
    )
    return _Indexed(written=True, damage=facts.damaged)


def _local(workbench: Workbench, bulk: Bulk, execution_id: str) -> _Indexed:
    """Write the row of an unfinished execution; it is not counted, because the archive has its opening record."""
    try:
        if workbench.archive.seal_of(execution_id) is not None:
            return _Indexed(written=False)
        return _Indexed(written=False, damage=_bundle_row(bulk, OpenBundle.load(workbench.folder, execution_id)).damage)
    except (ArchiveError, BundleError, NotFoundError, RequestError) as error:
        return _Indexed(written=False, damage=error)


def _bundle_row(bulk: Bulk, bundle: OpenBundle) -> _Indexed:
    try:
        sealed = seal(bundle) if bundle.sealed else None
        record = sealed.record if sealed else bundle.record()
    except BundleError as error:
        return _Indexed(written=False, damage=error)
    bulk.record(
        record,
        archive="pending" if sealed else "local",
        manifest_sha256=sealed.sha256 if sealed else None,
        signed=sealed.attestation is not None if sealed else None,
    )
    return _Indexed(written=True)
