"""`executions watch`: a live view of running executions from Prefect's events."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

from cyclopts import Parameter

from prefect_executions.cli.arguments import Json, connect_local_server, open_catalog
from prefect_executions.cli.completion import Selected
from prefect_executions.cli.exit_codes import FAILED, OK
from prefect_executions.cli.output import escape_controls, format_duration, say, terminal, to_json, warn
from prefect_executions.cli.selection import select
from prefect_executions.cli.tables import Column, id_column, name_column, table_of
from prefect_executions.errors import LedgerError, NotFoundError, RequestError
from prefect_executions.lifecycle.status import Status
from prefect_executions.query.filter import Filter
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect_executions.events import ExecutionEvent
    from prefect_executions.operations.watch import Watched
    from prefect_executions.workbench.catalog import Catalog

_HEAD = (
    id_column(),
    name_column("method"),
    "status",
    "progress",
    "elapsed",
    Column("message", least=20, optional=True),
)
_OPEN = Filter(status=tuple(status for status in Status if not status.terminal))
_NOT_ENDED = "NOT status:ended"
_MOST_READ = 200
_LINES_AROUND = 3  # the header, the line below the table and the prompt


def watch(
    *executions: Selected,
    everything: Annotated[bool, Parameter(name="--all")] = False,
    as_json: Json = False,
) -> int:
    """Watch running executions: status, progress, elapsed time, message.

    With ids, it ends when all of these executions have ended: with 0 if all
    completed, else with 1.

    Args:
        executions: Ids or id prefixes, for a flow run that has not started its full id; or one query such as
            'method:mnist', for the open executions that match now.
        everything: Watch all open and new executions until interrupted.
        as_json: Print one JSON object per line for each change.
    """
    if everything == bool(executions):
        raise RequestError("give the ids of the executions to watch, a query, or --all")
    settings = Settings.read()
    catalog = open_catalog(settings)
    chosen = None if everything else select(catalog, executions, only=_NOT_ENDED, find=partial(_find, catalog)).ids
    view = _Watch(catalog, settings, chosen)
    lines = as_json or not sys.stdout.isatty()
    with _lines(view, as_json=as_json) if lines else _live(view):
        view.run()
    return OK if all(entry.status is Status.COMPLETED for entry in view.latest.values()) else FAILED


class _Watch:
    """The latest view of each watched execution, by id, and the function to call at each change."""

    def __init__(self, catalog: Catalog, settings: Settings, ids: Sequence[str] | None) -> None:
        self._catalog = catalog
        self._settings = settings
        self._ids = ids
        self.latest: dict[str, Watched] = {}
        self.on_change: Callable[[Watched, datetime], None] | None = None
        self._disconnected = False

    def run(self) -> None:
        """Follow Prefect's events until all named executions have ended."""
        self._refresh()
        if self._complete():
            return
        # Prefect takes seconds to import; --help does not need it.
        from prefect_executions.prefect_api import events as prefect_events  # noqa: PLC0415

        connect_local_server(self._settings, start=False)
        with closing(prefect_events.listen(self._ids)) as stream:
            for item in stream:
                if isinstance(item, prefect_events.StreamState):
                    self._connection_changed(connected=item.connected, reason=item.reason)
                else:
                    self._apply(item)
                if self._complete():
                    return

    def _complete(self) -> bool:
        return self._ids is not None and all(entry.over for entry in self.latest.values())

    def _connection_changed(self, *, connected: bool, reason: str | None) -> None:
        if not connected:
            self._disconnected = True
            warn(f"Lost the connection to Prefect's event stream ({reason}); reconnecting")
            return
        if self._disconnected:
            self._disconnected = False
            warn("Reconnected to Prefect's event stream")
        self._refresh()  # events may have been missed before this connection

    def _refresh(self) -> None:
        """Read the current state from the workbench, the archive and the ledger."""
        # Start-up time of the CLI: archive and bundles come with it.
        from prefect_executions.operations.watch import newer  # noqa: PLC0415

        for entry in list(self._read()):  # all or none: a missing record must be reported before any line
            earlier = self.latest.get(entry.id)
            self._put(newer(earlier, entry) if earlier else entry, datetime.now(UTC))

    def _read(self) -> Iterator[Watched]:
        from prefect_executions.operations.watch import Watched, from_record, from_row  # noqa: PLC0415 - as above

        if self._ids is None:
            try:
                rows = self._catalog.workbench.ledger.list(_OPEN, limit=_MOST_READ).rows
            except LedgerError as error:
                warn(f"The ledger cannot be read, so only new and changing executions are shown: {error}")
                return
            yield from map(from_row, reversed(rows))
            return
        for execution_id in self._ids:
            try:
                yield from_record(self._catalog.record(execution_id))
            except NotFoundError:  # its flow run has not started
                yield Watched(id=execution_id)

    def _apply(self, event: ExecutionEvent) -> None:
        from prefect_executions.operations.watch import Watched, apply_event  # noqa: PLC0415 - as above

        earlier = self.latest.get(event.execution_id, Watched(id=event.execution_id))
        self._put(apply_event(earlier, event), event.time)

    def _put(self, entry: Watched, at: datetime) -> None:
        if self.latest.get(entry.id) != entry:
            self.latest[entry.id] = entry
            if self.on_change is not None:
                self.on_change(entry, at)


def _find(catalog: Catalog, prefix: str) -> str:
    """The full id of an execution, or of a flow run in Prefect that has not started."""
    try:
        return catalog.find(prefix)
    except NotFoundError:
        with suppress(ValueError):
            flow_run_id = UUID(prefix)
            from prefect_executions.prefect_api import flow_runs  # noqa: PLC0415 - as above

            if flow_runs.flow_run(flow_run_id) is not None:
                return str(flow_run_id)
        raise


@contextmanager
def _lines(view: _Watch, *, as_json: bool) -> Iterator[None]:
    """Print one line for each change."""

    def show(entry: Watched, at: datetime) -> None:
        if as_json:
            say(json.dumps(_as_json(entry, at)))
        else:
            say("\t".join([f"{at:%Y-%m-%dT%H:%M:%SZ}", *map(escape_controls, _cells(entry, at))]))

    view.on_change = show
    yield


def _as_json(entry: Watched, at: datetime) -> dict[str, Any]:
    return {
        "time": to_json(at),
        "id": entry.id,
        "method": entry.method,
        "status": to_json(entry.status),
        "progress": entry.progress,
        "elapsed": to_json(entry.elapsed(at)),
        "message": entry.message,
    }


@contextmanager
def _live(view: _Watch) -> Iterator[None]:
    """Show a live table; ended executions stay while there is space."""
    # Only a terminal needs it, and start-up time of the CLI.
    from rich.console import Group  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = terminal()

    def table() -> Any:
        now, entries = datetime.now(UTC), list(view.latest.values())
        shown = _shown(entries, space=max(console.height - _LINES_AROUND, 1))
        hidden = sum(not entry.over for entry in entries) - sum(not entry.over for entry in shown)
        below = [Text(f"and {hidden} more that have not ended", "dim")] if hidden else []
        if not entries:
            return Text("No execution is open; new ones appear here.", "dim")
        return Group(table_of(_HEAD, [_cells(entry, now) for entry in shown], width=console.width), *below)

    with Live(console=console, get_renderable=table, refresh_per_second=4, redirect_stdout=False, redirect_stderr=True):
        yield


def _shown(entries: list[Watched], *, space: int) -> list[Watched]:
    """All open executions, the newest if there are too many, and as many of the last ended ones as fit."""
    open_ones = [entry for entry in entries if not entry.over][-space:]
    left = space - len(open_ones)
    ended = sorted(
        (entry for entry in entries if entry.over and entry.ended), key=lambda entry: entry.ended or datetime.now(UTC)
    )
    chosen = {entry.id for entry in [*open_ones, *(ended[-left:] if left else [])]}
    return [entry for entry in entries if entry.id in chosen]


def _cells(entry: Watched, now: datetime) -> tuple[str, ...]:
    return (
        entry.id,
        entry.method,
        entry.status or "-",
        "" if entry.progress is None else f"{entry.progress:.0f} %",
        format_duration(entry.elapsed(now)),
        entry.message or "",
    )
