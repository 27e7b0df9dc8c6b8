"""A Prefect parameter schema as OGC input descriptions, whose schemas speak OpenAPI 3.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect_executions.methods.model import InputDescription
from prefect_executions.methods.secrets import MARK


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
        **_beside(schema),
    )


def _beside(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What the author says of an input in words of his own, such as a unit: OGC's schema has no place for it."""
    return {
        key: value
        for key, value in schema.items()
        if not (key in _OPENAPI or key in _JSON_SCHEMA or key in _DESCRIBED or key.startswith("$"))
    }


def as_openapi(schema: Any, definitions: Mapping[str, Any], *, inside: frozenset[str] = frozenset()) -> Any:
    """Return JSON Schema *schema* in the words of OpenAPI 3.0, which OGC API Processes 1.0 takes for inputs.

    References are written out (one that contains itself ends as ``object``), null
    becomes ``nullable``, ``const`` an enum of one, and an exclusive limit a flag.
    Words that OGC's schema does not know are left out.
    """
    if isinstance(schema, list):
        return [as_openapi(part, definitions, inside=inside) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = str(schema["$ref"]).removeprefix("#/definitions/")
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        if name in inside or name not in definitions:
            return as_openapi({"type": "object", **rest}, definitions, inside=inside)
        return as_openapi({**definitions[name], **rest}, definitions, inside=inside | {name})
    told = {key: as_openapi(value, definitions, inside=inside) for key, value in schema.items() if key in _OPENAPI}
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


_OPENAPI = frozenset(
    {
        "additionalProperties",
        "allOf",
        "anyOf",
        "contentEncoding",
        "contentMediaType",
        "deprecated",
        "description",
        "enum",
        "example",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "multipleOf",
        "not",
        "nullable",
        "oneOf",
        "pattern",
        "readOnly",
        "required",
        "title",
        "type",
        "uniqueItems",
        "writeOnly",
    }
)
"""What OGC API Processes 1.0, ``schema``, knows and means as JSON Schema does."""

_JSON_SCHEMA = frozenset(
    {
        "const",
        "contains",
        "contentSchema",
        "default",
        "definitions",
        "dependentRequired",
        "dependentSchemas",
        "discriminator",
        "else",
        "examples",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "if",
        "maxContains",
        "minContains",
        "patternProperties",
        "prefixItems",
        "properties",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
"""What is JSON Schema's or pydantic's alone, or means something else there: written anew, or left out."""

_DESCRIBED = frozenset(
    {"additionalParameters", "keywords", "metadata"}
    | {word for name, field in InputDescription.model_fields.items() for word in (name, field.alias or name)}
)
"""What stands in an input description in words of OGC's."""

_NULL = {"enum": [None], "nullable": True}


def _without_null(told: dict[str, Any]) -> dict[str, Any]:
    if told.get("type") == "null":
        return {**{key: value for key, value in told.items() if key != "type"}, **_NULL}
    choices = told.get("anyOf")
    if not isinstance(choices, list) or _NULL not in choices:
        return told
    rest = [choice for choice in choices if choice != _NULL]
    outer = {key: value for key, value in told.items() if key != "anyOf"}
    inner = {"anyOf": rest} if len(rest) != 1 else rest[0]
    return {**inner, **outer, "nullable": True}
