"""A fact that two files of a bundle state cannot be changed in one of them, whatever digests are recomputed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from bundle_makers import MemorySource, an_open_bundle, contents
from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.gather import gather
from prefect_executions.bundles.seal import seal
from prefect_executions.bundles.verify import verify
from prefect_executions.executions.record import BundleFile, ExecutionRecord, Gpu, Process, Python, Relative
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.lifecycle.status import Reason
from prefect_executions.settings import ArchiveLevel
from records import (
    EXECUTION_ID,
    a_failed_record,
    a_method,
    a_record,
    a_request,
    a_verdict,
    an_agent,
    an_infrastructure,
    an_instance,
    some_steps,
    with_phases,
)

XSI_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"
DIFF = b"--- a/flows/coins.py\n+++ b/flows/coins.py\n"
OTHER = "b5bb9d80-14a0-4f9b-a1c7-8f6f1d2c3e4f"

ONCE = {
    "metadata/request.json": {
        "values/picture",  # as the requester wrote it; `files` has its origin
        "parameters/*",  # as Prefect was sent them
        "response",
        "validated",
    },
    "metadata/method.json": {  # for people and forms: version and code digest identify the Method
        "inputs/*",
        "outputs/*",
        "jobControlOptions/*",
        "outputTransmission/*",
        "archive",
        "timeLimit",
    },
    "metadata/infrastructure.json": {"jobVariables/*"},
    "metadata/instance.json": {
        "process/*",  # with which settle finds and kills processes
        "ownProcess",
        "earlierProcesses/*",
        "workingDirectory",
        "usage/exitCode",
        "usage/exception/traceback",
        "runs/*/task",
        "runs/*/runtime",
        "runs/*/container",
        "runs/2/id",  # a run in a process, which has no image
    },
    "metadata/jobStatus.json": {
        "progress",
        "history/*/observer",
        "history/*/prefectState/*",
        "history/*/progress",
        "history/4/message",  # of an entry that is not a status
        "history/4/time",
    },
    "metadata/metrics.json": {  # the crate has the last value of each metric
        "params/*",
        "metrics/*/step",
        "metrics/*/time",
        "metrics/1/value",
    },
    "metadata/verdict.json": {
        "manifestSha256",
        "tolerance",
        "environment/*",
        "outputs/*/agreement",  # another one that gives the same grade
        "outputs/*/by",
        "outputs/*/words/*",
    },
    "auth/jwt.json": {"claims/aud"},
}
"""The leaves of each document that no other file states. Each pattern is needed."""


def a_full_record() -> ExecutionRecord:
    """Return a record with every part that a record may have."""
    repository = a_method().code.repository.model_copy(
        update={
            "dirty": True,
            "changed": ("flows/coins.py",),
            "diff_sha256": sha256(DIFF).hexdigest(),
            "diff_kept": True,
        }
    )
    code = a_method().code.model_copy(update={"repository": repository, "package": "coins==1.2", "image": "coins:1.2"})
    record = with_phases(
        a_failed_record(Reason.ERROR, method=a_method(code=code, time_limit=60.0, archive=ArchiveLevel.FULL)),
        exit_code=1,
    )
    instance = record.instance
    return replace(
        record,
        agent=an_agent(claims=an_agent().claims | {"aud": "executions"}),
        request=a_request(
            relatives=(
                Relative(execution_id=OTHER, relation="rerun-of"),
                Relative(execution_id="parent-1", relation="parent"),
            ),
            created_by={"type": "schedule", "id": "1", "name": "nightly"},
        ),
        job_status=record.job_status.model_copy(update={"steps": some_steps(), "partial": True}),
        infrastructure=an_infrastructure(
            image="registry.example.org/coins:1.2",
            image_digest=f"sha256:{'a' * 64}",
            image_id=f"sha256:{'c' * 64}",
            worker_id="w-1",
            prefect_api="https://prefect.example.org/api",
            job_variables={"cpu": "2"},
        ),
        instance=an_instance(
            usage=instance.usage.model_copy(update={"cpu_seconds": 4.25, "peak_memory": 123_456}),
            runs=instance.runs,
            process=Process(host="vm-7", boot="b", pids="p", pid=4711, started="1", layout="l"),
            own_process=True,
            earlier_processes=(Process(pid=4710),),
            working_directory="/home/alice",
            container_id="c" * 12,
            pod="pod-1",
            node="node-1",
            cpu_model="Xeon",
            python=Python(version="3.11.9", implementation="CPython", executable="/usr/bin/python3"),
            gpus=(Gpu(name="H200", uuid="GPU-1", memory=1, driver="550"),),
        ),
    )


def sealed_files(folder: Path, record: ExecutionRecord) -> dict[str, bytes]:
    bundle = an_open_bundle(folder, record)
    packages = record.instance.packages.items()
    bundle.write("code/requirements.txt", "".join(f"{name}=={version}\n" for name, version in packages).encode())
    if record.method.code.repository.diff_kept:
        bundle.write("code/uncommitted.diff", DIFF)
    if record.instance.usage and record.instance.usage.exception is None:
        bundle.write_document(a_verdict())
    gathered = gather(bundle)
    bundle.write_document(bundle.read(JobStatus).model_copy(update={"outputs": gathered.outputs}))
    seal(bundle)
    return contents(bundle.folder)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """A failed execution with every part, and a replay that completed."""
    folder = tmp_path_factory.mktemp("sealed")
    return {
        "full": sealed_files(folder / "full", a_full_record()),
        "replay": sealed_files(folder / "replay", a_record()),
    }


def forged(files: Mapping[str, bytes], path: str, data: bytes) -> MemorySource:
    """Return a bundle with *data* at *path*, and the digest and size of it wherever another file states them."""
    changed = {**files, path: data}
    before, after = (sha256(content).hexdigest().encode() for content in (files[path], data))
    sizes = [str(len(content)).encode() for content in (files[path], data)]
    if path not in {layout.PROVENANCE, layout.CRATE}:
        stated = b'<exe:sha256>%b</exe:sha256><exe:byteCount xsi:type="xsd:long">%b<'
        old, new = stated % (before, sizes[0]), stated % (after, sizes[1])
        changed[layout.PROVENANCE] = changed[layout.PROVENANCE].replace(old, new)
    if path != layout.CRATE:
        graph = json.loads(changed[layout.CRATE])
        for name in {path, layout.PROVENANCE}:
            entity = next(entity for entity in graph["@graph"] if entity["@id"] == name)
            entity |= {"sha256": sha256(changed[name]).hexdigest(), "contentSize": str(len(changed[name]))}
        changed[layout.CRATE] = json.dumps(graph).encode()
    listed = [
        BundleFile(name, sha256(content).hexdigest(), len(content))
        for name, content in changed.items()
        if name not in layout.UNLISTED
    ]
    return MemorySource(changed | {layout.MANIFEST: manifest.render(listed)})


WORDS = {
    "COMPLETED": "FAILED",
    "FAILED": "CANCELLED",
    "failed": "dismissed",
    "successful": "failed",
    "hook": "prefect",
    "prefect": "hook",
    "status": "note",
    "phase": "phase-ended",
    "phase-ended": "phase",
    "execute": "fetch",
    "error": "crashed",
    "rerun-of": "edited-rerun-of",
    "parent": "rerun-of",
    "repeat": "reproduce",
    "same": "equal",
    "differs": "equal",
    "full": "outputs",
    "document": "raw",
    "token": "system",
    "async-execute": "sync-execute",
    "dismiss": "sync-execute",
    "reference": "value",
    "bytes": "lines",
}
"""Another word of the same vocabulary, so that the document stays valid."""


def other(value: Any) -> Any:
    """Return another value of the same type, valid wherever *value* is."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value + 0.5
        case str() if value in WORDS:
            return WORDS[value]
        case str():
            return other_text(value)
    raise AssertionError(value)


def other_text(text: str) -> str:
    try:
        return (datetime.fromisoformat(text) + timedelta(milliseconds=1)).isoformat(timespec="microseconds")
    except ValueError:
        last = text[-1:]
        return f"{text[:-1]}{'1' if last == '0' else '0'}" if last in "0123456789abcdef" and last else f"{text}x"


def leaves(value: Any, *steps: str | int) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, *steps, key)
    else:
        yield steps


def with_leaf(document: Any, steps: tuple[str | int, ...]) -> Any:
    changed = json.loads(json.dumps(document))
    part = changed
    for step in steps[:-1]:
        part = part[step]
    part[steps[-1]] = other(part[steps[-1]])
    return changed


def accepted_edits(files: Mapping[str, bytes], path: str) -> Iterator[str]:
    document = json.loads(files[path])
    for steps in leaves(document):
        data = json.dumps(with_leaf(document, steps), indent=2, ensure_ascii=False).encode()
        if verify(forged(files, path, data)).passed:
            yield "/".join(map(str, steps))


@pytest.mark.parametrize("name", ["full", "replay"])
def test_an_unchanged_bundle_verifies(bundles, name):
    assert verify(MemorySource(bundles[name])).faults == ()
    assert verify(forged(bundles[name], layout.CRATE, bundles[name][layout.CRATE])).faults == ()


@pytest.mark.parametrize("path", sorted(kind.file_name for kind in layout.DOCUMENTS))
def test_a_changed_leaf_of_a_document_is_found_if_another_file_states_it(bundles, path):
    edits = {edit for files in bundles.values() if path in files for edit in accepted_edits(files, path)}
    assert {edit for edit in edits if not any(fnmatchcase(edit, pattern) for pattern in ONCE[path])} == set()
    assert {pattern for pattern in ONCE[path] if not any(fnmatchcase(edit, pattern) for edit in edits)} == set()


@pytest.mark.parametrize("name", ["full", "replay"])
def test_every_changed_leaf_of_the_crate_is_found(bundles, name):
    assert list(accepted_edits(bundles[name], layout.CRATE)) == []


def xml_edits(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield *data* with each text, each attribute and each statement changed, one at a time."""
    count = sum(1 for _ in etree.fromstring(data).iter())
    for number in range(1, count):
        for name in (None, "removed", *list(etree.fromstring(data).iter())[number].attrib):
            root = etree.fromstring(data)
            element = list(root.iter())[number]
            if name == "removed":
                element.getparent().remove(element)
            elif name is not None:
                element.set(name, "xsd:string" if name == XSI_TYPE else other(element.get(name)))
            elif not len(element):
                element.text = other(element.text) if element.text else "x"
            else:
                continue
            yield f"{element.tag} {name} {element.text}", etree.tostring(root)


@pytest.mark.parametrize("name", ["full", "replay"])
def test_every_change_of_provenance_is_found(bundles, name):
    files = bundles[name]
    checks = ("provenance", "same-execution", "told-files", "documents")
    edits = xml_edits(files[layout.PROVENANCE])
    assert [edit for edit, data in edits if verify(forged(files, layout.PROVENANCE, data), only=checks).passed] == []


@pytest.mark.parametrize("path", ["code/requirements.txt", "code/uncommitted.diff", "code/flows/coins.py"])
def test_every_changed_line_of_a_code_file_is_found(bundles, path):
    files = bundles["full"]
    lines = files[path].splitlines(keepends=True)
    for number, line in enumerate(lines):
        data = b"".join([*lines[:number], other(line.decode().rstrip()).encode() + b"\n", *lines[number + 1 :]])
        assert not verify(forged(files, path, data)).passed, line


def test_a_fault_of_provenance_names_the_statement_and_both_values(bundles):
    data = bundles["full"][layout.PROVENANCE].replace(b"<exe:commit>4b", b"<exe:commit>5b")
    (fault,) = verify(forged(bundles["full"], layout.PROVENANCE, data)).faults
    assert fault.startswith("provenance: metadata/provo.xml: exe:commit of the entity px:method.")
    assert " is 5b825dc642cb6eb9a060e54bf8d69288fbee4904; the documents say 4b825dc6" in fault


def test_prefixes_and_order_of_provenance_have_no_meaning(bundles):
    root = etree.fromstring(bundles["full"][layout.PROVENANCE])
    root[:] = reversed(root)
    text = etree.tostring(root).decode().replace("exe:", "own:").replace("xmlns:exe", "xmlns:own")
    source = forged(bundles["full"], layout.PROVENANCE, text.encode())
    assert verify(source, only=("provenance",)).faults == ()


@pytest.mark.parametrize("addition", ["<exe:note/>", "free text", '<prov:entity prov:id="exe:more"/>'])
def test_an_addition_to_provenance_is_found(bundles, addition):
    data = bundles["full"][layout.PROVENANCE].replace(b"</prov:document>", f"{addition}</prov:document>".encode())
    assert not verify(forged(bundles["full"], layout.PROVENANCE, data), only=("provenance",)).passed
    assert EXECUTION_ID.encode() in data
