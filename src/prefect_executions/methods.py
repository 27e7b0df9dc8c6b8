"""What a Method is: an OGC process description, the code behind it, and the rules of its declaration.

Shapes follow OGC API Processes - Part 1: Core 1.0, schemas ``process`` and
``inputDescription``; what is our own beside them has names that OGC does not use.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

from prefect_executions.documents import Document, Part
from prefect_executions.errors import InputError, MethodError
from prefect_executions.settings import ArchiveLevel

# The vocabulary that every installation knows; EXECUTIONS_METHOD_TYPES adds to it.
METHOD_TYPES = (
    "Analysis",
    "Annotation",
    "Calibration",
    "Conversion",
    "Evaluation",
    "Inference",
    "Ingestion",
    "Preprocessing",
    "Simulation",
    "Training",
    "Visualization",
)

SECRET_REFERENCE = r"^(env:[A-Za-z_][A-Za-z0-9_]*|[a-z0-9][a-z0-9-]*)$"  # noqa: S105 - the form of a name, not a secret
"""The name of a Prefect Secret block, or ``env:NAME`` for a variable of the worker."""

FILE_FORMAT = "uri-reference"
"""JSON Schema format of an `InputFile`: a path or an fsspec URL."""


class InputFile(str):
    """A file that a Method reads: given as a path or any fsspec URL, staged before the Method starts.

    It is text, so that every library that opens a path takes it: what was given
    before staging, the path of the staged copy inside the Method::

        @method(version="1.0.0")
        def count(text: InputFile):
            text.read_text()

    Attributes:
        origin: The path or URL as it was given.
    """

    __slots__ = ("origin",)
    origin: str

    def __new__(cls, place: str | os.PathLike[str], *, origin: str | None = None) -> Self:
        """Name a file at *place*; *origin* is where a staged copy came from."""
        made = super().__new__(cls, os.fspath(place))
        made.origin = origin or (place.origin if isinstance(place, InputFile) else str(made))
        return made

    @property
    def path(self) -> Path:
        """The file as a path.

        Raises:
            InputError: If it is a URL that nothing has staged.
        """
        if "://" in self:
            raise InputError(f"{self.partition('?')[0]} is not staged: an InputFile is staged when its Method runs")
        return Path(self)

    def open(self, mode: str = "r", **options: Any) -> IO[Any]:
        """Open the file, as `pathlib.Path.open` does."""
        return self.path.open(mode, **options)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the file's text."""
        return self.path.read_text(encoding=encoding)

    def read_bytes(self) -> bytes:
        """Return the file's bytes."""
        return self.path.read_bytes()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._of, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "format": FILE_FORMAT}

    @classmethod
    def _of(cls, value: object) -> InputFile:
        if isinstance(value, InputFile):
            return value
        if isinstance(value, str | os.PathLike):
            return cls(value)
        raise ValueError("a file is given as a path or a URL")


class InputDescription(Part):
    """One input of a Method, as OGC's ``inputDescription``."""

    title: str | None = None
    description: str | None = None
    min_occurs: int = Field(default=1, ge=0)
    max_occurs: int | Literal["unbounded"] = 1
    json_schema: dict[str, Any] = Field(alias="schema")

    @property
    def is_file(self) -> bool:
        """Whether the input's values name files that are staged before the Method starts."""
        return bool(_leaf(self.json_schema).get("format") == FILE_FORMAT)

    @property
    def is_secret(self) -> bool:
        """Whether the input's value names a secret."""
        return self.json_schema.get("format") == "secret"


class OutputDescription(Part):
    """One output of a Method, as OGC's ``outputDescription``."""

    title: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")


class AdditionalParameter(Part):
    """A named list of values, as OGC's ``additionalParameter``."""

    name: str
    value: tuple[Any, ...]


class AdditionalParameters(Part):
    """OGC's ``additionalParameters``: here the scripts of a descriptor Method."""

    title: str | None = None
    role: str | None = None
    href: str | None = None
    parameters: tuple[AdditionalParameter, ...] = ()


class SourceFile(Part):
    """A file of the Method's own code, kept under ``code/``.

    `git_object` is the hash that Git gives the file's content (``git hash-object``).
    """

    path: str
    sha256: str
    git_object: str
    module: str | None = None


class Repository(Part):
    """The Git repository that the code came from, read and never written."""

    remote: str | None = None
    """The URL of ``origin``, without credentials."""
    commit: str | None = None
    branch: str | None = None
    path: str | None = None
    """The entrypoint's file, relative to the repository."""
    dirty: bool | None = None
    changed: tuple[str, ...] = ()
    diff_sha256: str | None = None
    diff_kept: bool | None = None
    """False when the diff is larger than EXECUTIONS_DIFF_LIMIT, so that only its digest is kept."""


class Notebook(Part):
    """The notebook that the code was run from; its digest is taken with the cells' outputs stripped."""

    path: str
    sha256: str


class CodeIdentity(Part):
    """Which code ran, as far as it could be observed."""

    entrypoint: str | None = None
    """``path.py:function``, as Prefect writes entrypoints; the path as in the repository."""
    sha256: str | None = None
    """Digest over the paths and digests of all `files`: equal digests mean equal code."""
    repository: Repository | None = None
    files: tuple[SourceFile, ...] = ()
    package: str | None = None
    """Name and version of the installed package that the Method comes from, ``name==version``."""
    notebook: Notebook | None = None
    image: str | None = None
    image_digest: str | None = None


class Method(Document):
    """A Method, whole: OGC process description, type, limits and code."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",  # CCP: what is unknown in a descriptor is kept
        alias_generator=to_camel,
        populate_by_name=True,
        ser_json_inf_nan="strings",
        serialize_by_alias=True,
    )
    file_name: ClassVar[str] = "metadata/method.json"

    id: str
    version: str
    title: str
    description: str | None = None
    keywords: tuple[str, ...] = ()
    job_control_options: tuple[Literal["sync-execute", "async-execute", "dismiss"], ...] = ("async-execute", "dismiss")
    output_transmission: tuple[Literal["value", "reference"], ...] = ("reference",)
    inputs: dict[str, InputDescription] = {}
    outputs: dict[str, OutputDescription] = {}
    additional_parameters: AdditionalParameters | None = None
    type: str | None = None
    archive: ArchiveLevel | None = None
    time_limit: float | None = None
    """Seconds that the Method's own code may take."""
    code: CodeIdentity | None = None

    @property
    def secrets(self) -> frozenset[str]:
        """The names of the inputs that name a secret."""
        return frozenset(name for name, described in self.inputs.items() if described.is_secret)


def check_type(term: str | None, further: Sequence[str]) -> str | None:
    """Return *term* if the vocabulary, with the operator's *further* terms, knows it.

    Raises:
        MethodError: If it does not; the message lists the known terms.
    """
    known = sorted({*METHOD_TYPES, *further})
    if term is None or term in known:
        return term
    raise MethodError(
        f"'{term}' is not a known type of a Method. Known: {', '.join(known)}. "
        "An operator adds terms by EXECUTIONS_METHOD_TYPES."
    )


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

_MARKED = re.compile(rf"\n*<!-- {MARK}: [^\n]* -->")


def marked(description: str | None, version: str) -> str:
    """Return a Method's description with the mark in a comment, which no page shows."""
    return f"{unmarked(description) or ''}\n\n<!-- {MARK}: {version} -->".lstrip()


def unmarked(description: str | None) -> str | None:
    """Return a Method's description as its author wrote it."""
    return _MARKED.sub("", description).strip() or None if description else description


def secret_inputs(schema: Mapping[str, Any], declared: frozenset[str], method_id: str) -> frozenset[str]:
    """Return which parameters name a secret: the *declared* ones and those whose schema is a password.

    Raises:
        MethodError: If a declared name is no parameter, or a password lies inside a nested model.
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
    return declared | {name for name, told in properties.items() if _has_password(told)}


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


def _leaf(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if schema.get("type") == "array" and isinstance(schema.get("items"), dict):
        return _leaf(schema["items"])
    choices = schema.get("anyOf")
    return _leaf(choices[0]) if choices else schema


def _has_password(part: Any) -> bool:
    if isinstance(part, dict):
        return part.get("format") == "password" or any(_has_password(inner) for inner in part.values())
    return isinstance(part, list) and any(_has_password(inner) for inner in part)


def is_secret_reference(value: object) -> bool:
    """Whether *value* has the form of a secret's name."""
    return isinstance(value, str) and re.fullmatch(SECRET_REFERENCE, value) is not None
