"""The inputs of a descriptor Method: its form, the validation of values, and CCP's special inputs.

The special inputs request an image, a number of replicas and a time limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from typing import Any

from prefect_executions.descriptors.parser import DescriptorFault, pointer
from prefect_executions.descriptors.schema import ABSENT, coerce, default_of, shorten, validator, value_schema
from prefect_executions.errors import InputError, SecretError
from prefect_executions.methods.model import FILE_FORMAT, InputDescription, Method
from prefect_executions.methods.secrets import MARK, SECRET_FORM, is_secret_reference
from prefect_executions.patterns import limited_time


def parameter_schema(method: Method) -> dict[str, Any]:
    """Return the form of a descriptor Method: the parameter schema of a Prefect deployment.

    Inputs that the author bound are left out. An input is required if it must occur
    and has no default. The first property carries the mark of a Method.
    """
    free = {name: described for name, described in method.inputs.items() if not described.is_bound}
    properties = {name: _property(name, described, place) for place, (name, described) in enumerate(free.items())}
    for first in list(properties)[:1]:
        properties[first][MARK] = method.version
    required = [name for name, described in free.items() if described.min_occurs and default_of(described) is ABSENT]
    schema = {"title": "Parameters", "type": "object", "properties": properties}
    return {**schema, **({"required": required} if required else {}), "definitions": {}}


def _property(name: str, described: InputDescription, place: int) -> dict[str, Any]:
    schema = value_schema(described)
    if described.is_file:
        (schema["items"] if described.is_list else schema)["format"] = FILE_FORMAT
    description = described.description or described.json_schema.get("description")
    if described.is_secret:
        hint = SECRET_FORM["description"]
        description = f"{description} ({hint})" if description else hint
    schema = {"title": described.title or described.json_schema.get("title") or name, "position": place} | schema
    schema |= {"description": description} if description else {}
    default = default_of(described)
    return schema if default is ABSENT else schema | {"default": default}


def values_of(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of every input: the *given* value, else the author's bound value or default.

    A value with another notation (``"7"`` for 7) is coerced. An optional input without
    a default is absent.

    Raises:
        InputError: If values are invalid; the message names every such input.
        SecretError: If a secret is given in plain text; the message does not repeat it.
    """
    with limited_time():
        return _values_of(method, given)


def _values_of(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    faults = [fault for name in given if name not in method.inputs for fault in _unknown(name, method)]
    values: dict[str, Any] = {}
    for name, described in method.inputs.items():
        try:
            value = _value(described, given.get(name, ABSENT))
            if described.is_secret and value is not ABSENT and not is_secret_reference(value):
                raise SecretError(
                    f"Method '{method.id}': input '{name}' is a secret and takes the name of a Prefect Secret block "
                    "or env:NAME, never the secret itself"
                )
            faults += _faults(name, described, value)
        except InputError as error:  # a regular expression that takes too long
            raise InputError(f"Method '{method.id}': input '{name}': {error}") from error
        if value is not ABSENT:
            values[name] = value
    if faults:
        listed = faults[0] if len(faults) == 1 else "".join(f"\n  {fault}" for fault in faults)
        raise InputError(f"Method '{method.id}': {listed}")
    return values


def _value(described: InputDescription, given: Any) -> Any:
    if given is None and not described.json_schema.get("nullable"):
        given = ABSENT  # Prefect's form sends null for an empty field
    if given is ABSENT:
        return default_of(described)
    return given if described.is_secret else coerce(given, described)


def _unknown(name: str, method: Method) -> Iterator[str]:
    near = get_close_matches(name, method.inputs, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"the Method has {', '.join(method.inputs) or 'no inputs'}"
    yield f"there is no input '{shorten(name)}'; {shorten(hint)}"


def _faults(name: str, described: InputDescription, value: Any) -> Iterator[str]:
    if value is ABSENT:
        if described.min_occurs:
            yield f"input '{name}' is missing"
        return
    if described.is_bound and value != default_of(described):
        yield f"input '{name}' is bound by the Method's author and cannot be overridden"
        return
    for error in validator(value_schema(described)).iter_errors(value):
        inside = "".join(f"/{step}" for step in error.absolute_path)
        yield f"input '{name}'{inside and f' at {inside}'}: {shorten(error.message)}"
        return


IMAGE = "ccpimage"
REPLICAS = "ccpreplicas"
MAX_TIME = "ccpmaxtime"

MAX_REPLICAS = 1000  # a typing error must not fill a cluster


@dataclass(frozen=True, kw_only=True)
class InfrastructureRequest:
    """The infrastructure that an execution requests, without a guarantee.

    Attributes:
        image: The container image, or None for the infrastructure's default.
        replicas: The number of parallel replicas, each with its own task id.
        time_limit: Seconds; a shorter limit of the infrastructure takes precedence.
    """

    image: str | None = None
    replicas: int = 1
    time_limit: float | None = None


def infrastructure_request(values: Mapping[str, Any]) -> InfrastructureRequest:
    """Return the infrastructure requested by the *values* of a Method's special inputs (see `values_of`).

    Raises:
        InputError: If a value is invalid, for example a negative number of replicas.
    """
    image = values.get(IMAGE)
    if image is not None and not isinstance(image, str):
        raise InputError(f"input '{IMAGE}': must be the name of a container image")
    if image and (image.startswith("-") or not image.isprintable() or any(sign.isspace() for sign in image)):
        raise InputError(f"input '{IMAGE}': {shorten(repr(image))} is not the name of a container image")
    replicas = _number(REPLICAS, values.get(REPLICAS), 1)
    if not 1 <= replicas <= MAX_REPLICAS or replicas != int(replicas):
        raise InputError(f"input '{REPLICAS}': must be an integer from 1 to {MAX_REPLICAS}")
    limit = _number(MAX_TIME, values.get(MAX_TIME), None)
    if limit is not None and limit <= 0:
        raise InputError(f"input '{MAX_TIME}': must be a number of seconds above 0")
    return InfrastructureRequest(image=image or None, replicas=int(replicas), time_limit=limit)


def request_faults(method: Method) -> Iterator[DescriptorFault]:
    """Yield the special inputs with an invalid default."""
    for name in (IMAGE, REPLICAS, MAX_TIME):
        described = method.inputs.get(name)
        default = default_of(described) if described else ABSENT
        if default is ABSENT:
            continue
        try:
            infrastructure_request({name: default})
        except InputError as error:
            yield DescriptorFault(pointer("inputs", name, "schema", "default"), str(error).partition(": ")[2])


def _number(name: str, value: Any, otherwise: Any) -> Any:
    if value is None or value == "":
        return otherwise
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or not isfinite(number):
        raise InputError(f"input '{name}': {shorten(repr(value))} is not a number")
    return number
