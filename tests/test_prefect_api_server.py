"""The local Prefect server: commands share it, it needs a password, and it ends when nothing uses it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing, suppress
from datetime import timedelta
from uuid import UUID

import pytest
from prefect.context import refresh_global_settings_context
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    PREFECT_UI_URL,
    temporary_settings,
)
from prefect.utilities.urls import url_for

from prefect_executions.capture.processes import alive, this_process
from prefect_executions.errors import OrchestratorError
from prefect_executions.prefect_api import server
from prefect_executions.prefect_api.server import ServerFiles, ServerState, connect, files_of, find, stop

IDLE = 2
"""Seconds after which the servers of these tests end."""

COMMAND = """
import sys
from datetime import timedelta
from pathlib import Path
from prefect_executions.prefect_api.server import connect
from prefect_executions.prefect_api.client import ping
print(connect(Path(sys.argv[1]), timedelta(seconds=float(sys.argv[2]))), ping(), flush=True)
sys.stdin.read()
"""

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_SH)
print(1, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path):
    """An empty home, and Prefect without a configured API and with an empty database of its own."""
    folder = tmp_path / "home" / "workbench" / ".server"
    prefect = {
        PREFECT_API_URL: None,
        PREFECT_HOME: tmp_path / "prefect",
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 300,
    }
    with temporary_settings(prefect):
        yield folder
        with suppress(OrchestratorError):
            stop(folder)
    refresh_global_settings_context()  # `connect` changed the settings of all threads


def command(home, tmp_path):
    """Start a process that uses the server of *home* until its standard input is closed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
    environment |= {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    words = [sys.executable, "-c", COMMAND, str(home), str(IDLE)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def close(process):
    """Let a process of `command` end, and wait for it."""
    process.communicate()


def until(condition, seconds=60):
    """Wait until *condition* is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def status_of(url, auth=None):
    """Return the HTTP status of a request for the server's version."""
    request = urllib.request.Request(f"{url}/admin/version")  # noqa: S310 - a loopback URL
    if auth:
        import base64  # noqa: PLC0415

        request.add_header("Authorization", f"Basic {base64.b64encode(auth.encode()).decode()}")
    try:
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


LIMIT = """
import os
from prefect.context import refresh_global_settings_context
from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS as LIMIT
from prefect_executions import method

@method
def m():
    return 1

for changes in {}, {"PREFECT_API_URL": "http://127.0.0.1:9/api"}, {LIMIT.name: "30"}:
    os.environ.update(changes)
    refresh_global_settings_context()
    try:
        m("too many")
    except TypeError:
        print(LIMIT.value())
    for name in LIMIT.name, "PREFECT_API_URL":
        os.environ.pop(name, None)
"""


@pytest.mark.long
def test_a_method_called_without_an_api_allows_the_embedded_server_a_slow_start(tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = kept | {"PREFECT_HOME": str(tmp_path), "EXECUTIONS_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", LIMIT], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["300", "20", "30"]


def test_prefect_prints_no_link_to_a_page_of_the_local_server(home, monkeypatch):
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_UI_URL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    home.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        state = ServerState(url=url, auth="user:password", process=this_process())
        files_of(home).state.write_text(json.dumps({**state.model_dump(mode="json"), "auth": "user:password"}))
        assert connect(home, timedelta(seconds=IDLE)) == url
    with temporary_settings({PREFECT_API_URL: url, PREFECT_UI_URL: os.environ["PREFECT_UI_URL"]}):
        assert url_for("flow-run", obj_id=UUID(int=1)) is None


@pytest.mark.long
def test_commands_share_one_server_which_ends_after_the_last_one(home, tmp_path):
    both = [command(home, tmp_path) for _ in range(2)]  # at once: they race to start it
    lines = [process.stdout.readline().split() for process in both]
    assert lines[0] == lines[1]
    state = find(home)
    assert state.url == lines[0][0]
    assert state.url.startswith("http://127.0.0.1:")
    # Nobody without the password gets in, and only the user can read it.
    assert status_of(state.url) == 401
    assert status_of(state.url, state.auth.get_secret_value()) == 200
    assert stat.S_IMODE(files_of(home).state.stat().st_mode) == 0o600
    assert stat.S_IMODE(files_of(home).folder.stat().st_mode) == 0o700

    both[0].kill()  # the kernel releases its lock; the other command still holds one
    close(both[0])
    time.sleep(2 * IDLE)
    assert find(home) == state

    close(both[1])
    until(lambda: not alive(state.process))
    assert find(home) is None
    assert not files_of(home).state.exists()


@pytest.mark.long
def test_a_server_ends_when_its_home_is_removed(home, tmp_path):
    process = command(home, tmp_path)
    process.stdout.readline()
    state = find(home)
    shutil.rmtree(home.parents[1])
    until(lambda: not alive(state.process))
    close(process)


@pytest.mark.long
def test_stop_ends_a_server_in_use_and_the_next_command_starts_another(home, tmp_path):
    first = command(home, tmp_path)
    first.stdout.readline()
    state = find(home)
    assert stop(home) == state
    assert not alive(state.process)
    assert stop(home) is None
    second = command(home, tmp_path)
    url = second.stdout.readline().split()[0]
    assert url == find(home).url
    for process in (first, second):
        close(process)


@pytest.mark.long
def test_a_server_that_does_not_start_is_reported_with_its_reason(home, monkeypatch):
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "nonsense://")
    with pytest.raises(OrchestratorError, match=r"does not start: .*Error: .*'?nonsense'?.*Its log: "):
        connect(home, timedelta(seconds=IDLE))
    assert find(home) is None


@pytest.mark.long
def test_a_database_of_a_newer_prefect_is_named(home, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    (tmp_path / "prefect").mkdir()
    with closing(sqlite3.connect(tmp_path / "prefect" / "prefect.db")) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('ffffffffffff')")
    with pytest.raises(OrchestratorError, match=r"newer Prefect than .* set PREFECT_HOME to another folder\. Its log"):
        connect(home, timedelta(seconds=IDLE))


def test_an_unwritable_home_is_refused(home):
    home.parents[2].joinpath("file").write_text("")
    with pytest.raises(OrchestratorError, match="Set EXECUTIONS_HOME to a folder of yours"):
        connect(home.parents[2] / "file" / "home", timedelta(seconds=IDLE))


def test_no_server_starts_with_an_api_without_idle_time_or_if_only_a_running_one_is_wanted(home):
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert connect(home, timedelta(seconds=IDLE)) is None
    assert connect(home, timedelta(0)) is None
    assert connect(home, timedelta(seconds=IDLE), start=False) is None
    assert not home.exists()


@pytest.mark.parametrize("content", ["", "{", "{}", json.dumps({"url": 1})])
def test_a_damaged_state_file_is_no_server(home, content):
    files = files_of(home)
    files.folder.mkdir(parents=True)
    files.state.write_text(content)
    assert find(home) is None


def test_the_state_of_a_dead_process_or_a_closed_port_is_no_server(home):
    files = files_of(home)
    files.folder.mkdir(parents=True)
    dead = this_process().model_copy(update={"started": "1"})
    for process in (dead, this_process()):
        state = ServerState(url="http://127.0.0.1:9/api", auth="user:password", process=process)
        files.state.write_text(json.dumps({**state.model_dump(mode="json"), "auth": "user:password"}))
        assert find(home) is None


def test_a_server_is_only_idle_while_no_request_is_open():
    async def scenario():
        release, entered = asyncio.Event(), asyncio.Event()

        async def app(_scope, _receive, _send):
            entered.set()
            await release.wait()

        requests = server._Requests(app)
        request = asyncio.create_task(requests({"type": "websocket"}, None, None))
        await entered.wait()
        during = requests.idle_seconds()
        release.set()
        await request
        return during, requests.idle_seconds()

    during, after = asyncio.run(scenario())
    assert during == 0.0
    assert after > 0.0


def test_a_server_gives_up_only_if_no_command_holds_its_lock(tmp_path):
    files = ServerFiles(tmp_path, "key")
    files.state.write_text("state")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(files.users)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    assert not server._give_up(files)
    assert files.state.exists()
    holder.kill()
    holder.communicate()
    assert server._give_up(files)
    assert not files.state.exists()
