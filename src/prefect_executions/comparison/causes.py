"""Finds which differences between two executions change the outputs, by controlled experiments.

First one factor is changed at a time, then two. A factor is a difference that can cause other outputs: an input, the
code, a package, an environment variable, Python. Law: this module runs nothing; it decides what to try next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from itertools import combinations
from typing import Any, NamedTuple

from prefect_executions.comparison.records import Difference, changed_sources, compare
from prefect_executions.executions.local_packages import DISTRIBUTION
from prefect_executions.executions.record import ExecutionRecord

_LARGEST = 2
"""Factors that are changed together."""
_NAMED = 3
"""Files in the name of a factor."""


class FactorKind(StrEnum):
    """What a factor is, in the order in which factors are tried: the cheapest first."""

    INPUT = "input"
    CODE = "code"
    VARIABLE = "variable"
    PACKAGE = "package"
    PYTHON = "Python"
    INFRASTRUCTURE = "infrastructure"


class Factor(NamedTuple):
    """A difference that can cause other outputs, with the values of both executions; None where it is absent."""

    kind: FactorKind
    name: str
    before: Any
    after: Any


class Effect(StrEnum):
    """What an experiment gave."""

    FIRST = "first"
    """The outputs of the first execution."""
    SECOND = "second"
    """The outputs of the second execution."""
    OTHER = "other"
    """Other outputs than both."""
    NONE = "none"
    """The Method did not start."""
    UNAVAILABLE = "unavailable"
    """The factors cannot be set on this machine."""


class Cause(NamedTuple):
    """The smallest set of factors that gives the second execution's outputs, else that changes the first's."""

    factors: tuple[Factor, ...]
    """Empty if no set that was tried changes the outputs."""
    effect: Effect
    untried: int
    """Sets that were not tried because of the limit."""


def factors_of(before: ExecutionRecord, after: ExecutionRecord) -> tuple[Factor, ...]:
    """Return the factors in which two executions of one Method differ, in the order in which they are tried.

    All code is one factor, with the files that come with it: a file rarely works with the other version of another.
    An input that only one version of the Method has, and an editable package, belong to the code.
    """
    differences = [difference for difference in compare(before, after) if not difference.same]
    found = [*_inputs(before, after, differences), *_code(before, after)]
    for difference in differences:
        kind = _kind(before, after, difference)
        if kind is not None:
            found.append(Factor(kind, difference.name.removeprefix("$"), difference.before, difference.after))
    order = list(FactorKind)
    return tuple(sorted(found, key=lambda factor: order.index(factor.kind)))


def find_cause(factors: Sequence[Factor], attempt: Callable[[tuple[Factor, ...]], Effect], *, limit: int) -> Cause:
    """Return the smallest set of at most two *factors* that explains the second execution's outputs.

    *attempt* runs the first execution with these factors of the second and returns the effect; it is called at most
    *limit* times. Pairs are tried only if no single factor gives the outputs of the second execution: first those whose
    factors change the outputs by themselves.
    """
    effects: dict[tuple[int, ...], Effect] = {}
    untried = 0
    for size in range(1, _LARGEST + 1):
        for group in _groups(len(factors), size, effects):
            if len(effects) >= limit:
                untried += 1
                continue
            effects[group] = attempt(tuple(factors[index] for index in group))
            if effects[group] is Effect.SECOND:
                return Cause(tuple(factors[index] for index in group), Effect.SECOND, 0)
    changed = next((group for group, effect in effects.items() if effect is Effect.OTHER), ())
    return Cause(tuple(factors[index] for index in changed), Effect.OTHER if changed else Effect.FIRST, untried)


def _groups(count: int, size: int, effects: dict[tuple[int, ...], Effect]) -> list[tuple[int, ...]]:
    """Return the sets of *size* factors, as indexes: first those of which more change the outputs by themselves."""
    usable = [index for index in range(count) if effects.get((index,)) is not Effect.UNAVAILABLE]

    def unchanged(group: tuple[int, ...]) -> int:
        return sum(effects.get((index,)) is not Effect.OTHER for index in group)

    return sorted(combinations(usable, size), key=unchanged)


def _inputs(before: ExecutionRecord, after: ExecutionRecord, differences: Sequence[Difference]) -> Iterator[Factor]:
    """Yield one factor for each input; a file inside a model, such as ``options.scene``, belongs to its input."""
    shared = before.method.inputs.keys() & after.method.inputs.keys()
    seen = set[str]()
    for difference in differences:
        name = difference.name if difference.name in shared else difference.name.partition(".")[0]
        if difference.part == "inputs" and name in shared and name not in seen:
            seen.add(name)
            yield Factor(FactorKind.INPUT, name, difference.before, difference.after)


def _code(before: ExecutionRecord, after: ExecutionRecord) -> Iterator[Factor]:
    paths = sorted({*changed_sources(before, after), *_changed_data(before, after)})
    names = [path.removeprefix("code/") for path in paths]
    if not paths and _images(before) != _images(after):
        names = ["image of the scripts"]
    if names:
        more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
        yield Factor(FactorKind.CODE, ", ".join([*names[:_NAMED], *more]), *_versions(before, after))


def _changed_data(before: ExecutionRecord, after: ExecutionRecord) -> set[str]:
    files = [
        {(file.path, file.sha256) for file in (record.method.code.data_files if record.method.code else None) or ()}
        for record in (before, after)
    ]
    return {path for path, _ in files[0] ^ files[1]}


def _images(record: ExecutionRecord) -> set[str | None]:
    return {run.image_digest or run.image for run in record.instance.runs or ()}


def _versions(before: ExecutionRecord, after: ExecutionRecord) -> tuple[str | None, str | None]:
    """Return the commits of the code, or its digests if the commits do not tell it apart."""
    codes = before.method.code, after.method.code
    first, second = (code.repository.commit if code and code.repository else None for code in codes)
    if first and second and first != second:
        return first, second
    first, second = (code.sha256 if code else None for code in codes)
    return first, second


def _kind(before: ExecutionRecord, after: ExecutionRecord, difference: Difference) -> FactorKind | None:
    if difference.part == "packages":
        return None if _is_editable(before, after, difference.name) else FactorKind.PACKAGE
    if difference.part == "environment":
        if difference.name == "python":
            return FactorKind.PYTHON
        return FactorKind.VARIABLE if difference.name.startswith("$") else FactorKind.INFRASTRUCTURE
    # The version of Prefect is also among the packages.
    return FactorKind.INFRASTRUCTURE if difference.part == "infrastructure" and difference.name != "prefect" else None


def _is_editable(before: ExecutionRecord, after: ExecutionRecord, name: str) -> bool:
    """Whether the modules of a package are recorded as code, except this package."""
    origins = [(record.instance.package_origins or {}).get(name) for record in (before, after)]
    return name != DISTRIBUTION and any(origin is not None and origin.editable for origin in origins)
