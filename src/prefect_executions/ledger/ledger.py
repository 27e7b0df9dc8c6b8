"""The ledger: an index of executions that can be deleted and made again.

Law: every row comes from an execution's documents and what the archive says of
it. Nothing lives here only.
"""

from __future__ import annotations

import base64
import binascii
import heapq
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

from prefect_executions.errors import AmbiguousIdError, LedgerError, NotFoundError, RequestError
from prefect_executions.executions.ids import normalize_prefix
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.ledger import queries
from prefect_executions.ledger.database import Database, Session, address
from prefect_executions.ledger.rows import (
    ArchiveState,
    FileEdge,
    ImportOrigin,
    LedgerEntry,
    MethodRow,
    Page,
    Relation,
    Row,
    clean,
    ledger_entry,
    micros_of,
    read_row,
    stored_row,
    time_of,
)
from prefect_executions.query.filter import EVERYTHING, Filter

CANDIDATES = 20
"""How many ids an `AmbiguousIdError` lists at most."""

EDGES = 100
"""How many links to other executions are told at most."""

BATCH = 500
"""How many executions one transaction of a bulk takes: others wait for it about a tenth of a second."""

BATCH_ROWS = 50_000
"""How many rows a bulk holds in memory at most, where executions have many."""

_LAST = "\U0010ffff"  # sorts behind every other character


class Ledger:
    """The index of executions in a SQLite file or a PostgreSQL database.

    One may be used by several threads, and after a fork. Connections stay open
    between two calls until `close`, after which the next call opens one again.
    """

    def __init__(self, database: Database[Any]) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the ledger at *url*; make its folder and tables, or bring them up to date.

        Raises:
            SettingsError: If *url* is neither ``sqlite:///file`` nor ``postgresql://…``.
            LedgerError: If it cannot be reached, or a newer version of this package wrote it.
        """
        ledger = cls(_database_at(url))
        with ledger._database.reading():
            pass
        return ledger

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hand the connections back."""
        self._database.close()

    def record(
        self,
        record: ExecutionRecord,
        *,
        archive: ArchiveState,
        manifest_sha256: str | None = None,
        came: ImportOrigin | None = None,
    ) -> None:
        """Replace all rows of an execution by what *record* says, in one transaction.

        The second time changes nothing. A record without a manifest, which
        comes late from a run that has been sealed, does not replace a sealed one.

        Raises:
            LedgerError: If the database fails.
        """
        entry = ledger_entry(record, archive=archive, manifest_sha256=manifest_sha256, came=came)
        with self._database.writing(entry.row.id) as session:
            _put(session, [entry])

    @contextmanager
    def bulk(self) -> Iterator[Bulk]:
        """Record many executions fast: a transaction for each `BATCH` of them, the last one at the end.

        No transaction is open while the caller reads the next record.

        Raises:
            LedgerError: If the database fails; the batches before are kept.
        """
        bulk = Bulk(self._database)
        yield bulk
        bulk.flush()

    def note_archived(self, execution_id: str, *, manifest_sha256: str) -> None:
        """Note that a sealed execution is in the archive.

        Raises:
            NotFoundError: If the ledger does not know it.
        """
        with self._database.writing(execution_id) as session:
            changed = session.run(queries.NOTE_ARCHIVED, (manifest_sha256, clean(execution_id)))
        if not changed:
            raise NotFoundError(f"the ledger knows no execution '{execution_id}'")

    def find(self, prefix: str) -> str:
        """Return the one full id that begins with *prefix*; a UUID's dashes may be left out.

        A full id is found even where a second generation of it (``<id>.2``) exists.

        Raises:
            NotFoundError: If there is none.
            AmbiguousIdError: If there are several.
        """
        forms = _forms(prefix)
        found: set[str] = set()
        with self._database.reading() as session:
            for form in forms:
                values = (form, form + _LAST, CANDIDATES + 1)
                found |= {row[0] for row in session.rows(queries.BEGINNING_WITH, values)}
        exact = found.intersection(forms)
        if len(exact) == 1 or len(found) == 1:
            return (exact or found).pop()
        if not found:
            raise NotFoundError(
                f"no execution id begins with '{prefix}'. 'executions list' shows the ids; "
                "'executions ledger rebuild' reads the archive again."
            )
        raise AmbiguousIdError(prefix, sorted(found)[:CANDIDATES])

    def get(self, execution_id: str) -> Row:
        """Return the row of an execution by its full id.

        Raises:
            NotFoundError: If the ledger does not know it.
        """
        with self._database.reading() as session:
            found = session.rows(queries.GET, (clean(execution_id),))
        if not found:
            raise NotFoundError(f"the ledger knows no execution '{execution_id}'")
        return read_row(found[0])

    def list(self, criteria: Filter = EVERYTHING, *, limit: int = 50, after: str | None = None) -> Page:
        """Return a page of the executions that meet *criteria*, newest first; *after* is the cursor of the last page.

        Raises:
            RequestError: If *after* is not a cursor, or *limit* is not positive.
        """
        if limit < 1:
            raise RequestError(f"a page has at least one row, not {limit}")
        last = None if after is None else _place(after)
        # One ordered query for each status, merged: a single query over several would have to sort.
        branches = [replace(criteria, status=(status,)) for status in sorted(set(criteria.status))] or [criteria]
        # One row more shows whether there is a next page.
        selects = [queries.newest(branch, limit=limit + 1, after=last) for branch in branches]
        with self._database.reading() as session:
            answers = [[read_row(row) for row in session.rows(*query)] for query in selects]
        rows = tuple(heapq.merge(*answers, key=lambda row: (row.first_known, row.id), reverse=True))
        return Page(rows=rows[:limit], after=_cursor(rows[limit - 1]) if len(rows) > limit else None)

    def search(self, criteria: Filter = EVERYTHING) -> Iterator[Row]:
        """Yield all executions that meet *criteria*, newest first, page by page."""
        page = self.list(criteria, limit=BATCH)
        yield from page.rows
        while page.after is not None:
            page = self.list(criteria, limit=BATCH, after=page.after)
            yield from page.rows

    def methods(self) -> tuple[MethodRow, ...]:
        """Return every version of every Method that an execution in the ledger ran."""
        with self._database.reading() as session:
            told = [_method_row(row) for row in session.rows(queries.DESCRIPTORS)]
        versions: dict[tuple[str, str], MethodRow] = {}
        for row in told:
            known = versions.get((row.id, row.version))
            versions[row.id, row.version] = _merge_rows(known, row) if known else row
        return tuple(versions.values())

    def method(self, method_id: str, version: str | None = None) -> MethodRow:
        """Return a Method, in the version that was seen last when none is named.

        Raises:
            NotFoundError: If no execution ran it; the message lists the versions that are known.
        """
        known = [row for row in self.methods() if row.id == clean(method_id)]
        fitting = [row for row in known if version is None or row.version == version]
        if fitting:
            return max(fitting, key=lambda row: (row.last_seen, row.version))
        versions = ", ".join(row.version for row in known)
        hint = f"Known versions: {versions}." if known else "'executions methods list' shows those that have."
        raise NotFoundError(f"no execution ran the Method '{method_id}'{f' {version}' if version else ''}. {hint}")

    def unarchived(self, ids: Collection[str]) -> frozenset[str]:
        """Return those of *ids* that the ledger does not know to be archived."""
        asked = sorted(ids)
        known: set[str] = set()
        with self._database.reading() as session:
            for start in range(0, len(asked), BATCH):
                some = asked[start : start + BATCH]
                sql = queries.ARCHIVED_AMONG.format(", ".join("?" * len(some)))
                known |= {row[0] for row in session.rows(sql, some)}
        return frozenset(asked) - known

    def naming(self, execution_id: str, *, limit: int = EDGES) -> tuple[Relation, ...]:
        """Return the executions that name this one as their parent, or as what they run again; oldest first."""
        with self._database.reading() as session:
            found = session.rows(queries.NAMING, (clean(execution_id), limit))
        return tuple(Relation(id=one, relation=relation) for one, relation in found)

    def made_from(self, execution_id: str, *, limit: int = EDGES) -> tuple[FileEdge, ...]:
        """Return the outputs of others that are inputs of this execution, by digest; the newest maker first."""
        return self._handed(queries.MADE_FROM, execution_id, limit)

    def used_by(self, execution_id: str, *, limit: int = EDGES) -> tuple[FileEdge, ...]:
        """Return the outputs of this execution that are inputs of others, by digest; the oldest use first."""
        return self._handed(queries.USED_BY, execution_id, limit)

    def _handed(self, statement: str, execution_id: str, limit: int) -> tuple[FileEdge, ...]:
        with self._database.reading() as session:
            found = session.rows(statement, (clean(execution_id), limit))
        return tuple(FileEdge(id=one, output=path, input=name, sha256=sha256) for one, path, name, sha256, _ in found)

    def pending(self) -> tuple[str, ...]:
        """Return the ids of the executions that wait for the archive, oldest first."""
        with self._database.reading() as session:
            return tuple(row[0] for row in session.rows(queries.PENDING))

    def remove(self, execution_id: str) -> None:
        """Forget an execution; one that is not known changes nothing."""
        with self._database.writing(execution_id) as session:
            session.run(queries.DELETE, (clean(execution_id),))

    def clear(self) -> None:
        """Forget everything, to be rebuilt."""
        with self._database.writing(None) as session:
            for statement in queries.CLEAR:
                session.run(statement)

    def rows(self, table: str) -> Iterator[dict[str, Any]]:
        """Yield all rows of *table* by column, as stored, in an order that is the same in every ledger.

        Executions and Methods are named by id and digest, not by the numbers that
        a database gives them.
        """
        if table not in queries.ALL:
            raise LedgerError(f"the ledger has no table '{table}'; it has {', '.join(queries.TABLES)}")
        with self._database.reading() as session:
            found = session.rows(queries.ALL[table])
        for row in found:
            yield dict(zip(queries.ALL_COLUMNS[table], row, strict=True))

    def dump(self) -> dict[str, tuple[dict[str, Any], ...]]:
        """Return all rows of all tables; two ledgers of the same executions give the same."""
        return {table: tuple(self.rows(table)) for table in queries.TABLES}


class Bulk:
    """Executions on their way into the ledger."""

    def __init__(self, database: Database[Any]) -> None:
        self._database = database
        self._waiting: list[LedgerEntry] = []
        self._rows = 0

    def record(
        self,
        record: ExecutionRecord,
        *,
        archive: ArchiveState,
        manifest_sha256: str | None = None,
        came: ImportOrigin | None = None,
    ) -> None:
        """Do what `Ledger.record` does, with the next batch.

        Raises:
            LedgerError: If the batch is full and the database fails.
        """
        entry = ledger_entry(record, archive=archive, manifest_sha256=manifest_sha256, came=came)
        self._waiting.append(entry)
        self._rows += sum(map(len, entry.parts.values()))
        if len(self._waiting) >= BATCH or self._rows >= BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting, self._rows = self._waiting, [], 0
        if waiting:
            with self._database.writing(None) as session:
                _put(session, waiting)


def _database_at(url: str) -> Database[Any]:
    dialect, target, shown = address(url)
    if dialect == "sqlite":
        from prefect_executions.ledger.sqlite import SqliteDatabase  # noqa: PLC0415  one driver is enough at start

        return SqliteDatabase(target, shown)
    try:
        from prefect_executions.ledger.postgres import PostgresDatabase  # noqa: PLC0415  its driver is an extra
    except ImportError as error:
        raise LedgerError(
            f"the ledger is at {shown}, and its driver psycopg cannot be imported ({error}). "
            "Run: pip install 'prefect-executions[postgres]'"
        ) from error
    return PostgresDatabase(target, shown)


def _put(session: Session, entries: Sequence[LedgerEntry]) -> None:
    kept: dict[str, tuple[int, LedgerEntry]] = {}  # an id may come twice in a batch; its last rows count
    for entry in entries:
        key = _put_row(session, entry)
        if key is not None:
            kept[entry.row.id] = key, entry
    for table, statement in queries.INSERT_PART.items():
        rows = [
            (key, position, *columns)
            for key, entry in kept.values()
            for position, columns in enumerate(entry.parts[table])
        ]
        if rows:
            session.many(statement, rows)


def _put_row(session: Session, entry: LedgerEntry) -> int | None:
    """Write the row of an execution and return its key, or None where a sealed one stays."""
    row = entry.row
    known = session.rows(queries.SEAL, (row.id,))
    if known:
        archive, manifest = known[0]
        if manifest and not row.manifest_sha256:
            return None
        if archive == "archived" and manifest == row.manifest_sha256:
            row = replace(row, archive="archived")  # the archive had it already; a second sealer does not know
        session.run(queries.DELETE, (row.id,))
    return session.insert(queries.INSERT_EXECUTION, (_method_key(session, entry), *stored_row(row)))


def _method_key(session: Session, entry: LedgerEntry) -> int:
    asked = (queries.METHOD_KEY, (entry.method.sha256,))
    found = session.rows(*asked)
    if not found:
        session.run(queries.INSERT_METHOD, entry.method)
        found = session.rows(*asked)
    return int(found[0][0])


def _method_row(columns: tuple[Any, ...]) -> MethodRow:
    method_id, version, title, kind, description, descriptor, sha256, first_seen, last_seen, many = columns
    return MethodRow(
        id=method_id,
        version=version,
        title=title,
        type=kind,
        description=description,
        descriptor=descriptor,
        sha256=sha256,
        first_seen=time_of(first_seen),
        last_seen=time_of(last_seen),
        executions=many,
    )


def _merge_rows(one: MethodRow, other: MethodRow) -> MethodRow:
    """Return two descriptors of the same version as one row, told by the newer."""
    newer = max(one, other, key=lambda row: (row.last_seen, row.sha256))
    return replace(
        newer,
        first_seen=min(one.first_seen, other.first_seen),
        executions=one.executions + other.executions,
    )


def _forms(prefix: str) -> frozenset[str]:
    """Return *prefix* as it is and, where it can be one of a UUID, as that is written."""
    plain = clean(prefix)
    if not plain:
        raise NotFoundError("an empty text is the beginning of every execution id; give at least one character")
    return frozenset({plain, normalize_prefix(plain)})


def _cursor(row: Row) -> str:
    return base64.urlsafe_b64encode(f"{micros_of(row.first_known)} {row.id}".encode()).decode()


def _place(cursor: str) -> tuple[int, str]:
    try:
        micros, _, execution_id = base64.b64decode(cursor, altchars=b"-_", validate=True).decode().partition(" ")
        return int(micros), execution_id
    except (ValueError, binascii.Error) as error:
        raise RequestError(f"'{cursor}' is no cursor of this ledger; start without one") from error
