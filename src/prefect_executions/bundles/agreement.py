"""Checks that the documents, the files, PROV and the crate of a bundle agree on every fact that two of them state.

A check is a generator. It yields one sentence per fault, with the file and both values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from fnmatch import fnmatchcase
from hashlib import sha256

from prefect_executions.bundles import layout
from prefect_executions.bundles.evidence import Evidence, Findings, Unchecked
from prefect_executions.comparison.verdict import Agreement, OutputVerdict, Verdict
from prefect_executions.crate import reader as crate_reader
from prefect_executions.executions.ids import ExecutionId
from prefect_executions.executions.local_packages import local_packages_of, summary
from prefect_executions.executions.record import (
    Agent,
    BundleFile,
    ExecuteRequest,
    ExecutionRecord,
    Instance,
    ScriptRun,
    Usage,
)
from prefect_executions.executions.summary import Image, PhaseSummary, RecordSummary, StepSummary
from prefect_executions.lifecycle.history import CLOCK_SKEW, EntryKind, JobStatus
from prefect_executions.lifecycle.status import Phase, Status
from prefect_executions.methods.model import DIFF, OUTPUTS, REQUIREMENTS, CodeIdentity, Method, Repository
from prefect_executions.provenance.differences import differences as prov_differences

_Part = StepSummary | PhaseSummary
_MOST_LACKING = 1000
"""The most listed files that a crate lacks and that are named: to build a crate of a million takes much memory."""

_PHASES = frozenset({EntryKind.PHASE, EntryKind.PHASE_ENDED})
_RERUNS = frozenset({"rerun-of", "edited-rerun-of"})


def same_execution(evidence: Evidence) -> Findings:
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
    for relation in sorted(other.relation for other in request.relatives if other.execution_id == status.job_id):
        yield f"{ExecuteRequest.file_name} has the execution itself as its {relation}"
    for path, read in ((layout.PROVENANCE, evidence.provenance_summary), (layout.CRATE, evidence.crate_summary)):
        if read.summary.execution_id != status.job_id:
            yield f"{path} belongs to execution {read.summary.execution_id}; {JobStatus.file_name} to {status.job_id}"


def facts(evidence: Evidence) -> Findings:
    """Facts that two members of the JSON documents state, or that exclude each other, agree (format 2)."""
    if evidence.format == 1:
        return
    record = evidence.record
    yield from _request_facts(record)
    yield from _machine_facts(record.instance)
    agent, status = record.agent, record.job_status
    if agent.verified and agent.source != "token":
        yield f"{Agent.file_name}: verified is true for the source {agent.source}; only a token is verified"
    if agent.token_sha256 and agent.source != "token":
        yield f"{Agent.file_name} has the digest of a token, and the source is {agent.source}"
    if status.reason and status.execution_status is Status.COMPLETED:
        yield f"{JobStatus.file_name}: a completed execution has the reason {status.reason}"
    if status.partial and status.execution_status is Status.COMPLETED:
        yield f"{JobStatus.file_name}: a completed execution is partial, which means that it was stopped"
    if status.cached_from is not None and status.execution_status is not Status.COMPLETED:
        yield f"{JobStatus.file_name}: a {status.execution_status} execution has the result of {status.cached_from}"
    if status.cached_from == status.job_id:
        yield f"{JobStatus.file_name}: the result of the execution is cached from itself"
    if agent.verified and not agent.token_sha256:
        yield f"{Agent.file_name}: verified is true, without the digest of the token"
    yield from _step_facts(status)
    yield from _history_facts(status)
    yield from _code_facts(record.method.code or CodeIdentity())


def _step_facts(status: JobStatus) -> Findings:
    flow_run_id, generation = ExecutionId.parse(status.job_id.lower())
    # Prefect's list of a flow run that was run again after its end also has the steps of the generations before.
    earliest = min(entry.time for entry in status.history) if generation == 1 and status.history else None
    for step in status.steps or ():
        if step.flow_run_id is not None and str(step.flow_run_id) == flow_run_id:
            yield f"{JobStatus.file_name}: the step {step.name!r} calls the execution itself"
        if earliest and step.started and earliest - step.started > CLOCK_SKEW:
            yield f"{JobStatus.file_name}: the step {step.name!r} started at {step.started}, before its execution"


def _history_facts(status: JobStatus) -> Findings:
    ended = False
    for number, entry in enumerate(status.history, start=1):
        which, is_phase = f"{JobStatus.file_name}: entry {number}", entry.kind in _PHASES
        if ended and entry.kind is not EntryKind.NOTE:
            yield f"{which}: a {entry.kind} entry after the end; only notes may follow"
        if is_phase and None in {entry.phase, entry.task}:
            yield f"{which}: a {entry.kind} entry without a phase and its task"
        if not is_phase and (entry.phase, entry.task) != (None, None):
            yield f"{which}: a {entry.kind} entry has a phase"
        if entry.exit_code is not None and entry.kind is not EntryKind.PHASE_ENDED:
            yield f"{which}: a {entry.kind} entry has an exit code"
        failed = entry.phase is Phase.EXECUTE and entry.exit_code not in {None, 0}
        if failed and entry.attempt == status.attempt and status.execution_status is Status.COMPLETED:
            yield f"{which}: the execute-script ended with exit code {entry.exit_code} in a completed execution"
        ended = ended or (entry.kind is EntryKind.STATUS and entry.status.terminal)


def _code_facts(code: CodeIdentity) -> Findings:
    repository = code.repository or Repository()
    if repository.dirty is False and (repository.changed or repository.diff_sha256):
        yield f"{Method.file_name}: the working tree has changes, and it says that it has none"
    path, entrypoint = repository.path, code.entrypoint
    if path is not None and entrypoint is not None and entrypoint != path and not entrypoint.startswith(f"{path}:"):
        yield f"{Method.file_name}: the entrypoint is {entrypoint}, and the path of its file is {path}"


def _request_facts(record: ExecutionRecord) -> Findings:
    request, own = record.request, ExecutionId.parse(record.id.lower())
    for relative in request.relatives:
        other = ExecutionId.parse(relative.execution_id.lower())
        is_own = other.flow_run_id == own.flow_run_id and other.generation >= own.generation
        if is_own and relative.execution_id != record.id:  # `same_execution` reports the id itself
            yield f"{ExecuteRequest.file_name} has {relative.execution_id!r}, the execution itself, as a relative"
    if sum(relative.relation == "parent" for relative in request.relatives) > 1:
        yield f"{ExecuteRequest.file_name} has two parents"
    for name in sorted({file.input for file in request.files}):
        if not any(name == value or name.startswith(f"{value}.") for value in request.values):
            yield f"{ExecuteRequest.file_name} has a file for the input {name!r}, which the request does not have"


def _machine_facts(instance: Instance) -> Findings:
    # The host may be renamed while its process lives, so only the process ids are compared.
    if instance.process and instance.pid not in {None, instance.process.pid}:
        yield f"{Instance.file_name}: pid is {instance.pid}; its process has {instance.process.pid}"
    usage = instance.usage or Usage()
    amounts = [("cpuCount", instance.cpu_count), ("memory", instance.memory), ("wallSeconds", usage.wall_seconds)]
    amounts += [("memory of a GPU", gpu.memory) for gpu in instance.gpus]
    measured: tuple[Usage | ScriptRun, ...] = (usage, *(instance.runs or ()))
    for used in measured:
        amounts += [("cpuSeconds", used.cpu_seconds), ("peakMemory", used.peak_memory)]
    for member, amount in amounts:
        if amount is not None and amount < 0:
            yield f"{Instance.file_name}: {member} is {amount}, below zero"


def inputs(evidence: Evidence) -> Findings:
    """Every staged input has the digest and size in `request.json`."""
    files = evidence.document(ExecuteRequest).files
    for unstaged in sorted(_below(evidence, layout.INPUTS) - {file.path for file in files}):
        yield Unchecked(f"{unstaged!r} is not a staged input; the Method may have written it")
    for file in files:
        path = file.path
        if path is None:
            yield Unchecked(f"input {file.input!r} is only referenced: {file.origin}")
        elif not path.startswith(layout.INPUTS + "/"):
            yield f"{ExecuteRequest.file_name} has the input {file.input!r} at {path!r}, which is outside inputs/"
        elif path in evidence.files or not evidence.absence_reason(path):
            yield from _compare(evidence, ExecuteRequest.file_name, path, file.sha256, file.size)
        else:
            yield Unchecked(f"{path!r} is absent: {evidence.absence_reason(path)}")


def code(evidence: Evidence) -> Findings:
    """Every file of the Method's code, and their digests as a whole, are those of `method.json`."""
    code = evidence.document(Method).code
    files = (*code.files, *(code.data_files or ())) if code else ()
    recorded = {file.path for file in files}
    for lacking in (code.lacking if code else None) or ():
        if lacking.path not in recorded:
            yield Unchecked(f"{lacking.path!r} was used and is not in the bundle: {lacking.why}")
    if lacking_packages := summary(local_packages_of(evidence.document(Instance), code)):
        yield Unchecked(f"a replay with --isolated lacks packages that came from a disk: {lacking_packages}")
    for file in files:
        path = file.path
        if path in evidence.files or path in evidence.listed:
            yield from _compare(evidence, Method.file_name, path, file.sha256, None)
        else:
            yield Unchecked(f"{path!r} is not in the bundle; {Method.file_name} says {file.sha256}")
    if evidence.format > 1:
        plans = f"{layout.CODE}/{layout.PLANS}/"
        for path in sorted(_below(evidence, layout.CODE) - recorded - {REQUIREMENTS, DIFF}):
            if not path.startswith(plans):
                yield f"{path!r} is present; {Method.file_name} does not list it"
    if code and evidence.format > 1:
        yield from _git_objects(evidence, code)
        yield from _code_digests(evidence, code)


def _below(evidence: Evidence, folder: str) -> set[str]:
    return {path for path in evidence.files if path.startswith(f"{folder}/")}


def _git_objects(evidence: Evidence, code: CodeIdentity) -> Findings:
    for file in (*code.files, *(code.data_files or ())):
        if evidence.digests.get(file.path) == file.sha256:
            actual = evidence.git_object(file.path)
            if actual != file.git_object:
                yield f"{file.path!r} is the Git object {actual}; {Method.file_name} says {file.git_object}"


def _code_digests(evidence: Evidence, code: CodeIdentity) -> Findings:
    listing = "".join(f"{file.sha256}  {file.path}\n" for file in code.files)
    whole = sha256(listing.encode()).hexdigest() if code.files else None
    if code.sha256 != whole:
        yield f"{Method.file_name}: code.sha256 is {words(code.sha256)}; its files have {words(whole)}"
    diff, repository = evidence.listed.get(DIFF), code.repository or Repository()
    if diff is not None and diff != repository.diff_sha256:
        yield f"{DIFF!r} is {diff}; {Method.file_name} says {words(repository.diff_sha256)}"
    if bool(repository.diff_kept) != (diff is not None):
        yield f"{DIFF!r} is {'absent' if diff is None else 'present'}; {Method.file_name} says the opposite"


def packages(evidence: Evidence) -> Findings:
    """`requirements.txt` lists the packages in `instance.json`."""
    instance = evidence.document(Instance)
    recorded = instance.packages
    if evidence.format == 1:
        return
    for name in sorted((instance.package_origins or {}).keys() - recorded.keys()):
        yield f"{Instance.file_name} has the origin of the package {name[:200]!r}, and not the package"
    if REQUIREMENTS not in evidence.files:  # the run was refused or never started, or its packages cannot be read
        return
    if not recorded and instance.python is None and instance.pid is None:  # the code, recorded by another process
        return
    size, limit = evidence.files[REQUIREMENTS], evidence.limits.document
    if size > limit:
        yield f"{REQUIREMENTS!r} has {size} bytes, and a document may have {limit}"
        return
    # Only a line feed ends a line: pip does not split at the other separators of `str.splitlines`.
    lines = Counter(f"{name}=={version}\n" for name, version in recorded.items())
    listed = Counter(_lines(b"".join(evidence.source.blocks(REQUIREMENTS)).decode(errors="replace")))
    for line in sorted(listed - lines):
        yield f"{REQUIREMENTS!r} has {_readable(line)}{_again(lines[line])}; {Instance.file_name} does not"
    for line in sorted(lines - listed):
        yield f"{REQUIREMENTS!r} lacks {_readable(line)}, which {Instance.file_name} has"


def _lines(text: str) -> list[str]:
    """Return the lines of *text* with their line feeds; the last one may lack it."""
    *lines, rest = text.split("\n")
    return [f"{line}\n" for line in lines] + [rest] * bool(rest)


def _readable(line: str) -> str:
    text = line.removesuffix("\n")[:200]
    return text if text.isprintable() and text and line.endswith("\n") else repr(line[:200])


def _again(times: int) -> str:
    return " again" if times else ""


def outputs(evidence: Evidence) -> Findings:
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


def provenance(evidence: Evidence) -> Findings:
    """`provo.xml` agrees with the documents."""
    differences = list(_differences(evidence.summary, evidence.provenance_summary.summary, layout.PROVENANCE))
    if differences or not evidence.rebuilt_provenance:
        yield from differences or _provenance_rebuilt(evidence)


def _provenance_rebuilt(evidence: Evidence) -> Findings:
    """Compare PROV with what the documents give; `told-files` compares the digests of single files."""
    in_provenance = dict(evidence.provenance_summary.files)
    files = [
        BundleFile(path, in_provenance.get(path, digest), evidence.files.get(path, 0))
        for path, digest in evidence.listed.items()
    ]
    measured = {path for path, digest in evidence.listed.items() if in_provenance.get(path, digest) == digest}
    unmeasured = frozenset(in_provenance.keys() - (measured & evidence.files.keys()))
    yield from prov_differences(evidence.bytes_of(layout.PROVENANCE), evidence.record, files, unmeasured)


def provenance_times(evidence: Evidence) -> Findings:
    """The times in `provo.xml` are in a possible order."""
    for fault in evidence.provenance_time_faults():
        yield f"{layout.PROVENANCE}: {fault}"


def crate(evidence: Evidence) -> Findings:
    """`ro-crate-metadata.json` agrees with the documents."""
    differences = list(_differences(evidence.summary, evidence.crate_summary.summary, layout.CRATE))
    if differences or not evidence.rebuilt_crate:
        yield from differences or _crate_rebuilt(evidence)


def _crate_rebuilt(evidence: Evidence) -> Findings:
    """Compare the crate with one built from the documents; `told-files` compares the digests of single files."""
    in_crate = dict(evidence.crate_summary.files)
    listed = {path: digest for path, digest in evidence.listed.items() if path != layout.CRATE}
    lacking = len(listed.keys() - in_crate.keys())
    if lacking > _MOST_LACKING:
        yield f"{layout.CRATE}: it lacks {lacking} files that {layout.MANIFEST} lists"
        return
    digests = in_crate | listed | in_crate  # in the order of the crate, so that an unchanged one has the same bytes
    files = [BundleFile(path, digest, evidence.sizes.get(path, 0)) for path, digest in digests.items()]
    measured = {
        path for path, digest in listed.items() if path in evidence.sizes and in_crate.get(path, digest) == digest
    }
    unmeasured = frozenset(file.path for file in files if file.path not in measured)
    yield from crate_reader.differences(evidence.bytes_of(layout.CRATE), evidence.record, files, unmeasured)


def verdict(evidence: Evidence) -> Findings:
    """The verdict on a replay agrees with its own lists, the request and the outputs."""
    if Verdict.file_name not in evidence.files:
        return
    record, verdict = evidence.record, evidence.document(Verdict)
    reruns = {relative.execution_id for relative in record.request.relatives if relative.relation in _RERUNS}
    if verdict.replay_of not in reruns:
        yield f"{Verdict.file_name} is on {verdict.replay_of}; {ExecuteRequest.file_name} reruns {_listed(reruns)}"
    expected = verdict.implied_grade(completed=record.status is Status.COMPLETED)
    if verdict.grade not in {expected, None}:
        yield f"{Verdict.file_name}: the grade is {words(verdict.grade)}; its lists give {words(expected)}"
    judged = {output.path: output.agreement for output in verdict.outputs}
    for output in verdict.outputs:
        if output.agreement is Agreement.SAME and (output.by != "bytes" or output.words):
            yield f"{Verdict.file_name}: {output.path!r} has the same bytes, and a difference in {output.by}"
    if evidence.format > 1:
        yield from _declaration_faults(record.method, verdict.outputs)
    for path, count in Counter(output.path for output in verdict.outputs).items():
        if count > 1:
            yield f"{Verdict.file_name}: {path!r} is there {count} times"
    written = {output.path for output in record.job_status.outputs}
    for path in sorted(written ^ {path for path, agreement in judged.items() if agreement is not Agreement.GONE}):
        has = "has" if path in written else "lacks"
        yield f"{Verdict.file_name}: {path!r} is {words(judged.get(path))}; {JobStatus.file_name} {has} it"


def _declaration_faults(method: Method, outputs: Iterable[OutputVerdict]) -> Findings:
    for output in outputs:
        if output.agreement is Agreement.EQUAL and output.by == "bytes":
            yield f"{Verdict.file_name}: {output.path!r} is equal by bytes, which are the same or differ"
        if output.declared and not _declares(method, output):
            yield f"{Verdict.file_name}: {output.path!r} was compared in a way that {Method.file_name} does not declare"


def _declares(method: Method, output: OutputVerdict) -> bool:
    """Whether *method* declares the comparison of *output*, by its name or a pattern.

    The first pattern that matches need not be the one: it applies only if the replayed Method declares it as well.
    """
    name = output.path.removeprefix(OUTPUTS)
    return any(
        comparison == output.declared and (pattern == name or fnmatchcase(name, pattern))
        for pattern, comparison in (method.comparisons or {}).items()
    )


def told_files(evidence: Evidence) -> Findings:
    """Every file in `provo.xml` and `ro-crate-metadata.json` has the digest that they give."""
    for path, digest in sorted(evidence.provenance_summary.files):
        if path in evidence.files or path in evidence.listed:  # PROV also gives digests of source that is not copied
            yield from _compare(evidence, layout.PROVENANCE, path, digest, None)
    for path, digest in sorted(evidence.crate_summary.files):
        yield from _compare(evidence, layout.CRATE, path, digest, None)


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
    actual_size = evidence.size_of(path) if size is not None else None
    if actual_size is not None and size != actual_size:
        yield f"{path!r} has {actual_size} bytes; {document} says {size}"


def _differences(ours: RecordSummary, theirs: RecordSummary, path: str) -> Findings:
    for member in ("execution_id", "method", "status", "started", "finished"):
        our_value, their_value = getattr(ours, member), getattr(theirs, member)
        if our_value != their_value:
            yield f"{path}: {member.replace('_', ' ')} is {words(their_value)}; the documents say {words(our_value)}"
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
    return "absent" if part is None else " ".join(words(member) for member in part[1:])


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "no execution"


def _digests_of(pairs: frozenset[tuple[str, str]], name: str) -> str:
    return ", ".join(sorted(digest for other, digest in pairs if other == name)) or "absent"


def words(value: object) -> str:
    """Return *value* for a sentence."""
    if value is None:
        return "absent"
    if isinstance(value, Image):
        return "/".join(filter(None, value))
    return value.isoformat() if isinstance(value, datetime) else str(value)
