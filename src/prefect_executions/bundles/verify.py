"""Finds out whether a bundle is whole and tells one story, with nothing but the bundle.

No network, server or ledger is asked. A digest finds every change that did not
make the manifest anew; for those that did, the documents, PROV and crate are held
against each other.

The checks of a verification, by name: each yields one sentence per fault, with the file and both values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

from prefect_executions.attestation.dsse import PAYLOAD_TYPE, Envelope, Statement
from prefect_executions.attestation.keys import VerifyingKey
from prefect_executions.attestation.transparency import Inclusion
from prefect_executions.bundles import layout
from prefect_executions.bundles.evidence import Evidence
from prefect_executions.bundles.source import Source, open_source
from prefect_executions.bundles.zip_reader import Limits
from prefect_executions.crate import reader as crate_reader
from prefect_executions.documents import text_of_time
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import BundleFile, ExecuteRequest
from prefect_executions.executions.summary import Image, PhaseSummary, RecordSummary, StepSummary
from prefect_executions.lifecycle.history import EntryKind, JobStatus, faults
from prefect_executions.lifecycle.status import AS_OGC, Status
from prefect_executions.methods.model import Method
from prefect_executions.provenance import times as prov_times


class Unchecked(str):
    """A sentence about what could not be looked at, because it is not kept there."""

    __slots__ = ()


Findings = Iterator[str]
_Part = StepSummary | PhaseSummary


def _layout(seen: Evidence) -> Findings:
    """What the format asks for is there, and nothing that it has no place for."""
    yield from seen.source.irregular
    required = [kind.file_name for kind in layout.REQUIRED]
    for path in [*required, layout.PROVENANCE, layout.CRATE, layout.MANIFEST, layout.OUTPUT_ZIP]:
        if path not in seen.files and not seen.absence_reason(path):
            yield f"{path} is missing"
    for path in seen.files:
        if not layout.is_bundle_path(path):
            yield f"{path!r} has no place in a bundle of format 1"


def _manifest(seen: Evidence) -> Findings:
    """The manifest is one, in its one form, and lists files of a bundle only."""
    for path in seen.listed:
        if path in layout.UNLISTED or not layout.is_bundle_path(path):
            yield f"{layout.MANIFEST} lists {path!r}, which it may not"


def _digests(seen: Evidence) -> Findings:
    """Every file that the manifest lists is there and has the digest that it says."""
    reasons: Counter[str] = Counter()
    for path, digest in seen.listed.items():
        why = seen.absence_reason(path)
        found = seen.kept.get(path) if why else seen.digests.get(path)
        if found is None and why:
            reasons[why] += 1
        elif found is None:
            yield f"{path!r} is missing; the manifest lists it with {digest}"
        elif found != digest:
            yield f"{path!r} is {found}; the manifest says {digest}"
    for why, count in reasons.items():
        yield Unchecked(f"{count} listed files are not there: {why}")


def _no_extra_files(seen: Evidence) -> Findings:
    """No file is there that the manifest does not list."""
    for path in seen.files:
        if path not in seen.listed and path not in layout.UNLISTED:
            yield f"{path!r} is there and the manifest does not list it"


def _output_zip(seen: Evidence) -> Findings:
    """``output.zip`` is a sound zip and holds the same files as ``outputs/``."""
    why = seen.absence_reason(layout.OUTPUT_ZIP)
    if layout.OUTPUT_ZIP not in seen.files and why:
        yield Unchecked(f"{layout.OUTPUT_ZIP} is not there: {why}")
        return
    try:
        members = seen.members
    except BundleError as error:
        yield f"{layout.OUTPUT_ZIP}: {error}"
        return
    beside = {path: digest for path, digest in seen.digests.items() if path.startswith(layout.OUTPUTS + "/")}
    if not beside and seen.absence_reason(layout.OUTPUTS + "/"):
        beside = {path: digest for path, digest in seen.listed.items() if path.startswith(layout.OUTPUTS + "/")}
    for path in beside.keys() - members.keys():
        yield f"{path!r} is in the bundle and not in {layout.OUTPUT_ZIP}"
    for path, member in members.items():
        if path not in beside:
            yield f"{path!r} is in {layout.OUTPUT_ZIP} and not in the bundle"
        elif member.sha256 != beside[path]:
            yield f"{path!r} is {member.sha256} in {layout.OUTPUT_ZIP} and {beside[path]} in the bundle"


def _documents(seen: Evidence) -> Findings:
    """Every JSON document is what its model says."""
    for kind in layout.DOCUMENTS:
        if kind.file_name in seen.files:
            try:
                seen.document(kind)
            except BundleError as error:
                yield str(error)


def _lifecycle(seen: Evidence) -> Findings:
    """The history is legal and says what `jobStatus.json` says beside it."""
    told = seen.document(JobStatus)
    for fault in faults(told.history):
        yield f"{JobStatus.file_name}: {fault}"
    if not told.execution_status.terminal:
        yield f"{JobStatus.file_name}: the execution is {told.execution_status} in a sealed bundle"
    steps = [entry for entry in told.history if entry.kind is EntryKind.STATUS]
    last = steps[-1] if steps else None
    times = {step.status: step.time for step in reversed(steps)}
    pairs: Mapping[str, tuple[object, object]] = {
        "executionStatus": (told.execution_status, last and last.status),
        "reason": (told.reason, last and last.reason),
        "created": (told.created, times.get(Status.CREATED)),
        "started": (told.started, times.get(Status.STARTED)),
        "finished": (told.finished, last.time if last and last.status.terminal else None),
        "updated": (told.updated, max((entry.time for entry in told.history), default=None)),
        "attempt": (told.attempt, max((entry.attempt for entry in told.history), default=None)),
    }
    for member, (said, happened) in pairs.items():
        if said != happened:
            yield f"{JobStatus.file_name}: {member} is {_words(said)}; the history says {_words(happened)}"


def _same_execution(seen: Evidence) -> Findings:
    """Every document is of the same execution of the same Method."""
    told, request, method = seen.document(JobStatus), seen.document(ExecuteRequest), seen.document(Method)
    claims = {
        ExecuteRequest.file_name: (request.execution_id, f"{request.method_id} {request.method_version}"),
        Method.file_name: (told.job_id, f"{method.id} {method.version}"),
        JobStatus.file_name: (told.job_id, f"{told.process_id} {method.version}"),
    }
    for path, (execution, of_method) in claims.items():
        if execution != told.job_id:
            yield f"{path} is of execution {execution}; {JobStatus.file_name} of {told.job_id}"
        if of_method != f"{method.id} {method.version}":
            yield f"{path} is of Method {of_method}; {Method.file_name} of {method.id} {method.version}"
    for path, other in ((layout.PROVENANCE, seen.provenance_summary), (layout.CRATE, seen.crate_summary)):
        if other.account.execution_id != told.job_id:
            yield f"{path} is of execution {other.account.execution_id}; {JobStatus.file_name} of {told.job_id}"


def _ogc_status(seen: Evidence) -> Findings:
    """OGC's ``status`` says what ``executionStatus`` says."""
    told = seen.json_of(JobStatus)
    ours, ogc = (told.get("executionStatus"), told.get("status")) if isinstance(told, dict) else (None, None)
    expected = {status.value: word for status, word in AS_OGC.items()}.get(str(ours))
    if ogc is None or ogc != expected:
        wanted = f"executionStatus {_words(ours)} asks for {_words(expected)}"
        yield f"{JobStatus.file_name}: status is {_words(ogc)}; {wanted}"


def _inputs(seen: Evidence) -> Findings:
    """Every staged input is the file that `request.json` recorded."""
    for file in seen.document(ExecuteRequest).files:
        path = file.path
        if path is None:
            yield Unchecked(f"input {file.input!r} is kept by reference: {file.origin}")
        elif not path.startswith(layout.INPUTS + "/"):
            yield f"{ExecuteRequest.file_name} has the input {file.input!r} at {path!r}, which is not below inputs/"
        elif path in seen.files or not seen.absence_reason(path):
            yield from _compare(seen, ExecuteRequest.file_name, path, file.sha256, file.size)
        else:
            yield Unchecked(f"{path!r} is not there: {seen.absence_reason(path)}")


def _code(seen: Evidence) -> Findings:
    """Every file of the Method's code that is kept is the one that `method.json` recorded."""
    code = seen.document(Method).code
    for file in code.files if code else ():
        path = file.path
        if path in seen.files or path in seen.listed:
            yield from _compare(seen, Method.file_name, path, file.sha256, None)
        else:
            yield Unchecked(f"{path!r} is not kept; {Method.file_name} says {file.sha256}")


def _outputs(seen: Evidence) -> Findings:
    """`jobStatus.json` lists every output, as it is."""
    told = {output.path: output for output in seen.document(JobStatus).outputs}
    why = seen.absence_reason(layout.OUTPUTS + "/")
    there = {path for path in (seen.kept if why else seen.digests) if path.startswith(layout.OUTPUTS + "/")}
    for path in sorted(there - told.keys()):
        yield f"{path!r} is there and {JobStatus.file_name} does not list it"
    if why and not there:
        there = {path for path in seen.listed if path.startswith(layout.OUTPUTS + "/")}
        for path in sorted(there ^ told.keys()):
            yield f"{path!r} is listed in only one of {JobStatus.file_name} and {layout.MANIFEST}"
        yield Unchecked(f"{len(told)} outputs are not there: {why}")
    for path, output in told.items():
        yield from _compare(seen, JobStatus.file_name, path, output.sha256, output.size)


def _provenance(seen: Evidence) -> Findings:
    """`provo.xml` tells what the documents tell."""
    yield from _differences(seen.account, seen.provenance_summary.account, layout.PROVENANCE)


def _provenance_times(seen: Evidence) -> Findings:
    """The times in `provo.xml` follow each other."""
    for fault in prov_times.time_faults(seen.bytes_of(layout.PROVENANCE)):
        yield f"{layout.PROVENANCE}: {fault}"


def _crate(seen: Evidence) -> Findings:
    """`ro-crate-metadata.json` tells what the documents tell."""
    by_account = list(_differences(seen.account, seen.crate_summary.account, layout.CRATE))
    yield from by_account or _every_word_of_the_crate(seen)


def _every_word_of_the_crate(seen: Evidence) -> Findings:
    """What the crate says of single files is left to `told-files`, so that a changed file is no fault of the crate."""
    told = dict(seen.crate_summary.files)
    there = {path: digest for path, digest in seen.listed.items() if path != layout.CRATE}
    files = [BundleFile(path, digest, seen.files.get(path, 0)) for path, digest in (there | told).items()]
    known = {path for path, digest in there.items() if path in seen.files and told.get(path, digest) == digest}
    unmeasured = frozenset(file.path for file in files if file.path not in known)
    yield from crate_reader.differences(seen.bytes_of(layout.CRATE), seen.record, files, unmeasured)


def _told_files(seen: Evidence) -> Findings:
    """Every file that `provo.xml` and `ro-crate-metadata.json` tell of has the digest that they tell."""
    for path, digest in sorted(seen.provenance_summary.files):
        if path in seen.files or path in seen.listed:  # source that is not kept is told by its digest, too
            yield from _compare(seen, layout.PROVENANCE, path, digest, None)
    for path, digest in sorted(seen.crate_summary.files):
        yield from _compare(seen, layout.CRATE, path, digest, None)


def _signature(seen: Evidence) -> Findings:
    """The attestation is signed by who is trusted, and speaks of this manifest, its files and this execution."""
    if layout.ATTESTATION not in seen.files:
        if seen.trusted:
            yield Unchecked("it is not signed")
        return
    yield from _signer_findings(seen, seen.envelope, layout.ATTESTATION)
    if seen.envelope.payload_type != PAYLOAD_TYPE:
        yield f"{layout.ATTESTATION} holds {seen.envelope.payload_type}; a seal is signed as {PAYLOAD_TYPE}"
        return
    yield from _statement(seen, Statement.from_json(seen.envelope.payload, layout.ATTESTATION))


def _inclusion(seen: Evidence) -> Findings:
    """The proof that comes along leads from this seal to a checkpoint that is signed by who is trusted."""
    if layout.INCLUSION not in seen.files:
        return
    told = Inclusion.from_json(seen.bytes_of(layout.INCLUSION))
    yield from _signer_findings(seen, told.head.envelope, layout.INCLUSION)
    if not told.holds:
        yield f"{layout.INCLUSION} does not lead from the seal to the root of checkpoint {told.parsed_head().number}"
    found = sha256(seen.bytes_of(layout.MANIFEST)).hexdigest()
    pairs = {
        "execution": (told.seal.execution_id, seen.document(JobStatus).job_id),
        "manifest": (told.seal.manifest_sha256, found),
    }
    for what, (witnessed, said) in pairs.items():
        if witnessed != said:
            yield f"{layout.INCLUSION} is of the {what} {witnessed}; this is {said}"


def _signer_findings(seen: Evidence, envelope: Envelope, path: str) -> Findings:
    for one in envelope.signatures:
        key = seen.trusted.get(one.key_id)
        if key is None and seen.trusted:
            yield f"{path} is signed with the key {one.key_id}, which is not trusted here"
        elif key is None:
            yield Unchecked(f"no key is trusted here, so nobody knows whether the signature of {one.key_id} is right")
        elif not key.signed(envelope.signed, one.data):
            yield f"{path}: the signature is not that of the key {one.key_id} over what it holds"


def _statement(seen: Evidence, told: Statement) -> Findings:
    sealed = {**seen.listed, layout.MANIFEST: sha256(seen.bytes_of(layout.MANIFEST)).hexdigest()}
    for path in sorted(sealed.keys() | told.subjects.keys()):
        said, signed = sealed.get(path), told.subjects.get(path)
        if said != signed:
            yield f"{path!r} was signed as {_words(signed)}; the manifest says {_words(said)}"
    status = seen.document(JobStatus)
    pairs = {
        "execution": (told.execution_id, status.job_id),
        "start": (told.started, text_of_time(status.started) if status.started else None),
        "end": (told.finished, text_of_time(status.finished) if status.finished else None),
    }
    for what, (signed, said) in pairs.items():
        if signed != said:
            yield f"the {what} was signed as {_words(signed)}; {JobStatus.file_name} says {_words(said)}"


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
    "signature": _signature,
    "inclusion": _inclusion,
}
"""Every check by its name, in the order in which they are told."""


def _compare(seen: Evidence, document: str, path: str, digest: str, size: int | None) -> Findings:
    why = seen.absence_reason(path)
    found = (seen.kept if why else seen.digests).get(path)
    if found is None:
        # Not there and rightly so: the manifest is the only other witness.
        listed = seen.listed.get(path) if why else None
        if listed is None:
            yield f"{path!r} is missing; {document} lists it with {digest}"
        elif listed != digest:
            yield f"{path!r} is {listed} in {layout.MANIFEST}; {document} says {digest}"
        return
    if found != digest:
        yield f"{path!r} is {found}; {document} says {digest}"
    real = seen.files.get(path)
    if None not in {size, real} and size != real:
        yield f"{path!r} has {real} bytes; {document} says {size}"


def _differences(ours: RecordSummary, theirs: RecordSummary, path: str) -> Findings:
    for member in ("execution_id", "method", "status", "started", "finished"):
        said, other = getattr(ours, member), getattr(theirs, member)
        if said != other:
            yield f"{path}: {member.replace('_', ' ')} is {_words(other)}; the documents say {_words(said)}"
    for member, said, other in (("input", ours.inputs, theirs.inputs), ("output", ours.outputs, theirs.outputs)):
        for name, digest in sorted(other - said):
            yield f"{path}: {member} {name!r} is {digest}; the documents say {_found(said, name)}"
        for name, digest in sorted(said - other):
            yield f"{path}: {member} {name!r} is {_found(other, name)}; the documents say {digest}"
    yield from _parts("step", ours.steps, theirs.steps, path)
    yield from _parts("phase", ours.phases, theirs.phases, path)


def _parts(what: str, ours: Iterable[_Part], theirs: Iterable[_Part], path: str) -> Findings:
    """Tell the steps or phases that are not told alike; what names one is its first member."""
    said, told = {part[0]: part for part in ours}, {part[0]: part for part in theirs}
    for part in sorted(set(theirs) - set(ours), key=str):
        there = said.get(part[0])
        yield f"{path}: {what} {part[0]} is told as {_part(part)}; the documents say {_part(there)}"
    for name in sorted(said.keys() - told.keys(), key=str):
        yield f"{path}: {what} {name} is absent; the documents say {_part(said[name])}"


def _part(part: _Part | None) -> str:
    return "absent" if part is None else " ".join(_words(member) for member in part[1:])


def _found(pairs: frozenset[tuple[str, str]], name: str) -> str:
    return ", ".join(sorted(digest for one, digest in pairs if one == name)) or "absent"


def _words(value: object) -> str:
    if value is None:
        return "absent"
    if isinstance(value, Image):
        return "/".join(filter(None, value))
    return value.isoformat() if isinstance(value, datetime) else str(value)


MAX_SHOWN = 100
"""How many faults of one check are told; the rest is counted."""

DEFAULT_LIMITS = Limits()
NO_KEYS: Mapping[str, VerifyingKey] = MappingProxyType({})
"""The keys of those whose signature is believed, where nobody said whose."""


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    faults: tuple[str, ...] = ()
    """One sentence for each fault, with the file and both values."""
    unchecked: tuple[str, ...] = ()
    """One sentence for each thing that could not be looked at, because it is not kept there."""

    @property
    def passed(self) -> bool:
        return not self.faults


@dataclass(frozen=True)
class Report:
    """What a verification found."""

    checks: tuple[Check, ...]
    signers: tuple[str, ...] = ()
    """The ids of the keys that its signatures claim to be of; what became of the claim the checks tell."""

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def faults(self) -> tuple[str, ...]:
        """Every fault, with the name of its check."""
        return tuple(f"{check.name}: {fault}" for check in self.checks for fault in check.faults)

    @property
    def unchecked(self) -> tuple[str, ...]:
        return tuple(f"{check.name}: {words}" for check in self.checks for words in check.unchecked)


def verify(
    bundle: Path | Source,
    *,
    limits: Limits = DEFAULT_LIMITS,
    only: Collection[str] | None = None,
    trusted: Mapping[str, VerifyingKey] = NO_KEYS,
) -> Report:
    """Check a bundle: a folder, a zip of that folder, or what another room hands in.

    A damaged bundle is a report with faults and no error. *only* names the checks
    to make, of `CHECKS`; the others are left out. *trusted* are the keys of those whose
    signature is believed, by their ids; without any a signature is told and not judged.

    Raises:
        NotFoundError: If there is nothing at the path.
    """
    names = [name for name in CHECKS if only is None or name in only]
    if not isinstance(bundle, Path):
        return _report(Evidence(bundle, limits, trusted), names)
    try:
        with open_source(bundle, limits) as source:
            return _report(Evidence(source, limits, trusted), names)
    except BundleError as error:
        # The zip around the bundle, or the folder itself, cannot be read.
        return Report((Check("layout", (f"{bundle.name}: {error}",)),))


def _report(evidence: Evidence, names: Collection[str]) -> Report:
    return Report(tuple(_check(name, evidence) for name in names), _signers(evidence))


def _signers(evidence: Evidence) -> tuple[str, ...]:
    with suppress(BundleError):
        return tuple(one.key_id for one in evidence.envelope.signatures)
    return ()


def _check(name: str, evidence: Evidence) -> Check:
    found: list[str] = []
    unchecked: list[str] = []
    more = 0
    try:
        for sentence in CHECKS[name](evidence):
            kind = unchecked if isinstance(sentence, Unchecked) else found
            if len(kind) < MAX_SHOWN:
                kind.append(str(sentence))
            else:
                more += kind is found
    except BundleError as error:
        found.append(str(error))
    if more:
        found.append(f"and {more} more")
    return Check(name, tuple(found), tuple(unchecked))
