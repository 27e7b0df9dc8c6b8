"""The common part of the ledger's databases: URLs, idle connections, transactions and errors."""

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
    """A parsed ledger URL: `target` is a file path or a libpq URL; `shown` is the URL without its password."""

    dialect: Literal["sqlite", "postgresql"]
    target: str
    shown: str


def address(url: str) -> Address:
    """Parse *url*: ``sqlite:///file`` or ``postgresql://user:password@host/name``.

    Raises:
        SettingsError: If *url* has neither form.
    """
    if _POSTGRESQL.match(url):
        return Address("postgresql", _POSTGRESQL.sub("postgresql://", url), redact_dsn(url))
    path = url.removeprefix("sqlite:///")
    if path == url or path in {"", ":memory:"}:
        raise SettingsError(
            f"EXECUTIONS_LEDGER: '{redact_dsn(url)}' is not a ledger URL. "
            "Use sqlite:///file or postgresql://user:password@host/name."
        )
    return Address("sqlite", str(Path(path).expanduser()), url)


def redact_dsn(url: str) -> str:
    """Return the database *url* without its password and without its query, which may contain a password.

    Unlike `redact_url`, it keeps the user name, and it treats everything before the
    last @ as credentials, because libpq accepts unquoted characters in passwords.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "…" if re.search("[@=]", url) else url
    user, at, location = rest.rpartition("@")
    location = re.split(r"[?#&;]", location)[0]
    name, colon, _ = user.partition(":")
    return f"{scheme}://{name}{colon and ':***'}{at}{location}"


def scrub(message: str, url: str) -> str:
    """Return *message* without the passwords of *url*, which libpq repeats if it cannot parse the URL."""
    rest = url.partition("://")[2]
    password = rest.rpartition("@")[0].partition(":")[2]
    query = parse_qsl(rest.partition("?")[2])
    secrets = {password, unquote(password), *(value for name, value in query if "password" in name)}
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        message = message.replace(secret, "***")
    return message


class Connection(Protocol):
    """The part of a driver's connection that this module uses."""

    def close(self) -> None: ...


class Session(Protocol):
    """An open transaction."""

    def fetch_all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return all rows of a query as tuples."""

    def execute(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Execute a statement and return the number of changed rows."""

    def insert(self, sql: str, values: Sequence[Any]) -> int:
        """Insert one row into a table with a generated key and return the key."""

    def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Execute a statement once for each of *rows*."""

    def append_changes(self, ids: Sequence[str], token: int, *, removed: bool) -> int:
        """Append a change of each of *ids* to the change feed, with the next numbers; return the last number.

        The transaction holds the counter's row from here to its commit.
        """


C = TypeVar("C", bound=Connection)

_databases: WeakSet[Database[Any]] = WeakSet()


class Database(ABC, Generic[C]):
    """A database with the ledger's tables, and its pool of idle connections.

    Connections are reused because closing SQLite's last connection checkpoints its
    log, which takes milliseconds. They are closed before a fork: SQLite's locks belong
    to the process, so a child with an inherited connection would believe that it holds
    its parent's locks.
    """

    driver_error: ClassVar[type[Exception]]
    connection_lost: ClassVar[tuple[type[Exception], ...]] = ()
    """The errors of an idle connection whose server went away."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self._idle: list[C] = []
        _databases.add(self)
        finalize(self, _close_all, self._idle)

    @abstractmethod
    def reading(self) -> AbstractContextManager[Session]:
        """Return a context with a `Session` that reads one snapshot of the ledger."""

    @abstractmethod
    def writing(self, execution_id: str | None) -> AbstractContextManager[Session]:
        """Return a context with a `Session` that writes the rows of one execution, or of all if None."""

    @abstractmethod
    def _connect(self) -> C:
        """Return a new connection; create or migrate the ledger's tables first if necessary."""

    def _is_current(self, connection: C) -> bool:  # noqa: ARG002  SQLite's connections use it
        """Return whether an idle connection still belongs to the ledger's database."""
        return True

    def close(self) -> None:
        """Close the idle connections; the next transaction opens a new connection."""
        _close_all(self._idle)

    @contextmanager
    def _transaction(self, begin: Callable[[C], None]) -> Iterator[C]:
        with self._translated():
            connection = self._begin(begin)
            try:
                yield connection
                self._commit(connection)
            except BaseException:
                connection.close()  # this rolls the transaction back
                raise
            self._idle.append(connection)

    @abstractmethod
    def _commit(self, connection: C) -> None: ...

    def _begin(self, begin: Callable[[C], None]) -> C:
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread took the last one
                break
            try:
                if self._is_current(connection):
                    begin(connection)
                    return connection
            except BaseException as error:
                connection.close()
                if not isinstance(error, self.connection_lost):  # if lost, try a new connection
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
    def _translated(self) -> Iterator[None]:
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
    for database in list(_databases):
        database.close()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=_close_before_fork)
