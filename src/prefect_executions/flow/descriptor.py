"""`Method.from_file`: declares a descriptor as a Method, a Prefect flow that records each of its runs.

`descriptors` defines its form and its values, and `script_flow` runs its scripts. In all other
respects it is a Method like any `@method`.
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
from prefect_executions.descriptors.loader import read_method, without_plain_text_secrets
from prefect_executions.descriptors.schema import ABSENT, default_of
from prefect_executions.documents import read_small
from prefect_executions.errors import MethodError, NotFoundError, RequestError
from prefect_executions.flow import prefect_logs
from prefect_executions.flow.declared import Declared
from prefect_executions.flow.decorator import MethodFlow, options_of
from prefect_executions.flow.script_flow import scripted
from prefect_executions.methods.model import DESCRIPTOR_MODULE, InputDescription, check_type
from prefect_executions.methods.model import Method as Described
from prefect_executions.methods.secrets import marked
from prefect_executions.settings import Settings

_NOT_IN_FLOW_NAMES = "/%&<>"
# Arguments of Prefect's `Flow.__call__`, and of bound methods.
_RESERVED = frozenset({"return_state", "wait_for", "self", "cls"})


class DescriptorMethod(MethodFlow[..., None]):
    """A Method from a descriptor, as a Prefect flow whose runs each leave an execution bundle.

    Attributes:
        place: The file of the descriptor.
    """

    def __init__(
        self, described: Described, path: Path, *, timeout_seconds: float | None = None, withheld: bool, **options: Any
    ) -> None:
        prefect_logs.shield()
        form_signature = _signature(described, form_of(described), form_only=True)
        function = _function(described, path)
        options |= {"name": options.get("name") or _flow_name(described.id, path), "validate_parameters": False}
        options |= {"version": options.get("version") or described.version}
        options |= {"description": options.get("description") or described.description or described.title}
        try:
            Flow.__init__(self, function, **options)
        except ValueError as error:
            raise MethodError(f"{path}: {error}") from error
        self.should_validate_parameters = True  # with `validate_parameters` below, instead of annotations
        self.place, self._withheld = path, withheld
        self.time_limit = float(timeout_seconds) if timeout_seconds else described.time_limit
        self.__signature__ = form_signature
        self.parameters = parameter_schema(self)
        if not form_signature.parameters:
            self.description = marked(self.description, str(self.version))
        options_in_effect = {"id": self.name, "version": self.version, "time_limit": self.time_limit}
        declared = Declared(
            function=function,
            method=described.model_copy(update=options_in_effect),
            wrapped=described.secrets,
            descriptor=path,
            withheld=withheld,
        )
        self._record(declared, scripted(declared), inspect.signature(function))
        # Prefect builds the entrypoint of a deployment from the file of the function.
        self.__globals__ = {"__file__": DESCRIPTOR_MODULE}

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Return the Method of the descriptor at *path*, a ``.json`` or ``.yaml`` file.

        Raises:
            NotFoundError: If the file does not exist or cannot be read.
            MethodError: If the descriptor is invalid; the message lists each fault with its location.
        """
        file = Path(path)
        if file.exists() and not file.is_file():  # opening a pipe waits until another program writes into it
            raise NotFoundError(f"The descriptor {file} is not a file")
        try:
            data = read_small(file)
        except OSError as error:
            raise NotFoundError(f"The descriptor {file} cannot be read: {error.strerror}") from error
        parsed = read_method(data, file.name)
        if parsed.type is not None:
            check_type(parsed.type, Settings.read().method_types)
        described = without_plain_text_secrets(parsed)
        return cls(described, file.absolute(), withheld=described != parsed)

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the values of all inputs: given, bound or default; None for an omitted input.

        Raises:
            InputError: If values are invalid; the message names each of these inputs.
            SecretError: If a secret is given in plain text.
        """
        values = values_of(self.method, parameters)
        infrastructure_request(values)
        return {
            name: self._default_beside(described, values.get(name)) for name, described in self.method.inputs.items()
        }

    def _default_beside(self, described: InputDescription, value: Any) -> Any:
        """Return *value*; resolve a default file against the descriptor's folder if the working directory lacks it."""
        if not described.is_file or value != default_of(described) or not isinstance(value, str):
            return value
        beside = Path(os.path.normpath(self.place.parent / value))
        return str(beside) if "://" not in value and not Path(value).exists() and beside.is_file() else value

    def with_options(self, **options: Any) -> Self:
        """Return this Method with other flow options; takes the arguments of `Flow.with_options`."""
        changed = Flow.with_options(self, **options | {"validate_parameters": False})
        time_limit = options.get("timeout_seconds")
        return type(self)(
            self.method,
            self.place,
            timeout_seconds=time_limit if time_limit is not None else self.time_limit,
            withheld=self._withheld,
            **options_of(cast("Flow[Any, Any]", changed)),
        )


class _Input(inspect.Parameter):
    """A keyword-only parameter whose name need not be a Python identifier."""

    _name: str

    def __init__(self, name: str, kind: Any, *, default: Any = inspect.Parameter.empty, annotation: Any = Any) -> None:
        super().__init__("input", kind, default=default, annotation=annotation)
        self._name = name


def _flow_name(method_id: str, path: Path) -> str:
    """Return the id as the name of the flow; refuse characters that Prefect does not allow in flow names."""
    allowed = "".join("-" if letter in _NOT_IN_FLOW_NAMES else letter for letter in method_id)
    if allowed != method_id:
        characters = " ".join(_NOT_IN_FLOW_NAMES)
        raise MethodError(
            f"{path}: /id: '{method_id}' is also the flow name, which must not contain {characters}; write '{allowed}'"
        )
    return method_id


def _function(described: Described, path: Path) -> Callable[..., None]:
    def run(**inputs: Any) -> None:  # noqa: ARG001 - only its signature is used
        raise RequestError(
            f"Method '{described.id}' consists of scripts and runs only as a flow: call the Method itself"
        )

    run.__name__, run.__module__ = described.id, DESCRIPTOR_MODULE
    run.__qualname__ = os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    run.__doc__ = described.description
    run.__signature__ = _signature(described, form_of(described), form_only=False)  # type: ignore[attr-defined]
    return run


def _signature(described: Described, form: Mapping[str, Any], *, form_only: bool) -> inspect.Signature:
    """Return the signature with all inputs; with *form_only*, without those that the author bound, for the form."""
    parameters = []
    for name, description in described.inputs.items():
        if name in _RESERVED or name.startswith("_"):
            raise MethodError(f"Method '{described.id}': an input cannot have the reserved name '{name}'; rename it")
        if description.is_bound and form_only:
            continue
        schema = form["properties"].get(name, {})
        default = default_of(description)
        required = description.min_occurs and default is ABSENT and not description.is_bound
        parameters.append(
            _Input(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if required else None if default is ABSENT else default,
                annotation=Annotated[Any, Field(json_schema_extra=dict(schema))],
            )
        )
    return inspect.Signature(parameters)
