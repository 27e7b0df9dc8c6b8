"""The recorded form of the value that a Method returned."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from prefect.states import Completed
from pydantic import BaseModel, SecretStr

from prefect_executions.capture.secrets import SecretMask
from prefect_executions.executions.record import Returned
from prefect_executions.executions.values import readable_form
from prefect_executions.flow.returned import returned_value


@dataclass
class Point:
    x: float
    password: str = "hunter2"


class Login(BaseModel):
    user: str
    token: SecretStr


class Strange:
    def __repr__(self) -> str:
        raise ZeroDivisionError


def masking(*secrets: str) -> SecretMask:
    mask = SecretMask()
    mask.add(*secrets)
    return mask


@pytest.mark.parametrize(
    ("value", "recorded"),
    [
        (42, 42),
        (False, False),
        ("text", "text"),
        ({"answer": 42, "parts": (1, 2), "none": None}, {"answer": 42, "parts": [1, 2], "none": None}),
        (Path("/data/a.csv"), "/data/a.csv"),
        (np.float64(0.5), 0.5),
        (float("nan"), {"python": "float", "value": "NaN"}),
        (Point(1.5), {"x": 1.5, "password": {"withheld": True}}),
        (Login(user="ada", token="secret"), {"user": "ada", "token": {"withheld": True}}),
    ],
)
def test_a_value_with_json_is_recorded_as_json(value, recorded):
    returned = returned_value(value, SecretMask())
    assert (returned.value, returned.text) == (recorded, None)
    assert Returned.model_validate(json.loads(returned.model_dump_json())).value == recorded


def test_an_array_is_recorded_by_type_shape_and_digest():
    array = np.arange(6.0).reshape(2, 3)
    assert returned_value({"array": array}, SecretMask()).value["array"] == {
        "unrecorded": "numpy.ndarray",
        "dtype": "float64",
        "shape": [2, 3],
        "sha256": sha256(array.tobytes()).hexdigest(),
    }


def test_the_digest_of_a_large_array_is_left_out():
    form, _ = readable_form(np.zeros(100), max_digested=799)
    assert form == {"unrecorded": "numpy.ndarray", "dtype": "float64", "shape": [100]}
    assert "sha256" in readable_form(np.zeros(100), max_digested=800)[0]
    several, _ = readable_form([np.zeros(100), np.zeros(100), np.zeros(10)], max_digested=1000)
    assert ["sha256" in form for form in several] == [True, False, True]


@pytest.mark.parametrize("value", [list(range(20_000)), {str(key): key for key in range(20_000)}, "x" * 100_000])
def test_of_a_large_value_the_beginning_of_its_text_is_recorded(value):
    returned = returned_value(value, SecretMask())
    assert returned.value is None
    assert 0 < len(returned.text) <= 1000


def test_a_value_without_json_is_recorded_by_its_text():
    assert returned_value(object(), SecretMask()).text.startswith("<object object at")
    assert returned_value(Strange(), SecretMask()).type == f"{__name__}.Strange"
    loop: list[object] = []
    loop.append(loop)
    assert returned_value(loop, SecretMask()).value is None


@pytest.mark.parametrize("value", [None, Completed(), [Completed()]])
def test_nothing_and_states_of_prefect_are_not_recorded(value):
    assert returned_value(value, SecretMask()) is None


def test_secrets_are_masked():
    mask = masking("hunter2000")
    assert "hunter2000" not in returned_value({"a": ["is hunter2000"]}, mask).model_dump_json()
    assert "hunter2000" not in returned_value(["hunter2000"] * 20_000, mask).model_dump_json()
    assert "pass" not in returned_value("https://ada:pass@example.org/", SecretMask()).value


class Shown:
    def __repr__(self) -> str:
        return "<Shown user=ada, password='hunter2'>"


@dataclass
class Large:
    values: list[int]
    password: str = "hunter2"


class LargeLogin(NamedTuple):
    values: list[int]
    password: str = "hunter2"


MANY = [0] * 20_000


@pytest.mark.parametrize(
    "value",
    [
        SimpleNamespace(password="hunter2"),
        [SimpleNamespace(password="hunter2"), *MANY],
        argparse.Namespace(password="hunter2"),
        Shown(),
        [Shown(), *MANY],
        Large(MANY),
        LargeLogin(MANY),
        {"password": "hunter2", "values": MANY},
        {"password": ["hunter2"], "values": MANY},
        OrderedDict(my_own="hunter2", values=MANY),
        {"a": {"b": {"token": b"hunter2"}}, "values": MANY},
        "my_own: hunter2\n" + "x" * 100_000,
        ["x\ntoken: hunter2", *MANY],
        b'{"password": "hunter2"}' + bytes(100_000),
        ["Basic aHVudGVyMjpodW50ZXIy hunter2", *MANY],
        "postgresql://ada:hunter2" + "x" * 500 + "@host/db " + "x" * 100_000,
    ],
)
def test_a_value_with_a_secret_name_is_not_in_the_text(value):
    returned = returned_value(value, SecretMask(), ("my_own",))
    assert returned.value is None
    assert "hunter2" not in (returned.text or "")
    assert "aHVu" not in (returned.text or "")


@pytest.mark.parametrize("secret", ["hunter2000" * 10, "hunter2000-\xe9"])
@pytest.mark.parametrize("before", [0, 980, 995, 5090])
@pytest.mark.parametrize("kind", [str, str.encode, lambda text: [text, *MANY], lambda text: {1: text, 2: MANY}])
def test_no_part_of_a_secret_is_left_at_the_end_of_the_text(secret, before, kind):
    returned = returned_value(kind("x" * before + secret + "y" * 100_000), masking(secret))
    assert returned.value is None
    assert "xhu" not in returned.text
    assert "hunter" not in returned.text


def test_a_large_value_is_not_read_as_a_whole():
    large = bytes(200_000)
    for value in ([large], {"a": bytearray(large)}, ["x" * 50_000] * 2, {"x" * 70_000: 1}):
        returned = returned_value(value, SecretMask())
        assert returned.value is None
        assert len(returned.text) <= 1000
    assert returned_value([large] * 20, SecretMask()).text.startswith("[b'\\x00\\x00")
    nested: list[object] = [0] * 20
    for _ in range(6):
        nested = [nested] * 20
    assert len(returned_value([nested, MANY], SecretMask()).text) <= 1000
