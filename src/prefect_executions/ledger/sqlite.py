"""The ledger in a SQLite file that several processes write."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from prefect_executions.errors import LedgerError
from prefect_executions.ledger.database import Database, Session
from prefect_executions.ledger.migrate import HEAD, VERSION_TABLE, migrate

PATIENCE = 30.0
"""Seconds that a writer waits for the others."""

# SQLite's own waiting does not cover these where one waits for another to leave the write-ahead log, to recover
# it, or to turn it on: https://www.sqlite.org/wal.html, "Sometimes Queries Return SQLITE_BUSY In WAL Mode".
_PASSING = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_PAUSE = 0.005
_PRIMARY = 0xFF  # an extended result code has its primary one in the lowest byte

T = TypeVar("T")


class _Connection(sqlite3.Connection):
    """A connection that remembers which file it was opened on: device and inode."""

    file: tuple[int, int] | None = None


class SqliteDatabase(Database[_Connection]):
    """A SQLite file in WAL mode, made with its folder when it is not there."""

    driver_error = sqlite3.Error

    def __init__(self, path: str, shown: str) -> None:
        super().__init__(shown)
        self.path = path

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with self._transaction(_begin_reading) as connection:
            yield _SqliteSession(connection)

    @contextmanager
    def writing(self, execution_id: str | None) -> Iterator[Session]:  # noqa: ARG002  SQLite has one writer at a time
        with self._transaction(_begin_writing) as connection:
            yield _SqliteSession(connection)

    def _connect(self) -> _Connection:
        try:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerError(f"the ledger's folder cannot be made: {error}") from error
        connection = _patiently(self._open)
        try:
            if _patiently(lambda: _revision(connection)) != HEAD:
                migrate("sqlite", lambda: _patiently(self._open), self.shown)
        except BaseException:
            connection.close()
            raise
        return connection

    def _open(self) -> _Connection:
        # The pool hands a connection to one thread at a time.
        connection = sqlite3.connect(
            self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False, factory=_Connection
        )
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.file = _identity(self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _fits(self, connection: _Connection) -> bool:
        # Somebody may delete the file, as the documentation says one can: rows must not go to a file without a name.
        return connection.file == _identity(self.path)

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

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._connection.execute(sql, values).fetchall()

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        return self._connection.execute(sql, values).rowcount

    def insert(self, sql: str, values: Sequence[Any]) -> int:
        return self._connection.execute(sql, values).lastrowid or 0

    def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        self._connection.executemany(sql, rows)


def _begin_writing(connection: sqlite3.Connection) -> None:
    # A transaction that begins as a reader cannot become a writer once another has written (SQLITE_BUSY_SNAPSHOT).
    _patiently(lambda: connection.execute("BEGIN IMMEDIATE"))


def _begin_reading(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN")
    _patiently(lambda: connection.execute("SELECT 1 FROM sqlite_master").fetchone())  # takes the snapshot


def _revision(connection: sqlite3.Connection) -> str | None:
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (VERSION_TABLE,)).fetchone():
        return None
    found = connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()  # noqa: S608  a constant
    return str(found[0]) if found else None


def _identity(path: str) -> tuple[int, int] | None:
    try:
        told = os.stat(path)  # noqa: PTH116  a Path costs more than the call, on every transaction
    except OSError:
        return None
    return told.st_dev, told.st_ino


def _patiently(act: Callable[[], T]) -> T:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return act()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & _PRIMARY not in _PASSING or time.monotonic() > end:
                raise
        time.sleep(_PAUSE)
