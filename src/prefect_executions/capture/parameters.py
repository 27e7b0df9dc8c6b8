"""Parameters and values as the record may hold them: without what grants access."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect_executions.capture.secrets import SecretMask, looks_secret, mask_credentials, redact_urls
from prefect_executions.documents import json_value
from prefect_executions.methods.model import InputDescription, Method
from prefect_executions.methods.secrets import is_secret_reference

WITHHELD = {"withheld": True}
"""What stands in the record for a secret whose name was never resolved."""

# Members of a JSON Schema that hold values of the author's and not a schema.
_DATA = frozenset({"default", "example", "examples", "enum", "const"})


def recorded_parameters(method: Method, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return raw parameters as the record may hold them: no secret that was given in clear."""
    return {
        name: _secret_name(value) if name in method.secrets else _without_credentials(json_value(value))
        for name, value in parameters.items()
    }


def plain_value(value: Any) -> Any:
    """Return *value* as JSON without what grants access: URLs lose credentials, what looks like a key is withheld."""
    return _without_credentials(json_value(value))


def recorded_method(method: Method) -> Method:
    """Return *method* as the record may hold it: its defaults and examples without what grants access."""
    inputs = {name: _recorded_input(described) for name, described in method.inputs.items()}
    return method if inputs == method.inputs else method.model_copy(update={"inputs": inputs})


def tell_credentials(value: Any, mask: SecretMask) -> None:
    """Tell *mask* the well-known keys and the credentials of URLs, wherever in the JSON *value* they stand."""
    match value:
        case str():
            mask_credentials(value, mask)
        case Mapping():
            tell_credentials(list(value.values()), mask)
        case list():
            for part in value:
                tell_credentials(part, mask)


def clear_defaults(method: Method) -> SecretMask:
    """Return a mask of the keys and credentials that the defaults of *method* hold in clear, and so its source."""
    mask = SecretMask()
    tell_credentials([described.json_schema for described in method.inputs.values()], mask)
    return mask


def resolved_name(reference: object) -> dict[str, Any]:
    """Return how the record tells a secret that was resolved: by the name it was resolved from."""
    return {"secret": reference} if is_secret_reference(reference) else dict(WITHHELD)


def _secret_name(value: object) -> Any:
    """A name may be a short secret given in clear, so only ``env:NAME`` shows by itself that it is a name."""
    if value is None:
        return None
    return {"secret": value} if is_secret_reference(value) and str(value).startswith("env:") else dict(WITHHELD)


def _without_credentials(value: Any) -> Any:
    match value:
        case str():
            return dict(WITHHELD) if looks_secret("", clean := redact_urls(value)) else clean
        case list():
            return [_without_credentials(part) for part in value]
        case dict():
            return {name: _without_credentials(part) for name, part in value.items()}
        case _:
            return value


def _recorded_input(described: InputDescription) -> InputDescription:
    schema = _without_clear_data(described.json_schema)
    return described if schema == described.json_schema else described.model_copy(update={"json_schema": schema})


def _without_clear_data(schema: Any) -> Any:
    """Return *schema* with clean data in it; a member that is nothing but a secret is left out."""
    match schema:
        case dict():
            cleaned = {key: plain_value if key in _DATA else _without_clear_data for key in schema}
            told = {key: cleaned[key](part) for key, part in schema.items()}
            return {key: part for key, part in told.items() if part != WITHHELD}
        case list():
            return [_without_clear_data(part) for part in schema]
        case _:
            return schema
