"""The system under a run: its container, its limits, its CPUs and memory, as ``/proc`` and cgroups tell them."""

from __future__ import annotations

import math
import os
import platform
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from prefect_executions.executions.record import Python

_CONTAINER_IN_CGROUP = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?:\.scope)?(?:/container)?$")
_CONTAINER_IN_MOUNT = re.compile(r"/(?:overlay-)?containers/([0-9a-f]{64})/")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the system says of itself and of this process, once and for all."""

    os: str | None
    kernel: str | None
    architecture: str | None
    cpu_model: str | None
    cpu_limit: int | None
    memory: int | None
    container_id: str | None
    python: Python


@cache
def facts() -> Facts:
    """Return the facts of this process."""
    cgroup = content("/proc/self/cgroup")
    return Facts(
        os=_system(),
        kernel=platform.release() or None,
        architecture=platform.machine() or None,
        cpu_model=_cpu_model(content("/proc/cpuinfo")),
        cpu_limit=cpu_limit_in(cgroup, Path("/sys/fs/cgroup")),
        memory=_memory(content("/proc/meminfo"), memory_limit_in(cgroup, Path("/sys/fs/cgroup"))),
        container_id=container_id_in(cgroup, content("/proc/self/mountinfo")),
        python=Python(
            version=platform.python_version(),
            implementation=platform.python_implementation(),
            executable=sys.executable or None,
        ),
    )


def cpu_limit_in(cgroup: str, mounted: Path) -> int | None:
    """Return how many CPUs the cgroups of this process allow, rounded up, or None without a limit.

    Read from ``cpu.max`` (version 2) or ``cpu.cfs_quota_us`` (version 1) below *mounted*; the
    strictest of the cgroup and those around it holds.
    """
    limits = []
    for folder in _cgroup_folders(cgroup, mounted, "cpu"):
        quota, _, period = content(folder / "cpu.max").strip().partition(" ")
        if not quota:
            quota, period = content(folder / "cpu.cfs_quota_us").strip(), content(folder / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period):
            limits.append(math.ceil(int(quota) / int(period)))
    return min(limits, default=None)


def memory_limit_in(cgroup: str, mounted: Path) -> int | None:
    """Return how many bytes the cgroups of this process allow, or None without a limit."""
    limits = []
    for folder in _cgroup_folders(cgroup, mounted, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            told = content(folder / name).strip()
            if told.isdigit():
                limits.append(int(told))
    return min(limits, default=None)


def _cgroup_folders(cgroup: str, mounted: Path, controller: str) -> list[Path]:
    folders: list[Path] = []
    for line in cgroup.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        tops = [mounted / controllers, mounted / controller] if controllers else [mounted, mounted / "unified"]
        top = next((top for top in tops if top.is_dir()), None)
        if top is not None:
            inside = top / path.lstrip("/")
            folders += [inside, *(parent for parent in inside.parents if parent.is_relative_to(top))]
    return folders


def cpu_count(limit: int | None) -> int | None:
    """Return how many CPUs this process may use now: its affinity, and the *limit* of its cgroups."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(usable, limit) if usable and limit else usable


def _memory(meminfo: str, limit: int | None) -> int | None:
    found = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    total = int(found[1]) * 1024 if found else None
    return min(total, limit) if total and limit else total


def _cpu_model(cpuinfo: str) -> str | None:
    found = re.search(r"^(?:model name|Model|cpu model|cpu)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else None


def _system() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME") or platform.system() or None
    except OSError:
        return platform.system() or None


def container_id_in(cgroup: str, mountinfo: str) -> str | None:
    """Return the container's id from the texts of ``/proc/self/cgroup`` and ``/proc/self/mountinfo``.

    Docker, containerd, CRI-O and podman name the cgroup after it. In a cgroup
    namespace only the files that the engine mounts (``/etc/hostname``) tell it.
    """
    for line in cgroup.splitlines():
        if found := _CONTAINER_IN_CGROUP.search(line):
            return found[1]
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        # The fourth field is where the mount comes from; the fifth, on a host, names other people's containers.
        if len(fields) > 4 and fields[4].startswith("/etc/") and (found := _CONTAINER_IN_MOUNT.search(fields[3])):  # noqa: PLR2004
            return found[1]
    return None


def content(path: str | Path) -> str:
    """Return the text of *path*, or nothing where it cannot be read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
