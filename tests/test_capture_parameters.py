"""What a record may say of inputs: values with secret names and values that contain a secret are withheld."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace

from prefect_executions.capture.parameters import (
    masked_history,
    masked_record,
    plain_text_defaults,
    plain_value,
    recorded_method,
    recorded_param,
    recorded_parameters,
    register_credentials,
    withheld_note,
)
from prefect_executions.capture.secrets import MASK, SecretMask
from prefect_executions.executions.record import ExecuteRequest
from prefect_executions.methods.model import InputDescription, Method
from records import a_record

SECRET = "correct-horse-battery"
GONE = {"withheld": True}


def a_method(**schemas: dict[str, object]) -> Method:
    return Method(id="m", version="1", inputs={name: InputDescription(json_schema=of) for name, of in schemas.items()})


def test_values_with_secret_names_are_withheld_at_any_depth():
    given = {"options": {"user": "ada", "password": "pw", "retry": [{"apiKey": "k", "max_tokens": 8}]}, "token": "t"}
    assert recorded_parameters(a_method(), given) == {
        "options": {"user": "ada", "password": GONE, "retry": [{"apiKey": GONE, "max_tokens": 8}]},
        "token": GONE,
    }
    assert plain_value({"pin": "1"}, "o", ("pin",)) == {"pin": GONE}


def test_a_file_whose_input_is_called_credentials_is_recorded_by_its_location():
    method = a_method(credentials={"type": "string", "format": "uri-reference"})
    assert recorded_parameters(method, {"credentials": "keys.json"}) == {"credentials": "keys.json"}


def test_values_with_secret_names_are_masked_wherever_they_occur():
    mask = SecretMask()
    register_credentials({"options": {"password": SECRET, "pwd": "short"}, "n": 1}, mask)
    assert mask.mask(f"{SECRET} short") == f"{MASK} short"


def test_the_default_of_a_secret_name_is_not_in_the_descriptor():
    method = a_method(
        password={"type": "string", "default": SECRET, "title": "Password"},
        options={"type": "object", "properties": {"token": {"type": "string", "default": "tok-12345678"}}},
        pad_token={"type": "string", "default": "<pad>"},
    )
    inputs = recorded_method(method).inputs
    assert inputs["password"].json_schema == {"type": "string", "title": "Password"}
    assert inputs["options"].json_schema["properties"] == {"token": {"type": "string"}}
    assert inputs["pad_token"] == method.inputs["pad_token"]
    mask = plain_text_defaults(method)
    assert mask.holds(SECRET.encode())
    assert mask.holds(b"tok-12345678")
    assert mask.mask("Password string") == "Password string"


def test_a_record_has_no_value_that_contains_a_secret_of_another_execution():
    record = a_record()
    members = record.request.model_dump(exclude={"inputs"}, by_alias=False)
    values = {
        "header": f"Bearer {SECRET}",
        "names": ["a", SECRET],
        "map": {SECRET: 1},
        "n": 1,
        "twice": {"x": {"y": f"{SECRET}!"}},
        "pair": {"python": "tuple", "value": [1, SECRET]},
        "bytes": {"python": "bytes", "base64": b64encode(SECRET.encode()).decode()},
    }
    request = ExecuteRequest(
        **members | {"values": values, "parameters": values, "files": (), "flow_run_name": f"run-{SECRET}"}
    )
    masked = masked_record(replace(record, request=request), SecretMask([SECRET]))

    assert masked.request.values == {
        "header": GONE,
        "names": ["a", GONE],
        "map": GONE,
        "n": 1,
        "twice": {"x": {"y": GONE}},
        "pair": GONE,
        "bytes": GONE,
    }
    assert masked.request.rerun == dict.fromkeys(values.keys() - {"n"}, "caller")
    assert masked.request.flow_run_name == f"run-{MASK}"
    assert SECRET not in b"".join(masked.to_json().values()).decode()
    assert withheld_note(masked.method, masked.request) == (
        "withheld, because the name looks secret or the value contains a secret: bytes, header, map, names, pair, "
        "twice.x.y"
    )


def test_without_secrets_a_record_stays_as_it_is():
    record = a_record()
    assert masked_record(record, SecretMask()) is record
    assert masked_history(record.job_status, SecretMask([SECRET])) is record.job_status


def test_a_param_with_a_secret_name_is_masked():
    assert recorded_param("options", {"lr": 0.1, "api_key": "k", "list": [{"token": "t"}]}) == {
        "lr": 0.1,
        "api_key": MASK,
        "list": [{"token": MASK}],
    }
