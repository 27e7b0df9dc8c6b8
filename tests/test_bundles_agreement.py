"""A fact that two files of a bundle state cannot be changed in one of them, whatever digests are recomputed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from bundle_makers import MemorySource, a_complete_bundle, contents
from marks import long_after, long_if
from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.verify import verify
from prefect_executions.executions.record import BundleFile
from records import EXECUTION_ID, a_full_record, a_record, a_verdict

XSI_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"

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
        "code/repository/author",
        "code/repository/subject",
    },
    "metadata/infrastructure.json": {"jobVariables/*"},
    "metadata/instance.json": {
        "process/*",  # with which settle finds and kills processes
        "ownProcess",
        "earlierProcesses/*",
        "workingDirectory",
        "usage/exitCode",
        "usage/exception/traceback",
        "runs/*/runtime",
        "runs/*/container",
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

LARGEST = {"metadata/jobStatus.json", "metadata/instance.json", "metadata/method.json"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """A failed execution with every part, a replay that completed, and a bundle of the first format."""
    folder = tmp_path_factory.mktemp("sealed")
    return {
        "full": contents(a_complete_bundle(folder / "full", a_full_record()).folder),
        "replay": contents(a_complete_bundle(folder / "replay", a_record(), a_verdict()).folder),
        "format 1": golden_files("format-1-failed.zip"),
        "format 2 failed": golden_files("format-2-failed.zip"),
    }


def golden_files(name: str) -> dict[str, bytes]:
    with zipfile.ZipFile(Path(__file__).parent / "bundles" / name) as golden:
        return {path.partition("/")[2]: golden.read(path) for path in golden.namelist() if not path.endswith("/")}


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


def passes(source: MemorySource, checks: tuple[str, ...], *, others: bool = False) -> bool:
    """Return whether *source* passes these *checks*, and all *others*; the first one that fails ends the search."""
    return all(verify(source, only=(check,)).passed for check in checks) and (not others or verify(source).passed)


def accepted_edits(files: Mapping[str, bytes], path: str) -> Iterator[str]:
    document, first = json.loads(files[path]), "crate" if path == layout.CRATE else "provenance"
    for steps in leaves(document):
        data = json.dumps(with_leaf(document, steps), indent=2, ensure_ascii=False).encode()
        if passes(forged(files, path, data), (first,), others=True):
            yield "/".join(map(str, steps))


@pytest.mark.parametrize("name", ["full", "replay", "format 1"])
def test_an_unchanged_bundle_verifies(bundles, name):
    assert verify(MemorySource(bundles[name])).faults == ()
    assert verify(forged(bundles[name], layout.CRATE, bundles[name][layout.CRATE])).faults == ()


@pytest.mark.parametrize("path", long_if(sorted(kind.file_name for kind in layout.DOCUMENTS), LARGEST))
def test_a_changed_leaf_of_a_document_is_found_if_another_file_states_it(bundles, path):
    new = [files for name, files in bundles.items() if name != "format 1" and path in files]
    edits = {edit for files in new for edit in accepted_edits(files, path)}
    assert {edit for edit in edits if not any(fnmatchcase(edit, pattern) for pattern in ONCE[path])} == set()
    assert {pattern for pattern in ONCE[path] if not any(fnmatchcase(edit, pattern) for edit in edits)} == set()


@pytest.mark.parametrize("name", long_if(["full", "replay", "format 1"], {"full", "format 1"}))
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


@pytest.mark.parametrize(("name", "step"), long_after(1, [("replay", 7), ("replay", 1), ("full", 1), ("format 1", 1)]))
def test_every_change_of_provenance_is_found(bundles, name, step):
    files = bundles[name]
    checks = ("provenance", "same-execution", "told-files", "documents")
    edits = islice(xml_edits(files[layout.PROVENANCE]), None, None, step)
    assert [edit for edit, data in edits if passes(forged(files, layout.PROVENANCE, data), checks)] == []


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


@pytest.mark.parametrize("attribute", ['xml:lang="de"', 'xml:base="https://example.org/"', 'more="1"'])
def test_an_attribute_of_the_whole_provenance_is_found(bundles, attribute):
    data = bundles["full"][layout.PROVENANCE].replace(b"<prov:document", f"<prov:document {attribute}".encode())
    assert not verify(forged(bundles["full"], layout.PROVENANCE, data), only=("provenance",)).passed


@pytest.mark.parametrize("addition", ["<exe:note/>", "free text", '<prov:entity prov:id="exe:more"/>'])
def test_an_addition_to_provenance_is_found(bundles, addition):
    data = bundles["full"][layout.PROVENANCE].replace(b"</prov:document>", f"{addition}</prov:document>".encode())
    assert not verify(forged(bundles["full"], layout.PROVENANCE, data), only=("provenance",)).passed
    assert EXECUTION_ID.encode() in data


def _document(files: Mapping[str, bytes], path: str, change: Callable[[Any], object]) -> MemorySource:
    """Return the bundle with a changed document, and PROV, crate and manifest with its digest."""
    document = json.loads(files[path])
    change(document)
    return forged(files, path, json.dumps(document, indent=2).encode())


@pytest.mark.parametrize(
    ("path", "change", "fault"),
    [
        ("auth/jwt.json", lambda d: d.pop("format"), "auth/jwt.json has no format"),
        ("metadata/instance.json", lambda d: d.update(pid="4711"), 'pid is "4711"; the format requires 4711'),
        ("auth/jwt.json", lambda d: d.update(verified=1), "verified is 1; the format requires true"),
        ("metadata/jobStatus.json", lambda d: d.update(steps=None), "steps is null; the format requires absent"),
        (
            "metadata/metrics.json",
            lambda d: d["metrics"][0].update(time="2026-09-22T14:00:05.123456+02:00"),
            '"2026-09-22T14:00:05.123456+02:00"; the format requires "2026-09-22T12:00:05.123456+00:00"',
        ),
        (
            "metadata/instance.json",
            lambda d: d.update(cpu_count=d.pop("cpuCount")),
            "cpu_count is 2; the format requires absent",
        ),
    ],
)
def test_a_document_that_another_program_reads_differently_is_refused(bundles, path, change, fault):
    report = verify(_document(bundles["replay"], path, change))
    assert [one for one in report.faults if one.startswith("documents: ") and fault in one]


def test_a_size_is_compared_with_an_output_that_is_in_the_zip_only(bundles):
    def change(status: Any) -> None:
        status["outputs"][0].update(size=5)

    source = _document(bundles["replay"], "metadata/jobStatus.json", change)
    remaining = {path: source.blocks(path) for path in source.files if not path.startswith("outputs/")}
    zipped = MemorySource(
        {path: b"".join(blocks) for path, blocks in remaining.items()}, {"outputs/": "they are in output.zip"}
    )
    (fault,) = verify(zipped, only=("outputs",)).faults
    assert fault.endswith("bytes; metadata/jobStatus.json says 5")


def test_many_listed_files_that_the_crate_lacks_are_counted(bundles):
    files = bundles["replay"]
    more = "".join(f"{number:064x}  outputs/{number:05}\n" for number in range(2000)).encode()
    lines = sorted((files[layout.MANIFEST] + more).splitlines(keepends=True), key=lambda line: line[66:])
    source = MemorySource({**files, layout.MANIFEST: b"".join(lines)})
    (fault,) = verify(source, only=("crate",)).faults
    assert fault == f"crate: {layout.CRATE}: it lacks 2000 files that {layout.MANIFEST} lists"


def test_an_execution_is_not_its_own_relative(bundles):
    def change(request: Any) -> None:
        request["relatives"].append({"executionId": EXECUTION_ID, "relation": "parent"})

    report = verify(_document(bundles["replay"], "metadata/request.json", change), only=("same-execution",))
    assert report.faults == ("same-execution: metadata/request.json has the execution itself as its parent",)


@pytest.mark.parametrize(
    ("name", "path", "change", "fault"),
    [
        ("full", "metadata/instance.json", lambda d: d.update(pid=1), "pid is 1; its process has 4711"),
        ("full", "metadata/instance.json", lambda d: d["usage"].update(wallSeconds=-1.0), "wallSeconds is -1.0"),
        ("full", "metadata/instance.json", lambda d: d["usage"].update(peakMemory=-1), "peakMemory is -1"),
        ("full", "auth/jwt.json", lambda d: d.update(source="prefect"), "only a token is verified"),
        (
            "full",
            "auth/jwt.json",
            lambda d: d.update(source="system", verified=False),
            "has the digest of a token, and the source is system",
        ),
        (
            "full",
            "metadata/method.json",
            lambda d: d["code"]["repository"].update(dirty=False),
            "the working tree has changes",
        ),
        (
            "full",
            "metadata/jobStatus.json",
            lambda d: d["steps"][0].update(flowRunId=EXECUTION_ID),
            "calls the execution itself",
        ),
        ("replay", "metadata/jobStatus.json", lambda d: d.update(cachedFrom=EXECUTION_ID), "is cached from itself"),
        ("replay", "metadata/jobStatus.json", lambda d: d.update(partial=True), "a completed execution is partial"),
        (
            "format 2 failed",
            "metadata/jobStatus.json",
            lambda d: d.update(cachedFrom="b5bb9d80-14a0-4f9b-a1c7-8f6f1d2c3e4f"),
            "a FAILED execution has the result of",
        ),
        (
            "full",
            "metadata/jobStatus.json",
            lambda d: d["steps"][0].update(started="2025-09-22T12:00:04.123456+00:00"),
            "before its execution",
        ),
        (
            "full",
            "metadata/method.json",
            lambda d: d["code"].update(entrypoint="flows/coins.py.txt:segment"),
            "the entrypoint is flows/coins.py.txt:segment, and the path of its file is flows/coins.py",
        ),
        (
            "replay",
            "metadata/jobStatus.json",
            lambda d: d.update(reason="error"),
            "a completed execution has the reason",
        ),
        ("replay", "auth/jwt.json", lambda d: d.pop("tokenSha256"), "without the digest of the token"),
        ("replay", "metadata/instance.json", lambda d: d.update(cpuCount=-2), "cpuCount is -2"),
        ("replay", "metadata/instance.json", lambda d: d.update(memory=-1), "memory is -1"),
        ("replay", "metadata/instance.json", lambda d: d.update(gpus=[{"name": "x", "memory": -1}]), "GPU is -1"),
        ("full", "metadata/instance.json", lambda d: d["runs"][0].update(cpuSeconds=-1.0), "cpuSeconds is -1.0"),
        (
            "replay",
            "metadata/jobStatus.json",
            lambda d: d["history"].append(d["history"][-1] | {"kind": "progress", "progress": 50}),
            "a progress entry after the end",
        ),
        ("replay", "metadata/jobStatus.json", lambda d: d["history"][3].update(exitCode=3), "entry has an exit code"),
        (
            "replay",
            "metadata/jobStatus.json",
            lambda d: d["history"][3].update(phase="execute", task="x"),
            "a status entry has a phase",
        ),
        (
            "full",
            "metadata/jobStatus.json",
            lambda d: _phase(d).pop("task"),
            "a phase-ended entry without a phase and its task",
        ),
        (
            "full",
            "metadata/jobStatus.json",
            lambda d: d.update(executionStatus="COMPLETED", status="successful"),
            "ended with exit code 1 in a completed execution",
        ),
        *(
            ("replay", "metadata/request.json", lambda d, other=other: d["relatives"].append(other), "as a relative")
            for other in (
                {"executionId": EXECUTION_ID.upper(), "relation": "parent"},
                {"executionId": f"{EXECUTION_ID}.2", "relation": "retry-of"},
            )
        ),
        (
            "full",
            "metadata/request.json",
            lambda d: d["relatives"].append({"executionId": "parent-2", "relation": "parent"}),
            "has two parents",
        ),
        (
            "replay",
            "metadata/request.json",
            lambda d: d["files"].append(d["files"][0] | {"input": "film"}),
            "has a file for the input 'film', which the request does not have",
        ),
    ],
)
def test_facts_that_exclude_each_other_are_found(bundles, name, path, change, fault):
    report = verify(_document(bundles[name], path, change), only=("facts",))
    assert any(found.startswith(f"facts: {path}") and fault in found for found in report.faults)


@pytest.mark.parametrize(
    ("name", "path", "change"),
    [
        # A host may be renamed while a worker's process lives.
        ("full", "metadata/instance.json", lambda d: d.update(hostname="renamed")),
        # Prefect lists the steps of a flow run, which may have earlier generations.
        (
            "full",
            "metadata/jobStatus.json",
            lambda d: (
                d.update(jobID=f"{EXECUTION_ID}.2"),
                d["steps"][0].update(started="2025-09-22T12:00:04.123456+00:00"),
            ),
        ),
        # An earlier attempt may have failed.
        (
            "full",
            "metadata/jobStatus.json",
            lambda d: (
                d.update(executionStatus="COMPLETED", status="successful", attempt=2, partial=None),
                d.pop("reason"),
            ),
        ),
        # A note may follow the end.
        (
            "replay",
            "metadata/jobStatus.json",
            lambda d: d["history"].append(d["history"][-1] | {"kind": "note", "message": "late"}),
        ),
        # A descriptor has no function.
        ("full", "metadata/method.json", lambda d: d["code"].update(entrypoint="flows/coins.py")),
        # The inputs of a descriptor may have a dot in their names.
        ("replay", "metadata/request.json", lambda d: _rename_input(d, "picture", "picture.raw")),
    ],
)
def test_facts_of_an_honest_execution_agree(bundles, name, path, change):
    assert verify(_document(bundles[name], path, change), only=("facts",)).faults == ()


def _phase(status: Any) -> Any:
    return next(entry for entry in status["history"] if entry["kind"] == "phase-ended" and entry["phase"] == "execute")


def _rename_input(request: Any, old: str, new: str) -> None:
    for values in (request["inputs"], request["values"]):
        if old in values:
            values[new] = values.pop(old)
    for file in request["files"]:
        file["input"] = new


def test_an_id_with_an_endless_generation_is_no_generation(bundles):
    def change(request: Any) -> None:
        request["relatives"].append({"executionId": f"{EXECUTION_ID}.{'9' * 5000}", "relation": "parent"})

    (fault,) = verify(_document(bundles["replay"], "metadata/request.json", change), only=("facts",)).faults
    assert fault.endswith("the execution itself, as a relative")


def test_an_origin_of_no_package_is_found(bundles):
    def change(instance: Any) -> None:
        instance |= {"packages": {}, "packageOrigins": {"coins": {"url": "https://example.org/coins.git"}}}

    report = verify(_document(bundles["full"], "metadata/instance.json", change), only=("packages",))
    assert report.faults[0] == (
        "packages: metadata/instance.json has the origin of the package 'coins', and not the package"
    )


def test_requirements_of_a_run_without_packages_are_found(bundles):
    report = verify(
        _document(bundles["full"], "metadata/instance.json", lambda d: d.update(packages={})), only=("packages",)
    )
    assert "'code/requirements.txt' has numpy==2.3.1; metadata/instance.json does not" in "".join(report.faults)


def test_a_run_that_never_started_may_have_the_requirements_of_its_code(bundles):
    """Another process, such as a worker's hook, recorded the code."""
    source = _document(bundles["full"], "metadata/instance.json", lambda d: [d.pop(name) for name in {*d} - {"format"}])
    assert verify(source, only=("packages",)).faults == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + data,
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.replace(b"\n", "\u0085".encode()),  # pip reads one line then
        lambda data: data.replace(b"\n", b"\x0b"),
        lambda data: data + b"\n",
        lambda data: data[:-1],
    ],
)
def test_each_package_has_one_line_in_the_requirements(bundles, change):
    data = change(bundles["full"]["code/requirements.txt"])
    assert not verify(forged(bundles["full"], "code/requirements.txt", data), only=("packages",)).passed


def test_the_same_bytes_have_no_difference(bundles):
    def change(verdict: Any) -> None:
        verdict["outputs"][0] |= {"agreement": "same", "by": "table", "words": []}

    report = verify(_document(bundles["replay"], "metadata/verdict.json", change), only=("verdict",))
    assert "has the same bytes, and a difference in table" in report.faults[0]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"agreement": "equal", "by": "bytes"}, "is equal by bytes, which are the same or differ"),
        (
            {"agreement": "equal", "by": "table", "declared": {"tolerance": 0.5}},
            "was compared in a way that metadata/method.json does not declare",
        ),
    ],
)
def test_a_verdict_compares_an_output_as_its_method_declares(bundles, change, fault):
    def changed(verdict: Any) -> None:
        verdict["outputs"][1] |= change

    report = verify(_document(bundles["replay"], "metadata/verdict.json", changed), only=("verdict",))
    assert any(fault in found for found in report.faults)


def test_a_verdict_has_one_judgement_of_each_output(bundles):
    def change(verdict: Any) -> None:
        verdict["outputs"].append(verdict["outputs"][1] | {"agreement": "same", "by": "bytes", "words": []})

    report = verify(_document(bundles["replay"], "metadata/verdict.json", change), only=("verdict",))
    assert report.faults == ("verdict: metadata/verdict.json: 'outputs/regions.csv' is there 2 times",)


def test_a_source_file_that_no_document_lists_is_found(bundles):
    path = "code/flows/json.py"
    report = verify(MemorySource(bundles["full"] | {path: b"import os\n"}), only=("code",))
    assert report.faults == (f"code: {path!r} is present; metadata/method.json does not list it",)


def test_the_scripts_of_a_plan_are_in_no_document(bundles):
    files = bundles["full"] | {"code/plan/1.1/entrypoint.sh": b"true\n"}
    assert verify(MemorySource(files), only=("code",)).passed


def test_a_file_in_inputs_that_is_no_input_is_noted(bundles):
    report = verify(MemorySource(bundles["full"] | {"inputs/picture.png.index": b"1"}), only=("inputs",))
    assert report.passed
    assert report.unchecked == (
        "inputs: 'inputs/picture.png.index' is not a staged input; the Method may have written it",
    )
