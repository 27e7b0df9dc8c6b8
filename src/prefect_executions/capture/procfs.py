"""Reads facts about the system from ``/proc`` and cgroups: container, limits, CPUs, memory."""

from __future__ import annotations

import math
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from prefect_executions.capture.probes import Failures, Probe, probe
from prefect_executions.documents import clean_text
from prefect_executions.executions.record import Python

_CONTAINER_IN_CGROUP = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?:\.scope)?(?:/container)?$")
_CONTAINER_IN_MOUNT = re.compile(r"/(?:overlay-)?containers/([0-9a-f]{64})/")


@dataclass(frozen=True, kw_only=True)
class SystemFacts:
    """Facts about the system and this process that do not change while the process lives."""

    os: str | None
    kernel: str | None
    architecture: str | None
    cpu_model: str | None
    cpu_limit: int | None
    memory: int | None
    container_id: str | None
    python: Python | None
    failures: Mapping[str, str]


@cache
def facts() -> SystemFacts:
    """Return the facts for this process, read once."""
    cgroup, cgroups = content("/proc/self/cgroup"), Path("/sys/fs/cgroup")
    failures: Failures = {}
    return SystemFacts(
        os=probe(Probe.OPERATING_SYSTEM, _system, None, failures),
        kernel=probe(Probe.KERNEL, lambda: platform.release() or None, None, failures),
        architecture=probe(Probe.ARCHITECTURE, lambda: platform.machine() or None, None, failures),
        cpu_model=probe(Probe.CPU_MODEL, lambda: _cpu_model(content("/proc/cpuinfo")), None, failures),
        cpu_limit=probe(Probe.CPU_LIMIT, lambda: cpu_limit_in(cgroup, cgroups), None, failures),
        memory=probe(
            Probe.MEMORY,
            lambda: _memory(content("/proc/meminfo"), memory_limit_in(cgroup, cgroups)),
            None,
            failures,
        ),
        container_id=probe(
            Probe.CONTAINER, lambda: container_id_in(cgroup, content("/proc/self/mountinfo")), None, failures
        ),
        python=probe(Probe.PYTHON, _python, None, failures),
        failures=failures,
    )


def _python() -> Python:
    return Python(
        version=platform.python_version(),
        implementation=platform.python_implementation(),
        executable=clean_text(sys.executable) or None,
    )


def cpu_limit_in(cgroup: str, mounted: Path) -> int | None:
    """Return the number of CPUs that the cgroups of this process allow, rounded up; None without a limit.

    Read from ``cpu.max`` (version 2) or ``cpu.cfs_quota_us`` (version 1) below *mounted*. The
    strictest limit of the cgroup and its parents applies.
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
    """Return the number of bytes that the cgroups of this process allow; None without a limit."""
    limits = []
    for folder in _cgroup_folders(cgroup, mounted, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = content(folder / name).strip()
            if limit.isdigit():
                limits.append(int(limit))
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
    """Return the number of CPUs that this process may use now, by its affinity and the *limit* of its cgroups."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(usable, limit) if usable and limit else usable


def _memory(meminfo: str, limit: int | None) -> int | None:
    match = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    total = int(match[1]) * 1024 if match else None
    return min(total, limit) if total and limit else total


def _cpu_model(cpuinfo: str) -> str | None:
    match = re.search(r"^(?:model name|Model|cpu model|cpu)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return match[1].strip() if match else None


def _system() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME") or platform.system() or None
    except (OSError, UnicodeError):
        return platform.system() or None


def container_id_in(cgroup: str, mountinfo: str) -> str | None:
    """Return the container's id from the texts of ``/proc/self/cgroup`` and ``/proc/self/mountinfo``.

    Docker, containerd, CRI-O and Podman name the cgroup after the container. In a cgroup
    namespace, only the files that the engine mounts (``/etc/hostname``) contain the id.
    """
    for line in cgroup.splitlines():
        if match := _CONTAINER_IN_CGROUP.search(line):
            return match[1]
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        # Field 4 is the source of the mount; field 5 on a host may name unrelated containers.
        if len(fields) > 4 and fields[4].startswith("/etc/") and (match := _CONTAINER_IN_MOUNT.search(fields[3])):  # noqa: PLR2004
            return match[1]
    return None


def content(path: str | Path) -> str:
    """Return the text of *path*, or an empty string if it is unreadable."""
    try:
        return Path(path).read_bytes().decode(errors="replace")
    except Exception:  # noqa: BLE001 - the absence of a file must not end a run, whatever its reason
        return ""
