"""Shares: a copy of an execution or of one output in the archive, read through a presigned URL that expires.

Law: the copy is scanned for secrets once more, byte by byte; one hit, and nothing
is shared. The URL is returned once and stored nowhere.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Mapping
from datetime import datetime, timedelta
from hashlib import file_digest
from pathlib import Path
from typing import NamedTuple

from prefect_executions.archive.shares import NOTE, ROOT, Share, read_shares
from prefect_executions.attestation.policy import TRUST_NOBODY, SignaturePolicy, SignatureState
from prefect_executions.bundles import manifest
from prefect_executions.bundles.layout import MANIFEST, OUTPUT_ZIP, ExportLevel
from prefect_executions.bundles.source import Source
from prefect_executions.bundles.verify import verify
from prefect_executions.bundles.zip_reader import TRUSTED_LIMITS, ZipReader
from prefect_executions.capture.secrets import SecretMask, reveals, secrets_around
from prefect_executions.errors import (
    BundleError,
    NotAvailableError,
    NotFoundError,
    RequestError,
    SecretError,
)
from prefect_executions.objectstore.interface import Store
from prefect_executions.operations.export import export
from prefect_executions.workbench.catalog import Catalog

MAX_LIFETIME = timedelta(days=7)
"""Longest lifetime of a presigned S3 URL (AWS signature version 4)."""

_NAMED = 5
"""Files that the message on a secret names."""


class Shared(NamedTuple):
    """A share, and its presigned URL: everyone who has the URL can read the copy."""

    share: Share
    url: str
    signature: SignatureState = SignatureState.UNSIGNED


def share(
    catalog: Catalog,
    execution_id: str,
    *,
    now: datetime,
    expires: timedelta,
    output: str | None = None,
    level: ExportLevel = ExportLevel.FULL,
    environment: Mapping[str, str],
    signatures: SignaturePolicy = TRUST_NOBODY,
) -> Shared:
    """Copy an execution, or one *output*, to the shares of the archive and return its presigned URL.

    The copy may contain no secret: none of the *environment*, and none that the execution received from it.
    *signatures* says which signers of the bundle are accepted.

    Raises:
        RequestError: If *expires* is not positive or exceeds the limit.
        NotAvailableError: If the archive has no presigned URLs, for example a folder.
        NotFoundError: If the execution or output does not exist.
        BundleError: If the signature of the bundle is wrong or not accepted, or the output is not the signed one.
        SecretError: If the copy contains something that looks like a secret; the message names the files.
    """
    if not timedelta(0) < expires <= MAX_LIFETIME:
        raise RequestError(f"a link lasts up to {MAX_LIFETIME.days} days, not {expires}; share it again later")
    store, share_id = catalog.workbench.archive.store, secrets.token_hex(8)
    name = Path(catalog.output(execution_id, output).name).name if output else f"{execution_id}.zip"
    key = f"{ROOT}{share_id}/{name}"
    url = store.presign(key, int(expires.total_seconds()))
    with tempfile.TemporaryDirectory(prefix="executions-") as folder:
        copy = Path(folder) / "copy"
        with copy.open("wb") as file:
            if output:
                file.writelines(catalog.blocks(execution_id, output))
            else:
                export(catalog, [execution_id], file.write, level=level)
        signature = check_signature(catalog, execution_id, copy, output, signatures)
        _check(copy, name, zipped=output is None, mask=_mask(catalog, execution_id, environment))
        note = Share(
            id=share_id,
            execution_id=execution_id,
            what=output or str(level),
            file=name,
            size=copy.stat().st_size,
            created=now,
            expires=now + expires,
        )
        # The note first: only a copy with a note can be revoked.
        store.put(f"{ROOT}{share_id}/{NOTE}", note.to_json())
        store.put(key, copy)
    return Shared(note, url, signature)


def revoke(store: Store, share_id: str) -> None:
    """Delete the copy of a share, so that its URL stops working; its note may be damaged.

    Raises:
        NotFoundError: If the share does not exist.
    """
    # Some object stores keep the empty folder of a share that was revoked.
    known = share_id in set(store.list_children(ROOT))
    keys = [info.key for info in store.list(f"{ROOT}{share_id}/")] if known else []
    if not keys:
        raise NotFoundError(f"share '{share_id}' does not exist. 'executions shares list' shows the shares.")
    store.delete(*sorted(keys, key=lambda key: key.endswith(f"/{NOTE}")))


def sweep(store: Store, now: datetime) -> int:
    """Delete the expired shares; return their number."""
    expired = [share.id for share in read_shares(store).shares if share.expires <= now]
    for share_id in expired:
        revoke(store, share_id)
    return len(expired)


def _mask(catalog: Catalog, execution_id: str, environment: Mapping[str, str]) -> SecretMask:
    mask = secrets_around(environment)
    for value in catalog.record(execution_id).request.values.values():
        reference = value.get("secret") if isinstance(value, dict) else None
        if isinstance(reference, str) and reference.startswith("env:"):
            mask.add(environment.get(reference.removeprefix("env:"), ""))
    return mask


def check_signature(
    catalog: Catalog, execution_id: str, copy: Path, output: str | None, signatures: SignaturePolicy
) -> SignatureState:
    """Check the signature of the bundle in *copy*, or of the sealed one that has *copy* as an output.

    Raises:
        BundleError: If the signature is wrong or not accepted, or the output is not the signed one.
        NotAvailableError: If a signature is required and the execution is not sealed yet.
    """
    if not output:
        return _accepted(copy, signatures)
    source = catalog.intact_source(execution_id)
    if source is None:
        if signatures.required:
            raise NotAvailableError(f"execution {execution_id} is not sealed yet, and a signature is required")
        return SignatureState.UNSIGNED
    signature, path = _accepted(source, signatures), catalog.output(execution_id, output).path
    listed = manifest.parse(b"".join(source.blocks(MANIFEST))).get(path)
    with copy.open("rb") as stream:
        digest = file_digest(stream, "sha256").hexdigest()
    if digest != listed:
        raise BundleError(f"nothing is shared: {path} is {digest}; the manifest says {listed}")
    return signature


def _accepted(bundle: Path | Source, signatures: SignaturePolicy) -> SignatureState:
    report = verify(bundle, only={"signature", "inclusion"}, signatures=signatures)
    if report.faults:
        raise BundleError(f"nothing is shared: {report.faults[0]}")
    return report.signature


def _check(copy: Path, name: str, *, zipped: bool, mask: SecretMask) -> None:
    with copy.open("rb") as stream:
        if zipped:
            reader = ZipReader.open(stream, TRUSTED_LIMITS)
            # output.zip repeats, compressed, the outputs beside it.
            entries = [entry for entry in reader.entries.values() if not entry.name.endswith(f"/{OUTPUT_ZIP}")]
            names = [entry.name for entry in entries if reveals(reader.blocks(entry), mask)]
        else:
            names = [name] if reveals(iter(lambda: stream.read(1 << 20), b""), mask) else []
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise SecretError(
            f"nothing is shared: something that looks like a secret is in {', '.join(names[:_NAMED])}{more}. "
            "Share a single output, or --level metadata, without it."
        )
