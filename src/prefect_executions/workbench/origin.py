"""What the archive says about an execution beside its bundle, as the ledger stores it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from prefect_executions.archive.archive import Archive
from prefect_executions.archive.objects import Imported, Seal
from prefect_executions.bundles.annotations import StoredAnnotation, annotation_faults, intact_annotations
from prefect_executions.errors import ArchiveError
from prefect_executions.ledger.rows import AnnotationRow, ImportOrigin


class ArchivedFacts(NamedTuple):
    """The facts about an execution that its bundle does not have, and the error if one of them is damaged."""

    imported: ImportOrigin | None = None
    signed: bool | None = None
    annotations: tuple[AnnotationRow, ...] = ()
    damaged: ArchiveError | None = None


def archived_facts(archive: Archive, execution_id: str, seal: Seal | None) -> ArchivedFacts:
    """Return the facts about an execution with this *seal*, or without one.

    Raises:
        ArchiveError: If the archive is unavailable.
    """
    objects = archive.annotations(execution_id)
    rows = annotation_rows(intact_annotations(execution_id, objects))
    faults = annotation_faults(execution_id, seal.manifest_sha256 if seal else None, objects)
    damaged = next((ArchiveError(f"{what} (execution {execution_id})") for _, what in faults), None)
    if seal is None:
        return ArchivedFacts(annotations=rows, damaged=damaged)
    signed = archive.is_signed(seal)
    try:
        imported = import_origin(archive.imported(execution_id))
    except ArchiveError as error:
        return ArchivedFacts(None, signed, rows, error)
    return ArchivedFacts(imported, signed, rows, damaged)


def import_origin(imported: Imported | None) -> ImportOrigin | None:
    """Return the ledger's columns for the mark of an import, or None without a mark."""
    return ImportOrigin(at=imported.imported, origin=imported.origin) if imported else None


def annotation_rows(annotations: Iterable[StoredAnnotation]) -> tuple[AnnotationRow, ...]:
    """Return the rows of *annotations* in the ledger."""
    return tuple(
        AnnotationRow(
            kind=each.annotation.kind.value,
            text=each.annotation.text,
            time=each.annotation.time,
            agent=each.annotation.agent,
            signer=each.signer,
            sha256=each.sha256,
        )
        for each in annotations
    )
