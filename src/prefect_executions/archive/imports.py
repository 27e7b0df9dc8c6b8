"""The mark of an execution that was imported: from where and when; the sealed bundle itself never changes."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from prefect_executions.bundles.forms import Kind, Level
from prefect_executions.documents import Document, Time

IMPORTED = "imported.json"


class Imported(Document):
    """How an execution came here; it lies in the archive beside the seal."""

    file_name: ClassVar[str] = IMPORTED

    execution_id: str
    origin: str
    """The name of the file or folder, or the address without credentials, that it was in."""
    kind: Kind
    imported: Time
    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    level: Level = Level.FULL
    """How much of the bundle came; the rest is kept elsewhere, if anywhere."""
    source_sha256: str | None = None
    """Of another system's export: the digest of the list of its files, by which it is known again."""
