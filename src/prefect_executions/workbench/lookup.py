"""Which execution an id, or the beginning of one, means.

The ledger knows; where it is lost or away, this workbench and the archive do,
because it is only an index of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prefect_executions.bundles.layout import check_execution_id
from prefect_executions.bundles.open_bundle import ASIDE, SCRATCH, WITHHELD
from prefect_executions.errors import AmbiguousIdError, LedgerError, NameRefusedError, NotFoundError
from prefect_executions.executions.ids import each_generation
from prefect_executions.ledger.ledger import CANDIDATES
from prefect_executions.workbench.workbench import Workbench


def find(workbench: Workbench, prefix: str) -> str:
    """Return the one full id that begins with *prefix*; a UUID's dashes may be left out.

    A full id is found even where a second generation of it (``<id>.2``) exists.

    Raises:
        NotFoundError: If there is none.
        AmbiguousIdError: If there are several; it lists them.
        ArchiveError: If only the archive could tell and it cannot be asked.
    """
    try:
        return workbench.ledger.find(prefix)
    except NotFoundError:
        found = _without_ledger(workbench, prefix, everywhere=not workbench.ledger.list(limit=1).rows)
        if not found:
            raise
    except LedgerError:
        found = _without_ledger(workbench, prefix, everywhere=True)
    if not found:
        raise NotFoundError(f"no execution id begins with '{prefix}' on this workbench or in the archive.")
    if len(found) > 1:
        raise AmbiguousIdError(prefix, found)
    return found[0]


def path_of(text: str) -> Path | None:
    """Return the file or folder that *text* means, or None where it means an id; what exists is meant before an id.

    Raises:
        NotFoundError: If it is no id, and nothing is there.
    """
    if Path(text).exists():
        return Path(text)
    if "/" in text or text.endswith(".zip"):
        raise NotFoundError(f"there is no file or folder {text}")
    return None


def newest(workbench: Workbench, flow_run_id: str) -> str | None:
    """Return the id of the newest execution of a flow run, here or in the archive; None when it is none of ours.

    Raises:
        ArchiveError: If only the archive could tell and it cannot be asked.
    """
    here = workbench.latest(flow_run_id)
    if here.bundle is not None:
        return here.id
    found = None
    for execution_id in each_generation(flow_run_id):
        if workbench.archive.opening(execution_id) is None:
            break
        found = execution_id
    return found


def _without_ledger(workbench: Workbench, prefix: str, *, everywhere: bool) -> list[str]:
    """Return the ids that fit, at most `CANDIDATES`; the archive is listed as a whole only when *everywhere*."""
    if not prefix:
        return []
    here = {one for one in on_workbench(workbench) if fits(one, prefix)}
    if prefix in here:
        return [prefix]
    with suppress(NameRefusedError):
        check_execution_id(prefix)
        if workbench.archive.seal_of(prefix) is not None or workbench.archive.opening(prefix) is not None:
            return [prefix]
    if everywhere:
        here |= {one for one in workbench.archive.ids() if fits(one, prefix)}
    return sorted(here)[:CANDIDATES]


def fits(execution_id: str, prefix: str) -> bool:
    """Whether *execution_id* begins with *prefix*, dashes and capitals aside."""
    return execution_id.startswith(prefix) or _plain(execution_id).startswith(_plain(prefix) or prefix)


def _plain(text: str) -> str:
    return text.replace("-", "").lower()


def on_workbench(workbench: Workbench) -> Iterator[str]:
    """Yield the ids of the bundles that lie on the workbench, in no order."""
    if workbench.folder.is_dir():
        names = (entry.name for entry in workbench.folder.iterdir() if entry.is_dir())
        yield from (name for name in names if name not in {SCRATCH, ASIDE, WITHHELD})
