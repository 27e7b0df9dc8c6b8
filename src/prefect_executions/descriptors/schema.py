"""The JSON Schema (2020-12) of an input, from what a descriptor says in the words of OpenAPI 3.0 or of CCP.

A Prefect parameter schema as OGC input descriptions, whose schemas speak OpenAPI 3.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from difflib import get_close_matches
from math import isfinite
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker, SchemaError
from referencing import Registry

from prefect_executions.descriptors.parser import DescriptorFault, pointer
from prefect_executions.methods.model import InputDescription
from prefect_executions.methods.secrets import MARK, SECRET_FORM, is_secret_reference

TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")

_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_DATA = frozenset({"default", "enum", "const", "example", "examples"})
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_INTEGER = re.compile(r"[-+]?[0-9]{1,4000}")  # Python reads no longer ones
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_BOOLEANS = {"true": True, "false": False}

Steps = tuple[str | int, ...]

ABSENT: Any = object()
"""What stands for a value that nobody gave."""

FORMATS = FormatChecker(formats=())
"""The formats that are checked, the same on every machine; jsonschema's own set depends on what is installed."""


def _is_date(value: object) -> bool:
    return not isinstance(value, str) or bool(re.fullmatch(r"\d{4}-\d\d-\d\d", value) and date.fromisoformat(value))


def _is_time(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


def _is_number(value: object) -> bool:
    return not isinstance(value, str) or bool(_NUMBER.fullmatch(value))  # CCP: a text whose format is "number"


FORMATS.checks("date", raises=ValueError)(_is_date)
FORMATS.checks("date-time", raises=ValueError)(_is_time)
FORMATS.checks("number")(_is_number)


def validator(schema: Mapping[str, Any]) -> Draft202012Validator:
    """Return the judge of values for *schema*; it fetches nothing."""
    return Draft202012Validator(schema, registry=Registry(), format_checker=FORMATS)


def as_json_schema(schema: Any) -> Any:
    """Return *schema* in JSON Schema: ``nullable``, flags for exclusive limits and CCP's nulls are written anew."""
    if isinstance(schema, list):
        return [as_json_schema(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    told: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _DATA:
            told[key] = value
        elif key in _NAMED and isinstance(value, dict):
            told[key] = {name: as_json_schema(part) for name, part in value.items()}
        elif value is not None and key not in {"nullable", "readOnly"}:
            told[key] = as_json_schema(value)
    for limit, flag in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(told.get(flag), bool):
            exclusive = told.pop(flag)
            if exclusive and limit in told:
                told[flag] = told.pop(limit)
    return _or_null(told) if schema.get("nullable") is True else told


def _or_null(told: dict[str, Any]) -> dict[str, Any]:
    outer: dict[str, Any] = {key: told.pop(key) for key in ("title", "description", "default") if key in told}
    return {"anyOf": [told, {"type": "null"}], **outer}


def item_schema(described: InputDescription) -> dict[str, Any]:
    """Return the schema of one value of the input, without what a form says beside it."""
    if described.is_secret:
        return {"type": "string", "format": SECRET_FORM["format"], "pattern": SECRET_FORM["pattern"]}
    told = as_json_schema(described.json_schema)
    return {key: value for key, value in told.items() if key not in {"default", "title", "description"}}


def value_schema(described: InputDescription) -> dict[str, Any]:
    """Return the schema of the input's whole value: of a list, when it may occur more than once."""
    if not described.is_list:
        return item_schema(described)
    told: dict[str, Any] = {"type": "array", "items": item_schema(described)}
    if described.min_occurs:
        told["minItems"] = described.min_occurs
    if isinstance(described.max_occurs, int):
        told["maxItems"] = described.max_occurs
    return told


def default_of(described: InputDescription) -> Any:
    """Return the default in the form that values have, or `ABSENT`.

    CCP's editor writes ``""`` where there is none, and its examples a secret in
    clear: neither is a default.
    """
    if "default" not in described.json_schema:
        return ABSENT
    told = described.json_schema["default"]
    if described.is_secret:
        return told if is_secret_reference(told) and told != "" else ABSENT
    fitted = coerce(told, described)
    if told in ("", None) and (described.is_file or not validator(value_schema(described)).is_valid(fitted)):
        return ABSENT
    return fitted


def coerce(value: Any, described: InputDescription) -> Any:
    """Return *value* as its schema wants it, where only the way of writing differs.

    A number or a boolean that was written as text becomes one, and the other way
    round; a single value where a list is wanted becomes a list of one.
    """
    if described.is_list:
        schema = item_schema(described)
        several = isinstance(value, list) and not validator(schema).is_valid(value)
        return [_fit(part, schema) for part in (value if several else [value])]
    return _fit(value, item_schema(described))


def _fit(value: Any, schema: Mapping[str, Any]) -> Any:
    wanted = schema.get("type")
    if wanted == "array" and isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [_fit(part, schema["items"]) for part in value]
    if wanted == "string" and isinstance(value, bool):
        return "true" if value else "false"
    if wanted == "string" and isinstance(value, int | float):
        return str(value)
    return _read(value, wanted) if isinstance(value, str) else value


def _read(text: str, wanted: object) -> Any:
    """Return what *text* says, when it is wholly a value of the type *wanted*; else itself."""
    if wanted == "boolean":
        return _BOOLEANS.get(text.lower(), text)
    if wanted in {"integer", "number"} and _INTEGER.fullmatch(text):
        return int(text)
    if wanted == "number" and _NUMBER.fullmatch(text) and isfinite(float(text)):
        return float(text)
    return text


def schema_faults(described: InputDescription, *steps: str | int) -> Iterator[DescriptorFault]:
    """Yield what is wrong in the schema of an input that lies at *steps*."""
    references = list(_references(described.json_schema, steps))
    yield from references
    converted = as_json_schema(described.json_schema)
    try:
        Draft202012Validator.check_schema(converted)
    except SchemaError as error:
        yield _told(error, steps)
        return
    if references:
        return
    if described.json_schema.get("enum") == []:
        yield DescriptorFault(pointer(*steps, "enum"), "no value is allowed; name some, or leave it out")
    default = default_of(described)
    if default is not ABSENT:
        wrong = next(validator(value_schema(described)).iter_errors(default), None)
        if wrong is not None:
            yield DescriptorFault(pointer(*steps, "default"), f"does not fit the schema: {short(wrong.message)}")


def short(text: str) -> str:
    """Return *text*, cut where a value makes it long."""
    return text if len(text) <= 200 else f"{text[:160]} … {text[-30:]}"  # noqa: PLR2004 - a line or two of a terminal


def _references(schema: Any, steps: Steps) -> Iterator[DescriptorFault]:
    if isinstance(schema, dict):
        for name in _REFERENCES:
            if name in schema:
                yield DescriptorFault(
                    pointer(*steps, name), "a schema of an input stands alone; write out what is referred to"
                )
        for key, part in schema.items():
            if key not in _DATA:
                yield from _references(part, (*steps, key))
    elif isinstance(schema, list):
        for number, part in enumerate(schema):
            yield from _references(part, (*steps, number))


def _told(error: SchemaError, steps: Steps) -> DescriptorFault:
    where = pointer(*steps, *error.absolute_path)
    if error.absolute_path and error.absolute_path[-1] == "type":
        near = get_close_matches(str(error.instance).lower(), TYPES, 1, 0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return DescriptorFault(where, f"{short(repr(error.instance))} is no type: {', '.join(TYPES)}{hint}")
    return DescriptorFault(where, short(error.message))


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
