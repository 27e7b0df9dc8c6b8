"""The ledger's read and write operations: record, list, search, find, rebuild.

Law: every row is derived from an execution's documents and from the archive. No
information exists only in the ledger.
"""

from __future__ import annotations

import base64
import binascii
import heapq
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from prefect_executions.errors import AmbiguousIdError, LedgerError, NotFoundError, RequestError
from prefect_executions.executions.ids import normalize_prefix, split_generation
from prefect_executions.executions.lineage import Direction, Lineage
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.ledger import queries
from prefect_executions.ledger.batch import Batch, batch_after, batch_of
from prefect_executions.ledger.bulk import BATCH, Bulk, put
from prefect_executions.ledger.changes import Changes, FeedMark, changes_after, newest_mark, note_changes, restart
from prefect_executions.ledger.database import Database, address
from prefect_executions.ledger.lineage import lineage_of_execution, lineage_of_file
from prefect_executions.ledger.rows import (
    AnnotationRow,
    ArchiveState,
    FileEdge,
    ImportOrigin,
    MethodRow,
    Page,
    Relation,
    Row,
    in_order,
    ledger_entry,
    merge_rows,
    method_row,
    micros_of,
    read_row,
    time_of,
)
from prefect_executions.ledger.values import clean, digest_bytes
from prefect_executions.query.filter import EVERYTHING, Filter
from prefect_executions.query.tree import Link

CANDIDATES = 20
"""The maximum number of ids in an `AmbiguousIdError`."""

_HEX = re.compile("[0-9a-fA-F]{4,64}")

_MOST_WITH_GENERATION = 1 << 16  # ids of any generation that are read to find those of one

EDGES = 100
"""The default maximum number of links to other executions."""

_MOST_ROWS = 1_000_000
"""The most rows of a page; databases have no larger integers than 64 bits."""


class Ledger:
    """The index of executions in a SQLite file or a PostgreSQL database.

    A ledger is safe for use by several threads and after a fork. Idle connections stay
    open until `close`; a later call opens a new connection.
    """

    def __init__(self, database: Database[Any]) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the ledger at *url*; create or migrate its tables if necessary.

        Raises:
            SettingsError: If *url* is neither ``sqlite:///file`` nor ``postgresql://…``.
            LedgerError: If the ledger cannot be reached, or a newer version of this package wrote it.
        """
        ledger = cls(_database_at(url))
        with ledger._database.reading():
            pass
        return ledger

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def file(self) -> Path | None:
        """The SQLite file; None if the ledger is in PostgreSQL."""
        path = getattr(self._database, "path", None)
        return Path(path) if path else None

    def close(self) -> None:
        """Close the idle connections."""
        self._database.close()

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
        """Replace all rows of an execution with the rows of *record*, in one transaction.

        Recording the same record again changes nothing. A sealed record is not replaced
        by an unsealed one, which a run may still send after another process sealed it.
        Annotations that the ledger has already stay.

        Raises:
            LedgerError: If the database fails.
        """
        entry = ledger_entry(
            record,
            archive=archive,
            manifest_sha256=manifest_sha256,
            imported=imported,
            signed=signed,
            annotations=annotations,
        )
        with self._database.writing(entry.row.id) as session:
            put(session, [entry])

    @contextmanager
    def bulk(self) -> Iterator[Bulk]:
        """Return a context that records many executions, with one transaction per `BATCH`.

        No transaction is open while the caller reads the next record.

        Raises:
            LedgerError: If the database fails; earlier batches stay recorded.
        """
        bulk = Bulk(self._database)
        yield bulk
        bulk.flush()

    def note_archived(self, execution_id: str, *, manifest_sha256: str) -> None:
        """Note that a sealed execution is in the archive.

        Raises:
            NotFoundError: If the execution is not in the ledger.
        """
        with self._database.writing(execution_id) as session:
            changed = session.execute(queries.NOTE_ARCHIVED, (digest_bytes(manifest_sha256), clean(execution_id)))
            note_changes(session, [clean(execution_id)] if changed else [])
        if not changed:
            raise _not_found(execution_id)

    def annotate(self, execution_id: str, annotations: Iterable[AnnotationRow]) -> None:
        """Add annotations to an execution; one that it has already changes nothing.

        Raises:
            NotFoundError: If the execution is not in the ledger.
        """
        with self._database.writing(execution_id) as session:
            keys = session.fetch_all(queries.KEY, (clean(execution_id),))
            for (key,) in keys:
                existing = session.fetch_all(queries.ANNOTATIONS, (clean(execution_id),))
                rows = in_order([*existing, *(row.columns() for row in annotations)])
                session.execute(queries.DELETE_ANNOTATIONS, (key,))
                numbered = [(key, position, *columns) for position, columns in enumerate(rows)]
                session.execute_many(queries.INSERT_PART["annotations"], numbered)
                note_changes(session, [clean(execution_id)])
        if not keys:
            raise _not_found(execution_id)

    def annotations(self, execution_id: str) -> tuple[AnnotationRow, ...]:
        """Return the annotations of an execution in their order."""
        with self._database.reading() as session:
            rows = session.fetch_all(queries.ANNOTATIONS, (clean(execution_id),))
        return tuple(
            AnnotationRow(kind, text, time_of(time), agent, signer, digest.hex())
            for kind, text, time, agent, signer, digest in rows
        )

    def find(self, prefix: str) -> str:
        """Return the only id that begins with *prefix*; the dashes of a UUID are optional.

        In ``<prefix>.2`` the prefix is that of the flow run's id, and 2 the generation.
        A complete id is found even if a second generation (``<id>.2``) exists.

        Raises:
            NotFoundError: If no id matches.
            AmbiguousIdError: If several ids match.
        """
        head, generation = split_generation(prefix)
        spellings = _spellings(head)
        limit = _MOST_WITH_GENERATION if generation else CANDIDATES + 1
        ids: set[str] = set()
        with self._database.reading() as session:
            for spelling in spellings:
                rows = session.fetch_all(queries.IDS_WITH_PREFIX, (spelling, spelling + queries.LAST, limit))
                ids |= {row[0] for row in rows if row[0].endswith(generation)}
        exact = ids.intersection(f"{spelling}{generation}" for spelling in spellings)
        if len(exact) == 1 or len(ids) == 1:
            return (exact or ids).pop()
        if not ids:
            raise NotFoundError(
                f"no execution id begins with '{prefix}'. 'executions list' shows the ids; "
                "'executions ledger rebuild' rebuilds the ledger from the archive."
            )
        raise AmbiguousIdError(prefix, sorted(ids)[:CANDIDATES])

    def get(self, execution_id: str) -> Row:
        """Return the row of an execution by its complete id.

        Raises:
            NotFoundError: If the execution is not in the ledger.
        """
        with self._database.reading() as session:
            rows = session.fetch_all(queries.GET, (clean(execution_id),))
        if not rows:
            raise _not_found(execution_id)
        return read_row(rows[0])

    def get_many(self, ids: Sequence[str]) -> tuple[Row, ...]:
        """Return the rows of the executions *ids* in their order, without those that are not in the ledger."""
        found: dict[str, Row] = {}
        with self._database.reading() as session:
            for start in range(0, len(ids), BATCH):
                batch = [clean(execution_id) for execution_id in ids[start : start + BATCH]]
                rows = session.fetch_all(queries.GET_AMONG.format(", ".join("?" * len(batch))), batch)
                found |= {row.id: row for row in map(read_row, rows)}
        return tuple(found[execution_id] for execution_id in ids if execution_id in found)

    def list(self, criteria: Filter = EVERYTHING, *, limit: int = 50, after: str | None = None) -> Page:
        """Return a page of executions that match *criteria*, newest first; *after* is the previous page's cursor.

        Raises:
            RequestError: If *after* is not a cursor, or *limit* is not positive.
        """
        if limit < 1:
            raise RequestError(f"a page needs a limit of at least 1, not {limit}")
        limit = min(limit, _MOST_ROWS)
        last = None if after is None else _parse_cursor(after)
        # One ordered query per status, merged here: a single query over several statuses would have to sort.
        branches = [replace(criteria, status=(status,)) for status in sorted(set(criteria.status))] or [criteria]
        # One extra row shows whether there is a next page.
        selects = [queries.newest(branch, limit=limit + 1, after=last) for branch in branches]
        with self._database.reading() as session:
            results = [[read_row(row) for row in session.fetch_all(*query)] for query in selects]
        rows = tuple(heapq.merge(*results, key=lambda row: (row.first_known, row.id), reverse=True))
        return Page(rows=rows[:limit], after=_cursor(rows[limit - 1]) if len(rows) > limit else None)

    def search(self, criteria: Filter = EVERYTHING) -> Iterator[Row]:
        """Yield all executions that match *criteria*, newest first, fetched page by page."""
        page = self.list(criteria, limit=BATCH)
        yield from page.rows
        while page.after is not None:
            page = self.list(criteria, limit=BATCH, after=page.after)
            yield from page.rows

    def methods(self) -> tuple[MethodRow, ...]:
        """Return every version of every Method that has executions in the ledger."""
        with self._database.reading() as session:
            rows = [method_row(row) for row in session.fetch_all(queries.DESCRIPTORS)]
        versions: dict[tuple[str, str], MethodRow] = {}
        for row in rows:
            previous = versions.get((row.id, row.version))
            versions[row.id, row.version] = merge_rows(previous, row) if previous else row
        return tuple(versions.values())

    def method(self, method_id: str, version: str | None = None) -> MethodRow:
        """Return one version of a Method, by default the version that ran last.

        Raises:
            NotFoundError: If the Method or version has no executions; the message lists the versions that have.
        """
        rows = [row for row in self.methods() if row.id == clean(method_id)]
        matching = [row for row in rows if version is None or row.version == version]
        if matching:
            return max(matching, key=lambda row: (row.last_seen, row.version))
        versions = ", ".join(row.version for row in rows)
        hint = f"Versions with executions: {versions}." if rows else "'executions methods list' shows all Methods."
        raise NotFoundError(f"no execution ran the Method '{method_id}'{f' {version}' if version else ''}. {hint}")

    def unarchived(self, ids: Collection[str]) -> frozenset[str]:
        """Return the subset of *ids* that the ledger does not list as archived."""
        wanted = sorted(ids)
        archived: set[str] = set()
        with self._database.reading() as session:
            for start in range(0, len(wanted), BATCH):
                batch = wanted[start : start + BATCH]
                sql = queries.ARCHIVED_AMONG.format(", ".join("?" * len(batch)))
                archived |= {row[0] for row in session.fetch_all(sql, batch)}
        return frozenset(wanted) - archived

    def referrers(self, execution_id: str, *, limit: int = EDGES) -> tuple[Relation, ...]:
        """Return the executions that refer to this execution as their parent or original, oldest first."""
        with self._database.reading() as session:
            rows = session.fetch_all(queries.REFERRERS, (clean(execution_id), limit))
        return tuple(Relation(id=other, relation=relation) for other, relation in rows)

    def made_from(self, execution_id: str, *, limit: int = EDGES) -> tuple[FileEdge, ...]:
        """Return the outputs of others that are inputs of this execution, by digest; newest producer first."""
        return self._file_edges(queries.MADE_FROM, execution_id, limit)

    def used_by(self, execution_id: str, *, limit: int = EDGES) -> tuple[FileEdge, ...]:
        """Return the outputs of this execution that are inputs of others, by digest; oldest consumer first."""
        return self._file_edges(queries.USED_BY, execution_id, limit)

    def _file_edges(self, statement: str, execution_id: str, limit: int) -> tuple[FileEdge, ...]:
        with self._database.reading() as session:
            rows = session.fetch_all(statement, (clean(execution_id), limit))
        return tuple(
            FileEdge(id=other, output=path, input=name, sha256=digest.hex()) for other, path, name, digest, _ in rows
        )

    def lineage(
        self, execution_id: str, directions: Iterable[Direction], *, depth: int, most: int, orchestration: bool = True
    ) -> Lineage:
        """Return the executions that an execution came from or that came from it, nearest first.

        Each walk ends after *depth* edges or *most* executions, and counts what it leaves out.

        Raises:
            NotFoundError: If the execution is not in the ledger.
        """
        with self._database.reading() as session:
            for (key,) in session.fetch_all(queries.KEY, (clean(execution_id),)):
                return lineage_of_execution(
                    session, key, directions, depth=depth, most=most, orchestration=orchestration
                )
        raise _not_found(execution_id)

    def lineage_of_file(self, sha256: str, directions: Iterable[Direction], *, depth: int, most: int) -> Lineage:
        """Return the executions that made or used a file, and those before and after them, as `lineage` does."""
        with self._database.reading() as session:
            return lineage_of_file(session, bytes.fromhex(sha256), directions, depth=depth, most=most)

    def find_digest(self, prefix: str) -> str:
        """Return the only digest of an input or output that begins with *prefix*, in hexadecimal.

        Raises:
            RequestError: If *prefix* is not hexadecimal, or several digests begin with it.
            NotFoundError: If no digest begins with it.
        """
        if not _HEX.fullmatch(prefix):
            raise RequestError(f"'{prefix}' is not the beginning of a SHA-256 digest")
        ends = [bytes.fromhex(prefix.lower().ljust(64, digit)) for digit in "0f"]
        with self._database.reading() as session:
            rows = session.fetch_all(queries.DIGESTS_BETWEEN, (*ends, *ends, CANDIDATES))
        if not rows:
            raise NotFoundError(f"no input or output in the ledger has a digest that begins with {prefix}")
        if len(rows) > 1:
            raise RequestError(f"{len(rows)} or more files have a digest that begins with {prefix}; give more digits")
        return str(rows[0][0].hex())

    def related(self, link: Link, starts: Sequence[str]) -> frozenset[str]:
        """Return the ids of the executions with *link* to one whose id begins with one of *starts*; to any if empty."""
        with self._database.reading() as session:
            found = [session.fetch_all(*query) for query in queries.related(link, starts)]
        return frozenset(row[0] for rows in found for row in rows)

    def pending(self) -> tuple[str, ...]:
        """Return the ids of sealed executions whose upload to the archive is pending, oldest first."""
        with self._database.reading() as session:
            return tuple(row[0] for row in session.fetch_all(queries.PENDING))

    def remove(self, execution_id: str) -> None:
        """Delete all rows of an execution, if there are any."""
        with self._database.writing(execution_id) as session:
            removed = session.execute(queries.DELETE, (clean(execution_id),))
            note_changes(session, [clean(execution_id)] if removed else [], removed=True)

    def clear(self) -> None:
        """Delete all rows, for a rebuild; every mark in the change feed becomes stale."""
        with self._database.writing(None) as session:
            for statement in queries.CLEAR:
                session.execute(statement)
            restart(session)

    def mark(self) -> FeedMark:
        """Return the mark after the newest change, from which `changes` continues."""
        with self._database.reading() as session:
            return newest_mark(session)

    def changes(self, after: FeedMark, *, limit: int = BATCH) -> Changes:
        """Return at most *limit* inserts, updates and removals after a mark, oldest first; none if nothing changed.

        Follow the feed in a loop with the returned mark. To start, take `mark`, read all
        executions with `scan`, and follow the changes from that mark.

        Raises:
            StaleMarkError: If the mark belongs to another history of the ledger, or is too old.
        """
        with self._database.reading() as session:
            return changes_after(session, after, limit)

    def batch(self, ids: Collection[str]) -> Batch:
        """Return what a search needs of the executions *ids*, in one snapshot; missing executions are left out.

        SQLite accepts at most 32,766 ids.
        """
        with self._database.reading() as session:
            return batch_of(session, [clean(execution_id) for execution_id in ids])

    def scan(self, *, size: int = BATCH) -> Iterator[Batch]:
        """Yield what a search needs of all executions, in batches.

        Each batch is a snapshot of its own. An execution that changes during the scan
        may occur twice, or not at all; the change feed reports it.
        """
        key = -1
        while True:
            with self._database.reading() as session:
                batch = batch_after(session, key, size)
            if not batch.executions:
                return
            yield batch
            key = batch.executions[-1][0]

    def rows(self, table: str) -> Iterator[dict[str, Any]]:
        """Yield all rows of *table* as stored, by column, in the same order in every ledger.

        Digests are in hexadecimal. Executions and Methods are identified by id and digest
        instead of database keys.

        Raises:
            LedgerError: If there is no such table.
        """
        if table not in queries.ALL:
            raise LedgerError(f"the ledger has no table '{table}'; it has {', '.join(queries.TABLES)}")
        with self._database.reading() as session:
            rows = session.fetch_all(queries.ALL[table])
        for row in rows:
            values = (value.hex() if isinstance(value, bytes) else value for value in row)
            yield dict(zip(queries.ALL_COLUMNS[table], values, strict=True))

    def dump(self) -> dict[str, tuple[dict[str, Any], ...]]:
        """Return all rows of all tables; ledgers of the same executions have equal dumps."""
        return {table: tuple(self.rows(table)) for table in queries.TABLES}


def _database_at(url: str) -> Database[Any]:
    dialect, target, shown = address(url)
    if dialect == "sqlite":
        from prefect_executions.ledger.sqlite import SqliteDatabase  # noqa: PLC0415  import only the driver in use

        return SqliteDatabase(target, shown)
    try:
        from prefect_executions.ledger.postgres import PostgresDatabase  # noqa: PLC0415  the driver is an extra
    except ImportError as error:
        raise LedgerError(
            f"the ledger at {shown} needs the driver psycopg, which cannot be imported ({error}). "
            "Run: pip install 'prefect-executions[postgres]'"
        ) from error
    return PostgresDatabase(target, shown)


def _not_found(execution_id: str) -> NotFoundError:
    return NotFoundError(
        f"execution '{execution_id}' is not in the ledger. "
        "'executions ledger rebuild' rebuilds the ledger from the archive."
    )


def _spellings(prefix: str) -> frozenset[str]:
    """Return *prefix* itself and, if it can be the prefix of a UUID, its spelling with dashes."""
    cleaned = clean(prefix)
    if not cleaned:
        raise NotFoundError("an empty prefix matches every execution id; give at least one character")
    return frozenset({cleaned, normalize_prefix(cleaned)})


def _cursor(row: Row) -> str:
    return base64.urlsafe_b64encode(f"{micros_of(row.first_known)} {row.id}".encode()).decode()


def _parse_cursor(cursor: str) -> tuple[int, str]:
    try:
        micros, _, execution_id = base64.b64decode(cursor, altchars=b"-_", validate=True).decode().partition(" ")
        return int(micros), execution_id
    except (ValueError, binascii.Error) as error:
        raise RequestError(f"'{cursor}' is not a cursor of this ledger; omit it to start at the first page") from error
