"""The JSON documents of a bundle: how they are written and read.

A document is a frozen pydantic model in UTF-8, with a stable order of members and a
format number. Its JSON names are camelCase, as in OGC API Processes. A member that
was not observed is absent, never null.
"""

from __future__ import annotations

import codecs
import errno
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from math import isfinite, isnan
from pathlib import Path
from typing import Annotated, Any, BinaryIO, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainSerializer, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails, to_jsonable_python

from prefect_executions.errors import BundleError

FORMAT: Literal[2] = 2
"""The bundle format that this package writes; it reads format 1 too."""

MAX_VALUES = 3_000_000
"""How many values a document may have; each takes about 100 bytes of memory. 100,000 outputs need 1,100,000."""

MAX_MEMBERS = 200_000
"""How many members a JSON object may have: Prefect accepts fewer parameters, and the other large parts are lists."""

SMALL_DOCUMENT = 64 * 1024**2
"""The most bytes of a document of the archive, for example of a seal that names 100,000 absent files."""

TOO_LONG = 10**4300
"""The smallest integer that JSON parsers refuse, Python's among them."""

_DETAILED_ERRORS = 1000

_ABSENT = object()

_NO_OFFSET = timedelta()

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def in_utc(time: datetime) -> datetime:
    """Return *time* as a plain `datetime` in UTC.

    Prefect's times are instances of a subclass with different arithmetic. A time
    without an offset is refused, because its meaning is unknown.

    Raises:
        ValueError: If it has no offset, or is outside the years 1 to 9999 in UTC.
    """
    if time.tzinfo is None:
        raise ValueError("a time needs an offset from UTC")
    if type(time) is datetime and time.utcoffset() == _NO_OFFSET:
        return time.replace(tzinfo=UTC, fold=0)
    try:
        utc = time.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("a time must be in the years 1 to 9999 in UTC") from error
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
    """One JSON file of a bundle; all documents of a bundle have the same `format`."""

    file_name: ClassVar[str]
    """The document's path in the bundle."""

    format: Literal[1, 2] = FORMAT

    def to_json(self) -> bytes:
        """Return the document's bytes; equal documents have equal bytes."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read a document.

        Raises:
            BundleError: If *data* is not a valid document; the message names the first invalid member.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            if error.error_count() > _DETAILED_ERRORS:  # their details would take too much memory
                raise BundleError(f"{cls.file_name}: {error.error_count()} members are invalid") from None
            errors = error.errors(include_url=False)
            raise BundleError(f"{cls.file_name}: {_unknown_format(errors) or _first_of(errors)}") from error

    def form_faults(self, data: bytes) -> Iterator[str]:
        """Yield one sentence for each member of *data*, of which this is the document, that is not in its only form.

        Reading is lenient: it takes the text "18" for 18, another offset for UTC, and null for
        an absent member. Other programs are not, so such a document could mean two things.
        """
        written = self.to_json()
        if data == written:
            return
        given = json.loads(data)
        if "format" not in given:
            yield f"{self.file_name} has no format"
        for where, value, expected in _deviations(given, json.loads(written), ""):
            form = "absent" if expected is _ABSENT else json.dumps(expected, ensure_ascii=False)[:100]
            given_form = json.dumps(value, ensure_ascii=False)[:100]
            yield f"{self.file_name}: {where} is {given_form}; the format requires {form}"


class ArchiveDocument(Document):
    """A JSON file of the archive or of an export; its format is independent of the bundle's."""

    format: Literal[1] = 1

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read a document.

        Raises:
            BundleError: If *data* is not a valid document, is too large, or has a member twice, of
                which readers take one or the other.
        """
        if len(data) > SMALL_DOCUMENT:
            raise BundleError(f"{cls.file_name}: it has more than {SMALL_DOCUMENT} bytes")
        strict_json(data, cls.file_name)
        return super().from_json(data)


def _deviations(value: Any, written: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield each part of *value* that differs from *written*; members that only *written* has are defaults."""
    if isinstance(value, dict) and isinstance(written, dict):
        for name, part in value.items():
            yield from _deviations(part, written.get(name, _ABSENT), f"{where}/{name}" if where else name)
    elif isinstance(value, list) and isinstance(written, list) and len(value) == len(written):
        for number, (part, other) in enumerate(zip(value, written, strict=True)):
            yield from _deviations(part, other, f"{where}/{number}")
    elif value != written or isinstance(value, bool) is not isinstance(written, bool):
        yield where, value, written


def _unknown_format(errors: Sequence[ErrorDetails]) -> str | None:
    for error in errors:
        if error["loc"][-1:] == ("format",) and error["type"] == "literal_error":
            value, readable = str(error["input"])[:40], error["ctx"]["expected"]
            return f"format {value} is unknown; this version reads {readable}; install a newer prefect-executions"
    return None


def _first_of(errors: Sequence[ErrorDetails]) -> str:
    where = "/".join(str(step) for step in errors[0]["loc"]) or "the document"
    return f"{where}: {errors[0]['msg']}"


def json_value(value: Any) -> Any:
    """Return *value* in a form that JSON can hold.

    An object without a JSON form becomes ``{"unrecorded": "<module>.<type>"}``, and so
    does an object that contains itself: its text form may be incomplete, so it is not
    used. Bytes become their UTF-8 text, from which a Method's ``bytes`` parameter can be
    restored; bytes that are not UTF-8 have no JSON form. A NumPy scalar becomes a
    Python number, also as the key of a mapping.
    """
    try:
        plain = to_jsonable_python(value, by_alias=True, inf_nan_mode="strings", bytes_mode="utf8", fallback=_foreign)
    except (ValueError, TypeError, RecursionError):  # TypeError: the key of a mapping has no JSON form
        return _unrecorded(value)
    return _clean(plain)


def clean_text(text: str) -> str:
    """Return *text* with each lone surrogate escaped: UTF-8 cannot hold it, and an undecodable file name has some."""
    return text.encode("utf-8", "backslashreplace").decode()


def _foreign(thing: object) -> bool | int | float | dict[str, str]:
    # Excluded: NumPy's times, which are integers with a unit, and floats that are longer than Python's.
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


def read_small(file: Path | BinaryIO) -> bytes:
    """Return the content of a file that a person named, such as a descriptor or a file of parameters.

    Raises:
        OSError: If it cannot be read, or is too large; a device may have no end.
    """
    with ExitStack() as stack:
        stream = stack.enter_context(file.open("rb")) if isinstance(file, Path) else file
        data = stream.read(SMALL_DOCUMENT + 1)
    if len(data) > SMALL_DOCUMENT:
        raise OSError(errno.EFBIG, f"it has more than {SMALL_DOCUMENT} bytes")
    return data


def decode_text(data: bytes) -> str:
    """Return the text of a file that a person wrote, without a byte order mark.

    It is UTF-8, or UTF-16 if it begins with that mark, as PowerShell writes it.

    Raises:
        UnicodeDecodeError: If it is neither.
    """
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf16 else "utf-8-sig")


def canonical_json(value: Any) -> bytes:
    """Return the canonical form of a JSON *value*, for digests: sorted keys, no spaces."""
    return _CANONICAL.encode(value).encode(errors="backslashreplace")  # a lone surrogate becomes its JSON escape


def strict_json(data: bytes | str, name: str, *, bounded: bool = True) -> Any:
    """Parse untrusted JSON; error messages call the document *name*.

    Set *bounded* to False if the caller limits the size itself.

    Raises:
        BundleError: If *data* is not JSON in UTF-8 without a byte order mark (RFC 8259, section 8.1), is
            nested too deeply, has too many values or a duplicate member, or holds NaN or Infinity.
    """

    def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if bounded and len(pairs) > MAX_MEMBERS:
            raise BundleError(f"{name}: a JSON object has {len(pairs)} members; the limit is {MAX_MEMBERS}")
        members = dict(pairs)
        if len(members) != len(pairs):
            duplicate = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
            raise BundleError(f"{name}: a JSON object has the member '{duplicate[:80]}' twice")
        return members

    def refuse_constant(word: str) -> None:
        raise BundleError(f"{name}: {word} is not a JSON number")

    if bounded and len(data) > MAX_VALUES and _max_values(data) > MAX_VALUES:
        raise BundleError(f"{name}: it may have more than {MAX_VALUES} values")
    try:
        # `json` would also read UTF-16, UTF-32, a byte order mark, and surrogates, which other readers refuse.
        text = data if isinstance(data, str) else data.decode()
        return json.loads(text, object_pairs_hook=unique_members, parse_constant=refuse_constant)
    except RecursionError as error:
        raise BundleError(f"{name}: the JSON is nested too deeply") from error
    except ValueError as error:
        raise BundleError(f"{name}: invalid JSON: {error}") from error


def _max_values(data: bytes | str) -> int:
    """Return an upper bound for the number of values in the JSON *data*, without parsing it."""
    if isinstance(data, str):
        return sum(map(data.count, "[{,"))
    return sum(map(data.count, (b"[", b"{", b",")))
