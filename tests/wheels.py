"""Wheels of a package that no index has, for tests that install packages."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest


def make_wheel(folder: Path, name: str, version: str) -> None:
    """Write a wheel with the module *name*, which has its VERSION, into *folder*."""
    result = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{result}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{result}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{result}/RECORD"] = "".join(f"{file},,\n" for file in (*files, f"{result}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)


def only_grains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let two versions of the package grains, in *folder*, be the only packages that pip and uv can install."""
    folder.mkdir()
    for version in ("1.0", "2.0"):
        make_wheel(folder, "grains", version)
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(folder))
    return folder
