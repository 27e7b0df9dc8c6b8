"""Observes where a run is (host, container or pod, CPUs, memory, GPUs, Python, packages) and what it uses.

Facts that the system does not provide are absent. Facts that cannot change while a process
lives are read once. No program is started on a machine without a GPU.
"""

from __future__ import annotations

import csv
import ctypes
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
from prefect_executions.capture.probes import Failures, Probe, probe
from prefect_executions.capture.processes import this_process
from prefect_executions.capture.procfs import content, cpu_count, facts
from prefect_executions.capture.secrets import MASK, looks_secret
from prefect_executions.executions.record import Gpu, Instance, Usage
from prefect_executions.methods.secrets import is_withheld

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
"""The environment variables that are recorded; ``*`` matches any suffix."""

# In Kubernetes a pod learns its name only from variables of its template (the downward API).
_POD = ("POD_NAME", "MY_POD_NAME", "K8S_POD_NAME", "KUBERNETES_POD_NAME")
_NODE = ("NODE_NAME", "MY_NODE_NAME", "K8S_NODE_NAME", "KUBERNETES_NODE_NAME")

_GPU_QUERY_SECONDS = 20.0

# getrusage(2): kilobytes on Linux, bytes on macOS.
_UNIT = 1 if sys.platform == "darwin" else 1024

_PROCESS = Packages()


def observe(
    *,
    environment: Mapping[str, str],
    allowed: Sequence[str],
    names: tuple[str, ...] = (),
    packages: Packages = _PROCESS,
    failures: Failures | None = None,
) -> Instance:
    """Return the environment of this process; a `Meter` measures its usage.

    Facts that cannot be read are absent, and *failures* gets the reasons.

    Only the variables of `ENVIRONMENT` and *allowed* (names, or patterns with ``*``) are recorded,
    and values that look secret are withheld; *names* are additional names of secrets. GPUs are
    limited to `CUDA_VISIBLE_DEVICES` as far as possible.
    """
    system, failures = facts(), {} if failures is None else failures
    failures |= system.failures
    instance = Instance(
        hostname=probe(Probe.HOSTNAME, lambda: socket.gethostname() or None, None, failures),
        pid=os.getpid(),
        process=probe(Probe.PROCESS, this_process, None, failures),
        user=probe(Probe.USER, this_user, None, failures),
        working_directory=probe(Probe.WORKING_DIRECTORY, lambda: _text(os.getcwd()), None, failures),  # noqa: PTH109
        container_id=system.container_id,
        pod=pod_of(environment),
        node=_first(environment, _NODE),
        os=system.os,
        kernel=system.kernel,
        architecture=system.architecture,
        cpu_model=system.cpu_model,
        cpu_count=probe(Probe.CPU_COUNT, lambda: cpu_count(system.cpu_limit), system.cpu_limit, failures),
        memory=system.memory,
        gpus=probe(Probe.GPUS, lambda: visible_gpus(installed_gpus(), environment), (), failures),
        python=system.python,
        packages=probe(Probe.PACKAGES, lambda: dict(packages.versions()), {}, failures),
        package_origins=probe(Probe.PACKAGES, lambda: dict(packages.origins()) or None, None, failures),
        environment=probe(Probe.ENVIRONMENT, lambda: recorded_environment(environment, allowed, names), {}, failures),
    )
    failures |= packages.failures
    return instance


def pod_of(environment: Mapping[str, str]) -> str | None:
    """Return the pod name from the environment of a process; None if no variable contains it."""
    return _first(environment, _POD)


def recorded_environment(
    environment: Mapping[str, str], allowed: Sequence[str], secret_names: tuple[str, ...] = ()
) -> dict[str, str]:
    """Return the recorded variables, sorted; values that look secret are replaced by `MASK`."""
    patterns = (*ENVIRONMENT, *allowed)
    exact = {name for name in patterns if "*" not in name} & environment.keys()
    families = [pattern for pattern in patterns if "*" in pattern]
    names = exact.union(*(_matching(environment, pattern) for pattern in families))
    return {
        name: MASK
        if looks_secret(name, value := environment[name]) or is_withheld(name, value, secret_names)
        else _text(value)
        for name in sorted(names)
    }


class Meter:
    """Measures the usage of the process between `start` and `stop`.

    CPU seconds include all threads and the children that the process waited for. The operating
    system counts per process: executions that share a process are each charged the total.

    Peak memory is the largest resident size of the process or of one child that it waited for,
    not their sum. The peak is reset at each start (proc(5), clear_refs); where Linux refuses the
    reset, the figure is the peak since the process started.

    Attributes:
        failures: Why a figure is missing.
    """

    _lock = threading.Lock()
    _running: set[Meter] = set()  # all meters, because they share one peak

    def __init__(self) -> None:
        self._wall = self._cpu = 0.0
        self._children = 0
        self._peak: int | None = None
        self.failures: Failures = {}

    def start(self) -> None:
        """Start measuring."""
        probe(Probe.USAGE, self._start, None, self.failures)

    def stop(self) -> Usage:
        """Return the usage since `start`; empty if the meter is not running."""
        return probe(Probe.USAGE, self._stop, Usage(), self.failures)

    def _start(self) -> None:
        with Meter._lock:
            if Meter._running:
                _record_peak(Meter._running)
            _reset_peak()
            Meter._running.add(self)
        self._peak = None
        self._children = _peak_of_children()
        self._wall, self._cpu = time.monotonic(), _cpu_seconds()

    def _stop(self) -> Usage:
        wall, cpu = time.monotonic(), _cpu_seconds()
        with Meter._lock:
            if self not in Meter._running:
                return Usage()
            meters = Meter._running.copy()
            Meter._running.discard(self)
            _record_peak(meters)
        children = _peak_of_children()
        # Before its exec, a child is as large as its parent, and Linux counts that as the child's peak.
        if children > max(self._children, self._peak or 0):
            self._peak = children
        return Usage(
            wall_seconds=wall - self._wall, cpu_seconds=max(0.0, cpu - self._cpu), peak_memory=self._peak or None
        )

    def add_peak(self, peak: int) -> None:
        """Record a resident size that the process reached."""
        self._peak = max(self._peak or 0, peak)


def _record_peak(meters: set[Meter]) -> None:
    match = re.search(r"^VmHWM:\s+(\d+) kB", content("/proc/self/status"), re.MULTILINE)
    peak = int(match[1]) * 1024 if match else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
    for meter in meters:
        meter.add_peak(peak)


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
    """Return the name of the effective user, or the uid if it has no name or the user database cannot be read."""
    return _user(os.geteuid())


@cache
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OSError, UnicodeError):
        return str(uid)


def _first(environment: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((_text(environment[name]) for name in names if environment.get(name)), None)


def _matching(environment: Mapping[str, str], pattern: str) -> list[str]:
    start = pattern.partition("*")[0]
    return [name for name in environment if name.startswith(start) and fnmatchcase(name, pattern)]


def _text(value: str) -> str:
    # Bytes that are not UTF-8 have no JSON form; escape them.
    return os.fsencode(value).decode("utf-8", "backslashreplace")


@cache
def installed_gpus() -> tuple[Gpu, ...]:
    """Return all NVIDIA GPUs of the machine, with their CUDA version; queried once."""
    gpus = _queried_gpus()
    cuda = cuda_version() if gpus else None
    return tuple(gpu.model_copy(update={"cuda": cuda}) for gpu in gpus)


def cuda_version(library: str = "libcuda.so.1") -> str | None:
    """Return the newest CUDA version that the driver supports; None if the driver's *library* cannot be loaded.

    ``cuDriverGetVersion`` does not initialize CUDA, so the Method's code can still fork.
    """
    number = ctypes.c_int()
    try:
        if ctypes.CDLL(library).cuDriverGetVersion(ctypes.byref(number)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"  # 12040 is 12.4


def _queried_gpus() -> tuple[Gpu, ...]:
    program = shutil.which("nvidia-smi")
    if program is None or not (Path("/proc/driver/nvidia").exists() or Path("/dev/nvidiactl").exists()):
        return _gpus_of_driver()
    query = [program, "--query-gpu=name,uuid,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, timeout=_GPU_QUERY_SECONDS, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return _gpus_of_driver()
    return gpus_in(done.stdout.decode(errors="replace"))


def gpus_in(table: str) -> tuple[Gpu, ...]:
    """Return the GPUs in the CSV that ``nvidia-smi`` prints for name, uuid, memory.total (MiB), driver_version."""
    gpus = []
    for row in csv.reader(table.splitlines(), skipinitialspace=True):
        if len(row) == 4:  # noqa: PLR2004 - the four queried fields
            name, uuid, memory, driver = (field if field and not field.startswith("[") else None for field in row)
            size = int(memory) * 1024**2 if memory and memory.isdecimal() else None
            gpus.append(Gpu(name=name or "NVIDIA GPU", uuid=uuid, memory=size, driver=driver))
    return tuple(gpus)


def visible_gpus(gpus: Sequence[Gpu], environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Return the GPUs that ``CUDA_VISIBLE_DEVICES`` makes visible.

    A number is an index in CUDA's order, which equals the driver's order only with
    ``CUDA_DEVICE_ORDER=PCI_BUS_ID``. If the selection is ambiguous, all GPUs are returned.
    """
    selection = environment.get("CUDA_VISIBLE_DEVICES")
    if selection is None:
        return tuple(gpus)
    ordered = environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len(gpus) == 1
    chosen: list[Gpu] = []
    for word in (word.strip() for word in selection.split(",") if word.strip()):
        if word.isdigit() and ordered:
            if int(word) >= len(gpus):
                break  # CUDA ignores an invalid index and everything after it
            chosen.append(gpus[int(word)])
        elif word.startswith("-") or word in {"NoDevFiles", "none", "void"}:
            break
        else:
            matching = [gpu for gpu in gpus if gpu.uuid and gpu.uuid.startswith(word)]
            if len(matching) != 1:
                return tuple(gpus)
            chosen += matching
    return tuple(chosen)


def _gpus_of_driver() -> tuple[Gpu, ...]:
    version = re.search(r"Kernel Module[^\d]*([\d.]+)", content("/proc/driver/nvidia/version"))
    gpus = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        fields = dict(re.findall(r"^([^:\n]+):\s*(.*?)\s*$", content(path), re.MULTILINE))
        uuid = fields.get("GPU UUID", "")
        gpus.append(
            Gpu(
                name=fields.get("Model", "NVIDIA GPU"),
                uuid=uuid if uuid and "?" not in uuid else None,
                driver=version[1] if version else None,
            )
        )
    return tuple(gpus)
