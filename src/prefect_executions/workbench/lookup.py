"""Lookup of executions: resolve the prefix of an id to the full id.

The ledger is searched first. If it is empty or unavailable, the workbench and the
archive are listed instead, because the ledger is only an index of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prefect_executions.bundles.layout import check_execution_id
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.processes import alive
from prefect_executions.errors import (
    AmbiguousIdError,
    ExecutionsError,
    LedgerError,
    NameRefusedError,
    NotFoundError,
)
from prefect_executions.executions.ids import each_generation, split_generation
from prefect_executions.ledger.ledger import CANDIDATES
from prefect_executions.workbench.workbench import Workbench


def find(workbench: Workbench, prefix: str) -> str:
    """Return the full id that begins with *prefix*; the dashes of a UUID may be left out.

    In ``<prefix>.2`` the prefix is that of the flow run's id, and 2 the generation.
    An exact id matches even if it has a second generation (``<id>.2``).

    Raises:
        NotFoundError: If no id matches.
        AmbiguousIdError: If several ids match; the error lists them.
        ArchiveError: If the ledger cannot answer and the archive is unavailable.
    """
    try:
        return workbench.ledger.find(prefix)
    except NotFoundError:
        ids = _ids_without_ledger(workbench, prefix, list_archive=not workbench.ledger.list(limit=1).rows)
        if not ids:
            raise
    except LedgerError:
        ids = _ids_without_ledger(workbench, prefix, list_archive=True)
    if not ids:
        raise NotFoundError(f"no execution id begins with '{prefix}' on this workbench or in the archive.")
    if len(ids) > 1:
        raise AmbiguousIdError(prefix, ids)
    return ids[0]


def executions_of(workbench: Workbench, pid: int) -> list[str]:
    """Return the unfinished executions here of the dead process *pid*, callers before the executions they called."""
    found = []
    for execution_id in workbench.unfinished():
        with suppress(ExecutionsError):  # it is damaged; settle reports it
            record = OpenBundle.load(workbench.folder, execution_id).record()
            process = record.instance.process
            if process is not None and process.pid == pid and alive(process) is False:
                found.append((record.started or record.job_status.updated, execution_id))
    return [execution_id for _, execution_id in sorted(found)]


def index_new(workbench: Workbench) -> None:
    """Index the open executions here that the ledger does not list yet: a run writes its row after half a second."""
    for execution_id in workbench.unfinished():
        with suppress(ExecutionsError, OSError):  # it was sealed and removed meanwhile, or is damaged
            bundle = OpenBundle.load(workbench.folder, execution_id)
            if not bundle.sealed and not _is_listed(workbench, execution_id):
                workbench.index_open(bundle.record())


def _is_listed(workbench: Workbench, execution_id: str) -> bool:
    try:
        workbench.ledger.get(execution_id)
    except NotFoundError:
        return False
    return True


def path_of(text: str) -> Path | None:
    """Return *text* as a path if that exists, or None if *text* can only be an id.

    Raises:
        NotFoundError: If *text* looks like a path and does not exist.
    """
    if Path(text).exists():
        return Path(text)
    if "/" in text or text.endswith(".zip"):
        raise NotFoundError(f"the file or folder {text} does not exist")
    return None


def newest_id(workbench: Workbench, flow_run_id: str) -> str | None:
    """Return the id of a flow run's newest execution, here or in the archive; None if it has no execution.

    Raises:
        ArchiveError: If the execution is not here and the archive is unavailable.
    """
    slot = workbench.latest(flow_run_id)
    if slot.bundle is not None:
        return slot.id
    newest = None
    for execution_id in each_generation(flow_run_id):
        if workbench.archive.opening(execution_id) is None:
            break
        newest = execution_id
    return newest


def _ids_without_ledger(workbench: Workbench, prefix: str, *, list_archive: bool) -> list[str]:
    """The matching ids, at most `CANDIDATES`; listing the whole archive is slow, so only with *list_archive*."""
    if not prefix:
        return []
    ids = {execution_id for execution_id in local_ids(workbench) if has_prefix(execution_id, prefix)}
    if prefix in ids:
        return [prefix]
    with suppress(NameRefusedError):
        check_execution_id(prefix)
        if workbench.archive.seal_of(prefix) is not None or workbench.archive.opening(prefix) is not None:
            return [prefix]
    if list_archive:
        ids |= {execution_id for execution_id in workbench.archive.ids() if has_prefix(execution_id, prefix)}
    return sorted(ids)[:CANDIDATES]


def has_prefix(execution_id: str, prefix: str) -> bool:
    """Whether *execution_id* begins with *prefix* and has its generation, if any, ignoring dashes and case."""
    prefix, generation = split_generation(prefix)
    if not execution_id.endswith(generation):
        return False
    return execution_id.startswith(prefix) or _plain(execution_id).startswith(_plain(prefix) or prefix)


def _plain(text: str) -> str:
    return text.replace("-", "").lower()


def local_ids(workbench: Workbench) -> Iterator[str]:
    """Yield the ids of the bundles on the workbench, unsorted."""
    if workbench.folder.is_dir():
        names = (entry.name for entry in workbench.folder.iterdir() if entry.is_dir())
        yield from (name for name in names if not name.startswith("."))  # folders such as .server do not hold bundles
