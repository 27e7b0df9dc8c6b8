"""`executions remove`, `gc`, `retain`: deletion of executions, and of bundles that the archive has."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from cyclopts import Parameter

from prefect_executions.cli.arguments import Json, open_catalog, open_workbench, parse_time
from prefect_executions.cli.exit_codes import NOT_THERE, OK
from prefect_executions.cli.output import format_size, format_time, pluralize, say, say_words, show_json, warn
from prefect_executions.cli.tables import id_column, name_column, show_table, text_column, time_column
from prefect_executions.errors import RequestError
from prefect_executions.lifecycle.status import Status
from prefect_executions.settings import Settings


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RemovalOptions:
    """Options of the commands that remove something."""

    yes: bool = False
    """Remove them; without --yes, only list them."""
    dry_run: bool = False
    """Only list what would be removed and what is kept, as without --yes."""

    @property
    def confirmed(self) -> bool:
        """Whether to remove.

        Raises:
            RequestError: If both options are given.
        """
        if self.yes and self.dry_run:
            raise RequestError("--yes and --dry-run exclude each other; give one of them")
        return self.yes


_ONLY_LIST = RemovalOptions()


def remove(*executions: str, options: RemovalOptions = _ONLY_LIST, as_json: Json = False) -> int:
    """Remove executions from the archive, the workbench and the ledger.

    The exit code is 3 if one of them is kept because it has not been sealed.

    Args:
        executions: Ids or id prefixes.
        as_json: Print one JSON document: the removed executions, and why others are kept.
    """
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.operations.retention import damaged_seal, removable  # noqa: PLC0415
    from prefect_executions.operations.retention import remove as remove_one  # noqa: PLC0415

    if not executions:
        raise RequestError("give the ids of the executions to remove")
    confirmed, catalog = options.confirmed, open_catalog()
    found = sorted({catalog.find(prefix) for prefix in executions})
    kept = {execution_id: why for execution_id in found if (why := removable(catalog.workbench, execution_id))}
    ids = [execution_id for execution_id in found if execution_id not in kept]
    for execution_id in ids:
        if damage := damaged_seal(catalog.workbench, execution_id):
            warn(f"{damage}. What it had sealed cannot be compared with the checkpoints any more once it is removed")
    for execution_id in ids if confirmed else ():
        remove_one(catalog.workbench, execution_id, why="asked for", at=datetime.now(UTC))
    if as_json:
        show_json({"executions": ids, "removed": confirmed} | ({"kept": kept} if kept else {}))
    else:
        rows = ((each, "kept" if each in kept else _result(confirmed=confirmed), kept.get(each, "")) for each in found)
        show_table((id_column("execution"), "result", text_column("why")), rows)
        _summarize(pluralize(len(ids), "execution"), confirmed=confirmed)
    return NOT_THERE if kept else OK


def gc(
    *,
    older_than: str = "30d",
    status: Annotated[tuple[Status, ...], Parameter(show_default=False)] = (),
    options: RemovalOptions = _ONLY_LIST,
    as_json: Json = False,
) -> None:
    """Remove workbench copies of bundles that are completely archived.

    The archive and the ledger keep the executions.

    Args:
        older_than: Only bundles that ended so long ago (default: 30d), such as 12h, or before a date.
        status: Only bundles with this status (repeatable).
        as_json: Print one JSON document: each bundle, whether it is removed, and why not.
    """
    # Start-up time of the CLI, as above.
    from prefect_executions.operations.retention import clear_workbench  # noqa: PLC0415

    confirmed, before = options.confirmed, parse_time(older_than, datetime.now(UTC))
    bench = open_workbench(Settings.read())
    results = list(clear_workbench(bench, before=before, status=status, dry=not confirmed))
    if as_json:
        show_json({"dryRun": not confirmed, "bundles": results})
        return
    head = (id_column("execution"), "status", "size", "result", text_column("why"))
    rows = (
        (
            bundle.id,
            bundle.status or "",
            format_size(bundle.size),
            _result(bundle.result, confirmed=confirmed),
            bundle.why,
        )
        for bundle in results
    )
    show_table(head, rows)
    removed = [bundle for bundle in results if bundle.result == "removed"]
    size = format_size(sum(bundle.size for bundle in removed))
    chosen = f", or that are not {' or '.join(status)}" if status else ""
    say_words(f"Not listed: executions that are open, or that ended after {format_time(before)}{chosen}")
    _summarize(f"{pluralize(len(removed), 'bundle')} of {size}", confirmed=confirmed, place=" from the workbench")


def retain(*, options: RemovalOptions = _ONLY_LIST, as_json: Json = False) -> None:
    """Remove executions that are expired according to EXECUTIONS_RETENTION.

    Args:
        as_json: Print one JSON document: each execution, with the rule that removes it.
    """
    # Start-up time of the CLI, as above.
    from prefect_executions.operations.retention import judge_all, parse_rules, remove  # noqa: PLC0415

    confirmed, settings, now = options.confirmed, Settings.read(), datetime.now(UTC)
    rules = parse_rules(settings.retention)
    if not rules:
        raise RequestError("no retention rule is set; set EXECUTIONS_RETENTION, for example to 'count-words=90d'")
    bench = open_workbench(settings)
    judged = list(judge_all(bench, rules, now))
    expired = [entry for entry in judged if not isinstance(entry, str)]
    for entry in expired if confirmed else ():
        remove(bench, entry.id, why=f"retention: {entry.rule}", at=now)
    if as_json:
        show_json({"executions": expired, "removed": confirmed})
        return
    head = (
        id_column("execution"),
        name_column("method"),
        "status",
        time_column("ended"),
        name_column("rule"),
        "result",
    )
    rows = (
        (entry.id, entry.method, entry.status, format_time(entry.ended), entry.rule, _result(confirmed=confirmed))
        for entry in expired
    )
    show_table(head, rows)
    for why, count in sorted(Counter(entry for entry in judged if isinstance(entry, str)).items()):
        say(f"{pluralize(count, 'execution')} kept: {why}")
    _summarize(pluralize(len(expired), "execution"), confirmed=confirmed)


def _result(result: str = "removed", *, confirmed: bool) -> str:
    return "would be removed" if result == "removed" and not confirmed else result


def _summarize(what: str, *, confirmed: bool, place: str = "") -> None:
    say(f"{what} removed{place}" if confirmed else f"{what} would be removed{place}; do it with --yes")
