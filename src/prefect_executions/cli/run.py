"""`executions run`: a Method here and now, with its record kept."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from prefect_executions.cli.arguments import NO_INPUTS, InputOptions, Json, reader, set_defaults
from prefect_executions.cli.exit_codes import FAILED, INTERRUPTED, OK
from prefect_executions.cli.output import format_duration, say, show_facts, show_json, warn, working
from prefect_executions.errors import ExecutionsError
from prefect_executions.lifecycle.status import Status
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect_executions.bundles.open_bundle import OpenBundle
    from prefect_executions.executions.record import ExecutionRecord
    from prefect_executions.flow.decorator import MethodFlow
    from prefect_executions.flow.entrypoints import Ran
    from prefect_executions.operations.replay import ExactImage
    from prefect_executions.workbench.catalog import StorageState


def run(
    entrypoint: str,
    /,
    *,
    inputs: InputOptions = NO_INPUTS,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"])] = False,
    as_json: Json = False,
) -> int:
    """Run a Method and keep its record.

    A value is JSON if it parses, else text: -p most=5, -p 'name="5"'.
    -p name=@file reads it from a file; -p name=@@text is text that begins with @.

    Args:
        entrypoint: path.py:function, module:function or a descriptor; a plain flow or function is recorded as well.
        quiet: Show nothing while it runs, and at its end the execution's id.
        as_json: One JSON document on standard output; all else goes to standard error.
    """
    return run_here(entrypoint, inputs.read(), quiet=quiet, as_json=as_json)


def run_here(entrypoint: str, given: Mapping[str, Any], *, tags: Sequence[str] = (), quiet: bool, as_json: bool) -> int:
    """Run the Method at *entrypoint* in this process and tell what became of it; its flow run gets *tags*."""
    settings = Settings.read()
    flow, ran = ran_here(entrypoint, given, tags=tags, quiet=quiet, as_json=as_json)
    return _tell(flow, ran, settings, quiet=quiet, as_json=as_json)


def ran_here(
    entrypoint: str,
    given: Mapping[str, Any],
    *,
    tags: Sequence[str],
    on_gathered: Callable[[OpenBundle, BaseException | None], None] = lambda _bundle, _error: None,
    image: ExactImage | None = None,
    quiet: bool,
    as_json: bool,
) -> tuple[MethodFlow[Any, Any], Ran]:
    """Run the Method at *entrypoint* in this process; *on_gathered* gets its bundle before it is sealed.

    Scripts run in *image*, if one is given.
    """
    set_defaults()
    with _result_alone(redirected=quiet or as_json, silent=quiet):
        found = _run(entrypoint, given, tags, on_gathered, image, quiet=quiet)
    if quiet:
        # The embedded server says good-bye at the end of the process; by now the record is kept.
        logging.getLogger("prefect").setLevel(logging.WARNING)
    return found


def _run(
    entrypoint: str,
    given: Mapping[str, Any],
    tags: Sequence[str],
    on_gathered: Callable[[OpenBundle, BaseException | None], None],
    image: ExactImage | None,
    *,
    quiet: bool,
) -> tuple[MethodFlow[Any, Any], Ran]:
    with working("Loading Prefect and the Method", quiet=quiet):
        # Prefect takes seconds to import; only what runs a Method needs it.
        from prefect_executions.flow.entrypoints import load_method, run_method  # noqa: PLC0415
        from prefect_executions.flow.invocation import Invocation  # noqa: PLC0415
        from prefect_executions.prefect_api import client as api_client  # noqa: PLC0415

        flow = load_method(entrypoint)
    api = api_client.configured_api()
    doing = (
        f"Connecting to Prefect at {api}" if api else "Starting Prefect's embedded server (the first time takes longer)"
    )
    with working(doing, quiet=quiet or bool(api)):
        api_client.ping()
    invocation = Invocation(partial(_say_begun, quiet=quiet), on_gathered, image)
    return flow, run_method(flow, given, invocation, tags=tags)


def _say_begun(execution_id: str, *, quiet: bool) -> None:
    if not quiet:
        warn(f"Execution {execution_id} has begun")


def _tell(flow: MethodFlow[Any, Any], ran: Ran, settings: Settings, *, quiet: bool, as_json: bool) -> int:
    if ran.execution_id is None:
        return tell_unrecorded(flow, ran, quiet=quiet, as_json=as_json)
    catalog = reader(settings)
    record, standing = catalog.record(ran.execution_id), catalog.storage_state(ran.execution_id)
    # Whoever cancelled it has interrupted it, too.
    interrupted = isinstance(ran.error, KeyboardInterrupt) and record.status is not Status.CANCELLED
    if as_json:
        show_json(_as_json(record, standing))
    elif quiet:
        say(record.id)
        if record.status is not Status.COMPLETED:
            warn(f"{record.status}: {_error_of(record) or ran.error}")
    else:
        show_facts(_facts(record, standing))
        say(_next(record))
    if interrupted and not as_json:
        sealed = f"sealed as {record.status}" if standing.sealed else "not sealed yet; run: executions settle --once"
        warn(f"Interrupted. The record of {record.id} is {sealed}.")
    return INTERRUPTED if interrupted else OK if record.status is Status.COMPLETED else FAILED


def tell_unrecorded(flow: MethodFlow[Any, Any], ran: Ran, *, quiet: bool, as_json: bool) -> int:
    """Tell that a run has left no record, with the reason where one is known, and return the exit code."""
    if isinstance(ran.error, ExecutionsError | KeyboardInterrupt):
        raise ran.error
    error = {"type": type(ran.error).__name__, "message": str(ran.error)} if ran.error else None
    if as_json:
        show_json({"id": None, "method": flow.method.id, "error": error})
    else:
        # Prefect's log told the error; when quiet, nobody did.
        why = f": {error['type']}: {error['message']}" if quiet and error else ""
        warn(f"Method '{flow.method.id}' did not start{why}\nNext: executions list --method {flow.method.id}")
    return FAILED


def _as_json(record: ExecutionRecord, standing: StorageState) -> dict[str, Any]:
    usage = record.instance.usage
    raised = usage.exception if usage else None
    return {
        "id": record.id,
        "status": record.status,
        "reason": record.job_status.reason,
        "method": f"{record.method.id} {record.method.version}",
        "started": record.started,
        "finished": record.finished,
        "duration": _took(record),
        "folder": standing.folder,
        "sealed": standing.sealed,
        "archive": standing.archive,
        "outputs": [output.path for output in record.job_status.outputs],
        "error": raised and {"type": raised.type, "message": raised.message},
    }


def _facts(record: ExecutionRecord, standing: StorageState) -> Iterator[tuple[str, object]]:
    yield "execution", record.id
    yield "status", record.status
    yield "reason", record.job_status.reason
    yield "message", record.job_status.message if record.status is Status.CANCELLED else None
    yield "took", format_duration(_took(record))
    yield "bundle", standing.folder
    yield "archive", standing.archive


def _took(record: ExecutionRecord) -> Any:
    return record.finished - record.started if record.finished and record.started else None


def _next(record: ExecutionRecord) -> str:
    return (
        f"Next: executions show {record.id}\n      executions verify {record.id}\n      executions outputs {record.id}"
    )


def _error_of(record: ExecutionRecord) -> str | None:
    usage = record.instance.usage
    if usage and usage.exception:
        return f"{usage.exception.type}: {usage.exception.message}"
    return record.job_status.message


@contextmanager
def _result_alone(*, redirected: bool, silent: bool) -> Iterator[None]:
    """Keep standard output for the result: what the Method writes there goes to standard error, or nowhere.

    File descriptors are moved, because subprocesses and Prefect's console write to
    them. The record is the same: it is kept before the terminal is written to.
    """
    if not redirected:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {1: os.dup(1), 2: os.dup(2)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere if silent else 2, 1)
        if silent:
            os.dup2(nowhere, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, original in kept.items():
            os.dup2(original, descriptor)
            os.close(original)
        os.close(nowhere)
