"""What a Method is: an OGC process description, the code behind it, and the rules of its declaration.

Shapes follow OGC API Processes - Part 1: Core 1.0, schemas ``process`` and
``inputDescription``; what is our own beside them has names that OGC does not use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from prefect_executions.documents import Document, Part
from prefect_executions.errors import MethodError
from prefect_executions.methods.comparisons import Comparison
from prefect_executions.methods.files import CCP_FILE, FILE_FORMAT
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


class OpenPart(Part):
    """A part of a descriptor: what is unknown in it is kept."""

    model_config = ConfigDict(extra="allow")


class Link(OpenPart):
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
    links: tuple[Link, ...] = ()
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
