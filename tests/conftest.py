"""What all tests share: a Prefect server, a home for executions, the way to ask for a service that may be missing."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import certifi
import hypothesis
import pytest

import servers
from postgres import a_fresh_database

# The same examples each time, so that a change is judged by what it changes; EXECUTIONS_TEST_RANDOM=1 finds new ones.
hypothesis.settings.register_profile(
    "steady",
    derandomize=not os.environ.get("EXECUTIONS_TEST_RANDOM"),
    deadline=None,  # no test asserts a time
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("steady")

LONGEST = (
    "test_scenarios.py",
    "test_journeys.py",
    "test_runtimes_interface.py",
    "test_cli_app.py",
    "test_flow_recording.py",
    "test_capture_code.py",
    "test_settle_loop.py",
    "test_docker_pool.py",
    "test_operations_replay.py",
    "test_runtimes_kubernetes_runtime.py",
    "test_flow_script_flow.py",
    "test_dispatch_cancel.py",
    "test_bundles_seal.py",
    "test_flow_descriptor.py",
    "test_process_pool.py",
)
"""The files that take longest, in their order."""

MIGRATED = "PYTEST_MIGRATED_PREFECT"
"""The variable with the path of the database that all servers of a test run begin with."""

_prefect = pytest.StashKey[dict[str, str]]()
_hidden = pytest.StashKey[dict[str, ModuleType]]()


def pytest_configure(config: pytest.Config) -> None:
    """Give Prefect a home and an address of its own before anything imports it, because it reads them once."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background, and for all that we start
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _share_bytecode(config)
    home = TemporaryDirectory(prefix="prefect-")
    config.add_cleanup(home.cleanup)
    config.stash[_prefect] = {
        **servers.environment(Path(home.name), servers.free_port()),
        "PREFECT_API_SSL_CERT_FILE": str(_a_certificate(Path(home.name))),
    }
    os.environ.update(config.stash[_prefect])
    os.environ.setdefault(MIGRATED, f"{home.name}/migrated.db")  # of the first process, for those that xdist starts


def pytest_xdist_auto_num_workers() -> int | None:
    """Run one worker more than there are cores, because many tests wait: for a server, a process, a time limit.

    The long tests have servers and clusters beside them, which use the cores.
    """
    return None if os.environ.get("EXECUTIONS_TEST_LONG") else (os.cpu_count() or 1) + 1


def _a_certificate(folder: Path) -> Path:
    """Write one certificate, the first of certifi's; return its path.

    Each of Prefect's clients loads the trusted certificates, even for a server without TLS. All 140 take 20 ms.
    """
    end = "-----END CERTIFICATE-----\n"
    path = folder / "certificate.pem"
    path.write_text(certifi.contents().partition(end)[0] + end)
    return path


def _share_bytecode(config: pytest.Config) -> None:
    """Where no compiled modules are kept, keep those of this session in a temporary folder.

    uv installs none. With PYTHONDONTWRITEBYTECODE each program that a test starts would compile Prefect again, which
    takes 5 s.
    """
    prefect = find_spec("prefect")
    compiled = prefect and prefect.origin and Path(cache_from_source(prefect.origin)).exists()
    if os.environ.get("PYTHONDONTWRITEBYTECODE") and not compiled:
        folder = TemporaryDirectory(prefix="pycache-", ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        os.environ["PYTHONPYCACHEPREFIX"] = folder.name
        del os.environ["PYTHONDONTWRITEBYTECODE"]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Collect the tests without garbage collection, which saves a fifth of the time: modules and tests all stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process is left alone with them at the end."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Take the test modules out of `sys.modules`; each is put back while its own tests run.

    A record holds the loaded modules of its project and the files beside them that the process opened. With all that
    pytest loads, every run would record this whole folder, which takes seconds for each run, and the record would
    depend on the files that are collected.
    """
    files = {name: str(getattr(module, "__file__", None)) for name, module in sys.modules.copy().items()}
    tests = [name for name, file in files.items() if file.startswith(f"{Path(__file__).parent}/test_")]
    session.config.stash[_hidden] = {name: sys.modules.pop(name) for name in tests}
    if opened_files := sys.modules.get("prefect_executions.capture.opened_files"):
        opened_files.ignore(str(Path(__file__).parent), str(Path(opened_files.__file__).parents[2]))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Put the module of *item* back into `sys.modules`, until a test of another module follows."""
    hidden, name = item.config.stash[_hidden], _module_name(item)
    if name in hidden:
        sys.modules[name] = hidden.pop(name)
    try:
        return (yield)
    finally:
        if name in sys.modules and _module_name(nextitem) != name:
            hidden[name] = sys.modules.pop(name)


def _module_name(item: pytest.Item | None) -> str:
    return item.module.__name__ if isinstance(item, pytest.Function) else ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what takes long, unless it is asked for; `.ci/run` asks."""
    if item.get_closest_marker("long") and not os.environ.get("EXECUTIONS_TEST_LONG"):
        _missing("time is missing: set EXECUTIONS_TEST_LONG=1 for the long tests")


@pytest.fixture(scope="session")
def prefect_server(pytestconfig: pytest.Config) -> Iterator[str]:
    """Run one real Prefect server, which every flow in this process and in its children finds; the URL of its API.

    It keeps what it knows in PostgreSQL where there is one: on SQLite a server of many runs at once may be silent
    for a minute at a time. Heartbeats are off in this process: a sync flow waits up to a second for the end of its own.
    """
    # Prefect takes seconds to import, and most tests need none.
    from prefect.events.worker import EventsWorker  # noqa: PLC0415
    from prefect.logging.handlers import APILogWorker  # noqa: PLC0415
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings  # noqa: PLC0415

    without_heartbeats = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
    with ExitStack() as stack:
        postgres = os.environ.get("EXECUTIONS_TEST_POSTGRES", "")
        if postgres:
            postgres = stack.enter_context(a_fresh_database(postgres, "prefect"))
        server = servers.running(pytestconfig.stash[_prefect], postgres=postgres, migrated=Path(os.environ[MIGRATED]))
        url = stack.enter_context(server)
        stack.enter_context(without_heartbeats)
        yield url
        APILogWorker.drain_all()
        EventsWorker.drain_all()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty home for executions; nothing else of the environment says where they go."""
    for name in os.environ:
        if name.startswith("EXECUTIONS_") and not name.startswith("EXECUTIONS_TEST_"):
            monkeypatch.delenv(name)
    folder = tmp_path / "executions"
    monkeypatch.setenv("EXECUTIONS_HOME", str(folder))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv(
        "EXECUTIONS_HOOK_TIMEOUT", "150"
    )  # Prefect's server may be silent for a minute, as in `scenarios`
    return folder


@pytest.fixture
def told(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Return a function that runs the command line here, checks its exit code and returns the JSON that it shows."""
    from prefect_executions import background  # noqa: PLC0415 - the same
    from prefect_executions.cli.app import main  # noqa: PLC0415 - most tests need none

    def run(*arguments: str, code: int = 0) -> Any:
        capsys.readouterr()
        found = main([*arguments, "--json"])
        shown = capsys.readouterr()
        assert found == code, shown.err + shown.out
        background.drain()
        return json.loads(shown.out)

    return run


@pytest.fixture(scope="session")
def need() -> Callable[[str, str], str]:
    """Return a function that gives the address in an environment variable, or skips and says what is missing.

    With CI=true a missing service is a failure: `.ci/run` starts all of them.
    """

    def ask(variable: str, what: str) -> str:
        address = os.environ.get(variable, "")
        if not address:
            _missing(f"{what} is missing: set {variable} to its address")
        return address

    return ask


@pytest.fixture(scope="session")
def need_program() -> Callable[[str], str]:
    """Return a function that gives a program's path, or skips and names it."""

    def ask(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            _missing(f"the program {name} is not installed")
        return str(path)

    return ask


def _missing(message: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
