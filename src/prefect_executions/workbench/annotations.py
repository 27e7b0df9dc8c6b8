"""Annotations of executions: stored in the archive beside the seal, then in the ledger."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from prefect_executions.bundles.annotations import read_annotation, stored_form
from prefect_executions.errors import NotFoundError
from prefect_executions.executions.annotations import ExecutionAnnotation, LabelChange
from prefect_executions.workbench.origin import annotation_rows
from prefect_executions.workbench.workbench import Workbench


def annotate(
    workbench: Workbench, execution_id: str, changes: Iterable[LabelChange], *, agent: str | None, at: datetime
) -> None:
    """Store *changes* of the labels of an execution, signed if a key is configured, and index them.

    Raises:
        ArchiveError: If the archive is unavailable.
        NotFoundError: If neither the archive nor this workbench has the execution.
        LedgerError: If the ledger fails; the annotations are stored, and a rebuild reads them.
    """
    archive, key = workbench.archive, workbench.signing_key()
    seal = archive.seal_of(execution_id)
    if seal is None:
        workbench.record(execution_id)
    stored = [
        stored_form(
            ExecutionAnnotation(
                execution_id=execution_id,
                manifest_sha256=seal.manifest_sha256 if seal else None,
                kind=kind,
                text=text,
                time=at,
                agent=agent,
            ),
            key,
        )
        for kind, text in changes
    ]
    archive.put_annotations(execution_id, stored)
    rows = annotation_rows(read_annotation(data, "annotation") for data in stored)
    try:
        workbench.ledger.annotate(execution_id, rows)
    except NotFoundError:
        if seal is None:
            workbench.index_open(workbench.record(execution_id))
        else:
            workbench.index(execution_id)
        workbench.ledger.annotate(execution_id, rows)
