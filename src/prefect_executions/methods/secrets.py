"""The secrets of a Method, given by reference; names that look secret; the mark of a Method in a Prefect deployment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
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

SECRET_NAMES = (
    *("password", "passwd", "passphrase", "passcode", "pwd", "secret", "credential", "token", "jwt", "bearer"),
    *("authorization", "cookie", "connection string", "api key", "access key", "account key", "auth key"),
    *("encryption key", "master key", "private key", "secret key", "shared key", "signing key", "ssh key"),
    "subscription key",
)
"""The names whose values are withheld; EXECUTIONS_SECRET_NAMES adds some.

A name matches if its last words are one of these (`is_secret_name`), so ``db_password``, ``apiKey`` and ``X-Api-Key``
match, and ``max_tokens``, ``tokenizer``, ``monkey``, ``keyword``, ``n_keys``, ``sort_key`` and ``token_url`` do not.
"""

_MAY_BE_A_NUMBER = frozenset({"password", "passwd", "passphrase", "passcode", "pwd", "secret"})
"""Names under which a number is withheld as well; under others (``token``) a number is an index or a count."""

_TEXT_TOKENS = frozenset(
    {"audio", "begin", "bos", "cls", "end", "eos", "image", "mask", "next", "pad", "prefix", "sep", "special"}
    | {"start", "stop", "suffix", "text", "unk", "word"}
)
"""Words before ``token`` that make it a piece of text for a language model: ``pad_token``, ``eos_token``."""

_WRITTEN_TOGETHER = (
    "password",
    "passwd",
    "passphrase",
    "apikey",
    "accesskey",
    "privatekey",
    "secretkey",
    "accesstoken",
    "apitoken",
    "authtoken",
    "clientsecret",
)
_TRAILING = frozenset({"value", "text", "string", "str", "plain", "raw", "base64", "b64"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

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


def is_withheld(name: str, value: object, added: tuple[str, ...] = ()) -> bool:
    """Whether the *value* of the parameter or dictionary key *name* must be withheld because of its name.

    Nothing, true, false, empty values and a reference ``env:NAME`` are not secrets. A number
    is withheld only under a name such as ``password``, or one that the operator *added*.
    """
    if value is None or isinstance(value, bool) or value in ("", [], {}):
        return False
    if isinstance(value, str) and value.startswith("env:") and is_secret_reference(value):
        return False
    match = secret_name(name, added)
    return match is not None and (not isinstance(value, int | float) or match in {*_MAY_BE_A_NUMBER, *added})


@lru_cache(maxsize=4096)
def secret_name(name: str, added: tuple[str, ...] = ()) -> str | None:
    """Return the entry of `SECRET_NAMES` or *added* that *name* ends with; None if it does not look secret.

    Letter case, separators, a plural (except ``tokens``), numbers and words such as ``value`` at the end do not matter.
    """
    words = _words(name)
    for term in added:
        if words[-len(_words(term)) :] == _words(term):
            return term
    while words and (words[-1].isdigit() or words[-1] in _TRAILING) and words[-2:] != ["connection", "string"]:
        words.pop()
    if not words or words[-1] == "tokens":
        return None
    words[-1] = words[-1].removesuffix("s")
    if words[-1] == "token" and words[-2:-1] and words[-2] in _TEXT_TOKENS:
        return None
    match = next((term for term in SECRET_NAMES if words[-len(term.split()) :] == term.split()), None)
    return match or next((term for term in _WRITTEN_TOGETHER if words[-1].endswith(term)), None)


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


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
