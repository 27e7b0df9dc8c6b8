"""Every other fault: full disks, closed folders, ledgers, clocks, Prefect's API and object storage that fail.

Each strikes a victim from its beginning or at a step. What must hold: before user
code the run fails at once with a clear error; after it the run's outcome is
unchanged, and once the fault is gone a settle leaves one true sealed record.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import servers
from faultproxy import FaultProxy
from faults.judging import BOTH, COMPLETED, CRASHED, FAILED, Truth
from faults.kills import Case
from faults.methods import BEGUN, FIRST, HALF
from faults.world import Death, World
from prefect_executions.tracepoints import TracePoint

START = ""
FROM_THE_START = "from the start"
"""What the table says for `START`."""
BIG = 12 * 1024**2
"""Bytes of each output where an upload is to have several parts."""

WELL = Truth(COMPLETED, executed=True, outputs=BOTH, logged=True)
REFUSED = Truth(FAILED, executed=False)


class Skipped(Exception):  # noqa: N818 - it is no error
    """What is missing for a fault; its text says what."""


class Fault(Protocol):
    """Something that goes wrong from `strike` to `heal`."""

    def strike(self) -> object:
        """Let it go wrong."""

    def heal(self) -> object:
        """Let it go well again."""


@dataclass
class Harm:
    """One row of the table: a fault that strikes at a step, and what must come of it."""

    fault: str
    step: str
    does: Fault
    truth: Truth = WELL
    environment: Mapping[str, str] = field(default_factory=dict)
    """For the victim."""
    workbench: Mapping[str, str] = field(default_factory=dict)
    """For the victim, and for who settles and judges."""
    told: dict[str, Any] = field(default_factory=dict)
    refusal: str = ""
    """A word of the error that a run must fail with before user code."""
    dies: bool = False
    """Whether Prefect itself cannot go on, so that the victim ends with an error."""


def suffered(world: World, harm: Harm, tag: str) -> Case:
    """Let *harm* strike a run, heal it, and return what is true of the run."""
    environment = {**harm.environment, **harm.workbench}
    told = {"tag": tag, "environment": environment, "size": harm.truth.size, **harm.told}
    try:
        if harm.step == START:
            harm.does.strike()
            death = world.run(**told)
        else:
            death = world.run(halt=harm.step, strike=harm.does.strike, **told)
    finally:
        harm.does.heal()
    untrue = tuple(_unlike(world, harm, death, tag))
    runs = world.flow_runs(tag)
    execution_id = runs[0]["id"] if runs else ""
    step = harm.step or FROM_THE_START
    return Case(step, harm.fault, execution_id, harm.truth, untrue, tuple(harm.workbench.items()))


def _unlike(world: World, harm: Harm, death: Death, tag: str) -> Iterator[str]:
    begun = BEGUN in death.steps
    if harm.step and harm.step not in death.steps:
        yield f"it never came to that step: {death.log[-500:]}"
    if harm.refusal:
        if begun:
            yield "its user code began"
        if harm.refusal not in death.log:
            yield f"its error does not say '{harm.refusal}': {death.log[-700:]}"
    if death.code < 0:
        yield f"it was killed by signal {-death.code}: {death.log[-500:]}"
    elif harm.dies:
        return
    states = [run["state_type"] for run in world.flow_runs(tag)]
    wanted = "COMPLETED" if harm.truth.ends == COMPLETED else "FAILED"
    if states != [wanted]:
        yield f"Prefect said {states} before anybody settled: {death.log[-1500:]}"


# --- disks ---------------------------------------------------------------------


class FullDisk:
    """A small disk of its own at *folder*, full while it is struck."""

    def __init__(self, folder: Path) -> None:
        self._filler = folder / "filler"

    def strike(self) -> None:
        with self._filler.open("wb", buffering=0) as file, suppress(OSError):
            for size in (1 << 20, 1 << 12):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))
            os.fsync(file.fileno())

    def heal(self) -> None:
        self._filler.unlink()


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a disk of *megabytes* in memory at *folder*.

    Raises:
        Skipped: If this user may not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, check=False, capture_output=True, text=True)
    except OSError as error:
        raise Skipped(f"no disk can be mounted: {error}") from error
    if done.returncode:
        raise Skipped(f"a small disk needs root: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def full_disks(world: World, stack: ExitStack) -> Iterator[Harm]:
    """A workbench, an archive and a ledger on disks that are full at each writing step."""
    disk = stack.enter_context(small_disk(world.folder / "workbench disk", 16))
    bench = {"EXECUTIONS_WORKBENCH": str(disk / "workbench")}
    name, full = "disk full (workbench)", FullDisk(disk)
    no_space = "No space left on device"
    for step in (START, TracePoint.FOLDER_BEGUN, TracePoint.ANNOUNCED, TracePoint.STAGED):
        yield Harm(name, step, full, REFUSED, workbench=bench, refusal=no_space)
    yield Harm(name, HALF, full, Truth(FAILED, executed=True, outputs=(FIRST,), said=no_space), workbench=bench)
    for step in (
        TracePoint.RETURNED,
        TracePoint.LOGS_CLOSED,
        f"{TracePoint.FILE_READ}: {FIRST}",
        TracePoint.ZIP_WRITTEN,
        TracePoint.ZIP_KEPT,
        TracePoint.LEFT,
        TracePoint.FINAL_STATUS,
        f"{TracePoint.FILE_KEPT}: provo.xml",
        f"{TracePoint.FILE_KEPT}: ro-crate-metadata.json",
        TracePoint.MANIFEST_READY,
    ):
        yield Harm(name, step, full, workbench=bench)

    name, full = "disk full (archive)", FullDisk(world.archive_folder)
    yield Harm(name, START, full, REFUSED, refusal=no_space)
    for step in (TracePoint.EXECUTING, TracePoint.ZIP_KEPT, TracePoint.LEFT, TracePoint.FILES_SENT, TracePoint.SEALED):
        yield Harm(name, step, full)

    disk = stack.enter_context(small_disk(world.folder / "ledger disk", 1))
    elsewhere = {"EXECUTIONS_LEDGER": f"sqlite:///{disk / 'ledger.db'}"}
    for step in (START, TracePoint.EXECUTING, TracePoint.MARKED):
        yield Harm("disk full (ledger)", step, FullDisk(disk), environment=elsewhere)


# --- permissions -----------------------------------------------------------------


class Closed:
    """Folders that nobody may write in while it is struck; *find* tells them then."""

    def __init__(self, find: Callable[[], list[Path]]) -> None:
        self._find = find
        self._closed: list[tuple[Path, int]] = []

    def strike(self) -> None:
        for folder in self._find():
            if not folder.exists():  # a store removes a folder when it is empty
                folder.mkdir()
            self._closed.append((folder, folder.stat().st_mode))
            folder.chmod(0o400 if folder.is_file() else 0o500)

    def heal(self) -> None:
        for folder, mode in self._closed:
            folder.chmod(mode)
        self._closed.clear()


def closed_folders(world: World, stack: ExitStack) -> Iterator[Harm]:
    """A workbench, an archive and a ledger that may not be written, for a victim that is not above permissions."""
    del stack
    own = world.folder / "closed"
    (own / "workbench").mkdir(parents=True)
    bench = {"EXECUTIONS_WORKBENCH": str(own / "workbench")}
    archive = world.archive_folder

    def bundles() -> list[Path]:
        return [found for one in (own / "workbench").glob("*-*") for found in (one, one / "metadata")]

    name, denied, humble = "permission denied (workbench)", "Permission denied", {"humble": True}
    closed = Closed(lambda: [own / "workbench"])
    yield Harm(name, START, closed, REFUSED, workbench=bench, refusal=denied, told=humble)
    closed = Closed(bundles)
    yield Harm(name, TracePoint.ANNOUNCED, closed, REFUSED, workbench=bench, refusal=denied, told=humble)
    for step in (TracePoint.RETURNED, TracePoint.ZIP_WRITTEN, TracePoint.LEFT, f"{TracePoint.FILE_KEPT}: provo.xml"):
        yield Harm(name, step, closed, workbench=bench, told=humble)

    name = "permission denied (archive)"
    closed = Closed(lambda: [archive / "executions", archive / "open"])
    yield Harm(name, START, closed, REFUSED, refusal=denied, told=humble)
    closed = Closed(lambda: [archive, *(path for path in archive.rglob("*") if path.is_dir())])
    for step in (TracePoint.EXECUTING, TracePoint.LEFT, TracePoint.FILES_SENT, TracePoint.SEALED):
        yield Harm(name, step, closed, told=humble)

    ledger = Path(world.settings().ledger_url.removeprefix("sqlite:///"))
    closed = Closed(lambda: [ledger.parent, *ledger.parent.glob("ledger.db*")])
    for step in (START, TracePoint.MARKED):
        yield Harm("permission denied (ledger)", step, closed, told=humble)


# --- the ledger --------------------------------------------------------------------


class Locked:
    """A ledger that another holds for itself."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def strike(self) -> None:
        self._holder = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._holder.execute("BEGIN EXCLUSIVE")

    def heal(self) -> None:
        self._holder.execute("ROLLBACK")
        self._holder.close()


class Removed:
    """A file that is gone for ever."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def strike(self) -> None:
        for path in self._path.parent.glob(f"{self._path.name}*"):
            path.unlink()

    def heal(self) -> None:
        """There is nothing to heal: it is an index."""


class Nothing:
    """What is wrong is in the environment alone."""

    def strike(self) -> None:
        """Nothing."""

    def heal(self) -> None:
        """Nothing."""


def bad_ledgers(world: World, stack: ExitStack) -> Iterator[Harm]:
    """A ledger that is held by another, out of reach, removed, or no ledger at all."""
    del stack
    world.run()  # so that there is a ledger
    path = Path(world.settings().ledger_url.removeprefix("sqlite:///"))
    for step in (START, TracePoint.MARKED):
        yield Harm("ledger locked", step, Locked(path))
    gone = f"postgresql://nobody@127.0.0.1:{servers.free_port()}/gone"
    yield Harm("ledger out of reach", START, Nothing(), environment={"EXECUTIONS_LEDGER": gone})
    other = world.folder / "other.db"
    yield Harm(
        "ledger removed", TracePoint.EXECUTING, Removed(other), environment={"EXECUTIONS_LEDGER": f"sqlite:///{other}"}
    )
    broken = world.folder / "broken.db"
    broken.write_text("this is no database")
    yield Harm("ledger damaged", START, Nothing(), environment={"EXECUTIONS_LEDGER": f"sqlite:///{broken}"})


# --- the clock -----------------------------------------------------------------------


_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static long *offset;

__attribute__((constructor)) static void begin(void) {
    int told = open(getenv("FAULTS_CLOCK"), O_RDONLY);
    offset = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, told, 0);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec += *offset;
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    int failed = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *where) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (where) *where = precise.tv_sec;
    return precise.tv_sec;
}
"""
"""The clock of the day for one process. libfaketime breaks its sleep when the clock moves while it runs."""


class TurnedBack:
    """A clock that is an hour slow from a moment on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._path.write_bytes(struct.pack("l", 0))

    def strike(self) -> None:
        self._tell(-3600)

    def heal(self) -> None:
        self._tell(0)

    def _tell(self, offset: int) -> None:
        with self._path.open("r+b", buffering=0) as file:  # in place: the victim has it mapped
            file.write(struct.pack("l", offset))


def clocks(world: World, stack: ExitStack) -> Iterator[Harm]:
    """A machine whose clock is moved back by an hour while a Method runs on it."""
    del stack
    library = world.folder / "clock.so"
    compiler = shutil.which("cc")
    if compiler is None:
        raise Skipped("a clock of the victim's own needs a C compiler")
    words = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(words, input=_CLOCK, text=True, check=True)
    clock = TurnedBack(world.folder / "clock")
    environment = {"LD_PRELOAD": str(library), "FAULTS_CLOCK": str(world.folder / "clock")}
    for step in (START, TracePoint.OPENED, HALF, TracePoint.LEFT, TracePoint.MANIFEST_READY):
        yield Harm("clock moved back", step, clock, environment=environment, told={"preloaded": False})


# --- Prefect's API ---------------------------------------------------------------------


class Harmful:
    """A proxy that harms what *faults* say while it is struck."""

    def __init__(self, proxy: FaultProxy, *faults: Mapping[str, Any]) -> None:
        self._proxy = proxy
        self._faults = faults

    def strike(self) -> None:
        for fault in self._faults:
            self._proxy.harm(**fault)

    def heal(self) -> None:
        self._proxy.heal()


class Away:
    """A server that is stopped while it is struck, or for some *seconds*."""

    def __init__(self, proxy: FaultProxy, seconds: float | None = None) -> None:
        self._proxy = proxy
        self._seconds = seconds
        self._timer: threading.Timer | None = None

    def strike(self) -> None:
        self._proxy.go_away()
        if self._seconds is not None:
            self._timer = threading.Timer(self._seconds, self._proxy.come_back)
            self._timer.start()

    def heal(self) -> None:
        if self._timer is None:
            self._proxy.come_back()
        else:
            self._timer.join()


def bad_apis(world: World, stack: ExitStack) -> Iterator[Harm]:
    """A Prefect server that answers with errors, slowly, or not at all."""
    api = world.told["PREFECT_API_URL"]
    proxy = stack.enter_context(FaultProxy(api.removesuffix("/api")))
    through = {"PREFECT_API_URL": f"{proxy.url}/api"}
    busy = {"method": "POST", "path": "set_state", "status": 503, "times": 1}
    for step in (START, TracePoint.EXECUTING, TracePoint.LEFT):
        yield Harm("Prefect API: 503 once for each state", step, Harmful(proxy, busy), environment=through)
    deaf = {"path": "/flow_run_states", "status": 500}
    yield Harm("Prefect API: 500 for histories", START, Harmful(proxy, deaf), environment=through)
    deaf = {"path": "/events", "status": 500}
    yield Harm("Prefect API: 500 for events", START, Harmful(proxy, deaf), environment=through)
    yield Harm("Prefect API: slow", START, Harmful(proxy, {"delay": 0.5}), environment=through)
    ended = Truth(CRASHED, executed=True, outputs=BOTH, partial=True, logged=True, said="had ended well")
    for step in (TracePoint.EXECUTING, TracePoint.RETURNED, TracePoint.LEFT):
        yield Harm("Prefect API: gone", step, Away(proxy), ended, environment=through, dies=True)


# --- object storage ------------------------------------------------------------------------


def bad_storage(world: World, stack: ExitStack) -> Iterator[Harm]:
    """An S3 server that is busy, silent, slow, gone, or breaks connections."""
    proxy = stack.enter_context(FaultProxy(world.told["AWS_ENDPOINT_URL"]))
    through = {"AWS_ENDPOINT_URL": proxy.url, "EXECUTIONS_ARCHIVE_TIMEOUT": "4"}
    patient = {**through, "EXECUTIONS_ARCHIVE_TIMEOUT": "120", "EXECUTIONS_HOOK_TIMEOUT": "120"}
    big = WELL._replace(size=BIG)
    busy, silent = {"status": 503}, {"silent": True}
    for name, fault in (("S3: 503", busy), ("S3: time-out", silent)):
        yield Harm(name, START, Harmful(proxy, fault), REFUSED, environment=through, refusal="s3://")
        for step in (TracePoint.EXECUTING, TracePoint.LEFT, TracePoint.FILES_SENT):
            yield Harm(name, step, Harmful(proxy, fault), environment=through)
    yield Harm("S3: gone", START, Away(proxy), REFUSED, environment=through, refusal="s3://")
    for step in (TracePoint.EXECUTING, TracePoint.LEFT, TracePoint.FILES_SENT, TracePoint.SEALED):
        yield Harm("S3: gone", step, Away(proxy), environment=through)
    yield Harm("S3: 503 for every third request", START, Harmful(proxy, {**busy, "every": 3}), environment=patient)
    yield Harm("S3: slow", START, Harmful(proxy, {"delay": 0.3}), environment=patient)
    cut = {"method": "PUT", "path": "partNumber", "cut_request": 1 << 20}
    yield Harm("S3: closed in an upload", START, Harmful(proxy, {**cut, "times": 3}), big, environment=patient)
    yield Harm("S3: closed in every upload", START, Harmful(proxy, cut), big, environment=through)
    lost = {"method": "PUT", "path": "seal.json", "lost_reply": True, "times": 1}
    yield Harm("S3: reply to the seal lost", START, Harmful(proxy, lost), environment=patient)
    for step in (TracePoint.RETURNED, TracePoint.LEFT):
        yield Harm("S3: gone for a minute", step, Away(proxy, 60), big, environment=patient)
