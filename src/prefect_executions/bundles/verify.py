"""Verifies a bundle: its files are complete and unchanged, and its documents agree with each other.

It needs only the bundle: no network, server or ledger. The digests reveal a change that
left the manifest as it was. If the manifest was changed too, comparing the documents,
PROV and RO-Crate with each other reveals it.

A check is a generator in `CHECKS`. It yields one sentence per fault, with the file and
both values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from prefect_executions.attestation.policy import TRUST_NOBODY, SignaturePolicy, SignatureState
from prefect_executions.bundles import layout
from prefect_executions.bundles.evidence import Evidence, Findings, Unchecked
from prefect_executions.bundles.signatures import check_inclusion, check_signature, signature_state
from prefect_executions.bundles.source import Source, open_source
from prefect_executions.bundles.zip_reader import Limits
from prefect_executions.crate import reader as crate_reader
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import BundleFile, ExecuteRequest, mixed_formats
from prefect_executions.executions.summary import Image, PhaseSummary, RecordSummary, StepSummary
from prefect_executions.lifecycle.history import EntryKind, JobStatus, faults
from prefect_executions.lifecycle.status import AS_OGC, Status
from prefect_executions.methods.model import Method
from prefect_executions.provenance import times as prov_times

_Part = StepSummary | PhaseSummary


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
    for path, digest in evidence.listed.items():
        why = evidence.absence_reason(path)
        actual = evidence.available.get(path) if why else evidence.digests.get(path)
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
    for path in evidence.files:
        if path not in evidence.listed and path not in layout.UNLISTED:
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
    """Every JSON document is valid, and all have the same format."""
    documents = []
    for kind in layout.DOCUMENTS:
        if kind.file_name in evidence.files:
            try:
                documents.append(evidence.document(kind))
            except BundleError as error:
                yield str(error)
    yield from mixed_formats(documents)


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
        "finished": (status.finished, last.time if last and last.status.terminal else None),
        "updated": (status.updated, max((entry.time for entry in status.history), default=None)),
        "attempt": (status.attempt, max((entry.attempt for entry in status.history), default=None)),
    }
    for member, (value, from_history) in pairs.items():
        if value != from_history:
            yield f"{JobStatus.file_name}: {member} is {_words(value)}; the history says {_words(from_history)}"


def _same_execution(evidence: Evidence) -> Findings:
    """Every document belongs to the same execution of the same Method."""
    status, request, method = evidence.document(JobStatus), evidence.document(ExecuteRequest), evidence.document(Method)
    claims = {
        ExecuteRequest.file_name: (request.execution_id, f"{request.method_id} {request.method_version}"),
        Method.file_name: (status.job_id, f"{method.id} {method.version}"),
        JobStatus.file_name: (status.job_id, f"{status.process_id} {method.version}"),
    }
    for path, (execution, of_method) in claims.items():
        if execution != status.job_id:
            yield f"{path} belongs to execution {execution}; {JobStatus.file_name} to {status.job_id}"
        if of_method != f"{method.id} {method.version}":
            yield f"{path} belongs to Method {of_method}; {Method.file_name} to {method.id} {method.version}"
    for path, read in ((layout.PROVENANCE, evidence.provenance_summary), (layout.CRATE, evidence.crate_summary)):
        if read.summary.execution_id != status.job_id:
            yield f"{path} belongs to execution {read.summary.execution_id}; {JobStatus.file_name} to {status.job_id}"


def _ogc_status(evidence: Evidence) -> Findings:
    """OGC's ``status`` matches ``executionStatus``."""
    document = evidence.json_of(JobStatus)
    ours, ogc = (
        (document.get("executionStatus"), document.get("status")) if isinstance(document, dict) else (None, None)
    )
    expected = {status.value: word for status, word in AS_OGC.items()}.get(str(ours))
    if ogc is None or ogc != expected:
        reason = f"executionStatus {_words(ours)} requires {_words(expected)}"
        yield f"{JobStatus.file_name}: status is {_words(ogc)}; {reason}"


def _inputs(evidence: Evidence) -> Findings:
    """Every staged input has the digest and size in `request.json`."""
    for file in evidence.document(ExecuteRequest).files:
        path = file.path
        if path is None:
            yield Unchecked(f"input {file.input!r} is only referenced: {file.origin}")
        elif not path.startswith(layout.INPUTS + "/"):
            yield f"{ExecuteRequest.file_name} has the input {file.input!r} at {path!r}, which is outside inputs/"
        elif path in evidence.files or not evidence.absence_reason(path):
            yield from _compare(evidence, ExecuteRequest.file_name, path, file.sha256, file.size)
        else:
            yield Unchecked(f"{path!r} is absent: {evidence.absence_reason(path)}")


def _code(evidence: Evidence) -> Findings:
    """Every file of the Method's code has the digest in `method.json`."""
    code = evidence.document(Method).code
    for file in code.files if code else ():
        path = file.path
        if path in evidence.files or path in evidence.listed:
            yield from _compare(evidence, Method.file_name, path, file.sha256, None)
        else:
            yield Unchecked(f"{path!r} is not in the bundle; {Method.file_name} says {file.sha256}")


def _outputs(evidence: Evidence) -> Findings:
    """`jobStatus.json` lists every output with its digest and size."""
    recorded = {output.path: output for output in evidence.document(JobStatus).outputs}
    why = evidence.absence_reason(layout.OUTPUTS + "/")
    digests = evidence.available if why else evidence.digests
    present = {path for path in digests if path.startswith(layout.OUTPUTS + "/")}
    for path in sorted(present - recorded.keys()):
        yield f"{path!r} is present and not in {JobStatus.file_name}"
    if why and not present:
        listed = {path for path in evidence.listed if path.startswith(layout.OUTPUTS + "/")}
        for path in sorted(listed ^ recorded.keys()):
            yield f"{path!r} is listed in only one of {JobStatus.file_name} and {layout.MANIFEST}"
        yield Unchecked(f"{len(recorded)} outputs are absent: {why}")
    for path, output in recorded.items():
        yield from _compare(evidence, JobStatus.file_name, path, output.sha256, output.size)


def _provenance(evidence: Evidence) -> Findings:
    """`provo.xml` agrees with the documents."""
    yield from _differences(evidence.summary, evidence.provenance_summary.summary, layout.PROVENANCE)


def _provenance_times(evidence: Evidence) -> Findings:
    """The times in `provo.xml` are in a possible order."""
    for fault in prov_times.time_faults(evidence.bytes_of(layout.PROVENANCE)):
        yield f"{layout.PROVENANCE}: {fault}"


def _crate(evidence: Evidence) -> Findings:
    """`ro-crate-metadata.json` agrees with the documents."""
    differences = list(_differences(evidence.summary, evidence.crate_summary.summary, layout.CRATE))
    yield from differences or _crate_rebuilt(evidence)


def _crate_rebuilt(evidence: Evidence) -> Findings:
    """Compare the crate with one built from the documents; `told-files` compares the digests of single files."""
    in_crate = dict(evidence.crate_summary.files)
    listed = {path: digest for path, digest in evidence.listed.items() if path != layout.CRATE}
    files = [BundleFile(path, digest, evidence.files.get(path, 0)) for path, digest in (listed | in_crate).items()]
    measured = {
        path for path, digest in listed.items() if path in evidence.files and in_crate.get(path, digest) == digest
    }
    unmeasured = frozenset(file.path for file in files if file.path not in measured)
    yield from crate_reader.differences(evidence.bytes_of(layout.CRATE), evidence.record, files, unmeasured)


def _told_files(evidence: Evidence) -> Findings:
    """Every file in `provo.xml` and `ro-crate-metadata.json` has the digest that they give."""
    for path, digest in sorted(evidence.provenance_summary.files):
        if path in evidence.files or path in evidence.listed:  # PROV also gives digests of source that is not copied
            yield from _compare(evidence, layout.PROVENANCE, path, digest, None)
    for path, digest in sorted(evidence.crate_summary.files):
        yield from _compare(evidence, layout.CRATE, path, digest, None)


CHECKS: Mapping[str, Callable[[Evidence], Findings]] = {
    "layout": _layout,
    "manifest": _manifest,
    "digests": _digests,
    "no-extra-files": _no_extra_files,
    "output-zip": _output_zip,
    "documents": _documents,
    "lifecycle": _lifecycle,
    "same-execution": _same_execution,
    "ogc-status": _ogc_status,
    "inputs": _inputs,
    "code": _code,
    "outputs": _outputs,
    "provenance": _provenance,
    "provenance-times": _provenance_times,
    "crate": _crate,
    "told-files": _told_files,
    "signature": check_signature,
    "inclusion": check_inclusion,
}
"""Every check by its name, in the order of the report."""


def _compare(evidence: Evidence, document: str, path: str, digest: str, size: int | None) -> Findings:
    why = evidence.absence_reason(path)
    actual = (evidence.available if why else evidence.digests).get(path)
    if actual is None:
        # The file is legitimately absent: compare with the manifest instead.
        listed = evidence.listed.get(path) if why else None
        if listed is None:
            yield f"{path!r} is missing; {document} lists it with {digest}"
        elif listed != digest:
            yield f"{path!r} is {listed} in {layout.MANIFEST}; {document} says {digest}"
        return
    if actual != digest:
        yield f"{path!r} is {actual}; {document} says {digest}"
    actual_size = evidence.files.get(path)
    if None not in {size, actual_size} and size != actual_size:
        yield f"{path!r} has {actual_size} bytes; {document} says {size}"


def _differences(ours: RecordSummary, theirs: RecordSummary, path: str) -> Findings:
    for member in ("execution_id", "method", "status", "started", "finished"):
        our_value, their_value = getattr(ours, member), getattr(theirs, member)
        if our_value != their_value:
            yield f"{path}: {member.replace('_', ' ')} is {_words(their_value)}; the documents say {_words(our_value)}"
    for kind, own, other in (("input", ours.inputs, theirs.inputs), ("output", ours.outputs, theirs.outputs)):
        for name, digest in sorted(other - own):
            yield f"{path}: {kind} {name!r} is {digest}; the documents say {_digests_of(own, name)}"
        for name, digest in sorted(own - other):
            yield f"{path}: {kind} {name!r} is {_digests_of(other, name)}; the documents say {digest}"
    yield from _part_differences("step", ours.steps, theirs.steps, path)
    yield from _part_differences("phase", ours.phases, theirs.phases, path)


def _part_differences(kind: str, ours: Iterable[_Part], theirs: Iterable[_Part], path: str) -> Findings:
    """Compare steps or phases, whose first member is their name."""
    our_parts, their_parts = {part[0]: part for part in ours}, {part[0]: part for part in theirs}
    for part in sorted(set(theirs) - set(ours), key=str):
        yield f"{path}: {kind} {part[0]} is {_part(part)}; the documents say {_part(our_parts.get(part[0]))}"
    for name in sorted(our_parts.keys() - their_parts.keys(), key=str):
        yield f"{path}: {kind} {name} is absent; the documents say {_part(our_parts[name])}"


def _part(part: _Part | None) -> str:
    return "absent" if part is None else " ".join(_words(member) for member in part[1:])


def _digests_of(pairs: frozenset[tuple[str, str]], name: str) -> str:
    return ", ".join(sorted(digest for other, digest in pairs if other == name)) or "absent"


def _words(value: object) -> str:
    if value is None:
        return "absent"
    if isinstance(value, Image):
        return "/".join(filter(None, value))
    return value.isoformat() if isinstance(value, datetime) else str(value)


MAX_SHOWN = 100
"""The most faults of one check in a report; the others are counted."""

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

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def faults(self) -> tuple[str, ...]:
        """Every fault, with the name of its check in front."""
        return tuple(f"{check.name}: {fault}" for check in self.checks for fault in check.faults)

    @property
    def summary(self) -> str:
        """The first faults, and the number of the others."""
        more = f" (and {len(self.faults) - _SUMMARIZED} more)" if len(self.faults) > _SUMMARIZED else ""
        return "; ".join(self.faults[:_SUMMARIZED]) + more

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


def _report(evidence: Evidence, names: Collection[str]) -> Report:
    checks = tuple(_check(name, evidence) for name in names)
    failed = any(check.name == "signature" and not check.passed for check in checks)
    state = signature_state(evidence, failed=failed)
    proven = layout.INCLUSION in evidence.files
    return Report(checks, _signers(evidence), state, proven, _subject(evidence))


def _subject(evidence: Evidence) -> Subject | None:
    with suppress(BundleError):
        method, status = evidence.document(Method), evidence.document(JobStatus)
        return Subject(status.job_id, method.id, method.version, status.execution_status, status.finished)
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
                sentences.append(str(sentence))
            else:
                more += sentences is messages
    except BundleError as error:
        messages.append(str(error))
    if more:
        messages.append(f"and {more} more")
    return Check(name, tuple(messages), tuple(unchecked))
