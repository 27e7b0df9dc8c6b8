"""`executions remove`, `gc`, `retain`: deletion of executions, and of bundles that the archive has."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from cyclopts import Parameter

from prefect_executions.cli.arguments import Json, open_catalog, open_workbench, parse_time
from prefect_executions.cli.output import format_size, format_time, pluralize, say, show_json, warn
from prefect_executions.cli.tables import id_column, name_column, show_table, text_column, time_column
from prefect_executions.errors import RequestError
from prefect_executions.lifecycle.status import Status
from prefect_executions.settings import Settings


def remove(*executions: str, yes: bool = False, as_json: Json = False) -> None:
    """Remove executions from the archive, the workbench and the ledger.

    Args:
        executions: Ids or id prefixes.
        yes: Remove them; without --yes, only list them.
        as_json: Print one JSON document.
    """
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.operations.retention import damaged_seal  # noqa: PLC0415
    from prefect_executions.operations.retention import remove as remove_one  # noqa: PLC0415

    if not executions:
        raise RequestError("give the ids of the executions to remove")
    catalog = open_catalog()
    ids = sorted({catalog.find(prefix) for prefix in executions})
    for execution_id in ids:
        if damage := damaged_seal(catalog.workbench, execution_id):
            warn(f"{damage}. What it had sealed cannot be compared with the checkpoints any more once it is removed")
    for execution_id in ids if yes else ():
        remove_one(catalog.workbench, execution_id, why="asked for", at=datetime.now(UTC))
    if as_json:
        show_json({"executions": ids, "removed": yes})
        return
    show_table((id_column("execution"),), ([execution_id] for execution_id in ids))
    what = pluralize(len(ids), "execution")
    say(f"{what} removed" if yes else f"{what} would be removed; do it with --yes")


def gc(
    *,
    older_than: str = "30d",
    status: Annotated[tuple[Status, ...], Parameter(show_default=False)] = (),
    dry_run: bool = False,
    as_json: Json = False,
) -> None:
    """Remove workbench copies of bundles that are completely archived.

    Args:
        older_than: Only bundles that ended so long ago (default: 30d), such as 12h, or before a date.
        status: Only bundles with this status (repeatable).
        dry_run: List what would be removed, and remove nothing.
        as_json: Print one JSON document: each bundle, whether it is removed, and why not.
    """
    # Start-up time of the CLI, as above.
    from prefect_executions.operations.retention import clear_workbench  # noqa: PLC0415

    before = parse_time(older_than, datetime.now(UTC))
    results = list(clear_workbench(open_workbench(Settings.read()), before=before, status=status, dry=dry_run))
    if as_json:
        show_json({"dryRun": dry_run, "bundles": results})
        return
    head = (id_column("execution"), "status", "size", "result", text_column("why"))
    words = {"removed": "would be removed"} if dry_run else {}
    rows = (
        (bundle.id, bundle.status or "", format_size(bundle.size), words.get(bundle.result, bundle.result), bundle.why)
        for bundle in results
    )
    show_table(head, rows)
    removed = [bundle for bundle in results if bundle.result == "removed"]
    what = f"{pluralize(len(removed), 'bundle')} of {format_size(sum(bundle.size for bundle in removed))}"
    say(f"{what} would be removed" if dry_run else f"{what} removed from the workbench")


def retain(*, yes: bool = False, as_json: Json = False) -> None:
    """Remove executions that are expired according to EXECUTIONS_RETENTION.

    Args:
        yes: Remove them; without --yes, only list them.
        as_json: Print one JSON document: each execution, with the rule that removes it.
    """
    # Start-up time of the CLI, as above.
    from prefect_executions.operations.retention import expired, parse_rules, remove  # noqa: PLC0415

    settings, now = Settings.read(), datetime.now(UTC)
    rules = parse_rules(settings.retention)
    if not rules:
        raise RequestError("no retention rule is set; set EXECUTIONS_RETENTION, for example to 'count-words=90d'")
    bench = open_workbench(settings)
    removable = list(expired(bench, rules, now))
    for entry in removable if yes else ():
        remove(bench, entry.id, why=f"retention: {entry.rule}", at=now)
    if as_json:
        show_json({"executions": removable, "removed": yes})
        return
    head = (id_column("execution"), name_column("method"), "status", time_column("ended"), name_column("rule"))
    rows = ((entry.id, entry.method, entry.status, format_time(entry.ended), entry.rule) for entry in removable)
    show_table(head, rows)
    what = pluralize(len(removable), "execution")
    say(f"{what} removed" if yes else f"{what} would be removed; do it with --yes")
