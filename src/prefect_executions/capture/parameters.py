"""Removes secrets and credentials from parameters and values before they are recorded."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from typing import Any

from prefect_executions.capture.secrets import SecretMask, looks_secret, mask_credentials, redact_urls
from prefect_executions.documents import json_value
from prefect_executions.executions.value_types import WITHHELD, is_marker
from prefect_executions.methods.model import InputDescription, Method
from prefect_executions.methods.secrets import is_secret_reference

# Members of a JSON Schema that contain the author's values instead of a schema.
_DATA = frozenset({"default", "example", "examples", "enum", "const"})


def recorded_parameters(method: Method, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return raw parameters for the record, without secrets that were given in plain text."""
    return {
        name: _secret_name(value) if name in method.secrets else without_credentials(json_value(value))
        for name, value in parameters.items()
    }


def plain_value(value: Any) -> Any:
    """Return *value* as JSON without credentials: URLs are redacted, and values that look like keys are withheld."""
    return without_credentials(json_value(value))


def recorded_method(method: Method) -> Method:
    """Return *method* for the record, with credentials removed from its defaults and examples."""
    inputs = {name: _recorded_input(described) for name, described in method.inputs.items()}
    return method if inputs == method.inputs else method.model_copy(update={"inputs": inputs})


def register_credentials(value: Any, mask: SecretMask) -> None:
    """Register in *mask* all well-known keys and URL credentials in the JSON *value*."""
    match value:
        case str():
            mask_credentials(value, mask)
        case Mapping():
            register_credentials(list(value.values()), mask)
        case list():
            for part in value:
                register_credentials(part, mask)


def plain_text_defaults(method: Method) -> SecretMask:
    """Return a mask of the plain-text credentials in the defaults of *method*, which its source contains as well."""
    mask = SecretMask()
    register_credentials([described.json_schema for described in method.inputs.values()], mask)
    return mask


def resolved_name(reference: object) -> dict[str, Any]:
    """Return the recorded form of a resolved secret: the name it was resolved from."""
    return {"secret": reference} if is_secret_reference(reference) else dict(WITHHELD)


def _secret_name(value: object) -> Any:
    """Keep the name only if it has the form ``env:NAME``; any other text may be a secret in plain text."""
    if value is None:
        return None
    return {"secret": value} if is_secret_reference(value) and str(value).startswith("env:") else dict(WITHHELD)


def without_credentials(value: Any) -> Any:
    """Return a JSON value without credentials: URLs are redacted, and values that look like keys are withheld."""
    match value:
        case str():
            return dict(WITHHELD) if looks_secret("", clean := redact_urls(value)) else clean
        case list():
            return [without_credentials(part) for part in value]
        case {"python": _, "base64": str() as encoded} if is_marker(value):  # base64 looks as random as a key
            return dict(WITHHELD) if looks_secret("", b64decode(encoded).decode("latin-1")) else value
        case dict():
            return {name: without_credentials(part) for name, part in value.items()}
        case _:
            return value


def _recorded_input(described: InputDescription) -> InputDescription:
    schema = _without_credentials_in_data(described.json_schema)
    return described if schema == described.json_schema else described.model_copy(update={"json_schema": schema})


def _without_credentials_in_data(schema: Any) -> Any:
    """Return *schema* with cleaned data; members that consist of a secret are removed."""
    match schema:
        case dict():
            cleaners = {key: plain_value if key in _DATA else _without_credentials_in_data for key in schema}
            cleaned = {key: cleaners[key](part) for key, part in schema.items()}
            return {key: part for key, part in cleaned.items() if part != WITHHELD}
        case list():
            return [_without_credentials_in_data(part) for part in schema]
        case _:
            return schema
