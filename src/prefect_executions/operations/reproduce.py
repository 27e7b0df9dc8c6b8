"""Replay many executions, each in a process of its own, and tell of each how far it agrees.

Law: one that fails, or ends its process, hinders no other.

A Python environment of its own with exactly the packages that a record names, and this package to run it with.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import distribution
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from signal import Signals

from pydantic import BaseModel, ValidationError

from prefect_executions.comparison.verdict import Grade, ReplayGoal, Verdict
from prefect_executions.errors import ArchiveError, ExecutionsError, NotAvailableError, NotFoundError, RequestError
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.lifecycle.status import Status
from prefect_executions.operations.export import matching_ids
from prefect_executions.operations.replay import requirements_of
from prefect_executions.query.filter import EVERYTHING, Filter
from prefect_executions.workbench.catalog import Catalog

_OURS = "prefect-executions"
_TOLD = 3
"""Lines of an installer's complaint that are told."""
_SAYS_WHY = re.compile(r"error|because|cause", re.IGNORECASE)


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


_ERROR = "error: "
"""How the command line begins what it tells of an error; what follows it belongs to it."""
_SHOWN = 3
"""Lines that are told of a process that ended without a word."""


@dataclass(frozen=True, kw_only=True)
class Reproduced:
    """How far an execution reproduced: `differs` in words, or the `problem` where there is no verdict."""

    id: str
    method: str
    replay: str | None = None
    """The id of the new execution."""
    grade: Grade | None = None
    reached: bool = False
    differs: tuple[str, ...] = ()
    problem: str | None = None


class _ReplayResult(BaseModel):
    """What `executions replay --json` writes, as far as it matters here."""

    id: str | None = None
    reached: bool = False
    verdict: Verdict | None = None
    error: dict[str, str] | None = None


def reproduce(
    catalog: Catalog, ids: Iterable[str], goal: ReplayGoal, *, command: Sequence[str]
) -> Iterator[Reproduced]:
    """Replay the executions *ids* one after the other and yield the result of each.

    *command* starts the `executions` command line; `replay`, the full id and the options of *goal* follow it.
    """
    isolated = ["--isolated"] if goal.isolated else []
    options = [*isolated, "--grade", goal.grade.value, "--tolerance", str(goal.tolerance), "--json"]
    for execution_id in ids:
        yield _replayed(catalog, execution_id, [*command, "replay", execution_id, *options])


def reproducible(catalog: Catalog, criteria: Filter = EVERYTHING, *, limit: int | None = None) -> tuple[str, ...]:
    """Return the ids of the completed executions that meet *criteria*, newest first, at most *limit* of them.

    Replays are left out: each call would add more of them.

    Raises:
        RequestError: If *limit* is below 1.
        LedgerError: If the ledger cannot be read.
    """
    if limit is not None and limit < 1:
        raise RequestError(f"--limit must be at least 1, not {limit}")
    ids = matching_ids(catalog, replace(criteria, status=(Status.COMPLETED,)))
    return tuple(islice((execution_id for execution_id in ids if not _is_replay(catalog, execution_id)), limit))


def _is_replay(reader: Catalog, execution_id: str) -> bool:
    try:
        reader.read(execution_id, Verdict.file_name)
    except (NotFoundError, ArchiveError):  # what is damaged is to be seen when it is replayed
        return False
    return True


def _replayed(reader: Catalog, execution_id: str, command: Sequence[str]) -> Reproduced:
    code, out, err = _run(command)
    method = ""
    with suppress(ExecutionsError):  # of what is damaged the replay has told why
        method = reader.record(execution_id).method.id
    try:
        answer = _ReplayResult.model_validate_json(out)
    except ValidationError:
        return Reproduced(id=execution_id, method=method, problem=_problem(code, err))
    if answer.verdict is None:
        told = answer.error or {}
        problem = ": ".join(told.values()) or _problem(code, err)
        return Reproduced(id=execution_id, method=method, problem=problem)
    return Reproduced(
        id=execution_id,
        method=method,
        replay=answer.id,
        grade=answer.verdict.grade,
        reached=answer.reached,
        differs=answer.verdict.differs,
    )


def _run(command: Sequence[str]) -> tuple[int, bytes, str]:
    # Of a worker's process: a replay is no run of the flow that started it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT__")}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=environment) as process:  # noqa: S603 - words of our own
            _wait(process)
        out.seek(0)
        err.seek(0)
        return process.returncode, out.read(), err.read().decode(errors="replace")


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait()
    except KeyboardInterrupt:
        process.wait()  # the terminal has told it as well, and it seals its record
        raise
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _problem(code: int, err: str) -> str:
    lines = [line.rstrip() for line in err.splitlines() if line.strip()]
    begin = next((number for number in reversed(range(len(lines))) if lines[number].startswith(_ERROR)), None)
    if begin is not None:
        return "\n".join(lines[begin:]).removeprefix(_ERROR)
    ended = f"was ended by {Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return "\n".join([f"the replay {ended} and gave no verdict", *lines[-_SHOWN:]])
