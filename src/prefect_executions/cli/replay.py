"""`executions diff`, `rerun`, `replay`, `reproduce`: compare two executions, or run one again and judge the result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from prefect_executions.cli.arguments import (
    NO_FILTER,
    NO_INPUTS,
    FilterOptions,
    InputOptions,
    Json,
    open_catalog,
    set_defaults,
)
from prefect_executions.cli.deploy import show_submitted
from prefect_executions.cli.exit_codes import FAILED, OK
from prefect_executions.cli.output import (
    pluralize,
    progress_bar,
    say,
    show_facts,
    show_json,
    show_table,
    show_verdicts,
    status_line,
    warn,
)
from prefect_executions.cli.run import run_and_show, run_in_process, show_unrecorded
from prefect_executions.comparison.verdict import Grade, ReplayGoal
from prefect_executions.errors import NotAvailableError, RequestError
from prefect_executions.query.filter import EVERYTHING
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect_executions.bundles.open_bundle import OpenBundle
    from prefect_executions.comparison.records import Difference
    from prefect_executions.comparison.verdict import Verdict
    from prefect_executions.operations.replay import Replay
    from prefect_executions.operations.reproduce import Reproduced
    from prefect_executions.workbench.catalog import Catalog

_DEFAULT_GOAL = ReplayGoal()
_SHOWN = 3
"""Differences that the summary shows for each execution; its verdict has all of them."""


def diff(
    before: str,
    after: str,
    /,
    *,
    everything: Annotated[bool, Parameter(name="--all")] = False,
    as_json: Json = False,
) -> None:
    """Compare two executions: inputs, params, metrics, code, packages, environment, outputs, timings.

    Files are compared by their digests, outputs that differ by their content, too. What only one of them tells has
    nothing on the other side.

    Args:
        before: The id of the first, or its beginning.
        after: The id of the second.
        everything: Also what is the same in both.
        as_json: One JSON document.
    """
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.operations.compare import compare_executions  # noqa: PLC0415

    catalog = open_catalog()
    compared = compare_executions(catalog, catalog.find(before), catalog.find(after))
    shown = [one for one in compared.differences if everything or not one.same]
    if as_json:
        show_json({**compared._asdict(), "differences": shown})
        return
    head = ("part", "name", compared.before, compared.after)
    show_table((*head, "differs") if everything else head, _rows(shown, everything=everything))
    show_verdicts(compared.outputs, title="agreement")
    for source in compared.sources:
        say((source.diff or f"{source.path}: {source.why}").rstrip("\n"))
    if not shown:
        say(f"{compared.before} and {compared.after} tell the same")


def rerun(
    execution: str,
    /,
    *,
    inputs: InputOptions = NO_INPUTS,
    pool: str | None = None,
    method: str | None = None,
    wait: bool = False,
    as_json: Json = False,
) -> int:
    """Run an execution again, with the same or edited inputs; the new execution is linked to it.

    It runs as it ran before: through its deployment, or here. A secret is named anew by -p.

    Args:
        execution: The id, or its beginning.
        inputs.param: Override an input: name=value (repeatable).
        pool: Run it on this work pool, where its Method is deployed.
        method: Run it here, with the Method at path.py:function or module:function.
        wait: Of one on a work pool: return when it has ended, with 0 if it ended well.
        as_json: One JSON document.
    """
    if pool and method:
        raise RequestError("--pool runs what is deployed there, and --method what is here; leave one")
    edits, catalog = inputs.read(), open_catalog()
    execution_id = catalog.find(execution)
    if pool or (method is None and catalog.record(execution_id).request.deployment is not None):
        return _submit_again(catalog, execution_id, edits, pool, wait=wait, as_json=as_json)
    return _run_again(catalog, execution_id, edits, method, as_json=as_json)


def _submit_again(
    catalog: Catalog, execution_id: str, edits: Mapping[str, Any], pool: str | None, *, wait: bool, as_json: bool
) -> int:
    set_defaults()
    with status_line("Loading Prefect", quiet=as_json):
        # Prefect takes seconds to import; only what asks it needs it.
        from prefect_executions.dispatch import submit as submission  # noqa: PLC0415

    submitted = submission.submit_again(catalog, execution_id, edits, pool=pool)
    ended = submission.wait(catalog, submitted.id, tell=warn) if wait else None
    show_submitted(submitted, ended, as_json=as_json)
    return OK if ended is None or ended.succeeded else FAILED


def _run_again(
    catalog: Catalog, execution_id: str, edits: Mapping[str, Any], method: str | None, *, as_json: bool
) -> int:
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.operations.replay import (  # noqa: PLC0415
        copy_inputs,
        find_entrypoint,
        record_source,
        rerun_request,
    )

    record = catalog.record(execution_id)
    entrypoint = method or find_entrypoint(record, Path.cwd())
    rerun_request(record, edits)  # what is refused is refused before files are brought
    with TemporaryDirectory(prefix="executions-") as folder:
        source = record_source(catalog, execution_id)
        files = copy_inputs(record, source, Path(folder)) if source else {}
        again = rerun_request(record, edits, files)
        return run_and_show(entrypoint, again.parameters, tags=[again.relative.tag], quiet=False, as_json=as_json)


def _rows(shown: list[Difference], *, everything: bool) -> Iterator[tuple[str, ...]]:
    for one in shown:
        row = (one.part, one.name, _value(one.before), _value(one.after))
        yield (*row, "" if one.same else "yes") if everything else row


def _value(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def replay(
    target: str,
    /,
    *,
    goal: Annotated[ReplayGoal, Parameter(name="*")] = _DEFAULT_GOAL,
    inputs: InputOptions = NO_INPUTS,
    as_json: Json = False,
) -> int:
    """Run an execution again from its bundle alone, compare the outputs, and give a verdict.

    The verdict is part of the new execution's bundle. What is missing is named before anything runs.

    Args:
        target: A zip or folder with one bundle, or an execution's id or its beginning.
        inputs.param: Name a secret, or override an input: name=value (repeatable).
        as_json: One JSON document.
    """
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.operations.replay import open_replayable, prepare_replay  # noqa: PLC0415

    edits, settings = inputs.read(), Settings.read()
    with (
        open_replayable(open_catalog(settings), target) as (record, source),
        prepare_replay(record, source, edits, runtime=settings.runtime) as ready,
    ):
        if goal.isolated:
            return _elsewhere(ready, target, edits, goal, as_json=as_json)
        return _here(ready, goal, as_json=as_json)


def reproduce(
    *executions: str,
    filters: FilterOptions = NO_FILTER,
    limit: int | None = None,
    goal: Annotated[ReplayGoal, Parameter(name="*")] = _DEFAULT_GOAL,
    as_json: Json = False,
) -> int:
    """Replay many executions, one after the other, and sum up which of them still reproduce.

    Args:
        executions: Their ids, or beginnings of them; without any, those that completed, are no replay and fit.
        limit: At most so many, the newest.
        as_json: One JSON document: each execution, its grade, and what differs or why there is no verdict.
    """
    criteria = filters.filter(datetime.now(UTC))
    if bool(executions) is (criteria != EVERYTHING or limit is not None):
        raise RequestError("name executions by their ids, or by --method, --since, --until and --limit; not both")
    # Start-up time of the CLI, as above.
    from prefect_executions.operations.reproduce import reproduce as replay_each  # noqa: PLC0415
    from prefect_executions.operations.reproduce import reproducible  # noqa: PLC0415

    catalog = open_catalog()
    ids = [*dict.fromkeys(map(catalog.find, executions))] or reproducible(catalog, criteria, limit=limit)
    if not ids:
        raise RequestError("no execution that completed fits; 'executions list' shows those that are there")
    done = []
    with progress_bar(f"Replaying {pluralize(len(ids), 'execution')}", len(ids), quiet=as_json) as told:
        for one in replay_each(catalog, ids, goal, command=_executions(sys.executable)):
            done.append(one)
            told(one.id)
    _sum_up(done, goal.grade, as_json=as_json)
    return OK if all(one.reached for one in done) else FAILED


def _here(ready: Replay, goal: ReplayGoal, *, as_json: bool) -> int:
    verdicts: list[Verdict] = []

    def judged(bundle: OpenBundle, error: BaseException | None) -> None:
        verdicts.append(ready.verdict(bundle, tolerance=goal.tolerance, well=error is None))

    sys.path[:0] = ready.paths
    tags = [ready.again.relative.tag]
    try:
        flow, ran = run_in_process(
            ready.entrypoint,
            ready.again.parameters,
            tags=tags,
            on_gathered=judged,
            image=ready.image,
            quiet=False,
            as_json=as_json,
        )
    except RequestError as error:
        _check_module(ready, error)
        raise
    if ran.execution_id is None or not verdicts:
        return show_unrecorded(flow, ran, quiet=False, as_json=as_json)
    reached = verdicts[-1].reaches(goal.grade)
    _tell(ran.execution_id, verdicts[-1], goal.grade, reached=reached, as_json=as_json)
    return OK if reached else FAILED


def _check_module(ready: Replay, error: RequestError) -> None:
    """Refuse where the code could not be loaded for want of a module, which is no fault of the request."""
    why = getattr(error.__cause__, "user_exc", error.__cause__)
    if isinstance(why, ModuleNotFoundError):
        raise NotAvailableError(
            f"execution {ready.record.id} cannot be replayed here; nothing was run: there is no module '{why.name}'. "
            "--isolated makes an environment with the recorded packages"
        ) from error


def _elsewhere(ready: Replay, target: str, edits: Mapping[str, Any], goal: ReplayGoal, *, as_json: bool) -> int:
    # Start-up time of the CLI: only this needs it.
    from prefect_executions.operations.reproduce import make_environment  # noqa: PLC0415

    with TemporaryDirectory(prefix="executions-environment-") as folder:
        with status_line(f"Installing {len(ready.record.instance.packages)} packages as recorded", quiet=as_json):
            python = make_environment(ready.record, Path(folder) / "venv")
        given = Path(folder) / "inputs.json"
        given.write_text(json.dumps(edits))
        words = [
            "replay",
            target,
            "--tolerance",
            str(goal.tolerance),
            "--grade",
            goal.grade.value,
            "--params",
            str(given),
        ]
        # What would let packages of this environment in.
        environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
        command = [*_executions(python), *words, *(["--json"] if as_json else [])]
        return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603 - words of our own


def _executions(python: Path | str) -> tuple[str, ...]:
    """The command `executions`, run by that interpreter."""
    return (str(python), "-m", "prefect_executions.cli")


def _sum_up(done: list[Reproduced], grade: Grade, *, as_json: bool) -> None:
    reached = sum(one.reached for one in done)
    if as_json:
        show_json({"wanted": grade, "reached": reached, "executions": done})
        return
    show_table(("execution", "method", "grade", "what differs"), map(_row, done))
    say(f"{reached} of {pluralize(len(done), 'execution')} reached {grade}")


def _row(one: Reproduced) -> tuple[str, ...]:
    more = len(one.differs) - _SHOWN
    told = [*one.differs[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
    return (one.id, one.method, one.grade or "none", one.problem or "; ".join(told))


def _tell(execution_id: str, verdict: Verdict, grade: Grade, *, reached: bool, as_json: bool) -> None:
    if as_json:
        show_json({"id": execution_id, "wanted": grade, "reached": reached, "verdict": verdict})
        return
    show_verdicts(verdict.outputs)
    for part in ("inputs", "code", "environment"):
        show_table(("what is not the same",), ((words,) for words in getattr(verdict, part)), title=part)
    show_facts(
        [
            ("execution", execution_id),
            ("replay of", verdict.replay_of),
            ("grade", verdict.grade or "none: the Method did not run to its end"),
            ("wanted", f"{grade}, which is {'reached' if reached else 'not reached'}"),
        ]
    )
