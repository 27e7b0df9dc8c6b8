"""A real Prefect server of our own: its environment, its start, its end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 120  # seconds; the first start makes the database


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


@contextmanager
def running(told: Mapping[str, str], *, ui: bool = False) -> Iterator[str]:
    """Run the server that *told*, an `environment`, describes; yields the URL of its API."""
    url = told["PREFECT_API_URL"]
    port = url.rpartition(":")[2].removesuffix("/api")
    log = Path(told["PREFECT_HOME"]) / f"server-{port}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
    with log.open("ab") as file:
        server = subprocess.Popen(
            [*command, "--ui" if ui else "--no-ui"], env=os.environ | told, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        _wait(server, url, log)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310 - our own server
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"no Prefect server at {url}:\n{log.read_text(errors='replace')[-4000:]}")
