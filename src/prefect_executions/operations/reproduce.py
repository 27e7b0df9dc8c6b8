"""Replay many executions, each in a process of its own, and report which of them still reproduce.

Law: a replay that fails, or whose process dies, does not affect the others.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from signal import Signals

from pydantic import BaseModel, ValidationError

from prefect_executions.comparison.verdict import Grade, ReplayGoal, Verdict
from prefect_executions.errors import ArchiveError, ExecutionsError, NotFoundError, RequestError
from prefect_executions.lifecycle.status import Status
from prefect_executions.operations.export import matching_ids, sealed_ids
from prefect_executions.query.filter import EVERYTHING, Filter
from prefect_executions.workbench.catalog import Catalog

_ERROR_PREFIX = "error: "
"""Prefix of an error message on the command line; the lines after it belong to it."""
_STDERR_LINES = 3
"""Last lines of standard error in the problem of a replay without an error message."""


@dataclass(frozen=True, kw_only=True)
class Reproduced:
    """How far an execution reproduced: the differences as sentences, or the `problem` if there is no verdict."""

    id: str
    method: str
    replay: str | None = None
    """The id of the new execution."""
    grade: Grade | None = None
    reached: bool = False
    differs: tuple[str, ...] = ()
    problem: str | None = None


class ReplayResult(BaseModel):
    """The fields used here of `executions replay --json`; `problem` says why there is no verdict."""

    id: str | None = None
    reached: bool = False
    verdict: Verdict | None = None
    error: dict[str, str] | None = None
    problem: str | None = None


def run_replay(command: Sequence[str], environment: Mapping[str, str] | None = None) -> ReplayResult:
    """Run the replay *command* with ``--json`` in a process, by default with this process's environment variables."""
    code, out, err = _run(command, os.environ if environment is None else environment)
    try:
        result = ReplayResult.model_validate_json(out)
    except ValidationError:
        return ReplayResult(problem=_problem(code, err))
    if result.verdict is None:
        problem = ": ".join((result.error or {}).values()) or _problem(code, err)
        return result.model_copy(update={"problem": problem})
    return result


def reproduce(
    catalog: Catalog, ids: Iterable[str], goal: ReplayGoal, *, command: Sequence[str], more: Sequence[str] = ()
) -> Iterator[Reproduced]:
    """Replay the executions *ids* one after the other and yield the result of each.

    *command* starts the `executions` command line; `replay`, the full id, the options of *goal* and *more* follow it.
    """
    isolated = ["--isolated"] if goal.isolated else []
    options = [*isolated, "--grade", goal.grade.value, "--tolerance", str(goal.tolerance), "--json", *more]
    for execution_id in ids:
        yield _replay(catalog, execution_id, [*command, "replay", execution_id, *options])


def reproducible(
    catalog: Catalog, criteria: Filter = EVERYTHING, among: Sequence[str] = (), *, limit: int | None = None
) -> tuple[str, ...]:
    """Return the ids of the completed executions that meet *criteria*, newest first, at most *limit* of them.

    *among* are the ids of completed executions to choose from instead, newest first, which meet them.

    Replays are left out: each call would add more of them.

    Raises:
        RequestError: If *limit* is below 1.
        LedgerError: If the ledger cannot be read.
    """
    if limit is not None and limit < 1:
        raise RequestError(f"--limit must be at least 1, not {limit}")
    completed = replace(criteria, status=(Status.COMPLETED,))
    ids = sealed_ids(catalog, among) if among else matching_ids(catalog, completed)
    return tuple(islice((execution_id for execution_id in ids if not _is_replay(catalog, execution_id)), limit))


def _is_replay(catalog: Catalog, execution_id: str) -> bool:
    try:
        catalog.read(execution_id, Verdict.file_name)
    except (NotFoundError, ArchiveError):  # a damaged bundle must be reported by its replay
        return False
    return True


def _replay(catalog: Catalog, execution_id: str, command: Sequence[str]) -> Reproduced:
    result = run_replay(command)
    method = ""
    with suppress(ExecutionsError):  # the replay has reported the damage
        method = catalog.record(execution_id).method.id
    if result.verdict is None:
        return Reproduced(id=execution_id, method=method, problem=result.problem)
    return Reproduced(
        id=execution_id,
        method=method,
        replay=result.id,
        grade=result.verdict.grade,
        reached=result.reached,
        differs=result.verdict.differs,
    )


def _run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, bytes, str]:
    # A worker sets these variables; with them the replay would take itself for the worker's flow run.
    environment = {name: value for name, value in environment.items() if not name.startswith("PREFECT__")}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=environment) as process:  # noqa: S603 - our own arguments
            _wait(process)
        out.seek(0)
        err.seek(0)
        return process.returncode, out.read(), err.read().decode(errors="replace")


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait()
    except KeyboardInterrupt:
        process.wait()  # the terminal has interrupted it as well, and it seals its record
        raise
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _problem(code: int, err: str) -> str:
    lines = [line.rstrip() for line in err.splitlines() if line.strip()]
    last = next((number for number in reversed(range(len(lines))) if lines[number].startswith(_ERROR_PREFIX)), None)
    if last is not None:
        return "\n".join(lines[last:]).removeprefix(_ERROR_PREFIX)
    ended = f"was killed by {Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return "\n".join([f"the replay {ended} and gave no verdict", *lines[-_STDERR_LINES:]])
