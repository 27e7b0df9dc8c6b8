"""`executions diff`: two executions beside each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from prefect_executions.cli.asking import Json, reader
from prefect_executions.cli.showing import say, show_json, show_table

if TYPE_CHECKING:
    from prefect_executions.comparison.records import Difference


def diff(
    before: str,
    after: str,
    /,
    *,
    everything: Annotated[bool, Parameter(name="--all")] = False,
    as_json: Json = False,
) -> None:
    """Compare two executions: inputs, params, metrics, code, packages, environment, outputs, timings.

    Files are compared by their digests. What only one of them tells has nothing on the other side.

    Args:
        before: The id of the first, or its beginning.
        after: The id of the second.
        everything: Also what is the same in both.
        as_json: One JSON document.
    """
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.workbench.comparing import compare_executions  # noqa: PLC0415

    hall = reader()
    compared = compare_executions(hall, hall.find(before), hall.find(after))
    shown = [one for one in compared.differences if everything or not one.same]
    if as_json:
        show_json({**compared._asdict(), "differences": shown})
        return
    head = ("part", "name", compared.before, compared.after)
    show_table((*head, "differs") if everything else head, _rows(shown, everything=everything))
    for source in compared.sources:
        say((source.diff or f"{source.path}: {source.why}").rstrip("\n"))
    if not shown:
        say(f"{compared.before} and {compared.after} tell the same")


def _rows(shown: list[Difference], *, everything: bool) -> Iterator[tuple[str, ...]]:
    for one in shown:
        row = (one.part, one.name, _value(one.before), _value(one.after))
        yield (*row, "" if one.same else "yes") if everything else row


def _value(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
