"""What a descriptor Method asks of its users: the form, and the check of what they answer.

CCP's special inputs: which image a Method runs in, in how many replicas, for how long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from typing import Any

from prefect_executions.descriptors.parser import DescriptorFault, pointer
from prefect_executions.descriptors.schema import ABSENT, coerce, default_of, short, validator, value_schema
from prefect_executions.errors import InputError, SecretError
from prefect_executions.methods.model import FILE_FORMAT, InputDescription, Method
from prefect_executions.methods.secrets import MARK, SECRET_FORM, is_secret_reference


def parameter_schema(method: Method) -> dict[str, Any]:
    """Return the form of a descriptor Method, as Prefect's deployments hold it.

    What the author bound is no part of it. An input is required when it must
    occur and has no default. The first property carries the mark of a Method.
    """
    asked = {name: described for name, described in method.inputs.items() if not described.is_bound}
    properties = {name: _property(name, described, place) for place, (name, described) in enumerate(asked.items())}
    for first in list(properties)[:1]:
        properties[first][MARK] = method.version
    required = [name for name, described in asked.items() if described.min_occurs and default_of(described) is ABSENT]
    told = {"title": "Parameters", "type": "object", "properties": properties}
    return {**told, **({"required": required} if required else {}), "definitions": {}}


def _property(name: str, described: InputDescription, place: int) -> dict[str, Any]:
    told = value_schema(described)
    if described.is_file:
        (told["items"] if described.is_list else told)["format"] = FILE_FORMAT
    said = described.description or described.json_schema.get("description")
    if described.is_secret:
        said = f"{said} ({SECRET_FORM['description']})" if said else SECRET_FORM["description"]
    told = {"title": described.title or described.json_schema.get("title") or name, "position": place} | told
    told |= {"description": said} if said else {}
    default = default_of(described)
    return told if default is ABSENT else told | {"default": default}


def values_of(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of every input: as *given*, else as the author bound it, else its default.

    A value that is only written differently (``"7"`` for 7) is taken. An input
    that may be left out and has no default is absent.

    Raises:
        InputError: If a value does not fit; the message names every such input.
        SecretError: If a secret is given in clear; the message does not repeat it.
    """
    faults = [fault for name in given if name not in method.inputs for fault in _unknown(name, method)]
    values: dict[str, Any] = {}
    for name, described in method.inputs.items():
        value = _chosen(described, given.get(name, ABSENT))
        if described.is_secret and value is not ABSENT and not is_secret_reference(value):
            raise SecretError(
                f"Method '{method.id}': input '{name}' is a secret and takes the name of a Prefect Secret block "
                "or env:NAME, never the secret itself"
            )
        if value is not ABSENT:
            values[name] = value
        faults += _faults(name, described, value)
    if faults:
        told = faults[0] if len(faults) == 1 else "".join(f"\n  {fault}" for fault in faults)
        raise InputError(f"Method '{method.id}': {told}")
    return values


def _chosen(described: InputDescription, given: Any) -> Any:
    if given is None and not described.json_schema.get("nullable"):
        given = ABSENT  # Prefect's form sends null for a field that was left empty
    if given is ABSENT:
        return default_of(described)
    return given if described.is_secret else coerce(given, described)


def _unknown(name: str, method: Method) -> Iterator[str]:
    near = get_close_matches(name, method.inputs, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(method.inputs) or 'no inputs'}"
    yield f"there is no input '{short(name)}'; {short(hint)}"


def _faults(name: str, described: InputDescription, value: Any) -> Iterator[str]:
    if value is ABSENT:
        if described.min_occurs:
            yield f"input '{name}' is missing"
        return
    if described.is_bound and value != default_of(described):
        yield f"input '{name}' is bound by the Method's author and takes no other value"
        return
    for error in validator(value_schema(described)).iter_errors(value):
        inside = "".join(f"/{step}" for step in error.absolute_path)
        yield f"input '{name}'{inside and f' at {inside}'}: {short(error.message)}"
        return


IMAGE = "ccpimage"
REPLICAS = "ccpreplicas"
MAX_TIME = "ccpmaxtime"

MOST_REPLICAS = 1000  # a slip of the finger must not fill a cluster


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a request wants of the infrastructure; none is a promise.

    Attributes:
        image: The container image, or None for the infrastructure's own.
        replicas: How many run in parallel, each with its own task id.
        time_limit: Seconds; it only tightens the infrastructure's own limit.
    """

    image: str | None = None
    replicas: int = 1
    time_limit: float | None = None


def wishes_of(values: Mapping[str, Any]) -> Wishes:
    """Return the wishes among the *values* of a Method's inputs, as `values_of` gives them.

    Raises:
        InputError: If one is no wish, for example no whole number of replicas.
    """
    image = values.get(IMAGE)
    if image is not None and not isinstance(image, str):
        raise InputError(f"input '{IMAGE}': the name of a container image is wanted")
    if image and (image.startswith("-") or not image.isprintable() or any(sign.isspace() for sign in image)):
        raise InputError(f"input '{IMAGE}': {short(repr(image))} is no name of a container image")
    replicas = _number(REPLICAS, values.get(REPLICAS), 1)
    if not 1 <= replicas <= MOST_REPLICAS or replicas != int(replicas):
        raise InputError(f"input '{REPLICAS}': a whole number from 1 to {MOST_REPLICAS} is wanted")
    limit = _number(MAX_TIME, values.get(MAX_TIME), None)
    if limit is not None and limit <= 0:
        raise InputError(f"input '{MAX_TIME}': a number of seconds above 0 is wanted")
    return Wishes(image=image or None, replicas=int(replicas), time_limit=limit)


def wish_faults(method: Method) -> Iterator[DescriptorFault]:
    """Yield the special inputs whose default is no wish."""
    for name in (IMAGE, REPLICAS, MAX_TIME):
        described = method.inputs.get(name)
        default = default_of(described) if described else ABSENT
        if default is ABSENT:
            continue
        try:
            wishes_of({name: default})
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
        raise InputError(f"input '{name}': {short(repr(value))} is no number")
    return number
