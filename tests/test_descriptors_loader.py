"""The loader of descriptors: unknown members are preserved, faults are reported with their place."""

import json
import re
from contextlib import suppress
from pathlib import Path
from time import process_time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import ogc
from prefect_executions.descriptors.inputs import parameter_schema, values_of
from prefect_executions.descriptors.loader import document_of, method_of, read_method, without_plain_text_secrets
from prefect_executions.descriptors.parser import MAX_BYTES, parse
from prefect_executions.errors import InputError, MethodError
from prefect_executions.methods.model import Method
from prefect_executions.patterns import SECONDS, matches

PAGE = Path(__file__).parents[1] / "docs" / "descriptors.md"


def as_ccp_writes_it():
    """Return a descriptor with everything that CCP's documentation shows: nulls, empty defaults, a secret in clear."""
    every = {"minOccurs": 1, "maxOccurs": 1}
    text = {"type": "string", "contentMediaType": "text/plain"}
    return {
        "id": "0f6b2c0e-6a53-4b53-9d0e-6d7d6f4c8c11",
        "title": "Annotate",
        "description": "",
        "version": "1.0.0",
        "jobControlOptions": ["async-execute"],
        "keywords": ["rest"],
        "metadata": [
            {"title": "An Author", "role": "author", "href": "https://example.org/users/1"},
            {"title": "Text", "role": "category"},
            {"title": "%2Fa%2Fvre", "role": "context", "href": "https://example.org/vre"},
        ],
        "inputs": {
            "ccpimage": {"id": "ccpimage", "title": "Runtime", **every}
            | {"schema": text | {"format": "url", "default": "bash", "readOnly": True}},
            "ccpreplicas": {"id": "ccpreplicas", **every, "schema": {"type": "string", "default": "1"}},
            "ccpmaxtime": {"schema": {"type": "string", "format": "number", "default": "86400"}},
            "baseurl": {"schema": text | {"format": "url", "default": "https://example.org/", "readOnly": True}},
            "service": {"schema": text | {"format": None, "default": "mine"}, **every},
            "file": {"schema": text | {"format": "file", "default": ""}, **every},
            "kind": {"schema": text | {"format": None, "default": "a/b", "enum": ["a/b", "c/d"]}},
            "kinds": {"schema": text | {"enum": ["x", "y"]}, "minOccurs": 0, "maxOccurs": 2},
            "api_key": {"schema": text | {"format": "Secret", "default": "XXXYYYZZZ"}, **every},
        },
        "outputs": {
            "stdout": {"id": "stdout", **every, "schema": text, "metadata": [{"role": "file", "href": "/ccp_data/o"}]}
        },
        "additionalParameters": {
            "parameters": [
                {"name": "deploy-script", "value": ["echo {{file}} | base64 -d > /ccp_data/input"]},
                {
                    "name": "execute-script",
                    "value": [
                        "wget '{{ baseurl }}{{ service }}' --header \"Auth: Basic {{api_key}}\" -O /ccp_data/o",
                        "mkdir -p /ccp_data/output && echo $RANDOM >> /ccp_data/output/`printenv ccptaskid`.txt",
                    ],
                },
                {"name": "undeploy-script", "value": []},
                {"name": "lifecycle", "value": [{"updated": "2024-10-10"}]},
            ]
        },
        "links": [{"rel": "compatibleWith", "title": "A swarm", "href": "infrastructures/a-swarm"}],
    }


def a_document(**changes):
    script = {"parameters": [{"name": "execute-script", "value": ["true"]}]}
    return {"id": "m", "version": "1", "additionalParameters": script} | changes


def with_input(**described):
    return a_document(inputs={"x": {"schema": {"type": "string"}} | described})


def with_lines(*lines, name="execute-script"):
    parameters = [{"name": "execute-script", "value": ["true"]}, {"name": name, "value": list(lines)}]
    return a_document(additionalParameters={"parameters": parameters[-1:] if name == "execute-script" else parameters})


def read(document, name="method.json"):
    return read_method(json.dumps(document).encode(), name)


def refusal(document):
    with pytest.raises(MethodError) as refused:
        read(document)
    return str(refused.value)


def test_a_descriptor_of_ccp_is_read_and_written_unchanged():
    method = read(as_ccp_writes_it())

    assert document_of(method) == as_ccp_writes_it()
    assert [name for name, described in method.inputs.items() if described.is_file] == ["file"]
    assert [name for name, described in method.inputs.items() if described.is_bound] == ["ccpimage", "baseurl"]
    assert method.secrets == {"api_key"}
    assert method.links[0].rel == "compatibleWith"
    assert method.metadata[0].role == "author"


def test_a_plain_text_secret_of_ccp_is_not_recorded():
    method = without_plain_text_secrets(read(as_ccp_writes_it()))

    assert b"XXXYYYZZZ" not in method.to_json()
    assert Method.from_json(method.to_json()).inputs["service"].json_schema["default"] == "mine"


def test_the_method_in_a_bundle_is_a_descriptor():
    kept = read(as_ccp_writes_it()).to_json()

    reread = read_method(kept, "method.json")

    assert reread.to_json() == kept
    assert reread.title == "Annotate"


def test_a_missing_title_is_the_id_and_is_not_written():
    assert read(a_document()).title == "m"
    assert document_of(read(a_document())) == a_document()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
unknown = st.dictionaries(st.text(max_size=5).map("ccp:{}".format), json_values, max_size=3)


@settings(max_examples=25, deadline=None)  # each is a whole descriptor
@given(unknown, unknown, unknown, unknown, unknown)
def test_unknown_members_are_preserved_everywhere(top, described, schema, listed, linked):
    try:
        json.dumps([top, described, schema, listed, linked], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return  # half a surrogate pair is refused, which is another test
    document = as_ccp_writes_it() | top
    document["inputs"]["kind"] |= described
    document["inputs"]["kind"]["schema"] |= schema
    document["additionalParameters"] |= listed
    document["links"][0] |= linked

    assert document_of(method_of(document, "m.json")) == document


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": None}, "/version: must be text; put it in quotes"),
        ({"version": ""}, "/version: must have 1 to 200 characters"),
        ({"id": "a\nb"}, "/id: must have 1 to 200 characters"),
        ({"keywords": "text"}, "/keywords: must be a list"),
        ({"format": 3}, "/format: 3 is not one of 1 or 2"),
        (
            {"jobControlOptions": ["async"]},
            "/jobControlOptions/0: 'async' is .*; did you mean 'async-execute'",
        ),
        ({"job_control_options": []}, "/job_control_options: unknown; did you mean 'jobControlOptions'"),
        ({"additionalParameters": {}}, "/additionalParameters/parameters: 'execute-script' is missing; add it"),
        ({"inputs": {"a{b": {"schema": {}}}}, r"/inputs/a\{b: an input's name must have"),
        ({"inputs": {"a/b~c": {}}}, "/inputs/a~1b~0c: 'schema' is missing"),
        ({"inputs": {"a": {"schma": {}}}}, "/inputs/a: 'schema' is missing; is it misspelt as 'schma'"),
        (
            {"inputs": {"a": {"schema": {}}, "a_": {"schema": {}}, "a-": {"schema": {}}}},
            "/inputs/a-: its .* is also",
        ),
        ({"inputs": {"PATH": {"schema": {}}}}, "/inputs/PATH: its environment variable PATH is reserved"),
        ({"comparisons": {"a.csv": {"by": "tabel"}}}, "/comparisons/a.csv/by: 'tabel' is not .* did you mean 'table'"),
        ({"comparisons": {"a.csv": {"tollerance": 0}}}, "/comparisons/a.csv/tollerance: unknown member"),
        ({"comparisons": {"a.csv": {"absolute_tolerance": 0}}}, ".*; did you mean 'absoluteTolerance'"),
        ({"inputs": {str(n): {"schema": {}} for n in range(501)}}, "/inputs: more than 500 inputs"),
    ],
)
def test_a_fault_is_refused_with_its_place_and_the_fix(changes, message):
    assert re.match(f"method.json: {message}", refusal(a_document(**changes)))


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"minOccurs": "1"}, "/minOccurs: must be an integer, without quotes"),
        ({"minOcurs": 1}, "/minOcurs: unknown; did you mean 'minOccurs'"),
        ({"min_occurs": 1}, "/min_occurs: unknown; did you mean 'minOccurs'"),
        ({"minOccurs": 3, "maxOccurs": 2}, "/maxOccurs: must be at least 1 and at least minOccurs"),
        ({"id": "y"}, "/id: 'y': the input's name is 'x'"),
        ({"schema": {"type": "strnig"}}, "/schema/type: 'strnig' is not a type .* did you mean 'string'"),
        ({"schema": {"type": "integer", "default": "two"}}, "/schema/default: does not fit the schema: 'two'"),
        ({"schema": {"enum": ["a"], "default": "b"}}, "/schema/default: does not fit the schema: 'b'"),
        ({"schema": {"enum": []}}, "/schema/enum: allows no value"),
        ({"schema": {"pattern": "("}}, r"/schema/pattern: '\(' is not a 'regex'"),
        ({"schema": {"pattern": "(" * 5000 + ")" * 5000}}, r"/schema: .*regular expression that is"),
        ({"schema": {"items": {"$ref": "http://x/"}}}, r"/schema/items/\$ref: references are not allowed"),
        ({"schema": {"readOnly": True}}, "/schema/default: a bound input"),
        ({"schema": {"readonly": True}}, "/schema/readonly: unknown; did you mean 'readOnly'"),
        ({"schema": {"readOnly": "yes"}}, "/schema/readOnly: must be true or false"),
        ({"schema": {"format": "secret"}, "maxOccurs": 2}, "/maxOccurs: a secret is a single value"),
        (
            {"schema": {"format": "secret", "readOnly": True, "default": "In Clear"}},
            "/schema/default: .* Secret",
        ),
    ],
)
def test_a_wrong_input_is_refused_with_its_place_and_the_fix(described, message):
    assert re.match(f"method.json: /inputs/x{message}", refusal(with_input(**described)))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("execute_script", ["true"], "/name: 'execute_script': did you mean 'execute-script'"),
        ("undeploy-scrip", ["true"], "/name: 'undeploy-scrip': did you mean 'undeploy-script'"),
        ("execute-script", "true", "/value: must be a list"),
        ("execute-script", ["true", 7], "/value/1: a line of a script must be text"),
        ("execute-script", ["a\0b"], "/value/0: a line of a script must be text without NUL"),
        ("execute-script", ["#!/usr/bin/env python3", "{{ x }}"], "/value/0: 'python3' is not a shell"),
    ],
)
def test_a_wrong_script_is_refused_with_its_place_and_the_fix(name, value, message):
    document = a_document(additionalParameters={"parameters": [{"name": name, "value": value}]})

    assert f"/additionalParameters/parameters/0{message}" in refusal(document)


def test_all_faults_are_reported_at_once_up_to_a_limit():
    document = a_document(inputs={f"x{number}": {"schema": {"type": "txt"}} for number in range(50)})

    message = refusal(document)

    assert message.startswith("method.json: 50 faults in the descriptor:\n  /inputs/x0/schema/type: ")
    assert message.endswith("\n  and 30 more")


def test_the_record_of_a_python_method_is_not_a_descriptor():
    record = a_document(additionalParameters={}, code={"entrypoint": "flows/a.py:a"})

    assert "this is the record of a Python Method; run its code instead: flows/a.py:a" in refusal(record)


def test_yaml_is_equivalent_to_json():
    document = as_ccp_writes_it()

    read_from_yaml = read_method(yaml.safe_dump(document, sort_keys=False).encode(), "method.yaml")

    assert document_of(read_from_yaml) == document


def test_yaml_reads_words_as_yaml_1_2_does():
    text = b"a: [no, on, 12:30, 010, 1_000, 2024-01-01, 'true', True, ~, -1.5e3, '', .5]"

    assert parse(text, "m.YML") == {
        "a": ["no", "on", "12:30", 10, "1_000", "2024-01-01", "true", True, None, -1500.0, "", 0.5]
    }


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("m.json", b"[" * 100_000, "nested too deeply"),
        ("m.json", b'{"a":' * 70 + b"1" + b"}" * 70, "nested deeper than 64"),
        ("m.json", b" " * MAX_BYTES + b"{}", "larger than"),
        ("m.json", b'{"a": {"b": 1, "b": 2}}', "has the member 'b' twice"),
        ("m.json", b'{"a": NaN}', "NaN is not a JSON number"),
        ("m.json", b'{"a": 1e999}', "/a: the number is too large"),
        ("m.json", b'{"a": ' + b"1" * 5000 + b"}", "invalid JSON"),
        ("m.json", b'{"a": ["\\ud800"]}', "/a/0: half a surrogate pair"),
        ("m.json", b'{"\\ud800": 1}', "half a surrogate pair"),
        ("m.json", "{'é': 1}".encode("latin-1"), "byte 2 is not UTF-8"),
        ("m.json", b"id: m", "invalid JSON"),
        ("m.json", b"[]", "a descriptor is an object"),
        ("m.yaml", b"[" * 100, "m.yaml:1: nested deeper than 64"),
        ("m.yaml", b"[" * 100_000, "nest"),  # libyaml looks ahead, and from PyYAML 6.0.4 on refuses 1,000 levels itself
        ("m.yaml", b"a: &a [1]\nb: [*a, *a]", "m.yaml:1: an alias or anchor"),
        ("m.yaml", b"a: 1\nb: !!python/object/apply:os.system [id]", "m.yaml:2: the tag 'tag:yaml.org,2002:python"),
        ("m.yaml", b"a: !!binary aGk=", "the tag"),
        ("m.yaml", b"a: 1\na: 2", "m.yaml:2: the member 'a' occurs twice"),
        ("m.yaml", b"1: 2", "a member's name must be text; put it in quotes"),
        ("m.yaml", b"? [a]\n: 2", "a member's name must be text"),
        ("m.yaml", b"a: 1\n---\na: 2", "holds 2 YAML documents"),
        ("m.yaml", b"", "holds 0 YAML documents"),
        ("m.yaml", b"a: [1", "m.yaml:2: invalid YAML"),
        ("m.yaml", b"a: \x01", "invalid YAML"),
        ("m.yaml", b"a: 1e999", "/a: the number is too large"),
        ("m.yaml", b"a: " + b"1" * 5000, "m.yaml:1: the number is too large"),
    ],
    ids=lambda part: part[:20] if isinstance(part, bytes) else None,
)
def test_a_hostile_document_is_refused_in_words(name, data, message):
    with pytest.raises(MethodError) as refused:
        read_method(data, name)

    assert str(refused.value).startswith("m.")
    assert message in str(refused.value)
    assert len(str(refused.value)) < 500


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet="{}[]\"',:&*!-? \n0aé", max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused(data):
    for name in ("m.json", "m.yaml"):
        with suppress(MethodError):
            parse(data, name)


def test_a_byte_order_mark_does_no_harm():
    assert read_method(b"\xef\xbb\xbf" + json.dumps(a_document()).encode(), "m.json").id == "m"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_example_of_the_page_is_a_method_and_an_ogc_process():
    (example,) = blocks("json")

    method = read_method(example.encode(), "method.json")

    assert document_of(method) == json.loads(example)
    assert ogc.faults("process", json.loads(example)) == []


def test_the_faults_of_the_page_are_those_of_its_example_with_two_slips():
    (example,) = blocks("json")
    wrong = example.replace('"type": "integer"', '"type": "interger"').replace("-e {{ word }}", "-e {{ wrod }}")

    with pytest.raises(MethodError) as refused:
        read_method(wrong.encode(), "method.json")

    assert f"{refused.value}\n" in blocks("text")


SLOW = "^(a+)+$"  # regex recognises this one
SLOWER = "(a|a)*$"


@pytest.mark.parametrize("pattern", [SLOW, pytest.param(SLOWER, marks=pytest.mark.long)])
def test_a_slow_regular_expression_of_a_default_is_refused_in_time(pattern):
    schema = {"type": "string", "pattern": pattern, "default": "a" * 60 + "b"}
    begin = process_time()
    many = {f"x{number}": {"schema": schema} for number in range(50)}
    assert re.search(r"(regular expression|does not fit)", refusal(a_document(inputs=many)))
    assert process_time() - begin < 10 * SECONDS  # instead of 50 times as long


@pytest.mark.parametrize(
    "pattern",
    [
        "a{2000000000}",
        "((a{1000}){1000}){1000}",
        "(?:ab|cd){1000000,}",
        "(?#[)a{2000000000}]",
        "(?x)a # [\n {2000000000} # ]",
    ],
)
def test_a_regular_expression_that_would_take_much_memory_is_refused(pattern):
    schema = {"type": "string", "pattern": pattern, "default": "a"}
    assert "items with its repetitions written out" in refusal(with_input(schema=schema))


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", "0b1e5a52-6f0c-4f2e-9a41-3d6d5d3f2e10"),
        (r"^(\{2000000000\}|[]{9000000}]{3})", "{2000000000}"),
        ("^([0-9a-f]{64} ){100}$", f"{'0' * 64} " * 100),
        ("^(a{0,5000}){0,5000}$", "aa"),
    ],
)
def test_a_regular_expression_with_usual_repetitions_is_matched(pattern, text):
    assert matches(pattern, text)
    assert not matches(pattern, "!")


@pytest.mark.parametrize(
    ("name", "schema", "words"),
    [
        ("ccpreplicas", {"type": "no-such-type", "default": "1"}, "type"),
        ("ccpimage", {"type": {}, "default": "x"}, "type"),
        ("service", {"type": "string", "format": ["a", "b"]}, "format"),
    ],
)
def test_an_invalid_schema_of_an_input_that_scripts_or_infrastructure_use_is_refused(name, schema, words):
    document = as_ccp_writes_it()
    document["inputs"][name]["schema"] = schema
    assert f"/inputs/{name}/schema/{words}" in refusal(document)


def places(value, *steps):
    """Yield the way to each part of a document."""
    if steps:
        yield steps
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, part in members:
        yield from places(part, *steps, step)


@pytest.mark.long
def test_no_wrong_value_at_any_place_is_an_unexpected_error():
    values = [None, True, -1, 1e308, 10**400, "", "x" * 3000, "\x1b[31m", [], ["a", "a"], {}, {"type": []}]
    for steps in places(as_ccp_writes_it()):
        for value in values:
            document = as_ccp_writes_it()
            part = document
            for step in steps[:-1]:
                part = part[step]
            part[steps[-1]] = value
            with suppress(MethodError, InputError):
                method = method_of(document, "method.json")
                parameter_schema(method)
                values_of(method, {})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": SLOWER},
        pytest.param({"type": "object", "patternProperties": {SLOWER: {"type": "integer"}}}, marks=pytest.mark.long),
        pytest.param(
            {"type": "object", "additionalProperties": False, "patternProperties": {SLOWER: {}}},
            marks=pytest.mark.long,
        ),
    ],
    ids=["pattern", "patternProperties", "additionalProperties"],
)
def test_a_slow_regular_expression_of_a_value_is_refused_in_time(schema):
    method = method_of(with_input(schema=schema), "method.json")
    text = "a" * 60 + "b"
    with pytest.raises(InputError, match=r"input 'x': the regular expression .* takes more than 2 s"):
        values_of(method, {"x": text if schema["type"] == "string" else {text: 1}})


def test_schemas_with_regular_expressions_accept_and_refuse_members():
    schema = {"type": "object", "properties": {"b": {}}, "patternProperties": {"^a": {"type": "integer"}}}
    method = method_of(with_input(schema=schema | {"additionalProperties": {"type": "null"}}), "method.json")
    assert values_of(method, {"x": {"a1": 1, "b": "b", "c": None}})["x"] == {"a1": 1, "b": "b", "c": None}
    for value in ({"a1": "text"}, {"c": 1}):
        with pytest.raises(InputError, match="input 'x' at"):
            values_of(method, {"x": value})
    closed = method_of(with_input(schema=schema | {"additionalProperties": False}), "method.json")
    with pytest.raises(InputError, match=r"\('c' was unexpected\)"):
        values_of(closed, {"x": {"c": 1}})


def test_unevaluated_properties_beside_patterns_are_refused():
    schema = {"allOf": [{"patternProperties": {SLOW: {}}}], "unevaluatedProperties": False}
    assert "/inputs/x/schema/unevaluatedProperties: is not supported" in refusal(with_input(schema=schema))
