"""The value that a Method's function returned, for the record: as JSON, or by its type and the beginning of its text.

Law: no more of a value is read than its kind needs, and no value is too large, too strange or too secret
for the run to end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from reprlib import Repr
from typing import Any

from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture

from prefect_executions.capture.parameters import without_credentials
from prefect_executions.capture.secrets import SecretMask, redact_urls
from prefect_executions.documents import clean_text
from prefect_executions.executions.record import Returned
from prefect_executions.executions.values import readable_form, type_name

_MAX_VALUES = 10_000
"""How many values a returned value may have to be recorded as JSON."""

_MAX_TEXT = 1 << 16
"""Characters of the JSON of a returned value."""

_MAX_DIGESTED = 1 << 26
"""Bytes of an array whose digest is recorded."""

_BEGINNING = 1000
"""Characters that are recorded of the text of another value."""

_short = Repr()
_short.maxstring = _short.maxother = _BEGINNING
_short.maxlong = 100
_short.maxdict = _short.maxlist = _short.maxtuple = _short.maxset = 20


def returned_value(value: Any, mask: SecretMask, names: tuple[str, ...] = ()) -> Returned | None:
    """Return *value* for the record, without secrets; None if it is None or a state of Prefect.

    *names* are the operator's additional names of secrets.
    """
    if value is None or _is_state(value):
        return None
    if isinstance(value, str | bytes | bytearray) and len(value) > _MAX_TEXT:
        return Returned(type=type_name(value), text=_beginning(value, mask))
    form, missing = readable_form(value, max_values=_MAX_VALUES, max_digested=_MAX_DIGESTED)
    if missing and form == {"unrecorded": type_name(value)}:
        return Returned(type=type_name(value), text=_beginning(value, mask))
    if sum(map(len, _texts(form))) > _MAX_TEXT:
        return Returned(type=type_name(value), text=_beginning(value, mask))
    form = mask.mask_inside(without_credentials(form, "", names))
    if len(json.dumps(form)) > _MAX_TEXT:
        return Returned(type=type_name(value), text=_beginning(value, mask))
    return Returned(type=type_name(value), value=form)


def _is_state(value: object) -> bool:
    """Whether Prefect makes the state of the run from *value* (`prefect.states.return_value_to_state`)."""
    first = next(islice(value, 1), None) if isinstance(value, list | tuple | set) else value
    return isinstance(first, State | PrefectFuture)


def _beginning(value: object, mask: SecretMask) -> str | None:
    with suppress(Exception):  # `__repr__` is the author's code
        text = value[:_BEGINNING] if isinstance(value, str) else _short.repr(value)
        return clean_text(redact_urls(mask.mask(text)))[:_BEGINNING]
    return None


def _texts(form: Any) -> Iterator[str]:
    match form:
        case str():
            yield form
        case list():
            for part in form:
                yield from _texts(part)
        case dict():
            for name, part in form.items():
                yield name
                yield from _texts(part)
