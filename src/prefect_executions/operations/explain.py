"""Explain by experiments why two executions differ: replay the first with some differences of the second.

Each experiment is a replay in a process of its own, recorded as an execution with the tag `EXPERIMENT_TAG`. Its outputs
are compared with those of both executions, as the Method declares. `comparison.causes` decides what to try.

Law: before any experiment, the unchanged first execution must give its own outputs again; otherwise
a change of outputs says nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

from prefect_executions.attestation.policy import TRUST_NOBODY, SignaturePolicy
from prefect_executions.bundles import layout
from prefect_executions.bundles.source import Source
from prefect_executions.capture.host import recorded_environment
from prefect_executions.capture.packages import Packages
from prefect_executions.capture.secrets import MASK
from prefect_executions.comparison.causes import Effect, Factor, FactorKind, factors_of, find_cause
from prefect_executions.errors import ExecutionsError, NotAvailableError, RequestError
from prefect_executions.executions.local_packages import DISTRIBUTION, local_packages
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.executions.values import recorded_form
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.operations.bundle_reader import Opened, open_execution
from prefect_executions.operations.code_origin import Approve, refuse
from prefect_executions.operations.compare import output_verdicts
from prefect_executions.operations.download import is_url
from prefect_executions.operations.environments import layer_environment, make_environment
from prefect_executions.operations.replay import changed_origins, copy_inputs, open_replayable, rerun_request
from prefect_executions.operations.reproduce import run_replay
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.lookup import path_of

_T = TypeVar("_T")

EXPERIMENT_TAG = "explain"
"""The tag of the executions that are experiments."""

_OF_SCHEDULERS = ("EXECUTIONS_", "PREFECT_", "SLURM_")
"""Beginnings of recorded variables that say how a run was started, and would change how an experiment is recorded."""

_STOPPED = frozenset({Reason.CRASHED, Reason.INFRASTRUCTURE, Reason.LOST})
"""Reasons of a failure that need not be the Method's."""


class Conclusion(StrEnum):
    """What the experiments show."""

    SAME = "same"
    """The outputs of both executions agree."""
    UNSTABLE = "unstable"
    """The unchanged first execution gives other outputs each time."""
    NOT_REPRODUCED = "not reproduced"
    """The unchanged first execution gives the same outputs each time, but not the recorded ones."""
    EXPLAINED = "explained"
    """The cause gives the outputs of the second execution."""
    CHANGED = "changed"
    """The cause changes the outputs of the first execution, but does not give those of the second."""
    UNEXPLAINED = "unexplained"
    """No difference that was tried changes the outputs."""


class Experiment(NamedTuple):
    """A replay of the first execution with these factors of the second."""

    factors: tuple[Factor, ...]
    """Empty for the unchanged first execution."""
    effect: Effect
    seconds: float
    execution: str | None
    """The id of its execution."""
    problem: str | None
    """Why it has no outputs."""


class Untestable(NamedTuple):
    """A difference that no experiment can try here, and why."""

    factor: Factor
    why: str


class Explanation(NamedTuple):
    """Why two executions differ, with all experiments."""

    before: str
    after: str
    conclusion: Conclusion
    cause: tuple[Factor, ...] = ()
    experiments: tuple[Experiment, ...] = ()
    untestable: tuple[Untestable, ...] = ()
    untried: int = 0
    """Sets of differences that were not tried because of the limit."""


During = Callable[[int, tuple[Factor, ...]], AbstractContextManager[None]]
"""Wraps each experiment, which is given by its number and its factors."""


@dataclass(frozen=True, kw_only=True)
class ExperimentPlan:
    """How experiments run.

    Attributes:
        command: Returns the words that start the `executions` command line of an interpreter.
        during: Is entered for each experiment.
        prepare: Is called before the first experiment.
        limit: The largest number of experiments, besides the replays of the unchanged first execution.
        edits: Inputs of every experiment, such as secrets.
        words: More options of `executions replay`.
        variables: Environment variables that are recorded on this machine besides the default ones.
    """

    command: Callable[[Path | str], Sequence[str]]
    during: During
    prepare: Callable[[], None]
    limit: int
    edits: Mapping[str, Any] = field(default_factory=dict)
    words: Sequence[str] = ()
    variables: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise RequestError(f"--limit must be at least 1, not {self.limit}")


def explain(
    catalog: Catalog,
    before: str,
    after: str,
    plan: ExperimentPlan,
    *,
    signatures: SignaturePolicy = TRUST_NOBODY,
    approve: Approve = refuse,
) -> Explanation:
    """Explain why the executions *before* and *after*, given by id or bundle, have different outputs.

    Raises:
        RequestError: If they are executions of different Methods, or a target is an address.
        NotAvailableError: If the first execution cannot be replayed.
        ForeignCodeError: If *approve* refuses the code of one of them.
        BundleError: If a bundle is damaged.
    """
    for target in (before, after):
        if is_url(target):
            raise RequestError("--explain needs an id, a folder or a zip; download the bundle first")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="executions-explain-")))
        first, second = (
            stack.enter_context(_open_side(catalog, target, folder / name, signatures, approve))
            for name, target in (("before", before), ("after", after))
        )
        if first.record.method.id != second.record.method.id:
            raise RequestError(
                f"--explain needs two executions of one Method; these are of "
                f"'{first.record.method.id}' and '{second.record.method.id}'"
            )
        if _agree(first.opened, second.opened):
            return Explanation(first.record.id, second.record.id, Conclusion.SAME)
        experimenter = _Experimenter(catalog, first, second, plan, folder)
        plan.prepare()
        return experimenter.explain()


@dataclass(frozen=True, kw_only=True)
class _Side:
    """One of the two executions, verified."""

    opened: Opened
    record: ExecutionRecord
    source: Source
    target: str
    manifest_sha256: str
    folder: Path

    def input(self, name: str) -> Any:
        """Return an input in the form of the record, with copies of its files.

        Raises:
            ExecutionsError: If the bundle does not contain the value.
        """
        files = tuple(file for file in self.record.request.files if file.input.partition(".")[0] == name)
        record = replace(self.record, request=self.record.request.model_copy(update={"files": files}))
        copies = copy_inputs(record, self.source, self.folder / name)
        for problem in changed_origins(record, copies, {}, self.folder / name):
            raise NotAvailableError(problem)
        others = {other: None for other in record.request.values if other != name}
        parameters = rerun_request(record, others, copies).parameters
        if name not in parameters and record.request.values.get(name) is not None:
            raise NotAvailableError("the record does not contain its default")
        return recorded_form(parameters.get(name))


@contextmanager
def _open_side(
    catalog: Catalog, target: str, folder: Path, signatures: SignaturePolicy, approve: Approve
) -> Iterator[_Side]:
    path = path_of(target)
    with (
        open_replayable(catalog, target, signatures=signatures, approve=approve) as (record, source),
        open_execution(target, lambda: catalog) as opened,
    ):
        yield _Side(
            opened=opened,
            record=record,
            source=source,
            target=str(path.absolute()) if path else record.id,
            manifest_sha256=sha256(b"".join(source.blocks(layout.MANIFEST))).hexdigest(),
            folder=folder,
        )


def _agree(first: Opened, second: Opened) -> bool:
    """Whether two executions ended alike and their outputs agree."""
    ends = []
    for opened in (first, second):
        record = opened.reader.record(opened.id)
        raised = record.instance.usage.exception if record.instance.usage else None
        ends.append((record.status, raised and raised.type))
    return ends[0] == ends[1] and all(verdict.agreement.agrees for verdict in output_verdicts(first, second))


class _Experimenter:
    """Runs experiments; it keeps the environments that it creates until the end, because several need the same."""

    def __init__(self, catalog: Catalog, first: _Side, second: _Side, plan: ExperimentPlan, folder: Path) -> None:
        self._catalog, self._first, self._second = catalog, first, second
        self._plan, self._folder = plan, folder
        self._inputs: dict[str, tuple[Any, Any]] = {}
        self._environments: dict[tuple[Factor, ...], Path | None] = {}
        self._experiments: list[Experiment] = []
        self._isolated = False
        self._installed = dict(Packages().versions())
        self._factors: list[Factor] = []
        self._untestable: list[Untestable] = []
        for factor in factors_of(first.record, second.record):
            if why := self._why_untestable(factor):
                self._untestable.append(Untestable(factor, why))
            else:
                self._factors.append(factor)

    def explain(self) -> Explanation:
        """Run the experiments and return what they show."""
        unlike = self._baseline()
        if unlike is not None:
            return self._explanation(unlike)
        cause = find_cause(self._factors, lambda factors: self._run(factors).effect, limit=self._plan.limit)
        conclusions = {Effect.SECOND: Conclusion.EXPLAINED, Effect.OTHER: Conclusion.CHANGED}
        explanation = self._explanation(conclusions.get(cause.effect, Conclusion.UNEXPLAINED))
        return explanation._replace(cause=cause.factors, untried=cause.untried)

    def _explanation(self, conclusion: Conclusion) -> Explanation:
        return Explanation(
            self._first.record.id,
            self._second.record.id,
            conclusion,
            experiments=tuple(self._experiments),
            untestable=tuple(self._untestable),
        )

    def _baseline(self) -> Conclusion | None:
        """Replay the unchanged first execution; return a conclusion if it does not give its outputs again.

        It runs with its recorded packages if a package is to be changed, or if it needs them.
        """
        self._isolated = _has(self._factors, FactorKind.PACKAGE)
        found = self._run(())
        if found.effect is not Effect.FIRST and not self._isolated:
            self._isolated = True
            found = self._run(()) if self._has_environment() else found
        if found.effect is Effect.UNAVAILABLE:
            self._isolated = False
            found = self._run(())
        if found.effect is Effect.FIRST:
            return None
        if found.execution is None:
            raise NotAvailableError(
                f"execution {self._first.record.id} cannot be replayed, so no experiment can explain it: "
                f"{found.problem}"
            )
        again = self._run(())
        same = again.execution is not None and _agree(self._open(found.execution), self._open(again.execution))
        return Conclusion.NOT_REPRODUCED if same else Conclusion.UNSTABLE

    def _has_environment(self) -> bool:
        """Whether the first execution's packages differ from those here and can be installed."""
        try:
            return self._environment(()) is not None
        except ExecutionsError:
            return False

    def _run(self, factors: tuple[Factor, ...]) -> Experiment:
        begun = time.monotonic()
        with self._plan.during(len(self._experiments) + 1, factors):
            effect, execution, problem = self._effect(factors)
        experiment = Experiment(factors, effect, time.monotonic() - begun, execution, problem)
        self._experiments.append(experiment)
        return experiment

    def _effect(self, factors: tuple[Factor, ...]) -> tuple[Effect, str | None, str | None]:
        try:
            python = self._environment(factors)
            edits = self._edits(factors)
        except ExecutionsError as error:
            return Effect.UNAVAILABLE, None, str(error)
        base = self._second if _has(factors, FactorKind.CODE) else self._first
        file = self._folder / "inputs.json"
        file.write_text(json.dumps(edits), encoding="utf-8")
        words = ["--params", str(file), "--manifest", base.manifest_sha256, "--tag", EXPERIMENT_TAG, "--yes", "--json"]
        command = [*self._plan.command(python or sys.executable), "replay", base.target, *words, *self._plan.words]
        result = run_replay(command, self._variables(factors, isolated=python is not None))
        if result.id is None:
            return Effect.NONE, None, result.problem
        return self._compared(result.id), result.id, None

    def _compared(self, execution_id: str) -> Effect:
        found = self._open(execution_id)
        for side, effect in ((self._second, Effect.SECOND), (self._first, Effect.FIRST)):
            if _agree(found, side.opened):
                return effect
        record = self._catalog.record(execution_id)
        stopped = record.status is Status.CANCELLED or record.job_status.reason in _STOPPED
        return Effect.NONE if stopped else Effect.OTHER

    def _open(self, execution_id: str) -> Opened:
        return Opened(self._catalog, execution_id)

    def _edits(self, factors: tuple[Factor, ...]) -> dict[str, Any]:
        """Return the inputs to change: in a replay of the first execution, or of the second if its code is used."""
        changed = {factor.name for factor in factors if factor.kind is FactorKind.INPUT}
        if not _has(factors, FactorKind.CODE):
            return {**{name: self._inputs[name][1] for name in changed}, **self._plan.edits}
        for untestable in self._untestable:
            if untestable.factor.kind is FactorKind.INPUT and untestable.factor.name not in self._plan.edits:
                name = untestable.factor.name
                raise NotAvailableError(f"the code needs the first execution's input '{name}': {untestable.why}")
        return {**{name: forms[0] for name, forms in self._inputs.items() if name not in changed}, **self._plan.edits}

    def _variables(self, factors: tuple[Factor, ...], *, isolated: bool) -> dict[str, str]:
        """Return the environment variables of an experiment, with the first execution's where both differ."""
        variables = dict(os.environ)
        if isolated:  # these variables would add packages of this environment
            variables = {name: value for name, value in variables.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
        for factor in self._factors:
            if factor.kind is FactorKind.VARIABLE:
                value = factor.after if factor in factors else factor.before
                variables.pop(factor.name, None)
                variables |= {} if value is None else {factor.name: value}
        return variables

    def _environment(self, factors: tuple[Factor, ...]) -> Path | None:
        """Return the interpreter with the first execution's packages and *factors*; None if this interpreter fits.

        Raises:
            NotAvailableError: If a package or an interpreter is unavailable.
            BundleError: If the record has an invalid package.
        """
        key = tuple(factor for factor in factors if factor.kind in {FactorKind.PACKAGE, FactorKind.PYTHON})
        if not key and not self._isolated:
            return None
        if key not in self._environments:
            folder = self._folder / f"environment-{len(self._environments)}"
            self._environments[key] = self._create_environment(self._with_packages(key), folder)
        return self._environments[key]

    def _create_environment(self, record: ExecutionRecord, folder: Path) -> Path | None:
        """Create an environment for *record*: above this one if nothing in it must be hidden, which is faster."""
        packages = record.instance.packages
        changed = {factor.name for factor in self._factors if factor.kind is FactorKind.PACKAGE}
        other = {
            name: version
            for name, version in packages.items()
            if name != DISTRIBUTION and self._installed.get(name) != version
        }
        # A replay imports a package from the bundle only if no other version is installed.
        from_bundle = other.keys() & {package.name for package in local_packages(record)}
        hidden = ((changed - packages.keys()) | from_bundle) & self._installed.keys()
        python = record.instance.python.version if record.instance.python else None
        if hidden or python not in {None, ".".join(map(str, sys.version_info[:3]))}:
            return make_environment(record, folder)
        if not other:
            return None
        instance = record.instance.model_copy(update={"packages": other})
        return layer_environment(replace(record, instance=instance), folder)

    def _with_packages(self, factors: Sequence[Factor]) -> ExecutionRecord:
        """Return the first record with these packages, or this Python, of the second."""
        instance, other = self._first.record.instance, self._second.record.instance
        names = {factor.name for factor in factors if factor.kind is FactorKind.PACKAGE}
        changes: dict[str, Any] = {
            "packages": _replaced(instance.packages, other.packages, names),
            "package_origins": _replaced(instance.package_origins or {}, other.package_origins or {}, names) or None,
        }
        if _has(factors, FactorKind.PYTHON):
            changes["python"] = other.python
        return replace(self._first.record, instance=instance.model_copy(update=changes))

    def _why_untestable(self, factor: Factor) -> str | None:
        if factor.kind is FactorKind.INPUT:
            return self._why_input_untestable(factor.name)
        if factor.kind is FactorKind.VARIABLE:
            return _why_variable_untestable(factor, self._plan.variables)
        if factor.kind is FactorKind.INFRASTRUCTURE:
            return "it needs the other machine or work pool"
        if factor.kind is FactorKind.PACKAGE and factor.name == DISTRIBUTION:
            return "a replay uses the version that is installed here"
        instances = [side.record.instance for side in (self._first, self._second)]
        recorded = all(bool(instance.packages and instance.python) for instance in instances)
        return None if recorded or factor.kind is FactorKind.CODE else "one execution has no record of its environment"

    def _why_input_untestable(self, name: str) -> str | None:
        if name in self._plan.edits:
            return "-p gives every experiment the same value"
        try:
            self._inputs[name] = self._first.input(name), self._second.input(name)
        except ExecutionsError as error:
            return str(error)
        return None


def _why_variable_untestable(factor: Factor, recorded: Sequence[str]) -> str | None:
    if factor.name.startswith(_OF_SCHEDULERS):
        return "a scheduler or an operator sets it for each run"
    for value in (factor.before, factor.after):
        if value is None:
            continue
        if value == MASK:
            return "its value is withheld"
        # A record from elsewhere must not choose a variable such as LD_PRELOAD.
        if recorded_environment({factor.name: value}, recorded) != {factor.name: value}:
            return "this machine does not record it (EXECUTIONS_ENVIRONMENT)"
    return None


def _replaced(mine: Mapping[str, _T], theirs: Mapping[str, _T], names: set[str]) -> dict[str, _T]:
    kept = {name: value for name, value in mine.items() if name not in names}
    return kept | {name: value for name, value in theirs.items() if name in names}


def _has(factors: Sequence[Factor], kind: FactorKind) -> bool:
    return any(factor.kind is kind for factor in factors)
