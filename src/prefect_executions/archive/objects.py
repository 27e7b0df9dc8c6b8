"""The archive's JSON documents and object names: the seal, the import record and the removal record.

The seal is the object that makes an execution archived, and it names the content.
The import record lies beside it, because a sealed bundle never changes. The removal
record keeps `settle` from recreating the record of a removed execution.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import ClassVar
from urllib.parse import unquote

from pydantic import Field

from prefect_executions.bundles.layout import BundleKind, ExportLevel, check_execution_id
from prefect_executions.documents import SMALL_DOCUMENT, ArchiveDocument, Part, Time
from prefect_executions.errors import BundleError, DamagedSealError
from prefect_executions.lifecycle.status import Status
from prefect_executions.objectstore.interface import Store

OPENING = "opening.json"
SEAL = "seal.json"
IMPORTED = "imported.json"
LATE = "late/"
SUSPENDED = "suspended.zip"
INCLUSION = "inclusion.json"
# Not every store accepts these characters in a key. "%" is escaped too, so that decoding is unambiguous.
_UNSAFE = re.compile(r"[%\\\x00-\x1f\x7f]")
_USUAL = 64 * 1024
_DIGEST = r"[0-9a-f]{64}"


class ArchivedData(Part):
    """A large file of the bundle: its object's name, relative to the execution, and its size in bytes."""

    object: str = Field(pattern=rf"^data/{_DIGEST}$")
    size: int = Field(ge=0, lt=2**63)

    @property
    def sha256(self) -> str:
        return self.object.removeprefix("data/")


class Seal(ArchiveDocument):
    """Which files of an execution are archived, and in which objects; paths are relative to the bundle."""

    file_name: ClassVar[str] = SEAL

    execution_id: str
    manifest_sha256: str = Field(pattern=rf"^{_DIGEST}$")
    objects: str = Field(pattern=r"^sealed-[0-9a-f]{16}/$")
    """The folder of the small files, relative to the execution."""
    data: dict[str, ArchivedData] = {}
    absent: tuple[str, ...] = ()
    """Files of the bundle that the archive level left out."""
    status: Status
    finished: Time | None = None

    def object_of(self, path: str) -> str:
        """Return the name, relative to the execution, of the object that holds the bundle's file *path*."""
        return self.data[path].object if path in self.data else self.objects + _UNSAFE.sub(_escaped, path)

    def path_of(self, name: str) -> str:
        """Return the bundle path of the small file in the object *name*, which is relative to the execution."""
        return unquote(name.removeprefix(self.objects))

    def names(self, name: str) -> bool:
        """Return whether the object *name*, relative to the execution, is part of the sealed bundle."""
        return name.startswith(self.objects) or any(name == data.object for data in self.data.values())


def folder_of(execution_id: str) -> str:
    """Return the prefix of all keys of an execution.

    Raises:
        NameRefusedError: If *execution_id* is not a valid execution id.
    """
    return f"executions/{check_execution_id(execution_id)}/"


def data_name(digest: str) -> str:
    """Return the name, relative to the execution, of the object of a large file with the SHA-256 *digest*."""
    return f"data/{digest}"


def _escaped(character: re.Match[str]) -> str:
    return f"%{ord(character[0]):02X}"


def small_objects(store: Store, keys: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield small documents by key, fetched together; each that is large is fetched alone, up to the limit of one."""
    objects = store.get_many(keys, limit=_USUAL)
    for key, data in objects.items():
        yield key, data if len(data) <= _USUAL else store.get_many([key], limit=SMALL_DOCUMENT).get(key, b"")


def parse_seal(execution_id: str, data: bytes) -> Seal:
    """Parse the seal of an execution.

    Raises:
        DamagedSealError: If the seal is damaged or belongs to another execution.
    """
    try:
        seal = Seal.from_json(data)
    except BundleError as error:
        raise DamagedSealError(f"The archived seal of {execution_id} is damaged: {error}") from error
    if seal.execution_id != execution_id:
        raise DamagedSealError(f"The archived seal of {execution_id} is that of {seal.execution_id}")
    return seal


class Imported(ArchiveDocument):
    """Where an execution was imported from, and when; stored in the archive beside the seal."""

    file_name: ClassVar[str] = IMPORTED

    execution_id: str
    origin: str
    """The name of the imported file or folder, or its URL without credentials."""
    kind: BundleKind
    imported: Time
    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    level: ExportLevel = ExportLevel.FULL
    """The export level: how much of the bundle was imported."""
    source_sha256: str | None = None
    """For another system's export: the digest of its list of files, which identifies a repeated import."""


class Removed(ArchiveDocument):
    """When and why an execution was removed from the archive."""

    file_name: ClassVar[str] = "removed.json"

    execution_id: str
    manifest_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """The digest of the manifest, if the removed execution was sealed."""
    removed: Time
    why: str


def removed_key(execution_id: str) -> str:
    """Return the key of the removal record of an execution.

    Raises:
        NameRefusedError: If *execution_id* is not a valid execution id.
    """
    return f"removed/{check_execution_id(execution_id)}.json"
