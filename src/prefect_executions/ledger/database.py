"""Where a ledger is: its URL, understood, and what may be shown of it.

What the two databases have in common: connections, transactions, and errors in our words.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar
from urllib.parse import parse_qsl, unquote
from weakref import WeakSet, finalize

from prefect_executions.errors import LedgerError, SettingsError

_POSTGRESQL = re.compile(r"^(postgres|postgresql|postgresql\+psycopg)://")


class Address(NamedTuple):
    """A ledger's address; `target` is a file's path or the URL as libpq takes it, `shown` has no password."""

    dialect: Literal["sqlite", "postgresql"]
    target: str
    shown: str


def address(url: str) -> Address:
    """Understand *url*: ``sqlite:///file`` or ``postgresql://user:password@host/name``.

    Raises:
        SettingsError: If it is neither.
    """
    if _POSTGRESQL.match(url):
        return Address("postgresql", _POSTGRESQL.sub("postgresql://", url), redact_dsn(url))
    path = url.removeprefix("sqlite:///")
    if path == url or path in {"", ":memory:"}:
        raise SettingsError(
            f"EXECUTIONS_LEDGER: '{redact_dsn(url)}' is no ledger. "
            "Give sqlite:///file or postgresql://user:password@host/name."
        )
    return Address("sqlite", str(Path(path).expanduser()), url)


def redact_dsn(url: str) -> str:
    """Return the database *url* without its password and without its query, which may hold one.

    Unlike `redact_url` it keeps the role, and treats everything before the last @
    as credentials: libpq accepts passwords with unquoted characters.
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return "…" if re.search("[@=]", url) else url
    user, at, place = rest.rpartition("@")
    place = re.split(r"[?#&;]", place)[0]
    name, colon, _ = user.partition(":")
    return f"{scheme}://{name}{colon and ':***'}{at}{place}"


def scrub(message: str, url: str) -> str:
    """Return *message* without the passwords of *url*, which libpq repeats when it cannot read the URL."""
    rest = url.partition("://")[2]
    password = rest.rpartition("@")[0].partition(":")[2]
    query = parse_qsl(rest.partition("?")[2])
    secrets = {password, unquote(password), *(value for name, value in query if "password" in name)}
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        message = message.replace(secret, "***")
    return message


class Connection(Protocol):
    """What is needed of a driver's connection here."""

    def close(self) -> None: ...


class Session(Protocol):
    """A transaction under way."""

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return all rows of a query, each a tuple."""

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Run a statement and return how many rows it changed."""

    def insert(self, sql: str, values: Sequence[Any]) -> int:
        """Insert one row into a table with a key and return its key."""

    def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement once for each of *rows*."""


C = TypeVar("C", bound=Connection)

_opened: WeakSet[Database[Any]] = WeakSet()


class Database(ABC, Generic[C]):
    """A database with the ledger's tables, and its idle connections.

    Connections are kept because closing SQLite's last one writes its log back,
    which takes milliseconds. None is idle across a fork: SQLite's locks belong
    to the process, and a child that inherits a connection believes that it
    holds its parent's.
    """

    driver_error: ClassVar[type[Exception]]
    lost: ClassVar[tuple[type[Exception], ...]] = ()
    """What a connection raises when its server went away while it was idle."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self._idle: list[C] = []
        _opened.add(self)
        finalize(self, _close_all, self._idle)

    @abstractmethod
    def reading(self) -> AbstractContextManager[Session]:
        """Return a context with a `Session` that sees one moment of the ledger."""

    @abstractmethod
    def writing(self, execution_id: str | None) -> AbstractContextManager[Session]:
        """Return a context with a `Session` that writes the rows of one execution, or of any when None."""

    @abstractmethod
    def _connect(self) -> C:
        """Return a new connection to a database that has the tables of today."""

    def _fits(self, connection: C) -> bool:  # noqa: ARG002  a file's connection is asked
        """Whether an idle connection still leads to the ledger."""
        return True

    def close(self) -> None:
        """Close the idle connections; the next use opens one again."""
        _close_all(self._idle)

    @contextmanager
    def _transaction(self, begin: Callable[[C], None]) -> Iterator[C]:
        with self._told():
            connection = self._begun(begin)
            try:
                yield connection
                self._commit(connection)
            except BaseException:
                connection.close()  # its open transaction goes with it
                raise
            self._idle.append(connection)

    @abstractmethod
    def _commit(self, connection: C) -> None: ...

    def _begun(self, begin: Callable[[C], None]) -> C:
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread was quicker
                break
            try:
                if self._fits(connection):
                    begin(connection)
                    return connection
            except BaseException as error:
                connection.close()
                if not isinstance(error, self.lost):  # then a new connection will tell
                    raise
            else:
                connection.close()
        connection = self._connect()
        try:
            begin(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self.driver_error as error:
            raise LedgerError(f"the ledger at {self.shown} failed: {self._cause(error)}") from error

    def _cause(self, error: Exception) -> str:
        return str(error).strip()


def _close_all(connections: list[Any]) -> None:
    while connections:
        try:
            connections.pop().close()
        except IndexError:
            return


def _close_before_fork() -> None:
    for database in list(_opened):
        database.close()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=_close_before_fork)
