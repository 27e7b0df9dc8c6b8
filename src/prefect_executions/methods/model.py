"""What a Method is: an OGC process description, the code behind it, and the rules of its declaration.

Shapes follow OGC API Processes - Part 1: Core 1.0, schemas ``process`` and
``inputDescription``; what is our own beside them has names that OGC does not use.

A file that a Method reads, as its own code sees it.

How a Method says that an output is to be compared when an execution of it is replayed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

from prefect_executions.documents import Document, Part
from prefect_executions.errors import InputError, MethodError
from prefect_executions.settings import ArchiveLevel

FILE_FORMAT = "uri-reference"
"""JSON Schema format of an `InputFile`: a path or an fsspec URL."""

DESCRIPTOR_MODULE = "prefect_executions.flow.file"
"""The module by which Prefect loads a descriptor: ``<it>:<path>`` is an entrypoint."""

_ENDINGS = (".json", ".yaml", ".yml")

CCP_FILE = "file"
"""CCP's format of a file: its placeholder stands for the content in base64."""


def descriptor_in(entrypoint: str) -> str | None:
    """Return the path of the descriptor that *entrypoint* names, or None where it names something else."""
    path = entrypoint.removeprefix(f"{DESCRIPTOR_MODULE}:")
    return path if path.lower().endswith(_ENDINGS) else None


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


OUTPUTS = "outputs/"

Kind = Literal["bytes", "JSON", "table", "pixels", "lines"]


class Comparison(Part):
    """How an output is compared with that of another execution.

    Attributes:
        by: What it is compared as; by its media type when left out. By ``bytes`` only the same bytes are the same.
        tolerance: The relative difference up to which two numbers are the same.
        absolute_tolerance: The difference up to which they are, too, however near to 0 they lie.
        volatile: Columns or JSON members that differ in every run, by their names, in which * and ? stand for
            anything; ``*`` is the whole output. They are told and not judged.
    """

    by: Kind | None = None
    tolerance: float = Field(default=0.0, ge=0, lt=1)
    absolute_tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    volatile: tuple[str, ...] = ()

    @property
    def is_volatile(self) -> bool:
        """Whether the whole output is."""
        return "*" in self.volatile

    def is_volatile_part(self, name: str) -> bool:
        """Whether the column or member *name* is."""
        return any(fnmatchcase(name, pattern) for pattern in self.volatile)

    def at_least(self, tolerance: float) -> Comparison:
        """Return the comparison with no smaller relative tolerance than *tolerance*."""
        return self if tolerance <= self.tolerance else self.model_copy(update={"tolerance": tolerance})


def comparison_of(path: str, declared: Mapping[str, Comparison] | None) -> Comparison | None:
    """Return what is *declared* for the output at *path*: by its name, else by the first pattern that fits it."""
    name = path.removeprefix(OUTPUTS)
    if not declared or name in declared:
        return declared[name] if declared else None
    return next((one for pattern, one in declared.items() if fnmatchcase(name, pattern)), None)


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


class OpenPart(Part):
    """A part of a descriptor: what is unknown in it is kept."""

    model_config = ConfigDict(extra="allow")


class MethodLink(OpenPart):
    """OGC's ``link``; ``compatibleWith`` names in CCP an infrastructure that the Method runs on."""

    href: str
    rel: str | None = None
    type: str | None = None
    title: str | None = None


class MetadataEntry(OpenPart):
    """OGC's ``metadata``; CCP's roles are ``author``, ``category`` and ``context``."""

    title: str | None = None
    role: str | None = None
    href: str | None = None


class InputDescription(OpenPart):
    """One input of a Method, as OGC's ``inputDescription``."""

    title: str | None = None
    description: str | None = None
    min_occurs: int = Field(default=1, ge=0)
    max_occurs: int | Literal["unbounded"] = 1
    json_schema: dict[str, Any] = Field(alias="schema")

    @property
    def is_file(self) -> bool:
        """Whether the input's values name files that are staged before the Method starts.

        CCP's ``url`` is text that its scripts fetch themselves, so it is none.
        """
        leaf = _leaf(self.json_schema)
        return _format(leaf) in {FILE_FORMAT, CCP_FILE} or (_format(leaf) == "uri" and bool(self.media_type))

    @property
    def media_type(self) -> str | None:
        """What the author says of the values' media type."""
        said = _leaf(self.json_schema).get("contentMediaType")
        return said if isinstance(said, str) and said else None

    @property
    def is_bound(self) -> bool:
        """Whether the author gave the value, so that no form asks for it."""
        return self.json_schema.get("readOnly") is True

    @property
    def is_list(self) -> bool:
        """Whether the input's value is a list because it may occur more than once."""
        return self.max_occurs != 1

    @property
    def is_secret(self) -> bool:
        """Whether the input's value names a secret."""
        return _format(self.json_schema) == "secret"


class OutputDescription(OpenPart):
    """One output of a Method, as OGC's ``outputDescription``."""

    title: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")


class AdditionalParameter(OpenPart):
    """A named list of values, as OGC's ``additionalParameter``."""

    name: str
    value: tuple[Any, ...]


class AdditionalParameters(OpenPart):
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
    title: str = Field(default_factory=lambda told: str(told.get("id", "")))
    description: str | None = None
    keywords: tuple[str, ...] = ()
    metadata: tuple[MetadataEntry, ...] = ()
    job_control_options: tuple[Literal["sync-execute", "async-execute", "dismiss"], ...] = ("async-execute", "dismiss")
    output_transmission: tuple[Literal["value", "reference"], ...] = ("reference",)
    inputs: dict[str, InputDescription] = {}
    outputs: dict[str, OutputDescription] = {}
    comparisons: dict[str, Comparison] | None = None
    """How outputs are compared when an execution is replayed, by their names below ``outputs/`` or patterns of them."""
    additional_parameters: AdditionalParameters | None = None
    links: tuple[MethodLink, ...] = ()
    type: str | None = None
    archive: ArchiveLevel | None = None
    time_limit: float | None = None
    """Seconds that the Method's own code may take."""
    code: CodeIdentity | None = None

    @property
    def secrets(self) -> frozenset[str]:
        """The names of the inputs that name a secret."""
        return frozenset(name for name, described in self.inputs.items() if described.is_secret)

    def script(self, name: str) -> tuple[str, ...]:
        """Return the lines of the script *name*, for example ``execute-script``; none when there is no such script."""
        told = self.additional_parameters.parameters if self.additional_parameters else ()
        return next((tuple(map(str, one.value)) for one in told if one.name == name), ())


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


def _format(schema: Mapping[str, Any]) -> str:
    return str(schema.get("format") or "").lower()  # CCP writes "Secret" as well, and null for none


def _leaf(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if schema.get("type") == "array" and isinstance(schema.get("items"), dict):
        return _leaf(schema["items"])
    choices = schema.get("anyOf")
    return _leaf(choices[0]) if choices else schema
