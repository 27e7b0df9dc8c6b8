"""Virtual environments with the packages of a record, for isolated replays.

Law: an index is never asked for the name of a package that came from elsewhere, because anybody may
have published another package with that name there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from prefect_executions.errors import BundleError, NotAvailableError
from prefect_executions.executions.local_packages import DISTRIBUTION, local_packages
from prefect_executions.executions.record import ExecutionRecord

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9.!+_-]+")

_INSTALLER_LINES = 3
"""Lines of an installer's error output in our message."""
_EXPLAINS = re.compile(r"error|because|cause", re.IGNORECASE)


class Requirements(NamedTuple):
    """The packages to install, as lines of a requirements file, and those whose modules are kept as sources."""

    lines: tuple[str, ...]
    sources: dict[str, str]
    """The versions of editable packages, by name: the bundle has the modules of them that the code used."""


def requirements_of(record: ExecutionRecord, *, allow_missing: bool = False) -> Requirements:
    """Return the exact packages of *record*, except this package.

    Raises:
        NotAvailableError: If a package came from a folder or file of the other machine; with *allow_missing* it is
            left out.
        BundleError: If a name or version is none that a package can have.
    """
    origins = record.instance.package_origins or {}
    local = {package.name: package for package in local_packages(record)}
    lines, sources, missing = list[str](), dict[str, str](), list[str]()
    for name, version in record.instance.packages.items():
        if name == DISTRIBUTION:
            continue
        if not _NAME.fullmatch(name) or not _VERSION.fullmatch(version):
            raise BundleError(f"the record has the package {name!r} {version!r}, which is not a name and version")
        origin, package = origins.get(name), local.get(name)
        if origin is not None and origin.editable:
            sources[name] = version
        elif package is not None and not package.kept:
            missing.append(package.missing)
        elif package is None:
            lines.append(f"{name} @ {origin.url}" if origin else f"{name}=={version}")
    if missing and not allow_missing:
        text = "\n  ".join(missing)
        raise NotAvailableError(
            f"execution {record.id} cannot be replayed in isolation; nothing was run:\n  {text}\n"
            "Replay it without --isolated where they are installed, or with --allow-missing without them"
        )
    return Requirements(tuple(lines), sources)


def make_environment(record: ExecutionRecord, folder: Path, *, allow_missing: bool = False) -> Path:
    """Create a virtual environment with the Python and the packages of *record* in *folder*; return its interpreter.

    pip, or else uv, installs the recorded packages: from its configured index, or from the repository or address
    that they came from. Editable packages get only their name and version, because the bundle has their modules; other
    packages from a disk are left out, because a replay imports them from the bundle.
    This package is copied from here, because it only has to read the bundle's format.

    Raises:
        NotAvailableError: If the interpreter or a package is unavailable; the message names it. With *allow_missing*
            packages of the other machine's disk are left out.
    """
    packages = requirements_of(record, allow_missing=allow_missing)
    recorded = record.instance.python.version if record.instance.python else None
    current = ".".join(map(str, sys.version_info[:3]))
    if recorded in {None, current}:
        _make_venv(folder)
    elif uv := shutil.which("uv"):
        _check_output([uv, "venv", "--quiet", "--python", str(recorded), str(folder)], f"Python {recorded}")
    else:
        raise NotAvailableError(
            f"the record needs Python {recorded}, this is {current}; install uv, which finds or installs interpreters"
        )
    python = folder / "bin" / "python"
    site_packages = _install(packages, python, folder)
    _copy_this_package(site_packages)
    return python


def layer_environment(record: ExecutionRecord, folder: Path) -> Path:
    """Create a virtual environment in *folder* that adds the packages of *record* to those of this environment.

    The packages of *record* take precedence over the same packages here. So only they are installed, which takes
    seconds where a whole environment takes a minute.

    Raises:
        NotAvailableError: If a package is unavailable; the message names it.
    """
    packages = requirements_of(record)
    _make_venv(folder)
    python = folder / "bin" / "python"
    site_packages = _install(packages, python, folder)
    here = [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}]
    lines = (f"import site; site.addsitedir({path!r})\n" for path in here)
    (site_packages / "_here.pth").write_text("".join(lines))
    return python


def _make_venv(folder: Path) -> None:
    _check_output([sys.executable, "-m", "venv", "--without-pip", str(folder)], "a virtual environment")


def _install(packages: Requirements, python: Path, folder: Path) -> Path:
    """Install *packages* for the interpreter *python*, and return its folder of packages."""
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{line}\n" for line in packages.lines))
    if find_spec("pip"):
        # Most modules are never imported; the interpreter compiles the others when it imports them.
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile"]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--quiet", "--python", str(python)]
    else:
        raise NotAvailableError("installing the recorded packages needs pip or uv; install one of them")
    _check_output([*command, "--no-deps", "-r", str(requirements)], "the recorded packages")
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site_packages = Path(_check_output(command, "the folder site-packages").strip())
    for name, version in packages.sources.items():
        _write_metadata(site_packages, name, version, f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return site_packages


def _copy_this_package(site_packages: Path) -> None:
    source = Path(__file__).parents[1]
    shutil.copytree(source, site_packages / "prefect_executions", ignore=shutil.ignore_patterns("__pycache__"))
    installed = distribution(DISTRIBUTION)
    metadata = installed.read_text("METADATA") or f"Name: {DISTRIBUTION}\nVersion: {installed.version}\n"
    _write_metadata(site_packages, DISTRIBUTION, installed.version, metadata)


def _write_metadata(site_packages: Path, name: str, version: str, metadata: str) -> None:
    dist_info = site_packages / f"{re.sub(r'[-_.]+', '_', name)}-{version}.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text(metadata)


def _check_output(command: list[str], what: str) -> str:
    completed = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
    if completed.returncode:
        lines = [line.strip() for line in completed.stderr.splitlines() if line.strip()]
        reasons = [line for line in lines if _EXPLAINS.search(line)] or lines
        why = "\n  ".join(reasons[-_INSTALLER_LINES:])
        raise NotAvailableError(f"{what} cannot be installed, so nothing was run:\n  {why}")
    return completed.stdout
