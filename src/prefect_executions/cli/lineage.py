"""`executions lineage` and `impact`: where an execution or a file came from, and what was made from it."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from prefect_executions.cli.arguments import Json, open_catalog
from prefect_executions.cli.completion import OneId
from prefect_executions.cli.output import (
    OutputFile,
    escape_controls,
    format_duration,
    pluralize,
    say,
    show_json,
    to_json,
    warn,
    write_file,
)
from prefect_executions.cli.tables import id_column, name_column, short_ids, show_table, text_column
from prefect_executions.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prefect_executions.workbench.lineage import Affected, Impact

Form = Literal["tree", "json", "dot", "mermaid", "svg"]

_MOST = 1_000
_MOST_DRAWN = 200
_COLUMNS = ("depth", "id", "method", "version", "status", "agent", "archive", "shared", "recalled")


def lineage(
    target: OneId,
    /,
    *,
    up: bool = False,
    down: bool = False,
    depth: int = 10,
    limit: int | None = None,
    form: Annotated[Form, Parameter(name="--format")] = "tree",
    output: OutputFile = None,
    as_json: Json = False,
) -> None:
    """Show where an execution or a file came from, and what used it.

    Data flow and orchestration are separate. A file is matched by its digest.

    Args:
        target: Id or id prefix of an execution, sha256:DIGEST, or a file.
        up: Only what it came from.
        down: Only what came from it.
        depth: Longest distance (default: 10).
        limit: Most executions in a direction (default: 1000; 200 for svg).
        form: tree (default), json, dot (Graphviz), mermaid or svg.
        output: File to write.
        as_json: Short for --format json.
    """
    # Start-up time of the CLI: archive and ledger come with it.
    from prefect_executions.operations import lineage_formats as formats  # noqa: PLC0415

    if as_json and form not in {"tree", "json"}:
        raise RequestError(f"--json and --format {form} exclude each other; give one of them")
    most = limit if limit is not None else _MOST_DRAWN if form == "svg" else _MOST
    found = open_catalog().lineage(target, up=up, down=down, depth=depth, limit=most)
    if found.cut:
        warn(f"{pluralize(found.cut, 'neighbour')} left out by --depth {depth} and --limit {most}")
    if as_json or form == "json":
        if output in {None, "-"}:
            show_json(formats.document(found))
        else:
            raise RequestError("-o FILE is for dot, mermaid, svg and tree; redirect the JSON document")
        return
    render = {"dot": formats.dot, "mermaid": formats.mermaid, "svg": formats.svg}
    ids = [node.id for node in found.executions]
    short = dict(zip(ids, short_ids(ids), strict=True)) if sys.stdout.isatty() and output is None else {}
    lines = formats.tree_lines(found, short)
    text = render[form](found) if form in render else "".join(f"{line}\n" for line in lines)
    if output in {None, "-"}:
        sys.stdout.write(escape_controls(text, lines=True))
    else:
        write_file([text.encode()], Path(str(output)))
        say(f"Lineage of {found.label(found.start)} in {output}")


def impact(
    target: OneId,
    /,
    *,
    plan: bool = False,
    mark: str | None = None,
    as_csv: Annotated[bool, Parameter(name="--csv")] = False,
    as_json: Json = False,
) -> None:
    """List everything that was made from a bad execution or file.

    It follows files by their digests, on any path.

    Args:
        target: Id or id prefix of an execution, sha256:DIGEST, or a file.
        plan: Show the order in which to run them again, and the recorded cost.
        mark: Recall them, and the bad execution, for this reason.
        as_csv: Print comma-separated values with a header line.
        as_json: Print one JSON document.
    """
    # Start-up time of the CLI, as above.
    from prefect_executions.executions.annotations import label_changes  # noqa: PLC0415

    if as_csv and as_json:
        raise RequestError("--json and --csv exclude each other; give one of them")
    changes = () if mark is None else label_changes(recall=mark)
    catalog = open_catalog()
    found = catalog.impact(target)
    recalled = [each.id for each in found.order] if changes else []
    if changes:
        warn(f"Recalling {pluralize(len(recalled), 'execution')}")
        catalog.add_labels(recalled, changes)
        found = catalog.impact(target)  # with the reason of the recall
    shown = found.order if plan else found.affected
    if as_json:
        show_json(_document(found) | ({"recalled": recalled} if changes else {}))
    elif as_csv:
        _show_csv(shown)
    else:
        _show(found, shown, target, plan=plan)
        if recalled:
            say(f"{pluralize(len(recalled), 'execution')} recalled. Next: executions search is:recalled")


def _document(found: Impact) -> dict[str, object]:
    return {
        "start": found.start,
        "affected": [_members(each) for each in found.affected],
        "plan": [each.id for each in found.order],
        "duration": found.duration,
        "cpu": found.cpu,
        "cut": found.cut,
    }


def _members(each: Affected) -> dict[str, object]:
    return {**to_json(each.node), "depth": each.depth, "shared": each.shared}


def _show_csv(shown: Iterable[Affected]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS)
    table.writerows([_members(each)[column] for column in _COLUMNS] for each in shown)
    sys.stdout.write(escape_controls(text.getvalue(), lines=True))


def _show(found: Impact, shown: Iterable[Affected], target: str, *, plan: bool) -> None:
    head = ("depth", id_column("execution"), name_column("method"), "status", name_column("agent"), "archive")
    if plan:
        show_table((*head, "duration", "CPU"), (_row(each, costs=True) for each in shown))
        took, cpu = format_duration(found.duration), format_duration(found.cpu)
        say(f"Run {pluralize(len(found.order), 'execution')} again in this order; recorded: {took}, {cpu} of CPU time")
        return
    show_table((*head, "shared", text_column("recalled")), (_row(each, costs=False) for each in shown))
    say(f"{pluralize(len(found.affected), 'execution')} made from {target}")


def _row(each: Affected, *, costs: bool) -> tuple[object, ...]:
    node = each.node
    row = (each.depth, node.id, node.method, node.status, node.agent or "", node.archive)
    if not costs:
        return (*row, "yes" if each.shared else "", node.recalled or "")
    return (*row, format_duration(node.duration), format_duration(node.cpu))
