"""The ledger in a SQLite file in WAL mode, written by several processes."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from prefect_executions.errors import LedgerError
from prefect_executions.ledger import queries
from prefect_executions.ledger.changes import restart
from prefect_executions.ledger.database import Database, Session
from prefect_executions.ledger.migrate import HEAD, VERSION_TABLE, migrate

NEWEST = Path(__file__).with_name("newest.sql")
"""The statements that give an empty file the tables of all migrations, for which Alembic takes 0.7 s."""

BUSY_TIMEOUT = 30.0
"""Seconds that a writer waits for other writers."""

# SQLite's own busy timeout does not apply while another connection closes, recovers or enables the write-ahead log:
# https://www.sqlite.org/wal.html, "Sometimes Queries Return SQLITE_BUSY In WAL Mode".
_TRANSIENT = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_PAUSE = 0.005
_PRIMARY = 0xFF  # the lowest byte of an extended result code is the primary code

T = TypeVar("T")


class _Connection(sqlite3.Connection):
    """A connection that remembers its file's device and inode."""

    file: tuple[int, int] | None = None


class SqliteDatabase(Database[_Connection]):
    """The ledger's database in a SQLite file; the file and its folder are created if missing."""

    driver_error = sqlite3.Error

    def __init__(self, path: str, shown: str) -> None:
        super().__init__(shown)
        self.path = path

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with self._transaction(_begin_reading) as connection:
            yield _SqliteSession(connection)

    @contextmanager
    def writing(self, execution_id: str | None) -> Iterator[Session]:  # noqa: ARG002  SQLite allows one writer at a time
        with self._transaction(_begin_writing) as connection:
            yield _SqliteSession(connection)

    def _connect(self) -> _Connection:
        try:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerError(f"the ledger's folder cannot be created: {error}") from error
        connection = _retry_while_busy(self._open)
        try:
            if _retry_while_busy(lambda: _revision(connection)) != HEAD and _create(connection) != HEAD:
                migrate("sqlite", lambda: _retry_while_busy(self._open), self.shown)
        except BaseException:
            connection.close()
            raise
        return connection

    def _open(self) -> _Connection:
        # Only one thread at a time uses a connection.
        connection = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False, factory=_Connection
        )
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.file = _file_identity(self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _is_current(self, connection: _Connection) -> bool:
        # The documentation allows deleting the file, so rows must not be written to an unlinked file.
        return connection.file == _file_identity(self.path)

    def _commit(self, connection: _Connection) -> None:
        connection.execute("COMMIT")

    def _cause(self, error: Exception) -> str:
        cause = super()._cause(error)
        code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            return f"{cause}. Move the file away and run 'executions ledger rebuild'."
        return cause


class _SqliteSession:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def fetch_all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._connection.execute(sql, values).fetchall()

    def execute(self, sql: str, values: Sequence[Any] = ()) -> int:
        return self._connection.execute(sql, values).rowcount

    def insert(self, sql: str, values: Sequence[Any]) -> int:
        return self._connection.execute(sql, values).lastrowid or 0

    def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        self._connection.executemany(sql, rows)

    def append_changes(self, ids: Sequence[str], token: int, *, removed: bool) -> int:
        last = int(self.fetch_all(queries.NEXT_NUMBER, (len(ids),))[0][0])
        first = last - len(ids) + 1
        self.execute_many(
            queries.INSERT_CHANGE, [(first + place, token, each, removed) for place, each in enumerate(ids)]
        )
        return last


def _begin_writing(connection: sqlite3.Connection) -> None:
    # A read transaction cannot start to write after another connection has written (SQLITE_BUSY_SNAPSHOT).
    _retry_while_busy(lambda: connection.execute("BEGIN IMMEDIATE"))


def _begin_reading(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN")
    _retry_while_busy(lambda: connection.execute("SELECT 1 FROM sqlite_master").fetchone())  # takes the snapshot


def _create(connection: sqlite3.Connection) -> str | None:
    """Create the newest tables if the file is empty; return the revision, which another process may have created."""
    _begin_writing(connection)
    try:
        if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            for statement in NEWEST.read_text(encoding="utf-8").split(";\n"):
                connection.execute(statement)
            restart(_SqliteSession(connection))
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise
    return _revision(connection)


def _revision(connection: sqlite3.Connection) -> str | None:
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (VERSION_TABLE,)).fetchone():
        return None
    row = connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()  # noqa: S608  a constant
    return str(row[0]) if row else None


def _file_identity(path: str) -> tuple[int, int] | None:
    try:
        stat = os.stat(path)  # noqa: PTH116  called in every transaction; a Path costs more than the call
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _retry_while_busy(operation: Callable[[], T]) -> T:
    end = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            return operation()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & _PRIMARY not in _TRANSIENT or time.monotonic() > end:
                raise
        time.sleep(_PAUSE)
