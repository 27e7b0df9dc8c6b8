"""`executions remove`, `gc`, `retain`: deletion of executions, and of bundles that the archive has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Protocol

from cyclopts import Parameter

from prefect_executions.cli.arguments import Json, open_catalog, open_workbench, parse_time
from prefect_executions.cli.completion import Selected
from prefect_executions.cli.exit_codes import NOT_THERE, OK
from prefect_executions.cli.output import (
    confirmed,
    format_size,
    format_time,
    pluralize,
    say,
    say_words,
    show_json,
    warn,
)
from prefect_executions.cli.selection import select
from prefect_executions.cli.tables import id_column, name_column, show_table, text_column, time_column
from prefect_executions.errors import RequestError
from prefect_executions.lifecycle.status import Status
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect_executions.operations.retention import Cleared


class Show(Protocol):
    """Prints what is removed, or would be."""

    def __call__(self, *, removed: bool) -> None: ...


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RemovalOptions:
    """Options of the commands that remove something."""

    yes: bool = False
    """Remove them without confirmation."""
    dry_run: bool = False
    """Only list what would be removed and what is kept."""

    def check(self) -> None:
        """Refuse contradictory options.

        Raises:
            RequestError: If both options are given.
        """
        if self.yes and self.dry_run:
            raise RequestError("--yes and --dry-run exclude each other; give one of them")

    def carry_out(
        self, what: str, number: int, show: Show, work: Callable[[], object], *, as_json: bool, place: str = ""
    ) -> None:
        """Remove *number* things by *work* if that is confirmed, and *show* them.

        Without an option, they are shown and a person at the terminal is asked; JSON is
        printed once, with the result.

        Raises:
            RequestError: If it must ask and there is no terminal; they have been shown.
        """
        asked = number > 0 and not self.yes and not self.dry_run
        if asked and not as_json:
            show(removed=False)
        answer = confirmed(f"Remove {what}?") if asked else self.yes
        if answer:
            work()
        if as_json or not asked:
            show(removed=bool(answer))
        if answer is None:
            raise RequestError("nothing was removed: confirm with --yes, or only list with --dry-run")
        if not as_json:
            say(f"{what} removed{place}" if answer else f"{what} would be removed{place}; do it with --yes")


_ASK = RemovalOptions()


def remove(*executions: Selected, options: RemovalOptions = _ASK, as_json: Json = False) -> int:
    """Remove executions from the archive, the workbench and the ledger.

    The exit code is 3 if one of them is kept because it has not been sealed.

    Args:
        executions: Ids or id prefixes, or one query such as 'status:failed started:<-30d'.
        as_json: Print one JSON document: the removed executions, and why others are kept.
    """
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.operations.retention import damaged_seal, removable  # noqa: PLC0415
    from prefect_executions.operations.retention import remove as remove_one  # noqa: PLC0415

    if not executions:
        raise RequestError("give the ids of the executions to remove, or a query")
    options.check()
    bench, found = (catalog := open_catalog()).workbench, sorted(select(catalog, executions).ids)
    kept = {execution_id: why for execution_id in found if (why := removable(bench, execution_id))}
    ids = [execution_id for execution_id in found if execution_id not in kept]
    for execution_id in ids:
        if damage := damaged_seal(bench, execution_id):
            warn(f"{damage}. What it had sealed cannot be compared with the checkpoints any more once it is removed")

    def show(*, removed: bool) -> None:
        if as_json:
            show_json({"executions": ids, "removed": removed} | ({"kept": kept} if kept else {}))
            return
        rows = ((each, "kept" if each in kept else _result(removed=removed), kept.get(each, "")) for each in found)
        show_table((id_column("execution"), "result", text_column("why")), rows)

    def work() -> None:
        for execution_id in ids:
            remove_one(bench, execution_id, why="asked for", at=datetime.now(UTC))

    options.carry_out(pluralize(len(ids), "execution"), len(ids), show, work, as_json=as_json)
    return NOT_THERE if kept else OK


def gc(
    *,
    older_than: str = "30d",
    status: Annotated[tuple[Status, ...], Parameter(show_default=False)] = (),
    options: RemovalOptions = _ASK,
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

    options.check()
    before = parse_time(older_than, datetime.now(UTC))
    bench = open_workbench(Settings.read())
    results = list(clear_workbench(bench, before=before, status=status, dry=not options.yes))

    def show(*, removed: bool) -> None:
        if as_json:
            show_json({"dryRun": not removed, "bundles": results})
            return
        head = (id_column("execution"), "status", "size", "result", text_column("why"))
        show_table(head, (_bundle_cells(bundle, removed=removed) for bundle in results))
        chosen = f", or that are not {' or '.join(status)}" if status else ""
        say_words(f"Not listed: executions that are open, or that ended after {format_time(before)}{chosen}")

    def work() -> None:
        if not options.yes:
            results[:] = clear_workbench(bench, before=before, status=status, dry=False)

    gone = [bundle for bundle in results if bundle.result == "removed"]
    size = format_size(sum(bundle.size for bundle in gone))
    what = f"{pluralize(len(gone), 'bundle')} of {size}"
    options.carry_out(what, len(gone), show, work, as_json=as_json, place=" from the workbench")


def _bundle_cells(bundle: Cleared, *, removed: bool) -> tuple[str, ...]:
    result = _result(removed=removed) if bundle.result == "removed" else bundle.result
    return bundle.id, bundle.status or "", format_size(bundle.size), result, bundle.why


def retain(*executions: Selected, options: RemovalOptions = _ASK, as_json: Json = False) -> None:
    """Remove executions that are expired according to EXECUTIONS_RETENTION.

    Args:
        executions: Only these executions: ids or id prefixes, or one query such as 'tag:draft'.
        as_json: Print one JSON document: each execution, with the rule that removes it.
    """
    # Start-up time of the CLI, as above.
    from prefect_executions.operations.retention import judge_all, parse_rules, remove  # noqa: PLC0415

    options.check()
    settings, now = Settings.read(), datetime.now(UTC)
    rules = parse_rules(settings.retention)
    if not rules:
        raise RequestError("no retention rule is set; set EXECUTIONS_RETENTION, for example to 'count-words=90d'")
    catalog = open_catalog(settings)
    only = select(catalog, executions).ids if executions else None
    judged = list(judge_all(catalog.workbench, rules, now, only=only))
    expired = [entry for entry in judged if not isinstance(entry, str)]

    def show(*, removed: bool) -> None:
        if as_json:
            show_json({"executions": expired, "removed": removed})
            return
        names = (name_column("method"), "status", time_column("ended"), name_column("rule"), "result")
        rows = (
            (entry.id, entry.method, entry.status, format_time(entry.ended), entry.rule, _result(removed=removed))
            for entry in expired
        )
        show_table((id_column("execution"), *names), rows)
        for why, count in sorted(Counter(entry for entry in judged if isinstance(entry, str)).items()):
            say(f"{pluralize(count, 'execution')} kept: {why}")

    def work() -> None:
        for entry in expired:
            remove(catalog.workbench, entry.id, why=f"retention: {entry.rule}", at=now)

    options.carry_out(pluralize(len(expired), "execution"), len(expired), show, work, as_json=as_json)


def _result(*, removed: bool) -> str:
    return "removed" if removed else "would be removed"
