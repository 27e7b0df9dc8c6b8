"""`executions search`: executions that match a query, with facets and groups."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from prefect_executions.cli.arguments import Json, open_catalog
from prefect_executions.cli.completion import Names, QueryText
from prefect_executions.cli.output import (
    escape_controls,
    format_duration,
    format_number,
    format_time,
    pluralize,
    say,
    show_json,
    to_json,
    warn,
)
from prefect_executions.cli.tables import (
    VERSION,
    Column,
    digest_column,
    id_column,
    name_column,
    show_table,
    time_column,
    value_column,
)
from prefect_executions.errors import RequestError

_EXACT = 1 << 53
"""Below this, a double and a whole number have the same digits."""

if TYPE_CHECKING:
    from prefect_executions.ledger.index.summaries import Facet, Group
    from prefect_executions.query.tree import Target
    from prefect_executions.workbench.results import Groups, SearchResults


def search(
    query: QueryText = "",
    /,
    *,
    sort: Names = "",
    columns: Names = "",
    limit: int = 50,
    after: str | None = None,
    facets: Names = "",
    group_by: Names = "",
    aggregate: Names = "",
    as_json: Json = False,
    as_jsonl: Annotated[bool, Parameter(name="--jsonl")] = False,
    as_csv: Annotated[bool, Parameter(name="--csv")] = False,
) -> None:
    """Search executions by any field, param, metric, input or file.

    Args:
        query: The query, such as 'method:mnist AND epochs>10'; all executions without one.
        sort: Fields and values to sort by, separated by commas; descending with a minus: -metric:accuracy.
        columns: Fields and values to show, separated by commas; param:*, metric:* and in:* are all of them.
        limit: Largest number of executions (default: 50).
        after: Cursor at the end of the previous page.
        facets: Fields and values whose values are counted, separated by commas.
        group_by: Fields and values that group the executions, separated by commas.
        aggregate: Numbers of which each group has mean, deviation, minimum and maximum, separated by commas.
        as_json: Print one JSON document: total, executions, facets, groups, and after, the cursor of the next page.
        as_jsonl: Print one JSON document per line for each execution.
        as_csv: Print comma-separated values with a header line.
    """
    if as_json + as_jsonl + as_csv > 1:
        raise RequestError("--json, --jsonl and --csv exclude each other; give one of them")
    catalog = open_catalog()
    # Start-up time of the CLI: the catalog has imported it already.
    from prefect_executions.workbench.lookup import index_new  # noqa: PLC0415

    index_new(catalog.workbench)
    results = catalog.search(query, sort=_names(sort), limit=limit, after=after, columns=_names(columns))
    counted = results.facets(*_names(facets))
    groups = results.groups(*_names(group_by), aggregate=_names(aggregate)) if _names(group_by) else None
    if as_json:
        show_json(_document(results, counted, groups))
    elif as_jsonl:
        for row in results:
            sys.stdout.write(json.dumps(to_json(row), ensure_ascii=False) + "\n")
    elif as_csv:
        _show_csv(results)
    else:
        _show(results, counted, groups, chosen=bool(_names(columns)))
    for hint in results.hints:
        warn(f"note: {hint}")
    if results.after and (as_jsonl or as_csv or _has_rows(counted, groups)):
        warn(f"There are more; add:\n--after {results.after}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _show(results: SearchResults, facets: Mapping[str, Facet], groups: Groups | None, *, chosen: bool) -> None:
    for name, facet in facets.items():
        missing = [("(none)", facet.missing)] if facet.missing else []
        counts = [(_text(value), count) for value, count in facet.values]
        show_table((name_column(name), "executions"), [*counts, *missing], title=name)
    if groups:
        _show_groups(groups)
    if _has_rows(facets, groups):
        head = [VERSION if name == "version" and not chosen else _column(name) for name in results.columns]
        show_table(head, (tuple(map(_text, row)) for row in results.rows))
    if sys.stdout.isatty():
        say(f"{pluralize(results.total, 'execution')} found.")


def _has_rows(facets: Mapping[str, Facet], groups: Groups | None) -> bool:
    """Whether the output has the executions: on a terminal, counts replace them."""
    return not (facets or groups) or not sys.stdout.isatty()


def _column(name: str) -> Column:
    from prefect_executions.query.fields import BY_NAME, Kind  # noqa: PLC0415 - start-up time of the CLI

    kind = BY_NAME[name].kind if name in BY_NAME else None
    if name == "id":
        return id_column()
    if kind is Kind.TIME:
        return time_column(name)
    return digest_column(name, optional=False) if name in {"commit", "code"} else value_column(name)


def _show_groups(groups: Groups) -> None:
    """Show the groups, and a table for each number that is aggregated: one table of all would be too wide."""
    names = tuple(map(name_column, groups.by))
    counts = ((*map(_text, group.values), group.executions, _rate(group)) for group in groups)
    show_table((*names, "executions", "success"), counts, title="groups")
    for name, target in groups.measured.items():
        measured = ((group.values, group.measures[target]) for group in groups)
        numbers = ((values, (one.mean, one.sd, one.minimum, one.maximum)) for values, one in measured if one.count)
        rows = ((*map(_text, values), *map(partial(_number, target), four)) for values, four in numbers)
        show_table((*names, *map(value_column, ("mean", "sd", "minimum", "maximum"))), rows, title=name)


def _rate(group: Group) -> str:
    return "" if math.isnan(group.success_rate) else f"{group.success_rate:.1%}"


def _number(target: Target, number: float) -> str:
    from prefect_executions.query.fields import BY_NAME, Kind  # noqa: PLC0415 - start-up time of the CLI
    from prefect_executions.query.tree import FieldTarget  # noqa: PLC0415 - as above

    duration = isinstance(target, FieldTarget) and BY_NAME[target.name].kind is Kind.DURATION
    return str(_text(timedelta(seconds=number) if duration and math.isfinite(number) else number))


def _text(value: Any) -> Any:
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return "" if math.isnan(value) else format_number(value)
    return "" if value is None else value


def _show_csv(results: SearchResults) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(results.columns)
    table.writerows([_plain(cell) for cell in row] for row in results.rows)
    sys.stdout.write(escape_controls(text.getvalue(), lines=True))


def _plain(cell: Any) -> Any:
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < _EXACT:
        return int(cell)  # params and metrics are doubles, and a spreadsheet shows epochs as 24
    plain = to_json(cell)
    return json.dumps(plain, ensure_ascii=False) if isinstance(plain, list | dict) else plain


def _document(results: SearchResults, facets: Mapping[str, Facet], groups: Groups | None) -> dict[str, Any]:
    return {
        "query": results.query,
        "total": results.total,
        "executions": results.to_dicts(),
        "after": results.after,
        "facets": {name: _facet(facet) for name, facet in facets.items()},
        "groups": [_group(group, groups) for group in groups] if groups else [],
    }


def _facet(facet: Facet) -> dict[str, Any]:
    values = [{"value": value, "executions": count} for value, count in facet.values]
    return {"values": values, "missing": facet.missing, "distinct": facet.distinct}


def _group(group: Group, groups: Groups) -> dict[str, Any]:
    measures = {}
    for name, target in groups.measured.items():
        one = group.measures[target]
        numbers: Sequence[tuple[str, float]] = (
            *(("mean", one.mean), ("sd", one.sd), ("min", one.minimum), ("max", one.maximum)),
        )
        ids = {"minExecution": one.minimum_id, "maxExecution": one.maximum_id} if one.count else {}
        measures[name] = {"count": one.count, **{name: x for name, x in numbers if math.isfinite(x)}, **ids}
    rate = group.success_rate
    return {
        "values": dict(zip(groups.by, group.values, strict=True)),
        "executions": group.executions,
        "completed": group.completed,
        "failed": group.failed,
        "successRate": None if math.isnan(rate) else rate,
        "measures": measures,
    }
