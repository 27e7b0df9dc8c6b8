"""Run a Method from an entrypoint, in a process that does nothing else."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

import prefect
from prefect.exceptions import ScriptError
from prefect.flows import Flow
from prefect.utilities.importtools import load_module, load_script_as_module

from prefect_executions.errors import MethodError, NotFoundError, RequestError
from prefect_executions.flow.decorator import MethodFlow, method
from prefect_executions.flow.invocation import Invocation, invoked
from prefect_executions.methods.model import descriptor_in
from prefect_executions.prefect_api import client as api_client

_FORMS = "Give path.py:function or module:function."


class Ran(NamedTuple):
    """One run of a Method: the ids of its executions so far, and what it raised."""

    execution_id: str | None
    error: BaseException | None


def load_method(entrypoint: str) -> MethodFlow[Any, Any]:
    """Return the Method at *entrypoint*: ``path.py:function``, ``module:function``, or the path of a descriptor.

    A plain flow or function becomes a Method as it is: a run is kept without
    its author learning anything new.

    Raises:
        NotFoundError: If there is nothing there; the message names it.
        RequestError: If the file cannot be run, or what is there is no function.
    """
    found = _found(entrypoint)
    return found if isinstance(found, MethodFlow) else method(cast("Flow[Any, Any]", found))


def load_deployable(entrypoint: str) -> MethodFlow[Any, Any]:
    """Return the Method at *entrypoint* as a worker finds it there, where nobody makes a Method of a plain flow.

    Raises:
        NotFoundError: If there is nothing there; the message names it.
        RequestError: If the file cannot be run.
        MethodError: If what is there is no Method: its runs would leave no record.
    """
    found = _found(entrypoint)
    if not isinstance(found, MethodFlow):
        raise MethodError(f"{entrypoint} is no Method, so a worker would keep no record of it: put @method above it")
    return found


def _found(entrypoint: str) -> Any:
    descriptor = descriptor_in(entrypoint)
    if descriptor is not None:
        # Most Methods have none, and with the runtimes it takes a tenth of a second to import.
        from prefect_executions.flow.descriptor import DescriptorMethod  # noqa: PLC0415

        return DescriptorMethod.from_file(descriptor)
    place, _, name = entrypoint.rpartition(":" if ":" in entrypoint else ".")
    if not place or not name or entrypoint.endswith(".py"):
        raise RequestError(f"'{entrypoint}' names no function. {_FORMS}")
    module = _module(entrypoint, place)
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, Flow) or inspect.isfunction(found):
        return found
    if found is None:
        raise NotFoundError(f"{entrypoint}: {place} has no '{name}'. {_flows_of(module)}")
    raise RequestError(f"{entrypoint} is a {type(found).__name__}; a Method is a function or a flow")


def _module(entrypoint: str, place: str) -> ModuleType:
    if place.endswith(".py") and not Path(place).is_file():
        raise NotFoundError(f"{entrypoint}: there is no file {place}. {_FORMS}")
    try:
        return load_script_as_module(place) if place.endswith(".py") else load_module(place)
    except ScriptError as error:
        raise RequestError(f"{entrypoint}: {place} cannot be run: {_words(error.user_exc)}") from error
    except Exception as error:  # it is the author's own code that runs here
        if isinstance(error, ModuleNotFoundError) and error.name and f"{place}.".startswith(f"{error.name}."):
            raise NotFoundError(f"{entrypoint}: there is no module '{place}'. {_FORMS}") from error
        raise RequestError(f"{entrypoint}: {place} cannot be run: {_words(error)}") from error


def _flows_of(module: ModuleType) -> str:
    names = [name for name, one in vars(module).items() if isinstance(one, Flow)]
    return f"What is a flow there: {', '.join(names)}." if names else "Nothing there is a flow."


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def run_method(
    flow: MethodFlow[Any, Any], parameters: Mapping[str, Any], invocation: Invocation, *, tags: Sequence[str] = ()
) -> Ran:
    """Run *flow* in this process, with its streams captured; return its last execution and what it raised.

    The flow run gets *tags*.

    Raises:
        RequestError: If a parameter is unknown or missing; no flow run was created.
        SecretError: If a secret was given in plain text.
    """
    execution_ids: list[str] = []

    def on_opened(execution_id: str) -> None:
        execution_ids.append(execution_id)
        invocation.on_opened(execution_id)

    _check_names(flow, parameters)
    error: BaseException | None = None
    with invoked(invocation._replace(on_opened=on_opened)), prefect.tags(*tags):
        try:
            result = flow(**parameters)
            if inspect.iscoroutine(result):
                asyncio.run(result)
        except (Exception, KeyboardInterrupt, SystemExit, asyncio.CancelledError) as raised:  # noqa: BLE001 - returned to the caller, who shows it
            error = api_client.too_large_error(raised, f"a run of '{flow.name}'", parameters) or raised
    return Ran(execution_ids[-1] if execution_ids else None, error)


def _check_names(flow: MethodFlow[Any, Any], parameters: Mapping[str, Any]) -> None:
    try:
        flow.call_signature.bind(**parameters)
    except TypeError as error:
        names = ", ".join(flow.call_signature.parameters) or "none"
        raise RequestError(f"Method '{flow.method.id}': {error}. Its inputs: {names}.") from error
