"""The ledger in PostgreSQL, in a schema of its own, so that it may share a database with others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from prefect_executions.errors import LedgerError
from prefect_executions.ledger.database import Database, Session, scrub
from prefect_executions.ledger.migrate import HEAD, LOCK, SCHEMA, VERSION_TABLE, migrate

Connection = psycopg.Connection[tuple[Any, ...]]

# A pooler may hand each transaction another session, so the schema is named in each: https://www.pgbouncer.org/features
_IN_SCHEMA = f"SET LOCAL search_path TO {SCHEMA}"
_BEGIN_READING = f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {_IN_SCHEMA}".encode()
_BEGIN_WRITING = f"BEGIN; {_IN_SCHEMA}".encode()
# Writers of one execution take turns; whoever writes many has the ledger alone, and no two can wait for each other.
_LOCK_ONE = b"SELECT pg_advisory_xact_lock_shared(%s), pg_advisory_xact_lock(%s)"
_LOCK_ALL = b"SELECT pg_advisory_xact_lock(%s)"
# What the URL may say otherwise. psycopg's own 130 s are longer than a hook may take.
_UNLESS_ASKED: dict[str, str | int | None] = {"connect_timeout": 10, "application_name": "prefect-executions"}


class PostgresDatabase(Database[Connection]):
    """A PostgreSQL database, by a URL as libpq takes it."""

    driver_error = psycopg.Error
    lost = (psycopg.OperationalError,)

    def __init__(self, url: str, shown: str) -> None:
        super().__init__(shown)
        self._url = url

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with self._transaction(_begin_reading) as connection:
            yield _PostgresSession(connection)

    @contextmanager
    def writing(self, execution_id: str | None) -> Iterator[Session]:
        with self._transaction(_begin_writing) as connection:
            if execution_id is None:
                connection.execute(_LOCK_ALL, (LOCK,))
            else:
                connection.execute(_LOCK_ONE, (LOCK, _number_of(execution_id)))
            yield _PostgresSession(connection)

    def _connect(self) -> Connection:
        connection = self._open(autocommit=True)
        try:
            if _revision(connection) != HEAD:
                migrate("postgresql", lambda: self._open(autocommit=False), self.shown)
        except BaseException:
            connection.close()
            raise
        return connection

    def _open(self, *, autocommit: bool) -> Connection:
        try:
            asked = _UNLESS_ASKED | conninfo_to_dict(self._url)
            return psycopg.connect(make_conninfo("", **asked), autocommit=autocommit)
        except psycopg.Error as error:
            cause = scrub(str(error).strip(), self._url)
            # Without its cause: libpq's own message may repeat the password of a URL that it cannot read.
            raise LedgerError(f"the ledger at {self.shown} cannot be reached: {cause}") from None

    def _commit(self, connection: Connection) -> None:
        connection.execute(b"COMMIT")


class _PostgresSession:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._connection.execute(_marked(sql), values).fetchall()

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        return self._connection.execute(_marked(sql), values).rowcount

    def insert(self, sql: str, values: Sequence[Any]) -> int:
        found = self._connection.execute(_marked(sql + " RETURNING key"), values).fetchone()
        return int(found[0]) if found else 0

    def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        with self._connection.cursor() as cursor:
            cursor.executemany(_marked(sql), rows)


@lru_cache
def _marked(sql: str) -> bytes:
    return sql.replace("?", "%s").encode()


def _begin_reading(connection: Connection) -> None:
    connection.execute(_BEGIN_READING)


def _begin_writing(connection: Connection) -> None:
    connection.execute(_BEGIN_WRITING)


def _revision(connection: Connection) -> str | None:
    table = f"{SCHEMA}.{VERSION_TABLE}"
    found = connection.execute("SELECT to_regclass(%s)", (table,)).fetchone()
    if found is None or found[0] is None:
        return None
    told = connection.execute(f"SELECT version_num FROM {table}".encode()).fetchone()  # noqa: S608  a constant
    return str(told[0]) if told else None


def _number_of(execution_id: str) -> int:
    return int.from_bytes(sha256(execution_id.encode()).digest()[:8], signed=True)
