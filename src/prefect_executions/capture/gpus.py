"""The GPUs that a run can see; nothing is started on a machine that has none."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from prefect_executions.capture.procfs import content
from prefect_executions.executions.record import Gpu

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
