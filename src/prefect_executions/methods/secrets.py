"""The secrets of a Method, which are given by reference, and the mark of a Method in a Prefect deployment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prefect_executions.errors import MethodError

SECRET_REFERENCE = r"^(env:[A-Za-z_][A-Za-z0-9_]*|[a-z0-9][a-z0-9-]*)$"  # noqa: S105 - the form of a name, not a secret
"""A reference to a secret: the name of a Prefect Secret block, or ``env:NAME`` for a variable of the worker."""

SECRET_FORM: Mapping[str, Any] = {
    "format": "secret",
    "pattern": SECRET_REFERENCE,
    "description": "The name of a Prefect Secret block, or env:NAME for a variable of the worker; "
    "never the secret itself.",
}
"""The schema of a secret input in a form: it takes a reference, because Prefect stores parameters in plain text."""

MARK = "x-prefect-executions"
"""The mark of a Method in a Prefect deployment: a member of the first parameter's schema, or a comment in the
description if there are no parameters. Its value is the Method's version."""

_MARKED = re.compile(rf"\n*<!-- {MARK}: (?P<version>[^\n]*) -->")


def marked(description: str | None, version: str) -> str:
    """Return a Method's description with the mark in a comment, which Prefect's pages do not show."""
    return f"{unmarked(description) or ''}\n\n<!-- {MARK}: {version} -->".lstrip()


def marked_version(description: str | None) -> str | None:
    """Return the Method's version in a marked description; None if there is no mark."""
    mark = _MARKED.search(description or "")
    return mark["version"] if mark else None


def unmarked(description: str | None) -> str | None:
    """Return a Method's description without the mark."""
    return _MARKED.sub("", description).strip() or None if description else description


def secret_inputs(schema: Mapping[str, Any], declared: frozenset[str], method_id: str) -> frozenset[str]:
    """Return the parameters that refer to a secret: the *declared* parameters and those whose schema is a password.

    Raises:
        MethodError: If a declared name is not a parameter, or a password is inside a nested model or a list.
    """
    properties = schema.get("properties", {})
    unknown = declared - properties.keys()
    if unknown:
        raise MethodError(
            f"Method '{method_id}': secrets has names that are not parameters of the function: "
            f"{', '.join(sorted(unknown))}"
        )
    if _has_password(schema.get("definitions", {})):
        raise MethodError(
            f"Method '{method_id}': a secret is inside a nested model, where Prefect would store it in plain text. "
            "Make it a separate parameter."
        )
    passwords = {name for name, schema in properties.items() if _has_password(schema)}
    several = sorted(name for name in passwords if not any(map(_is_password, _choices(properties[name]))))
    if several:
        raise MethodError(
            f"Method '{method_id}': '{several[0]}' holds several secrets, but a parameter can refer to only one. "
            "Make each secret a separate parameter."
        )
    return declared | passwords


def is_secret_reference(value: object) -> bool:
    """Whether *value* has the form of a reference to a secret."""
    return isinstance(value, str) and re.fullmatch(SECRET_REFERENCE, value) is not None


def _choices(schema: Mapping[str, Any]) -> list[Any]:
    return list(schema.get("anyOf") or [schema])


def _is_password(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("format") == "password"


def _has_password(part: Any) -> bool:
    if isinstance(part, dict):
        return _is_password(part) or any(_has_password(inner) for inner in part.values())
    return isinstance(part, list) and any(_has_password(inner) for inner in part)
