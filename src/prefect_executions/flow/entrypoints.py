"""Entrypoints: load a Method from `path.py:function`, a module or a descriptor, and run it in this process."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NamedTuple, cast

import prefect
from prefect.exceptions import ScriptError, TerminationSignal
from prefect.flows import Flow
from prefect.utilities.importtools import load_module, load_script_as_module
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from prefect_executions.errors import InputError, MethodError, NotFoundError, RequestError
from prefect_executions.flow.decorator import MethodFlow, RefusedMethod, method
from prefect_executions.flow.inputs import annotations_of
from prefect_executions.flow.invocation import Invocation, invoked
from prefect_executions.methods.model import descriptor_in
from prefect_executions.prefect_api import client as api_client

_FAULTS = 3
_FORMS = "Give path.py:function or module:function."


class Ran(NamedTuple):
    """One run of a Method: the id of its last execution, and the exception that it raised."""

    execution_id: str | None
    error: BaseException | None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C or SIGTERM ended the run, perhaps as a request to cancel it."""
        return isinstance(self.error, KeyboardInterrupt | TerminationSignal)


def load_method(entrypoint: str) -> MethodFlow[Any, Any]:
    """Return the Method at *entrypoint*: ``path.py:function``, ``module:function``, or the path of a descriptor.

    A plain flow or function becomes a Method, so that its runs are recorded without any change to it.

    Raises:
        NotFoundError: If the file, module or function does not exist.
        RequestError: If the file cannot be run, or its member is not a function.
    """
    loaded = _load(entrypoint)
    return loaded if isinstance(loaded, MethodFlow) else method(cast("Flow[Any, Any]", loaded))


def load_deployable(entrypoint: str) -> MethodFlow[Any, Any]:
    """Return the Method at *entrypoint*; refuse a plain flow, because a worker would run it without a record.

    Raises:
        NotFoundError: If the file, module or function does not exist.
        RequestError: If the file cannot be run.
        MethodError: If it is not a Method.
    """
    loaded = _load(entrypoint)
    if not isinstance(loaded, MethodFlow):
        raise MethodError(f"{entrypoint} is not a Method, so a worker would not record its runs: put @method above it")
    return loaded


def _load(entrypoint: str) -> Any:
    descriptor = descriptor_in(entrypoint)
    if descriptor is not None:
        # Few Methods have a descriptor, and with the runtimes this takes a tenth of a second to import.
        from prefect_executions.flow.descriptor import DescriptorMethod  # noqa: PLC0415

        return DescriptorMethod.from_file(descriptor)
    source, _, name = entrypoint.rpartition(":" if ":" in entrypoint else ".")
    if not source or not name or entrypoint.endswith(".py"):
        raise RequestError(f"'{entrypoint}' names no function. {_FORMS}")
    module = _load_module(entrypoint, source)
    member: Any = module
    for part in name.split("."):
        member = getattr(member, part, None)
    if isinstance(member, RefusedMethod):
        raise member.error
    if isinstance(member, Flow) or inspect.isfunction(member):
        return member
    if member is None:
        raise NotFoundError(f"{entrypoint}: {source} has no '{name}'. {_list_flows(module)}")
    raise RequestError(f"{entrypoint} is a {type(member).__name__}; a Method is a function or a flow")


def _load_module(entrypoint: str, source: str) -> ModuleType:
    if source.endswith(".py") and not Path(source).is_file():
        raise NotFoundError(f"{entrypoint}: there is no file {source}. {_FORMS}")
    try:
        return load_script_as_module(source) if source.endswith(".py") else load_module(source)
    except ScriptError as error:
        advice = _as_module(entrypoint) if "relative import" in str(error.user_exc) else ""
        raise RequestError(f"{entrypoint}: {source} cannot be run: {_describe(error.user_exc)}{advice}") from error
    except Exception as error:  # importing runs the author's code
        if isinstance(error, ModuleNotFoundError) and error.name and f"{source}.".startswith(f"{error.name}."):
            raise NotFoundError(f"{entrypoint}: there is no module '{source}'. {_FORMS}") from error
        raise RequestError(f"{entrypoint}: {source} cannot be run: {_describe(error)}") from error


def _as_module(entrypoint: str) -> str:
    """Return how to run a file of a package, whose relative imports need the name of its module."""
    source, _, function = entrypoint.partition(":")
    path = Path(source).resolve()
    root = path.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    module = ".".join(path.relative_to(root).with_suffix("").parts)
    place = "" if root == Path.cwd() else f" in the folder {root}"
    return f". Give the name of its module{place}: {module}:{function}" if root != path.parent else ""


def _list_flows(module: ModuleType) -> str:
    names = [name for name, member in vars(module).items() if isinstance(member, Flow)]
    return f"Its flows: {', '.join(names)}." if names else "It has no flows."


def _describe(error: BaseException) -> str:
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

    arguments = _arguments(flow, parameters)
    error: BaseException | None = None
    with invoked(invocation._replace(on_opened=on_opened)), prefect.tags(*tags), _surviving_sigterm():
        try:
            result = flow(*arguments.args, **arguments.kwargs)
            if inspect.iscoroutine(result):
                asyncio.run(result)
        except BaseException as raised:  # noqa: BLE001 - returned to the caller, who shows it
            error = api_client.too_large_error(raised, f"a run of '{flow.name}'", parameters) or raised
    return Ran(execution_ids[-1] if execution_ids else None, error)


def check_inputs(flow: MethodFlow[Any, Any], parameters: Mapping[str, Any]) -> None:
    """Refuse wrong *parameters* now: Prefect refuses a wrong type after it has created the flow run, which then failed.

    References to Prefect's blocks and to secrets are left to Prefect, which resolves them first.

    Raises:
        RequestError: If a parameter is unknown, missing or of a wrong type.
        SecretError: If a secret was given in plain text.
    """
    arguments = _arguments(flow, parameters)
    if not flow.should_validate_parameters:
        return
    if type(flow).validate_parameters is not Flow.validate_parameters:  # a descriptor's, which calls nothing
        flow.validate_parameters(dict(arguments.arguments))
        return
    annotations, faults = annotations_of(flow.fn), []
    for name, value in arguments.arguments.items():
        if name in annotations and not _is_reference(value):
            try:
                annotations[name].validate(value)
            except ValidationError as error:
                faults += [_fault(name, part) for part in error.errors(include_url=False, include_input=False)]
            except Exception:  # noqa: BLE001, S112 - the author's validator: Prefect calls it and reports its error
                continue
    if faults:
        more = f" (and {len(faults) - _FAULTS} more)" if len(faults) > _FAULTS else ""
        raise InputError(f"Method '{flow.method.id}': {'; '.join(faults[:_FAULTS])}{more}")


def _fault(name: str, part: ErrorDetails) -> str:
    where = ".".join(map(str, [name, *part["loc"]]))
    message = part["msg"]
    colon = "" if message.startswith("Input ") else ":"  # "Input should be a valid integer"
    return f"input '{where}'{colon} {message.removeprefix('Input ')}"


def _is_reference(value: Any) -> bool:
    if isinstance(value, dict):
        return "$ref" in value or any(map(_is_reference, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_is_reference, value))
    return isinstance(value, str) and value.startswith("env:")


@contextmanager
def _surviving_sigterm() -> Iterator[None]:
    """Raise `TerminationSignal` for SIGTERM in the block, so that the caller can show how the run ended.

    Prefect's engine does so while a flow runs, and then sends the signal again, for the handler before it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise_termination)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: a C library has set the handler


def _raise_termination(number: int, _frame: FrameType | None) -> None:
    raise TerminationSignal(number)


def _arguments(flow: MethodFlow[Any, Any], parameters: Mapping[str, Any]) -> inspect.BoundArguments:
    """Return *parameters* as the arguments of a call.

    As in a deployment, ``*args`` and ``**kwargs`` may be given by their names, as a list and an object.
    """
    signature = flow.call_signature
    known = {name: value for name, value in parameters.items() if name in signature.parameters}
    unknown = {name: value for name, value in parameters.items() if name not in signature.parameters}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            known[name], unknown = dict(known.get(name, {})) | unknown, {}
    given = inspect.BoundArguments(signature, OrderedDict(known))
    if any(signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL for name in known):
        given.apply_defaults()  # positions before it must be filled
    try:
        return signature.bind(*given.args, **given.kwargs | unknown)
    except TypeError as error:
        names = ", ".join(signature.parameters) or "none"
        raise RequestError(f"Method '{flow.method.id}': {error}. Its inputs: {names}.") from error
