"""The local Prefect server that the commands of one home share when no API is configured.

Prefect starts its embedded server once for each process, and each start takes seconds. `connect`
starts a server that stays: the next command finds it by its state file.

Law: the server never outlives its use. It ends when no command uses it and no request came for a
while, or when its state file is gone or names another server. Each command holds a lock
(`flock`) while it uses the server, and the kernel releases the lock of a killed process.

The server listens on loopback. Its API needs a random password, which is in the state file; only
the user can read that file.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect.context import refresh_global_settings_context
from prefect.settings import (
    PREFECT_API_DATABASE_CONNECTION_URL,
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
)
from pydantic import BaseModel, SecretStr, ValidationError

from prefect_executions.capture.processes import EXECUTION_ID_ENV, alive, send, this_process
from prefect_executions.errors import OrchestratorError
from prefect_executions.executions.record import Process

_NEWER_DATABASE = "Can't locate revision identified by"
"""Alembic's error about a database whose schema it does not know."""
_ERROR = re.compile(r"[\w.]+(?:Error|Exception)\b")
"""The beginning of a traceback's last line."""

_POLL_SECONDS = 0.05
_STOP_SECONDS = 20.0
_WATCH_SECONDS = 1.0
_CONNECT_SECONDS = 5.0
_EMBEDDED_START_SECONDS = 300

Scope = MutableMapping[str, Any]
Asgi = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


class ServerState(BaseModel):
    """The state file of a running server."""

    url: str
    auth: SecretStr
    process: Process


@dataclass(frozen=True)
class ServerFiles:
    """The files of the server of one installation and one Prefect database, in one folder."""

    folder: Path
    key: str

    @property
    def state(self) -> Path:
        return self.folder / f"{self.key}.json"

    @property
    def users(self) -> Path:
        """Each command that uses the server holds a shared lock on this file."""
        return self.folder / f"{self.key}.users"

    @property
    def start(self) -> Path:
        """The command that starts the server holds an exclusive lock on this file."""
        return self.folder / f"{self.key}.start"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.key}.log"


def files_of(folder: Path) -> ServerFiles:
    """Return the files of the server for this installation, in *folder*.

    Another version of Prefect, another environment or another database has another server.
    """
    parts = (
        version("prefect"),
        version("prefect-executions"),
        sys.prefix,
        str(PREFECT_HOME.value()),
        str(PREFECT_API_DATABASE_CONNECTION_URL.value()),
    )
    return ServerFiles(folder, sha256("\n".join(parts).encode()).hexdigest()[:12])


def connect(folder: Path, idle: timedelta, *, start: bool = True) -> str | None:
    """Make this process and its children use the shared server in *folder*, and return its URL.

    Does nothing and returns None if an API is configured, if *idle* is zero, or if no server
    runs and *start* is False. A new server ends *idle* after its last use.

    Raises:
        OrchestratorError: If the server does not start, or its folder is not writable.
    """
    if PREFECT_API_URL.value() or not idle:
        return None
    files = files_of(folder)
    if not start and not files.state.exists():
        return None
    try:
        state = _running(files, idle, start=start)
    except OSError as error:
        raise OrchestratorError(
            f"The local Prefect server cannot use its folder {files.folder}: {error.strerror}. "
            "Set EXECUTIONS_HOME to a folder of yours, or PREFECT_API_URL to a server."
        ) from error
    if state is None:
        return None
    # Prefect reads its settings at import; the children of this process read the environment.
    os.environ["PREFECT_API_URL"] = state.url
    os.environ["PREFECT_API_AUTH_STRING"] = state.auth.get_secret_value()
    os.environ.setdefault("PREFECT_UI_URL", "")  # it has no pages, so Prefect must not print links to them
    refresh_global_settings_context()
    return state.url


def allow_slow_start() -> None:
    """Allow the embedded server, which Prefect starts in a process without an API, five minutes instead of 20 s.

    Its first start creates a database, which takes longer on a slow disk. The user's own limit is kept.
    """
    limit = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS
    if not PREFECT_API_URL.value() and limit.value() == limit.default() and limit.name not in os.environ:
        os.environ[limit.name] = str(_EMBEDDED_START_SECONDS)
        refresh_global_settings_context()


def find(folder: Path) -> ServerState | None:
    """Return the state of the shared server in *folder*, or None if none runs."""
    return _read(files_of(folder))


def log_of(folder: Path) -> Path:
    """Return the log file of the shared server in *folder*."""
    return files_of(folder).log


def stop(folder: Path) -> ServerState | None:
    """Stop the shared server in *folder* and return its last state, or None if none ran.

    Raises:
        OrchestratorError: If it does not end in 20 seconds.
    """
    files = files_of(folder)
    state = _read(files)
    if state is None or not send(state.process, signal.SIGTERM):
        return None
    until = time.monotonic() + _STOP_SECONDS
    while alive(state.process):
        if time.monotonic() > until:
            raise OrchestratorError(f"The local Prefect server (process {state.process.pid}) does not end. Kill it.")
        time.sleep(_POLL_SECONDS)
    files.state.unlink(missing_ok=True)  # uvicorn ends by the signal, without cleaning up
    return state


_held: dict[Path, int] = {}
"""The locks that this process holds until it ends, by file."""


def _running(files: ServerFiles, idle: timedelta, *, start: bool) -> ServerState | None:
    files.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _hold_shared(files.users)
    if state := _read(files):
        return state
    if not start:
        return None
    with _exclusive(files.start):
        return _read(files) or _start(files, idle)


def _read(files: ServerFiles) -> ServerState | None:
    """Return the state of the server if its process is alive and accepts connections."""
    try:
        state = ServerState.model_validate_json(files.state.read_bytes())
    except (OSError, ValidationError):
        return None
    if not alive(state.process):
        return None
    host, _, port = state.url.removeprefix("http://").partition("/")[0].partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return None
    return state


def _start(files: ServerFiles, idle: timedelta) -> ServerState:
    """Start a server and wait until its state file is written."""
    files.state.unlink(missing_ok=True)
    log = os.open(files.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        process = subprocess.Popen(  # noqa: S603 - this module, for this interpreter
            [sys.executable, "-m", __name__, str(files.folder), files.key, str(idle.total_seconds())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=files.folder,
            # A server that a Method's code starts is not a process of that execution.
            env={name: value for name, value in os.environ.items() if name != EXECUTION_ID_ENV},
            start_new_session=True,  # Ctrl+C in the terminal ends the command, not the server
        )
    finally:
        os.close(log)
    until = time.monotonic() + PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    while time.monotonic() < until:
        if state := _read(files):
            process.returncode = 0  # it outlives this process: no warning that it still runs
            return state
        if process.poll() is not None:
            reason = _reason(files.log.read_text(errors="replace")) or f"exit code {process.returncode}"
            raise OrchestratorError(f"The local Prefect server does not start: {reason}. Its log: {files.log}")
        time.sleep(_POLL_SECONDS)
    process.kill()
    process.wait()
    raise OrchestratorError(f"The local Prefect server did not start in time. Its log: {files.log}")


def _reason(log: str) -> str:
    """Return why a server did not start: the last error in its *log*, else the last line."""
    if _NEWER_DATABASE in log:
        return (
            f"its database in {PREFECT_HOME.value()} was made by a newer Prefect than {version('prefect')}. "
            "Install the newer Prefect, or set PREFECT_HOME to another folder"
        )
    lines = log.strip().splitlines()
    raised = (line for line in reversed(lines) if _ERROR.match(line))
    return next(raised, lines[-1] if lines else "").rstrip(".")


def _hold_shared(path: Path) -> None:
    """Hold a shared lock on *path* until this process ends."""
    if path not in _held:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _held[path] = descriptor


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class _Requests:
    """An ASGI application that counts the open connections of another and notes when the last one ended."""

    def __init__(self, app: Asgi) -> None:
        self._app = app
        self._open = 0
        self._last = time.monotonic()

    async def __call__(self, scope: Scope, receive: Any, send_message: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send_message)
            return
        self._open += 1
        try:
            await self._app(scope, receive, send_message)
        finally:
            self._open -= 1
            self._last = time.monotonic()

    def idle_seconds(self) -> float:
        return 0.0 if self._open else time.monotonic() - self._last


async def _serve(files: ServerFiles, idle: float) -> None:
    """Serve Prefect's API until the server is idle, stopped or no longer the one of its state file."""
    import uvicorn  # noqa: PLC0415 - only the server's own process needs it, and Prefect's server
    from prefect.server.api.server import create_app  # noqa: PLC0415

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    requests = _Requests(create_app(ephemeral=True, final=True))
    server = uvicorn.Server(uvicorn.Config(requests, log_level="error", lifespan="on", timeout_graceful_shutdown=5))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
    state = {"url": url, "auth": os.environ["PREFECT_SERVER_API_AUTH_STRING"], "process": this_process().model_dump()}
    text = json.dumps(state, default=str)

    async def watch() -> None:
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(_POLL_SECONDS)
        _write(files.state, text)
        while not server.should_exit:
            await asyncio.sleep(_WATCH_SECONDS)
            if not _is(files.state, text) or (requests.idle_seconds() > idle and _give_up(files)):
                server.should_exit = True

    watcher = asyncio.create_task(watch())
    try:
        await server.serve(sockets=[listener])
    finally:
        watcher.cancel()
        if _is(files.state, text):
            files.state.unlink(missing_ok=True)


def _give_up(files: ServerFiles) -> bool:
    """Remove the state file if no command uses the server; return whether that was so.

    A command locks first and reads the state file then, so it never finds a server that is ending.
    """
    try:
        descriptor = os.open(files.users, os.O_RDWR)
    except OSError:
        return True  # the home was removed
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        files.state.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)


def _is(path: Path, text: str) -> bool:
    with suppress(OSError):
        return path.read_text(encoding="utf-8") == text
    return False


def main() -> None:
    """Run the server: ``python -m prefect_executions.prefect_api.server FOLDER KEY IDLE_SECONDS``."""
    folder, key, idle = sys.argv[1:]
    asyncio.run(_serve(ServerFiles(Path(folder), key), float(idle)))


if __name__ == "__main__":
    # Set before Prefect's settings are read again by its server.
    os.environ["PREFECT_SERVER_API_AUTH_STRING"] = f"executions:{secrets.token_urlsafe(32)}"
    os.environ["PREFECT_UI_ENABLED"] = "0"
    refresh_global_settings_context()
    main()
