"""`executions deploy`, `submit`, `cancel`: a Method on a work pool, a run of it, and its cancellation."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from prefect_executions.cli.arguments import (
    NO_INPUTS,
    NO_LABELS,
    InputOptions,
    Json,
    LabelOptions,
    connect_local_server,
    open_catalog,
    parse_inputs,
    set_defaults,
)
from prefect_executions.cli.completion import OneId
from prefect_executions.cli.exit_codes import FAILED, OK, WORLD
from prefect_executions.cli.output import say, show_facts, show_json, status_line, warn
from prefect_executions.dispatch.options import DeployOptions, SubmitOptions
from prefect_executions.lifecycle.status import Status
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect_executions.dispatch.cancel import CancelResult
    from prefect_executions.dispatch.deploy import Deployed
    from prefect_executions.dispatch.submit import FinishedRun, Submitted

_ANY_DEPLOYMENT = SubmitOptions()


def deploy(
    method: str,
    /,
    *,
    options: Annotated[DeployOptions, Parameter(name="*")],
    inputs: InputOptions = NO_INPUTS,
    job_variable: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)] = (),
    as_json: Json = False,
) -> int:
    """Deploy a Method on a work pool, replacing its earlier deployment.

    Args:
        method: path.py:function, module:function, or the path of a descriptor.
        inputs.param: Set a default input: name=value (repeatable).
        job_variable: Set a variable of the pool's base job template: name=value (repeatable).
        as_json: Print one JSON document.
    """
    given, variables = inputs.read(), parse_inputs(job_variable, None)
    set_defaults()
    with status_line("Loading Prefect and the Method", quiet=as_json):
        # Prefect takes seconds to import; only commands that call it need it.
        from prefect_executions.dispatch.deploy import deploy as deploy_method  # noqa: PLC0415
        from prefect_executions.flow.entrypoints import load_deployable  # noqa: PLC0415

        flow = load_deployable(method)
    deployed = deploy_method(flow, method, options, parameters=given, variables=variables, here=Path.cwd())
    _show_deployed(deployed, as_json=as_json)
    return OK


def submit(
    method: str,
    /,
    *,
    inputs: InputOptions = NO_INPUTS,
    labels: LabelOptions = NO_LABELS,
    options: Annotated[SubmitOptions, Parameter(name="*")] = _ANY_DEPLOYMENT,
    wait: bool = False,
    as_json: Json = False,
) -> int:
    """Start a run of a deployed Method and print its id and link.

    Args:
        method: METHOD/DEPLOYMENT, or METHOD if it has one deployment on the pool.
        wait: Return when the run has ended: 0 if it completed, else 1.
        as_json: Print one JSON document.
    """
    given, settings = inputs.read(), Settings.read()
    tags, changes = labels.read()
    set_defaults()
    with status_line("Loading Prefect", quiet=as_json):
        # Prefect takes seconds to import; only commands that call it need it.
        from prefect_executions.capture.host import this_user  # noqa: PLC0415
        from prefect_executions.dispatch import submit as submission  # noqa: PLC0415

    submitted = submission.submit(method, given, options, by=settings.agent or this_user(), tags=tags, changes=changes)
    if submitted.waits and not as_json:
        warn(submitted.waits)
    if not wait:
        show_submitted(submitted, None, as_json=as_json)
        return OK
    if not as_json:
        warn(f"Execution {submitted.id} is submitted{f': {submitted.link}' if submitted.link else ''}")
    ended = submission.wait(open_catalog(settings), submitted.id, tell=warn)
    show_submitted(submitted, ended, as_json=as_json)
    return OK if ended.succeeded else FAILED


def _show_deployed(deployed: Deployed, *, as_json: bool) -> None:
    if as_json:
        show_json(deployed)
        return
    show_facts(
        [
            ("deployment", deployed.name),
            ("pool", f"{deployed.pool} ({deployed.type})"),
            ("entrypoint", deployed.entrypoint),
            ("folder", deployed.folder),
            ("link", deployed.link),
        ]
    )
    say(f"Next: executions submit {deployed.name}\n      prefect worker start --pool {deployed.pool}")


def show_submitted(submitted: Submitted, ended: FinishedRun | None, *, as_json: bool) -> None:
    """Show a submitted run, and its end if the command waited for it."""
    facts = {**submitted._asdict(), **(ended._asdict() if ended else {})}
    if as_json:
        show_json(facts)
        return
    show_facts(
        [
            ("execution", submitted.id),
            ("deployment", submitted.deployment),
            ("pool", submitted.pool),
            ("status", ended.status if ended else None),
            ("Prefect", facts["state"]),
            ("message", ended.message if ended and not ended.succeeded else None),
            ("link", submitted.link),
        ]
    )
    if ended is None:
        say(f"Next: executions watch {submitted.id}")
    elif ended.status is None:
        say("The record is not sealed yet, or not reachable from this machine. Next: executions settle --once")
    else:
        say(f"Next: executions show {submitted.id}")


def cancel(execution: OneId, /, *, wait: float = 60.0, as_json: Json = False) -> int:
    """Cancel an execution: stop its processes and keep its outputs.

    Args:
        execution: The execution's id or an id prefix; for a flow run that has not started, its full id.
        wait: Seconds to wait for the sealed record (default: 60).
        as_json: Print one JSON document.
    """
    settings = Settings.read()
    set_defaults()
    catalog = open_catalog(settings)
    with status_line("Loading Prefect", quiet=as_json):
        # Prefect takes seconds to import; only commands that call it need it.
        from prefect_executions.capture.host import this_user  # noqa: PLC0415
        from prefect_executions.dispatch.cancel import cancel as cancel_execution  # noqa: PLC0415

        connect_local_server(settings)
    result = cancel_execution(
        catalog,
        execution,
        by=settings.agent or this_user(),
        wait=timedelta(seconds=max(0.0, wait)),
        tell=warn,
    )
    if as_json:
        show_json(result)
    else:
        _show_cancelled(result)
    return _exit_code(result, waited=wait > 0)


def _show_cancelled(result: CancelResult) -> None:
    show_facts(
        [
            ("execution", result.id),
            ("status", result.status),
            ("Prefect", result.state),
            ("message", result.message),
        ]
    )
    if not result.sealed:
        say("The record is not sealed yet. Next: executions settle --once")
    elif result.status is not Status.CANCELLED:
        say("The execution ended before it could be cancelled.")
    else:
        say(f"Next: executions show {result.id}")


def _exit_code(result: CancelResult, *, waited: bool) -> int:
    if result.sealed:
        return OK if result.status is Status.CANCELLED else FAILED
    return OK if not waited or result.state == "Cancelled" else WORLD
