"""A Prefect parameter schema as OGC input descriptions, whose schemas speak OpenAPI 3.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect_executions.methods.describing import InputDescription
from prefect_executions.methods.forms import MARK


def inputs_of(schema: Mapping[str, Any]) -> dict[str, InputDescription]:
    """Return OGC input descriptions for a parameter schema, each with the definitions that it needs."""
    required = frozenset(schema.get("required", ()))
    definitions = schema.get("definitions", {})
    ordered = sorted(schema.get("properties", {}).items(), key=lambda item: item[1].get("position", 0))
    return {name: _describe(told, name in required, definitions) for name, told in ordered}


def _describe(told: Mapping[str, Any], required: bool, definitions: Mapping[str, Any]) -> InputDescription:  # noqa: FBT001 - private, named by its one caller
    schema = {key: value for key, value in told.items() if key not in {"position", "title", "description", MARK}}
    return InputDescription(
        title=told.get("title"),
        description=told.get("description"),
        min_occurs=1 if required else 0,
        json_schema=as_openapi(schema, definitions),
    )


def as_openapi(schema: Any, definitions: Mapping[str, Any], *, inside: frozenset[str] = frozenset()) -> Any:
    """Return JSON Schema *schema* in the words of OpenAPI 3.0, which OGC API Processes 1.0 takes for inputs.

    References are written out (one that contains itself ends as ``object``), null
    becomes ``nullable``, ``const`` an enum of one, and an exclusive limit a flag.
    """
    if isinstance(schema, list):
        return [as_openapi(part, definitions, inside=inside) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = str(schema["$ref"]).removeprefix("#/definitions/")
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        if name in inside or name not in definitions:
            return {"type": "object", **rest}
        return as_openapi({**definitions[name], **rest}, definitions, inside=inside | {name})
    told = {
        key: as_openapi(value, definitions, inside=inside) for key, value in schema.items() if key not in _REWRITTEN
    }
    if isinstance(schema.get("properties"), dict):
        named = schema["properties"].items()
        told["properties"] = {name: as_openapi(part, definitions, inside=inside) for name, part in named}
    told |= {"default": schema["default"]} if "default" in schema else {}
    told |= {"enum": [schema["const"]]} if "const" in schema else {}
    return _without_null(told | _rewritten(schema, definitions, inside))


def _rewritten(schema: Mapping[str, Any], definitions: Mapping[str, Any], inside: frozenset[str]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for limit, flag in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if flag in schema:
            told |= {limit: schema[flag], flag: True}
    if "prefixItems" in schema:
        told["items"] = {"anyOf": as_openapi(schema["prefixItems"], definitions, inside=inside)}
    return told


_REWRITTEN = frozenset(
    {
        "const",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "prefixItems",
        "default",
        "examples",
        "propertyNames",
        "properties",
    }
)


def _without_null(told: dict[str, Any]) -> dict[str, Any]:
    choices = told.get("anyOf")
    if not isinstance(choices, list) or {"type": "null"} not in choices:
        return told
    rest = [choice for choice in choices if choice != {"type": "null"}]
    outer = {key: value for key, value in told.items() if key != "anyOf"}
    inner = {"anyOf": rest} if len(rest) != 1 else rest[0]
    return {**inner, **outer, "nullable": True}
