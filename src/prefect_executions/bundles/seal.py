"""The light half of sealing: PROV, crate, signature and manifest, made of what lies on the disk.

Law: no clock and no chance goes in, so whoever seals, and how often, the bytes
are the same. The manifest comes last and closes the bundle.

Files are not made read-only: the mode would stop nobody who may change it back,
costs a call for each of 10,000 outputs, and is lost in the archive. The manifest
is what tells a change.
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
from prefect_executions.crate import writer as crate_writer
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import BundleFile, ExecutionRecord
from prefect_executions.fsync import sync
from prefect_executions.provenance import writer as prov_writer
from prefect_executions.tracepoints import TracePoint, trace_point


@dataclass(frozen=True)
class Sealed:
    """A sealed bundle: its record, its manifest, and the signature of both where one was made."""

    record: ExecutionRecord
    manifest: bytes
    attestation: bytes | None = None

    @property
    def sha256(self) -> str:
        """The digest of the manifest, which stands for the whole bundle."""
        return sha256(self.manifest).hexdigest()


def seal(bundle: OpenBundle, key: SigningKey | None = None) -> Sealed:
    """Close *bundle*: write `provo.xml`, `ro-crate-metadata.json`, with a *key* the attestation, and the manifest.

    It reads what `gather` kept and hashes no output. It must be called under the
    bundle's lock, when `jobStatus.json` is final and lists what was gathered. A
    bundle that is sealed already is returned as it is; one whose sealing was cut
    short is sealed to the same bytes.

    Raises:
        BundleError: If the execution has not ended, nothing was gathered,
            `jobStatus.json` lists other outputs, a document is missing or damaged,
            or the disk cannot be written.
    """
    if bundle.sealed:
        signed = _read(bundle.folder / layout.ATTESTATION) if _is_there(bundle, layout.ATTESTATION) else None
        return Sealed(bundle.record(), _read(bundle.paths.manifest), signed)
    record = bundle.record()
    gathered = _check_ready(bundle, record)
    documents = [_listed(bundle, kind.file_name) for kind in layout.DOCUMENTS if _is_there(bundle, kind.file_name)]
    files = [*documents, *gathered.inputs_and_code, *gathered.files, gathered.output_zip]

    story = BytesIO()
    prov_writer.write(record, files, story)
    files.append(_add(bundle, layout.PROVENANCE, story.getvalue()))
    files.append(_add(bundle, layout.CRATE, crate_writer.build(record, files)))
    closing = manifest.render(files)
    attested = [] if key is None else [_attest(bundle, key, record, _as_file(layout.MANIFEST, closing), files)]
    if key is None:
        _forget_signature(bundle)

    _close(bundle, closing, [*documents, *files[-2:], *gathered.inputs_and_code, gathered.output_zip, *attested])
    return Sealed(record, closing, _read(bundle.folder / layout.ATTESTATION) if attested else None)


def _check_ready(bundle: OpenBundle, record: ExecutionRecord) -> Gathered:
    gathered = load_gathered(bundle)
    if gathered is None:
        raise BundleError(f"the bundle {bundle.id} cannot be sealed: its outputs are not gathered")
    if record.id != bundle.id:
        raise BundleError(f"the bundle {bundle.id} cannot be sealed: its jobStatus.json is that of {record.id}")
    if not record.status.terminal:
        raise BundleError(f"the bundle {bundle.id} cannot be sealed: its execution is {record.status}")
    if tuple((file.path, file.sha256, file.size) for file in record.job_status.outputs) != gathered.files:
        raise BundleError(
            f"the bundle {bundle.id} cannot be sealed: its jobStatus.json lists other outputs than it has"
        )
    return gathered


def _attest(
    bundle: OpenBundle, key: SigningKey, record: ExecutionRecord, closing: BundleFile, files: Iterable[BundleFile]
) -> BundleFile:
    """Sign before the manifest is in its place, so that a sealed bundle never gets a signature later."""
    envelope = sealed_envelope(PAYLOAD_TYPE, statement_of(record, closing, files), key)
    return _add(bundle, layout.ATTESTATION, envelope.to_json())


def _forget_signature(bundle: OpenBundle) -> None:
    """Remove what somebody signed whose sealing was cut short; its files may have been others."""
    try:
        (bundle.folder / layout.ATTESTATION).unlink(missing_ok=True)
    except OSError as error:
        raise BundleError(f"the bundle {bundle.id} cannot be sealed: {error}; try again") from error


def _is_there(bundle: OpenBundle, name: str) -> bool:
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


def _close(bundle: OpenBundle, closing: bytes, files: Iterable[BundleFile]) -> None:
    """Put the manifest *closing* in its place when all that it lists is on the disk.

    What `gather` made durable already costs nothing here; single outputs are in output.zip.
    Should the power fail before its new name is on the disk, sealing makes the same manifest again.
    """
    waiting = bundle.scratch / layout.MANIFEST
    bundle.put(waiting, closing)
    places = [bundle.folder / file.path for file in files]
    try:
        sync([*places, waiting, *{place.parent for place in places}])
        trace_point(TracePoint.MANIFEST_READY, bundle.id)
        waiting.replace(bundle.paths.manifest)
        trace_point(TracePoint.MANIFEST_KEPT, bundle.id)
    except OSError as error:
        raise BundleError(f"the bundle {bundle.id} cannot be sealed: {error}; try again") from error
