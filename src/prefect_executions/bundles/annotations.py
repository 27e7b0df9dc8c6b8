"""Annotations as stored: signed in a DSSE envelope, or as plain JSON; alone in the archive, together in an export.

Each is named by its digest, so that two writers never overwrite each other. `AnnotationSet` carries them in an
export, as text that is exactly what the archive stored, so that digests and signatures can be checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import ClassVar, NamedTuple

from prefect_executions.attestation.dsse import Envelope, sealed_envelope
from prefect_executions.attestation.keys import SigningKey
from prefect_executions.attestation.policy import SignaturePolicy, SignatureState
from prefect_executions.bundles.layout import ANNOTATIONS
from prefect_executions.documents import ArchiveDocument
from prefect_executions.errors import BundleError
from prefect_executions.executions.annotations import ExecutionAnnotation, Labels, labels

PAYLOAD_TYPE = "application/vnd.prefect-executions.annotation+json"

FOLDER = "annotations/"
"""The folder beside a seal in the archive."""

ANNOTATION_NAME = re.compile(rf"{FOLDER}([0-9a-f]{{16}})\.json")

Fault = tuple[str, str]
"""The kind of a fault, and a sentence."""


class StoredAnnotation(NamedTuple):
    """An annotation, the digest of its stored form, and its signatures, which are not checked yet."""

    annotation: ExecutionAnnotation
    sha256: str
    envelope: Envelope | None = None

    @property
    def signer(self) -> str | None:
        """The key id that its first signature claims."""
        return self.envelope.signatures[0].key_id if self.envelope else None


class AnnotationSet(ArchiveDocument):
    """The annotations of an exported bundle: the text of each by its name in the archive."""

    file_name: ClassVar[str] = ANNOTATIONS

    annotations: dict[str, str]

    def objects(self) -> dict[str, bytes]:
        """Return the content of each annotation by its name."""
        return {name: text.encode() for name, text in self.annotations.items()}


def annotation_file(objects: Mapping[str, bytes]) -> bytes:
    """Return the document with the annotations in *objects*, by name; nothing without any.

    Bytes that are not UTF-8 are replaced, so that the digest shows the damage.
    """
    texts = {name: data.decode(errors="replace") for name, data in sorted(objects.items())}
    return AnnotationSet(annotations=texts).to_json() if texts else b""


def stored_form(annotation: ExecutionAnnotation, key: SigningKey | None) -> bytes:
    """Return the bytes to store, signed if there is a *key*."""
    data = annotation.to_json()
    return data if key is None else sealed_envelope(PAYLOAD_TYPE, data, key).to_json()


def name_of(data: bytes) -> str:
    """Return the name, relative to its execution, of the object with an annotation's stored form."""
    return f"{FOLDER}{sha256(data).hexdigest()[:16]}.json"


def read_annotation(data: bytes, name: str) -> StoredAnnotation:
    """Read the stored form of an annotation; *name* is for error messages.

    Raises:
        BundleError: If it is damaged.
    """
    digest = sha256(data).hexdigest()
    if not data.startswith(b'{\n  "payloadType"'):
        return StoredAnnotation(ExecutionAnnotation.from_json(data), digest)
    envelope = Envelope.from_json(data, name)
    if envelope.payload_type != PAYLOAD_TYPE:
        raise BundleError(f"{name} has the type {envelope.payload_type} instead of {PAYLOAD_TYPE}")
    return StoredAnnotation(ExecutionAnnotation.from_json(envelope.payload), digest, envelope)


def in_order(annotations: Iterable[StoredAnnotation]) -> tuple[StoredAnnotation, ...]:
    """Return *annotations* without repetitions, in the order of their times, then of their digests."""
    unique = {stored.sha256: stored for stored in annotations}
    return tuple(sorted(unique.values(), key=lambda stored: (stored.annotation.time, stored.sha256)))


def labels_of(annotations: Iterable[StoredAnnotation], tags: Iterable[str] = ()) -> Labels:
    """Return the labels of an execution whose request has *tags*; see `labels`."""
    return labels(((each.annotation.kind, each.annotation.text) for each in in_order(annotations)), tags)


def intact_annotations(execution_id: str, objects: Mapping[str, bytes]) -> tuple[StoredAnnotation, ...]:
    """Return the annotations of an execution among *objects* that can be read, in order; others are left out."""
    return in_order(stored for _, stored, _ in _judged(execution_id, objects) if stored)


def annotation_faults(
    execution_id: str, manifest_sha256: str | None, objects: Mapping[str, bytes], policy: SignaturePolicy | None = None
) -> Iterator[Fault]:
    """Yield the faults of annotations by their names; with a *policy*, also those of their signatures."""
    for name, stored, fault in _judged(execution_id, objects):
        if fault:
            yield fault
        if stored is None:
            continue
        about = stored.annotation.manifest_sha256
        if about and manifest_sha256 and about != manifest_sha256:
            yield "forged", f"{name!r} is about the manifest {about}; this bundle has {manifest_sha256}"
        if policy and stored.envelope:
            for signature in policy.judge(stored.envelope):
                if signature.state is SignatureState.INVALID:
                    yield "signature", f"{name!r} has an invalid signature of {policy.name_of(signature.key_id)}"


def unknown_signers(
    execution_id: str, objects: Mapping[str, bytes], policy: SignaturePolicy
) -> Iterator[tuple[str, str]]:
    """Yield the name and the signer of each annotation that is signed by a key that is not trusted here."""
    for name, stored, _ in _judged(execution_id, objects):
        for signature in policy.judge(stored.envelope) if stored and stored.envelope else ():
            if signature.state is SignatureState.UNKNOWN:
                yield name, signature.key_id


def _judged(
    execution_id: str, objects: Mapping[str, bytes]
) -> Iterator[tuple[str, StoredAnnotation | None, Fault | None]]:
    """Yield each annotation with its name; None, and the fault, if it cannot be used."""
    for name, data in sorted(objects.items()):
        match = ANNOTATION_NAME.fullmatch(name)
        if match is None:
            if name.startswith(FOLDER):
                yield name, None, ("added", f"{name!r} exists and is not an annotation")
            continue
        try:
            stored = read_annotation(data, name)
        except BundleError as error:
            yield name, None, ("damaged", f"{name!r} is damaged: {error}")
            continue
        if stored.annotation.execution_id != execution_id:
            yield name, None, ("forged", f"{name!r} is of execution {stored.annotation.execution_id}")
        elif not stored.sha256.startswith(match[1]):
            yield name, None, ("digest", f"{name!r} is not named by its digest: it was changed")
        else:
            yield name, stored, None
