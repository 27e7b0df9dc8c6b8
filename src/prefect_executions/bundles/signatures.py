"""The checks of signatures: of the attestation, of the inclusion proof's checkpoint, and of annotations."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

from prefect_executions.attestation.dsse import PAYLOAD_TYPE, Envelope, Statement, predicate_of
from prefect_executions.attestation.policy import SignatureState
from prefect_executions.attestation.transparency import Inclusion
from prefect_executions.bundles import layout
from prefect_executions.bundles.annotations import (
    FOLDER,
    AnnotationSet,
    annotation_faults,
    intact_annotations,
    labels_of,
    unknown_signers,
)
from prefect_executions.bundles.evidence import Evidence, Findings, Unchecked
from prefect_executions.documents import canonical_json, strict_json, text_of_time
from prefect_executions.errors import BundleError
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.settings import SignatureRule

_ABSENT = "absent"
_LEVELS = 2
_SHOWN = 200


def check_signature(evidence: Evidence) -> Findings:
    """The attestation is signed by a trusted key and covers this manifest, its files and this execution."""
    policy = evidence.signatures
    if layout.ATTESTATION not in evidence.files:
        if policy.required:
            yield "the bundle is not signed, and a signature is required"
        elif policy.unsigned is SignatureRule.NOTE:
            yield Unchecked("the bundle is not signed")
        return
    yield from _envelope(evidence, evidence.envelope, layout.ATTESTATION)
    if policy.signers.isdisjoint(_valid_signers(evidence)) and policy.signers:
        wanted = " or ".join(sorted(map(policy.name_of, policy.signers)))
        yield f"{layout.ATTESTATION} has no valid signature of {wanted}"
    if evidence.envelope.payload_type != PAYLOAD_TYPE:
        yield f"{layout.ATTESTATION} has the type {evidence.envelope.payload_type} instead of {PAYLOAD_TYPE}"
        return
    yield from _statement(evidence, Statement.from_json(evidence.envelope.payload, layout.ATTESTATION))


def check_inclusion(evidence: Evidence) -> Findings:
    """The inclusion proof leads from this seal to a checkpoint that is signed by a trusted key."""
    if layout.INCLUSION not in evidence.files:
        return
    data = evidence.bytes_of(layout.INCLUSION)
    strict_json(data, layout.INCLUSION)  # it limits the number of values
    proof = Inclusion.from_json(data)
    yield from _envelope(evidence, proof.head.envelope, layout.INCLUSION)
    if not proof.holds:
        yield f"{layout.INCLUSION} does not lead from the seal to the root of checkpoint {proof.parsed_head().number}"
    manifest_sha256 = sha256(evidence.bytes_of(layout.MANIFEST)).hexdigest()
    pairs = {
        "execution": (proof.seal.execution_id, evidence.document(JobStatus).job_id),
        "manifest": (proof.seal.manifest_sha256, manifest_sha256),
    }
    for what, (proven, actual) in pairs.items():
        if proven != actual:
            yield f"{layout.INCLUSION} belongs to the {what} {proven}; this is {actual}"


def check_annotations(evidence: Evidence) -> Findings:
    """Each annotation is intact, belongs to this bundle, and has a valid signature if it is signed."""
    if layout.ANNOTATIONS not in evidence.files:
        return
    data = evidence.bytes_of(layout.ANNOTATIONS)
    objects, policy = AnnotationSet.from_json(data).objects(), evidence.signatures
    execution_id = evidence.document(JobStatus).job_id
    manifest_sha256 = sha256(evidence.bytes_of(layout.MANIFEST)).hexdigest()
    # Beside a seal there are other objects, which `annotation_faults` leaves out; an import stores all of these.
    yield from (f"{name!r} is not the name of an annotation" for name in objects if not name.startswith(FOLDER))
    yield from (what for _, what in annotation_faults(execution_id, manifest_sha256, objects, policy))
    if reason := labels_of(intact_annotations(execution_id, objects)).recalled:
        yield Unchecked(f"the execution was recalled: {reason}")
    for name, signer in unknown_signers(execution_id, objects, policy):
        yield Unchecked(f"{name!r} is signed by the unknown key {signer}")


def signature_state(evidence: Evidence, *, failed: bool) -> SignatureState:
    """Return the state of the bundle's signature; *failed* is the result of `check_signature`."""
    if layout.ATTESTATION not in evidence.files:
        return SignatureState.UNSIGNED
    try:
        states = {judged.state for judged in evidence.signatures.judge(evidence.envelope)}
    except BundleError:
        return SignatureState.INVALID
    if SignatureState.INVALID in states:
        return SignatureState.INVALID
    if SignatureState.UNKNOWN in states:
        return SignatureState.UNKNOWN
    return SignatureState.INVALID if failed else SignatureState.TRUSTED


def _valid_signers(evidence: Evidence) -> set[str]:
    judged = evidence.signatures.judge(evidence.envelope)
    return {signature.key_id for signature in judged if signature.state is SignatureState.TRUSTED}


def _envelope(evidence: Evidence, envelope: Envelope, path: str) -> Findings:
    policy = evidence.signatures
    for signature in policy.judge(envelope):
        if signature.state is SignatureState.INVALID:
            yield f"{path}: the signature of {policy.name_of(signature.key_id)} is invalid for this content"
        elif signature.state is SignatureState.UNKNOWN and policy.allow_unknown:
            yield Unchecked(f"{path}: the signature of the unknown key {signature.key_id} cannot be checked")
        elif signature.state is SignatureState.UNKNOWN:
            yield (
                f"{path} is signed with the key {signature.key_id}, which is not trusted here. "
                "Trust it with 'executions keys trust FILE', or accept it unchecked with --allow-unknown-signer"
            )


def _statement(evidence: Evidence, statement: Statement) -> Findings:
    sealed = {**evidence.listed, layout.MANIFEST: sha256(evidence.bytes_of(layout.MANIFEST)).hexdigest()}
    for path in sorted(sealed.keys() | statement.subjects.keys()):
        actual, signed = sealed.get(path, _ABSENT), statement.subjects.get(path, _ABSENT)
        if actual != signed:
            yield f"{path!r} was signed as {signed}; the manifest says {actual}"
    status = evidence.document(JobStatus)
    pairs = {
        "execution": (statement.execution_id, status.job_id),
        "start": (statement.started, text_of_time(status.started) if status.started else None),
        "end": (statement.finished, text_of_time(status.finished) if status.finished else None),
    }
    for what, (signed_value, value) in pairs.items():
        if signed_value != value:
            yield f"the {what} was signed as {signed_value or _ABSENT}; {JobStatus.file_name} says {value or _ABSENT}"
    # An audit reads the signature and few documents; `layout` finds a missing one.
    if evidence.format > 1 and all(kind.file_name in evidence.files for kind in layout.REQUIRED):
        yield from _predicate(evidence, statement)


def _predicate(evidence: Evidence, statement: Statement) -> Findings:
    """Compare what was signed of Method, inputs, dependencies and builder with the documents."""
    for name in statement.others:
        yield f"the signed statement has the member {name[:_SHOWN]!r}, which the documents do not give"
    for where, signed, given in _parts(statement.predicate, predicate_of(evidence.record), ""):
        yield f"{where} was signed as {_text(signed)}; the documents give {_text(given)}"


def _parts(signed: object, given: object, where: str) -> Iterator[tuple[str, object, object]]:
    """Yield each part of two JSON values in which they differ, down to the second level of the predicate."""
    if signed == given and canonical_json(signed) == canonical_json(given):  # true equals 1, and 1 equals 1.0
        return
    if isinstance(signed, dict) and isinstance(given, dict) and where.count("/") < _LEVELS:
        for name in sorted({*signed, *given}):
            yield from _parts(signed.get(name, _ABSENT), given.get(name, _ABSENT), f"{where}/{name}".strip("/"))
    else:
        yield where[:_SHOWN], signed, given


def _text(value: object) -> str:
    return _ABSENT if value == _ABSENT else canonical_json(value).decode()[:_SHOWN]
