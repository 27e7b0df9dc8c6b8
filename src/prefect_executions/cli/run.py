"""`executions run`: run a Method in a child process and record it; seal the record if the child dies."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from prefect_executions import background
from prefect_executions.bundles.layout import STDERR, STDOUT
from prefect_executions.cli.arguments import (
    NO_INPUTS,
    NO_LABELS,
    InputOptions,
    Json,
    LabelOptions,
    connect_local_server,
    open_catalog,
    open_workbench,
    set_defaults,
)
from prefect_executions.cli.child import DeadChild, run_in_child, was_interrupted
from prefect_executions.cli.exit_codes import FAILED, INTERRUPTED, OK
from prefect_executions.cli.output import (
    format_end,
    format_number,
    format_returned,
    format_size,
    format_took,
    say,
    show_facts,
    show_json,
    status_line,
    warn,
)
from prefect_executions.errors import ExecutionsError
from prefect_executions.lifecycle.status import Status
from prefect_executions.settings import Settings

_LONG_WAIT = 5.0
"""Seconds after which a wait is reported."""

_START_SERVER = "Starting a local Prefect server (later commands use it)"

_MOST_SHOWN = 8
"""Metrics and outputs in the summary of a run; `executions show` has all of them."""

_LONGEST_ERROR = 1000

if TYPE_CHECKING:
    from threading import Timer

    from prefect_executions.bundles.open_bundle import OpenBundle
    from prefect_executions.executions.annotations import LabelChange
    from prefect_executions.executions.record import ExecutionRecord
    from prefect_executions.flow.decorator import MethodFlow
    from prefect_executions.flow.entrypoints import Ran
    from prefect_executions.operations.replay import ExactImage
    from prefect_executions.workbench.catalog import StorageState
    from prefect_executions.workbench.recovery import Settled


def run(
    entrypoint: str,
    /,
    *,
    inputs: InputOptions = NO_INPUTS,
    labels: LabelOptions = NO_LABELS,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"])] = False,
    as_json: Json = False,
) -> int:
    """Run a Method and record the execution.

    A value is JSON if it parses, else text: -p most=5, -p 'name="5"'.
    -p name=@file reads it from a file; -p name=@@text is text that begins with @.

    Args:
        entrypoint: path.py:function, module:function, or the path of a descriptor; plain flows and functions work too.
        quiet: Print nothing but the execution's id, at the end.
        as_json: Print one JSON document to standard output; other output goes to standard error.
    """
    parameters = inputs.read()
    tags, changes = labels.read()
    return run_in_child(
        lambda: run_and_show(entrypoint, parameters, tags=tags, changes=changes, quiet=quiet, as_json=as_json),
        partial(seal_after_death, quiet=quiet, as_json=as_json),
    )


def run_and_show(
    entrypoint: str,
    parameters: Mapping[str, Any],
    *,
    tags: Sequence[str] = (),
    changes: Sequence[LabelChange] = (),
    quiet: bool,
    as_json: bool,
) -> int:
    """Run the Method at *entrypoint* in this process, print its result and return the exit code."""
    settings = Settings.read()
    flow, ran = run_in_process(
        entrypoint, parameters, settings, tags=tags, changes=changes, quiet=quiet, as_json=as_json
    )
    return _show(flow, ran, settings, quiet=quiet, as_json=as_json)


def run_in_process(
    entrypoint: str,
    parameters: Mapping[str, Any],
    settings: Settings,
    *,
    tags: Sequence[str],
    changes: Sequence[LabelChange] = (),
    on_gathered: Callable[[OpenBundle, BaseException | None], None] = lambda _bundle, _error: None,
    image: ExactImage | None = None,
    load_from: Path | None = None,
    quiet: bool,
    as_json: bool,
) -> tuple[MethodFlow[Any, Any], Ran]:
    """Run the Method at *entrypoint* in this process; its flow run gets *tags*, and its execution the labels *changes*.

    *on_gathered* receives the bundle before it is sealed. Scripts run in *image*, if given. The Method is
    imported in the working directory *load_from*, if given.
    """
    set_defaults()
    with _redirected_output(redirect=quiet or as_json, discard=quiet):
        result = _run(
            entrypoint,
            parameters,
            tags,
            on_gathered,
            image,
            changes=changes,
            load_from=load_from,
            settings=settings,
            quiet=quiet,
        )
    if quiet:
        # The embedded server logs its shutdown when this process ends.
        logging.getLogger("prefect").setLevel(logging.WARNING)
    return result


def _run(
    entrypoint: str,
    parameters: Mapping[str, Any],
    tags: Sequence[str],
    on_gathered: Callable[[OpenBundle, BaseException | None], None],
    image: ExactImage | None,
    *,
    changes: Sequence[LabelChange],
    load_from: Path | None,
    settings: Settings,
    quiet: bool,
) -> tuple[MethodFlow[Any, Any], Ran]:
    with status_line("Loading Prefect and the Method", quiet=quiet):
        # Prefect takes seconds to import; only commands that run a Method need it.
        from prefect_executions.flow.entrypoints import check_inputs, load_method, run_method  # noqa: PLC0415
        from prefect_executions.flow.invocation import Invocation  # noqa: PLC0415
        from prefect_executions.prefect_api import client as api_client  # noqa: PLC0415

        # Prefect imports modules from the working directory first.
        with chdir(load_from) if load_from else nullcontext():
            flow = load_method(entrypoint)
            check_inputs(flow, parameters)
    api = api_client.configured_api()
    with status_line(_START_SERVER, quiet=quiet or bool(api) or _server_runs(settings)):
        connect_local_server(settings)
        api_client.ping()
    waits = _Waits(f"Prefect at {api}" if api else "the local Prefect server", quiet=quiet)

    attempts = Counter[str]()

    def opened(execution_id: str) -> None:
        waits.end()
        attempts[execution_id] += 1
        if not quiet:
            again = f" again: attempt {attempts[execution_id]}" if attempts[execution_id] > 1 else ""
            warn(f"Execution {execution_id} started{again}")
        if changes and attempts.total() == 1:  # not the executions that it calls
            _label(execution_id, changes, settings)

    def gathered(bundle: OpenBundle, error: BaseException | None) -> None:
        on_gathered(bundle, error)
        waits.begin("The outputs are recorded. Waiting for {} to end the run …")

    waits.begin("Waiting for {} to start the run …")
    interruption = partial(_interruption, settings)
    ended = partial(waits.begin, "The Method has ended. Recording its outputs and what {} knows …")
    try:
        return flow, run_method(flow, parameters, Invocation(opened, ended, gathered, interruption, image), tags=tags)
    finally:
        waits.end()


def _interruption(settings: Settings) -> str | None:
    # Start-up time of the CLI.
    from prefect_executions.capture.host import this_user  # noqa: PLC0415

    return f"interrupted by {settings.agent or this_user()}" if was_interrupted() else None


def _label(execution_id: str, changes: Sequence[LabelChange], settings: Settings) -> None:
    """Add labels to an execution that began; an error does not end the run."""
    try:
        open_catalog(settings).add_labels([execution_id], changes)
    except ExecutionsError as error:
        warn(
            f"name and experiment of {execution_id} are not recorded: {error}\nNext: executions annotate {execution_id}"
        )


def _server_runs(settings: Settings) -> bool:
    """Whether the shared local server runs, so that no server is started."""
    from prefect_executions.prefect_api import server  # noqa: PLC0415 - as above

    return bool(settings.server_idle) and server.find(settings.server_folder) is not None


class _Waits:
    """Reports on standard error what the command waits for, if that takes long."""

    def __init__(self, prefect: str, *, quiet: bool) -> None:
        self._prefect = prefect
        self._quiet = quiet
        self._timer: Timer | None = None

    def begin(self, text: str) -> None:
        """Report *text*, in which ``{}`` is Prefect, after some seconds, unless the wait has ended."""
        self.end()
        if not self._quiet:
            self._timer = background.defer(partial(warn, text.format(self._prefect)), name="wait", delay=_LONG_WAIT)

    def end(self) -> None:
        """End the wait."""
        if self._timer is not None:
            self._timer.cancel()


def _show(flow: MethodFlow[Any, Any], ran: Ran, settings: Settings, *, quiet: bool, as_json: bool) -> int:
    if ran.execution_id is None:
        return show_unrecorded(flow, ran, as_json=as_json)
    catalog = open_catalog(settings)
    record, storage = catalog.record(ran.execution_id), catalog.storage_state(ran.execution_id)
    # An execution that another process cancelled is also interrupted, but has its own status.
    interrupted = ran.interrupted and (record.status is not Status.CANCELLED or was_interrupted())
    _show_record(record, storage, ran.error, quiet=quiet, as_json=as_json)
    if interrupted and not as_json:
        sealed = f"sealed as {record.status}" if storage.sealed else "not sealed yet. Next: executions settle --once"
        warn(f"Interrupted. The record of {record.id} is {sealed}.")
    return INTERRUPTED if interrupted else OK if record.status is Status.COMPLETED else FAILED


def _show_record(
    record: ExecutionRecord, storage: StorageState, error: BaseException | None, *, quiet: bool, as_json: bool
) -> None:
    if as_json:
        show_json(_as_json(record, storage))
    elif quiet:
        say(record.id)
        if record.status is not Status.COMPLETED:
            warn(f"{record.status}: {_error_of(record) or error}")
    else:
        show_facts(_facts(record, storage, error))
        say(_next_commands(record, storage))


def seal_after_death(child: DeadChild, *, quiet: bool, as_json: bool) -> int:
    """Seal the executions of a dead child process, show the outermost, and return the exit code."""
    # Start-up time of the CLI: the catalog has imported it already.
    from prefect_executions.workbench.lookup import executions_of  # noqa: PLC0415

    settings = Settings.read()
    catalog = open_catalog(settings)
    dead = executions_of(catalog.workbench, child.pid)
    warn(f"The process of the Method {child.how}.")
    if not dead:
        warn("None of its executions is open: each is sealed, or none had begun. Next: executions list")
        return FAILED
    try:
        with status_line("Sealing the execution", quiet=quiet):
            results = _settle_dead(settings, dead, child)
    except ExecutionsError as error:
        warn(f"error: {error}\nNext: executions settle --once")
        return FAILED
    for result in results:
        if result.result not in {"archived", "pending"}:
            warn(f"execution {result.id} is not sealed: {result.message}. Next: executions settle --once")
    record, storage = catalog.record(dead[0]), catalog.storage_state(dead[0])
    _show_record(record, storage, None, quiet=quiet, as_json=as_json)
    return OK if record.status is Status.COMPLETED else FAILED


def _settle_dead(settings: Settings, execution_ids: Sequence[str], child: DeadChild) -> list[Settled]:
    set_defaults()
    # Prefect takes seconds to import; a command imports it only after a death.
    from prefect_executions.settle.decide import Death  # noqa: PLC0415
    from prefect_executions.settle.loop import settle_dead  # noqa: PLC0415

    connect_local_server(settings)
    workbench = open_workbench(settings, with_events=True)
    return list(settle_dead(workbench, settings, execution_ids, Death(child.how, child.at)))


def show_unrecorded(flow: MethodFlow[Any, Any], ran: Ran, *, as_json: bool) -> int:
    """Report that a run has no record, with its error if there is one, and return the exit code."""
    if isinstance(ran.error, ExecutionsError):
        raise ran.error
    error = {"type": type(ran.error).__name__, "message": str(ran.error)} if ran.error else None
    if as_json:
        show_json({"id": None, "method": flow.method.id, "error": error})
    else:
        reason = f": {error['type']}: {error['message']}" if error else ""
        warn(f"Method '{flow.method.id}' did not start{reason}\nNext: executions list --method {flow.method.id}")
    return INTERRUPTED if ran.interrupted else FAILED


def _as_json(record: ExecutionRecord, storage: StorageState) -> dict[str, Any]:
    usage = record.instance.usage
    raised = usage.exception if usage else None
    return {
        "id": record.id,
        "status": record.status,
        "reason": record.job_status.reason,
        "method": f"{record.method.id} {record.method.version}",
        "started": record.started,
        "finished": record.finished,
        "finishedBefore": record.job_status.finished_before,
        "duration": _duration(record),
        "methodDuration": usage and usage.wall_seconds,
        "folder": storage.folder,
        "sealed": storage.sealed,
        "archive": storage.archive,
        "returned": usage and usage.returned,
        "outputs": [output.path for output in record.job_status.outputs],
        "error": raised and {"type": raised.type, "message": raised.message},
    }


def _facts(record: ExecutionRecord, storage: StorageState, error: BaseException | None) -> Iterator[tuple[str, object]]:
    yield "execution", record.id
    yield "status", record.status
    yield "record", None if storage.sealed else "not sealed yet"
    yield "reason", record.job_status.reason
    yield "message", record.job_status.message if record.status is Status.CANCELLED else None
    yield "finished", format_end(record.job_status) if record.job_status.finished_before else None
    yield "took", format_took(record.job_status, record.instance.usage)
    yield "returned", format_returned(record.instance.usage)
    yield "metrics", _several(f"{name} {format_number(value)}" for name, value in _last_metrics(record).items())
    outputs = (output for output in record.job_status.outputs if output.path not in {STDOUT, STDERR})
    yield "outputs", _several(f"{output.path.partition('/')[2]} ({format_size(output.size)})" for output in outputs)
    yield "bundle", storage.folder
    yield "archive", storage.archive
    raised = f"{type(error).__name__}: {error}" if error and not storage.sealed else ""
    yield "error", (_error_of(record) if record.status is Status.FAILED else raised)[:_LONGEST_ERROR] or None


def _last_metrics(record: ExecutionRecord) -> dict[str, object]:
    return {metric.name: metric.value for metric in (record.metrics.metrics if record.metrics else ())}


def _several(items: Iterable[str]) -> str:
    """Return *items* as one text, the first ones if there are many."""
    shown = list(items)
    more = [f"and {len(shown) - _MOST_SHOWN} more"] if len(shown) > _MOST_SHOWN else []
    return ", ".join([*shown[:_MOST_SHOWN], *more])


def _duration(record: ExecutionRecord) -> Any:
    return record.finished - record.started if record.finished and record.started else None


def _next_commands(record: ExecutionRecord, storage: StorageState) -> str:
    written = any(output.path == STDERR and output.size for output in record.job_status.outputs)
    failed = ("logs --stderr", "show") if written else ("show", "logs")  # `show` has the traceback
    commands = ("show", "verify", "outputs") if record.status is Status.COMPLETED else failed
    lines = [f"executions {command} {record.id}" for command in commands]
    if not storage.sealed or storage.archive == "pending":
        # `doctor` names the disk, archive or server that failed; `settle` completes the record afterwards.
        lines = ["executions doctor", "executions settle --once", lines[0]]
    return "Next: " + "\n      ".join(lines)


def _error_of(record: ExecutionRecord) -> str:
    from prefect_executions.executions.summary import error_text  # noqa: PLC0415 - start-up time of the CLI

    usage = record.instance.usage
    if usage and usage.exception:
        return error_text(usage.exception)
    return record.job_status.message or ""


@contextmanager
def _redirected_output(*, redirect: bool, discard: bool) -> Iterator[None]:
    """Keep standard output for the result: redirect what the Method prints to standard error, or discard it.

    This duplicates file descriptors, because subprocesses and Prefect's console write to
    them. It does not change the record, which captures output before the terminal gets it.
    """
    if not redirect:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    originals = {1: os.dup(1), 2: os.dup(2)}
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null if discard else 2, 1)
        if discard:
            os.dup2(null, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, original in originals.items():
            os.dup2(original, descriptor)
            os.close(original)
        os.close(null)
