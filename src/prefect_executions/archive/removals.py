"""The note that an execution was removed on purpose, by which `settle` knows not to make its record anew."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from prefect_executions.bundles.layout import check_execution_id
from prefect_executions.documents import Document, Time


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
