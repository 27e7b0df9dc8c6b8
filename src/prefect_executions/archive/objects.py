"""The seal: the one object that says that an execution is archived, and with which content.

The mark of an execution that was imported: from where and when; the sealed bundle itself never changes.

The note that an execution was removed on purpose, by which `settle` knows not to make its record anew.
"""

from __future__ import annotations

import re
from typing import ClassVar
from urllib.parse import unquote

from pydantic import Field

from prefect_executions.bundles.layout import BundleKind, ExportLevel, check_execution_id
from prefect_executions.documents import Document, Part, Time
from prefect_executions.errors import ArchiveError, BundleError
from prefect_executions.lifecycle.status import Status

OPENING = "opening.json"
SEAL = "seal.json"
LATE = "late/"
SUSPENDED = "suspended.zip"
INCLUSION = "inclusion.json"
# No store is sure to hold these in a key; "%" itself is escaped so that the way back has one answer.
_UNSAFE = re.compile(r"[%\\\x00-\x1f\x7f]")
_DIGEST = r"[0-9a-f]{64}"


class ArchivedData(Part):
    """A big file of the bundle: the object that holds it, relative to the execution, and its size in bytes."""

    object: str = Field(pattern=rf"^data/{_DIGEST}$")
    size: int = Field(ge=0)

    @property
    def sha256(self) -> str:
        return self.object.removeprefix("data/")


class Seal(Document):
    """What of an execution is archived, and where; paths are those in the bundle."""

    file_name: ClassVar[str] = SEAL

    execution_id: str
    manifest_sha256: str = Field(pattern=rf"^{_DIGEST}$")
    objects: str = Field(pattern=r"^sealed-[0-9a-f]{16}/$")
    """Where the small files lie, relative to the execution."""
    data: dict[str, ArchivedData] = {}
    absent: tuple[str, ...] = ()
    """Files of the bundle that the archive level left out."""
    status: Status
    finished: Time | None = None

    def object_of(self, path: str) -> str:
        """Return the object, relative to the execution, that holds the file at *path* of the bundle."""
        return self.data[path].object if path in self.data else self.objects + _UNSAFE.sub(_escaped, path)

    def path_of(self, name: str) -> str:
        """Return the path in the bundle of the small file that the object *name*, relative to the execution, holds."""
        return unquote(name.removeprefix(self.objects))

    def names(self, name: str) -> bool:
        """Whether the object *name*, relative to the execution, belongs to what is sealed."""
        return name.startswith(self.objects) or any(name == data.object for data in self.data.values())


def folder_of(execution_id: str) -> str:
    """Return the beginning of all keys of an execution.

    Raises:
        NameRefusedError: If this cannot be an execution id.
    """
    return f"executions/{check_execution_id(execution_id)}/"


def data_name(digest: str) -> str:
    """Return the object, relative to the execution, of a file with that SHA-256."""
    return f"data/{digest}"


def _escaped(found: re.Match[str]) -> str:
    return f"%{ord(found[0]):02X}"


def parse_seal(execution_id: str, data: bytes) -> Seal:
    """Read the seal of an execution.

    Raises:
        ArchiveError: If it is damaged, or that of another execution.
    """
    try:
        seal = Seal.from_json(data)
    except BundleError as error:
        raise ArchiveError(f"The archived seal of {execution_id} is damaged: {error}") from error
    if seal.execution_id != execution_id:
        raise ArchiveError(f"The archived seal of {execution_id} is that of {seal.execution_id}")
    return seal


IMPORTED = "imported.json"


class Imported(Document):
    """How an execution came here; it lies in the archive beside the seal."""

    file_name: ClassVar[str] = IMPORTED

    execution_id: str
    origin: str
    """The name of the file or folder, or the address without credentials, that it was in."""
    kind: BundleKind
    imported: Time
    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    level: ExportLevel = ExportLevel.FULL
    """How much of the bundle came; the rest is kept elsewhere, if anywhere."""
    source_sha256: str | None = None
    """Of another system's export: the digest of the list of its files, by which it is known again."""


class Removed(Document):
    """That an execution was removed from the archive."""

    file_name: ClassVar[str] = "removed.json"

    execution_id: str
    manifest_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """The digest of the manifest of what was removed, where it was sealed."""
    removed: Time
    why: str


def removed_key(execution_id: str) -> str:
    """Return the key of the note that an execution was removed.

    Raises:
        NameRefusedError: If this cannot be an execution id.
    """
    return f"removed/{check_execution_id(execution_id)}.json"
