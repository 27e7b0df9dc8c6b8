"""Checks the plans of scripts in `code/plan/` against the runs in `instance.json` and the phases in the history.

A check is a generator. It yields one sentence per fault, with the file and both values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prefect_executions.bundles import layout
from prefect_executions.bundles.evidence import Evidence, Findings, Unchecked
from prefect_executions.capture.secrets import MASK
from prefect_executions.documents import strict_json
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import Instance, ScriptRun
from prefect_executions.lifecycle.history import CLOCK_SKEW, JobStatus
from prefect_executions.lifecycle.status import Status
from prefect_executions.methods.model import Method

_FOLDER = f"{layout.CODE}/{layout.PLANS}/"
_PLAN, _SCRIPT = "plan.json", "entrypoint.sh"
_UNDEPLOY = ".undeploy"


class _Plan(NamedTuple):
    """What a plan says of its run; None for what is not in the plan."""

    name: str
    execution_id: object
    run_id: object
    runtime: object
    image: object
    script: object

    @classmethod
    def of(cls, name: str, document: object) -> _Plan:
        request = document.get("request") if isinstance(document, dict) else None
        members: Mapping[str, Any] = request if isinstance(request, dict) else {}
        runtime = document.get("runtime") if isinstance(document, dict) else None
        return cls(
            name,
            members.get("executionId"),
            members.get("id"),
            runtime,
            members.get("image"),
            members.get("script"),
        )


def scripts(evidence: Evidence) -> Findings:
    """The runs of scripts, their plans and their phases belong to this execution and agree (format 2)."""
    if evidence.format == 1:
        return
    status, runs = evidence.document(JobStatus), evidence.document(Instance).runs or ()
    yield from _run_faults(status.job_id, runs)
    for task in sorted({entry.task for entry in status.history if entry.task is not None}):
        if not task.startswith(f"{status.job_id}."):
            yield f"{JobStatus.file_name} has a phase of {task!r}, a task of another execution"
    plans = {}
    for name, paths in _folders(evidence).items():
        yield from _file_faults(name, paths)
        path = f"{_FOLDER}{name}/{_PLAN}"
        if path in paths:
            plans[name] = _Plan.of(name, _json(evidence, path))
            yield from _plan_faults(evidence, plans[name], status.job_id)
    needs_plans = bool(plans) or evidence.document(Method).additional_parameters is not None
    yield from _compared(plans, runs, status, needs_plans=needs_plans)


def _run_faults(execution_id: str, runs: Iterable[ScriptRun]) -> Iterator[str]:
    for run_id, count in Counter(run.id for run in runs).items():
        if count > 1:
            yield f"{Instance.file_name} has the run {run_id!r} {count} times"
    for run in runs:
        if not run.task.startswith(f"{execution_id}.") or run.id not in {run.task, run.task + _UNDEPLOY}:
            yield f"{Instance.file_name}: the run {run.id!r} of the task {run.task!r} belongs to another execution"
        if run.started and run.ended and run.started - run.ended > CLOCK_SKEW:
            yield f"{Instance.file_name}: the run {run.id!r} ended at {run.ended}, before its start at {run.started}"


def _folders(evidence: Evidence) -> dict[str, list[str]]:
    """Return the files of the plans by their folders; the Method's own code may have such a folder as well."""
    code = evidence.document(Method).code
    own = {file.path for file in (*code.files, *(code.data_files or ()))} if code else set()
    folders: dict[str, list[str]] = {}
    for path in sorted(evidence.files):
        if path.startswith(_FOLDER) and path not in own:
            folders.setdefault(path.removeprefix(_FOLDER).rpartition("/")[0], []).append(path)
    return folders


def _file_faults(name: str, paths: Sequence[str]) -> Iterator[str]:
    has_plan = f"{_FOLDER}{name}/{_PLAN}" in paths
    for path in paths:
        if path.rpartition("/")[2] not in {_PLAN, _SCRIPT}:
            yield f"{path!r} is neither the {_PLAN} nor the {_SCRIPT} of a plan"
        elif not has_plan:
            yield f"{path!r} is there without its {_PLAN}"


def _plan_faults(evidence: Evidence, plan: _Plan, execution_id: str) -> Findings:
    path = f"{_FOLDER}{plan.name}/{_PLAN}"
    ids = plan.execution_id, plan.run_id
    if ids != (execution_id, f"{execution_id}.{plan.name}") and MASK not in f"{ids}":
        yield f"{path!r} is the plan of {plan.run_id!r} of {plan.execution_id!r}, not of {execution_id}.{plan.name}"
    script = _read(evidence, f"{_FOLDER}{plan.name}/{_SCRIPT}")
    # A secret is masked in each of the two by its form there.
    if script is not None and script != plan.script and MASK not in script and MASK not in str(plan.script):
        yield f"{_FOLDER}{plan.name}/{_SCRIPT} is not the script in {_PLAN}"


def _compared(
    plans: Mapping[str, _Plan], runs: Iterable[ScriptRun], status: JobStatus, *, needs_plans: bool
) -> Findings:
    by_id = {run.id: run for run in runs}
    planned = {f"{status.job_id}.{name}": plan for name, plan in plans.items()}
    for run_id, run in by_id.items():
        plan = planned.get(run_id)
        if plan is None:
            if needs_plans:
                yield f"{Instance.file_name} has the run {run_id!r}, which has no plan"
        elif (plan.runtime, plan.image) != (run.runtime, run.image_name) and MASK not in f"{plan.runtime}{plan.image}":
            yield (
                f"the plan of {run_id!r} is for {plan.runtime} with the image {plan.image}; "
                f"{Instance.file_name} says {run.runtime} with {run.image_name}"
            )
    for run_id in sorted(planned.keys() - by_id.keys()):
        # A process that was killed observed no end; of a completed execution, the last attempt has all its ends.
        last = run_id.startswith(f"{status.job_id}.{status.attempt}.") and not run_id.endswith(_UNDEPLOY)
        sentence = f"the run {run_id!r} was planned, and {Instance.file_name} does not have its end"
        yield sentence if last and status.execution_status is Status.COMPLETED else Unchecked(sentence)


def _json(evidence: Evidence, path: str) -> object:
    text = _read(evidence, path)
    return None if text is None else strict_json(text.encode(errors="surrogateescape"), path)


def _read(evidence: Evidence, path: str) -> str | None:
    if path not in evidence.files:
        return None
    if evidence.files[path] > evidence.limits.document:
        raise BundleError(f"{path} has {evidence.files[path]} bytes; a plan may have {evidence.limits.document}")
    return b"".join(evidence.source.blocks(path)).decode(errors="surrogateescape")
