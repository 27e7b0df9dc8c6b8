"""An input is recorded exactly, or by type, shape and digest, or refused; a rerun gets the same value or asks."""

from __future__ import annotations

import datetime as dt
import enum
import inspect
import math
import threading
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel

from homes import Bundles
from prefect_executions import InputFile, MethodFlow, current_execution, method
from prefect_executions.errors import InputError, RequestError
from prefect_executions.executions.record import ExecuteRequest
from prefect_executions.executions.values import recorded_form, same_form
from prefect_executions.flow.entrypoints import run_method
from prefect_executions.flow.inputs import Inputs
from prefect_executions.flow.invocation import Invocation
from prefect_executions.lifecycle.history import EntryKind
from prefect_executions.operations.replay import rerun_request
from records import a_record
from test_executions_values import values


class Channel(enum.Enum):
    RED = "red"


class Crop(BaseModel):
    width: Any = 1
    scale: float = math.inf


@dataclass
class Point:
    x: float
    tags: tuple[str, ...] = ()


CROP, POINT, NAMES = Crop(), Point(1.0, ("a",)), {1: "a"}

received: list[dict[str, Any]] = []


@method(version="1")
def free(x: Any = None, y=2) -> None:
    received.append({"x": x, "y": y})


@method(version="1")
def typed(  # noqa: PLR0917 - a parameter for each kind of value
    rate: float = math.inf,
    missing: float = math.nan,
    channel: Channel = Channel.RED,
    crop: Crop = CROP,
    point: Point = POINT,
    day: dt.date = dt.date(2020, 1, 2),
    price: Decimal = Decimal("1.10"),
    folder: Path = Path("a"),
    raw: bytes = b"a",
    size: tuple[int, int] = (1, 2),
    names: dict[int, str] = NAMES,
    either: float | str = math.inf,
    bare=(1, {2: b"a"}),
    bare_rate=math.inf,
    mode=Channel.RED,
    *more: int,
    **options: Any,
) -> None:
    received.append(dict(locals()))
    current_execution().output("x.txt").write_text("x")


@method(version="1")
def doubled(x: Annotated[int, AfterValidator(lambda value: value * 2)]) -> None:
    received.append({"x": x})


def recorded(flow: MethodFlow[Any, Any], /, **arguments: Any) -> ExecuteRequest:
    """The request as the run writes it and a reader reads it, without a Prefect server."""
    bound = inspect.signature(flow.declared.function).bind(**flow.validate_parameters(arguments))
    bound.apply_defaults()
    inputs = Inputs(flow.declared, bound).recorded()
    request = ExecuteRequest(
        execution_id="i", method_id="m", method_version="1", values=inputs.values, rerun=inputs.rerun or None
    )
    return ExecuteRequest.from_json(request.to_json())


def again(flow: MethodFlow[Any, Any], request: ExecuteRequest) -> dict[str, Any]:
    """What the function of *flow* receives in a rerun, without its variadic parameters."""
    parameters = rerun_request(a_record(method=flow.method, request=request), {}).parameters
    parameters = {name: value for name, value in parameters.items() if name not in {"more", "options"}}
    return flow.validate_parameters(parameters)


def same(left: Any, right: Any) -> bool:
    return same_form(recorded_form(left), recorded_form(right))


strange = st.one_of(
    values,
    st.builds(Crop, width=values, scale=st.floats()),
    st.builds(Point, x=st.floats(), tags=st.tuples(st.text())),
    st.sampled_from([Channel.RED, len, Crop, np.arange(3), np.ma.masked, np.array([object()])]),
    st.builds(threading.Lock),
    st.builds(lambda: (number for number in (1, 2))),
)


@settings(max_examples=60)
@given(strange | st.lists(strange, max_size=2) | st.tuples(strange, strange))
def test_any_value_is_exact_in_a_rerun_or_asked_for_by_name_or_refused(value):
    try:
        recorded_form(value)
    except InputError:
        with pytest.raises(InputError, match="input 'x' is a "):
            recorded(free, x=value)
        return
    request = recorded(free, x=value)
    if request.rerun:
        assert request.rerun == {"x": "caller"}
        with pytest.raises(RequestError, match=r"the record cannot supply the value of x.*-p x=…"):
            again(free, request)
        return
    assert same(again(free, request)["x"], value)


@settings(max_examples=40)
@given(st.builds(Crop, width=values, scale=st.floats()), st.floats(), st.dates(), st.binary(), st.floats() | st.text())
def test_typed_inputs_are_exact_in_a_rerun(crop, rate, day, raw, either):
    given_values = {"crop": crop, "rate": rate, "day": day, "raw": raw, "either": either}
    request = recorded(typed, **given_values)
    assert set(request.rerun or {}) <= {"mode", "either"}  # a text may have the form of a key
    if "either" not in (request.rerun or {}):
        received_again = again(typed, request)
        assert all(same(received_again[name], value) for name, value in given_values.items())


def test_a_validator_that_changes_a_valid_value_is_not_applied_twice():
    request = recorded(doubled, x=3)
    assert (request.values, request.rerun) == ({"x": 6}, {"x": "caller"})
    with pytest.raises(RequestError, match="-p x=…"):
        again(doubled, request)


def test_a_url_without_its_password_is_not_passed_on_as_the_same_input():
    request = recorded(free, x="https://ada:hush-hush@example.org/data")
    assert (request.values["x"], request.rerun) == ("https://example.org/data", {"x": "caller"})
    with pytest.raises(RequestError, match="-p x=…"):
        again(free, request)


def test_a_key_inside_bytes_is_withheld_and_other_bytes_are_not():
    key = f"AKIA{'ABCDEFGHIJ234567'}"
    for raw in (key.encode(), b"\xff " + key.encode()):
        request = recorded(free, x=raw)
        assert request.rerun == {"x": "caller"}
        assert key.encode() not in request.to_json()
        assert b64encode(raw) not in request.to_json()
    raw = bytes(range(256))
    assert again(free, recorded(free, x=raw))["x"] == raw


def test_files_in_free_values_stay_files():
    request = recorded(free, x=(InputFile("a.txt"), 1), y={1: InputFile("b.txt")})
    parameters = again(free, request)
    assert isinstance(parameters["x"][0], InputFile)
    assert isinstance(parameters["y"][1], InputFile)


def test_an_infinite_default_is_described_and_is_not_taken_for_a_key():
    described = typed.method
    assert described.inputs["rate"].json_schema["default"] == "Infinity"
    assert described.inputs["missing"].json_schema["default"] == "NaN"
    assert described.inputs["crop"].json_schema["properties"]["scale"]["default"] == "Infinity"
    assert b"null" not in described.to_json()
    assert type(described).from_json(described.to_json()) == described


@pytest.mark.filterwarnings("ignore::pydantic.json_schema.PydanticJsonSchemaWarning")
def test_a_default_that_no_record_can_hold_is_left_to_the_code():
    @method(version="1")
    def keyed(x=1, key=lambda value: value) -> None: ...

    request = recorded(keyed)
    assert request.values["key"] == {"unrecorded": "builtins.function"}
    assert request.rerun == {"key": "default"}
    assert again(keyed, request)["x"] == 1
    assert rerun_request(a_record(method=keyed.method, request=request), {}).parameters == {"x": 1}
    with pytest.raises(InputError, match=r"input .key. is a builtins.function"):
        recorded(keyed, key=lambda value: -value)


# --- with Prefect ----------------------------------------------------------------


@pytest.fixture
def bundles(home: Path, prefect_server: str) -> Bundles:
    received.clear()
    return Bundles(home)


def rerun(flow: MethodFlow[Any, Any], edits: Mapping[str, Any], bundles: Bundles) -> None:
    parameters = rerun_request(bundles.record(), edits).parameters
    assert run_method(flow, parameters, Invocation()).error is None


def test_a_rerun_calls_the_function_with_the_same_values(bundles):
    typed(1.5, math.nan, Channel.RED, Crop(width=(1, 2)), raw=b"\xff", more_rate=math.nan, other={1, 2})
    record = bundles.record()
    rerun(typed, {}, bundles)
    first, second = received

    assert [name for name in first if not same_or_default(first[name], second[name])] == []
    assert first["options"].keys() == {"more_rate", "other"}
    assert record.request.rerun == {"mode": "default"}
    assert [entry for entry in record.job_status.history if entry.kind is EntryKind.NOTE] == []


def same_or_default(left: Any, right: Any) -> bool:
    return left is right or same(left, right)


def test_what_cannot_be_recorded_is_refused_before_the_method_runs(bundles):
    with pytest.raises(InputError, match=r"input 'x' is a _thread.lock, which a record cannot hold"):
        free(threading.Lock())
    assert received == []


def test_an_array_is_passed_on_unchanged_and_named_in_a_rerun(bundles):
    free(np.arange(6.0).reshape(2, 3))
    assert received[0]["x"].shape == (2, 3)
    with pytest.raises(RequestError, match=r"x \(a numpy.ndarray of shape \(2, 3\), sha256 [0-9a-f]{64}\); give it"):
        rerun_request(bundles.record(), {})
    assert bundles.failed_checks() == []


def test_a_call_that_was_refused_is_not_repeated_with_what_prefect_made_of_its_values(bundles):
    with pytest.raises(Exception, match="invalid parameters"):
        typed(rate="fast", either=math.inf, price=Decimal("1.10"))
    with pytest.raises(RequestError) as raised:
        rerun_request(bundles.record(), {})
    assert "either" in str(raised.value)
    assert "price" in str(raised.value)
