"""The crate writer and reader: the RO-Crate validator, the rocrate library, and hostile text."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rocrate.rocrate import ROCrate

from crates import contexts, issues_in, warm_cache
from marks import long_if
from prefect_executions.crate import reader as crate_reader
from prefect_executions.crate import writer as crate_writer
from prefect_executions.crate.collection import CollectedCrate, collect
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import (
    NAMESPACE,
    Agent,
    BundleFile,
    ExecutionRecord,
    Instance,
    Relative,
    method_name,
)
from prefect_executions.executions.summary import RecordSummary, summary_of
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.methods.model import CodeIdentity
from prefect_executions.provenance import writer as prov_writer
from records import (
    EXECUTION_ID,
    NOON,
    OUTPUTS,
    a_cancelled_record,
    a_failed_record,
    a_job_status,
    a_method,
    a_never_started_record,
    a_raised,
    a_record,
    a_request,
    a_staged_input,
    an_agent,
    an_infrastructure,
    an_output,
    contents_of,
    digest,
    files_of,
    lay_out,
    some_steps,
    with_phases,
)

OTHER = "b5bb9d80-14a0-4f9b-a1c7-8f6f1d2c3e4f"
ODD_PATHS = (
    "outputs/with space.csv",
    "outputs/percent%20sign#hash?query.csv",
    "outputs/ünï/cødé.tif",
    "outputs/colon:semi;quote'\".txt",
    "outputs/data/c++.x-odd type",
)

# One case for each way in which a crate can differ for the validator; a second each.
VALIDATED: dict[str, ExecutionRecord] = {
    "completed, with odd names": a_record(
        job_status=a_job_status(
            outputs=[
                *(an_output(path, content) for path, content in OUTPUTS.items()),
                *(an_output(path) for path in ODD_PATHS),
            ]
        )
    ),
    "failed, in a container, no outputs, one input": a_failed_record(
        job_status=a_job_status(Status.FAILED, reason=Reason.ERROR, outputs=()),
        infrastructure=an_infrastructure(
            image="registry.example.org:5000/coins:1.2", image_digest=f"sha256:{'a' * 64}"
        ),
        request=a_request(values={"threshold": 0.3}, files=()),
    ),
    "cancelled, one output, input by reference": a_cancelled_record(
        job_status=a_job_status(
            Status.CANCELLED, outputs=[an_output("outputs/stdout.log", OUTPUTS["outputs/stdout.log"])]
        ),
        request=a_request(files=(a_staged_input(path=None),)),
    ),
    "phases of scripts, that ended well": with_phases(
        a_record(infrastructure=an_infrastructure(image="coins:1.2", image_digest=f"sha256:{'a' * 64}"))
    ),
    "phases of scripts, that failed": with_phases(a_failed_record(), exit_code=137),
    "never started, nobody named, no code, no inputs": a_never_started_record(
        agent=Agent(),
        method=a_method(code=None, description=None, keywords=()),
        request=a_request(values={}, files=(), relatives=()),
    ),
    "agent with an ORCID, relatives, steps": a_record(
        job_status=a_job_status().model_copy(update={"steps": some_steps()}),
        agent=an_agent(claims={"sub": "https://orcid.org/0000-0002-1825-0097", "name": "Josiah Carberry"}),
        request=a_request(
            relatives=[Relative(execution_id=OTHER, relation=kind) for kind in ("parent", "rerun-of", "retry-of")]
        ),
    ),
}

RECORDS: dict[str, ExecutionRecord] = VALIDATED | {
    "usual": a_record(),
    "failed": a_failed_record(),
    "lost": a_never_started_record(Status.FAILED, Reason.LOST),
    "still running": a_record(job_status=a_job_status(Status.EXECUTING, outputs=())),
    "second generation": a_record(job_status=a_job_status(execution_id=f"{EXECUTION_ID}.2")),
    "nothing observed": a_record(agent=Agent(), instance=Instance(), method=a_method(code=CodeIdentity())),
    "the same file twice": a_record(request=a_request(files=(a_staged_input(), a_staged_input("mask")))),
    "two files of one name": a_record(request=a_request(files=(a_staged_input(), a_staged_input("picture", b"x")))),
    "a long value": a_record(request=a_request(values={"table": "ä" * 100_000}, files=())),
    "a lone surrogate": a_record(request=a_request(values={"name": "file-\udc80"}, files=())),
}

text = st.text() | st.sampled_from(
    ("", " ", "\x00", "\r\n", "@id", "a/../b", "%2F", "#", "http://a", "\ufffe", "\\ud800")
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


def lay_out_crate(folder: Path, record: ExecutionRecord) -> Path:
    """Write the whole bundle of *record*, PROV and crate included."""
    contents = contents_of(record)
    stream = io.BytesIO()
    prov_writer.write(record, files_of(contents), stream)
    files = lay_out(folder, contents | {"metadata/provo.xml": stream.getvalue()})
    (folder / "ro-crate-metadata.json").write_bytes(crate_writer.build(record, files))
    return folder


def read(document: bytes) -> RecordSummary:
    return crate_reader.read(document).summary


def entities(data: bytes) -> dict[str, dict[str, Any]]:
    return {entity["@id"]: entity for entity in json.loads(data)["@graph"]}


def action(data: bytes) -> dict[str, Any]:
    (found,) = (entity for entity in entities(data).values() if entity["@type"] == "CreateAction")
    return found


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return warm_cache(tmp_path_factory.mktemp("validator"))


@pytest.mark.parametrize("name", long_if(VALIDATED, VALIDATED.keys() - {"completed, with odd names"}))
def test_the_validator_finds_no_required_and_no_recommended_issue(name, tmp_path, cache):
    assert issues_in(lay_out_crate(tmp_path, VALIDATED[name]), cache) == []


@pytest.mark.long
def test_the_validator_finds_a_missing_member(tmp_path, cache):
    folder = lay_out_crate(tmp_path, a_record())
    (folder / "outputs/regions.csv").unlink()
    document = folder / "ro-crate-metadata.json"
    document.write_text(re.sub(r'"endTime": "[^"]*", ', "", document.read_text()))
    found = "\n".join(issues_in(folder, cache))
    assert "REQUIRED" in found
    assert "outputs/regions.csv" in found
    assert "RECOMMENDED" in found
    assert "endTime" in found


def test_the_rocrate_library_opens_the_crate(tmp_path):
    opened = ROCrate(lay_out_crate(tmp_path, VALIDATED["completed, with odd names"]))
    assert opened.root_dataset["license"]["name"] == "No license was stated"
    (run,) = opened.get_by_type("CreateAction")
    assert run["instrument"]["version"] == "1.2.0"
    assert {entity["name"] for entity in run["result"] if entity.type == "File"} == {
        output.path.removeprefix("outputs/") for output in VALIDATED["completed, with odd names"].job_status.outputs
    }


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS.keys())
@pytest.mark.parametrize("there", [True, False], ids=["with its files", "without files"])
def test_the_summary_of_every_outcome_is_read_back(record, there):
    outputs = [BundleFile(output.path, output.sha256, output.size) for output in record.job_status.outputs]
    inputs = {file.path: BundleFile(file.path, file.sha256, file.size) for file in record.request.files if file.path}
    files = (*outputs, *inputs.values()) if there else ()
    assert read(crate_writer.build(record, files)) == summary_of(record)
    assert crate_writer.build(record, files) == crate_writer.build(record, files)


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS.keys())
def test_every_term_is_in_the_contexts(record):
    known = set[str]()
    for context in contexts().values():
        known |= json.loads(context)["@context"].keys()
    for entity in entities(crate_writer.build(record, ())).values():
        assert entity.keys() - {"@id", "@type"} <= known
        assert entity["@type"] in known


@given(
    paths=st.lists(text, unique=True, max_size=4),
    inputs=st.dictionaries(text, values, max_size=4),
    staged=st.lists(st.tuples(text, text), max_size=3),
    named=st.tuples(text, text, text, text),
)
def test_hostile_names_and_values_are_read_back(paths, inputs, staged, named):
    identity, version, title, name = named
    hostile = a_record(
        method=a_method(id=identity, version=version, title=title),
        request=a_request(
            values=inputs,
            files=[a_staged_input(key, origin=origin, name=origin, path=f"inputs/{key}") for key, origin in staged],
        ),
        job_status=a_job_status(outputs=[an_output(f"outputs/{path}", path.encode()) for path in paths], message=name),
        agent=an_agent(claims={"sub": name, "name": name}),
    )
    files = [BundleFile(output.path, output.sha256, output.size) for output in hostile.job_status.outputs[:2]]
    data = crate_writer.build(hostile, files)
    assert read(data) == summary_of(hostile)
    for entity in entities(data).values():
        assert re.fullmatch(r"[A-Za-z0-9._~%/:#-]+", entity["@id"])


def test_each_entity_has_a_line_of_its_own():
    text = '}, null, {"@id": "#planted"'
    record = a_record(request=a_request(values={"text": text}, files=()))
    lines = crate_writer.build(record, ()).decode().splitlines()
    read_back = [json.loads(line.removesuffix(",")) for line in lines[1:-1]]
    assert read_back == json.loads("\n".join(lines))["@graph"]
    assert [entity["value"] for entity in read_back if entity["@id"] == "#value.text"] == [text]


@given(text)
def test_any_execution_id_is_read_back(execution_id):
    odd = a_record(job_status=a_job_status(execution_id=execution_id))
    assert read(crate_writer.build(odd, ())).execution_id == execution_id


def test_unobserved_facts_are_absent():
    entity = action(crate_writer.build(a_never_started_record(agent=Agent()), ()))
    assert entity.keys().isdisjoint({"startTime", "environment", "containerImage"})
    assert entities(crate_writer.build(a_record(agent=Agent()), ()))["#agent"] == {"@id": "#agent", "@type": "Person"}


def test_only_an_execution_that_did_not_complete_has_an_error():
    raised = a_raised()
    assert "error" not in action(crate_writer.build(a_record(), ()))
    assert action(crate_writer.build(a_failed_record(), ()))["error"] == f"{raised.type}: {raised.message}"
    assert action(crate_writer.build(a_cancelled_record(), ()))["error"] == "cancelled: stopped by alice"
    lost = a_never_started_record(Status.FAILED, Reason.LOST)
    assert action(crate_writer.build(lost, ()))["error"] == "lost"


def test_times_are_cut_to_milliseconds_with_an_offset():
    assert action(crate_writer.build(a_record(), ()))["startTime"] == "2026-09-22T12:00:02.123+00:00"


def test_a_string_and_a_number_with_equal_text_are_distinct():
    number = a_record(request=a_request(values={"limit": 1}, files=()))
    string = a_record(request=a_request(values={"limit": "1"}, files=()))
    assert read(crate_writer.build(number, ())).inputs != read(crate_writer.build(string, ())).inputs


def test_the_last_value_of_each_metric_is_a_result():
    crate = entities(crate_writer.build(a_record(), ()))
    measured = {
        crate[ref["@id"]]["name"]: crate[ref["@id"]].get("value")
        for ref in action(crate_writer.build(a_record(), ()))["result"]
    }
    assert measured["loss"] == "0.25"
    assert measured["regions"] == "24"


@pytest.mark.parametrize(
    ("image", "registry", "name"),
    [
        ("python:3.11", "docker.io", "python:3.11"),
        ("team/coins", "docker.io", "team/coins"),
        ("ghcr.io/team/coins:1", "ghcr.io", "team/coins:1"),
        ("localhost/coins", "localhost", "coins"),
        ("registry:5000/coins", "registry:5000", "coins"),
    ],
)
def test_an_image_has_its_registry(image, registry, name):
    entity = entities(crate_writer.build(a_record(infrastructure=an_infrastructure(image=image)), ()))["#image"]
    assert (entity["registry"], entity["name"]) == (registry, name)


def test_provenance_and_logs_are_about_the_execution():
    record = a_record()
    crate = entities(crate_writer.build(record, files_of(contents_of(record) | {"metadata/provo.xml": b""})))
    for path in ("metadata/provo.xml", "outputs/stdout.log", "outputs/stderr.log", "metadata/jobStatus.json"):
        assert crate[path]["about"] == {"@id": f"#run.{EXECUTION_ID}"}
    assert "about" not in crate["outputs/regions.csv"]


def test_the_usage_is_described_with_units():
    crate = entities(crate_writer.build(a_record(), ()))
    usage = [crate[ref["@id"]] for ref in action(crate_writer.build(a_record(), ()))["resourceUsage"]]
    assert [(entity["name"], entity["value"], entity["unitCode"].rpartition("/")[2]) for entity in usage] == [
        ("wallSeconds", "4.5", "SEC"),
        ("cpuSeconds", "4.25", "SEC"),
        ("peakMemory", "123456789", "BYTE"),
    ]
    assert all(entity["propertyID"].endswith(f"terms#{entity['name']}") for entity in usage)


def test_the_method_refers_to_its_code_interpreter_and_packages():
    contents = contents_of(a_record()) | {"code/requirements.txt": b"numpy==2.3.1\nprefect==3.8.8\n"}
    crate = entities(crate_writer.build(a_record(), files_of(contents)))
    method = crate[action(crate_writer.build(a_record(), ()))["instrument"]["@id"]]
    assert method["hasPart"] == {"@id": "code/flows/coins.py"}
    python, packages = (crate[ref["@id"]] for ref in method["softwareRequirements"])
    assert (python["@type"], python["name"], python["version"]) == ("SoftwareApplication", "CPython", "3.11.9")
    assert (packages["@type"], packages["@id"]) == ("File", "code/requirements.txt")


def test_code_that_is_not_in_the_bundle_is_not_referred_to():
    method = entities(crate_writer.build(a_record(instance=Instance()), ()))
    assert {"hasPart", "softwareRequirements"}.isdisjoint(method[f"{NAMESPACE}{method_name(a_method())}"])


def test_a_step_names_the_flow_run_that_it_called():
    called = a_record(job_status=a_job_status().model_copy(update={"steps": some_steps()}))
    crate = entities(crate_writer.build(called, ()))
    (step,) = (entity for entity in crate.values() if "subjectOf" in entity and entity["@type"] == "Action")
    flow_run = crate[step["subjectOf"]["@id"]]
    assert flow_run["identifier"] == str(some_steps()[2].flow_run_id)
    assert flow_run["@id"] == f"{NAMESPACE}run.{flow_run['identifier']}", "the id that the crate of that execution has"


def in_format_1(record: ExecutionRecord) -> ExecutionRecord:
    older = {name: document.model_copy(update={"format": 1}) for name, document in vars(record).items() if document}
    return replace(record, **older)


@pytest.mark.parametrize("name", ["agent with an ORCID, relatives, steps", "usual"])
def test_a_crate_of_format_1_has_nothing_of_format_2(name):
    old = crate_writer.build(in_format_1(RECORDS[name]), files_of(contents_of(a_record())))
    assert b"(format 1)" in old
    for term in (b"resourceUsage", b"softwareRequirements", b"/python/", b'"hasPart": {"@id": "code', b"Flow run"):
        assert term not in old


def some_crates() -> list[CollectedCrate]:
    agents = an_agent(), an_agent(), an_agent(claims={"sub": "bob"}), Agent()
    orcid = an_agent(claims={"sub": "https://orcid.org/0000-0002-1825-0097", "name": "Josiah Carberry"})
    return [CollectedCrate(f"run-{number}", NOON, agent) for number, agent in enumerate((*agents, orcid))]


def test_the_authors_of_a_collection_are_the_known_requesters():
    crate = entities(collect(some_crates()))
    authors = [crate[ref["@id"]] for ref in crate["./"]["author"]]
    assert [author["name"] for author in authors] == ["Alice", "bob", "Josiah Carberry"]
    assert authors[2]["@id"] == "https://orcid.org/0000-0002-1825-0097"
    by_folder = [crate[f"run-{number}/"].get("author", {}).get("@id") for number in range(5)]
    assert by_folder == [authors[0]["@id"], authors[0]["@id"], authors[1]["@id"], None, authors[2]["@id"]]


def test_a_collection_without_known_requesters_says_so():
    assert entities(collect([CollectedCrate("run-0", None, Agent())]))["./"]["author"] == {"@id": "#not-stated"}


def test_ten_thousand_outputs_are_written_and_read():
    outputs = [an_output(f"outputs/tile-{number}.csv", b"%d" % number) for number in range(10_000)]
    many = a_record(job_status=a_job_status(outputs=outputs))
    files = [BundleFile(output.path, output.sha256, output.size) for output in outputs]
    assert read(crate_writer.build(many, files)) == summary_of(many)


USUAL = crate_writer.build(a_record(), files_of(contents_of(a_record()))).decode()


@given(st.integers(min_value=0))
def test_a_truncated_document_is_refused(cut):
    document = USUAL.rstrip().encode()
    with pytest.raises(BundleError):
        read(document[: cut % len(document)])


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"@graph": {}}',
        b'{"@graph": [1]}',
        b'{"@graph": []}',
        b'{"@graph": [{"@id": "a"}, {"@id": "a"}]}',
        b"[" * 100_000,
        b'{"@graph": [], "@graph": []}',
        b'{"@graph": [NaN]}',
    ],
    ids=range(11),
)
def test_an_invalid_crate_is_refused(document):
    with pytest.raises(BundleError, match=r"^ro-crate-metadata\.json: "):
        read(document)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"endTime": "2026-09-22T12:00:08.123', '"endTime": "2026-09-22T12:00:08.124'),
        ('"actionStatus": "http://schema.org/Completed', '"actionStatus": "http://schema.org/Failed'),
        ('"value": "COMPLETED"', '"value": "FAILED"'),
        ('"@type": "CreateAction"', '"@type": "UpdateAction"'),
        ('"mentions": {', '"mentions": "#a", "keywords": {'),
        (f'"identifier": "{EXECUTION_ID}", "instrument"', f'"identifier": "{OTHER}", "instrument"'),
        ('"startTime": "2026-09-22T12:00:02.123+00:00"', '"startTime": "2026-09-22T12:00:02.123"'),
        ('"startTime": "2026-09-22T12:00:02.123+00:00"', '"startTime": 0'),
        ('"startTime": "2026-09-22T12:00:02.123+00:00"', '"startTime": "yesterday"'),
        ('{"@id": "#value.threshold"}', '{"@id": "#value.other"}'),
        ('"value": "0.3"', '"value": "0.3.1"'),
        ('"value": "0.3"', '"value": 0.3'),
        ('"value": "0.3"', '"value": "0.3", "value": "0.4"'),
        (f'"sha256": "{digest(OUTPUTS["outputs/regions.csv"])}"', '"sha256": "0"'),
        ('"identifier": "segment-coins", ', ""),
        ('"instrument": {', '"instrument": [], "agent": {'),
    ],
)
def test_a_document_that_contradicts_itself_is_refused(old, new):
    assert old in USUAL
    with pytest.raises(BundleError, match=r"^ro-crate-metadata\.json: "):
        read(USUAL.replace(old, new, 1).encode())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"value": "0.3"', '"value": "0.4"'),
        ('"name": "threshold", "exampleOfWork"', '"name": "limit", "exampleOfWork"'),
        ('"version": "1.2.0"', '"version": "1.2.1"'),
        (digest(OUTPUTS["outputs/regions.csv"]), "0" * 64),
        (
            '"result": [{"@id": "outputs/regions.csv"}, ',
            '"result": [',
        ),
    ],
    ids=range(5),
)
def test_a_forged_fact_changes_the_summary(old, new):
    assert old in USUAL
    assert read(USUAL.replace(old, new, 1).encode()) != summary_of(a_record())
