"""Schemas of inputs: OpenAPI 3.0 and CCP to JSON Schema (2020-12), and Prefect's parameter schemas to OpenAPI 3.0.

A descriptor and an OGC input description have schemas in OpenAPI 3.0. Values are
validated by JSON Schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from difflib import get_close_matches
from math import isfinite
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker, SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry

from prefect_executions.descriptors.parser import DescriptorFault, pointer
from prefect_executions.documents import json_value
from prefect_executions.methods.model import InputDescription
from prefect_executions.methods.secrets import MARK, SECRET_FORM, is_secret_reference
from prefect_executions.patterns import matches

TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")

_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_DATA = frozenset({"default", "enum", "const", "example", "examples"})
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_INTEGER = re.compile(r"[-+]?[0-9]{1,4000}")  # Python refuses longer integers
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_BOOLEANS = {"true": True, "false": False}

Steps = tuple[str | int, ...]

ABSENT: Any = object()
"""The marker for a missing value."""

FORMATS = FormatChecker(formats=())
"""The validated formats, equal on every machine; jsonschema's default set depends on installed packages."""


def _is_date(value: object) -> bool:
    return not isinstance(value, str) or bool(re.fullmatch(r"\d{4}-\d\d-\d\d", value) and date.fromisoformat(value))


def _is_time(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


def _is_number(value: object) -> bool:
    return not isinstance(value, str) or bool(_NUMBER.fullmatch(value))  # CCP: a text whose format is "number"


FORMATS.checks("date", raises=ValueError)(_is_date)
FORMATS.checks("date-time", raises=ValueError)(_is_time)
FORMATS.checks("number")(_is_number)


def _pattern(_validator: Any, pattern: str, value: Any, _schema: Any) -> Iterator[ValidationError]:
    if isinstance(value, str) and not matches(pattern, value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], value: Any, _schema: Any
) -> Iterator[ValidationError]:
    if isinstance(value, dict):
        for pattern, schema in patterns.items():
            for name, member in value.items():
                if matches(pattern, name):
                    yield from validator.descend(member, schema, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, allowed: Any, value: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if not isinstance(value, dict):
        return
    patterns = schema.get("patternProperties", {})
    for name, member in value.items():
        if name in schema.get("properties", {}) or any(matches(pattern, name) for pattern in patterns):
            continue
        if isinstance(allowed, dict):
            yield from validator.descend(member, allowed, path=name)
        elif not allowed:
            yield ValidationError(f"Additional properties are not allowed ({name!r} was unexpected)")


_Validator: Any = extend(
    Draft202012Validator,
    {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    },
)
"""JSON Schema 2020-12 with a time limit for regular expressions."""


def validator(schema: Mapping[str, Any]) -> Any:
    """Return a validator for *schema*; it never fetches a reference, and limits the time of regular expressions."""
    return _Validator(schema, registry=Registry(), format_checker=FORMATS)


def as_json_schema(schema: Any) -> Any:
    """Return *schema* as JSON Schema, which replaces ``nullable``, boolean exclusive limits and CCP's nulls."""
    if isinstance(schema, list):
        return [as_json_schema(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    converted: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _DATA:
            converted[key] = value
        elif key in _NAMED and isinstance(value, dict):
            converted[key] = {name: as_json_schema(part) for name, part in value.items()}
        elif value is not None and key not in {"nullable", "readOnly"}:
            converted[key] = as_json_schema(value)
    for limit, flag in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(converted.get(flag), bool):
            exclusive = converted.pop(flag)
            if exclusive and limit in converted:
                converted[flag] = converted.pop(limit)
    return _or_null(converted) if schema.get("nullable") is True else converted


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    outer: dict[str, Any] = {key: schema.pop(key) for key in ("title", "description", "default") if key in schema}
    return {"anyOf": [schema, {"type": "null"}], **outer}


def item_schema(described: InputDescription) -> dict[str, Any]:
    """Return the schema of one value of the input, without default, title and description."""
    if described.is_secret:
        return {"type": "string", "format": SECRET_FORM["format"], "pattern": SECRET_FORM["pattern"]}
    schema = as_json_schema(described.json_schema)
    return {key: value for key, value in schema.items() if key not in {"default", "title", "description"}}


def value_schema(described: InputDescription) -> dict[str, Any]:
    """Return the schema of the input's value: of a list, if the input may occur more than once."""
    if not described.is_list:
        return item_schema(described)
    schema: dict[str, Any] = {"type": "array", "items": item_schema(described)}
    if described.min_occurs:
        schema["minItems"] = described.min_occurs
    if isinstance(described.max_occurs, int):
        schema["maxItems"] = described.max_occurs
    return schema


def default_of(described: InputDescription) -> Any:
    """Return the coerced default, or `ABSENT`.

    Two values do not count as defaults: ``""``, which CCP's editor writes for an input
    without a default, and a plain-text secret, as in CCP's examples.
    """
    if "default" not in described.json_schema:
        return ABSENT
    default = described.json_schema["default"]
    if described.is_secret:
        return default if is_secret_reference(default) and default != "" else ABSENT
    coerced = coerce(default, described)
    if default in ("", None) and (described.is_file or not validator(value_schema(described)).is_valid(coerced)):
        return ABSENT
    return coerced


def coerce(value: Any, described: InputDescription) -> Any:
    """Return *value* in the type of its schema, if only the notation differs.

    Text becomes a number or a boolean, and the reverse. A single value becomes a list
    of one value if the schema requires a list.
    """
    if described.is_list:
        schema = item_schema(described)
        several = isinstance(value, list) and not validator(schema).is_valid(value)
        return [_coerce(part, schema) for part in (value if several else [value])]
    return _coerce(value, item_schema(described))


def _coerce(value: Any, schema: Mapping[str, Any]) -> Any:
    type_ = schema.get("type")
    if type_ == "array" and isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [_coerce(part, schema["items"]) for part in value]
    if type_ == "string" and isinstance(value, bool):
        return "true" if value else "false"
    if type_ == "string" and isinstance(value, int | float):
        return str(value)
    return _parse(value, type_) if isinstance(value, str) else value


def _parse(text: str, type_: object) -> Any:
    """Return the value of *type_* that *text* stands for; *text* itself if it does not stand for one."""
    if type_ == "boolean":
        return _BOOLEANS.get(text.lower(), text)
    if type_ in {"integer", "number"} and _INTEGER.fullmatch(text):
        return int(text)
    if type_ == "number" and _NUMBER.fullmatch(text) and isfinite(float(text)):
        return float(text)
    return text


def schema_faults(described: InputDescription, *steps: str | int) -> Iterator[DescriptorFault]:
    """Yield the faults in the schema of an input; *steps* lead to the schema."""
    references = [*_references(described.json_schema, steps), *_unlimited(described.json_schema, steps)]
    yield from references
    converted = as_json_schema(described.json_schema)
    try:
        Draft202012Validator.check_schema(converted)
    except SchemaError as error:
        yield _schema_fault(error, steps)
        return
    except RecursionError:  # of a regular expression, whose groups are nested
        yield DescriptorFault(pointer(*steps), "is nested too deeply, or has a regular expression that is")
        return
    if references:
        return
    if described.json_schema.get("enum") == []:
        yield DescriptorFault(pointer(*steps, "enum"), "allows no value; list some, or remove it")
    default = default_of(described)
    if default is not ABSENT:
        invalid = next(validator(value_schema(described)).iter_errors(default), None)
        if invalid is not None:
            yield DescriptorFault(pointer(*steps, "default"), f"does not fit the schema: {shorten(invalid.message)}")


def shorten(text: str) -> str:
    """Return *text*, shortened in the middle if it is long."""
    return text if len(text) <= 200 else f"{text[:160]} … {text[-30:]}"  # noqa: PLR2004 - two lines of a terminal


def _references(schema: Any, steps: Steps) -> Iterator[DescriptorFault]:
    if isinstance(schema, dict):
        for name in _REFERENCES:
            if name in schema:
                yield DescriptorFault(
                    pointer(*steps, name), "references are not allowed; copy the referenced schema here"
                )
        for key, part in schema.items():
            if key not in _DATA:
                yield from _references(part, (*steps, key))
    elif isinstance(schema, list):
        for number, part in enumerate(schema):
            yield from _references(part, (*steps, number))


def _unlimited(schema: Any, steps: Steps) -> Iterator[DescriptorFault]:
    """Yield each pair of keywords for which jsonschema uses regular expressions without a time limit."""
    if isinstance(schema, dict):
        if "unevaluatedProperties" in schema and _has_key(schema, "patternProperties"):
            message = "is not supported beside patternProperties; use additionalProperties"
            yield DescriptorFault(pointer(*steps, "unevaluatedProperties"), message)
        for key, part in schema.items():
            if key not in _DATA:
                yield from _unlimited(part, (*steps, key))
    elif isinstance(schema, list):
        for number, part in enumerate(schema):
            yield from _unlimited(part, (*steps, number))


def _has_key(schema: Any, key: str) -> bool:
    parts = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    return (isinstance(schema, dict) and key in schema) or any(_has_key(part, key) for part in parts)


def _schema_fault(error: SchemaError, steps: Steps) -> DescriptorFault:
    where = pointer(*steps, *error.absolute_path)
    if error.absolute_path and error.absolute_path[-1] == "type":
        near = get_close_matches(str(error.instance).lower(), TYPES, 1, 0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return DescriptorFault(where, f"{shorten(repr(error.instance))} is not a type ({', '.join(TYPES)}){hint}")
    return DescriptorFault(where, shorten(error.message))


def inputs_of(schema: Mapping[str, Any]) -> dict[str, InputDescription]:
    """Return OGC input descriptions for a Prefect parameter schema, with its definitions written out."""
    required = frozenset(schema.get("required", ()))
    definitions = schema.get("definitions", {})
    ordered = sorted(schema.get("properties", {}).items(), key=lambda item: item[1].get("position", 0))
    return {name: _describe(parameter, definitions, required=name in required) for name, parameter in ordered}


def _describe(parameter: Mapping[str, Any], definitions: Mapping[str, Any], *, required: bool) -> InputDescription:
    schema = {key: value for key, value in parameter.items() if key not in {"position", "title", "description", MARK}}
    return InputDescription(
        title=parameter.get("title"),
        description=parameter.get("description"),
        min_occurs=1 if required else 0,
        json_schema=json_value(as_openapi(schema, definitions)),  # a default or limit may be infinite
        **json_value(_custom_members(schema)),
    )


def _custom_members(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the author's own members, such as a unit, which OGC's schema does not allow."""
    return {
        key: value
        for key, value in schema.items()
        if not (key in _OPENAPI or key in _JSON_SCHEMA or key in _DESCRIBED or key.startswith("$"))
    }


def as_openapi(schema: Any, definitions: Mapping[str, Any], *, inside: frozenset[str] = frozenset()) -> Any:
    """Return JSON Schema *schema* as OpenAPI 3.0, which OGC API Processes 1.0 uses for inputs.

    References are written out; a recursive reference becomes ``object``. Null becomes
    ``nullable``, ``const`` an enum of one value, and an exclusive limit a flag. Keywords
    that OGC's schema does not have are dropped.
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
    converted = {key: as_openapi(value, definitions, inside=inside) for key, value in schema.items() if key in _OPENAPI}
    if isinstance(schema.get("properties"), dict):
        named = schema["properties"].items()
        converted["properties"] = {name: as_openapi(part, definitions, inside=inside) for name, part in named}
    converted |= {"default": schema["default"]} if "default" in schema else {}
    converted |= {"enum": [schema["const"]]} if "const" in schema else {}
    return _without_null(converted | _replaced(schema, definitions, inside))


def _replaced(schema: Mapping[str, Any], definitions: Mapping[str, Any], inside: frozenset[str]) -> dict[str, Any]:
    converted: dict[str, Any] = {}
    for limit, flag in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if flag in schema:
            converted |= {limit: schema[flag], flag: True}
    if "prefixItems" in schema:
        converted["items"] = {"anyOf": as_openapi(schema["prefixItems"], definitions, inside=inside)}
    return converted


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
"""The keywords of OGC API Processes 1.0, ``schema``, with the meaning that JSON Schema gives them."""

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
"""The keywords of JSON Schema and pydantic that OGC lacks or uses differently: replaced or dropped."""

_DESCRIBED = frozenset(
    {"additionalParameters", "keywords", "metadata"}
    | {word for name, field in InputDescription.model_fields.items() for word in (name, field.alias or name)}
)
"""The members of OGC's input description."""

_NULL = {"enum": [None], "nullable": True}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type") == "null":
        return {**{key: value for key, value in schema.items() if key != "type"}, **_NULL}
    choices = schema.get("anyOf")
    if not isinstance(choices, list) or _NULL not in choices:
        return schema
    rest = [choice for choice in choices if choice != _NULL]
    outer = {key: value for key, value in schema.items() if key != "anyOf"}
    inner = {"anyOf": rest} if len(rest) != 1 else rest[0]
    return {**inner, **outer, "nullable": True}
