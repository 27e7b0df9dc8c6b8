"""The recorded form of Python values: JSON that gives back the same value, or else type, shape and digest.

- A value of JSON stands for itself.
- ``{"python": "tuple", "value": [1, 2]}`` is a value that JSON lacks; `restore` returns an equal value of that type.
- ``{"python": "survey.Channel", "value": "red"}`` is an object of another class, with its content. It is not
  restored, because a record must not choose which code is imported.
- ``{"unrecorded": "numpy.ndarray", "dtype": "float64", "shape": [2, 3], "sha256": "…"}`` is a value that only its
  digest identifies: of an array's bytes in C order, else of its pickle (protocol 5).
- ``{"withheld": true}`` is a secret.

Law: a form that `restore` accepts restores to the recorded value. Two values with equal forms are equal.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import hashlib
import json
import pickle
import types
import zoneinfo
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sized
from enum import Enum
from math import inf, isfinite, isnan, prod
from typing import Any, NamedTuple

from pydantic import BaseModel, RootModel, SecretBytes, SecretStr

from prefect_executions.documents import TOO_LONG, clean_text, json_value
from prefect_executions.errors import InputError
from prefect_executions.executions.value_types import COLLECTIONS, PARTS, TEXTS, WITHHELD, is_marker, restore
from prefect_executions.methods.model import InputFile

_MAX_DEPTH = 50
"""How deeply a recorded value may be nested: readers accept less than 200 levels, and a form has three for one."""
_MAX_VALUES = 1_000_000
"""How many values one input may have in the record; `documents.MAX_VALUES` is the limit of readers."""
_MAX_MEMBERS = 100_000

_SECRETS = (SecretStr, SecretBytes)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, type)


class _UnfitError(Exception):
    """The value is nested too deeply or in itself, or has too many parts."""


def recorded_form(value: Any, *, content: bool = False) -> Any:
    """Return *value* in the form of this module; with *content*, an object of an unknown class is its content alone.

    Raises:
        InputError: If neither the value nor its digest can be recorded; the message names its type.
    """
    try:
        return _Encoder(content=content).encode(value, 0)
    except (_UnfitError, RecursionError):
        return digest_form(value)


def readable_form(
    value: Any, *, max_values: int = _MAX_VALUES, max_digested: float = inf, max_text: float = inf
) -> tuple[Any, tuple[str, ...]]:
    """Return *value* as JSON for readers, and the types of the parts that it lacks; never raises.

    A value of more than *max_values* parts, or with more than *max_text* characters and bytes of text in it, lacks
    all of them. Once the arrays in it have more than *max_digested* bytes together, digests are left out.

    A tuple or set is a list, and a path, a date or an enum its text or value. A number
    that JSON lacks has the form of this module.
    """
    encoder = _Encoder(readable=True, max_values=max_values, max_digested=max_digested, max_text=max_text)
    try:
        form = encoder.encode(value, 0)
    except Exception:  # noqa: BLE001 - the author's own classes may raise anything; a report must not end the Method
        return {"unrecorded": type_name(value)}, (type_name(value),)
    return form, tuple(dict.fromkeys(encoder.unrecorded))


def digest_form(value: Any) -> dict[str, Any]:
    """Return the type, shape and digest of *value*.

    Raises:
        InputError: If it cannot be digested, because Python cannot pickle it; the message names its type.
    """
    try:
        return {**_shape_form(value), "sha256": _digest(value)}
    except Exception as error:
        raise InputError(
            f"is a {type_name(value)}, which a record cannot hold ({type(error).__name__}: {error}). "
            "Pass what it is made from, and make it inside the Method"
        ) from error


def _shape_form(value: Any) -> dict[str, Any]:
    form: dict[str, Any] = {"unrecorded": type_name(value)}
    if (kind := getattr(value, "dtype", None)) is not None:
        form["dtype"] = clean_text(str(kind))
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        form["shape"] = [int(length) for length in shape]
    return form


def type_name(value: object) -> str:
    """Return ``<module>.<type>`` of *value*."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def has_marker(form: Any) -> bool:
    """Whether any part of *form* is a form of this module."""
    return _any(form, lambda _: True)


def has_unknown(form: Any) -> bool:
    """Whether a part of the value is not in the record: withheld, or with a digest only."""
    return _any(form, lambda marker: "python" not in marker)


class ValueForm(NamedTuple):
    """The recorded form of an input, and whether a rerun with this form gives the Method an equal value."""

    form: Any
    exact: bool


def input_form(value: Any, validate: Callable[[Any], Any], *, converts: bool = False) -> ValueForm:
    """Return the form of an input whose requested value *validate* converts, as the Method's annotation does.

    The plainest exact form is taken: ``"Infinity"`` for a parameter that is a `float`,
    an object's content for a parameter that is of its class. Set *converts* if *validate*
    may change a value that it has returned.

    Raises:
        InputError: If neither the value nor its digest can be recorded; the message names its type.
    """
    full = recorded_form(value)
    if not converts and not has_marker(full):
        return ValueForm(full, exact=True)
    if has_unknown(full):
        return ValueForm(full, exact=False)
    for form in (json_value(value), recorded_form(value, content=True), full):
        try:
            if same_form(recorded_form(validate(restore(form))), full):
                return ValueForm(form, exact=True)
        except Exception:  # noqa: BLE001, S112 - validation runs the author's code, and the next form may pass
            continue
    return ValueForm(full, exact=False)


def same_form(left: Any, right: Any) -> bool:
    """Whether two forms are equal as JSON text, in which 1, 1.0 and true differ."""
    return json.dumps(left) == json.dumps(right)


def text_of(form: Any) -> str:
    """Return *form* for a reader: JSON, with the values that JSON lacks as Python writes them."""
    try:
        if has_marker(form) and not has_unknown(form):
            return clean_text(repr(restore(form)))
    except InputError:
        pass
    return json.dumps(form, ensure_ascii=False)


def _any(form: Any, test: Callable[[Mapping[str, Any]], bool]) -> bool:
    match form:
        case dict():
            return (is_marker(form) and test(form)) or any(_any(part, test) for part in form.values())
        case list():
            return any(_any(part, test) for part in form)
    return False


class _Encoder:
    """Makes the form of one value.

    Attributes:
        unrecorded: The types of the parts that have no form, with *readable*.
    """

    def __init__(
        self,
        *,
        content: bool = False,
        readable: bool = False,
        max_values: int = _MAX_VALUES,
        max_digested: float = inf,
        max_text: float = inf,
    ) -> None:
        self._content = content
        self._readable = readable
        self._max_values = max_values
        self._digestible = max_digested
        self._text_left = max_text
        self._values = 0
        self._open: set[int] = set()
        self.unrecorded: list[str] = []

    def encode(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is str:
            self._take(len(value))
            return value if value.isascii() or clean_text(value) == value else self._text(value)
        if kind is int:
            return value if -TOO_LONG < value < TOO_LONG else _tag("int", hex(value))
        if kind is float:
            return value if isfinite(value) else _tag("float", _not_finite(value))
        self._values += 1
        if self._values > self._max_values or depth > _MAX_DEPTH or id(value) in self._open:
            raise _UnfitError
        self._open.add(id(value))
        try:
            return self._compound(value, kind, depth + 1)
        finally:
            self._open.discard(id(value))

    def _take(self, length: int) -> None:
        self._text_left -= length
        if self._text_left < 0:
            raise _UnfitError

    def _compound(self, value: Any, kind: type, depth: int) -> Any:
        if kind is list:
            return self._items(value, depth)
        if kind is dict:
            return self._mapping(value, "dict", depth)
        if kind in COLLECTIONS:
            items = self._items(value, depth)
            items = items if kind is tuple else sorted(items, key=json.dumps)
            return items if self._readable else _tag(kind.__name__, items)
        if kind in TEXTS or kind in PARTS:
            return self._standard(value, kind, depth)
        return self._object(value, kind, depth)

    def _standard(self, value: Any, kind: type, depth: int) -> Any:
        if kind in TEXTS:
            name, text = TEXTS[kind]
            return text(value) if self._readable else _tag(name, self.encode(text(value), depth))
        if kind is dt.timedelta and self._readable:
            return json_value(value)
        if kind is deque and len(value) > self._max_values:
            raise _UnfitError
        name, parts = PARTS[kind]
        return _tag(name, self._items(parts(value), depth))

    def _items(self, values: Iterable[Any], depth: int) -> list[Any]:
        if isinstance(values, Sized) and len(values) > self._max_values:
            raise _UnfitError
        values = list(values)
        self._values += len(values)
        if self._values > self._max_values:
            raise _UnfitError
        return [self.encode(value, depth) for value in values]

    def _mapping(self, value: Mapping[Any, Any], name: str, depth: int) -> Any:
        if len(value) > min(_MAX_MEMBERS, self._max_values):
            raise _UnfitError
        names = [self._name(key) for key in value]
        if name == "dict" and None not in names and len(set(names)) == len(names):
            members = {str(key): self.encode(part, depth) for key, part in zip(names, value.values(), strict=True)}
            self._values += len(members)
            if not is_marker(members):
                return members
        return _tag(name, [[self.encode(key, depth), self.encode(part, depth)] for key, part in value.items()])

    def _name(self, key: Any) -> str | None:
        """Return *key* as the name of a JSON member; None if the name would not be the key."""
        if isinstance(key, str):
            self._take(len(key))
        if self._readable and (isinstance(key, str) or (type(key) is int and -TOO_LONG < key < TOO_LONG)):
            return clean_text(str(key.value if isinstance(key, Enum) else key))
        return key if type(key) is str and clean_text(key) == key else None

    def _text(self, value: str) -> Any:
        if self._readable:
            return clean_text(value)
        return _tag("str", value.encode("unicode_escape").decode("ascii"))  # a lone surrogate has no UTF-8

    def of_bytes(self, value: bytes | bytearray, _depth: int) -> Any:
        self._take(len(value))
        data, name = bytes(value), type(value).__name__
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return {"python": name, "base64": base64.b64encode(data).decode()}
        return text if self._readable else _tag(name, text)

    def _object(self, value: Any, kind: type, depth: int) -> Any:
        try:
            form = self._known_object(value, kind, depth)
            return self._without_form(value) if form is _NO_FORM else form
        except (_UnfitError, RecursionError, InputError):
            raise
        except Exception:  # noqa: BLE001 - the author's own class may raise anything
            return self._without_form(value)

    def _known_object(self, value: Any, kind: type, depth: int) -> Any:
        rule = next((rule for applies, rule in _RULES if applies(value, kind)), None)
        return _NO_FORM if rule is None else rule(self, value, depth)

    def of_file(self, value: InputFile, depth: int) -> Any:
        return str(value) if self._readable else _tag("InputFile", self.encode(str(value), depth))

    def of_enum(self, value: Enum, depth: int) -> Any:
        return self._instance(value, self.encode(value.value, depth))

    def of_dataclass(self, value: Any, depth: int) -> Any:
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return self._instance(value, self._mapping(fields, "dict", depth))

    def of_named_tuple(self, value: tuple[Any, ...], depth: int) -> Any:
        return self._instance(value, self._items(value, depth))

    def of_ordered(self, value: Mapping[Any, Any], depth: int) -> Any:
        return self._mapping(value, type_name(value), depth)

    def of_function(self, value: Any, _depth: int) -> Any:
        if self._readable or "<" in value.__qualname__:
            return _NO_FORM
        return _tag(type_name(value), f"{value.__module__}:{value.__qualname__}")

    def of_subclass_of_str(self, value: str, _depth: int) -> Any:
        self._take(len(value))
        return clean_text(str.__str__(value)) if self._readable else _NO_FORM

    def _instance(self, value: Any, content: Any) -> Any:
        return content if self._content or self._readable else _tag(type_name(value), content)

    def of_model(self, value: BaseModel, depth: int) -> Any:
        if isinstance(value, RootModel):
            return self._instance(value, self.encode(value.root, depth))
        fields = {
            field.serialization_alias or name: getattr(value, name) for name, field in type(value).model_fields.items()
        }
        content = self._mapping(fields | (value.model_extra or {}), "dict", depth)
        private = getattr(value, "__pydantic_private__", None)
        if private and not self._content and not self._readable:
            return _tag(type_name(value), [content, self._mapping(private, "dict", depth)])
        return self._instance(value, content)

    def of_time(self, value: dt.datetime | dt.time, depth: int) -> Any:
        name = type_name(value)
        if self._readable:
            return value.isoformat()
        zone = value.tzinfo
        if isinstance(zone, zoneinfo.ZoneInfo) and zone.key:
            return _tag(name, self._items((value.replace(tzinfo=None).isoformat(), zone.key, value.fold), depth))
        if zone is not None and type(zone) is not dt.timezone:
            return _NO_FORM
        return _tag(name, [value.isoformat(), None, value.fold])

    def of_numpy(self, value: Any, depth: int) -> Any:
        kind, name = value.dtype.kind, f"numpy.{value.dtype.name}"
        if kind in "biu" or (kind == "f" and value.dtype.itemsize <= 8):  # noqa: PLR2004 - a double; longer floats lose digits
            plain = self.encode(value.item(), depth)
            return plain if self._readable else _tag(name, plain)
        if kind == "c" and value.dtype.itemsize <= 16:  # noqa: PLR2004 - two doubles
            return _tag(name, self._items((float(value.real), float(value.imag)), depth))
        if kind == "U":
            return (
                self.encode(str(value), depth) if self._readable else _tag("numpy.str", self.encode(str(value), depth))
            )
        if kind in "mM":
            number = int(value.astype("int64"))
            missing = str(value) == "NaT"
            plain = str(value) if kind == "M" or missing else number
            return {"python": name.partition("[")[0], "dtype": value.dtype.str, "value": plain}
        return _NO_FORM

    def _without_form(self, value: Any) -> Any:
        if not self._readable:
            return digest_form(value)
        self.unrecorded.append(type_name(value))
        try:
            if not isinstance(getattr(value, "shape", None), tuple):
                return _bare(value)
            size = _bytes_of(value)
            if size > self._digestible:
                return _shape_form(value)
            self._digestible -= size
            return digest_form(value)
        except Exception:  # noqa: BLE001 - the author's own class may raise anything
            return _bare(value)


_NO_FORM = object()


def _bytes_of(value: Any) -> int:
    """Return the size of an array, or an estimate: of a table, eight bytes a cell."""
    size = getattr(value, "nbytes", None)
    return int(size) if isinstance(size, int) else 8 * prod(int(length) for length in value.shape)


def _bare(value: object) -> dict[str, str]:
    return {"unrecorded": type_name(value)}


def _tag(name: str, value: Any) -> dict[str, Any]:
    return {"python": name, "value": value}


def _not_finite(number: float) -> str:
    return "NaN" if isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _reference(value: Any) -> str:
    return f"{value.__module__}:{value.__qualname__}"


def _is_numpy_scalar(value: Any) -> bool:
    if type(value).__module__ != "numpy" or hasattr(value, "__array_finalize__"):  # the latter is an array
        return False
    return getattr(value, "shape", None) == ()


def _digest(value: Any) -> str:
    kind = type(value)
    if (kind.__module__, kind.__qualname__) == ("numpy", "ndarray") and not value.dtype.hasobject:
        return hashlib.sha256(value.tobytes()).hexdigest()
    sink = _DigestSink()
    _DigestPickler(sink, protocol=5, buffer_callback=sink.add).dump(value)
    return sink.digest.hexdigest()


class _DigestSink:
    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return len(data)

    def add(self, buffer: pickle.PickleBuffer) -> None:
        self.digest.update(buffer.raw())


class _DigestPickler(pickle.Pickler):
    """Excludes secrets: the digest of a short secret would reveal it to a brute-force search."""

    def persistent_id(self, value: Any) -> str | None:
        return "withheld" if isinstance(value, _SECRETS) else None


_RULES: tuple[tuple[Callable[[Any, type], bool], Callable[[_Encoder, Any, int], Any]], ...] = (
    (lambda _, kind: kind in {bytes, bytearray}, _Encoder.of_bytes),
    (lambda _, kind: kind in {dt.datetime, dt.time}, _Encoder.of_time),
    (lambda _, kind: kind in {OrderedDict, Counter}, _Encoder.of_ordered),
    (lambda value, _: isinstance(value, _SECRETS), lambda *_: dict(WITHHELD)),
    (lambda value, _: isinstance(value, InputFile), _Encoder.of_file),
    (lambda value, _: _is_numpy_scalar(value), _Encoder.of_numpy),
    (lambda value, _: isinstance(value, Enum), _Encoder.of_enum),
    (lambda value, _: isinstance(value, BaseModel), _Encoder.of_model),
    (lambda value, _: dataclasses.is_dataclass(value) and not isinstance(value, type), _Encoder.of_dataclass),
    (lambda value, _: isinstance(value, tuple) and hasattr(value, "_fields"), _Encoder.of_named_tuple),
    (lambda value, _: isinstance(value, _FUNCTIONS), _Encoder.of_function),
    (lambda value, _: isinstance(value, str), _Encoder.of_subclass_of_str),
)
"""The form of objects, by the first rule that applies."""
