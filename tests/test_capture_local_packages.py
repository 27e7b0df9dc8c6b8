"""Packages that came from a disk are kept as they are installed, if their modules are loaded."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace

import pytest

from prefect_executions.capture.code import recorded_file
from prefect_executions.capture.local_packages import local_packages
from prefect_executions.capture.packages import Packages
from prefect_executions.executions.local_packages import local_packages as recorded_packages
from prefect_executions.executions.local_packages import summary
from prefect_executions.executions.record import PackageOrigin
from prefect_executions.methods.model import CodeIdentity
from records import a_record

FROM_DISK = PackageOrigin(url="file:///home/ada/grains")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install the package `grains-…` into a folder `site-packages` and import it; return its module and its files."""
    name = f"grains_{abs(hash(str(tmp_path)))}"
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}/__init__.py": "TOKEN = 'x'\n",
        f"{name}/data/table.csv": "a,b\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/INSTALLER": "pip",
        f"{info}/direct_url.json": json.dumps({"url": FROM_DISK.url, "dir_info": {}}),
    }
    listed = [*files, f"{name}/__pycache__/__init__.cpython-311.pyc", "../../bin/grains", f"{info}/RECORD"]
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in listed)
    for path, text in files.items():
        (tmp_path / "site-packages" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site-packages" / path).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    importlib.import_module(name)
    yield name, tmp_path / "site-packages"
    sys.modules.pop(name, None)


def kept(name: str, origin: PackageOrigin = FROM_DISK, *, secret: bytes = b"nothing", limit: int = 10_000):
    files = local_packages({name: origin}, secret=lambda _path, content: secret in content, limit=limit)
    return {file.path.removeprefix("_outside/site-packages/"): file.content for file in files}


def test_a_loaded_package_is_kept_with_its_data_and_metadata(installed):
    name, folder = installed
    files = kept(name)
    info = f"{name}-1.0.dist-info"
    assert set(files) == {
        f"{name}/__init__.py", f"{name}/data/table.csv", f"{info}/METADATA", f"{info}/direct_url.json", f"{info}/RECORD"
    }  # fmt: skip
    assert all((folder / path).read_bytes() == content for path, content in files.items())


def test_a_package_without_a_loaded_module_is_not_kept(installed):
    name, _ = installed
    del sys.modules[name]
    assert kept(name) == {}


def test_a_package_is_kept_whole_or_not_at_all(installed):
    name, folder = installed
    assert kept(name, limit=100) == {}
    assert kept(name, secret=b"a,b") == {}
    (folder / name / "data/table.csv").unlink()
    assert f"{name}/__init__.py" in kept(name)


@pytest.mark.parametrize(
    "origin", [PackageOrigin(url="file:///home/ada/grains", editable=True), PackageOrigin(url="https://host/x.whl")]
)
def test_an_editable_package_and_one_from_an_address_are_not_kept(installed, origin):
    assert kept(installed[0], origin) == {}


@pytest.mark.parametrize(("installer", "local"), [("pip", True), ("conda\n", False)])
def test_a_package_of_conda_is_not_local(installed, installer, local):
    name, folder = installed
    (folder / f"{name}-1.0.dist-info/INSTALLER").write_text(installer)
    packages = Packages()
    assert (name in packages.local_origins()) is local
    assert packages.origins()[name] == FROM_DISK


def test_a_package_with_damaged_metadata_does_not_hide_the_others(installed):
    name, folder = installed
    (folder / "damaged-1.0.dist-info").mkdir()
    (folder / "damaged-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: damaged\nVersion: 1.0\n")
    (folder / "damaged-1.0.dist-info/RECORD").write_bytes(b"\xff\xfe\n")
    origins = dict.fromkeys(["never-installed", "damaged", name], FROM_DISK)
    files = [file.path for file in local_packages(origins, secret=lambda *_: False, limit=10_000)]
    assert f"_outside/site-packages/{name}/__init__.py" in files


def test_a_record_says_which_packages_it_lacks():
    record = a_record()
    origins = dict.fromkeys(("Our_Grains", "other", "prefect-executions"), FROM_DISK)
    origins["edited"] = PackageOrigin(url="file:///home/ada/edited", editable=True)
    origins["fetched"] = PackageOrigin(url="git+https://host/x@0123456")
    metadata = recorded_file("code/_outside/site-packages/our_grains-1.0.dist-info/METADATA", b"", "")
    facts = {"packages": dict.fromkeys(origins, "1.0"), "package_origins": origins}
    record = replace(
        record,
        instance=record.instance.model_copy(update=facts),
        method=record.method.model_copy(update={"code": CodeIdentity(data_files=(metadata,))}),
    )
    packages = list(recorded_packages(record))
    assert {package.name: package.kept for package in packages} == {"Our_Grains": True, "other": False, "edited": True}
    assert summary(packages) == "other 1.0 (file:///home/ada/grains)"
    assert summary([package._replace(kept=False) for package in packages] * 3).endswith(", 4 more")
