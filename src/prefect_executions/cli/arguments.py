"""Option types and parsers that several commands share: inputs, filters, times, and the workbench to open."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from prefect_executions.documents import decode_text, read_small
from prefect_executions.durations import parse_duration
from prefect_executions.errors import RequestError
from prefect_executions.lifecycle.status import Status
from prefect_executions.query.filter import Filter
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect_executions.attestation.policy import SignaturePolicy
    from prefect_executions.executions.annotations import LabelChange
    from prefect_executions.workbench.catalog import Catalog
    from prefect_executions.workbench.workbench import Workbench

_MAX_DEPTH = 150
"""How deep an input may be nested; readers of the documents that record it stop at 200 levels."""

Json = Annotated[bool, Parameter(name="--json")]

TimeOption = Annotated[str | None, Parameter(allow_leading_hyphen=True)]  # -7d means 7 days ago, as in other tools


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """Options that choose executions, for all commands that take a filter."""

    method: str | None = None
    """Only executions of the Method with this id."""
    since: TimeOption = None
    """Only executions from this time on: 2026-09-01, 2026-09-01T12:00 (UTC), or 7d, 12h, 30m ago."""
    until: TimeOption = None
    """Only executions before this time, in the same format."""

    def filter(self, now: datetime, status: Iterable[Status] = ()) -> Filter:
        """Return these options, and *status*, as one filter.

        Raises:
            RequestError: If a time cannot be parsed.
        """
        return Filter(
            status=tuple(status),
            method=self.method,
            since=parse_time(self.since, now) if self.since else None,
            until=parse_time(self.until, now) if self.until else None,
        )


NO_FILTER = FilterOptions()

FILTER_NAMES = ", ".join(f"--{field.name}" for field in fields(FilterOptions))
"""The options of `FilterOptions`, for error messages."""

DEFAULTS = {
    # Prefect allows its embedded server 20 s; the first start creates a database, which takes longer on a slow disk.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
    # A run sends no data to third parties: neither Prefect's server nor, since 3.9, its client.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}
"""Environment variables to set before Prefect is imported; the user's own values win."""

_SENDERS = ("APILogWorker", "EventsWorker")
"""Loggers of Prefect's services that warn at the end of a process that they still send logs and events."""


@Parameter(name="*")
@dataclass(frozen=True)
class InputOptions:
    """Options that set inputs of a Method."""

    param: Annotated[tuple[str, ...], Parameter(name=["--param", "-p"], allow_leading_hyphen=True)] = ()
    """Set an input: name=value (repeatable)."""
    params: Annotated[str | None, Parameter(name="--params", allow_leading_hyphen=True)] = None
    """JSON file with an object of inputs; - reads standard input."""

    def read(self) -> dict[str, Any]:
        """Return the inputs by name; see `parameters`."""
        return parse_inputs(self.param, self.params)


NO_INPUTS = InputOptions()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Options that label an execution when it is requested."""

    tag: tuple[str, ...] = ()
    """Tag of the execution and its flow run (repeatable)."""
    name: str | None = None
    """Name of the execution."""
    experiment: str | None = None
    """Experiment that the execution belongs to."""

    def read(self) -> tuple[list[str], list[LabelChange]]:
        """Return the tags, and the name and the experiment as changes of labels.

        Raises:
            RequestError: If one is empty, too long, or has a line break.
        """
        # Start-up time of the CLI, as below.
        from prefect_executions.executions.annotations import AnnotationKind, LabelChange  # noqa: PLC0415

        given = {AnnotationKind.NAME: self.name, AnnotationKind.EXPERIMENT: self.experiment}
        changes = [LabelChange.of(kind, text) for kind, text in given.items() if text is not None]
        return [LabelChange.of(AnnotationKind.TAG, tag).text for tag in self.tag], changes


NO_LABELS = LabelOptions()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SignatureOptions:
    """Options that say which signatures of a bundle are accepted."""

    signer: tuple[str, ...] = ()
    """Only bundles signed with this key: its name, its id, or a public key file (repeatable)."""
    allow_unknown_signer: bool = False
    """Accept a signature by an unknown key, which cannot be checked."""
    require_signature: bool = False
    """Refuse a bundle without a signature."""

    def policy(self, settings: Settings) -> SignaturePolicy:
        """Return the signature policy of the home with these options.

        Raises:
            RequestError: If a signer is unknown.
        """
        # Start-up time of the CLI, as below.
        from prefect_executions.workbench.keyring import KeyRing  # noqa: PLC0415

        return KeyRing(settings).policy(
            signers=self.signer, allow_unknown=self.allow_unknown_signer, require=self.require_signature
        )

    def words(self) -> tuple[str, ...]:
        """Return these options as words of a command line."""
        return (
            *(word for signer in self.signer for word in ("--signer", signer)),
            *(["--allow-unknown-signer"] if self.allow_unknown_signer else []),
            *(["--require-signature"] if self.require_signature else []),
        )


DEFAULT_SIGNATURES = SignatureOptions()


def set_defaults() -> None:
    """Set `DEFAULTS` in the environment and quieten `_SENDERS`; call this before Prefect is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name in _SENDERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def connect_local_server(settings: Settings, *, start: bool = True) -> None:
    """Use the local Prefect server of the home; with *start*, start it if none runs. A configured API comes first.

    Call this after `set_defaults`; it imports Prefect.

    Raises:
        OrchestratorError: If the server does not start.
    """
    from prefect_executions.prefect_api import server  # noqa: PLC0415 - Start-up time of the CLI: it imports Prefect

    server.connect(settings.server_folder, settings.server_idle, start=start)


def open_workbench(settings: Settings, *, with_events: bool = False) -> Workbench:
    """Return the workbench of *settings*; *with_events* sends its events to Prefect, whose import is slow."""
    # Start-up time of the CLI: they import archive, bundles and ledger, which --help does not need.
    from prefect_executions.workbench.entry import archive_block  # noqa: PLC0415
    from prefect_executions.workbench.workbench import Workbench  # noqa: PLC0415

    if not with_events:
        return Workbench.of(settings, archive_block=archive_block)
    from prefect_executions.prefect_api import events as prefect_events  # noqa: PLC0415 - as above

    return Workbench.of(settings, archive_block=archive_block, deliver_events=prefect_events.TerminalEvents)


def open_catalog(settings: Settings | None = None) -> Catalog:
    """Return the catalog of the workbench of *settings*, by default those of the environment."""
    # Start-up time of the CLI, as above.
    from prefect_executions.workbench.entry import catalog_of  # noqa: PLC0415

    return catalog_of(settings or Settings.read())


def parse_inputs(pairs: Sequence[str], file: str | None) -> dict[str, Any]:
    """Return the inputs from ``-p name=value`` and ``--params file.json``; ``-p`` overrides the file.

    A value is JSON if it parses, else text. ``@file`` reads the value from a file by
    the same rule; ``@@…`` is text that begins with one @. The file ``-`` is standard input.

    Raises:
        RequestError: If a pair has no name, a name is repeated, or a file cannot be read.
    """
    defaults = _read_object(file) if file else {}
    inputs: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise RequestError(f"-p {pair}: write -p name=value, or -p name=@file")
        if name in inputs:
            raise RequestError(f"-p {name}=… is given twice; write a list as one JSON value: -p '{name}=[1, 2]'")
        inputs[name] = _value(name, text)
    return defaults | inputs


def parse_time(text: str, now: datetime) -> datetime:
    """Return the time that *text* states: a date or time (UTC unless it has an offset), or ``7d``, ``12h`` ago.

    ``-7d`` means ``7d``.

    Raises:
        RequestError: If *text* is not a time.
    """
    try:
        return now - parse_duration(text.strip().removeprefix("-").lower())
    except OverflowError as error:
        raise RequestError(f"'{text}' ago is before the year 1; write a shorter age, such as 7d") from error
    except ValueError:
        pass
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise RequestError(f"'{text}' is not a time; write 2026-09-01, 2026-09-01T12:00, 7d, 12h or 30m") from error
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _read_object(file: str) -> dict[str, Any]:
    text = _read_text(file, "--params")
    inputs = _json(text)
    if not isinstance(inputs, dict) and _has_constant(text):
        raise RequestError(f'--params {file} has NaN or Infinity, which JSON lacks: write "NaN" or "Infinity"')
    if not isinstance(inputs, dict):
        raise RequestError(f'--params {file} is not a JSON object: write {{"name": value, …}}')
    return inputs


def _value(name: str, text: str) -> Any:
    if text.startswith("@@"):
        return text[1:]
    return _json(_read_text(text[1:], f"-p {name}=")) if text.startswith("@") else _json(text)


def _read_text(file: str, option: str) -> str:
    try:
        data = read_small(sys.stdin.buffer if file == "-" else Path(file).expanduser())
        return decode_text(data)
    except OSError as error:
        raise RequestError(f"{option}: {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{option}: {file} is not UTF-8 text; save it as UTF-8") from error


def _json(text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_members)
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        return text
    inside = [value]
    for _ in range(_MAX_DEPTH):
        inside = [part for level in inside for part in _parts(level)]
        if not inside:
            return value
    raise _too_deep()


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _too_deep() -> RequestError:
    return RequestError(f"a value is nested more than {_MAX_DEPTH} levels deep; put it into an input file")


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise RequestError(f"a value is a JSON object that has the member '{name[:80]}' twice; remove one")
        members[name] = value
    return members


def _has_constant(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not a JSON number")
