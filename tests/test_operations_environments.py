"""A virtual environment with exactly the recorded packages, or the name of the unavailable one."""

from __future__ import annotations

import json
import platform
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from prefect_executions.errors import NotAvailableError
from prefect_executions.executions.record import ExecutionRecord, Python
from prefect_executions.operations.reproduce import make_environment
from records import a_record, an_instance

pytestmark = pytest.mark.long


def recorded(version: str = platform.python_version(), **packages: str) -> ExecutionRecord:
    python = Python(version=version, implementation="CPython")
    return replace(a_record(), instance=an_instance(packages=packages, python=python))


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    """Return the only folder that packages come from, with two versions of one."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for version in ("1.0", "2.0"):
        result = f"grains-{version}.dist-info"
        files = {
            "grains.py": f"VERSION = {version!r}\n",
            f"{result}/METADATA": f"Metadata-Version: 2.1\nName: grains\nVersion: {version}\n",
            f"{result}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        files[f"{result}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{result}/RECORD"))
        with zipfile.ZipFile(folder / f"grains-{version}-py3-none-any.whl", "w") as wheel:
            for name, text in files.items():
                wheel.writestr(name, text)
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(folder))
    return folder


def test_it_has_the_recorded_versions_and_this_package_and_nothing_else(shelf, tmp_path):
    python = make_environment(recorded(grains="1.0"), tmp_path / "venv")
    ask = "import json, grains; from importlib.metadata import distributions as all; print(json.dumps([grains.VERSION]"
    asked = f"{ask} + sorted(one.name for one in all())))"
    result = subprocess.run([python, "-I", "-c", asked], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == ["1.0", "grains", "prefect-executions"]


def test_an_unavailable_version_is_named(shelf, tmp_path):
    with pytest.raises(NotAvailableError, match=r"(?s)nothing was run.*grains==3\.0"):
        make_environment(recorded(grains="3.0"), tmp_path / "venv")


def test_an_unavailable_interpreter_is_named(shelf, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotAvailableError, match=r"Python 3\.1\.4, .* install uv"):
        make_environment(recorded("3.1.4"), tmp_path / "venv")
