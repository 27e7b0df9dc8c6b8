"""The types of Python that JSON lacks, with the JSON that stands for their values in a record, and how it is restored.

`values` has the rules. Law: nothing is imported or called because a record names it, except the types listed here.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import fractions
import pathlib
import re
import uuid
import zoneinfo
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from prefect_executions.errors import InputError
from prefect_executions.methods.model import InputFile

WITHHELD = {"withheld": True}
"""The recorded form of a secret."""

_DIGEST_MEMBERS = frozenset({"unrecorded", "dtype", "shape", "sha256"})
_TAGGED = (frozenset({"python", "value"}), frozenset({"python", "base64"}), frozenset({"python", "dtype", "value"}))

# A record may be foreign: a type such as S9999999999 would take all memory.
_TIMES = re.compile(r"[<>|=]?[mM]8(\[\d*\w+\])?")
_NUMBERS = re.compile(r"numpy\.(?P<type>bool|u?int\d{1,2}|float\d{2}|complex\d{2,3})")


def is_marker(form: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a form of this module and not an object of the caller."""
    keys = form.keys()
    return keys in _TAGGED or ("unrecorded" in keys and keys <= _DIGEST_MEMBERS) or keys == WITHHELD.keys()


def restore(form: Any) -> Any:
    """Return the value of *form*; objects of unknown classes are not restored.

    Raises:
        InputError: If the record does not contain the value, or this Python cannot make it.
    """
    match form:
        case list():
            return [restore(part) for part in form]
        case dict() if not is_marker(form):
            return {name: restore(part) for name, part in form.items()}
        case {"python": str() as name} if name in _RESTORERS:
            try:
                return _RESTORERS[name](form)
            except Exception as error:  # a foreign record may hold anything
                raise InputError(f"cannot be restored as {name}: {error}") from error
        case {"python": str() as name} if name.startswith("numpy."):
            return _numpy_value(name, form)
        case dict():
            raise InputError(f"is a {form.get('python') or form.get('unrecorded') or 'secret'}, which is not restored")
    return form


COLLECTIONS = frozenset({tuple, set, frozenset})
TEXTS: dict[type, tuple[str, Callable[[Any], str]]] = {
    dt.date: ("datetime.date", dt.date.isoformat),
    decimal.Decimal: ("decimal.Decimal", str),
    uuid.UUID: ("uuid.UUID", str),
    **{
        kind: (f"pathlib.{kind.__name__}", str)
        for kind in (pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath, pathlib.PureWindowsPath)
    },
}
PARTS: dict[type, tuple[str, Callable[[Any], Iterable[Any]]]] = {
    complex: ("complex", lambda value: (value.real, value.imag)),
    range: ("range", lambda value: (value.start, value.stop, value.step)),
    slice: ("slice", lambda value: (value.start, value.stop, value.step)),
    fractions.Fraction: ("fractions.Fraction", lambda value: (value.numerator, value.denominator)),
    dt.timedelta: ("datetime.timedelta", lambda value: (value.days, value.seconds, value.microseconds)),
    deque: ("collections.deque", lambda value: (list(value), value.maxlen)),
}


def _restored(form: Mapping[str, Any]) -> Any:
    return restore(form["value"])


def _pairs(form: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    return [(restore(key), restore(value)) for key, value in form["value"]]


def _restored_bytes(form: Mapping[str, Any]) -> bytes:
    return base64.b64decode(form["base64"], validate=True) if "base64" in form else str(form["value"]).encode()


def _restored_time(kind: type[Any], form: Mapping[str, Any]) -> Any:
    text, zone, fold = form["value"]
    value = kind.fromisoformat(text).replace(fold=fold)
    return value if zone is None else value.replace(tzinfo=zoneinfo.ZoneInfo(zone))


_RESTORERS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "int": lambda form: int(form["value"], 16),
    "float": lambda form: float(form["value"]),
    "str": lambda form: form["value"].encode("ascii").decode("unicode_escape"),
    "tuple": lambda form: tuple(_restored(form)),
    "set": lambda form: set(_restored(form)),
    "frozenset": lambda form: frozenset(_restored(form)),
    "dict": lambda form: dict(_pairs(form)),
    "bytes": _restored_bytes,
    "bytearray": lambda form: bytearray(_restored_bytes(form)),
    "complex": lambda form: complex(*_restored(form)),
    "range": lambda form: range(*_restored(form)),
    "slice": lambda form: slice(*_restored(form)),
    "collections.OrderedDict": lambda form: OrderedDict(_pairs(form)),
    "collections.Counter": lambda form: Counter(dict(_pairs(form))),
    "collections.deque": lambda form: deque(*_restored(form)),
    "datetime.date": lambda form: dt.date.fromisoformat(form["value"]),
    "datetime.datetime": partial(_restored_time, dt.datetime),
    "datetime.time": partial(_restored_time, dt.time),
    "datetime.timedelta": lambda form: dt.timedelta(*_restored(form)),
    "decimal.Decimal": lambda form: decimal.Decimal(form["value"]),
    "fractions.Fraction": lambda form: fractions.Fraction(*_restored(form)),
    "uuid.UUID": lambda form: uuid.UUID(form["value"]),
    "pathlib.PosixPath": lambda form: pathlib.PosixPath(_restored(form)),
    "pathlib.WindowsPath": lambda form: pathlib.WindowsPath(_restored(form)),
    "pathlib.PurePosixPath": lambda form: pathlib.PurePosixPath(_restored(form)),
    "pathlib.PureWindowsPath": lambda form: pathlib.PureWindowsPath(_restored(form)),
    "InputFile": lambda form: InputFile(_restored(form)),
}


def _numpy_value(name: str, form: Mapping[str, Any]) -> Any:
    """Return a scalar of NumPy, which is imported only here: a record may come from a machine that has it."""
    try:
        import numpy as np  # noqa: PLC0415 - optional, and slow to import

        if name == "numpy.str":
            return np.str_(_restored(form))
        if "dtype" in form and _TIMES.fullmatch(form["dtype"]):
            return np.array(form["value"], dtype=form["dtype"])[()]
        value = _restored(form)
        plain = complex(*value) if isinstance(value, list) else value
        return np.dtype(_NUMBERS.fullmatch(name)["type"]).type(plain)  # type: ignore[index]  # caught below
    except Exception as error:  # a foreign record may hold anything, and NumPy may be missing
        raise InputError(f"cannot be restored as {name}: {error}") from error
