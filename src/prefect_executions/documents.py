"""How every JSON document of a bundle is written and read: UTF-8, stable order, one format number.

A document is a frozen pydantic model. Its JSON names are camelCase, as OGC API
Processes writes them; a member that was not observed is absent, never null.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from math import isfinite, isnan
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainSerializer, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import to_jsonable_python

from prefect_executions.errors import BundleError

FORMAT: Literal[1] = 1

MOST_VALUES = 3_000_000
"""How many values a document may hold, of some 100 bytes each in memory; the crate of 100,000 outputs has 1,100,000."""

MOST_MEMBERS = 200_000
"""How many members an object in it may have: Prefect takes no parameters with that many, and lists hold the rest."""

TOO_LONG = 10**4300
"""The first whole number that is too long for JSON's readers, Python's own among them."""

_FAULTS_TOLD = 1000


def in_utc(time: datetime) -> datetime:
    """Return *time* as a plain datetime in UTC; one without an offset is refused, because it was not observed.

    Prefect's times are of a subclass whose arithmetic is another.
    """
    if time.tzinfo is None:
        raise ValueError("a time needs an offset from UTC")
    utc = time.astimezone(UTC)
    return datetime.combine(utc.date(), utc.time(), UTC)


def text_of_time(time: datetime) -> str:
    """Return *time* as UTC with microseconds and ``+00:00`` (design, section 5)."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


Time = Annotated[datetime, AfterValidator(in_utc), PlainSerializer(text_of_time, return_type=str, when_used="json")]


class Part(BaseModel):
    """A part of a document: frozen, closed, camelCase in JSON."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        ser_json_inf_nan="strings",
        serialize_by_alias=True,
    )


class OgcLink(Part):
    """A link as OGC API Processes writes it."""

    href: str
    rel: str | None = None
    type: str | None = None
    title: str | None = None


class Document(Part):
    """One JSON file of a bundle."""

    file_name: ClassVar[str]
    """Where the document lies in its bundle."""

    format: Literal[1] = FORMAT

    def to_json(self) -> bytes:
        """Return the document's bytes; the same document gives the same bytes."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read a document.

        Raises:
            BundleError: If *data* is not this document; the message names the first wrong member.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            if error.error_count() > _FAULTS_TOLD:  # to tell them takes more memory than to find them
                raise BundleError(f"{cls.file_name}: {error.error_count()} of its members are wrong") from None
            first = error.errors(include_url=False, include_input=False)[0]
            where = "/".join(str(step) for step in first["loc"]) or "the document"
            raise BundleError(f"{cls.file_name}: {where}: {first['msg']}") from error


def json_value(value: Any) -> Any:
    """Return *value* as JSON can hold it: what JSON has no form for becomes its type's name in words.

    A value whose text form is not known to be complete is never guessed: an
    object without a JSON form is told as ``{"unrecorded": "<module>.<type>"}``,
    and so is one that contains itself. Bytes are the text that they hold in UTF-8,
    which a Method's parameter of bytes is made of again; what holds other bytes has no JSON form.
    A single number of NumPy and the like is the Python number that it is, as a name in a mapping as well.
    """
    try:
        plain = to_jsonable_python(value, by_alias=True, inf_nan_mode="strings", bytes_mode="utf8", fallback=_foreign)
    except (ValueError, TypeError, RecursionError):  # TypeError: a name in a mapping has no JSON form
        return _unrecorded(value)
    return _clean(plain)


def clean_text(text: str) -> str:
    """Return *text* as UTF-8 can hold it; a lone surrogate, as in an undecodable name, is written as its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def _foreign(thing: object) -> bool | int | float | dict[str, str]:
    # NumPy's times are whole numbers, too, but of a unit; a number with more bits than Python's stays what it is.
    kind = getattr(getattr(thing, "dtype", None), "kind", "f")
    if kind in "biuf" and getattr(thing, "shape", None) == () and hasattr(thing, "item"):
        plain = thing.item()
        if isinstance(plain, bool | int | float):
            return plain
    return _unrecorded(thing)


def _unrecorded(thing: object) -> dict[str, str]:
    return {"unrecorded": f"{type(thing).__module__}.{type(thing).__qualname__}"}


def _clean(value: Any) -> Any:
    match value:
        case str():
            return clean_text(value)
        case int() if abs(value) >= TOO_LONG:
            return _unrecorded(value)
        case float() if not isfinite(value):
            return "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case list():
            return [_clean(part) for part in value]
        case dict():
            return {clean_text(name): _clean(part) for name, part in value.items()}
        case _:
            return value


def canonical(value: Any) -> bytes:
    """Return the one form of a JSON *value* that digests are made of: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode(errors="backslashreplace")  # a lone surrogate becomes the JSON escape of itself


def strict_json(data: bytes | str, name: str, *, bounded: bool = True) -> Any:
    """Read JSON that somebody else may have written; *name* says in the message which document it is.

    It is *bounded* unless its size is the caller's own affair.

    Raises:
        BundleError: If *data* is not JSON, nests too deep, has too many values, says a member twice, or
            holds NaN or Infinity.
    """

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if bounded and len(pairs) > MOST_MEMBERS:
            raise BundleError(f"{name}: a JSON object has {len(pairs)} members; the limit is {MOST_MEMBERS}")
        told = dict(pairs)
        if len(told) != len(pairs):
            twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
            raise BundleError(f"{name}: a JSON object says the member '{twice[:80]}' twice")
        return told

    def no_number(word: str) -> None:
        raise BundleError(f"{name}: {word} is no JSON number")

    if bounded and len(data) > MOST_VALUES and _most_values(data) > MOST_VALUES:
        raise BundleError(f"{name}: it may have more than {MOST_VALUES} values")
    try:
        return json.loads(data, object_pairs_hook=members, parse_constant=no_number)
    except RecursionError as error:
        raise BundleError(f"{name}: the JSON nests too deep") from error
    except ValueError as error:
        raise BundleError(f"{name}: this is no JSON: {error}") from error


def _most_values(data: bytes | str) -> int:
    """Return how many values the JSON *data* has at most, without reading it."""
    if isinstance(data, str):
        return sum(map(data.count, "[{,"))
    return sum(map(data.count, (b"[", b"{", b",")))
