"""The notes on shares in the archive: what was copied for a presigned link, and when the link expires."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from prefect_executions.documents import SMALL_DOCUMENT, ArchiveDocument, Time
from prefect_executions.errors import BundleError, shortened
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


class SharesRead(NamedTuple):
    """The shares of an archive, unsorted, expired or not; and a sentence on each note that is damaged."""

    shares: tuple[Share, ...]
    damaged: tuple[str, ...]


def read_shares(store: Store) -> SharesRead:
    """Return the shares in *store*; a damaged note hides no other share.

    Raises:
        ArchiveError: If the archive fails.
    """
    found: list[Share] = []
    damaged: list[str] = []
    for share_id in store.list_children(ROOT):
        key = f"{ROOT}{share_id}/{NOTE}"
        data = store.get_many([key], limit=SMALL_DOCUMENT).get(key)
        if data is None:
            continue
        try:
            note = Share.from_json(data)
        except BundleError as error:
            damaged.append(_damaged(share_id, str(error)))
            continue
        if note.id == share_id:
            found.append(note)
        else:  # it would end another share
            damaged.append(_damaged(share_id, shortened(f"it is the note of share {note.id}")))
    return SharesRead(tuple(found), tuple(damaged))


def _damaged(share_id: str, why: str) -> str:
    return f"The note of share {share_id} is damaged: {why}. Next: executions shares revoke {share_id}"
