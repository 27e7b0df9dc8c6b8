"""`executions deploy` and `executions submit`: a Method on a work pool, and a request to it.

`executions cancel`: stop an execution, and keep what it has written.
"""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from cyclopts import Parameter

from prefect_executions.cli.arguments import Json, Pairs, Params, memory, parameters, reader, seconds, set_defaults
from prefect_executions.cli.exit_codes import FAILED, OK
from prefect_executions.cli.output import say, show_facts, show_json, warn, working
from prefect_executions.errors import RequestError
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect_executions.dispatch.deploy import Deployed
    from prefect_executions.dispatch.submit import FinishedRun, Submitted


from datetime import timedelta
from typing import TYPE_CHECKING

from prefect_executions.cli.exit_codes import WORLD
from prefect_executions.lifecycle.status import Status

if TYPE_CHECKING:
    from prefect_executions.dispatch.cancel import CancelResult

N = TypeVar("N", int, float)


def deploy(
    method: str,
    /,
    *,
    pool: str,
    name: str | None = None,
    image: str | None = None,
    folder: str | None = None,
    queue: str | None = None,
    schedule: tuple[str, ...] = (),
    timezone: str | None = None,
    param: Pairs = (),
    params: Params = None,
    job_variable: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)] = (),
    as_json: Json = False,
) -> int:
    """Deploy a Method on a work pool; done again it replaces what was there.

    Args:
        method: path.py:function, module:function, or the path of a descriptor.
        pool: The work pool: process, docker or kubernetes.
        name: The deployment's name; that of the pool when left out.
        image: The container image, of a docker or kubernetes pool.
        folder: Where the worker has the code; this folder, or /opt/executions in a container, when left out.
        queue: The work queue of the pool, which has a priority of its own.
        schedule: When it runs by itself: 15m, 2h, '0 6 * * *' or 'RRULE:…'; may be given several times.
        timezone: The time zone of the schedules; UTC when left out.
        param: An input that a run has when it names no other, as name=value; may be given several times.
        params: A JSON file with an object of inputs; - is standard input.
        job_variable: A variable of the pool's base job template, as name=value; may be given several times.
        as_json: One JSON document.
    """
    given, variables = parameters(param, params), parameters(job_variable, None)
    set_defaults()
    with working("Loading Prefect and the Method", quiet=as_json):
        # Prefect takes seconds to import; only what asks it needs it.
        from prefect_executions.dispatch.deploy import DeploymentOptions  # noqa: PLC0415
        from prefect_executions.dispatch.deploy import deploy as deploy_method  # noqa: PLC0415
        from prefect_executions.flow.entrypoints import load_deployable  # noqa: PLC0415

        flow = load_deployable(method)
    wanted = DeploymentOptions(
        pool=pool,
        name=name,
        image=image,
        folder=folder,
        queue=queue,
        schedules=schedule,
        timezone=timezone,
        parameters=given,
        job_variables=variables,
    )
    deployed = deploy_method(flow, method, wanted, here=Path.cwd())
    _tell_deployed(deployed, as_json=as_json)
    return OK


def submit(
    method: str,
    /,
    *,
    param: Pairs = (),
    params: Params = None,
    pool: str | None = None,
    queue: str | None = None,
    cpus: float | None = None,
    memory_limit: Annotated[str | None, Parameter(name="--memory")] = None,
    gpus: int | None = None,
    time_limit: str | None = None,
    idempotency_key: str | None = None,
    wait: bool = False,
    as_json: Json = False,
) -> int:
    """Start a run of a deployed Method, and say its id and its link.

    Args:
        method: The deployment, as METHOD/NAME, or the Method alone where it has one on the pool.
        param: An input, as name=value; may be given several times.
        params: A JSON file with an object of inputs; - is standard input.
        pool: The work pool, where the Method is deployed on several.
        queue: The work queue of the pool, in place of the deployment's.
        cpus: How many CPUs it may use.
        memory_limit: How much memory it may use: 512m, 4g.
        gpus: How many GPUs it gets.
        time_limit: How long the Method's code may run: 90s, 30m, 2h.
        idempotency_key: Text of your own; a second request with the same one starts nothing new.
        wait: Return when it has ended, with 0 if it ended well.
        as_json: One JSON document.
    """
    given = parameters(param, params)
    settings = Settings.read()
    set_defaults()
    with working("Loading Prefect", quiet=as_json):
        # Prefect takes seconds to import; only what asks it needs it.
        from prefect_executions.dispatch import submit as submission  # noqa: PLC0415
        from prefect_executions.runtimes.interface import Resources  # noqa: PLC0415

    resources = Resources(
        cpus=_positive("--cpus", cpus),
        memory=memory(memory_limit) if memory_limit else None,
        gpus=_positive("--gpus", gpus),
        time_limit=seconds(time_limit) if time_limit else None,
    )
    request = submission.Request(parameters=given, resources=resources, pool=pool, queue=queue, key=idempotency_key)
    submitted = submission.submit(method, request)
    if not wait:
        tell_submitted(submitted, None, as_json=as_json)
        return OK
    if not as_json:
        warn(f"Execution {submitted.id} is submitted{f': {submitted.link}' if submitted.link else ''}")
    ended = submission.wait(reader(settings), submitted.id, tell=warn)
    tell_submitted(submitted, ended, as_json=as_json)
    return OK if ended.succeeded else FAILED


def _tell_deployed(deployed: Deployed, *, as_json: bool) -> None:
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


def _positive(option: str, number: N | None) -> N | None:
    if number is not None and not 0 < number < inf:
        raise RequestError(f"{option} {number}: a number above 0 is wanted")
    return number


def tell_submitted(submitted: Submitted, ended: FinishedRun | None, *, as_json: bool) -> None:
    """Show what was submitted, and how it ended where that was waited for."""
    told = {**submitted._asdict(), **(ended._asdict() if ended else {})}
    if as_json:
        show_json(told)
        return
    show_facts(
        [
            ("execution", submitted.id),
            ("deployment", submitted.deployment),
            ("pool", submitted.pool),
            ("status", ended.status if ended else None),
            ("Prefect", told["state"]),
            ("message", ended.message if ended and not ended.succeeded else None),
            ("link", submitted.link),
        ]
    )
    if ended is None:
        say(f"Next: executions watch {submitted.id}")
    elif ended.status is None:
        say("Its record is not sealed yet, or cannot be reached from here. Next: executions settle --once")
    else:
        say(f"Next: executions show {submitted.id}")


def cancel(execution: str, /, *, wait: float = 60.0, as_json: Json = False) -> int:
    """Cancel an execution: stop it, with all that it has started, and keep what it has written.

    Args:
        execution: The id, or its beginning; of one that has not begun yet, the whole id of the flow run.
        wait: How many seconds its record is waited for; 60 when it is not said.
        as_json: One JSON document.
    """
    settings = Settings.read()
    set_defaults()
    catalog = reader(settings)
    with working("Loading Prefect", quiet=as_json):
        # Prefect takes seconds to import; only what asks it needs it.
        from prefect_executions.capture.host import this_user  # noqa: PLC0415
        from prefect_executions.dispatch.cancel import cancel as cancel_execution  # noqa: PLC0415

    cancelled = cancel_execution(
        catalog,
        execution,
        by=settings.agent or this_user(),
        wait=timedelta(seconds=max(0.0, wait)),
        tell=warn,
    )
    if as_json:
        show_json(cancelled)
    else:
        _show(cancelled)
    return _code(cancelled, asked_only=wait <= 0)


def _show(cancelled: CancelResult) -> None:
    show_facts(
        [
            ("execution", cancelled.id),
            ("status", cancelled.status),
            ("Prefect", cancelled.state),
            ("message", cancelled.message),
        ]
    )
    if not cancelled.sealed:
        say("Its record is not sealed yet. Next: executions settle --once")
    elif cancelled.status is not Status.CANCELLED:
        say("It had ended before it could be cancelled.")
    else:
        say(f"Next: executions show {cancelled.id}")


def _code(cancelled: CancelResult, *, asked_only: bool) -> int:
    if cancelled.sealed:
        return OK if cancelled.status is Status.CANCELLED else FAILED
    return OK if asked_only or cancelled.state == "Cancelled" else WORLD
