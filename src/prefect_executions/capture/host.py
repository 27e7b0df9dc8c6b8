"""Where a run really is: host, container or pod, system, CPUs, memory, GPUs, Python, packages; and what it uses.

What the system does not say is absent. Facts that cannot change while a process
lives are found out once.

The GPUs that a run can see; nothing is started on a machine that has none.
"""

from __future__ import annotations

import csv
import os
import pwd
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from prefect_executions.capture.packages import Packages
from prefect_executions.capture.processes import this_process
from prefect_executions.capture.procfs import content, cpu_count, facts
from prefect_executions.capture.secrets import MASK, looks_secret
from prefect_executions.executions.record import Gpu, Instance, Usage

_GPU_LIMIT = 20.0


@cache
def installed_gpus() -> tuple[Gpu, ...]:
    """Return all NVIDIA GPUs of the machine, asked once."""
    program = shutil.which("nvidia-smi")
    if program is None or not (Path("/proc/driver/nvidia").exists() or Path("/dev/nvidiactl").exists()):
        return _gpus_of_driver()
    query = [program, "--query-gpu=name,uuid,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_GPU_LIMIT, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return _gpus_of_driver()
    return gpus_in(done.stdout)


def gpus_in(table: str) -> tuple[Gpu, ...]:
    """Return the GPUs in the CSV that ``nvidia-smi`` prints for name, uuid, memory.total (MiB), driver_version."""
    gpus = []
    for row in csv.reader(table.splitlines(), skipinitialspace=True):
        if len(row) == 4:  # noqa: PLR2004 - the four fields that were asked for
            name, uuid, memory, driver = (field if field and not field.startswith("[") else None for field in row)
            size = int(memory) * 1024**2 if memory and memory.isdigit() else None
            gpus.append(Gpu(name=name or "NVIDIA GPU", uuid=uuid, memory=size, driver=driver))
    return tuple(gpus)


def visible_gpus(gpus: Sequence[Gpu], environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Return those of *gpus* that ``CUDA_VISIBLE_DEVICES`` lets a program see.

    A number means a place in CUDA's own order, which is the driver's only with
    ``CUDA_DEVICE_ORDER=PCI_BUS_ID``. Where it cannot be said which GPUs are
    meant, all of them are told.
    """
    told = environment.get("CUDA_VISIBLE_DEVICES")
    if told is None:
        return tuple(gpus)
    ordered = environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len(gpus) == 1
    chosen: list[Gpu] = []
    for word in (word.strip() for word in told.split(",") if word.strip()):
        if word.isdigit() and ordered:
            if int(word) >= len(gpus):
                break  # CUDA ignores a wrong number and all that follow it
            chosen.append(gpus[int(word)])
        elif word.startswith("-") or word in {"NoDevFiles", "none", "void"}:
            break
        else:
            meant = [gpu for gpu in gpus if gpu.uuid and gpu.uuid.startswith(word)]
            if len(meant) != 1:
                return tuple(gpus)
            chosen += meant
    return tuple(chosen)


def _gpus_of_driver() -> tuple[Gpu, ...]:
    version = re.search(r"Kernel Module[^\d]*([\d.]+)", content("/proc/driver/nvidia/version"))
    found = []
    for told in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        fields = dict(re.findall(r"^([^:\n]+):\s*(.*?)\s*$", content(told), re.MULTILINE))
        uuid = fields.get("GPU UUID", "")
        found.append(
            Gpu(
                name=fields.get("Model", "NVIDIA GPU"),
                uuid=uuid if uuid and "?" not in uuid else None,
                driver=version[1] if version else None,
            )
        )
    return tuple(found)


ENVIRONMENT = (
    "LANG",
    "LANGUAGE",
    "LC_*",
    "TZ",
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "NVIDIA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTHONHASHSEED",
    "PYTHONOPTIMIZE",
    "PYTHONUTF8",
    "EXECUTIONS_TIME_LIMIT",
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_PARTITION",
    "SLURM_NTASKS",
    "SLURM_CPUS_PER_TASK",
    "SLURM_JOB_NODELIST",
)
"""The variables that are recorded; a ``*`` stands for any ending."""

# Kubernetes tells a pod about itself only by variables that its template fills (the downward API).
_POD = ("POD_NAME", "MY_POD_NAME", "K8S_POD_NAME", "KUBERNETES_POD_NAME")
_NODE = ("NODE_NAME", "MY_NODE_NAME", "K8S_NODE_NAME", "KUBERNETES_NODE_NAME")

# getrusage(2): kilobytes on Linux, bytes on macOS.
_UNIT = 1 if sys.platform == "darwin" else 1024

_PROCESS = Packages()


def observe(*, environment: Mapping[str, str], allowed: Sequence[str], packages: Packages = _PROCESS) -> Instance:
    """Return where this process runs; without usage, which a `Meter` measures.

    Of *environment* only the variables of `ENVIRONMENT` and *allowed* (names, or
    patterns with ``*``) are recorded, and of these a value that looks like a
    secret is withheld. GPUs are those of `CUDA_VISIBLE_DEVICES`, as far as that
    can be said; no program is started where there is no GPU.
    """
    known = facts()
    return Instance(
        hostname=socket.gethostname() or None,
        pid=os.getpid(),
        process=this_process(),
        user=this_user(),
        working_directory=_working_directory(),
        container_id=known.container_id,
        pod=pod_of(environment),
        node=_first(environment, _NODE),
        os=known.os,
        kernel=known.kernel,
        architecture=known.architecture,
        cpu_model=known.cpu_model,
        cpu_count=cpu_count(known.cpu_limit),
        memory=known.memory,
        gpus=visible_gpus(installed_gpus(), environment),
        python=known.python,
        packages=dict(packages.versions()),
        environment=recorded_environment(environment, allowed),
    )


def pod_of(environment: Mapping[str, str]) -> str | None:
    """Return the name of the pod that a process with this environment runs in; None where no variable tells it."""
    return _first(environment, _POD)


def recorded_environment(environment: Mapping[str, str], allowed: Sequence[str]) -> dict[str, str]:
    """Return the variables that may be told, sorted; what looks like a secret is withheld by `MASK`."""
    patterns = (*ENVIRONMENT, *allowed)
    exact = {name for name in patterns if "*" not in name} & environment.keys()
    families = [pattern for pattern in patterns if "*" in pattern]
    names = exact.union(*(_matching(environment, pattern) for pattern in families))
    return {name: MASK if looks_secret(name, environment[name]) else _text(environment[name]) for name in sorted(names)}


class Meter:
    """Measures what the process uses from `start` to `stop`.

    CPU seconds are those of the process, all its threads, and the children that
    it has waited for meanwhile. The operating system counts by process: where
    executions share one at the same time, each is charged what all of them used.

    Peak memory is the largest resident size that the process, or one child that
    it has waited for, reached meanwhile; not their sum. Linux is asked to count
    the peak anew at each start (proc(5), clear_refs); where it refuses, the figure
    is the peak since the process began.
    """

    _lock = threading.Lock()
    _running: set[Meter] = set()  # of all, because they share the one peak

    def __init__(self) -> None:
        self._wall = self._cpu = 0.0
        self._children = 0
        self._peak: int | None = None

    def start(self) -> None:
        """Measure from now on."""
        with Meter._lock:
            if Meter._running:
                _remember_peak(Meter._running)
            _reset_peak()
            Meter._running.add(self)
        self._peak = None
        self._children = _peak_of_children()
        self._wall, self._cpu = time.monotonic(), _cpu_seconds()

    def stop(self) -> Usage:
        """Return what was used since `start`; nothing if the meter does not run."""
        wall, cpu = time.monotonic(), _cpu_seconds()
        with Meter._lock:
            if self not in Meter._running:
                return Usage()
            _remember_peak(Meter._running)
            Meter._running.discard(self)
        children = _peak_of_children()
        # Until it execs, a child is as large as the process it was forked from, and Linux counts that as its peak.
        if children > max(self._children, self._peak or 0):
            self._peak = children
        return Usage(
            wall_seconds=wall - self._wall, cpu_seconds=max(0.0, cpu - self._cpu), peak_memory=self._peak or None
        )

    def remember(self, peak: int) -> None:
        """Take note of a resident size that the process has reached."""
        self._peak = max(self._peak or 0, peak)


def _remember_peak(meters: set[Meter]) -> None:
    found = re.search(r"^VmHWM:\s+(\d+) kB", content("/proc/self/status"), re.MULTILINE)
    peak = int(found[1]) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
    for meter in meters:
        meter.remember(peak)


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _peak_of_children() -> int:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _UNIT


def this_user() -> str:
    """Return the name of the user whom this process acts for, or the number where there is no name."""
    return _user(os.geteuid())


@cache
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _working_directory() -> str | None:
    try:
        return _text(os.getcwd())  # noqa: PTH109 - as text
    except OSError:
        return None


def _first(environment: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)


def _matching(environment: Mapping[str, str], pattern: str) -> list[str]:
    start = pattern.partition("*")[0]
    return [name for name in environment if name.startswith(start) and fnmatchcase(name, pattern)]


def _text(value: str) -> str:
    # Bytes that are no UTF-8 cannot stand in JSON; they are told escaped.
    return os.fsencode(value).decode("utf-8", "backslashreplace")
