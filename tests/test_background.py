"""Background work: the end of the process and new readers wait for it, for a bounded time."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextvars import ContextVar
from pathlib import Path

from prefect_executions import background
from prefect_executions.settings import Settings
from prefect_executions.workbench.workbench import Workbench

ENDS_AT_ONCE = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from prefect_executions import background

def work():
    time.sleep(0.3)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(Path(sys.argv[1]).write_text, "done").result()

background.submit(work, name="late", patience=60)
raise SystemExit(3)
"""


def test_the_end_of_the_process_waits_while_thread_pools_still_work(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ENDS_AT_ONCE, tmp_path / "told"], capture_output=True, check=False)

    assert (done.returncode, done.stderr) == (3, b"")
    assert (tmp_path / "told").read_text() == "done"


def test_opening_a_workbench_waits_for_background_work(tmp_path: Path) -> None:
    done = threading.Event()

    def work() -> None:
        time.sleep(0.2)
        done.set()

    background.submit(work, name="late", patience=60)
    assert not done.is_set()
    Workbench.of(Settings(home=tmp_path), archive_block=lambda name: (name, {}))

    assert done.is_set()


def test_drain_waits_no_longer_than_the_patience() -> None:
    let_go = threading.Event()
    thread = background.submit(let_go.wait, name="hangs", patience=0.1)
    background.drain()

    assert thread.is_alive()
    let_go.set()
    thread.join(60)
    assert not thread.is_alive()


def test_background_work_that_drains_does_not_wait_for_itself() -> None:
    thread = background.submit(background.drain, name="asks", patience=60)
    thread.join(60)

    assert not thread.is_alive()


def test_work_yields_until_drain_waits_for_it() -> None:
    gone_first, done = threading.Event(), threading.Event()

    def work() -> None:
        gone_first.set()
        background.yield_briefly(600)
        done.set()

    thread = background.submit(work, name="polite", patience=60)
    assert gone_first.wait(60)
    assert not done.is_set()
    background.drain()

    assert done.is_set()
    thread.join(60)


def test_only_background_work_yields() -> None:
    background.yield_briefly(600)


def test_drain_does_not_wait_for_work_without_patience() -> None:
    release = threading.Event()
    thread = background.submit(release.wait, name="watcher")
    background.drain()

    assert thread.is_alive()
    release.set()
    thread.join(60)


def test_deferred_work_runs_in_the_context_of_its_caller_unless_it_is_cancelled() -> None:
    value: ContextVar[str] = ContextVar("value")
    results: list[str] = []
    value.set("caller's")
    background.defer(lambda: results.append(value.get()), name="deferred", delay=0.01).join(60)
    cancelled = background.defer(lambda: results.append("cancelled"), name="cancelled", delay=60)
    cancelled.cancel()
    cancelled.join(60)

    assert results == ["caller's"]
