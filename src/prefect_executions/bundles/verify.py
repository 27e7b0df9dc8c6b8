"""Verifies a bundle: its files are complete and unchanged, and its documents agree with each other.

It needs only the bundle: no network, server or ledger. The digests reveal a change that
left the manifest as it was. If the manifest was changed too, comparing the documents,
PROV and RO-Crate with each other reveals it.

A check is a generator in `CHECKS`. It yields one sentence per fault, with the file and
both values.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from prefect_executions.attestation.policy import TRUST_NOBODY, SignaturePolicy, SignatureState
from prefect_executions.bundles import agreement, layout
from prefect_executions.bundles.agreement import words
from prefect_executions.bundles.evidence import Evidence, Findings, Unchecked
from prefect_executions.bundles.script_runs import scripts
from prefect_executions.bundles.signatures import check_annotations, check_inclusion, check_signature, signature_state
from prefect_executions.bundles.source import Source, open_source
from prefect_executions.bundles.zip_reader import Limits
from prefect_executions.errors import BundleError, shortened
from prefect_executions.executions.record import ExecutionRecord, mixed_formats
from prefect_executions.lifecycle.history import EntryKind, JobStatus, faults
from prefect_executions.lifecycle.status import AS_OGC, Status
from prefect_executions.methods.model import Method


def _layout(evidence: Evidence) -> Findings:
    """Every file that the format requires is present, and no file that it does not allow."""
    yield from evidence.source.irregular
    required = [kind.file_name for kind in layout.REQUIRED]
    for path in [*required, layout.PROVENANCE, layout.CRATE, layout.MANIFEST, layout.OUTPUT_ZIP]:
        if path not in evidence.files and not evidence.absence_reason(path):
            yield f"{path} is missing"
    for path in evidence.files:
        if not layout.is_bundle_path(path):
            yield f"{path!r} is not allowed in a bundle"
    for folder in evidence.source.empty_folders:
        if not layout.is_desktop_file(f"{folder}/x") and not evidence.has_folder(folder):
            yield f"{folder!r} is an empty folder that {layout.OUTPUT_ZIP} does not have"
    for path in evidence.skipped:
        yield Unchecked(f"{path!r} was skipped: file managers add such files, and no manifest lists it")


def _manifest(evidence: Evidence) -> Findings:
    """The manifest has its only valid form and lists only files that it may list."""
    for path in evidence.listed:
        if path in layout.UNLISTED or not layout.is_bundle_path(path):
            yield f"{layout.MANIFEST} lists {path!r}, which is not allowed in it"


def _digests(evidence: Evidence) -> Findings:
    """Every file in the manifest is present and has the listed digest."""
    reasons: Counter[str] = Counter()
    digests = evidence.digests
    for path, digest in evidence.listed.items():
        why = evidence.absence_reason(path)
        actual = evidence.available.get(path) if why else digests.get(path)
        if actual is None and why:
            reasons[why] += 1
        elif actual is None:
            yield f"{path!r} is missing; the manifest lists it with {digest}"
        elif actual != digest:
            yield f"{path!r} is {actual}; the manifest says {digest}"
    for why, count in reasons.items():
        yield Unchecked(f"{count} listed files are absent: {why}")


def _no_extra_files(evidence: Evidence) -> Findings:
    """The manifest lists every file that is present."""
    listed = evidence.listed
    for path in evidence.files:
        if path not in listed and path not in layout.UNLISTED:
            yield f"{path!r} is present and not in the manifest"


def _output_zip(evidence: Evidence) -> Findings:
    """``output.zip`` is a valid zip and has the same files as ``outputs/``."""
    why = evidence.absence_reason(layout.OUTPUT_ZIP)
    if layout.OUTPUT_ZIP not in evidence.files and why:
        yield Unchecked(f"{layout.OUTPUT_ZIP} is absent: {why}")
        return
    try:
        members = evidence.members
    except BundleError as error:
        yield f"{layout.OUTPUT_ZIP}: {error}"
        return
    outputs = {path: digest for path, digest in evidence.digests.items() if path.startswith(layout.OUTPUTS + "/")}
    if not outputs and evidence.absence_reason(layout.OUTPUTS + "/"):
        outputs = {path: digest for path, digest in evidence.listed.items() if path.startswith(layout.OUTPUTS + "/")}
    for path in outputs.keys() - members.keys():
        yield f"{path!r} is in the bundle and not in {layout.OUTPUT_ZIP}"
    for path, digest in members.items():
        if path not in outputs:
            yield f"{path!r} is in {layout.OUTPUT_ZIP} and not in the bundle"
        elif digest != outputs[path]:
            yield f"{path!r} is {digest} in {layout.OUTPUT_ZIP} and {outputs[path]} in the bundle"


def _documents(evidence: Evidence) -> Findings:
    """Every JSON document is valid and in the form of the format, and all have the same format."""
    documents = []
    for kind in layout.DOCUMENTS:
        if kind.file_name in evidence.files:
            try:
                documents.append(evidence.document(kind))
            except BundleError as error:
                yield str(error)
    yield from mixed_formats(documents)
    for document in documents:
        if document.format > 1 and type(document) not in evidence.canonical:
            yield from document.form_faults(evidence.bytes_of(document.file_name))


def _lifecycle(evidence: Evidence) -> Findings:
    """The status history is valid and agrees with the other members of `jobStatus.json`."""
    status = evidence.document(JobStatus)
    for fault in faults(status.history):
        yield f"{JobStatus.file_name}: {fault}"
    if not status.execution_status.terminal:
        yield f"{JobStatus.file_name}: the execution is {status.execution_status} in a sealed bundle"
    steps = [entry for entry in status.history if entry.kind is EntryKind.STATUS]
    last = steps[-1] if steps else None
    times = {step.status: step.time for step in reversed(steps)}
    pairs: Mapping[str, tuple[object, object]] = {
        "executionStatus": (status.execution_status, last and last.status),
        "reason": (status.reason, last and last.reason),
        "created": (status.created, times.get(Status.CREATED)),
        "started": (status.started, times.get(Status.STARTED)),
        "finished": (status.end_found, last.time if last and last.status.terminal else None),
        "updated": (status.updated, max((entry.time for entry in status.history), default=None)),
        "attempt": (status.attempt, max((entry.attempt for entry in status.history), default=None)),
    }
    if status.format > 1:
        pairs = {**pairs, "message": (status.message, last and last.message)}
    if status.finished_before and not _in_order(status.started, status.finished, status.finished_before):
        yield f"{JobStatus.file_name}: finished is not between started and finishedBefore"
    for member, (value, from_history) in pairs.items():
        if value != from_history:
            yield f"{JobStatus.file_name}: {member} is {words(value)}; the history says {words(from_history)}"


def _in_order(started: datetime | None, finished: datetime | None, finished_before: datetime) -> bool:
    return finished is not None and (started or finished) <= finished < finished_before


def _ogc_status(evidence: Evidence) -> Findings:
    """OGC's ``status`` matches ``executionStatus``."""
    document = evidence.json_of(JobStatus)
    ours, ogc = (
        (document.get("executionStatus"), document.get("status")) if isinstance(document, dict) else (None, None)
    )
    expected = {status.value: word for status, word in AS_OGC.items()}.get(str(ours))
    if ogc is None or ogc != expected:
        reason = f"executionStatus {words(ours)} requires {words(expected)}"
        yield f"{JobStatus.file_name}: status is {words(ogc)}; {reason}"


CHECKS: Mapping[str, Callable[[Evidence], Findings]] = {
    "layout": _layout,
    "manifest": _manifest,
    "digests": _digests,
    "no-extra-files": _no_extra_files,
    "output-zip": _output_zip,
    "documents": _documents,
    "lifecycle": _lifecycle,
    "same-execution": agreement.same_execution,
    "ogc-status": _ogc_status,
    "facts": agreement.facts,
    "inputs": agreement.inputs,
    "code": agreement.code,
    "scripts": scripts,
    "packages": agreement.packages,
    "outputs": agreement.outputs,
    "provenance": agreement.provenance,
    "provenance-times": agreement.provenance_times,
    "crate": agreement.crate,
    "told-files": agreement.told_files,
    "verdict": agreement.verdict,
    "signature": check_signature,
    "inclusion": check_inclusion,
    "annotations": check_annotations,
}
"""Every check by its name, in the order of the report."""


MAX_SHOWN = 100
"""The most faults of one check in a report; the others are counted."""

_DIGEST = re.compile(r"(?<=\b[0-9a-f]{12})[0-9a-f]{52}\b")
"""The part of a SHA-256 that a summary leaves out."""

_SUMMARIZED = 5
"""Faults in the summary of a report."""

DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    faults: tuple[str, ...] = ()
    """One sentence for each fault, with the file and both values."""
    unchecked: tuple[str, ...] = ()
    """One sentence for each thing that was not checked, because it is not in the bundle."""

    @property
    def passed(self) -> bool:
        return not self.faults


@dataclass(frozen=True)
class Subject:
    """The execution that a verified bundle records."""

    execution_id: str
    method: str
    version: str
    status: Status
    finished: datetime | None


@dataclass(frozen=True)
class Report:
    """The result of a verification."""

    checks: tuple[Check, ...]
    signers: tuple[str, ...] = ()
    """The key ids that the signatures claim; `signature` says whether the claim is true."""
    signature: SignatureState = SignatureState.UNSIGNED
    proven: bool = False
    """Whether the bundle has an inclusion proof; its check says whether it holds."""
    subject: Subject | None = None
    """The execution that the bundle records; None if its documents cannot be read."""
    manifest_sha256: str | None = None
    """The digest of the manifest that was verified; None if it cannot be read."""

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def faults(self) -> tuple[str, ...]:
        """Every fault, with the name of its check in front."""
        return tuple(f"{check.name}: {fault}" for check in self.checks for fault in check.faults)

    @property
    def only_signer_unknown(self) -> bool:
        """Whether the signature is by an unknown key, and no other check failed."""
        failed = {check.name for check in self.checks if not check.passed}
        return self.signature is SignatureState.UNKNOWN and failed == {"signature"}

    @property
    def summary(self) -> str:
        """The first faults, each once and on its own line, and the number of the others; digests are shortened."""
        first: dict[str, str] = {}
        for check in self.checks:
            for fault in check.faults:
                first.setdefault(fault, f"{check.name}: {_DIGEST.sub('…', fault)}")
        more = [f"and {len(first) - _SUMMARIZED} more"] if len(first) > _SUMMARIZED else []
        return "\n  ".join([*first.values()][:_SUMMARIZED] + more)

    @property
    def unchecked(self) -> tuple[str, ...]:
        return tuple(f"{check.name}: {sentence}" for check in self.checks for sentence in check.unchecked)


def verify(
    bundle: Path | Source,
    *,
    limits: Limits = DEFAULT_LIMITS,
    only: Collection[str] | None = None,
    signatures: SignaturePolicy = TRUST_NOBODY,
) -> Report:
    """Verify a bundle in a folder, in a zip of that folder, or in any other source.

    A damaged bundle gives a report with faults, not an error. *only* selects checks of
    `CHECKS` by name. *signatures* says which signers are accepted; by default none is, so
    that a signed bundle fails.

    Raises:
        NotFoundError: If the path does not exist.
    """
    names = [name for name in CHECKS if only is None or name in only]
    if not isinstance(bundle, Path):
        return _report(Evidence(bundle, limits, signatures), names)
    try:
        with open_source(bundle, limits) as source:
            return _report(Evidence(source, limits, signatures), names)
    except BundleError as error:
        # The zip or the folder itself cannot be read.
        return Report((Check("layout", (f"{bundle.name}: {error}",)),))


def verified_record(
    source: Source, *, limits: Limits, signatures: SignaturePolicy
) -> tuple[Report, ExecutionRecord | None]:
    """Verify the bundle in *source* as `verify` does; return also its record, or None if it did not pass."""
    evidence = Evidence(source, limits, signatures)
    report = _report(evidence, tuple(CHECKS))
    return report, evidence.record if report.passed else None


def _report(evidence: Evidence, names: Collection[str]) -> Report:
    checks = tuple(_check(name, evidence) for name in names)
    failed = any(check.name == "signature" and not check.passed for check in checks)
    state = signature_state(evidence, failed=failed)
    proven = layout.INCLUSION in evidence.files
    return Report(checks, _signers(evidence), state, proven, _subject(evidence), _manifest_sha256(evidence))


def _subject(evidence: Evidence) -> Subject | None:
    with suppress(BundleError):
        method, status = evidence.document(Method), evidence.document(JobStatus)
        return Subject(status.job_id, method.id, method.version, status.execution_status, status.finished)
    return None


def _manifest_sha256(evidence: Evidence) -> str | None:
    with suppress(BundleError):
        return sha256(evidence.bytes_of(layout.MANIFEST)).hexdigest()
    return None


def _signers(evidence: Evidence) -> tuple[str, ...]:
    with suppress(BundleError):
        return tuple(signature.key_id for signature in evidence.envelope.signatures)
    return ()


def _check(name: str, evidence: Evidence) -> Check:
    messages: list[str] = []
    unchecked: list[str] = []
    more = 0
    try:
        for sentence in CHECKS[name](evidence):
            sentences = unchecked if isinstance(sentence, Unchecked) else messages
            if len(sentences) < MAX_SHOWN:
                sentences.append(shortened(sentence))
            else:
                more += sentences is messages
    except BundleError as error:
        messages.append(str(error))
    if more:
        messages.append(f"and {more} more")
    return Check(name, tuple(messages), tuple(unchecked))
