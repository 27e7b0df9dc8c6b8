"""`executions rerun`, `replay`, `reproduce`: run executions again and judge the result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import invalidate_caches
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from prefect_executions.cli.arguments import (
    DEFAULT_SIGNATURES,
    FILTER_NAMES,
    NO_FILTER,
    NO_INPUTS,
    FilterOptions,
    InputOptions,
    Json,
    SignatureOptions,
    open_catalog,
    set_defaults,
)
from prefect_executions.cli.child import run_in_child
from prefect_executions.cli.completion import Selected
from prefect_executions.cli.deploy import show_submitted
from prefect_executions.cli.exit_codes import FAILED, INTERRUPTED, OK
from prefect_executions.cli.output import (
    confirmed,
    escape_controls,
    pluralize,
    progress_bar,
    say,
    show_facts,
    show_json,
    status_line,
    warn,
)
from prefect_executions.cli.run import run_and_show, run_in_process, seal_after_death, show_unrecorded
from prefect_executions.cli.selection import query_among, select
from prefect_executions.cli.tables import (
    id_column,
    name_column,
    show_table,
    show_verdicts,
    text_column,
)
from prefect_executions.comparison.verdict import Grade, ReplayGoal
from prefect_executions.errors import NotAvailableError, RequestError
from prefect_executions.query.filter import EVERYTHING
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect_executions.bundles.open_bundle import OpenBundle
    from prefect_executions.comparison.verdict import Verdict
    from prefect_executions.operations.code_origin import ForeignCode
    from prefect_executions.operations.replay import Replay
    from prefect_executions.operations.reproduce import Reproduced
    from prefect_executions.workbench.catalog import Catalog

_DEFAULT_GOAL = ReplayGoal()
_SHOWN = 3
"""Differences that the summary shows for each execution; its verdict has all of them."""


def rerun(
    *executions: Selected,
    inputs: InputOptions = NO_INPUTS,
    pool: str | None = None,
    method: str | None = None,
    limit: int | None = None,
    wait: bool = False,
    as_json: Json = False,
) -> int:
    """Run executions again, with their recorded or edited inputs.

    Each runs through its deployment, or else here. The new execution is linked to
    the old one. Secrets are not recorded: name them again with -p.

    Args:
        executions: Ids or id prefixes, or one query such as 'status:failed started:-1d'; they run in sequence.
        inputs.param: Override an input: name=value (repeatable).
        pool: Run through the Method's deployment on this work pool.
        method: Run here, with the Method at path.py:function or module:function.
        limit: Largest number of results of a query, the newest first.
        wait: With a deployment: return when the run has ended: 0 if it completed, else 1.
        as_json: Print one JSON document for each execution.
    """
    if pool and method:
        raise RequestError("--pool and --method exclude each other; give one of them")
    if not executions:
        raise RequestError("give the ids of the executions to run again, or a query")
    edits = inputs.read()
    if len(executions) > 1 or limit is not None or query_among(executions) is not None:
        named = [*(["--pool", pool] if pool else []), *(["--method", method] if method else [])]
        flags = [*named, *(["--wait"] if wait else []), *(["--json"] if as_json else [])]
        return _rerun_each(select(open_catalog(), executions, limit=limit).ids, edits, flags)
    (execution,) = executions
    return run_in_child(
        lambda: _rerun(execution, edits, pool, method, wait=wait, as_json=as_json),
        partial(seal_after_death, quiet=False, as_json=as_json),
    )


def _rerun_each(ids: Sequence[str], edits: Mapping[str, Any], flags: Sequence[str]) -> int:
    """Run each execution again in a process of its own; a failure does not stop the others."""
    failed = 0
    for execution_id in ids:
        command = [*program(sys.executable), "rerun", execution_id, *flags, "--params", "-"]
        with TemporaryFile() as given:
            given.write(json.dumps(edits).encode())
            given.seek(0)
            process = subprocess.Popen(command, stdin=given)  # noqa: S603 - our own arguments
            try:
                code = process.wait()
            except KeyboardInterrupt:
                process.wait()  # the terminal has interrupted it as well, and it seals its record
                raise
        if code == INTERRUPTED:
            return INTERRUPTED
        failed += code != OK
    if failed:
        warn(f"{failed} of {pluralize(len(ids), 'rerun')} failed")
    return FAILED if failed else OK


def _rerun(
    execution: str, edits: Mapping[str, Any], pool: str | None, method: str | None, *, wait: bool, as_json: bool
) -> int:
    catalog = open_catalog()
    execution_id = catalog.find(execution)
    if pool or (method is None and catalog.record(execution_id).request.deployment is not None):
        return _submit_again(catalog, execution_id, edits, pool, wait=wait, as_json=as_json)
    return _run_again(catalog, execution_id, edits, method, as_json=as_json)


def _submit_again(
    catalog: Catalog, execution_id: str, edits: Mapping[str, Any], pool: str | None, *, wait: bool, as_json: bool
) -> int:
    set_defaults()
    with status_line("Loading Prefect", quiet=as_json):
        # Prefect takes seconds to import; only commands that call it need it.
        from prefect_executions.capture.host import this_user  # noqa: PLC0415
        from prefect_executions.dispatch import submit as submission  # noqa: PLC0415

    by = Settings.read().agent or this_user()
    submitted = submission.submit_again(catalog, execution_id, edits, by=by, pool=pool)
    if submitted.waits and not as_json:
        warn(submitted.waits)
    ended = submission.wait(catalog, submitted.id, tell=warn) if wait else None
    show_submitted(submitted, ended, as_json=as_json)
    return OK if ended is None or ended.succeeded else FAILED


def _run_again(
    catalog: Catalog, execution_id: str, edits: Mapping[str, Any], method: str | None, *, as_json: bool
) -> int:
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.operations.replay import (  # noqa: PLC0415
        check_origins,
        copy_inputs,
        find_entrypoint,
        record_source,
        rerun_request,
    )

    record = catalog.record(execution_id)
    imported = catalog.is_imported(execution_id)
    entrypoint = method or find_entrypoint(record, Path.cwd(), imported=imported)
    rerun_request(record, edits)  # refuse a wrong request before copying files
    with TemporaryDirectory(prefix="executions-") as folder:
        source = record_source(catalog, execution_id)
        files = copy_inputs(record, source, Path(folder)) if source else {}
        if imported:
            check_origins(record, files, edits, Path(folder))
        request = rerun_request(record, edits, files)
        return run_and_show(entrypoint, request.parameters, tags=[request.relative.tag], quiet=False, as_json=as_json)


def replay(
    target: str,
    /,
    *,
    goal: Annotated[ReplayGoal, Parameter(name="*")] = _DEFAULT_GOAL,
    inputs: InputOptions = NO_INPUTS,
    tag: tuple[str, ...] = (),
    yes: bool = False,
    allow_missing: bool = False,
    manifest: str | None = None,
    signatures: SignatureOptions = DEFAULT_SIGNATURES,
    as_json: Json = False,
) -> int:
    """Replay an execution from its bundle and judge how far its outputs agree.

    Anything missing is reported before the Method runs. The verdict is recorded
    in the new execution's bundle. It asks before it runs code that was sealed on
    another machine and is not signed by a trusted key.

    Args:
        target: A zip or folder with one bundle, or an execution's id or id prefix.
        inputs.param: Name a secret, or override an input: name=value (repeatable).
        tag: Tag of the new execution (repeatable).
        yes: Run foreign code without confirmation.
        allow_missing: Run although the bundle lacks files that the code used.
        manifest: Replay only the bundle whose manifest has this SHA-256.
        as_json: Print one JSON document.
    """
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.executions.annotations import AnnotationKind, LabelChange  # noqa: PLC0415
    from prefect_executions.operations.replay import open_replayable, prepare_replay  # noqa: PLC0415

    edits, settings = inputs.read(), Settings.read()
    tags = [LabelChange.of(AnnotationKind.TAG, each).text for each in tag]
    approved: list[str] = []

    def approve(code: ForeignCode) -> bool:
        approved.append("--yes")
        return approve_foreign(code, yes=yes)

    with (
        open_replayable(
            open_catalog(settings),
            target,
            signatures=signatures.policy(settings),
            approve=approve,
            manifest_sha256=manifest,
        ) as (record, source),
        prepare_replay(record, source, edits, runtime=settings.runtime, allow_missing=allow_missing) as prepared,
    ):
        if goal.isolated:
            words = [word for each in tags for word in ("--tag", each)]
            more = [*approved, *(["--allow-missing"] if allow_missing else []), *words, *signatures.words()]
            return _replay_isolated(prepared, target, edits, goal, more, as_json=as_json)
        return _replay_here(prepared, goal, tags, as_json=as_json)


def approve_foreign(code: ForeignCode, *, yes: bool) -> bool:
    """Say whose code would run, and ask on a terminal, unless the answer is *yes*."""
    warn("This code was sealed on another machine, and no trusted key signed it. The bundle says:")
    for name, value in code.facts:
        warn(f"  {name:<10}  {escape_controls(value or 'unknown')}")
    return yes or bool(confirmed("Run it with your permissions?"))


def reproduce(
    *executions: Selected,
    filters: FilterOptions = NO_FILTER,
    limit: int | None = None,
    goal: Annotated[ReplayGoal, Parameter(name="*")] = _DEFAULT_GOAL,
    yes: bool = False,
    signatures: SignatureOptions = DEFAULT_SIGNATURES,
    as_json: Json = False,
) -> int:
    """Replay many executions in sequence and report which still reproduce.

    Args:
        executions: Ids or id prefixes, or one query such as 'epochs>10'. A query or filters choose among completed
            executions, except replays.
        limit: Largest number of executions, the newest first.
        yes: Also run code that was sealed on another machine and is not signed by a trusted key.
        as_json: Print one JSON document: each execution, its grade, and the differences or the problem.
    """
    criteria, by_query = filters.filter(datetime.now(UTC)), query_among(executions) is not None
    if not by_query and bool(executions) is (criteria != EVERYTHING or limit is not None):
        raise RequestError(f"give either execution ids, or filters: {FILTER_NAMES}, --limit; or a query")
    # Start-up time of the CLI, as above.
    from prefect_executions.operations.reproduce import reproduce as replay_each  # noqa: PLC0415
    from prefect_executions.operations.reproduce import reproducible  # noqa: PLC0415

    settings = Settings.read()
    catalog, more = open_catalog(settings), [*(["--yes"] if yes else []), *signatures.words()]
    signatures.policy(settings)  # refuse a wrong option before the first replay
    selected = select(catalog, executions, criteria, only="status:completed").ids
    ids = selected if selected and not by_query else reproducible(catalog, criteria, selected, limit=limit)
    if not ids:
        raise RequestError("no completed execution matches the filters. Next: executions list")
    results = []
    with progress_bar(f"Replaying {pluralize(len(ids), 'execution')}", len(ids), quiet=as_json) as progress:
        for result in replay_each(catalog, ids, goal, command=program(sys.executable), more=more):
            results.append(result)
            progress(result.id)
    _show_summary(results, goal.grade, as_json=as_json)
    return OK if all(result.reached for result in results) else FAILED


def _replay_here(prepared: Replay, goal: ReplayGoal, tags: Sequence[str], *, as_json: bool) -> int:
    verdicts: list[Verdict] = []

    def judge(bundle: OpenBundle, error: BaseException | None) -> None:
        verdicts.append(prepared.verdict(bundle, tolerance=goal.tolerance, well=error is None))

    sys.path[:] = [*prepared.paths, *sys.path, *prepared.packages]
    invalidate_caches()  # the folders are new: a listing of the same clock tick may lack files
    try:
        flow, ran = run_in_process(
            prepared.entrypoint,
            prepared.request.parameters,
            Settings.read(),
            tags=[prepared.request.relative.tag, *tags],
            on_gathered=judge,
            image=prepared.image,
            load_from=prepared.folder,
            quiet=False,
            as_json=as_json,
        )
    except RequestError as error:
        _check_module(prepared, error)
        raise
    if ran.execution_id is None or not verdicts:
        return show_unrecorded(flow, ran, as_json=as_json)
    reached = verdicts[-1].reaches(goal.grade)
    _show_verdict(ran.execution_id, verdicts[-1], goal.grade, reached=reached, as_json=as_json)
    return OK if reached else FAILED


def _check_module(prepared: Replay, error: RequestError) -> None:
    """Report a missing module as unavailable: the request is right, but this environment cannot run it."""
    cause = getattr(error.__cause__, "user_exc", error.__cause__)
    if isinstance(cause, ModuleNotFoundError):
        raise NotAvailableError(
            f"execution {prepared.record.id} cannot be replayed here; nothing was run: "
            f"module '{cause.name}' is missing. --isolated creates an environment with the recorded packages"
        ) from error


def _replay_isolated(
    prepared: Replay, target: str, edits: Mapping[str, Any], goal: ReplayGoal, more: Sequence[str], *, as_json: bool
) -> int:
    # Start-up time of the CLI: only this needs it.
    from prefect_executions.operations.environments import make_environment  # noqa: PLC0415

    with TemporaryDirectory(prefix="executions-environment-") as folder:
        with status_line(f"Installing the {len(prepared.record.instance.packages)} recorded packages", quiet=as_json):
            allow_missing = "--allow-missing" in more
            python = make_environment(prepared.record, Path(folder) / "venv", allow_missing=allow_missing)
        file = Path(folder) / "inputs.json"
        file.write_text(json.dumps(edits))
        # These variables would add packages of this environment.
        environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
        # A shared server would outlive the environment, which is removed.
        environment["EXECUTIONS_SERVER_IDLE"] = "0"
        command = isolated_command(python, prepared.manifest_sha256, target, goal, ["--params", str(file), *more])
        command += ["--json"] if as_json else []
        return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603 - our own command line


def isolated_command(
    python: Path, manifest_sha256: str, target: str, goal: ReplayGoal, more: Sequence[str]
) -> list[str]:
    """Return the command that replays *target* with another interpreter, if its manifest is the verified one.

    The installation of the environment takes a while; the bundle may have been replaced meanwhile.
    """
    wanted = ["--manifest", manifest_sha256, "--tolerance", str(goal.tolerance), "--grade", goal.grade.value]
    return [*program(python), "replay", target, *wanted, *more]


def program(python: Path | str) -> tuple[str, ...]:
    """Return the words that start the command line `executions` of the interpreter *python*."""
    return (str(python), "-m", "prefect_executions.cli")


def _show_summary(results: list[Reproduced], grade: Grade, *, as_json: bool) -> None:
    reached = sum(result.reached for result in results)
    if as_json:
        show_json({"wanted": grade, "reached": reached, "executions": results})
        return
    head = (id_column("execution"), name_column("method"), "grade", text_column("what differs"))
    show_table(head, map(_row, results))
    say(f"{reached} of {pluralize(len(results), 'execution')} reached {grade}")


def _row(result: Reproduced) -> tuple[str, ...]:
    more = len(result.differs) - _SHOWN
    differences = [*result.differs[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
    return (result.id, result.method, result.grade or "none", result.problem or "; ".join(differences))


_MEANINGS = {
    Grade.RERUN: "rerun: the Method completed, with other inputs",
    Grade.REPEAT: "repeat: the inputs are the same",
    Grade.RECOMPUTE: "recompute: inputs, code and environment are the same",
    Grade.REPRODUCE: "reproduce: inputs, code, environment and outputs are the same",
}


def _show_verdict(execution_id: str, verdict: Verdict, grade: Grade, *, reached: bool, as_json: bool) -> None:
    if as_json:
        show_json({"id": execution_id, "wanted": grade, "reached": reached, "verdict": verdict})
        return
    show_verdicts(verdict.outputs)
    for part in ("inputs", "code", "environment"):
        show_table((text_column("difference"),), ((text,) for text in getattr(verdict, part)), title=part)
    show_facts(
        [
            ("execution", execution_id),
            ("replay of", verdict.replay_of),
            ("grade", _MEANINGS[verdict.grade] if verdict.grade else "none: the Method did not complete"),
            ("wanted", f"{grade}, {'reached' if reached else 'not reached'}"),
        ]
    )
