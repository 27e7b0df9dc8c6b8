"""`executions remove`, `gc`, `retain`: executions and copies that are not needed any more."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from cyclopts import Parameter

from prefect_executions.cli.arguments import Json, open_catalog, open_workbench, parse_time
from prefect_executions.cli.output import format_size, format_time, pluralize, say, show_json, show_table
from prefect_executions.errors import RequestError
from prefect_executions.lifecycle.status import Status
from prefect_executions.settings import Settings


def remove(*executions: str, yes: bool = False, as_json: Json = False) -> None:
    """Remove executions for good: from the archive, this workbench and the ledger.

    Args:
        executions: Their ids, or beginnings of them.
        yes: Do it; without, it is only shown what would be removed.
        as_json: One JSON document.
    """
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.operations.retention import remove as remove_one  # noqa: PLC0415

    if not executions:
        raise RequestError("name the executions that are to be removed")
    catalog = open_catalog()
    ids = sorted({catalog.find(one) for one in executions})
    for execution_id in ids if yes else ():
        remove_one(catalog.workbench, execution_id, why="asked for", at=datetime.now(UTC))
    if as_json:
        show_json({"executions": ids, "removed": yes})
        return
    show_table(("execution",), ([execution_id] for execution_id in ids))
    what = pluralize(len(ids), "execution")
    say(f"{what} removed" if yes else f"{what} would be removed; do it with --yes")


def gc(
    *,
    older_than: str = "30d",
    status: Annotated[tuple[Status, ...], Parameter(show_default=False)] = (),
    dry_run: bool = False,
    as_json: Json = False,
) -> None:
    """Remove bundles from the workbench that the archive has whole; the executions stay.

    Args:
        older_than: Those that ended so long ago: 30d, 12h, or before a date.
        status: Those with this status; may be given several times.
        dry_run: Show what would go, and remove nothing.
        as_json: One JSON document: each bundle, whether it goes, and why it stays.
    """
    # Start-up time of the CLI, as above.
    from prefect_executions.operations.retention import clear_workbench  # noqa: PLC0415

    before = parse_time(older_than, datetime.now(UTC))
    told = list(clear_workbench(open_workbench(Settings.read()), before=before, status=status, dry=dry_run))
    if as_json:
        show_json({"dryRun": dry_run, "bundles": told})
        return
    head = ("execution", "status", "size", "result", "why")
    words = {"removed": "would be removed"} if dry_run else {}
    show_table(
        head,
        ((one.id, one.status or "", format_size(one.size), words.get(one.result, one.result), one.why) for one in told),
    )
    gone = [one for one in told if one.result == "removed"]
    what = f"{pluralize(len(gone), 'bundle')} of {format_size(sum(one.size for one in gone))}"
    say(f"{what} would be removed" if dry_run else f"{what} removed from the workbench")


def retain(*, yes: bool = False, as_json: Json = False) -> None:
    """Remove the executions whose time is over by the rules of EXECUTIONS_RETENTION.

    Args:
        yes: Do it; without, it is only shown what would be removed.
        as_json: One JSON document: each execution, with the rule that removes it.
    """
    # Start-up time of the CLI, as above.
    from prefect_executions.operations.retention import expired, parse_rules, remove  # noqa: PLC0415

    settings, now = Settings.read(), datetime.now(UTC)
    rules = parse_rules(settings.retention)
    if not rules:
        raise RequestError("there is no rule of retention; set EXECUTIONS_RETENTION, for example to 'count-words=90d'")
    bench = open_workbench(settings)
    over = list(expired(bench, rules, now))
    for one in over if yes else ():
        remove(bench, one.id, why=f"retention: {one.rule}", at=now)
    if as_json:
        show_json({"executions": over, "removed": yes})
        return
    head = ("execution", "method", "status", "ended", "rule")
    show_table(head, ((one.id, one.method, one.status, format_time(one.ended), one.rule) for one in over))
    what = pluralize(len(over), "execution")
    say(f"{what} removed" if yes else f"{what} would be removed; do it with --yes")
