"""A virtual environment with exactly the recorded packages, or the name of the unavailable one."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from prefect_executions.capture.code import recorded_file
from prefect_executions.errors import BundleError, NotAvailableError
from prefect_executions.executions.record import ExecutionRecord, PackageOrigin, Python
from prefect_executions.methods.model import CodeIdentity
from prefect_executions.operations.environments import layer_environment, make_environment, requirements_of
from records import a_record, an_instance
from wheels import only_grains


def recorded(version: str = platform.python_version(), **packages: str) -> ExecutionRecord:
    python = Python(version=version, implementation="CPython")
    return replace(a_record(), instance=an_instance(packages=packages, python=python))


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    """Return the only folder that packages come from, with two versions of one."""
    return only_grains(tmp_path / "shelf", monkeypatch)


@pytest.mark.long
def test_it_has_the_recorded_versions_and_this_package_and_nothing_else(shelf, tmp_path):
    python = make_environment(recorded(grains="1.0"), tmp_path / "venv")
    ask = "import json, grains; from importlib.metadata import distributions as all; print(json.dumps([grains.VERSION]"
    asked = f"{ask} + sorted(one.name for one in all())))"
    result = subprocess.run([python, "-I", "-c", asked], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == ["1.0", "grains", "prefect-executions"]


@pytest.mark.long
def test_an_unavailable_version_is_named(shelf, tmp_path):
    with pytest.raises(NotAvailableError, match=r"(?s)nothing was run.*grains==3\.0"):
        make_environment(recorded(grains="3.0"), tmp_path / "venv")


@pytest.mark.long
def test_an_unavailable_interpreter_is_named(shelf, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotAvailableError, match=r"Python 3\.1\.4, .* install uv"):
        make_environment(recorded("3.1.4"), tmp_path / "venv")


@pytest.mark.long
def test_an_editable_package_has_its_name_and_version_but_nothing_is_installed(shelf, tmp_path):
    origins = {"grains": PackageOrigin(url="file:///home/ada/grains", editable=True)}
    record = recorded(grains="7.0")
    record = replace(record, instance=record.instance.model_copy(update={"package_origins": origins}))
    python = make_environment(record, tmp_path / "venv")
    ask = "from importlib.metadata import version; from importlib.util import find_spec; "
    ask += "print(version('grains'), find_spec('grains'))"
    result = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, check=True)
    assert result.stdout == "7.0 None\n"


@pytest.mark.long
def test_a_layer_takes_precedence_over_the_packages_here_which_stay_importable(shelf, tmp_path):
    python = layer_environment(recorded(grains="1.0"), tmp_path / "venv")
    ask = "import grains, prefect_executions, pytest; print(grains.VERSION)"
    result = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, check=True)
    assert result.stdout == "1.0\n"


def recorded_from(packages: dict[str, str], **origins: PackageOrigin):
    record = a_record()
    changes = {"packages": packages, "package_origins": origins or None}
    return replace(record, instance=record.instance.model_copy(update=changes))


def test_this_package_is_not_among_the_requirements():
    record = recorded_from({"numpy": "2.3.1", "prefect-executions": "0.1.0"})
    assert requirements_of(record) == (("numpy==2.3.1",), {})


def test_an_editable_package_is_never_requested_by_name():
    record = recorded_from({"ours": "1.0"}, ours=PackageOrigin(url="file:///home/ada/ours", editable=True))
    assert requirements_of(record) == ((), {"ours": "1.0"})


@pytest.mark.parametrize(
    "url", ["git+https://host/org/ours@0123456", "https://host/ours-1.0-py3-none-any.whl", "git+ssh://git@host/x@0"]
)
def test_a_package_from_an_address_is_requested_from_there(url):
    assert requirements_of(recorded_from({"ours": "1.0"}, ours=PackageOrigin(url=url))).lines == (f"ours @ {url}",)


@pytest.mark.parametrize("url", ["file:///home/ada/ours", "unknown", "https://host/x\n--index-url https://evil/"])
def test_a_package_from_a_disk_is_named_as_missing(url):
    record = recorded_from({"numpy": "2.3.1", "ours": "1.0"}, ours=PackageOrigin(url=url))
    with pytest.raises(NotAvailableError, match=r"nothing was run:\n  package ours 1\.0"):
        requirements_of(record)
    assert requirements_of(record, allow_missing=True) == (("numpy==2.3.1",), {})


def test_a_kept_package_is_neither_requested_nor_missing():
    record = recorded_from({"Ours_x": "1.0"}, Ours_x=PackageOrigin(url="file:///home/ada/ours"))
    metadata = recorded_file("code/_outside/site-packages/ours_x-1.0.dist-info/METADATA", b"", "")
    method = record.method.model_copy(update={"code": CodeIdentity(data_files=(metadata,))})
    assert requirements_of(replace(record, method=method)) == ((), {})


@pytest.mark.parametrize(
    ("name", "version"),
    [("--index-url=https://evil/", "1"), ("a\nb", "1"), ("a", "1\n-r evil"), ("a b", "1"), ("a", ""), ("a[x]", "1")],
)
def test_a_forged_name_or_version_is_refused(name, version):
    with pytest.raises(BundleError, match="is not a name and version"):
        requirements_of(recorded_from({name: version}))
