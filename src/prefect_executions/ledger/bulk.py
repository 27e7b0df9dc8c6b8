"""Writing executions to the ledger, one or many in a transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.ledger import queries
from prefect_executions.ledger.changes import note_changes
from prefect_executions.ledger.database import Database, Session
from prefect_executions.ledger.rows import (
    AnnotationRow,
    ArchiveState,
    ImportOrigin,
    LedgerEntry,
    in_order,
    ledger_entry,
    stored_row,
)
from prefect_executions.ledger.values import digest_bytes

BATCH = 500
"""Executions per transaction of a bulk write, which blocks other writers for about 0.1 s."""

BATCH_ROWS = 50_000
"""The maximum number of rows that a bulk write holds in memory; executions may have many rows."""


class Bulk:
    """A bulk write: a batch of executions that is written when it is full."""

    def __init__(self, database: Database[Any]) -> None:
        self._database = database
        self._batch: list[LedgerEntry] = []
        self._rows = 0

    def record(
        self,
        record: ExecutionRecord,
        *,
        archive: ArchiveState,
        manifest_sha256: str | None = None,
        imported: ImportOrigin | None = None,
        signed: bool | None = None,
        annotations: Iterable[AnnotationRow] = (),
    ) -> None:
        """Add an execution to the batch, to be recorded as by `Ledger.record`.

        Raises:
            LedgerError: If the batch is full and the database fails.
        """
        entry = ledger_entry(
            record,
            archive=archive,
            manifest_sha256=manifest_sha256,
            imported=imported,
            signed=signed,
            annotations=annotations,
        )
        self._batch.append(entry)
        self._rows += sum(map(len, entry.parts.values()))
        if len(self._batch) >= BATCH or self._rows >= BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the batch."""
        batch, self._batch, self._rows = self._batch, [], 0
        if batch:
            with self._database.writing(None) as session:
                put(session, batch)


def put(session: Session, entries: Sequence[LedgerEntry]) -> None:
    """Replace the rows of executions; a sealed row is not replaced by an unsealed one, and known annotations stay."""
    written: dict[str, tuple[int, LedgerEntry]] = {}  # if an id occurs twice in a batch, the last entry wins
    for entry in entries:
        known = session.fetch_all(queries.ANNOTATIONS, (entry.row.id,))
        key = _put_row(session, entry)
        if key is not None:
            annotations = in_order([*known, *entry.parts["annotations"]])
            written[entry.row.id] = key, entry._replace(parts={**entry.parts, "annotations": annotations})
    for table, statement in queries.INSERT_PART.items():
        rows = [
            (key, position, *columns)
            for key, entry in written.values()
            for position, columns in enumerate(entry.parts[table])
        ]
        if rows:
            session.execute_many(statement, rows)
    note_changes(session, written)


def _put_row(session: Session, entry: LedgerEntry) -> int | None:
    """Write the row of an execution and return its key, or None if a sealed row stays."""
    row = entry.row
    existing = session.fetch_all(queries.SEAL, (row.id,))
    if existing:
        archive, manifest = existing[0]
        if manifest and not row.manifest_sha256:
            return None
        if archive == "archived" and manifest == digest_bytes(row.manifest_sha256):
            row = replace(row, archive="archived")  # archived already, which a second sealer does not know
        session.execute(queries.DELETE, (row.id,))
    return session.insert(queries.INSERT_EXECUTION, (_method_key(session, entry), *stored_row(row)))


def _method_key(session: Session, entry: LedgerEntry) -> int:
    query = (queries.METHOD_KEY, (entry.method.sha256,))
    rows = session.fetch_all(*query)
    if not rows:
        session.execute(queries.INSERT_METHOD, entry.method)
        rows = session.fetch_all(*query)
    return int(rows[0][0])
