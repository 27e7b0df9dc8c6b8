"""Seals a bundle: writes PROV, RO-Crate, signature and manifest from the files on the disk.

This is the fast half of sealing; `gather` is the slow half.

Law: sealing is deterministic. It uses no clock and no random numbers, so any process
that seals the bundle, at any time, writes the same bytes. The manifest comes last and closes
the bundle.

Files are not made read-only: anybody who may write could change the mode back, it would
take a system call for each of 10,000 outputs, and the archive loses it. The manifest
reveals every change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

from prefect_executions.attestation.dsse import PAYLOAD_TYPE, sealed_envelope, statement_of
from prefect_executions.attestation.keys import SigningKey
from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.gather import Gathered, load_gathered
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.comparison.verdict import Verdict
from prefect_executions.crate import writer as crate_writer
from prefect_executions.documents import FORMAT
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import BundleFile, ExecutionRecord
from prefect_executions.fsync import sync
from prefect_executions.provenance import writer as prov_writer
from prefect_executions.tracepoints import TracePoint, trace_point


@dataclass(frozen=True)
class Sealed:
    """A sealed bundle: its record, its manifest, and its signature if it was signed."""

    record: ExecutionRecord
    manifest: bytes
    attestation: bytes | None = None

    @property
    def sha256(self) -> str:
        """The digest of the manifest, which identifies the whole bundle."""
        return sha256(self.manifest).hexdigest()


def seal(bundle: OpenBundle, key: SigningKey | None = None) -> Sealed:
    """Close *bundle*: write `provo.xml`, `ro-crate-metadata.json`, with a *key* the attestation, and the manifest.

    It reads the result of `gather` and hashes no output. Call it under the bundle's
    lock, when `jobStatus.json` is final and lists the gathered outputs. It is idempotent:
    a sealed bundle is returned unchanged, and after an interruption the bytes are the same.

    Raises:
        BundleError: If the execution has not ended, nothing was gathered,
            `jobStatus.json` lists other outputs, a document is missing or damaged,
            or the disk is not writable.
    """
    if bundle.sealed:
        signed = _read(bundle.folder / layout.ATTESTATION) if _exists(bundle, layout.ATTESTATION) else None
        return Sealed(bundle.record(), _read(bundle.paths.manifest), signed)
    record = _in_current_format(bundle)
    gathered = _check_ready(bundle, record)
    documents = [_listed(bundle, kind.file_name) for kind in layout.DOCUMENTS if _exists(bundle, kind.file_name)]
    files = [*documents, *gathered.inputs_and_code, *gathered.files, gathered.output_zip]

    provenance = BytesIO()
    prov_writer.write(record, files, provenance)
    files.append(_add(bundle, layout.PROVENANCE, provenance.getvalue()))
    files.append(_add(bundle, layout.CRATE, crate_writer.build(record, files)))
    manifest_data = manifest.render(files)
    attested = [] if key is None else [_attest(bundle, key, record, _as_file(layout.MANIFEST, manifest_data), files)]
    if key is None:
        _remove_signature(bundle)

    _close(bundle, manifest_data, [*documents, *files[-2:], *gathered.inputs_and_code, gathered.output_zip, *attested])
    return Sealed(record, manifest_data, _read(bundle.folder / layout.ATTESTATION) if attested else None)


def _in_current_format(bundle: OpenBundle) -> ExecutionRecord:
    """Return the record; documents that an older version of this package wrote are written again in `FORMAT`."""
    record = bundle.record()
    verdict = bundle.read(Verdict) if _exists(bundle, Verdict.file_name) else None
    documents = (document for document in (*record.documents().values(), verdict) if document)
    outdated = [document for document in documents if document.format != FORMAT]
    for document in outdated:
        bundle.write_document(document.model_copy(update={"format": FORMAT}))
    return bundle.record() if outdated else record


def _check_ready(bundle: OpenBundle, record: ExecutionRecord) -> Gathered:
    gathered = load_gathered(bundle)
    if gathered is None:
        raise BundleError(f"the bundle {bundle.id} cannot be sealed: its outputs are not gathered")
    if record.id != bundle.id:
        raise BundleError(f"the bundle {bundle.id} cannot be sealed: its jobStatus.json belongs to {record.id}")
    if not record.status.terminal:
        raise BundleError(f"the bundle {bundle.id} cannot be sealed: its execution is {record.status}")
    if tuple((file.path, file.sha256, file.size) for file in record.job_status.outputs) != gathered.files:
        raise BundleError(
            f"the bundle {bundle.id} cannot be sealed: its jobStatus.json lists other outputs than were gathered"
        )
    return gathered


def _attest(
    bundle: OpenBundle, key: SigningKey, record: ExecutionRecord, manifest_data: BundleFile, files: Iterable[BundleFile]
) -> BundleFile:
    """Sign before the manifest is in place, so that a sealed bundle never gets a signature later."""
    envelope = sealed_envelope(PAYLOAD_TYPE, statement_of(record, manifest_data, files), key)
    return _add(bundle, layout.ATTESTATION, envelope.to_json())


def _remove_signature(bundle: OpenBundle) -> None:
    """Remove the signature of an interrupted sealing, which may cover other files."""
    try:
        (bundle.folder / layout.ATTESTATION).unlink(missing_ok=True)
    except OSError as error:
        raise BundleError(f"the bundle {bundle.id} cannot be sealed: {error}; try again") from error


def _exists(bundle: OpenBundle, name: str) -> bool:
    return (bundle.folder / name).exists()


def _listed(bundle: OpenBundle, name: str) -> BundleFile:
    return _as_file(name, _read(bundle.folder / name))


def _add(bundle: OpenBundle, name: str, data: bytes) -> BundleFile:
    bundle.write(name, data)
    return _as_file(name, data)


def _as_file(name: str, data: bytes) -> BundleFile:
    return BundleFile(name, sha256(data).hexdigest(), len(data))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error


def _close(bundle: OpenBundle, manifest_data: bytes, files: Iterable[BundleFile]) -> None:
    """Rename the manifest into the bundle when every file that it lists is on the disk.

    Files that `gather` has synced take no time here; single outputs are in output.zip.
    If the power fails before the rename is on the disk, sealing writes the same manifest again.
    """
    temporary = bundle.scratch / layout.MANIFEST
    bundle.put(temporary, manifest_data)
    paths = [bundle.folder / file.path for file in files]
    try:
        sync([*paths, temporary, *{path.parent for path in paths}])
        trace_point(TracePoint.MANIFEST_READY, bundle.id)
        temporary.replace(bundle.paths.manifest)
        trace_point(TracePoint.MANIFEST_KEPT, bundle.id)
    except OSError as error:
        raise BundleError(f"the bundle {bundle.id} cannot be sealed: {error}; try again") from error
