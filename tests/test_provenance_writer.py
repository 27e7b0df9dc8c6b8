"""The PROV writer and reader: W3C's schema, two other readers, and hostile text."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from datetime import timedelta
from importlib.resources import as_file, files
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree
from prov.model import ProvDocument
from rdflib import PROV, RDF, Graph, URIRef

from prefect_executions.errors import BundleError, RequestError
from prefect_executions.executions.record import NAMESPACE, Agent, ExecutionRecord, Infrastructure, Instance, Relative
from prefect_executions.executions.summary import RecordSummary, summary_of
from prefect_executions.lifecycle.history import CLOCK_SKEW
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.methods.model import CodeIdentity
from prefect_executions.provenance import reader as prov_reader
from prefect_executions.provenance import vocabulary
from prefect_executions.provenance.convert import convert
from prefect_executions.provenance.times import time_faults
from prefect_executions.provenance.vocabulary import VALUE_LIMIT, as_text, from_text
from prefect_executions.provenance.writer import write
from records import (
    EXECUTION_ID,
    NOON,
    a_cancelled_record,
    a_failed_record,
    a_job_status,
    a_method,
    a_never_started_record,
    a_record,
    a_request,
    a_staged_input,
    an_agent,
    an_output,
    contents_of,
    digest,
    files_of,
    some_steps,
    with_phases,
)

OTHER = "b5bb9d80-14a0-4f9b-a1c7-8f6f1d2c3e4f"

RECORDS: dict[str, ExecutionRecord] = {
    "completed": a_record(),
    "failed": a_failed_record(),
    "timed out": a_failed_record(Reason.TIMED_OUT),
    "cancelled": a_cancelled_record(),
    "never started": a_never_started_record(),
    "lost": a_never_started_record(Status.FAILED, Reason.LOST),
    "still running": a_record(job_status=a_job_status(Status.EXECUTING, outputs=())),
    "no outputs": a_record(job_status=a_job_status(outputs=())),
    "no inputs": a_record(request=a_request(values={}, files=(), relatives=())),
    "nobody named": a_record(agent=Agent()),
    "by a schedule": a_record(agent=Agent(source="prefect")),
    "no code": a_record(method=a_method(code=None)),
    "second generation": a_record(job_status=a_job_status(execution_id=f"{EXECUTION_ID}.2")),
    "reused": a_record(job_status=a_job_status().model_copy(update={"cached_from": OTHER})),
    "steps": a_record(job_status=a_job_status().model_copy(update={"steps": some_steps()})),
    "phases": with_phases(a_record()),
    "phases that failed": with_phases(a_failed_record(), exit_code=137),
    "relatives": a_record(
        request=a_request(
            relatives=[Relative(execution_id=OTHER, relation=kind) for kind in ("parent", "rerun-of", "retry-of")]
        )
    ),
}

HOSTILE = (
    "",
    " ",
    "\x00",
    "\r\n\t",
    "]]>",
    "<b a='\"'>&amp;</b>",
    "_x0041_",
    "_x0041\x01",
    "_x005F_x0001_",
    "\x01x0041_",
    "\ufffe\uffff",
    "../../etc/passwd",
    "9 lives/ä:ö%20#?.tif",
    "\x1b[31m",
    "\u202egnp.exe",
    "\N{MATHEMATICAL FRAKTUR CAPITAL U}" * 300,
)
text = st.text() | st.sampled_from(HOSTILE)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


def read(document: bytes) -> RecordSummary:
    return prov_reader.read(document).summary


def as_provenance(record: ExecutionRecord) -> bytes:
    stream = io.BytesIO()
    write(record, files_of(contents_of(record)) if record in RECORDS.values() else (), stream)
    return stream.getvalue()


def changed(old: str, new: str) -> bytes:
    """Return the PROV of a usual record with one change, which must be possible."""
    document = as_provenance(RECORDS["completed"]).decode()
    assert old in document
    return document.replace(old, new, 1).encode()


@pytest.fixture(scope="session")
def w3c_schema() -> etree.XMLSchema:
    with as_file(files("prov") / "tests/schemas") as folder:
        return etree.XMLSchema(etree.parse(folder / "prov.xsd"))


@pytest.fixture(params=RECORDS.values(), ids=RECORDS.keys())
def record(request: pytest.FixtureRequest) -> ExecutionRecord:
    found: ExecutionRecord = request.param
    return found


def test_every_outcome_is_valid_against_the_schema_of_w3c(record, w3c_schema):
    w3c_schema.assertValid(etree.fromstring(as_provenance(record)))


def test_every_outcome_is_valid_for_xmllint(record, tmp_path, need_program):
    (tmp_path / "provo.xml").write_bytes(as_provenance(record))
    with as_file(files("prov") / "tests/schemas") as folder:
        command = [need_program("xmllint"), "--nonet", "--noout", "--schema", folder / "prov.xsd", "provo.xml"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_outcome_satisfies_the_constraints_that_the_prov_library_knows(record):
    document = ProvDocument.deserialize(io.BytesIO(as_provenance(record)), format="xml")
    assert len(document.unified().get_records()) == len(document.get_records())


def test_the_summary_of_every_outcome_is_read_back(record):
    assert read(as_provenance(record)) == summary_of(record)


def test_equal_records_have_equal_bytes(record):
    assert as_provenance(record) == as_provenance(record)


def test_times_of_a_record_do_not_contradict_each_other(record):
    assert list(time_faults(as_provenance(record))) == []


def test_another_reader_finds_role_place_size_digest_and_type_of_each_output():
    document = ProvDocument.deserialize(io.BytesIO(as_provenance(a_record())), format="xml")
    roles = {
        str(dict(record.formal_attributes)[record.FORMAL_ATTRIBUTES[0]]): record.get_attribute("prov:role")
        for record in document.get_records()
        if record.get_type().localpart == "Generation"
    }
    found = {
        (
            *entity.get_attribute("prov:location"),
            *roles[str(entity.identifier)],
            *entity.get_attribute("exe:sha256"),
            *(size.value for size in entity.get_attribute("exe:byteCount")),
            *entity.get_attribute("exe:mediaType"),
        )
        for entity in document.get_records()
        if str(entity.identifier) in roles
    }
    assert found == {
        (output.path, output.path.removeprefix("outputs/"), output.sha256, str(output.size), output.media_type)
        for output in a_record().job_status.outputs
    }


def test_unobserved_facts_are_absent():
    bare = a_record(
        agent=Agent(),
        infrastructure=Infrastructure(type="direct"),
        instance=Instance(),
        job_status=a_job_status(Status.FAILED, started=False),
        method=a_method(code=CodeIdentity()),
    )
    document = as_provenance(bare).decode()
    for absent in ("startTime", "SoftwareAgent", "Environment", "codeSha256", "reason", "subject", "wasGeneratedBy"):
        assert absent not in document
    assert document.count("<prov:agent prov:id=") == 1


def test_two_outputs_of_the_same_content_are_two_entities():
    twins = [an_output("outputs/a.csv", b"x"), an_output("outputs/b.csv", b"x")]
    assert read(as_provenance(a_record(job_status=a_job_status(outputs=twins)))).outputs == {
        ("outputs/a.csv", digest(b"x")),
        ("outputs/b.csv", digest(b"x")),
    }


def test_one_input_may_have_the_same_file_twice():
    twins = a_record(request=a_request(files=(a_staged_input(), a_staged_input())))
    assert read(as_provenance(twins)) == summary_of(twins)


def test_a_long_value_is_written_as_its_digest():
    long = a_record(request=a_request(values={"table": "x" * VALUE_LIMIT}, files=()))
    document = as_provenance(long)
    assert len(document) < VALUE_LIMIT
    assert read(document) == summary_of(long)


def test_a_rerun_is_informed_and_a_parent_starts():
    document = as_provenance(RECORDS["relatives"]).decode()
    assert document.count("<prov:wasInformedBy>") == 2
    assert document.count("<prov:wasDerivedFrom>") == 2
    assert document.count("<prov:wasStartedBy>") == 1
    assert f'<prov:starter prov:ref="px:run.{OTHER}"/>' in document


def test_a_schedule_is_not_a_person():
    assert "prov:Person" in as_provenance(a_record(agent=Agent())).decode()
    assert "prov:Person" not in as_provenance(RECORDS["by a schedule"]).decode()


@given(st.text(alphabet=st.characters(codec=None)) | st.sampled_from(HOSTILE))
def test_any_text_survives_xml(any_text):
    escaped = as_text(any_text)
    assert from_text(escaped) == any_text
    element = etree.Element("a")
    element.text = escaped
    assert (etree.fromstring(etree.tostring(element)).text or "") == escaped


@given(
    paths=st.lists(text, unique=True, max_size=4),
    inputs=st.dictionaries(text, values, max_size=4),
    staged=st.lists(st.tuples(text, text), max_size=3),
    named=st.tuples(text, text, text, text),
)
def test_hostile_names_and_values_are_valid_and_read_back(w3c_schema, paths, inputs, staged, named):
    identity, version, title, name = named
    hostile = a_record(
        method=a_method(id=identity, version=version, title=title),
        request=a_request(
            values=inputs,
            files=[a_staged_input(key, origin=origin, name=origin) for key, origin in staged],
        ),
        job_status=a_job_status(outputs=[an_output(path, path.encode()) for path in paths], message=name),
        agent=an_agent(claims={"sub": name, "name": name}),
    )
    document = as_provenance(hostile)
    w3c_schema.assertValid(etree.fromstring(document))
    ProvDocument.deserialize(io.BytesIO(document), format="xml").unified()
    assert read(document) == summary_of(hostile)


@given(text)
def test_any_execution_id_is_read_back(execution_id):
    odd = a_record(job_status=a_job_status(execution_id=execution_id))
    assert read(as_provenance(odd)).execution_id == execution_id


def test_a_lone_surrogate_in_a_value_is_read_back():
    odd = a_record(request=a_request(values={"name": "file-\udc80"}, files=()))
    assert read(as_provenance(odd)) == summary_of(odd)


@given(st.integers(min_value=0))
def test_a_truncated_document_is_refused(cut):
    document = as_provenance(RECORDS["completed"]).rstrip()
    with pytest.raises(BundleError):
        read(document[: cut % len(document)])


LAUGHS = '<!DOCTYPE d [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {here} "{f"&{there};" * 10}">' for there, here in zip("abcdefgh", "bcdefghi", strict=True)
)


def many_attributes(count: int) -> str:
    return " ".join(f"a{number}='>'" for number in range(count))


def document_in(encoding: str) -> bytes:
    text = as_provenance(RECORDS["completed"]).decode().partition("?>")[2].strip()
    return f'<?xml version="1.0" encoding="{encoding}"?>{text}'.encode(encoding)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"not XML",
        b"\xff\xfe\x00",
        b"<a/>",
        b'<document xmlns="urn:other"/>',
        b'<a><p:document xmlns:p="http://www.w3.org/ns/prov#"/></a>',
        (LAUGHS + "]><d>&i;</d>").encode(),
        changed("<prov:document", '<!DOCTYPE prov:document [<!ENTITY a "x">]><prov:document'),
        changed("<prov:document", "<!DOCTYPE prov:document><prov:document"),
        changed("<prov:document", '<!DOCTYPE prov:document SYSTEM "http://127.0.0.1:9/a.dtd"><prov:document'),
        changed("COMPLETED", "&undeclared;"),
        b"<a>" * 10_000,
        changed("<exe:status>", "<exe:status>" + "<a>" * 300 + "</a>" * 300),
        changed("<exe:status>", f"<exe:status {many_attributes(200_000)}>"),
        changed("<exe:status>", f"<exe:status {many_attributes(1001)}>"),
        changed("<prov:document", "<!-- > --><?a <!?><!DOCTYPE prov:document><prov:document"),
        document_in("UTF-16"),
        document_in("UTF-16-LE"),
        document_in("UTF-7"),
        document_in("CP037"),
        document_in("ISO-8859-1"),
    ],
    ids=range(21),
)
def test_an_invalid_prov_document_is_refused(document):
    for ask in (read, lambda data: list(time_faults(data)), lambda data: convert(data, "json")):
        with pytest.raises(BundleError, match=r"^metadata/provo\.xml: "):
            ask(document)


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("declaration", [b"", b"<?xml version='1.0'?>", b'<?xml version="1.0" encoding="utf-8" ?>'])
def test_a_document_in_utf_8_is_read_however_it_begins(start, declaration):
    document = as_provenance(RECORDS["completed"]).partition(b"?>")[2].strip()
    document = document.replace(b"<prov:document", b"<!-- <!DOCTYPE a> --><?a <!DOCTYPE a>?><prov:document", 1)
    assert read(start + declaration + document).status == Status.COMPLETED


def test_text_that_looks_like_many_attributes_is_read():
    text = "a='1' " * 2000
    document = changed("</prov:document>", f"<!-- {text} --><?a {text}?></prov:document>")
    assert read(document).status == Status.COMPLETED


FORGERIES: dict[str, tuple[str, str]] = {
    "two statuses": ("<exe:status>", "<exe:status>FAILED</exe:status><exe:status>"),
    "an element in the status": ("COMPLETED<", "COMPLETED<exe:not/><"),
    "no status": ("<exe:status>COMPLETED</exe:status>", ""),
    "no time": ("2026-09-22T12:00:02.123456+00:00", "yesterday"),
    "a time without offset": ("2026-09-22T12:00:02.123456+00:00", "2026-09-22T12:00:02"),
    "a digest that is none": (digest(b"label,area\n1,2604\n"), "0" * 63),
    "an output that nothing generated": ("<prov:role>regions.csv</prov:role>", "<prov:role>a</prov:role>"),
    "another execution's id": (f"<exe:executionId>{EXECUTION_ID}<", f"<exe:executionId>{OTHER}<"),
    "a value that is no JSON": ("<prov:value>0.3<", "<prov:value>0.3.1<"),
    "a value that says a member twice": ("<prov:value>0.3<", '<prov:value>{"a":1,"a":2}<'),
    "a value that nests too deep": ("<prov:value>0.3<", f"<prov:value>{'[' * 100_000}<"),
    "a value that is not a number": ("<prov:value>0.3<", "<prov:value>NaN<"),
    "a prefix with two meanings": ("<exe:status>", '<exe:status xmlns:px="urn:other">'),
    "no Method": ("<exe:methodId>segment-coins</exe:methodId>", ""),
    "two places of an output": ("<prov:location>outputs/", "<prov:location>a</prov:location><prov:location>outputs/"),
}


@pytest.mark.parametrize(("old", "new"), FORGERIES.values(), ids=FORGERIES.keys())
def test_a_document_that_contradicts_itself_is_refused(old, new):
    document = changed(old, new)
    if "regions.csv" in old:
        document = document.replace(b"wasGeneratedBy", b"wasInvalidatedBy")
    with pytest.raises(BundleError):
        read(document)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("COMPLETED", "FAILED"),
        ("12:00:02.123456", "11:00:02.123456"),
        ("12:00:08.123456", "12:00:08.124456"),
        ("<prov:value>0.3<", "<prov:value>0.4<"),
        ("<prov:role>threshold<", "<prov:role>limit<"),
        ("<prov:location>outputs/regions.csv<", "<prov:location>outputs/other.csv<"),
        (digest(b"label,area\n1,2604\n"), "0" * 64),
        ("<exe:version>1.2.0<", "<exe:version>1.2.1<"),
    ],
)
def test_a_forged_fact_changes_the_summary(old, new):
    assert read(changed(old, new)) != summary_of(RECORDS["completed"])


def test_a_comment_cannot_hide_a_part_of_the_status():
    assert read(changed("COMPLETED", "COMP<!-- x -->LETED")).status == "COMPLETED"


def late(seconds: float) -> str:
    return (NOON + timedelta(seconds=seconds)).isoformat(timespec="microseconds")


USAGE = '<prov:used><prov:activity prov:ref="px:run.{0}"/><prov:entity prov:ref="here:v.d39f28698aea9a54"/>'
FAR = CLOCK_SKEW.total_seconds() * 2


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (late(2), late(FAR), "ended at"),
        (
            USAGE.format(EXECUTION_ID),
            f"{USAGE.format(EXECUTION_ID)}<prov:time>2020-01-01T00:00:00Z</prov:time>",
            "was used at 2020-01-01",
        ),
        ("<prov:role>regions.csv<", f"<prov:time>{late(FAR)}</prov:time><prov:role>regions.csv<", "ended at"),
        (
            "</prov:document>",
            (
                '<prov:wasDerivedFrom><prov:generatedEntity prov:ref="here:g"/><prov:usedEntity prov:ref="here:u"/>'
                '</prov:wasDerivedFrom><prov:used><prov:activity prov:ref="here:a"/><prov:entity prov:ref="here:u"/>'
                "<prov:time>2026-01-02T00:00:00Z</prov:time></prov:used>"
                '<prov:wasGeneratedBy><prov:entity prov:ref="here:g"/>'
                "<prov:time>2026-01-01T00:00:00Z</prov:time></prov:wasGeneratedBy></prov:document>"
            ),
            "/g was generated at 2026-01-01T00:00:00+00:00, before ",
        ),
        (
            "</prov:document>",
            (
                '<prov:used><prov:activity prov:ref="here:a"/><prov:entity prov:ref="here:u"/>'
                "<prov:time>2026-01-01T00:00:00Z</prov:time></prov:used>"
                '<prov:wasGeneratedBy><prov:entity prov:ref="here:u"/>'
                "<prov:time>2026-01-02T00:00:00Z</prov:time></prov:wasGeneratedBy></prov:document>"
            ),
            "/u was used at 2026-01-01T00:00:00+00:00, before ",
        ),
    ],
    ids=["end before start", "use before start", "generation after end", "derived before used", "used before made"],
)
def test_times_that_contradict_each_other_are_reported(w3c_schema, old, new, fault):
    document = changed(old, new)
    w3c_schema.assertValid(etree.fromstring(document))
    found = list(time_faults(document))
    assert len(found) == 1
    assert fault in found[0]


def test_the_difference_of_two_clocks_is_allowed():
    assert list(time_faults(changed(late(2), late(60)))) == []


@pytest.mark.long
def test_ten_thousand_outputs_are_written_and_read():
    outputs = [an_output(f"outputs/tile-{number}.csv", b"%d" % number) for number in range(10_000)]
    many = a_record(job_status=a_job_status(outputs=outputs))
    assert read(as_provenance(many)) == summary_of(many)


def test_the_document_is_written_in_parts():
    class Parts(io.BytesIO):
        largest = 0

        def writelines(self, lines: Any) -> None:
            for line in lines:
                self.largest = max(self.largest, len(line))

    parts = Parts()
    outputs = [an_output(f"outputs/tile-{number}.csv") for number in range(1000)]
    write(a_record(job_status=a_job_status(outputs=outputs)), (), parts)
    assert parts.largest < 4096


@pytest.mark.filterwarnings("ignore:Dataset:DeprecationWarning")  # rdflib deprecates what its own writer uses
def test_each_form_can_be_read_by_its_own_reader(need_program):
    need_program("dot")
    document = as_provenance(RECORDS["completed"])
    assert convert(document, "xml") == document
    assert EXECUTION_ID in json.dumps(json.loads(convert(document, "json")))
    assert ProvDocument.deserialize(io.BytesIO(convert(document, "n")), format="provn") == ProvDocument.deserialize(
        io.BytesIO(document), format="xml"
    )
    graph = Graph().parse(convert(document, "ttl"), format="turtle")
    assert URIRef(f"{NAMESPACE}run.{EXECUTION_ID}") in set(graph.subjects(RDF.type, PROV.Activity))
    assert etree.fromstring(convert(document, "svg")).tag == "{http://www.w3.org/2000/svg}svg"


QUERIES = {
    "?run prov:used ?input . ?input a exe:InputFile": 1,
    "?output prov:wasGeneratedBy ?run . ?run a exe:Execution . ?output a exe:Output": 4,
    "?run prov:wasAssociatedWith ?agent . ?agent a prov:Person": 1,
    "?run prov:wasAssociatedWith ?agent . ?agent a prov:SoftwareAgent": 1,
    "?worker prov:actedOnBehalfOf ?person . ?person a prov:Person": 1,
    "?run prov:wasInformedBy ?earlier . ?earlier a exe:Execution": 1,
    "?request prov:wasDerivedFrom ?earlier . ?earlier a exe:Request": 1,
    "?step prov:wasInfluencedBy ?run . ?step a exe:Step . ?run a exe:Execution": 4,
    "?phase prov:used ?image . ?phase a exe:Phase . ?image a exe:ContainerImage": 2,
}


def test_a_query_finds_each_relation_by_its_plain_property():
    record = with_phases(a_record(job_status=a_job_status().model_copy(update={"steps": some_steps()})))
    stream = io.BytesIO()
    write(record, files_of(contents_of(a_record())), stream)
    graph = Graph().parse(data=convert(stream.getvalue(), "ttl"), format="turtle")
    prefixes = f"PREFIX prov: <{PROV}> PREFIX exe: <{vocabulary.TERMS}> "
    found = {query: len(graph.query(f"{prefixes} SELECT * {{ {query} }}")) for query in QUERIES}
    assert found == QUERIES


def test_every_qualified_relation_has_its_plain_triple(record):
    graph = Graph().parse(data=convert(as_provenance(record), "ttl"), format="turtle")
    for qualified, influencer, plain in (
        ("qualifiedUsage", "entity", "used"),
        ("qualifiedGeneration", "activity", "wasGeneratedBy"),
        ("qualifiedAssociation", "agent", "wasAssociatedWith"),
    ):
        pairs = {
            (subject, other)
            for subject, node in graph.subject_objects(PROV[qualified])
            for other in graph.objects(node, PROV[influencer])
        }
        assert pairs == set(graph.subject_objects(PROV[plain]))


def test_a_type_uses_a_prefix_only_after_an_element_name_has_used_it(record):
    """The rule of ProvToolbox's reader (DeserializerUtil and its key deserializer), for every QName in a value."""
    known = {"prov", "xsd", "xsi"}
    for element in etree.fromstring(as_provenance(record)).iter():
        known.add(element.prefix)
        known |= {value.partition(":")[0] for name, value in element.attrib.items() if name.endswith(("}id", "}ref"))}
        if element.get("{http://www.w3.org/2001/XMLSchema-instance}type") == "xsd:QName":
            assert element.text.partition(":")[0] in known, element.text


def test_format_2_describes_the_bundle_repository_place_and_machine():
    document = as_provenance(RECORDS["completed"]).decode()
    for part in (
        '<prov:type xsi:type="xsd:QName">prov:Bundle</prov:type><exe:bundleFormat xsi:type="xsd:long">2<',
        '<exe:dirty xsi:type="xsd:boolean">false</exe:dirty>',
        "<exe:branch>main</exe:branch>",
        "<exe:workQueue>default</exe:workQueue>",
        "<exe:os>Linux</exe:os>",
        '<exe:memory xsi:type="xsd:long">8589934592</exe:memory>',
        '<exe:tags>["survey"]</exe:tags>',
        "<exe:deploymentName>coins/nightly</exe:deploymentName>",
    ):
        assert part in document


def test_every_outcome_is_drawn_without_warnings(record, need_program):
    need_program("dot")
    assert etree.fromstring(convert(as_provenance(record), "svg")).tag == "{http://www.w3.org/2000/svg}svg"


def test_a_picture_of_very_many_records_is_refused():
    outputs = [an_output(f"outputs/tile-{number}.csv") for number in range(1000)]
    with pytest.raises(RequestError, match="json, n or ttl"):
        convert(as_provenance(a_record(job_status=a_job_status(outputs=outputs))), "svg")


@pytest.mark.long
@pytest.mark.parametrize(
    ("before", "form", "named"),
    [
        ("sys.modules['rdflib'] = None", "ttl", "prov[rdf]"),
        ("sys.modules['pydot'] = None", "svg", "prov[dot]"),
        ("os.environ['PATH'] = ''", "svg", "graphviz"),
    ],
)
def test_a_missing_program_or_library_is_named(tmp_path, before, form, named):
    (tmp_path / "provo.xml").write_bytes(as_provenance(RECORDS["completed"]))
    program = f"""
import os, sys, pathlib
{before}
from prefect_executions.provenance.convert import convert
from prefect_executions.errors import RequestError
try:
    convert(pathlib.Path("provo.xml").read_bytes(), "{form}")
except RequestError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert named in done.stdout, done.stderr


def test_writing_needs_neither_lxml_nor_the_prov_library():
    program = "import sys, prefect_executions.provenance.writer; print({'lxml', 'prov'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
