"""`executions list`, `executions methods`: queries of the ledger."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from prefect_executions.cli.arguments import NO_FILTER, FilterOptions, Json, open_catalog
from prefect_executions.cli.completion import Selected
from prefect_executions.cli.output import (
    escape_controls,
    format_duration,
    format_time,
    say,
    show_facts,
    show_json,
    to_json,
    warn,
)
from prefect_executions.cli.selection import query_among, search_now, select
from prefect_executions.cli.tables import (
    VERSION,
    Column,
    id_column,
    name_column,
    show_table,
    text_column,
    time_column,
)
from prefect_executions.errors import ExecutionsError, RequestError
from prefect_executions.lifecycle.status import Reason, Status

if TYPE_CHECKING:
    from prefect_executions.ledger.rows import MethodRow, Page, Row
    from prefect_executions.query.filter import Filter
    from prefect_executions.workbench.catalog import Catalog

methods = App(name="methods", help="List and show recorded Methods.")

DEFAULT_LIMIT = 50
_MOST_NAMED = 5
_SHORT_ID = 8

_HEAD = (
    id_column(),
    "status",
    name_column("method", 20),
    VERSION,
    time_column("started"),
    "took",
    Column("archive", optional=True),
)


def list_executions(
    *executions: Selected,
    status: Annotated[tuple[Status, ...], Parameter(consume_multiple=True, show_default=False)] = (),
    filters: FilterOptions = NO_FILTER,
    limit: int = DEFAULT_LIMIT,
    after: str | None = None,
    as_json: Json = False,
    as_csv: Annotated[bool, Parameter(name="--csv")] = False,
) -> None:
    """List executions, newest first.

    Args:
        executions: Ids or id prefixes, or one query such as 'epochs>10'; all executions without one.
        status: Only executions with this status (repeatable).
        limit: Largest number of executions (default: 50).
        after: Cursor at the end of the previous page.
        as_json: Print one JSON document: executions, and after, the cursor of the next page.
        as_csv: Print comma-separated values with a header line.
    """
    if as_json and as_csv:
        raise RequestError("--json and --csv exclude each other; give one of them")
    criteria = filters.filter(datetime.now(UTC), status)
    catalog = open_catalog()
    page = _page(catalog, executions, criteria, limit=limit, after=after)
    if as_json:
        show_json({"executions": page.rows, "after": page.after})
    elif as_csv:
        _show_csv(page)
    else:
        show_table(_HEAD, _cells(page))
        _warn_of_dead(catalog, page)
    if page.after and not as_json:
        warn(f"There are more; add:\n--after {page.after}")
    elif not page.rows and sys.stdout.isatty():
        say("No executions found. Next: executions run METHOD; if the ledger is lost: executions ledger rebuild")


def _warn_of_dead(catalog: Catalog, page: Page) -> None:
    """Name the executions of *page* that look open although their process on this machine is gone."""
    dead = [row.id for row in page.rows if not row.status.terminal and _is_dead(catalog, row.id)]
    if dead:
        verb = "processes are" if len(dead) > 1 else "process is"
        more = f" and {len(dead) - _MOST_NAMED} more" if len(dead) > _MOST_NAMED else ""
        ids = ", ".join(each[:_SHORT_ID] for each in dead[:_MOST_NAMED])
        warn(f"Not sealed, and the {verb} gone: {ids}{more}\nNext: executions settle --once")


def _is_dead(catalog: Catalog, execution_id: str) -> bool:
    try:
        return catalog.dead_process(execution_id) is not None
    except ExecutionsError:  # it is damaged; settle reports it
        return False


def _page(catalog: Catalog, words: Sequence[str], criteria: Filter, *, limit: int, after: str | None) -> Page:
    # Start-up time of the CLI: the catalog has imported them already.
    from prefect_executions.ledger.rows import Page  # noqa: PLC0415
    from prefect_executions.workbench.lookup import index_new  # noqa: PLC0415

    ledger, query = catalog.workbench.ledger, query_among(words)
    if query is not None:
        found = search_now(catalog, query, criteria, limit=limit, after=after)
        return Page(rows=ledger.get_many(found.ids), after=found.after)
    index_new(catalog.workbench)
    if words:
        return Page(rows=ledger.get_many(select(catalog, words, criteria).ids), after=None)
    return ledger.list(criteria, limit=limit, after=after)


@methods.command(name="list")
def list_methods(*, as_json: Json = False) -> None:
    """List recorded Methods and their versions.

    Args:
        as_json: Print one JSON document.
    """
    rows = open_catalog().workbench.ledger.methods()
    if as_json:
        show_json({"methods": [_as_json(row) for row in rows]})
        return
    title, kind = Column("title", least=16, optional=True), Column("type", least=12, optional=True)
    head = (
        name_column("method", 20),
        VERSION._replace(optional=False),
        title,
        kind,
        "executions",
        time_column("last run"),
    )
    show_table(
        head,
        ((row.id, row.version, row.title, row.type or "", row.executions, format_time(row.last_seen)) for row in rows),
    )


@methods.command(name="show")
def show_method(method: str, version: str | None = None, /, *, as_json: Json = False) -> None:
    """Show a Method: its inputs, outputs and code.

    Args:
        method: Id of the Method.
        version: Version of the Method (default: the last one that ran).
        as_json: Print one JSON document: the Method as an OGC process description, and its run times.
    """
    row = open_catalog().workbench.ledger.method(method, version)
    if as_json:
        show_json(_as_json(row) | {"description": json.loads(row.descriptor)})
        return
    descriptor = json.loads(row.descriptor)
    code = descriptor.get("code") or {}
    repository = code.get("repository") or {}
    show_facts(
        [
            ("method", row.id),
            ("version", row.version),
            ("title", row.title),
            ("type", row.type),
            ("description", row.description),
            ("entrypoint", code.get("entrypoint")),
            ("code", code.get("sha256")),
            ("commit", repository.get("commit")),
            ("executions", row.executions),
            ("first run", format_time(row.first_seen)),
            ("last run", format_time(row.last_seen)),
        ]
    )
    show_table((name_column("name"), text_column("schema")), _described(descriptor.get("inputs")), title="input")
    show_table((name_column("name"), text_column("schema")), _described(descriptor.get("outputs")), title="output")


def _cells(page: Page) -> Iterator[tuple[object, ...]]:
    for row in page.rows:
        started, took = format_time(row.started or row.first_known), _took(row)
        yield row.id, row.status, row.method_id, row.method_version, started, took, row.archive


def _took(row: Row) -> str:
    # An end that was found later is earlier than the last entry of the history; two clocks may differ as well.
    dead = row.reason in {Reason.CRASHED, Reason.LOST}
    found_later = dead and row.finished is not None and row.finished < row.updated
    return f"{'≥ ' if found_later else ''}{format_duration(row.duration)}"


def _show_csv(page: Page) -> None:
    # Start-up time of the CLI: the open ledger has imported it already.
    from prefect_executions.ledger.rows import ROW_COLUMNS  # noqa: PLC0415

    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(ROW_COLUMNS)
    table.writerows([to_json(getattr(row, name)) for name in ROW_COLUMNS] for row in page.rows)
    sys.stdout.write(escape_controls(text.getvalue(), lines=True))


def _as_json(row: MethodRow) -> dict[str, object]:
    return {name: value for name, value in to_json(row).items() if name != "descriptor"}


def _described(parts: dict[str, dict[str, object]] | None) -> list[tuple[str, str]]:
    return [
        (name, json.dumps(part.get("schema", {}), ensure_ascii=False, sort_keys=True))
        for name, part in (parts or {}).items()
    ]
