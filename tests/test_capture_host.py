"""The machine: what the system says of itself, what may be told of the environment, and what a run uses."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import time

import pytest

from prefect_executions.capture.host import Meter, cuda_version, gpus_in, observe, recorded_environment, visible_gpus
from prefect_executions.capture.packages import Packages, package_of
from prefect_executions.capture.procfs import container_id_in, cpu_limit_in, memory_limit_in
from prefect_executions.capture.secrets import MASK
from prefect_executions.executions.record import Gpu, Instance, Usage

ID = "4f5e" * 16
SMI = """NVIDIA H200, GPU-8932f937-d72c-4106-c12f-20bd9faed9f6, 143771, 570.86.15
"NVIDIA A2", GPU-11111111-d72c-4106-c12f-20bd9faed9f6, [N/A], 570.86.15
"""


def test_the_instance_is_what_the_system_says_of_this_process():
    instance = observe(environment={"POD_NAME": "pod-1", "NODE_NAME": "node-1", "HOME": "/home"}, allowed=())
    assert (instance.hostname, instance.pid) == (socket.gethostname(), os.getpid())
    assert instance.user == subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    assert instance.kernel == subprocess.run(["uname", "-r"], capture_output=True, text=True, check=True).stdout.strip()
    assert instance.architecture == platform.machine()
    assert instance.working_directory == os.getcwd()  # noqa: PTH109 - as the shell says it
    assert (instance.pod, instance.node) == ("pod-1", "node-1")
    assert instance.cpu_count
    assert instance.cpu_count <= len(os.sched_getaffinity(0))
    assert instance.memory
    assert instance.python.version == platform.python_version()
    assert instance.packages["pydantic"] == importlib.metadata.version("pydantic")
    assert instance.environment == {}
    assert instance.usage is None
    assert Instance.from_json(instance.to_json()) == instance


def test_affinity_limits_the_cpus():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from prefect_executions.capture.host import observe;"
        "print(observe(environment={}, allowed=()).cpu_count)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_only_listed_variables_are_told_and_secrets_are_withheld():
    environment = {
        "LANG": "C.UTF-8",
        "LC_ALL": "C",
        "OMP_NUM_THREADS": "4",
        "HOME": "/home/ada",
        "MY_STAGE": "test",
        "MY_TOKEN": "abcdefghijkl",
        "SITE_A": "1",
        "TZ": "https://ada:password@host/",
        "LC_NAME": "\udcff",
    }
    told = recorded_environment(environment, ["MY_STAGE", "MY_TOKEN", "SITE_*", "MISSING"])
    assert told == {
        "LANG": "C.UTF-8",
        "LC_ALL": "C",
        "LC_NAME": "\\xff",
        "MY_STAGE": "test",
        "MY_TOKEN": MASK,
        "OMP_NUM_THREADS": "4",
        "SITE_A": "1",
        "TZ": MASK,
    }
    assert list(told) == sorted(told)


@pytest.mark.parametrize(
    "cgroup",
    [
        f"12:cpu,cpuacct:/docker/{ID}\n",
        f"0::/system.slice/docker-{ID}.scope\n",
        f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope\n",
        f"1:name=systemd:/kubepods/besteffort/pod12/{ID}\n",
        f"0::/machine.slice/libpod-{ID}.scope/container\n",
    ],
)
def test_a_containers_id_is_found_in_its_cgroup(cgroup):
    assert container_id_in(cgroup, "") == ID


@pytest.mark.parametrize(
    ("mountinfo", "found"),
    [
        (f"700 690 8:1 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n", ID),
        (f"7 6 0:25 /containers/overlay-containers/{ID}/userdata/hostname /etc/hostname rw - tmpfs tmpfs rw\n", ID),
        (f"70 29 0:44 / /var/lib/docker/containers/{ID}/mounts/shm rw - tmpfs shm rw\n", None),
        (f"70 29 0:4 /run/containerd/io.containerd.grpc.v1.cri/sandboxes/{ID}/hostname /etc/hostname rw\n", None),
        ("garbage\n", None),
    ],
)
def test_in_a_cgroup_namespace_it_is_found_in_what_the_engine_mounts_but_not_on_a_host(mountinfo, found):
    assert container_id_in("0::/\n", mountinfo) == found


def test_the_strictest_cgroup_of_version_2_holds(tmp_path):
    (tmp_path / "pod/run").mkdir(parents=True)
    (tmp_path / "pod/cpu.max").write_text("150000 100000\n")
    (tmp_path / "pod/run/cpu.max").write_text("max 100000\n")
    (tmp_path / "pod/run/memory.max").write_text("max\n")
    (tmp_path / "pod/memory.max").write_text("1048576\n")
    assert cpu_limit_in("0::/pod/run\n", tmp_path) == 2
    assert memory_limit_in("0::/pod/run\n", tmp_path) == 1048576
    assert cpu_limit_in("0::/other\n", tmp_path) is None


def test_limits_of_cgroup_version_1_are_read(tmp_path):
    (tmp_path / "cpu,cpuacct/docker/x").mkdir(parents=True)
    (tmp_path / "memory").mkdir()
    (tmp_path / "cpu,cpuacct/docker/x/cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu,cpuacct/docker/x/cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu,cpuacct/cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "memory/memory.limit_in_bytes").write_text("4096\n")
    cgroup = "4:cpu,cpuacct:/docker/x\n5:memory:/docker/x\n"
    assert cpu_limit_in(cgroup, tmp_path) == 1
    assert memory_limit_in(cgroup, tmp_path) == 4096


@pytest.mark.parametrize(("result", "number", "version"), [(0, 12040, "12.4"), (0, 13010, "13.1"), (3, 12040, None)])
def test_the_cuda_version_is_read_from_the_driver_library(tmp_path, result, number, version):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a C compiler is missing: cc")
    source, library = tmp_path / "cuda.c", tmp_path / "libcuda.so.1"
    source.write_text(f"int cuDriverGetVersion(int *version) {{ *version = {number}; return {result}; }}\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    assert cuda_version(str(library)) == version


def test_without_a_driver_there_is_no_cuda_version():
    assert cuda_version("libcuda-that-is-missing.so") is None


def test_gpus_are_read_from_nvidia_smi():
    h200, a2 = gpus_in(SMI)
    assert h200 == Gpu(
        name="NVIDIA H200",
        uuid="GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",
        memory=143771 * 1024**2,
        driver="570.86.15",
    )
    assert (a2.name, a2.memory) == ("NVIDIA A2", None)


@pytest.mark.parametrize(
    ("told", "order", "seen"),
    [
        (None, None, [0, 1]),
        ("", None, []),
        ("-1", None, []),
        ("GPU-11111111", None, [1]),
        ("GPU-8932,GPU-1111", None, [0, 1]),
        ("1", "PCI_BUS_ID", [1]),
        ("0,7,1", "PCI_BUS_ID", [0]),
        ("1", None, [0, 1]),
        ("MIG-1234", None, [0, 1]),
    ],
)
def test_the_gpus_told_are_those_that_can_be_seen(told, order, seen):
    gpus = gpus_in(SMI)
    environment = {
        name: value
        for name, value in (("CUDA_VISIBLE_DEVICES", told), ("CUDA_DEVICE_ORDER", order))
        if value is not None
    }
    assert visible_gpus(gpus, environment) == tuple(gpus[index] for index in seen)


def test_the_packages_are_those_that_the_metadata_names(tmp_path, monkeypatch):
    packages = Packages()
    before = packages.versions()
    assert packages.versions() is before
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "new_thing-2.0.dist-info").mkdir()
    (tmp_path / "new_thing-2.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: New_Thing\nVersion: 2.0\n")
    assert packages.versions()["New_Thing"] == "2.0"
    lines = packages.requirements().decode().splitlines()
    assert "New_Thing==2.0" in lines
    assert f"pydantic=={importlib.metadata.version('pydantic')}" in lines
    time.sleep(0.02)
    (tmp_path / "new_thing-2.0.dist-info").rename(tmp_path / "new_thing-2.1.dist-info")
    (tmp_path / "new_thing-2.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: New_Thing\nVersion: 2.1\n")
    assert packages.versions()["New_Thing"] == "2.1"
    same = packages.versions()
    time.sleep(0.02)
    (tmp_path / "results.csv").write_text("a Method writes beside its code")
    assert packages.versions() is same


def test_the_package_of_a_module_is_known_only_where_it_holds_the_file():
    import pydantic  # noqa: PLC0415 - its own file is asked about

    named = f"pydantic=={importlib.metadata.version('pydantic')}"
    assert package_of("pydantic.main", os.path.realpath(pydantic.__file__)) == named
    assert package_of("pydantic.main", "/elsewhere/pydantic/main.py") is None
    assert package_of("no_such_module", "/elsewhere/x.py") is None
    yaml = os.path.realpath(importlib.import_module("yaml").__file__)  # its package has another name
    assert package_of("yaml", yaml) == f"PyYAML=={importlib.metadata.version('pyyaml')}"
    assert package_of("yam", yaml) is None
    assert package_of("yaml", "/elsewhere/yaml/__init__.py") is None


@pytest.mark.parametrize(
    "listed",
    [
        {"top_level.txt": "its_module\n"},
        {"RECORD": "mine-1.0.dist-info/METADATA,,\nits_module.py,sha256=x,10\n"},
        {"RECORD": '"its_module/a,b.txt",,\n'},
    ],
)
def test_the_package_of_a_module_is_the_one_in_the_folder_of_its_file(listed, tmp_path, monkeypatch):
    for name in ("other", "mine"):
        folder = tmp_path / name / f"{name}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        for file, text in listed.items():
            (folder / file).write_text(text)
        # importlib.metadata finds packages by sys.path; pytest's `syspath_prepend` would reverse the order of the two.
        monkeypatch.setattr(sys, "path", [*sys.path, str(folder.parent)])
    assert package_of("its_module", str(tmp_path / "mine/its_module.py")) == "mine==1.0"
    assert package_of("its_modul", str(tmp_path / "mine/its_modul.py")) is None


def test_a_meter_counts_time_cpu_and_the_peak_of_its_own_time():
    meter = Meter()
    meter.start()
    large = bytearray(64 * 1024**2)
    until = time.process_time() + 0.05
    while time.process_time() < until:
        large[0] ^= 1
    del large
    first = meter.stop()
    assert first.cpu_seconds >= 0.04
    assert first.wall_seconds > 0
    assert first.peak_memory > 64 * 1024**2
    meter.start()
    second = meter.stop()
    assert second.cpu_seconds <= first.cpu_seconds
    assert 0 < second.peak_memory <= first.peak_memory


def test_a_meter_inside_another_does_not_lower_its_peak():
    outer, inner = Meter(), Meter()
    outer.start()
    large = bytearray(64 * 1024**2)
    del large
    inner.start()
    assert inner.stop().peak_memory <= outer.stop().peak_memory
    assert outer.stop().wall_seconds is None


@pytest.mark.long
def test_a_meter_counts_children_that_were_waited_for():
    # In a process of its own: the system keeps one peak for all children that a process ever waited for.
    child = (
        "import time; x = bytearray(400 * 1024**2); t = time.process_time()\nwhile time.process_time() < t + 0.05: pass"
    )
    code = f"""
import subprocess, sys
from prefect_executions.capture.host import Meter
meter = Meter()
meter.start()
subprocess.run([sys.executable, "-c", {child!r}], check=True)
print(meter.stop().model_dump_json())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    usage = Usage.model_validate_json(done.stdout)
    assert usage.cpu_seconds >= 0.04
    assert usage.peak_memory > 400 * 1024**2
