"""Workbenches for tests: executions that are open, sealed, archived, without Prefect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.lifecycle.status import Status
from prefect_executions.settings import Settings
from prefect_executions.workbench.workbench import Workbench
from records import EXECUTION_ID, OUTPUTS, PICTURE, SOURCE, a_job_status, a_record, a_request

OTHER_ID = "0b1e5a52-0000-4f2e-9a41-3d6d5d3f2e11"


def bench_at(home: Path, *, archive: Workbench | None = None) -> Workbench:
    """Return the workbench that a home folder means; it may share the archive of another."""
    shared = archive.archive.store.url if archive else ""
    return Workbench.of(Settings(home=home, archive=shared), archive_block=lambda name: (name, {}))


def record_of(execution_id: str = EXECUTION_ID, end: Status = Status.COMPLETED, **changes: Any) -> ExecutionRecord:
    """Return a record whose documents all tell that id."""
    told: dict[str, Any] = {
        "request": a_request(execution_id=execution_id),
        "job_status": a_job_status(end, execution_id=execution_id),
    }
    return a_record(**told | changes)


def begun(bench: Workbench, record: ExecutionRecord, outputs: Mapping[str, bytes] = OUTPUTS) -> OpenBundle:
    """Put a record on the bench as a run does, with its input, code and outputs."""
    bundle = bench.begin(record, {"code/flows/coins.py": SOURCE})
    bench.announce(record)
    bench.index_open(record)
    for path, content in {"inputs/picture.png": PICTURE, **outputs}.items():
        target = bundle.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    if record.metrics:
        bundle.write_document(record.metrics)
    return bundle


def kept(bench: Workbench, execution_id: str = EXECUTION_ID, **changes: Any) -> OpenBundle:
    """Put an execution on the bench that ended, and seal, archive and index it."""
    outputs = changes.pop("outputs", OUTPUTS)
    bundle = begun(bench, record_of(execution_id, **changes), outputs)
    bench.leases.release(execution_id)
    outcome = bench.settle(execution_id)
    assert outcome is not None
    assert outcome.archived
    return bundle
