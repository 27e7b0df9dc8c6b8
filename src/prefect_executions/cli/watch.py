"""`executions watch`: executions as they go on, told by Prefect's events."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

from cyclopts import Parameter

from prefect_executions.cli.arguments import Json, open_catalog
from prefect_executions.cli.exit_codes import FAILED, OK
from prefect_executions.cli.output import escape_controls, format_duration, say, table_of, to_json, warn
from prefect_executions.errors import LedgerError, NotFoundError, RequestError
from prefect_executions.lifecycle.status import Status
from prefect_executions.query.filter import Filter

if TYPE_CHECKING:
    from prefect_executions.events import ExecutionEvent
    from prefect_executions.operations.watch import Watched
    from prefect_executions.workbench.catalog import Catalog

_HEAD = ("id", "method", "status", "progress", "elapsed", "message")
_OPEN = Filter(status=tuple(status for status in Status if not status.terminal))
_MOST_READ = 200
_MOST_SHOWN = 30


def watch(
    *executions: str,
    everything: Annotated[bool, Parameter(name="--all")] = False,
    as_json: Json = False,
) -> int:
    """Watch executions as they go on: status, progress, elapsed time, message.

    It listens to Prefect's events. It ends when all that were named have ended,
    with 0 if all of them completed, else with 1.

    Args:
        executions: Their ids, or the beginnings of them; the id of a flow run that is still to start, in full.
        everything: Watch all that are open, and all that begin, until it is interrupted.
        as_json: One JSON object a line for each change.
    """
    if everything == bool(executions):
        raise RequestError("name the executions to watch, or give --all")
    catalog = open_catalog()
    watching = _Watching(catalog, None if everything else [_find(catalog, one) for one in executions])
    lines = as_json or not sys.stdout.isatty()
    with _lines(watching, as_json=as_json) if lines else _live(watching):
        watching.go()
    return OK if all(one.status is Status.COMPLETED for one in watching.seen.values()) else FAILED


class _Watching:
    """The executions that are watched, by id, and who is told of each change."""

    def __init__(self, catalog: Catalog, ids: list[str] | None) -> None:
        self._catalog = catalog
        self._ids = ids
        self.seen: dict[str, Watched] = {}
        self.changed: Callable[[Watched, datetime], None] | None = None
        self.away: str | None = None

    def go(self) -> None:
        """Listen until all that were named have ended."""
        for found in self._read():
            self._put(found, datetime.now(UTC))
        if self._over():
            return
        # Prefect takes seconds to import, and --help needs none.
        from prefect_executions.prefect_api import events as prefect_events  # noqa: PLC0415

        with closing(prefect_events.listen(self._ids)) as stream:
            for word in stream:
                if isinstance(word, prefect_events.StreamState):
                    self._connected(there=word.connected, why=word.reason)
                else:
                    self._hear(word)
                if self._over():
                    return

    def _over(self) -> bool:
        return self._ids is not None and all(one.over for one in self.seen.values())

    def _connected(self, *, there: bool, why: str | None) -> None:
        """Read what may have been missed meanwhile, once for each connection."""
        if not there:
            self.away = why
            warn(f"Prefect's event stream broke ({why}); trying again")
            return
        if self.away is not None:
            self.away = None
            warn("Prefect's event stream is there again")
        for found in self._read():
            self._put(found, datetime.now(UTC))

    def _read(self) -> Iterator[Watched]:
        # Start-up time of the CLI: archive and bundles come with it.
        from prefect_executions.operations.watch import Watched, from_record, from_row, newer  # noqa: PLC0415

        if self._ids is None:
            try:
                rows = self._catalog.workbench.ledger.list(_OPEN, limit=_MOST_READ).rows
            except LedgerError as error:
                warn(f"The ledger cannot be read, so only what begins or changes now is seen: {error}")
                return
            read = [from_row(row) for row in reversed(rows)]
        else:
            read = []
            for execution_id in self._ids:
                try:
                    read.append(from_record(self._catalog.record(execution_id)))
                except NotFoundError:  # its flow run has not begun
                    read.append(Watched(id=execution_id))
        for found in read:
            before = self.seen.get(found.id)
            yield newer(before, found) if before else found

    def _hear(self, heard: ExecutionEvent) -> None:
        from prefect_executions.operations.watch import Watched, apply_event  # noqa: PLC0415 - as above

        self._put(apply_event(self.seen.get(heard.execution_id, Watched(id=heard.execution_id)), heard), heard.time)

    def _put(self, one: Watched, at: datetime) -> None:
        if self.seen.get(one.id) != one:
            self.seen[one.id] = one
            if self.changed is not None:
                self.changed(one, at)


def _find(catalog: Catalog, asked: str) -> str:
    """The full id that is meant; that of a flow run which Prefect knows and nobody has begun is taken, too."""
    try:
        return catalog.find(asked)
    except NotFoundError:
        with suppress(ValueError):
            flow_run_id = UUID(asked)
            from prefect_executions.prefect_api import flow_runs  # noqa: PLC0415 - as above

            if flow_runs.flow_run(flow_run_id) is not None:
                return str(flow_run_id)
        raise


@contextmanager
def _lines(watching: _Watching, *, as_json: bool) -> Iterator[None]:
    """One line for each change."""

    def show(one: Watched, at: datetime) -> None:
        if as_json:
            say(json.dumps(_as_json(one, at)))
        else:
            say("\t".join([f"{at:%Y-%m-%dT%H:%M:%SZ}", *map(escape_controls, _cells(one, at))]))

    watching.changed = show
    yield


def _as_json(one: Watched, at: datetime) -> dict[str, Any]:
    return {
        "time": to_json(at),
        "id": one.id,
        "method": one.method,
        "status": to_json(one.status),
        "progress": one.progress,
        "elapsed": to_json(one.elapsed(at)),
        "message": one.message,
    }


@contextmanager
def _live(watching: _Watching) -> Iterator[None]:
    """A table that is always up to date; what has ended stays until there are too many."""
    from rich.live import Live  # noqa: PLC0415 - only a terminal needs it, and start-up time of the CLI

    def table() -> Any:
        now = datetime.now(UTC)
        shown = _shown(list(watching.seen.values()))
        return table_of(_HEAD, [_cells(one, now) for one in shown])

    with Live(get_renderable=table, refresh_per_second=4, redirect_stdout=False, redirect_stderr=True):
        yield


def _shown(seen: list[Watched]) -> Iterable[Watched]:
    """All that are open, and of the others those that ended last, as far as there is room."""
    room = max(_MOST_SHOWN - sum(not one.over for one in seen), 0)
    ended = sorted((one for one in seen if one.over and one.ended), key=lambda one: one.ended or datetime.now(UTC))
    kept = {one.id for one in ended[-room:]} if room else set()
    return [one for one in seen if not one.over or one.id in kept][:_MOST_SHOWN]


def _cells(one: Watched, now: datetime) -> tuple[str, ...]:
    return (
        one.id,
        one.method,
        one.status or "-",
        "" if one.progress is None else f"{one.progress:.0f} %",
        format_duration(one.elapsed(now)),
        one.message or "",
    )
