"""A running execution is never declared dead: suspended process, slow disk, unavailable server, stopped clock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from journeys import waited
from prefect_executions import method
from prefect_executions.capture.processes import this_process
from prefect_executions.executions.record import Process
from prefect_executions.lifecycle.status import Reason
from prefect_executions.settle.decide import SILENCE
from scenes import FAR, Scene, age

pytestmark = pytest.mark.usefixtures("prefect_server")

TEN_MINUTES = timedelta(minutes=10)


@method(version="1")
def lives() -> None: ...


@pytest.fixture
def scene(prefect_server: str, home: Path) -> Scene:
    return Scene(home)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Return the home of another machine with the same archive."""
    return tmp_path / "elsewhere"


@contextmanager
def suspended() -> Iterator[tuple[Process, subprocess.Popen[bytes]]]:
    """Start a process and stop it in its tracks, as Ctrl-Z does."""
    with subprocess.Popen(["sleep", "600"]) as popen:
        try:
            started = Path(f"/proc/{popen.pid}/stat").read_text().rpartition(")")[2].split()[19]
            popen.send_signal(signal.SIGSTOP)
            yield this_process().model_copy(update={"pid": popen.pid, "started": started}), popen
        finally:
            popen.kill()


def heartbeat(worker: str) -> dict[str, str]:
    """Record a heartbeat of a process pool's worker; return the labels that Prefect gives to its runs."""
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="living", type="process"), overwrite=True)
        request = {"json": {"name": worker}, "path_params": {"work_pool_name": "living"}}
        client.request("POST", "/work_pools/{work_pool_name}/workers/heartbeat", **request)
    return {"prefect.worker.name": worker, "prefect.worker.type": "process", "prefect.work-pool.name": "living"}


def worked(run: FlowRun, worker: str) -> None:
    labels = heartbeat(worker)
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(run.id, labels)


def left(scene: Scene, run: FlowRun, home: Path | None = None, pause: Callable[[float], None] = lambda _: None) -> bool:
    """Whether a round leaves the run alone, in Prefect as in the archive."""
    result = scene.settle(home, pause=pause).get(str(run.id))
    unsealed = scene.bench.archive.seal_of(str(run.id)) is None
    return (result is None or result.result == "open") and unsealed and scene.state(run).is_running()


def test_a_suspended_process_on_this_machine_is_left_alone_until_it_is_gone(scene):
    with suspended() as (process, popen):
        run, _ = scene.opened(scene.deploy(lives), process=process)
        age(run.id, TEN_MINUTES)
        scene.silence(run)
        assert left(scene, run)
        popen.kill()
    assert not left(scene, run)
    assert scene.record(run).job_status.reason is Reason.CRASHED


@pytest.mark.long
def test_a_suspended_process_elsewhere_is_left_to_its_worker(scene, elsewhere):
    run, _ = scene.opened(scene.deploy(lives), process=FAR, at=elsewhere.with_name("there"))
    worked(run, "watches")
    scene.silence(run)
    age("watches", -TEN_MINUTES, "worker")  # its heartbeat stays recent, however slow this machine is
    assert left(scene, run, elsewhere)
    age("watches", 2 * TEN_MINUTES, "worker")
    assert not left(scene, run, elsewhere)
    assert scene.record(run).job_status.reason is Reason.LOST


def test_ten_minutes_without_prefects_server_declare_no_run_dead(scene, elsewhere):
    run, _ = scene.opened(scene.deploy(lives), process=FAR, at=elsewhere.with_name("there"))
    worked(run, "unheard")
    scene.silence(run, -600)  # its heartbeat stays recent, however slow this machine is
    age(run.id, TEN_MINUTES)
    age("unheard", TEN_MINUTES, "worker")  # its heartbeat is missing, too
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert [one.result for one in scene.settle(elsewhere).values()] == ["failed"]
    assert left(scene, run, elsewhere)


@pytest.mark.long
def test_ten_minutes_without_the_archive_declare_no_run_dead(scene, elsewhere):
    there = elsewhere.with_name("there")
    run, _ = scene.opened(scene.deploy(lives), process=FAR, at=there)
    there.rename(there.with_name("away"))
    scene.silence(run)
    looks: list[float] = []

    def pause(seconds: float) -> None:
        looks.append(seconds)
        scene.bench.archive.marks.renew({str(run.id): "/nowhere"})  # its next sign of life comes through

    assert left(scene, run, elsewhere, pause)
    assert looks == [15.0]


STANDING = """
#include <sys/time.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (clock != CLOCK_REALTIME) return syscall(SYS_clock_gettime, clock, now);
    now->tv_sec = 1000000000;
    now->tv_nsec = 0;
    return 0;
}
"""
LIVING = """
import sys, time
from prefect_executions.archive.archive import open_archive
from prefect_executions.workbench.heartbeat import Leases

assert time.time() == 1e9
archive = open_archive(sys.argv[1])
Leases(lambda: archive.marks, period=0.2).hold(sys.argv[2], "/nowhere")
time.sleep(600)
"""


@pytest.mark.long
def test_a_clock_that_stands_still_declares_no_run_dead(scene, elsewhere, tmp_path, need_program):
    library = tmp_path / "clock.so"
    compiled = [need_program("cc"), "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(compiled, input=STANDING, text=True, check=True)
    run, _ = scene.opened(scene.deploy(lives), process=FAR, at=elsewhere.with_name("there"))
    scene.silence(run)
    words = [sys.executable, "-c", LIVING, scene.bench.archive.store.url, str(run.id)]
    with subprocess.Popen(words, env=os.environ | {"LD_PRELOAD": str(library)}) as popen:
        try:
            marks = scene.bench.archive.marks
            waited(lambda: [one for one in marks.open() if marks.clock() - one.renewed < SILENCE], "a sign of life")
            assert left(scene, run, elsewhere)
        finally:
            popen.kill()
