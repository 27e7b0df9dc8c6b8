"""Where a ledger is: its URL, understood, and what may be shown of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, unquote

from prefect_executions.errors import SettingsError

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
        return Address("postgresql", _POSTGRESQL.sub("postgresql://", url), shown(url))
    path = url.removeprefix("sqlite:///")
    if path == url or path in {"", ":memory:"}:
        raise SettingsError(
            f"EXECUTIONS_LEDGER: '{shown(url)}' is no ledger. "
            "Give sqlite:///file or postgresql://user:password@host/name."
        )
    return Address("sqlite", str(Path(path).expanduser()), url)


def shown(url: str) -> str:
    """Return *url* without its password and without its query, which may hold one.

    A password with unquoted characters makes a URL that no parser agrees on, so
    all up to the last @ is taken for the user's part.
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
