"""The API definition in OpenAPI 3.0, from the routes of the application.

FastAPI writes OpenAPI 3.1, and OGC API - Processes 1.0 needs 3.0, whose schemas are not those of JSON Schema.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from prefect_executions.web.problems import MEDIA_TYPE

VERSION = "3.0.3"

_PROBLEM = {
    "type": "object",
    "description": "RFC 7807",
    "required": ["type"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string", "format": "uri-reference"},
    },
}
_PROBLEMS = {
    "description": "A problem",
    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_BOUNDS = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}


def openapi_document(app: FastAPI, server: str) -> dict[str, Any]:
    """Return the API definition of *app*, which is reached at the address *server*."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, openapi_version=VERSION
    )
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's own; ours is a problem with status 400
            operation["responses"]["default"] = _PROBLEMS
    schemas = document.get("components", {}).get("schemas", {})
    kept = {name: schema for name, schema in schemas.items() if "ValidationError" not in name}
    document["components"] = {"schemas": {**kept, "Problem": _PROBLEM}}
    as_3_0: dict[str, Any] = _as_3_0(document)
    return as_3_0 | {"servers": [{"url": server}]}


def _as_3_0(value: Any) -> Any:
    """Return *value* with each JSON Schema of 2020-12 in it as one of OpenAPI 3.0."""
    if isinstance(value, list):
        return [_as_3_0(member) for member in value]
    if not isinstance(value, dict):
        return value
    schema = {name: _as_3_0(member) for name, member in value.items()}
    choices = schema.get("anyOf")
    if isinstance(choices, list) and {"type": "null"} in choices:
        others = [choice for choice in choices if choice != {"type": "null"}]
        del schema["anyOf"]
        schema |= others[0] if len(others) == 1 else {"anyOf": others}
        schema["nullable"] = True
    if isinstance(schema.get("type"), str) and "const" in schema:
        schema["enum"] = [schema.pop("const")]
    for exclusive, bound in _BOUNDS.items():
        if isinstance(schema.get(exclusive), int | float) and not isinstance(schema[exclusive], bool):
            schema |= {bound: schema[exclusive], exclusive: True}
    return schema
