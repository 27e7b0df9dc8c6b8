"""`executions diff`: compare two executions, and explain by experiments why their outputs differ."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from prefect_executions.cli.arguments import (
    DEFAULT_SIGNATURES,
    NO_INPUTS,
    InputOptions,
    Json,
    SignatureOptions,
    connect_local_server,
    open_catalog,
    set_defaults,
)
from prefect_executions.cli.output import (
    format_number,
    format_size,
    pluralize,
    say,
    say_words,
    shorten,
    show_json,
    status_line,
)
from prefect_executions.cli.replay import approve_foreign, program
from prefect_executions.cli.tables import (
    Column,
    id_column,
    name_column,
    short_ids,
    show_table,
    show_verdicts,
    text_column,
    value_column,
)
from prefect_executions.errors import RequestError
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect_executions.comparison.causes import Factor
    from prefect_executions.comparison.records import Difference
    from prefect_executions.operations.explain import Experiment, Explanation

_DIGEST, _DIGEST_PREFIX = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}"), 12
_LIMIT = 30
_LINE = 60
"""Characters of the changes on the status line, which must not wrap."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """Options of `diff --explain`."""

    explain: bool = False
    """Find by experiments which differences change the outputs."""
    limit: int = _LIMIT
    """With --explain: the largest number of experiments (default: 30)."""
    yes: bool = False
    """With --explain: run foreign code without confirmation."""
    allow_missing: bool = False
    """With --explain: run although a bundle lacks files that the code used."""


_NO_EXPLANATION = ExplainOptions()


def diff(
    before: str,
    after: str,
    /,
    *,
    everything: Annotated[bool, Parameter(name="--all")] = False,
    explanation: ExplainOptions = _NO_EXPLANATION,
    inputs: InputOptions = NO_INPUTS,
    signatures: SignatureOptions = DEFAULT_SIGNATURES,
    as_json: Json = False,
) -> None:
    """Compare two executions: inputs, code, environment, outputs, timings.

    Files are compared by digest; outputs that differ also by content. A value that
    only one execution has is empty on the other side.

    Args:
        before: The first execution: its id or id prefix, or its bundle: a folder, a zip or the URL of a zip.
        after: The second execution, in the same forms.
        everything: Also show equal values.
        inputs.param: With --explain: name a secret, or set an input in all experiments: name=value (repeatable).
        as_json: Print one JSON document.
    """
    if explanation.explain:
        if everything:
            raise RequestError("--all and --explain exclude each other; give one of them")
        _explain(before, after, explanation, inputs, signatures, as_json=as_json)
        return
    if inputs != NO_INPUTS or explanation != _NO_EXPLANATION or signatures != DEFAULT_SIGNATURES:
        raise RequestError("only --all and --json apply without --explain")
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.operations.bundle_reader import open_execution  # noqa: PLC0415
    from prefect_executions.operations.compare import compare_executions  # noqa: PLC0415

    with open_execution(before, open_catalog) as first, open_execution(after, open_catalog) as second:
        compared = compare_executions(first, second)
    shown = [difference for difference in compared.differences if everything or not difference.same]
    if as_json:
        show_json({**compared._asdict(), "differences": shown})
        return
    before_id, after_id = short_ids([compared.before, compared.after])
    head = ("part", name_column("name"), value_column(before_id), value_column(after_id))
    show_table((*head, "differs") if everything else head, _rows(shown, everything=everything))
    show_verdicts(compared.outputs, title="agreement")
    for source in compared.sources:
        say((source.diff or f"{source.path}: {source.why}").rstrip("\n"))
    if not shown:
        say(f"{compared.before} and {compared.after} do not differ")


def _rows(shown: list[Difference], *, everything: bool) -> Iterator[tuple[str, ...]]:
    for difference in shown:
        row = (difference.part, difference.name, *_sides(difference))
        yield (*row, "" if difference.same else "yes") if everything else row


def _sides(difference: Difference) -> Iterator[str]:
    """Both values: on a terminal rounded and with short digests, in a pipe whole."""
    for value in (difference.before, difference.after):
        if not sys.stdout.isatty() or not isinstance(value, int | float | str):
            yield _value(value)
        elif difference.part == "timings" and isinstance(value, int | float):
            yield format_size(int(value)) if difference.name == "peak memory" else f"{value:.2f} s"
        else:
            yield str(value)[:_DIGEST_PREFIX] if _DIGEST.fullmatch(str(value)) else format_number(value)


def _value(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    from prefect_executions.executions.values import text_of  # noqa: PLC0415 - start-up time of the CLI

    return text_of(value)


def _explain(
    before: str,
    after: str,
    options: ExplainOptions,
    inputs: InputOptions,
    signatures: SignatureOptions,
    *,
    as_json: bool,
) -> None:
    # Start-up time of the CLI, as above.
    from prefect_executions.operations.explain import ExperimentPlan, explain  # noqa: PLC0415

    settings = Settings.read()

    def during(number: int, factors: tuple[Factor, ...]) -> AbstractContextManager[None]:
        return status_line(f"Experiment {number}: {_changes(factors)[:_LINE]}", quiet=as_json)

    plan = ExperimentPlan(
        command=program,
        during=during,
        prepare=partial(_connect, settings, quiet=as_json),
        limit=options.limit,
        edits=inputs.read(),
        words=[*(["--allow-missing"] if options.allow_missing else []), *signatures.words()],
        variables=settings.environment,
    )
    found = explain(
        open_catalog(settings),
        before,
        after,
        plan,
        signatures=signatures.policy(settings),
        approve=partial(approve_foreign, yes=options.yes),
    )
    if as_json:
        show_json(found)
    else:
        _show_explanation(found)


def _connect(settings: Settings, *, quiet: bool) -> None:
    """Start the local Prefect server, which all experiments use: an isolated one cannot leave a server behind."""
    set_defaults()
    with status_line("Starting Prefect", quiet=quiet):
        connect_local_server(settings)


def _show_explanation(found: Explanation) -> None:
    first, second = short_ids([found.before, found.after])
    labels = {"first": f"as {first}", "second": f"as {second}", "none": "not run", "unavailable": "not run"}
    head = (Column("no."), text_column("changed"), "outputs", "took", id_column("execution"))
    rows = [
        (
            number,
            "; ".join(filter(None, (_changes(tried.factors), tried.problem))),
            labels.get(tried.effect, tried.effect),
            f"{tried.seconds:.1f} s",
            tried.execution or "",
        )
        for number, tried in enumerate(found.experiments, 1)
    ]
    show_table(head, rows)
    why_not = [(_name(item.factor), item.why) for item in found.untestable]
    show_table((name_column("difference", 24), text_column("why")), why_not, title="not tested" if rows else None)
    say_words(answer(found, first, second))


def answer(found: Explanation, first: str, second: str) -> str:
    """Return in one or two sentences why *first* and *second*, the short ids of *found*, differ."""
    names = " and ".join(map(_name, found.cause))
    alone = [_name(tried.factors[0]) for tried in found.experiments if _changes_alone(tried)]
    values = "its value" if len(found.cause) == 1 else "their values"
    untried = (
        f" Not tried, because of --limit: {pluralize(found.untried, 'set')} of differences." if found.untried else ""
    )
    answers = {
        "same": f"The outputs of {first} and {second} agree.",
        "unstable": f"{first} gives other outputs each time, without any change: the Method depends on something that "
        "is not recorded, such as a random seed.",
        "not reproduced": f"{first} does not give its recorded outputs on this machine, but the same outputs each "
        f"time. Compare it with an experiment: executions diff {first} {_last(found)}",
        "explained": f"Cause: {names}. With {values} from {second}, {first} gives the outputs of {second}.",
        "changed": f"Each of these changes the outputs of {first} by itself: {', '.join(alone)}. No set of at most "
        f"two that was tried gives the outputs of {second}.{untried}"
        if len(alone) > 1
        else f"With {names} from {second}, {first} gives other outputs, but not those of {second}.{untried}",
        "unexplained": f"No difference that was tested changes the outputs of {first}.{untried}",
    }
    return answers[found.conclusion]


def _name(factor: Factor) -> str:
    return f"{factor.kind} {factor.name}"


def _changes_alone(tried: Experiment) -> bool:
    return len(tried.factors) == 1 and tried.effect == "other"


def _last(found: Explanation) -> str:
    return next((tried.execution for tried in reversed(found.experiments) if tried.execution), "")


def _changes(factors: Sequence[Factor]) -> str:
    if not factors:
        return "nothing"
    return "; ".join(f"{item.kind} {item.name}: {_side(item.before)} → {_side(item.after)}" for item in factors)


def _side(value: Any) -> str:
    if value is None or value == "":
        return "absent" if value is None else '""'
    text = _value(value)
    return text[:_DIGEST_PREFIX] if _DIGEST.fullmatch(text) else shorten(text)
