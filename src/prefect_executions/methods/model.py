"""The model of a Method: an OGC process description with type, limits, comparisons and code identity.

The shapes follow OGC API Processes - Part 1: Core 1.0, schemas ``process`` and
``inputDescription``. Additional members have names that OGC does not use.
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
"""The JSON Schema format of an `InputFile`: a path or an fsspec URL."""

CCP_FILE = "file"
"""CCP's format of a file: its placeholder becomes the content in base64."""

DESCRIPTOR_MODULE = "prefect_executions.flow.file"
"""The module that loads a descriptor for Prefect; the entrypoint is ``<module>:<path>``."""

_ENDINGS = (".json", ".yaml", ".yml")

OUTPUTS = "outputs/"

REQUIREMENTS = "code/requirements.txt"
"""The file of a bundle with the exact versions of all packages."""

DIFF = "code/uncommitted.diff"
"""The file of a bundle with the uncommitted changes."""

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
"""The vocabulary of every installation; EXECUTIONS_METHOD_TYPES adds terms."""


def descriptor_in(entrypoint: str) -> str | None:
    """Return the path of the descriptor in *entrypoint*; None if it is another kind of entrypoint."""
    path = entrypoint.removeprefix(f"{DESCRIPTOR_MODULE}:")
    return path if path.lower().endswith(_ENDINGS) else None


class InputFile(str):
    """An input file: a path or any fsspec URL, staged before the Method starts.

    It is a `str`, so that every library that opens a path accepts it. Before staging it
    is the given path or URL; inside the Method it is the path of the staged copy::

        @method(version="1.0.0")
        def count(text: InputFile):
            text.read_text()

    Attributes:
        origin: The given path or URL.
    """

    __slots__ = ("origin",)
    origin: str

    def __new__(cls, place: str | os.PathLike[str], *, origin: str | None = None) -> Self:
        """Return the file at *place*; *origin* is the source of a staged copy."""
        file = super().__new__(cls, os.fspath(place))
        file.origin = origin or (place.origin if isinstance(place, InputFile) else str(file))
        return file

    @property
    def path(self) -> Path:
        """The file as a path.

        Raises:
            InputError: If the file is a URL and is not staged.
        """
        if "://" in self:
            raise InputError(f"{self.partition('?')[0]} is not staged: read it inside the Method, which stages it")
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
        raise ValueError("give a file as a path or a URL")


Kind = Literal["bytes", "JSON", "table", "pixels", "lines"]


class Comparison(Part):
    """How to compare an output with the output of another execution.

    Attributes:
        by: The kind of comparison; the media type decides if it is left out. With ``bytes``, only
            identical bytes are equal.
        tolerance: The relative difference up to which two numbers are equal.
        absolute_tolerance: The absolute difference up to which two numbers are equal.
        volatile: Names of columns or JSON members that differ in every run, with the wildcards * and ?;
            ``*`` is the complete output. Their differences are reported but do not count.
    """

    by: Kind | None = None
    tolerance: float = Field(default=0.0, ge=0, lt=1)
    absolute_tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    volatile: tuple[str, ...] = ()

    @property
    def is_volatile(self) -> bool:
        """Whether the complete output is volatile."""
        return "*" in self.volatile

    def is_volatile_part(self, name: str) -> bool:
        """Whether the column or member *name* is volatile."""
        return any(fnmatchcase(name, pattern) for pattern in self.volatile)

    def at_least(self, tolerance: float) -> Comparison:
        """Return the comparison with a relative tolerance of at least *tolerance*."""
        return self if tolerance <= self.tolerance else self.model_copy(update={"tolerance": tolerance})


def comparison_of(path: str, declared: Mapping[str, Comparison] | None) -> Comparison | None:
    """Return the *declared* comparison for the output at *path*: by its name, else by the first matching pattern."""
    name = path.removeprefix(OUTPUTS)
    if not declared or name in declared:
        return declared[name] if declared else None
    return next((comparison for pattern, comparison in declared.items() if fnmatchcase(name, pattern)), None)


class OpenPart(Part):
    """A part of a descriptor; unknown members are preserved."""

    model_config = ConfigDict(extra="allow")


class MethodLink(OpenPart):
    """OGC's ``link``; in CCP, ``compatibleWith`` names an infrastructure for the Method."""

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
    """One input of a Method: OGC's ``inputDescription``."""

    title: str | None = None
    description: str | None = None
    min_occurs: int = Field(default=1, ge=0)
    max_occurs: int | Literal["unbounded"] = 1
    json_schema: dict[str, Any] = Field(alias="schema")

    @property
    def is_file(self) -> bool:
        """Whether the input's values are files, which are staged before the Method starts.

        CCP's ``url`` does not count: CCP's scripts download it themselves.
        """
        leaf = _leaf(self.json_schema)
        return _format(leaf) in {FILE_FORMAT, CCP_FILE} or (_format(leaf) == "uri" and bool(self.media_type))

    @property
    def media_type(self) -> str | None:
        """The media type of the values, if the author declared it."""
        media_type = _leaf(self.json_schema).get("contentMediaType")
        return media_type if isinstance(media_type, str) and media_type else None

    @property
    def is_bound(self) -> bool:
        """Whether the author fixed the value, so that forms omit the input."""
        return self.json_schema.get("readOnly") is True

    @property
    def is_list(self) -> bool:
        """Whether the input's value is a list, because the input may occur more than once."""
        return self.max_occurs != 1

    @property
    def is_secret(self) -> bool:
        """Whether the input's value is a reference to a secret."""
        return _format(self.json_schema) == "secret"


class OutputDescription(OpenPart):
    """One output of a Method: OGC's ``outputDescription``."""

    title: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")


class AdditionalParameter(OpenPart):
    """A named list of values: OGC's ``additionalParameter``."""

    name: str
    value: tuple[Any, ...]


class AdditionalParameters(OpenPart):
    """OGC's ``additionalParameters``, which hold the scripts of a descriptor Method."""

    title: str | None = None
    role: str | None = None
    href: str | None = None
    parameters: tuple[AdditionalParameter, ...] = ()


class SourceFile(Part):
    """A source file of the Method, recorded in ``code/``.

    `git_object` is Git's hash of the content (``git hash-object``).
    """

    path: str
    sha256: str
    git_object: str
    module: str | None = None
    late: bool | None = None
    """True if the module was loaded after the Method's code began."""


class LackingFile(Part):
    """A file that the code used and that the bundle does not keep."""

    path: str
    """Its path below ``code/``, had it been kept; the text of an input if `input` is present.

    An absolute path is that of a file that is not beside the code.
    """
    why: str
    input: str | None = None
    """The name of the input whose text is the path of this file."""
    size: int | None = Field(default=None, ge=0, lt=2**63)
    """Of a file that is not beside the code: its size in bytes."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Of a file that is not beside the code: its digest, if it is small and its name is not one of credentials."""

    @property
    def is_outside(self) -> bool:
        """Whether the code opened it by its absolute path, away from the code."""
        return self.input is None and self.path.startswith("/")


class Repository(Part):
    """The Git repository of the code; it is only read."""

    remote: str | None = None
    """The URL of ``origin``, without credentials."""
    commit: str | None = None
    branch: str | None = None
    author: str | None = None
    """The name of the commit's author, without the address."""
    subject: str | None = None
    """The first line of the commit's message, at most 500 characters."""
    path: str | None = None
    """The entrypoint's file, relative to the repository."""
    dirty: bool | None = None
    changed: tuple[str, ...] = ()
    diff_sha256: str | None = None
    diff_kept: bool | None = None
    """False if only the digest of the diff is recorded, because it is larger than EXECUTIONS_DIFF_LIMIT."""


class Notebook(Part):
    """The notebook with the code; its digest excludes the outputs of cells."""

    path: str
    sha256: str


class CodeIdentity(Part):
    """The identity of the code that ran, as far as it was observed."""

    entrypoint: str | None = None
    """Prefect's entrypoint, ``path.py:function``; the path is relative to the repository."""
    sha256: str | None = None
    """The digest of the paths and digests of all `files`: equal digests mean equal code."""
    repository: Repository | None = None
    files: tuple[SourceFile, ...] = ()
    data_files: tuple[SourceFile, ...] | None = None
    """The files beside the code that it opened; `sha256` does not cover them."""
    lacking: tuple[LackingFile, ...] | None = None
    """What a replay lacks; absent if nothing is known to be missing."""
    package: str | None = None
    """The installed package of the Method, ``name==version``."""
    notebook: Notebook | None = None
    image: str | None = None
    image_digest: str | None = None


class Method(Document):
    """A Method: OGC process description, type, limits and code."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",  # CCP: unknown members of a descriptor are preserved
        alias_generator=to_camel,
        populate_by_name=True,
        ser_json_inf_nan="strings",
        serialize_by_alias=True,
    )
    file_name: ClassVar[str] = "metadata/method.json"

    id: str
    version: str
    title: str = Field(default_factory=lambda members: str(members.get("id", "")))
    description: str | None = None
    keywords: tuple[str, ...] = ()
    metadata: tuple[MetadataEntry, ...] = ()
    job_control_options: tuple[Literal["sync-execute", "async-execute", "dismiss"], ...] = ("async-execute", "dismiss")
    output_transmission: tuple[Literal["value", "reference"], ...] = ("reference",)
    inputs: dict[str, InputDescription] = {}
    outputs: dict[str, OutputDescription] = {}
    comparisons: dict[str, Comparison] | None = None
    """How a replay compares outputs, by names in ``outputs/`` or patterns of names."""
    additional_parameters: AdditionalParameters | None = None
    links: tuple[MethodLink, ...] = ()
    type: str | None = None
    archive: ArchiveLevel | None = None
    time_limit: float | None = None
    """The time limit of the Method's own code, in seconds."""
    code: CodeIdentity | None = None

    @property
    def secrets(self) -> frozenset[str]:
        """The names of the inputs that refer to a secret."""
        return frozenset(name for name, described in self.inputs.items() if described.is_secret)

    def script(self, name: str) -> tuple[str, ...]:
        """Return the lines of the script *name*, for example ``execute-script``; none if it is missing.

        A byte order mark and the carriage returns of Windows are left out, because a shell would read them as text.
        """
        parameters = self.additional_parameters.parameters if self.additional_parameters else ()
        lines = next((tuple(map(str, parameter.value)) for parameter in parameters if parameter.name == name), ())
        unix = [line.replace("\r\n", "\n").removesuffix("\r") for line in lines]
        return (unix[0].removeprefix("\ufeff"), *unix[1:]) if unix else ()


def check_type(term: str | None, further: Sequence[str]) -> str | None:
    """Return *term* if it is in the vocabulary or in the operator's *further* terms.

    Raises:
        MethodError: If it is not; the message lists the known terms.
    """
    known = sorted({*METHOD_TYPES, *further})
    if term is None or term in known:
        return term
    raise MethodError(
        f"'{term}' is not a known type of a Method. Known types: {', '.join(known)}. "
        "The operator can add terms with EXECUTIONS_METHOD_TYPES."
    )


def _format(schema: Mapping[str, Any]) -> str:
    return str(schema.get("format") or "").lower()  # CCP also writes "Secret", and null for no format


def _leaf(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if schema.get("type") == "array" and isinstance(schema.get("items"), dict):
        return _leaf(schema["items"])
    choices = schema.get("anyOf")
    return _leaf(choices[0]) if choices else schema
