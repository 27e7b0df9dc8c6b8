"""Share an execution, or one output of it, by a link that expires: a copy in the archive, and its presigned address.

Law: what is shared is looked through for secrets once more, byte by byte; where
there is one nothing is shared. The address is told once and kept nowhere.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import ClassVar, NamedTuple

from prefect_executions.bundles.layout import OUTPUT_ZIP, ExportLevel
from prefect_executions.bundles.zip_reader import TRUSTED_LIMITS, ZipReader
from prefect_executions.capture.secrets import SecretMask, reveals, secrets_around
from prefect_executions.documents import Document, Time
from prefect_executions.errors import ArchiveError, BundleError, NotFoundError, RequestError, SecretError
from prefect_executions.objectstore.interface import Store
from prefect_executions.operations.export import export
from prefect_executions.workbench.catalog import Catalog

MAX_LIFETIME = timedelta(days=7)
"""S3 takes no presigned address that lasts longer (AWS, signature version 4)."""

_ROOT = "shared/"
_NOTE = "share.json"


class Share(Document):
    """What is shared and until when; it lies beside the copy, without the address."""

    file_name: ClassVar[str] = _NOTE

    id: str
    execution_id: str
    what: str
    """The name of the output, or the level of the exported bundle."""
    file: str
    size: int
    created: Time
    expires: Time


class Shared(NamedTuple):
    """A share, and the address that whoever knows may read it by."""

    share: Share
    url: str


def share(
    reader: Catalog,
    execution_id: str,
    *,
    now: datetime,
    expires: timedelta,
    output: str | None = None,
    level: ExportLevel = ExportLevel.FULL,
    environment: Mapping[str, str],
) -> Shared:
    """Put a copy of an execution, or of one *output*, into the archive and return an address that reads it until then.

    What the *environment* holds of secrets, and those that the execution was given from it, may not be in it.

    Raises:
        RequestError: If it would last too long or no time at all.
        NotAvailableError: If the archive has no such addresses, as a folder has none.
        NotFoundError: If there is no such execution or output.
        SecretError: If something in it looks like a secret; the message names the files.
    """
    if not timedelta(0) < expires <= MAX_LIFETIME:
        raise RequestError(f"a link lasts up to {MAX_LIFETIME.days} days, not {expires}; share it again later")
    store, share_id = reader.workbench.archive.store, secrets.token_hex(8)
    name = Path(reader.output(execution_id, output).name).name if output else f"{execution_id}.zip"
    key = f"{_ROOT}{share_id}/{name}"
    url = store.presign(key, int(expires.total_seconds()))
    with tempfile.TemporaryDirectory(prefix="executions-") as folder:
        copy = Path(folder) / "copy"
        with copy.open("wb") as file:
            if output:
                file.writelines(reader.blocks(execution_id, output))
            else:
                export(reader, [execution_id], file.write, level=level)
        _check(copy, name, zipped=output is None, mask=_mask(reader, execution_id, environment))
        told = Share(
            id=share_id,
            execution_id=execution_id,
            what=output or str(level),
            file=name,
            size=copy.stat().st_size,
            created=now,
            expires=now + expires,
        )
        # The note first: what has one can be revoked.
        store.put(f"{_ROOT}{share_id}/{_NOTE}", told.to_json())
        store.put(key, copy)
    return Shared(told, url)


def shares(store: Store) -> Iterator[Share]:
    """Yield what is shared, expired or not, in no order.

    Raises:
        ArchiveError: If the archive fails, or a note is damaged.
    """
    for share_id in store.list_children(_ROOT):
        key = f"{_ROOT}{share_id}/{_NOTE}"
        data = store.get_many([key]).get(key)
        try:
            if data is not None:
                yield Share.from_json(data)
        except BundleError as error:
            raise ArchiveError(f"{key} in {store.url} is damaged: {error}") from error


def revoke(store: Store, share_id: str) -> None:
    """Remove the copy that is shared, so that its address reads nothing any more.

    Raises:
        NotFoundError: If there is no such share.
    """
    if share_id not in {one.id for one in shares(store)}:
        raise NotFoundError(f"nothing is shared as '{share_id}'. 'executions shares list' shows what is.")
    found = [one.key for one in store.list(f"{_ROOT}{share_id}/")]
    store.delete(*sorted(found, key=lambda key: key.endswith(f"/{_NOTE}")))


def sweep(store: Store, now: datetime) -> int:
    """Remove the copies whose time is over; return how many there were."""
    over = [one.id for one in shares(store) if one.expires <= now]
    for share_id in over:
        revoke(store, share_id)
    return len(over)


def _mask(reader: Catalog, execution_id: str, environment: Mapping[str, str]) -> SecretMask:
    mask = secrets_around(environment)
    for value in reader.record(execution_id).request.values.values():
        named = value.get("secret") if isinstance(value, dict) else None
        if isinstance(named, str) and named.startswith("env:"):
            mask.add(environment.get(named.removeprefix("env:"), ""))
    return mask


def _check(copy: Path, name: str, *, zipped: bool, mask: SecretMask) -> None:
    with copy.open("rb") as stream:
        if zipped:
            reader = ZipReader.open(stream, TRUSTED_LIMITS)
            # output.zip holds, packed, what lies beside it.
            entries = [one for one in reader.entries.values() if not one.name.endswith(f"/{OUTPUT_ZIP}")]
            found = [one.name for one in entries if reveals(reader.blocks(one), mask)]
        else:
            found = [name] if reveals(iter(lambda: stream.read(1 << 20), b""), mask) else []
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""  # noqa: PLR2004 - as many as are named
        raise SecretError(
            f"nothing is shared: something that looks like a secret is in {', '.join(found[:5])}{more}. "
            "Share a single output, or --level metadata, without it."
        )
