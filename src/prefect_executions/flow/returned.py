"""The value that a Method's function returned, for the record: as JSON, or by its type and the beginning of its text.

Law: no more of a value is read than its kind needs, and no value is too large, too strange or too secret
for the run to end.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from itertools import islice
from reprlib import Repr
from types import SimpleNamespace
from typing import Any

from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from pydantic import BaseModel

from prefect_executions.capture.parameters import without_credentials
from prefect_executions.capture.secrets import (
    MASK,
    SecretMask,
    looks_secret,
    mask_credentials,
    names_secret,
    redact_urls,
)
from prefect_executions.documents import clean_text
from prefect_executions.executions.record import Returned
from prefect_executions.executions.values import readable_form, type_name
from prefect_executions.methods.secrets import is_withheld

_MAX_VALUES = 10_000
"""How many values a returned value may have to be recorded as JSON."""

_MAX_TEXT = 1 << 16
"""Characters of the JSON of a returned value."""

_MAX_DIGESTED = 1 << 26
"""Bytes of the arrays whose digests are recorded, together."""

_BEGINNING = 1000
"""Characters that are recorded of the text of another value."""

_WINDOW = _BEGINNING + 4096
"""Characters that are searched for keys and URLs, so that the end of the recorded text does not cut one in two."""


def returned_value(value: Any, mask: SecretMask, names: tuple[str, ...] = ()) -> Returned | None:
    """Return *value* for the record, without secrets; None if it is None or a state of Prefect.

    *names* are the operator's additional names of secrets.
    """
    if value is None or _is_state(value):
        return None
    if isinstance(value, str | bytes | bytearray) and len(value) > _MAX_TEXT:
        return Returned(type=type_name(value), text=_beginning(value, mask, names))
    form, missing = readable_form(value, max_values=_MAX_VALUES, max_digested=_MAX_DIGESTED, max_text=_MAX_TEXT)
    if missing and form == {"unrecorded": type_name(value)}:
        return Returned(type=type_name(value), text=_beginning(value, mask, names))
    form = mask.mask_inside(without_credentials(form, "", names))
    if len(json.dumps(form)) > _MAX_TEXT:
        return Returned(type=type_name(value), text=_beginning(value, mask, names))
    return Returned(type=type_name(value), value=form)


def _is_state(value: object) -> bool:
    """Whether Prefect makes the state of the run from *value* (`prefect.states.return_value_to_state`)."""
    first = next(islice(value, 1), None) if isinstance(value, list | tuple | set) else value
    return isinstance(first, State | PrefectFuture)


def _beginning(value: object, mask: SecretMask, names: tuple[str, ...]) -> str | None:
    """Return the beginning of the text of *value*; None if it may hold a secret, or if only the type is known."""
    with suppress(Exception):  # `__repr__` is the author's code
        short = _Short(mask, names)
        text = short.masked(value) if isinstance(value, str) else short.repr(value)
        text = clean_text(text)[:_BEGINNING]
        return None if text == short.repr_type(value) or names_secret(text, names) else text
    return None


class _SecretError(Exception):
    """The text may hold a secret."""


class _Short(Repr):
    """Writes the beginning of a value without secrets; reads a bounded part of collections and texts.

    An object that shows all its fields, however large and secret they are, is written as its type.
    """

    def __init__(self, mask: SecretMask, names: tuple[str, ...]) -> None:
        super().__init__()
        self.maxlong = 100
        self.maxlist = self.maxtuple = self.maxdeque = self.maxarray = 20
        self._mask, self._names = mask, names
        self._left = 4 * _BEGINNING

    def repr1(self, x: Any, level: int) -> str:
        if self._left <= 0:
            return "..."
        text = super().repr1(x, level)
        self._left -= len(text)
        return text

    def masked(self, text: str) -> str:
        """Return the beginning of *text* without secrets, nor a part of one."""
        data = self._masked(text[:_WINDOW].encode("utf-8", "surrogatepass"), cut=len(text) > _WINDOW)
        return self._clean(data.decode("utf-8", "replace"))

    def _masked(self, data: bytes, *, cut: bool) -> bytes:
        stream = self._mask.stream()
        return stream.feed(data) + (b"" if cut else stream.finish())

    def _clean(self, text: str) -> str:
        found = SecretMask()
        clean = MASK if len(text) < _WINDOW and looks_secret("", redact_urls(text)) else redact_urls(text)
        mask_credentials(clean, found)
        clean = found.mask(clean)[:_BEGINNING]
        if names_secret(clean, self._names):
            raise _SecretError
        return clean

    def repr_str(self, x: str, level: int) -> str:  # noqa: ARG002 - the interface of Repr
        return repr(self.masked(x))

    def repr_bytes(self, x: bytes | bytearray, level: int) -> str:  # noqa: ARG002 - the interface of Repr
        data = self._masked(bytes(x[:_WINDOW]), cut=len(x) > _WINDOW)
        return repr(self._clean(data.decode("latin-1")).encode("latin-1"))

    repr_bytearray = repr_bytes

    def repr_dict(self, x: Mapping[Any, Any], level: int) -> str:
        shown = ["..."] if level <= 0 else [self._member(key, x[key], level - 1) for key in islice(x, self.maxlist)]
        return f"{{{', '.join(shown)}{', ...' * (len(x) > len(shown))}}}"

    def _member(self, key: Any, value: Any, level: int) -> str:
        judged = value if value is None or isinstance(value, str | int | float) else "…"
        secret = isinstance(key, str) and is_withheld(key, judged, self._names)
        return f"{self.repr1(key, level)}: {MASK if secret else self.repr1(value, level)}"

    def repr_set(self, x: AbstractSet[Any], level: int) -> str:
        return f"{{{self.repr_list(list(islice(x, self.maxlist)), level)[1:-1]}{', ...' * (len(x) > self.maxlist)}}}"

    repr_frozenset = repr_set

    def repr_instance(self, x: Any, level: int) -> str:
        if dataclasses.is_dataclass(x) or isinstance(x, BaseModel | SimpleNamespace) or _shows_fields(x):
            return self.repr_type(x)
        if isinstance(x, dict):
            return self.repr_dict(x, level)
        if isinstance(x, set | frozenset):
            return self.repr_set(x, level)
        if isinstance(x, list | tuple):
            return self.repr_list(list(islice(x, self.maxlist + 1)), level)
        if isinstance(x, str):
            return self.repr_str(x, level)
        return self.masked(repr(x))

    def repr_type(self, x: object) -> str:
        """Return the text for an object of which only the type is recorded."""
        return f"<{type_name(x)}>"


def _shows_fields(value: object) -> bool:
    kind = type(value)
    return hasattr(kind, "__attrs_attrs__") or hasattr(kind, "_fields") or kind.__module__ == "argparse"
