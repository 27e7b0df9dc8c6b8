"""What a Method asks of its users: secrets by name, and the mark that a deployment's form carries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prefect_executions.errors import MethodError

SECRET_REFERENCE = r"^(env:[A-Za-z_][A-Za-z0-9_]*|[a-z0-9][a-z0-9-]*)$"  # noqa: S105 - the form of a name, not a secret
"""The name of a Prefect Secret block, or ``env:NAME`` for a variable of the worker."""

SECRET_FORM: Mapping[str, Any] = {
    "format": "secret",
    "pattern": SECRET_REFERENCE,
    "description": "The name of a Prefect Secret block, or env:NAME for a variable of the worker; "
    "never the secret itself.",
}
"""How a secret input is told in a form: Prefect stores parameters in clear, so the form asks for a name."""

MARK = "x-prefect-executions"
"""What says in a Prefect deployment that its flow is a Method: a member of the first parameter's schema, or where
there is no parameter a comment in the description. Its value is the Method's version."""

_MARKED = re.compile(rf"\n*<!-- {MARK}: (?P<version>[^\n]*) -->")


def marked(description: str | None, version: str) -> str:
    """Return a Method's description with the mark in a comment, which no page shows."""
    return f"{unmarked(description) or ''}\n\n<!-- {MARK}: {version} -->".lstrip()


def marked_version(description: str | None) -> str | None:
    """Return the version of the Method that a marked description tells."""
    found = _MARKED.search(description or "")
    return found["version"] if found else None


def unmarked(description: str | None) -> str | None:
    """Return a Method's description as its author wrote it."""
    return _MARKED.sub("", description).strip() or None if description else description


def secret_inputs(schema: Mapping[str, Any], declared: frozenset[str], method_id: str) -> frozenset[str]:
    """Return which parameters name a secret: the *declared* ones and those whose schema is a password.

    Raises:
        MethodError: If a declared name is no parameter, or a password lies inside a nested model or a list.
    """
    properties = schema.get("properties", {})
    unknown = declared - properties.keys()
    if unknown:
        raise MethodError(
            f"Method '{method_id}': secrets names no parameter of the function: {', '.join(sorted(unknown))}"
        )
    if _has_password(schema.get("definitions", {})):
        raise MethodError(
            f"Method '{method_id}': a secret lies inside a nested model, where Prefect would store it in clear. "
            "Make it a parameter of its own."
        )
    found = {name for name, told in properties.items() if _has_password(told)}
    several = sorted(name for name in found if not any(map(_is_password, _choices(properties[name]))))
    if several:
        raise MethodError(
            f"Method '{method_id}': '{several[0]}' holds several secrets, and a parameter names one. "
            "Make each a parameter of its own."
        )
    return declared | found


def is_secret_reference(value: object) -> bool:
    """Whether *value* has the form of a secret's name."""
    return isinstance(value, str) and re.fullmatch(SECRET_REFERENCE, value) is not None


def _choices(told: Mapping[str, Any]) -> list[Any]:
    return list(told.get("anyOf") or [told])


def _is_password(told: Any) -> bool:
    return isinstance(told, dict) and told.get("format") == "password"


def _has_password(part: Any) -> bool:
    if isinstance(part, dict):
        return _is_password(part) or any(_has_password(inner) for inner in part.values())
    return isinstance(part, list) and any(_has_password(inner) for inner in part)
