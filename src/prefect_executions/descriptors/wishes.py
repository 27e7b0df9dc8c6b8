"""CCP's special inputs: which image a Method runs in, in how many replicas, for how long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from prefect_executions.descriptors.parser import Fault, pointer
from prefect_executions.descriptors.schema import ABSENT, default_of, short
from prefect_executions.errors import InputError
from prefect_executions.methods.model import Method

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


def wish_faults(method: Method) -> Iterator[Fault]:
    """Yield the special inputs whose default is no wish."""
    for name in (IMAGE, REPLICAS, MAX_TIME):
        described = method.inputs.get(name)
        default = default_of(described) if described else ABSENT
        if default is ABSENT:
            continue
        try:
            wishes_of({name: default})
        except InputError as error:
            yield Fault(pointer("inputs", name, "schema", "default"), str(error).partition(": ")[2])


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
