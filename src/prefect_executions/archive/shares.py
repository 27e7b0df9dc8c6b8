"""The notes on shares in the archive: what was copied for a presigned link, and when the link expires."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from prefect_executions.documents import SMALL_DOCUMENT, ArchiveDocument, Time
from prefect_executions.errors import ArchiveError, BundleError
from prefect_executions.objectstore.interface import Store

ROOT = "shared/"
"""The folder of the archive with one folder for each share."""

NOTE = "share.json"


class Share(ArchiveDocument):
    """The note on a share, stored beside the copy; it does not contain the URL."""

    file_name: ClassVar[str] = NOTE

    id: str
    execution_id: str
    what: str
    """The name of the output, or the level of the exported bundle."""
    file: str
    size: int
    created: Time
    expires: Time


def shares(store: Store) -> Iterator[Share]:
    """Yield all shares, expired or not, unsorted.

    Raises:
        ArchiveError: If the archive fails, or a note is damaged.
    """
    for share_id in store.list_children(ROOT):
        key = f"{ROOT}{share_id}/{NOTE}"
        data = store.get_many([key], limit=SMALL_DOCUMENT).get(key)
        try:
            note = Share.from_json(data) if data is not None else None
        except BundleError as error:
            raise ArchiveError(f"{key} in {store.url} is damaged: {error}") from error
        if note is not None and note.id != share_id:  # it would end another share
            raise ArchiveError(f"{key} in {store.url} is damaged: it is the note of share {note.id}; delete it")
        if note is not None:
            yield note
