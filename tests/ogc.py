"""OGC's own schemas of API Processes 1.0, as a judge of our documents."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from openapi_schema_validator import OAS30Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

_ADDRESS = "urn:ogc:api-processes10"
_FILE = Path(__file__).parent / "data/ogc/api-processes10.yaml"


class _AsWritten(yaml.SafeLoader):
    """Leaves a time a string, as JSON has it; YAML would make it a datetime."""

    yaml_implicit_resolvers = {
        first: [resolver for resolver in resolvers if resolver[0] != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@cache
def _schemas() -> Registry[Any]:
    document = yaml.load(_FILE.read_text(), _AsWritten)  # noqa: S506 - a safe loader with one resolver less
    return Registry[Any]().with_resource(_ADDRESS, Resource(contents=document, specification=DRAFT4))


def faults(schema: str, document: object) -> list[str]:
    """Return what OGC's *schema* (``process``, ``execute``, ``statusInfo``) finds wrong in *document*."""
    judge = OAS30Validator({"$ref": f"{_ADDRESS}#/components/schemas/{schema}"}, registry=_schemas())
    return [f"{error.json_path}: {error.message}" for error in judge.iter_errors(document)]
