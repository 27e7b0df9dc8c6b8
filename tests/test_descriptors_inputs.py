"""The inputs of a descriptor Method: the form in Prefect, the validation of values, the requested infrastructure."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from prefect.utilities.schema_tools import is_valid_schema, validate

from prefect_executions.descriptors.inputs import (
    InfrastructureRequest,
    infrastructure_request,
    parameter_schema,
    values_of,
)
from prefect_executions.descriptors.loader import method_of
from prefect_executions.errors import InputError, MethodError, SecretError
from prefect_executions.methods.secrets import MARK, SECRET_FORM, SECRET_REFERENCE


def a_method(**inputs):
    script = {"parameters": [{"name": "execute-script", "value": ["true"]}]}
    return method_of({"id": "m", "version": "1.2.0", "inputs": inputs, "additionalParameters": script}, "m.json")


EVERY_KIND = {
    "ccpimage": {"schema": {"type": "string", "default": "bash", "readOnly": True}},
    "scene": {"title": "Scene", "schema": {"type": "string", "format": "file", "contentMediaType": "image/tiff"}},
    "ratio": {"description": "How much.", "schema": {"type": "number", "minimum": 0, "exclusiveMinimum": True}},
    "level": {"minOccurs": 0, "schema": {"type": "integer", "default": "3"}},
    "kind": {"schema": {"type": "string", "enum": ["a", "b"], "default": "a", "title": "Kind"}},
    "kinds": {"minOccurs": 2, "maxOccurs": "unbounded", "schema": {"type": "string", "enum": ["a", "b", "c"]}},
    "frames": {"minOccurs": 0, "maxOccurs": 3, "schema": {"type": "string", "format": "uri-reference", "default": "x"}},
    "day": {"minOccurs": 0, "schema": {"type": "string", "format": "date", "nullable": True}},
    "at": {"minOccurs": 0, "schema": {"type": "string", "format": "date-time"}},
    "count": {"minOccurs": 0, "schema": {"type": "string", "format": "number"}},
    "deep": {
        "minOccurs": 0,
        "schema": {"type": "object", "properties": {"k": {"type": "array", "items": {"type": "integer"}}}},
    },
    "key": {"title": "Key", "description": "For the archive.", "schema": {"type": "string", "format": "secret"}},
}
NEEDED = {"scene": "/a.tif", "ratio": 0.5, "kinds": ["a", "b"], "key": "env:KEY"}


def test_the_form_is_a_parameter_schema_of_prefect():
    form = parameter_schema(a_method(**EVERY_KIND))

    is_valid_schema(form)
    assert (form["title"], form["type"], form["definitions"]) == ("Parameters", "object", {})
    assert form["required"] == ["scene", "ratio", "kinds", "key"]
    assert list(form["properties"]) == [name for name in EVERY_KIND if name != "ccpimage"]
    assert [schema["position"] for schema in form["properties"].values()] == list(range(11))
    assert [name for name, schema in form["properties"].items() if MARK in schema] == ["scene"]
    assert form["properties"]["scene"] == {
        "title": "Scene",
        "position": 0,
        "type": "string",
        "format": "uri-reference",
        "contentMediaType": "image/tiff",
        MARK: "1.2.0",
    }
    assert form["properties"]["ratio"] == {
        "title": "ratio",
        "position": 1,
        "description": "How much.",
        "type": "number",
        "exclusiveMinimum": 0,
    }
    assert form["properties"]["kind"] == {
        "title": "Kind",
        "position": 3,
        "type": "string",
        "enum": ["a", "b"],
        "default": "a",
    }
    assert form["properties"]["kinds"]["items"] == {"type": "string", "enum": ["a", "b", "c"]}
    assert form["properties"]["frames"] == {
        "title": "frames",
        "position": 5,
        "type": "array",
        "maxItems": 3,
        "default": ["x"],
        "items": {"type": "string", "format": "uri-reference"},
    }
    assert form["properties"]["day"]["anyOf"] == [{"type": "string", "format": "date"}, {"type": "null"}]
    assert form["properties"]["level"]["default"] == 3
    assert form["properties"]["key"] == {
        "title": "Key",
        "position": 10,
        "type": "string",
        "format": "secret",
        "pattern": SECRET_REFERENCE,
        "description": f"For the archive. ({SECRET_FORM['description']})",
    }


def test_prefect_accepts_the_values_that_we_accept():
    form = parameter_schema(a_method(**EVERY_KIND))

    validate(NEEDED, form, raise_on_error=True)
    assert validate({**NEEDED, "kind": "c"}, form)
    assert validate({name: value for name, value in NEEDED.items() if name != "key"}, form)


def test_a_method_without_inputs_has_an_empty_form():
    assert parameter_schema(a_method()) == {
        "title": "Parameters",
        "type": "object",
        "properties": {},
        "definitions": {},
    }


def test_defaults_are_filled_in_and_optional_inputs_are_absent():
    assert values_of(a_method(**EVERY_KIND), NEEDED) == NEEDED | {
        "ccpimage": "bash",
        "level": 3,
        "kind": "a",
        "frames": ["x"],
    }


def test_a_value_in_another_notation_is_coerced():
    given_ = {"ratio": "1e-3", "level": "7", "count": 7, "frames": "y", "day": None, "deep": {"k": [1]}, "at": None}

    values = values_of(a_method(**EVERY_KIND), NEEDED | given_)

    assert {name: values.get(name, "-") for name in given_} == {
        "ratio": 0.001,
        "level": 7,
        "count": "7",
        "frames": ["y"],
        "day": None,
        "deep": {"k": [1]},
        "at": "-",
    }
    flag = a_method(flag={"schema": {"type": "boolean"}}, text={"schema": {"type": "string"}})
    assert values_of(flag, {"flag": "True", "text": False}) == {"flag": True, "text": "false"}


def test_a_bound_value_may_be_repeated_but_not_overridden():
    method = a_method(**EVERY_KIND)

    assert values_of(method, NEEDED | {"ccpimage": "bash"})["ccpimage"] == "bash"
    with pytest.raises(InputError, match="Method 'm': input 'ccpimage' is bound by the Method's author"):
        values_of(method, NEEDED | {"ccpimage": "mine"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 0}, "input 'ratio': 0 is less than or equal to the minimum of 0"),
        ({"ratio": "nan"}, "input 'ratio': 'nan' is not of type 'number'"),
        ({"level": 1.5}, "input 'level': 1.5 is not of type 'integer'"),
        ({"level": "1" * 5000}, "input 'level': '1111"),
        ({"kind": "c"}, r"input 'kind': 'c' is not one of \['a', 'b'\]"),
        ({"kinds": "a"}, r"input 'kinds': \['a'\] is too short"),
        ({"kinds": ["a", "d"]}, "input 'kinds' at /1: 'd' is not one of"),
        ({"frames": ["1", "2", "3", "4"]}, "input 'frames': .* is too long"),
        ({"day": "2024-02-30"}, "input 'day': "),
        ({"at": "2024-02-03T04:05:06"}, "input 'at': .* is not a 'date-time'"),
        ({"count": "seven"}, "input 'count': 'seven' is not a 'number'"),
        ({"deep": {"k": ["x"]}}, "input 'deep' at /k/0: 'x' is not of type 'integer'"),
        ({"scene": None}, "input 'scene' is missing"),
        ({"sceen": 1}, "there is no input 'sceen'; did you mean 'scene'"),
    ],
)
def test_an_invalid_value_is_refused_with_its_input(changes, message):
    with pytest.raises(InputError, match=f"^Method 'm': {message}") as refused:
        values_of(a_method(**EVERY_KIND), NEEDED | changes)

    assert len(str(refused.value)) < 400


def test_all_invalid_values_are_reported_at_once():
    with pytest.raises(InputError, match="Method 'm': \n  input 'ratio' is missing\n  input 'kind': 'x' is not one of"):
        values_of(a_method(**EVERY_KIND), {"scene": "a", "kinds": ["a", "b"], "key": "k", "kind": "x"})


@pytest.mark.parametrize("value", ["Hunter2!", ["k"], 7, {"k": "Hunter2!"}])
def test_a_plain_text_secret_is_refused_without_its_value(value):
    with pytest.raises(SecretError, match="input 'key' is a secret") as refused:
        values_of(a_method(**EVERY_KIND), NEEDED | {"key": value})

    assert "Hunter2" not in str(refused.value)


def test_a_plain_text_secret_of_ccp_is_not_a_default():
    method = a_method(key={"schema": {"type": "string", "format": "secret", "default": "In Clear"}})

    assert parameter_schema(method)["required"] == ["key"]
    assert "In Clear" not in json.dumps(parameter_schema(method))
    with pytest.raises(InputError, match="input 'key' is missing"):
        values_of(method, {})


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from([*EVERY_KIND]), st.none() | st.text() | st.integers() | st.lists(st.text())))
def test_any_values_fit_or_are_refused(changes):
    method = a_method(**EVERY_KIND)
    form = Draft202012Validator(parameter_schema(method))
    try:
        values = values_of(method, NEEDED | changes)
    except (InputError, SecretError):
        return
    assert form.is_valid({name: value for name, value in values.items() if name != "ccpimage"})


@pytest.mark.parametrize(
    ("values", "requested"),
    [
        ({}, InfrastructureRequest()),
        ({"ccpimage": "", "ccpreplicas": "", "ccpmaxtime": None}, InfrastructureRequest()),
        (
            {"ccpimage": "python:3.11", "ccpreplicas": "3", "ccpmaxtime": "86400"},
            InfrastructureRequest(image="python:3.11", replicas=3, time_limit=86400),
        ),
        ({"ccpreplicas": 2, "ccpmaxtime": 0.5}, InfrastructureRequest(replicas=2, time_limit=0.5)),
    ],
)
def test_ccps_special_inputs_request_infrastructure(values, requested):
    assert infrastructure_request(values) == requested


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ccpimage": "--privileged"}, "not the name of a container image"),
        ({"ccpimage": "a b"}, "not the name of a container image"),
        ({"ccpimage": ["a"]}, "must be the name of a container image"),
        ({"ccpreplicas": "0"}, "an integer from 1 to 1000"),
        ({"ccpreplicas": 1.5}, "an integer from 1 to 1000"),
        ({"ccpreplicas": 10**400}, "is not a number"),
        ({"ccpreplicas": True}, "is not a number"),
        ({"ccpmaxtime": "-1"}, "a number of seconds above 0"),
        ({"ccpmaxtime": "nan"}, "is not a number"),
    ],
)
def test_an_invalid_infrastructure_request_is_refused(values, message):
    with pytest.raises(InputError, match=f"input '{next(iter(values))}': .*{message}"):
        infrastructure_request(values)


def test_an_invalid_default_of_a_special_input_is_refused_when_the_descriptor_is_read():
    with pytest.raises(MethodError, match="/inputs/ccpreplicas/schema/default: must be an integer from 1"):
        a_method(ccpreplicas={"schema": {"type": "string", "default": "0"}})
