"""`Method.from_file`: a descriptor declared as a Method, which is a Prefect flow that keeps its record.

Its form and its values are the descriptor's own (`methods`); its scripts are
run by `phases`; all else is as of any `@method`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self, cast

from prefect.flows import Flow
from prefect.utilities.callables import parameter_schema
from pydantic import Field

from prefect_executions.descriptors.inputs import infrastructure_request, values_of
from prefect_executions.descriptors.inputs import parameter_schema as form_of
from prefect_executions.descriptors.loader import read_method, without_clear_secrets
from prefect_executions.descriptors.schema import ABSENT, default_of
from prefect_executions.errors import MethodError, NotFoundError, RequestError
from prefect_executions.flow import prefect_logs
from prefect_executions.flow.declared import Declared
from prefect_executions.flow.decorator import MethodFlow, options_of
from prefect_executions.flow.script_flow import scripted
from prefect_executions.methods.model import DESCRIPTOR_MODULE, InputDescription, check_type
from prefect_executions.methods.model import Method as Described
from prefect_executions.methods.secrets import marked
from prefect_executions.settings import Settings

_NOT_IN_NAMES = "/%&<>"
# Of Prefect, or of Python's calls.
_TAKEN = frozenset({"return_state", "wait_for", "self", "cls"})


class DescriptorMethod(MethodFlow[..., None]):
    """A Method from a descriptor, as a Prefect flow whose runs each leave an execution bundle.

    Attributes:
        place: The file of the descriptor.
    """

    def __init__(
        self, described: Described, place: Path, *, timeout_seconds: float | None = None, withheld: bool, **options: Any
    ) -> None:
        prefect_logs.shield()
        asked = _signature(described, form_of(described), asked_only=True)
        function = _function(described, place)
        options |= {"name": options.get("name") or _flow_name(described.id, place), "validate_parameters": False}
        options |= {"version": options.get("version") or described.version}
        options |= {"description": options.get("description") or described.description or described.title}
        try:
            Flow.__init__(self, function, **options)
        except ValueError as error:
            raise MethodError(f"{place}: {error}") from error
        self.should_validate_parameters = True  # by `validate_parameters` below, and not by annotations
        self.place, self._withheld = place, withheld
        self.time_limit = float(timeout_seconds) if timeout_seconds else described.time_limit
        self.__signature__ = asked
        self.parameters = parameter_schema(self)
        if not asked.parameters:
            self.description = marked(self.description, str(self.version))
        told = {"id": self.name, "version": self.version, "time_limit": self.time_limit}
        declared = Declared(
            function=function,
            method=described.model_copy(update=told),
            wrapped=described.secrets,
            descriptor=place,
            withheld=withheld,
        )
        self._record(declared, scripted(declared), inspect.signature(function))
        # What a deployment makes its entrypoint of: Prefect looks for a file that a function came from.
        self.__globals__ = {"__file__": DESCRIPTOR_MODULE}

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Return the Method that the descriptor at *path*, ``.json`` or ``.yaml``, tells.

        Raises:
            NotFoundError: If there is no such file.
            MethodError: If it is wrong; the message names each fault with its place.
        """
        place = Path(path)
        try:
            data = place.read_bytes()
        except OSError as error:
            raise NotFoundError(f"The descriptor {place} cannot be read: {error.strerror}") from error
        read = read_method(data, place.name)
        if read.type is not None:
            check_type(read.type, Settings.read().method_types)
        described = without_clear_secrets(read)
        return cls(described, place.absolute(), withheld=described != read)

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the values of all inputs: as given, bound, or by default; what was left out is None.

        Raises:
            InputError: If a value does not fit; the message names every such input.
            SecretError: If a secret is given in clear.
        """
        values = values_of(self.method, parameters)
        infrastructure_request(values)
        return {name: self._found(described, values.get(name)) for name, described in self.method.inputs.items()}

    def _found(self, described: InputDescription, value: Any) -> Any:
        """Return *value*; a file that is there by default is looked for beside the descriptor, unless it is here."""
        if not described.is_file or value != default_of(described) or not isinstance(value, str):
            return value
        beside = Path(os.path.normpath(self.place.parent / value))
        return str(beside) if "://" not in value and not Path(value).exists() and beside.is_file() else value

    def with_options(self, **options: Any) -> Self:
        """Return this Method with other flow options; takes what `Flow.with_options` takes."""
        changed = Flow.with_options(self, **options | {"validate_parameters": False})
        given = options.get("timeout_seconds")
        return type(self)(
            self.method,
            self.place,
            timeout_seconds=given if given is not None else self.time_limit,
            withheld=self._withheld,
            **options_of(cast("Flow[Any, Any]", changed)),
        )


class _Input(inspect.Parameter):
    """A parameter that is only ever given by its name, which may be one that Python has no word for."""

    _name: str

    def __init__(self, name: str, kind: Any, *, default: Any = inspect.Parameter.empty, annotation: Any = Any) -> None:
        super().__init__("input", kind, default=default, annotation=annotation)
        self._name = name


def _flow_name(method_id: str, place: Path) -> str:
    """Return the id, which is the name of the flow as well, where Prefect takes it as one."""
    fit = "".join("-" if letter in _NOT_IN_NAMES else letter for letter in method_id)
    if fit != method_id:
        told = " ".join(_NOT_IN_NAMES)
        raise MethodError(f"{place}: /id: '{method_id}' names a flow, too, which has none of {told}; write '{fit}'")
    return method_id


def _function(described: Described, place: Path) -> Callable[..., None]:
    def run(**inputs: Any) -> None:  # noqa: ARG001 - it only says what may be asked
        raise RequestError(f"Method '{described.id}' is made of scripts and runs as a flow: call the Method itself")

    run.__name__, run.__module__ = described.id, DESCRIPTOR_MODULE
    run.__qualname__ = os.path.relpath(place) if place.is_relative_to(Path.cwd()) else str(place)
    run.__doc__ = described.description
    run.__signature__ = _signature(described, form_of(described), asked_only=False)  # type: ignore[attr-defined]
    return run


def _signature(described: Described, form: Mapping[str, Any], *, asked_only: bool) -> inspect.Signature:
    """Return the signature that makes the form; or with all inputs, also those that the author bound."""
    parameters = []
    for name, one in described.inputs.items():
        if name in _TAKEN or name.startswith("_"):
            raise MethodError(f"Method '{described.id}': an input cannot be called '{name}'; rename it")
        if one.is_bound and asked_only:
            continue
        told = form["properties"].get(name, {})
        default = default_of(one)
        required = one.min_occurs and default is ABSENT and not one.is_bound
        parameters.append(
            _Input(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if required else None if default is ABSENT else default,
                annotation=Annotated[Any, Field(json_schema_extra=dict(told))],
            )
        )
    return inspect.Signature(parameters)
