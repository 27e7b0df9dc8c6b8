"""The writer of `provo.xml`: an execution's record as W3C PROV-XML.

Equal records have equal bytes. The text is written directly: ids have safe characters
only, every other text is escaped, and elements are in the schema's order. Tests check
the result with the W3C schema and two other readers.

Law: `verify` writes the document of a sealed bundle again, so the text for a bundle format
never changes once a bundle has it. `_since_format_2` marks what format 2 adds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import BinaryIO
from xml.sax.saxutils import escape

from prefect_executions.documents import canonical_json, text_of_time
from prefect_executions.executions.record import (
    NAMESPACE,
    Agent,
    BundleFile,
    ExecuteRequest,
    ExecutionRecord,
    Infrastructure,
    Instance,
    StagedInput,
    method_name,
    run_name,
    value_digest,
)
from prefect_executions.executions.summary import Image, image_of, phases_of
from prefect_executions.lifecycle.history import EntryKind, OutputFile
from prefect_executions.lifecycle.status import Status
from prefect_executions.methods.model import CodeIdentity, Method, Repository
from prefect_executions.provenance import vocabulary

# The flow run id in an execution id, whose generation is left out.
_FLOW_RUN = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:\.[0-9]+)?")

_PLAIN = re.compile(r"[\t\n -%'-;=?-~]*")  # ASCII without the characters that XML escapes

_STATUS_TIMES = {Status.CREATED: "created", Status.SCHEDULED: "scheduled", Status.EXECUTING: "executing"}


def write(record: ExecutionRecord, files: Sequence[BundleFile], stream: BinaryIO) -> None:
    """Write `provo.xml` for *record* to *stream*; *files* give the digests of the bundle's documents and code.

    Facts that the record lacks are absent: an execution that never started has no start
    time, and without a known requester the agent has no name.

    A re-execution (``rerun-of``, ``edited-rerun-of``, ``retry-of``) was informed by the
    earlier execution, and its request was derived from the earlier request. A parent
    started this execution. Steps (task runs of the flow) and phases of scripts are
    activities that the execution started. A phase used the image that its script ran in.
    """
    known = {file.path: file for file in files}
    stream.writelines(part.encode() for part in _document(record, known))


def _document(record: ExecutionRecord, known: Mapping[str, BundleFile]) -> Iterator[str]:
    run = f"px:{run_name(record.id)}"
    yield (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<prov:document xmlns:prov="{vocabulary.PROV}" xmlns:xsi="{vocabulary.XSI}" xmlns:xsd="{vocabulary.XSD}"'
        f' xmlns:px="{NAMESPACE}" xmlns:exe="{vocabulary.TERMS}" xmlns:here="{NAMESPACE}{run_name(record.id)}/">\n'
    )
    yield from _since_format_2(record, [_bundle(run, record)])
    yield _activity(run, record)
    yield from _method(record.method, known, record)
    yield from _agents(run, record)
    yield from _request(run, known)
    yield from _environment(run, record, known)
    for index, staged in enumerate(record.request.files):
        yield _staged(run, staged, index)
    by_file = {staged.input for staged in record.request.files}
    for name, value in record.request.values.items():
        if name not in by_file:
            yield _value(run, name, value)
    for output in record.job_status.outputs:
        yield _output(run, output)
    yield from _steps(run, record)
    yield from _phases(run, record)
    yield from _relatives(run, record)
    yield "</prov:document>\n"


def _since_format_2(record: ExecutionRecord, parts: Iterable[str]) -> Iterable[str]:
    return parts if record.format > 1 else ()


def _bundle(run: str, record: ExecutionRecord) -> str:
    """Return the entity of the bundle.

    It comes first: ProvToolbox resolves ``exe:`` in a type only if an earlier element has a name with this prefix.
    """
    return _record(
        "entity",
        f"{run}.bundle",
        _text("prov:label", f"Execution bundle {record.id}"),
        _type("prov:Bundle"),
        _number("exe:bundleFormat", record.format),
    )


def _activity(run: str, record: ExecutionRecord) -> str:
    job_status, deployment = record.job_status, record.request.deployment
    flow_run = _FLOW_RUN.fullmatch(record.id)
    return _record(
        "activity",
        run,
        _time("prov:startTime", record.started),
        _time("prov:endTime", record.finished),
        _text("prov:label", f"{record.method.title} {record.method.version}"),
        _type("exe:Execution"),
        _text("exe:executionId", record.id),
        _text("exe:status", record.status),
        _text("exe:reason", job_status.reason),
        _text("exe:message", job_status.message),
        _number("exe:attempt", job_status.attempt),
        _boolean("exe:partial", value=job_status.partial),
        _text("exe:flowRunId", flow_run[1] if flow_run else None),
        _text("exe:flowRunName", record.request.flow_run_name),
        _text("exe:deployment", str(deployment.id) if deployment else None),
        *_since_format_2(record, _requested(record.request)),
        *_since_format_2(record, _steps_to_start(record)),
    )


def _steps_to_start(record: ExecutionRecord) -> Iterator[str]:
    """Yield the times of the statuses for which PROV has no attribute."""
    for entry in record.job_status.history:
        name = _STATUS_TIMES.get(entry.status)
        if name and entry.kind is EntryKind.STATUS:
            yield f'<exe:{name} xsi:type="xsd:dateTime">{text_of_time(entry.time)}</exe:{name}>'


def _requested(request: ExecuteRequest) -> Iterator[str]:
    """Yield how the run was requested."""
    yield _text("exe:deploymentName", request.deployment.name if request.deployment else None)
    yield _text("exe:archiveLevel", request.archive)
    yield _text("exe:createdBy", _json_text(request.created_by) if request.created_by else None)
    yield _text("exe:tags", _json_text(request.tags) if request.tags else None)


def _method(method: Method, known: Mapping[str, BundleFile], record: ExecutionRecord) -> Iterator[str]:
    this = f"px:{method_name(method)}"
    code = method.code or CodeIdentity()
    repository = code.repository or Repository()
    yield _record(
        "entity",
        this,
        _text("prov:label", f"{method.title} {method.version}"),
        _text("prov:location", Method.file_name),
        _type("prov:Plan"),
        _type("prov:Collection") if code.files else "",
        _type(f"exe:{vocabulary.METHOD}"),
        _text("exe:methodId", method.id),
        _text("exe:version", method.version),
        _text("exe:codeSha256", code.sha256),
        _text("exe:entrypoint", code.entrypoint),
        _text("exe:package", code.package),
        _text("exe:repository", repository.remote),
        _text("exe:commit", repository.commit),
        _text("exe:image", code.image),
        _text("exe:imageDigest", code.image_digest),
        *_since_format_2(record, _tree(method, repository)),
        _as_file(known.get(Method.file_name)),
    )
    for source in code.files:
        entity = f"here:f.{source.sha256[:16]}.{_short('code', source.path)}"
        file = known.get(source.path)
        yield _record(
            "entity",
            entity,
            _text("prov:location", source.path),
            _type(f"exe:{vocabulary.SOURCE}"),
            _text("exe:sha256", source.sha256),
            _number("exe:byteCount", file.size if file else None),
            _text("exe:gitObject", source.git_object),
            *_since_format_2(record, [_text("exe:module", source.module)]),
        )
        yield _relation("hadMember", ("collection", this), ("entity", entity))


def _tree(method: Method, repository: Repository) -> Iterator[str]:
    """Yield the type of *method*, and the state of the repository in which it was found."""
    yield _text("exe:methodType", method.type)
    yield _text("exe:branch", repository.branch)
    yield _text("exe:repositoryPath", repository.path)
    yield _boolean("exe:dirty", value=repository.dirty)
    yield _text("exe:changed", _json_text(repository.changed) if repository.changed else None)
    yield _text("exe:diffSha256", repository.diff_sha256)


def _agents(run: str, record: ExecutionRecord) -> Iterator[str]:
    plan = f'<prov:plan prov:ref="px:{method_name(record.method)}"/>'
    person = _person_name(record.agent)
    yield _record(
        "agent",
        person,
        _text("prov:label", record.agent.name),
        # A run that Prefect started (by a schedule or an automation) may have no person behind it.
        "" if record.agent.source == "prefect" else _type("prov:Person"),
        _text("exe:subject", _claim(record.agent, "sub")),
        _text("exe:issuer", _claim(record.agent, "iss")),
        _text("exe:source", record.agent.source),
        _boolean("exe:verified", value=record.agent.verified),
        *_since_format_2(record, [_text("exe:tokenSha256", record.agent.token_sha256)]),
    )
    yield _relation("wasAssociatedWith", ("activity", run), ("agent", person), more=plan + _role("requester"))
    worker = _worker(record)
    if worker:
        yield _record("agent", "here:worker", *worker)
        yield _relation("wasAssociatedWith", ("activity", run), ("agent", "here:worker"), more=plan + _role("worker"))
        yield _relation("actedOnBehalfOf", ("delegate", "here:worker"), ("responsible", person), ("activity", run))


def _person_name(agent: Agent) -> str:
    subject = _claim(agent, "sub")
    if subject is None:
        return "here:requester"
    return f"px:agent.{value_digest([_claim(agent, 'iss'), subject])[:32]}"


def _claim(agent: Agent, name: str) -> str | None:
    value = agent.claims.get(name)
    return None if value is None else str(value)


def _worker(record: ExecutionRecord) -> tuple[str, ...]:
    infrastructure, instance = record.infrastructure, record.instance
    if not (infrastructure.worker or infrastructure.identifier or instance.hostname or instance.pid):
        return ()
    return (
        _text("prov:label", infrastructure.worker or instance.hostname),
        _text("prov:location", instance.hostname),
        _type("prov:SoftwareAgent"),
        _text("exe:infrastructure", infrastructure.type),
        _text("exe:workPool", infrastructure.work_pool),
        _text("exe:worker", infrastructure.worker),
        _text("exe:infrastructureId", infrastructure.identifier),
        _text("exe:image", infrastructure.image),
        _text("exe:imageDigest", infrastructure.image_digest),
        _number("exe:pid", instance.pid),
        _text("exe:containerId", instance.container_id),
        _text("exe:pod", instance.pod),
        _text("exe:prefectVersion", infrastructure.prefect_version),
        *_since_format_2(record, _place(infrastructure, instance)),
    )


def _place(infrastructure: Infrastructure, instance: Instance) -> Iterator[str]:
    """Yield where Prefect and its worker ran the execution."""
    yield _text("exe:workQueue", infrastructure.work_queue)
    yield _text("exe:workerId", infrastructure.worker_id)
    yield _text("exe:imageId", infrastructure.image_id)
    yield _text("exe:prefectApi", infrastructure.prefect_api)
    yield _text("exe:node", instance.node)
    yield _text("exe:user", instance.user)


def _request(run: str, known: Mapping[str, BundleFile]) -> Iterator[str]:
    this = f"{run}.request"
    yield _record(
        "entity",
        this,
        _text("prov:location", ExecuteRequest.file_name),
        _type(f"exe:{vocabulary.REQUEST}"),
        _as_file(known.get(ExecuteRequest.file_name)),
    )
    yield _relation("used", ("activity", run), ("entity", this), more=_role("request"))


def _environment(run: str, record: ExecutionRecord, known: Mapping[str, BundleFile]) -> Iterator[str]:
    instance, python = record.instance, record.instance.python
    if python is None:
        return
    yield _record(
        "entity",
        "here:environment",
        _text("prov:label", f"{python.implementation} {python.version}"),
        _text("prov:location", Instance.file_name),
        _type(f"exe:{vocabulary.ENVIRONMENT}"),
        _text("exe:python", python.version),
        _text("exe:implementation", python.implementation),
        _text("exe:packagesSha256", value_digest(instance.packages) if instance.packages else None),
        _number("exe:packageCount", len(instance.packages) or None),
        *_since_format_2(record, _machine(instance)),
        _as_file(known.get(Instance.file_name)),
    )
    yield _relation("used", ("activity", run), ("entity", "here:environment"), more=_role("environment"))


def _machine(instance: Instance) -> Iterator[str]:
    """Yield the system and the hardware."""
    yield _text("exe:executable", instance.python.executable if instance.python else None)
    yield _text("exe:os", instance.os)
    yield _text("exe:kernel", instance.kernel)
    yield _text("exe:architecture", instance.architecture)
    yield _text("exe:cpuModel", instance.cpu_model)
    yield _number("exe:cpuCount", instance.cpu_count)
    yield _number("exe:memory", instance.memory)
    gpus = [gpu.model_dump(mode="json", exclude_none=True) for gpu in instance.gpus]
    yield _text("exe:gpus", _json_text(gpus) if gpus else None)


def _staged(run: str, staged: StagedInput, index: int) -> str:
    this = f"here:f.{staged.sha256[:16]}.{_short('input', str(index))}"
    entity = _record(
        "entity",
        this,
        _text("prov:label", staged.name),
        _text("prov:location", staged.origin),
        _type(f"exe:{vocabulary.INPUT_FILE}"),
        _text("exe:sha256", staged.sha256),
        _number("exe:byteCount", staged.size),
        _text("exe:mediaType", staged.media_type),
        _text("exe:etag", staged.etag),
        _text("exe:path", staged.path),
    )
    return entity + _relation("used", ("activity", run), ("entity", this), more=_role(staged.input))


def _value(run: str, name: str, value: object) -> str:
    this = f"here:v.{_short('value', name)}"
    data = canonical_json(value)
    text = vocabulary.as_json_text(data.decode())
    short = len(text) <= vocabulary.VALUE_LIMIT
    entity = _record(
        "entity",
        this,
        "" if short else _text("prov:location", ExecuteRequest.file_name),
        _type(f"exe:{vocabulary.INPUT_VALUE}"),
        f"<prov:value>{escape(text)}</prov:value>" if short else "",
        "" if short else _text("exe:sha256", sha256(data).hexdigest()),
    )
    return entity + _relation("used", ("activity", run), ("entity", this), more=_role(name))


def _output(run: str, output: OutputFile) -> str:
    this = f"here:f.{output.sha256[:16]}.{_short('output', output.path)}"
    path = _escaped(output.path)
    role = _escaped(output.path.removeprefix("outputs/"))
    return (
        f'<prov:entity prov:id="{this}"><prov:location>{path}</prov:location>'
        f'<prov:type xsi:type="xsd:QName">exe:{vocabulary.OUTPUT}</prov:type>'
        f"<exe:sha256>{output.sha256}</exe:sha256>"
        f'<exe:byteCount xsi:type="xsd:long">{output.size}</exe:byteCount>'
        f"<exe:mediaType>{_escaped(output.media_type)}</exe:mediaType></prov:entity>\n"
        f'<prov:wasGeneratedBy><prov:entity prov:ref="{this}"/><prov:activity prov:ref="{run}"/>'
        f"<prov:role>{role}</prov:role></prov:wasGeneratedBy>\n"
    )


def _steps(run: str, record: ExecutionRecord) -> Iterator[str]:
    for step in record.job_status.steps or ():
        this = f"here:step.{step.id}"
        yield _record(
            "activity",
            this,
            _time("prov:startTime", step.started),
            _time("prov:endTime", step.finished),
            _text("prov:label", step.name),
            _type(f"exe:{vocabulary.STEP}"),
            _text("exe:taskRunId", str(step.id)),
            _text("exe:state", step.state),
            _text("exe:stateName", step.state_name),
            _text("exe:flowRunId", str(step.flow_run_id) if step.flow_run_id else None),
        )
        yield _relation("wasStartedBy", ("activity", this), ("starter", run))


def _phases(run: str, record: ExecutionRecord) -> Iterator[str]:
    images: dict[Image, str] = {}
    for phase in phases_of(record):
        this = f"here:phase.{phase.number}"
        yield _record(
            "activity",
            this,
            _time("prov:startTime", phase.started),
            _time("prov:endTime", phase.ended),
            _text("prov:label", phase.phase),
            _type(f"exe:{vocabulary.PHASE}"),
            _text("exe:task", phase.task),
            _number("exe:exitCode", phase.exit_code),
            _text("exe:message", phase.message),
        )
        yield _relation("wasStartedBy", ("activity", this), ("starter", run))
        image = image_of(phase.run)
        if image is not None:
            if image not in images:
                images[image] = f"here:image.{len(images)}"
                yield _image(images[image], image)
            yield _relation("used", ("activity", this), ("entity", images[image]), more=_role("image"))


def _image(this: str, image: Image) -> str:
    return _record(
        "entity",
        this,
        _text("prov:label", image.name),
        _type(f"exe:{vocabulary.IMAGE}"),
        _text("exe:registry", image.registry),
        _text("exe:image", image.name),
        _text("exe:imageId", image.id),
        _text("exe:imageDigest", image.sha256 and f"sha256:{image.sha256}"),
    )


def _relatives(run: str, record: ExecutionRecord) -> Iterator[str]:
    relatives = record.request.relatives
    relations: list[tuple[str, str]] = [(relative.relation, relative.execution_id) for relative in relatives]
    if record.job_status.cached_from:
        relations.append(("cached-from", record.job_status.cached_from))
    for other in dict.fromkeys(other for _, other in relations if other != record.id):
        yield _record("activity", f"px:{run_name(other)}", _type("exe:Execution"), _text("exe:executionId", other))
        yield _record("entity", f"px:{run_name(other)}.request", _type(f"exe:{vocabulary.REQUEST}"))
    for relation, other in dict.fromkeys(relations):
        yield from _relative(run, relation, f"px:{run_name(other)}")


def _relative(run: str, relation: str, other: str) -> Iterator[str]:
    kind = _text("exe:relation", relation)
    if relation == "parent":
        yield _relation("wasStartedBy", ("activity", run), ("starter", other), more=kind)
        return
    yield _relation("wasInformedBy", ("informed", run), ("informant", other), more=kind)
    if relation in {"rerun-of", "edited-rerun-of", "retry-of"}:
        ends = ("generatedEntity", f"{run}.request"), ("usedEntity", f"{other}.request")
        yield _relation("wasDerivedFrom", *ends, more=kind)


def _short(*names: str) -> str:
    return sha256("\0".join(names).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _record(kind: str, name: str, *content: str) -> str:
    return f'<prov:{kind} prov:id="{name}">{"".join(content)}</prov:{kind}>\n'


def _relation(kind: str, *ends: tuple[str, str], more: str = "") -> str:
    refs = "".join(f'<prov:{end} prov:ref="{name}"/>' for end, name in ends)
    return f"<prov:{kind}>{refs}{more}</prov:{kind}>\n"


def _text(tag: str, text: str | None) -> str:
    return "" if text is None else f"<{tag}>{_escaped(text)}</{tag}>"


def _escaped(text: str) -> str:
    plain = "_x" not in text and _PLAIN.fullmatch(text)
    return text if plain else escape(vocabulary.as_text(text))


def _role(name: str) -> str:
    return _text("prov:role", name)


def _number(tag: str, number: int | None) -> str:
    return "" if number is None else f'<{tag} xsi:type="xsd:long">{number}</{tag}>'


def _boolean(tag: str, *, value: bool | None) -> str:
    return "" if value is None else f'<{tag} xsi:type="xsd:boolean">{str(value).lower()}</{tag}>'


def _json_text(value: object) -> str:
    return canonical_json(value).decode()


def _type(name: str) -> str:
    return f'<prov:type xsi:type="xsd:QName">{name}</prov:type>'


def _time(tag: str, time: datetime | None) -> str:
    return "" if time is None else f"<{tag}>{text_of_time(time)}</{tag}>"


def _as_file(file: BundleFile | None) -> str:
    if file is None:
        return ""
    return _text("exe:sha256", file.sha256) + _number("exe:byteCount", file.size)
