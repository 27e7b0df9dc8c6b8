"""A real Prefect server of our own: its environment, its start, its end."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

PATIENCE = 280  # seconds; the first start makes the database, and on a busy machine it takes minutes
_DATABASE = "database.url"


def environment(home: Path, port: int) -> Mapping[str, str]:
    """Return the variables by which server and clients find each other, and nothing of the user's own Prefect."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def database(home: Path) -> str:
    """Return the URL, as SQLAlchemy takes it, of the database of the server that has *home*."""
    elsewhere = home / _DATABASE
    return elsewhere.read_text() if elsewhere.exists() else f"sqlite:///{home / 'prefect.db'}?timeout=60"


@contextmanager
def running(
    told: Mapping[str, str], *, ui: bool = False, postgres: str = "", migrated: Path | None = None
) -> Iterator[str]:
    """Run the server that *told*, an `environment`, describes; yields the URL of its API.

    What it keeps goes to SQLite in its home, or to the database of PostgreSQL at the URL *postgres*. Nobody but
    the server is told of that: a program that starts a server of its own has another database.

    Servers that share the path *migrated* migrate one SQLite database: the first server that is ready copies its
    database there, and servers that start later begin with that copy. A server's migrations take 7 s.
    """
    url = told["PREFECT_API_URL"]
    port = url.rpartition(":")[2].removesuffix("/api")
    log = Path(told["PREFECT_HOME"]) / f"server-{port}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    own: dict[str, str] = {}
    if postgres:
        own["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = postgres.replace("postgresql:", "postgresql+asyncpg:")
        log.with_name(_DATABASE).write_text(postgres.replace("postgresql:", "postgresql+psycopg:"))
    own_database = log.with_name("prefect.db")
    begins = not postgres and not own_database.exists()
    if migrated and begins and migrated.exists():
        shutil.copy(migrated, own_database)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
    with log.open("ab") as file:
        server = subprocess.Popen(
            [*command, "--ui" if ui else "--no-ui"], env=os.environ | told | own, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        _wait(server, url, log)
        if migrated and begins and not migrated.exists():
            _copy_database(own_database, migrated)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _copy_database(source: Path, target: Path) -> None:
    part = target.with_name(f"{target.name}.{os.getpid()}")
    with closing(sqlite3.connect(source, timeout=60)) as database, closing(sqlite3.connect(part)) as copy:
        database.backup(copy)
    part.rename(target)


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310 - our own server
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"no Prefect server at {url}:\n{log.read_text(errors='replace')[-4000:]}")
