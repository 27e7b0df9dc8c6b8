"""A Python environment of its own with exactly the packages that a record names, and this package to run it with."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

from prefect_executions.errors import NotAvailableError
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.operations.replaying import requirements_of

_OURS = "prefect-executions"
_COMMAND = "import sys; from prefect_executions.cli.app import main; sys.exit(main())"
_TOLD = 3
"""Lines of an installer's complaint that are told."""
_SAYS_WHY = re.compile(r"error|because|cause", re.IGNORECASE)


def command_line(python: Path | str) -> tuple[str, ...]:
    """Return what starts this package's command line with the interpreter *python*; arguments follow."""
    return (str(python), "-c", _COMMAND)


def make_environment(record: ExecutionRecord, folder: Path) -> Path:
    """Make an environment like that of *record* in *folder*, and return its interpreter.

    The packages come from where pip, or uv where there is no pip, is set to get them;
    this package is copied from here, because it only has to read the bundle's format.

    Raises:
        NotAvailableError: If the interpreter or a package is not to be had; the message names it.
    """
    asked = record.instance.python.version if record.instance.python else None
    uv = shutil.which("uv")
    here = ".".join(map(str, sys.version_info[:3]))
    if asked in {None, here}:
        _do([sys.executable, "-m", "venv", "--without-pip", str(folder)], "a virtual environment")
    elif uv:
        _do([uv, "venv", "--quiet", "--python", str(asked), str(folder)], f"Python {asked}")
    else:
        raise NotAvailableError(
            f"the record names Python {asked} and this is {here}; install uv, which finds or brings interpreters"
        )
    python = folder / "bin" / "python"
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{line}\n" for line in requirements_of(record)))
    if find_spec("pip"):
        # Most of what is installed is never imported, and what is, the interpreter compiles then.
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile"]
    elif uv:
        command = [uv, "pip", "install", "--quiet", "--python", str(python)]
    else:
        raise NotAvailableError("neither pip nor uv is here to install the recorded packages; install one")
    _do([*command, "--no-deps", "-r", str(requirements)], "the recorded packages")
    _copy_ours(python)
    return python


def _copy_ours(python: Path) -> None:
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    place = Path(_do(asked, "its folder of packages").strip())
    shutil.copytree(
        Path(__file__).parents[1], place / "prefect_executions", ignore=shutil.ignore_patterns("__pycache__")
    )
    found = distribution(_OURS)
    told = place / f"prefect_executions-{found.version}.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(found.read_text("METADATA") or f"Name: {_OURS}\nVersion: {found.version}\n")


def _do(command: list[str], what: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - words of our own
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        told = "\n  ".join([line for line in lines if _SAYS_WHY.search(line)][-_TOLD:] or lines[-_TOLD:])
        raise NotAvailableError(f"{what} cannot be had, so nothing was run:\n  {told}")
    return done.stdout
