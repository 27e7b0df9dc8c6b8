"""What the command line was asked for, as values: inputs of a Method, moments of time, the workbench."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from prefect_executions.durations import parse_duration
from prefect_executions.errors import RequestError
from prefect_executions.lifecycle.status import Status
from prefect_executions.query.filter import Filter
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect_executions.workbench.catalog import Catalog
    from prefect_executions.workbench.workbench import Workbench

Json = Annotated[bool, Parameter(name="--json")]

When = Annotated[str | None, Parameter(allow_leading_hyphen=True)]  # -7d, as other tools write what is 7 days ago


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """The options that choose executions, shared by all commands that take a filter.

    Args:
        method: Only executions of the Method with this id.
        since: Only executions from this time on: 2026-09-01, 2026-09-01T12:00 (UTC), or 7d, 12h, 30m ago.
        until: Only executions before this time, in the same format.
    """

    method: str | None = None
    since: When = None
    until: When = None

    def filter(self, now: datetime, status: Iterable[Status] = ()) -> Filter:
        """Return these options, and *status*, as one filter.

        Raises:
            RequestError: If a time cannot be parsed.
        """
        return Filter(
            status=tuple(status),
            method=self.method or None,
            since=moment(self.since, now) if self.since else None,
            until=moment(self.until, now) if self.until else None,
        )


NO_FILTER = FilterOptions()

READING_PATIENCE = timedelta(seconds=60)
"""Somebody waits at the terminal: an archive that is away is told after this, not after an upload's time limit."""

DEFAULTS = {
    # Prefect gives its embedded server 20 s; the first start on a slow disk makes a database and takes longer.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
    # A run calls nobody whom its author does not know of.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
"""What is set before Prefect is imported, where the environment does not say otherwise."""


@Parameter(name="*")
@dataclass(frozen=True)
class InputOptions:
    """The inputs of a Method, from `-p` and `--params`."""

    param: Annotated[tuple[str, ...], Parameter(name=["--param", "-p"], allow_leading_hyphen=True)] = ()
    """Set an input: name=value (repeatable)."""
    params: Annotated[str | None, Parameter(name="--params", allow_leading_hyphen=True)] = None
    """JSON file with an object of inputs; - reads standard input."""

    def read(self) -> dict[str, Any]:
        """Return the inputs, as `parameters` does."""
        return parameters(self.param, self.params)


NO_INPUTS = InputOptions()


def set_defaults() -> None:
    """Set `DEFAULTS`, before Prefect is imported by a command that talks to its API."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def workbench(settings: Settings, *, telling: bool = False) -> Workbench:
    """Return the workbench that *settings* describe; one that is *telling* imports Prefect and tells it of each end."""
    # Start-up time of the CLI: archive, bundles and ledger come with it, and --help needs none.
    from prefect_executions.workbench.workbench import Workbench  # noqa: PLC0415

    if not telling:
        return Workbench.of(settings, archive_block=_archive_block)
    from prefect_executions.prefect_api import events as prefect_events  # noqa: PLC0415 - the same

    return Workbench.of(settings, archive_block=_archive_block, deliver_events=prefect_events.TerminalEvents)


def reader(settings: Settings | None = None) -> Catalog:
    """Return the reading side of the workbench that the environment describes."""
    # Start-up time of the CLI, as above.
    from prefect_executions.workbench.catalog import Catalog  # noqa: PLC0415

    settings = settings or Settings.read()
    patience = min(settings.archive_timeout, READING_PATIENCE)
    return Catalog(workbench(settings.model_copy(update={"archive_timeout": patience})))


def _archive_block(name: str) -> tuple[str, Mapping[str, Any]]:
    # Prefect takes seconds to import, and only an archive in one of its blocks needs it.
    from prefect_executions.prefect_api import blocks  # noqa: PLC0415

    return blocks.archive_block(name)


def parameters(pairs: Sequence[str], file: str | None) -> dict[str, Any]:
    """Return the inputs that ``-p name=value`` and ``--params file.json`` give; ``-p`` goes before the file.

    A value is JSON if it parses, else text. ``@file`` reads it from a file in the
    same way, ``@@…`` is text that begins with one @. The file ``-`` is standard input.

    Raises:
        RequestError: If a pair has no name, a name comes twice, or a file cannot be read.
    """
    told = _object_in(file) if file else {}
    given: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise RequestError(f"-p {pair}: write -p name=value, or -p name=@file")
        if name in given:
            raise RequestError(f"-p {name}=… is given twice; give a list as one JSON value: -p '{name}=[1, 2]'")
        given[name] = _value(name, text)
    return told | given


def moment(text: str, now: datetime) -> datetime:
    """Return the moment that *text* means: a date or time (UTC, where no offset is told), or ``7d``, ``12h`` ago.

    ``-7d`` is the same as ``7d``.

    Raises:
        RequestError: If it means none.
    """
    try:
        return now - parse_duration(text.strip().removeprefix("-"))
    except OverflowError as error:
        raise RequestError(f"'{text}' ago is before all time") from error
    except ValueError:
        pass
    try:
        told = datetime.fromisoformat(text)
    except ValueError as error:
        raise RequestError(f"'{text}' is no time; write 2026-09-01, 2026-09-01T12:00, 7d, 12h or 30m") from error
    return told.replace(tzinfo=UTC) if told.tzinfo is None else told.astimezone(UTC)


def _object_in(file: str) -> dict[str, Any]:
    told = _json(_text_of(file, "--params"))
    if not isinstance(told, dict):
        raise RequestError(f'--params {file} holds no JSON object: write {{"name": value, …}}')
    return told


def _value(name: str, text: str) -> Any:
    if text.startswith("@@"):
        return text[1:]
    return _json(_text_of(text[1:], f"-p {name}=")) if text.startswith("@") else _json(text)


def _text_of(file: str, asked: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).expanduser().read_bytes()
        return data.decode()
    except OSError as error:
        raise RequestError(f"{asked}: {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{asked}: {file} is no UTF-8 text") from error


def _json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON number")
