"""What must be true of an execution after a fault and a settle, checked at everything that is left of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from hashlib import sha256
from types import EllipsisType
from typing import NamedTuple

from faults.methods import FIRST, LAST, SAID, content_of
from faults.world import World
from prefect_executions.archive.objects import folder_of
from prefect_executions.bundles.open_bundle import ASIDE, SCRATCH
from prefect_executions.errors import ExecutionsError
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.objectstore.interface import TEMP_PREFIX
from prefect_executions.operations.verify import verify_execution

Ends = Collection[tuple[Status, Reason | None]]

COMPLETED: Ends = {(Status.COMPLETED, None)}
FAILED: Ends = {(Status.FAILED, Reason.ERROR)}
CRASHED: Ends = {(Status.FAILED, Reason.CRASHED)}
NEVER_OPENED: Ends = {(Status.FAILED, Reason.LOST), (Status.FAILED, Reason.CRASHED)}

_IN_PREFECT = {Status.COMPLETED: {"COMPLETED"}, Status.FAILED: {"FAILED", "CRASHED"}, Status.CANCELLED: {"CANCELLED"}}


class Truth(NamedTuple):
    """What really happened to an execution, so what its record must say.

    `executed` is whether the user's code had begun, None where nobody could know;
    `outputs` are those that had been written; `said` must be in its message.
    """

    ends: Ends
    executed: bool | None = None
    outputs: tuple[str, ...] = ()
    partial: bool | EllipsisType | None = None
    """An ellipsis where either is true."""
    said: str = ""
    size: int = 1000
    logged: bool = False


class Verdict(NamedTuple):
    """What a record says in a few words, and what of it is not true."""

    words: str
    untrue: tuple[str, ...]


def judge(world: World, execution_id: str, truth: Truth, **workbench: str) -> Verdict:
    """Look at all that is left of an execution: both copies, the seal, Prefect, the ledger, the scratch."""
    bench = world.workbench(**workbench)
    try:
        if bench.archive.seal_of(execution_id) is None:
            return Verdict("not sealed", ("there is no seal in the archive",))
        record = bench.archived_record(execution_id)
        faults = [
            *_story(record, truth),
            *_outputs(world, execution_id, record, truth),
            *_copies(world, execution_id, workbench),
            *_rests(world, execution_id, workbench),
            *_prefect(world, execution_id, record),
            *_row(world, execution_id, record, workbench),
        ]
    except (ExecutionsError, OSError) as error:
        return Verdict("cannot be read", (str(error),))
    return Verdict(_words(record), tuple(faults))


def _words(record: ExecutionRecord) -> str:
    told = record.job_status
    kept = [file for file in told.outputs if not file.path.endswith(".log")]
    partial = ", partial" if told.partial else ""
    reason = f" {told.reason}" if told.reason else ""
    return f"{told.execution_status}{reason}, {len(kept)} outputs{partial}"


def _story(record: ExecutionRecord, truth: Truth) -> Iterator[str]:
    told = record.job_status
    if (told.execution_status, told.reason) not in truth.ends:
        wanted = " or ".join(" ".join(filter(None, end)) for end in truth.ends)
        yield f"it is told as {told.execution_status} {told.reason or ''} and was {wanted}"
    executed = any(entry.status is Status.EXECUTING for entry in told.history)
    if truth.executed is not None and executed is not truth.executed:
        yield f"its history {'has' if executed else 'lacks'} EXECUTING"
    if truth.partial is not ... and (told.partial or None) is not truth.partial:
        yield f"partial is {told.partial}"
    if truth.said not in (told.message or ""):
        yield f"its message does not say '{truth.said}': {told.message}"
    times = [entry.time for entry in told.history]
    if record.started and record.finished and record.finished < record.started:
        yield f"it ended at {record.finished}, before its start at {record.started}"
    if not times:
        yield "it has no history"


def _outputs(world: World, execution_id: str, record: ExecutionRecord, truth: Truth) -> Iterator[str]:
    listed = {output.path: output.sha256 for output in record.job_status.outputs}
    bundle = world.workbench().archive.bundle(execution_id)
    for name in truth.outputs:
        if listed.get(name) != sha256(content_of(name, truth.size)).hexdigest():
            yield f"{name} was written before and is {'changed' if name in listed else 'lost'}"
            continue
        with bundle.open_output(name) as stream:
            if stream.read() != content_of(name, truth.size):
                yield f"{name} is another in the archive"
    if truth.logged:
        with bundle.open_output("outputs/stdout.log") as stream:
            if SAID.encode() not in stream.read():
                yield "stdout.log lacks what was said before"


def _copies(world: World, execution_id: str, workbench: Mapping[str, str]) -> Iterator[str]:
    copies = list(verify_execution(world.reader(**workbench), execution_id))
    for copy in copies:
        for check in copy.report.checks:
            yield from (f"verify of the {copy.place}: {fault}" for fault in check.faults)
    if "archive" not in [copy.place for copy in copies]:
        yield "the archive has no copy"


def _rests(world: World, execution_id: str, workbench: Mapping[str, str]) -> Iterator[str]:
    bench = world.workbench(**workbench)
    if (bench.folder / SCRATCH / execution_id).exists():
        yield f"its scratch folder is left: {sorted(p.name for p in (bench.folder / SCRATCH / execution_id).iterdir())}"
    if (bench.folder / ASIDE / execution_id).exists():
        yield "it lies aside"
    yield from (f"{path.name} is left" for path in (bench.folder / execution_id).rglob("*.new"))
    store, folder = bench.archive.store, folder_of(execution_id)
    seal = bench.archive.bundle(execution_id).seal
    for found in store.list(folder):
        name = found.key.removeprefix(folder)
        if name not in {"opening.json", "seal.json"} and not seal.names(name):
            yield f"the object {name} belongs to nothing"
    if any(mark.id == execution_id for mark in bench.archive.marks.open()):
        yield "its mark says that it is open"


def unfinished(world: World) -> list[str]:
    """Return what broken-off writers have left in the archive's store and on the workbench."""
    left = [str(path) for path in world.folder.rglob(f"{TEMP_PREFIX}*")]
    left += [str(path) for path in (world.folder / "home").rglob("*.new")]
    return left


def _prefect(world: World, execution_id: str, record: ExecutionRecord) -> Iterator[str]:
    runs = world.ask("flow_runs/filter", {"flow_runs": {"id": {"any_": [execution_id]}}})
    state = runs[0]["state_type"] if runs else None
    if state not in _IN_PREFECT[record.status]:
        yield f"Prefect says {state}"


def _row(world: World, execution_id: str, record: ExecutionRecord, workbench: Mapping[str, str]) -> Iterator[str]:
    told = {name: value for name, value in workbench.items() if name != "EXECUTIONS_LEDGER"}
    with Ledger.open(world.settings(**told).ledger_url) as ledger:
        row = ledger.get(execution_id)
    if (row.status, row.reason, row.archive) != (record.status, record.job_status.reason, "archived"):
        yield f"the ledger says {row.status} {row.reason} {row.archive}"


BOTH = (FIRST, LAST)
