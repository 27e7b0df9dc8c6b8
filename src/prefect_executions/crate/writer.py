"""The writer of `ro-crate-metadata.json`: the crate of one execution.

Law: `verify` builds the crate of a sealed bundle again and compares every text, so the text for
a bundle format never changes once a bundle has it. `_since_format_2` marks what format 2 adds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from typing import TypeVar
from urllib.parse import quote

from prefect_executions.crate import vocabulary
from prefect_executions.crate.vocabulary import Entity, uri
from prefect_executions.documents import canonical_json, in_utc
from prefect_executions.executions.record import (
    NAMESPACE,
    Agent,
    BundleFile,
    ExecuteRequest,
    ExecutionRecord,
    Instance,
    StagedInput,
    method_name,
    run_name,
)
from prefect_executions.executions.summary import Image, image_of, named_image, phases_of
from prefect_executions.lifecycle.history import Step
from prefect_executions.lifecycle.status import Status
from prefect_executions.mediatypes import UNKNOWN, media_type
from prefect_executions.methods.model import REQUIREMENTS, Method

_METADATA = {"@id": vocabulary.FILE}
_ROOT = {"@id": "./"}
NOT_STATED = {"@id": "#not-stated"}
NO_LICENSE = {"@id": "#no-license-stated"}

T = TypeVar("T")

# RFC 6838, as far as the crate's validator accepts it.
_MEDIA_TYPE = re.compile(r"\w*/\w[\w.-]*(?:\+\w[\w.-]*)?(?:;\w+=[^;]+)*")


def build(record: ExecutionRecord, files: Sequence[BundleFile]) -> bytes:
    """Return `ro-crate-metadata.json` for *record*; *files* are all other files of the bundle.

    An output or staged input that is not in *files*, because of the archive level, is
    described by name, digest and size as a work outside the crate. Equal records and
    files have equal bytes.
    """
    return render(_entities(record, files))


def render(entities: Iterable[Entity]) -> bytes:
    """Return the document of *entities*; members without a value are left out."""
    # One call encodes all entities. Null separates them: no entity has it, and a text cannot hold a bare quote.
    separated = [part for entity in entities for part in (_compact(entity), None)][:-1]
    lines = json.dumps(separated, ensure_ascii=False)[1:-1].replace('}, null, {"', '},\n{"')
    text = f'{{"@context": {json.dumps(vocabulary.CONTEXT)}, "@graph": [\n{lines}\n]}}\n'
    return text.encode(errors="backslashreplace")  # a lone surrogate becomes its JSON escape


def _entities(record: ExecutionRecord, files: Sequence[BundleFile]) -> Iterator[Entity]:
    paths = {file.path for file in files}
    action = _ref(f"#{run_name(record.id)}")
    inputs = list(_inputs(record.request, paths))
    outputs = list(_outputs(record, paths))
    measured = list(_measurements(record))
    yield {**_METADATA, "@type": "CreativeWork", "about": _ROOT, "conformsTo": _ref(vocabulary.CRATE)}
    images, usage = _images(record), list(_since_format_2(record, _usage(record.instance)))
    steps = [*_steps(record), *_phases(record, images)]
    yield _root(record, files, [action, *(_ref(step["@id"]) for step in steps)])
    yield {"@id": vocabulary.PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"}
    yield from not_stated()
    yield {
        **action,
        **_action(record),
        "containerImage": [_ref(name) for name in images.values()],
        "resourceUsage": [_ref(entity["@id"]) for entity in usage],
        "object": [_ref(entity["@id"]) for entity in inputs],
        "result": [_ref(entity["@id"]) for entity in (*outputs, *measured)],
    }
    yield {**_ref("#status"), "@type": "PropertyValue", "name": "executionStatus", "value": record.status.value}
    yield from steps
    yield from _step_states(record)
    yield from _exit_codes(record)
    yield from usage
    yield _instrument(record.method) | dict(_since_format_2(record, _software(record, paths).items()))
    yield from _since_format_2(record, _python(record.instance))
    yield _agent(record.agent)
    yield from _environment(record)
    yield from (_image(name, image) for image, name in images.items())
    yield from _relatives(record)
    yield from _since_format_2(record, _called(record))
    yield from _parameters(record.request)
    known = {entity["@id"]: entity for entity in (*inputs, *outputs)}
    yield from (_file(file, known.pop(uri(file.path), {}), action) for file in files)
    yield from known.values()
    yield from measured


def _since_format_2(record: ExecutionRecord, parts: Iterable[T]) -> Iterable[T]:
    return parts if record.format > 1 else ()


def not_stated() -> Iterator[Entity]:
    """Yield the entities for an unknown licence and an unknown organization."""
    yield {
        **NO_LICENSE,
        "@type": "CreativeWork",
        "name": "No license was stated",
        "description": "Nobody stated under which terms this execution's files may be used; ask the agent or the "
        "owner of the data. This note grants nothing.",
    }
    yield {
        **NOT_STATED,
        "@type": "Organization",
        "name": "Not stated",
        "description": "Nobody stated an organization for this execution, and none was guessed.",
        "url": NOT_STATED,
    }


def _root(record: ExecutionRecord, files: Sequence[BundleFile], actions: list[Entity]) -> Entity:
    end = record.finished or record.job_status.updated
    relatives = record.request.relatives
    earlier = [_other(relative.execution_id) for relative in relatives if relative.relation != "parent"]
    parents = [_other(relative.execution_id) for relative in relatives if relative.relation == "parent"]
    return {
        **_ROOT,
        "@type": "Dataset",
        "name": f"Execution {record.id} of {record.method.title} {record.method.version}",
        "description": f"The execution bundle (format {record.format}) of one run of the Method {record.method.id} "
        f"{record.method.version}, with the status {record.status.value}: request, code, inputs, outputs, logs "
        "and provenance.",
        "datePublished": time_text(end),
        "identifier": record.id,
        "license": NO_LICENSE,
        "author": _agent_ref(record.agent) if record.agent.name else NOT_STATED,
        "publisher": NOT_STATED,
        "conformsTo": _ref(vocabulary.PROFILE),
        "mentions": actions,
        "isBasedOn": list({ref["@id"]: ref for ref in earlier}.values()),
        "isPartOf": list({ref["@id"]: ref for ref in parents}.values()),
        "hasPart": [_ref(uri(file.path)) for file in files],
    }


def _action(record: ExecutionRecord) -> Entity:
    failed = record.status in {Status.FAILED, Status.CANCELLED}
    return {
        "@type": "CreateAction",
        "name": f"Execution {record.id}",
        "description": f"One execution of the Method {record.method.title} {record.method.version}, with the status "
        f"{record.status.value}.",
        "identifier": record.id,
        "instrument": _ref(NAMESPACE + method_name(record.method)),
        "agent": _agent_ref(record.agent),
        "startTime": time_text(record.started),
        "endTime": time_text(record.finished),
        "actionStatus": vocabulary.ACTION_STATUS.get(record.status),
        "additionalProperty": _ref("#status"),
        "error": _error(record) if failed else None,
        "environment": [_ref(_variable(name)) for name in record.instance.environment],
    }


def _steps(record: ExecutionRecord) -> Iterator[Entity]:
    for step in record.job_status.steps or ():
        yield {
            "@id": f"#step.{step.id}",
            "@type": "Action",
            "name": step.name,
            "identifier": str(step.id),
            "instrument": _ref(NAMESPACE + method_name(record.method)),
            "startTime": time_text(step.started),
            "endTime": time_text(step.finished),
            "actionStatus": vocabulary.STEP_STATUS.get(step.state, vocabulary.POTENTIAL),
            "additionalProperty": _ref(_state(step.state)),
            **dict(_since_format_2(record, _call(step).items())),
        }


def _call(step: Step) -> Entity:
    """Return the link from *step* to the flow run that it called."""
    return {"subjectOf": _other(str(step.flow_run_id))} if step.flow_run_id else {}


def _called(record: ExecutionRecord) -> Iterator[Entity]:
    """Yield the flow runs that the steps called; each that ran a Method is an execution with a crate of its own."""
    related = {relative.execution_id for relative in record.request.relatives}
    called = dict.fromkeys(str(step.flow_run_id) for step in record.job_status.steps or () if step.flow_run_id)
    for flow_run_id in called:
        if flow_run_id not in related:
            yield {
                **_other(flow_run_id),
                "@type": "CreativeWork",
                "name": f"Flow run {flow_run_id}",
                "description": "The run of a flow that this execution called; if the flow is a Method, its execution.",
                "identifier": flow_run_id,
            }


def _step_states(record: ExecutionRecord) -> Iterator[Entity]:
    for state in dict.fromkeys(step.state for step in record.job_status.steps or ()):
        yield {"@id": _state(state), "@type": "PropertyValue", "name": "state of a step", "value": state}


def _state(state: str) -> str:
    return f"#step-state.{quote(state, safe='')}"


def _phases(record: ExecutionRecord, images: Mapping[Image, str]) -> Iterator[Entity]:
    for phase in phases_of(record):
        image, code = image_of(phase.run), phase.exit_code
        status = vocabulary.phase_status(code, ended=phase.ended is not None)
        yield {
            "@id": f"{vocabulary.PHASE}{phase.number}",
            "@type": "Action",
            "name": phase.phase.value,
            "identifier": phase.task,
            "instrument": _ref(NAMESPACE + method_name(record.method)),
            "startTime": time_text(phase.started),
            "endTime": time_text(phase.ended),
            "actionStatus": status,
            "error": (phase.message or f"exit code {code}") if status == vocabulary.STEP_STATUS["FAILED"] else None,
            "additionalProperty": None if code is None else _ref(_exit_code(code)),
            "containerImage": image and _ref(images[image]),
        }


def _exit_codes(record: ExecutionRecord) -> Iterator[Entity]:
    for code in dict.fromkeys(phase.exit_code for phase in phases_of(record)):
        if code is not None:
            yield {"@id": _exit_code(code), "@type": "PropertyValue", "name": "exit code", "value": str(code)}


def _exit_code(code: int) -> str:
    return f"#exit-code.{code}"


def _error(record: ExecutionRecord) -> str:
    raised = record.instance.usage.exception if record.instance.usage else None
    if raised:
        return f"{raised.type}: {raised.message}"
    end = record.job_status
    return ": ".join(text for text in (end.reason or end.execution_status.lower(), end.message) if text)


def _instrument(method: Method) -> Entity:
    repository = method.code.repository if method.code else None
    return {
        "@id": NAMESPACE + method_name(method),
        "@type": "SoftwareApplication",
        "name": method.title or method.id,
        "identifier": method.id,
        "version": method.version,
        "description": method.description,
        "keywords": ", ".join(method.keywords) or None,
        "url": (repository and repository.remote) or _ref(uri(Method.file_name)),
        "subjectOf": _ref(uri(Method.file_name)),
    }


def _software(record: ExecutionRecord, paths: set[str]) -> Entity:
    """Return the Method's code files in the crate, and the interpreter and packages that it needs."""
    code = record.method.code
    packages = [_ref(uri(REQUIREMENTS))] if REQUIREMENTS in paths else []
    return {
        "hasPart": [_ref(uri(file.path)) for file in (code.files if code else ()) if file.path in paths],
        "softwareRequirements": [*(_ref(python["@id"]) for python in _python(record.instance)), *packages],
    }


def _python(instance: Instance) -> Iterator[Entity]:
    if instance.python:
        name, version = instance.python.implementation, instance.python.version
        yield {
            "@id": f"{NAMESPACE}python/{quote(f'{name}-{version}', safe='')}",
            "@type": "SoftwareApplication",
            "name": name,
            "version": version,
            "url": "https://www.python.org/",
        }


def _usage(instance: Instance) -> Iterator[Entity]:
    """Yield what the execution used, by the terms of Provenance Run Crate 0.5 and the units of QUDT."""
    usage = instance.usage
    if usage is None:
        return
    measured = {"wallSeconds": usage.wall_seconds, "cpuSeconds": usage.cpu_seconds, "peakMemory": usage.peak_memory}
    for name, value in measured.items():
        if value is not None:
            yield {
                "@id": f"#usage.{name}",
                "@type": "PropertyValue",
                "name": name,
                "propertyID": f"{NAMESPACE}terms#{name}",
                "unitCode": f"https://qudt.org/vocab/unit/{'BYTE' if name == 'peakMemory' else 'SEC'}",
                "value": json.dumps(value),
            }


def _agent_ref(agent: Agent) -> Entity:
    return _ref(orcid(agent) or "#agent")


def orcid(agent: Agent) -> str | None:
    """Return the ORCID URL of *agent*; None if its subject is not an ORCID."""
    subject = str(agent.claims.get("sub", ""))
    return subject if re.fullmatch(r"https://orcid\.org/(\d{4}-){3}\d{3}[\dX]", subject) else None


def _agent(agent: Agent) -> Entity:
    affiliation = NOT_STATED if agent.name else None
    return {**_agent_ref(agent), "@type": "Person", "name": agent.name, "affiliation": affiliation}


def _environment(record: ExecutionRecord) -> Iterator[Entity]:
    for name, value in record.instance.environment.items():
        yield {"@id": _variable(name), "@type": "PropertyValue", "name": name, "value": value}


def _images(record: ExecutionRecord) -> dict[Image, str]:
    """Return the ids of all images: the image of the flow's code and the images of its scripts."""
    infrastructure = record.infrastructure
    images = {}
    if infrastructure.image:
        images[named_image(infrastructure.image, None, infrastructure.image_digest)] = "#image"
    for run in record.instance.runs or ():
        image = image_of(run)
        if image is not None:
            images.setdefault(image, f"#image.{len(images)}")
    return images


def _image(name: str, image: Image) -> Entity:
    return {
        "@id": name,
        "@type": "ContainerImage",
        "additionalType": _ref("https://w3id.org/ro/terms/workflow-run#DockerImage"),
        "registry": image.registry,
        "name": image.name,
        "identifier": image.id,
        "sha256": image.sha256,
    }


def _relatives(record: ExecutionRecord) -> Iterator[Entity]:
    for other in dict.fromkeys(relative.execution_id for relative in record.request.relatives):
        yield {**_other(other), "@type": "CreativeWork", "name": f"Execution {other}", "identifier": other}


def _other(execution_id: str) -> Entity:
    return _ref(NAMESPACE + run_name(execution_id))


def _parameters(request: ExecuteRequest) -> Iterator[Entity]:
    for name in dict.fromkeys((*request.values, *(staged.input for staged in request.files))):
        yield {"@id": _parameter(name), "@type": "FormalParameter", "name": name}


def _inputs(request: ExecuteRequest, paths: set[str]) -> Iterator[Entity]:
    by_id: dict[str, list[StagedInput]] = {}
    for number, staged in enumerate(request.files):
        in_crate = staged.path is not None and staged.path in paths
        group = by_id.setdefault(uri(staged.path) if in_crate and staged.path else f"#input.{number}", [])
        if group and group[0].sha256 != staged.sha256:
            group = by_id.setdefault(f"#input.{number}", [])
        group.append(staged)
    for name, group in by_id.items():
        yield _staged(name, group)
    by_file = {staged.input for staged in request.files}
    for name, value in request.values.items():
        if name not in by_file:
            yield _value(name, value)


def _staged(name: str, staged: Sequence[StagedInput]) -> Entity:
    first = staged[0]
    return {
        "@id": name,
        "@type": "CreativeWork",
        "name": first.name,
        "url": first.origin,
        "sha256": first.sha256,
        "contentSize": str(first.size),
        "encodingFormat": _encoding(first.media_type),
        "exampleOfWork": [_ref(_parameter(input_name)) for input_name in dict.fromkeys(file.input for file in staged)],
    }


def _value(name: str, value: object) -> Entity:
    entity: Entity = {
        "@id": f"#value.{quote(name, safe='')}",
        "@type": "PropertyValue",
        "name": name,
        "exampleOfWork": _ref(_parameter(name)),
    }
    text = canonical_json(value).decode()
    if len(text) > vocabulary.VALUE_LIMIT:
        digest = sha256(text.encode()).hexdigest()
        return {**entity, "sha256": digest, "description": f"too long to repeat; see {ExecuteRequest.file_name}"}
    if isinstance(value, str):
        return {**entity, "value": value}
    return {**entity, "value": text, "encodingFormat": vocabulary.JSON}


def _outputs(record: ExecutionRecord, paths: set[str]) -> Iterator[Entity]:
    for number, output in enumerate(record.job_status.outputs):
        in_crate = output.path in paths
        yield {
            "@id": uri(output.path) if in_crate else f"#output.{number}",
            "@type": "CreativeWork",
            "name": output.path.removeprefix("outputs/"),
            "identifier": None if in_crate else output.path,
            "sha256": output.sha256,
            "contentSize": str(output.size),
            "encodingFormat": _encoding(output.media_type),
        }


def _measurements(record: ExecutionRecord) -> Iterator[Entity]:
    # The profile requires a result even if there are no outputs; the number of files, zero, is always true.
    last = {metric.name: metric for metric in (record.metrics.metrics if record.metrics else ())}
    for number, metric in enumerate(last.values()):
        yield {
            "@id": f"#metric.{number}",
            "@type": "PropertyValue",
            "name": metric.name,
            "value": json.dumps(metric.value),
        }
    count = str(len(record.job_status.outputs))
    yield {"@id": "#output-count", "@type": "PropertyValue", "name": "number of output files", "value": count}


def _file(file: BundleFile, described: Entity, action: Entity) -> Entity:
    entity = {
        "@id": uri(file.path),
        "@type": "File",
        "name": file.path.rpartition("/")[2],
        "sha256": file.sha256,
        "contentSize": str(file.size),
        "encodingFormat": described.get("encodingFormat") or _encoding(media_type(file.path)),
        "about": action if file.path.startswith("metadata/") or file.path.endswith(".log") else None,
    }
    return entity | described | {"@type": "File"}


@lru_cache(maxsize=256)
def _encoding(media: str) -> str:
    return media if _MEDIA_TYPE.fullmatch(media) else UNKNOWN


def _compact(entity: Entity) -> Entity:
    # A list of one value is unwrapped, as RO-Crate 1.1 recommends; unobserved facts are left out.
    return {
        key: value[0] if isinstance(value, list) and len(value) == 1 else value
        for key, value in entity.items()
        if value is not None and value != []
    }


def _ref(name: str) -> Entity:
    return {"@id": name}


def _parameter(name: str) -> str:
    return f"#parameter.{quote(name, safe='')}"


def _variable(name: str) -> str:
    return f"#environment.{quote(name, safe='')}"


def time_text(time: datetime | None) -> str | None:
    """Return *time* in the form that the crate's validator accepts."""
    # The validator accepts at most milliseconds; isoformat truncates, it does not round.
    return in_utc(time).isoformat(timespec="milliseconds") if time else None
