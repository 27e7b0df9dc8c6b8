"""Parameters and values as the record may hold them: without what grants access."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect_executions.capture.secrets import looks_secret, redact_urls
from prefect_executions.documents import json_value
from prefect_executions.methods import Method, is_secret_reference

WITHHELD = {"withheld": True}
"""What stands in the record for a secret whose name was never resolved."""


def recorded_parameters(method: Method, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return raw parameters as the record may hold them: no secret that was given in clear."""
    return {
        name: _secret_name(value) if name in method.secrets else _without_credentials(json_value(value))
        for name, value in parameters.items()
    }


def plain_value(value: Any) -> Any:
    """Return *value* as JSON without what grants access: URLs lose credentials, what looks like a key is withheld."""
    return _without_credentials(json_value(value))


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
