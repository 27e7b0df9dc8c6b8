"""The recorded form of Python values gives back the same value, or names its type, shape and digest."""

from __future__ import annotations

import datetime as dt
import json
import math
import threading
from collections import Counter, OrderedDict, deque, namedtuple
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from hashlib import sha256
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, TypeAdapter

from prefect_executions.documents import strict_json
from prefect_executions.errors import InputError
from prefect_executions.executions.record import ExecuteRequest
from prefect_executions.executions.value_types import is_marker, restore
from prefect_executions.executions.values import (
    has_unknown,
    input_form,
    readable_form,
    recorded_form,
    same_form,
    text_of,
    type_name,
)
from prefect_executions.methods.model import InputFile


class Channel(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Crop(BaseModel):
    width: Any = 1
    scale: float = math.inf


@dataclass
class Point:
    x: float
    tags: tuple[str, ...] = ()


Pair = namedtuple("Pair", "left right")  # noqa: PYI024 - a class without annotations is meant

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(4299, 4301).map(lambda digits: 10**digits),
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters()),
    st.binary(max_size=20),
    st.binary(max_size=20).map(bytearray),
    st.decimals(),
    st.fractions(),
    st.uuids(),
    st.dates(),
    st.datetimes(timezones=st.none() | st.timezones() | st.just(dt.UTC)),
    st.times(),
    st.timedeltas(),
    st.text(st.characters(exclude_characters="\0")).map(PurePosixPath),
    st.sampled_from(["python", "value", "withheld", "unrecorded", "base64", "NaN", "Infinity", "env:TOKEN"]),
    st.sampled_from([range(3), slice(1, None), Path("a"), PureWindowsPath("c:/a"), InputFile("a.txt")]),
    st.floats(width=32).map(np.float32),
    st.floats().map(np.float64),
    st.integers(-128, 127).map(np.int8),
    st.complex_numbers().map(np.complex128),
    st.booleans().map(np.bool_),
    st.sampled_from([np.datetime64("NaT"), np.datetime64("2020-01-01", "ns"), np.datetime64("2020", "25s")]),
    st.sampled_from(["NaT", 5, -1]).map(lambda number: np.timedelta64(number, "ns")),
    st.integers(0, 9).map(np.timedelta64),
    st.text(max_size=5).map(np.str_),
)
hashable = scalars.filter(lambda value: not isinstance(value, bytearray | slice | np.timedelta64 | Decimal))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=3).map(deque),
        st.frozensets(hashable, max_size=3),
        st.sets(hashable, max_size=3),
        st.dictionaries(st.text(max_size=5) | hashable, inner, max_size=3),
        st.dictionaries(st.text(max_size=5), inner, max_size=3).map(OrderedDict),
        st.fixed_dictionaries({"python": inner, "value": inner}),
        st.fixed_dictionaries({"withheld": inner}),
        st.fixed_dictionaries({"unrecorded": inner}, optional={"sha256": inner}),
    ),
    max_leaves=12,
)


@given(values)
def test_a_value_comes_back_from_its_document_with_its_type(value):
    form = recorded_form(value)
    request = ExecuteRequest(execution_id="i", method_id="m", method_version="1", values={"x": form})
    document = request.to_json()
    strict_json(document, "request.json")
    restored = restore(ExecuteRequest.from_json(document).values["x"])

    assert type(restored) is type(value)
    assert same_form(recorded_form(restored), form)
    assert not has_unknown(form)
    assert equal(restored, value)


def equal(left: Any, right: Any) -> bool:
    """Compare without `recorded_form`: equal types, and numbers that are not a number equal themselves."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple | deque):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, dict):
        return len(left) == len(right) and all(
            map(equal, [*left.keys(), *left.values()], [*right.keys(), *right.values()])
        )
    if isinstance(left, set | frozenset):
        return len(left) == len(right) and {repr(part) for part in left} == {repr(part) for part in right}
    if isinstance(left, float | complex | Decimal | np.generic):
        return repr(left) == repr(right)
    return bool(left == right)


@given(values, values)
def test_equal_forms_mean_equal_values(left, right):
    if same_form(recorded_form(left), recorded_form(right)):
        assert equal(left, right)


@pytest.mark.parametrize(
    "value",
    [Channel.RED, Level.HIGH, Crop(), Point(1.0, ("a",)), Pair(1, 2), len, json.dumps, Counter, Point],
)
def test_an_object_of_another_class_is_recorded_with_its_content_and_not_restored(value):
    form = recorded_form(value)

    assert form["python"] == type_name(value)
    with pytest.raises(InputError, match="not restored"):
        restore(form)
    with pytest.raises(InputError):
        restore({"python": "os.system", "value": "true"})


@pytest.mark.parametrize(
    ("annotation", "value", "form"),
    [
        (float, math.inf, "Infinity"),
        (float, math.nan, "NaN"),
        (float | str, math.inf, {"python": "float", "value": "Infinity"}),
        (float | str, "Infinity", "Infinity"),
        (Any, (1, 2), {"python": "tuple", "value": [1, 2]}),
        (tuple[int, ...], (1, 2), [1, 2]),
        (set[int], {2, 1}, [1, 2]),
        (bytes, b"abc", "abc"),
        (bytes, b"\xff", {"python": "bytes", "base64": "/w=="}),
        (dt.date, dt.date(2020, 1, 2), "2020-01-02"),
        (Decimal, Decimal("1.10"), "1.10"),
        (Path, Path("a"), "a"),
        (UUID, UUID(int=1), str(UUID(int=1))),
        (Channel, Channel.RED, "red"),
        (Crop, Crop(), {"width": 1, "scale": "Infinity"}),
        (
            Crop,
            Crop(width=(1,)),
            {"width": {"python": "tuple", "value": [1]}, "scale": {"python": "float", "value": "Infinity"}},
        ),
        (Point, Point(1.0, ("a",)), {"x": 1.0, "tags": ["a"]}),
        (dict[int, str], {1: "a"}, {"1": "a"}),
        (dict[int | str, str], {1: "a"}, {"python": "dict", "value": [[1, "a"]]}),
    ],
)
def test_the_plainest_form_that_gives_the_method_the_value_is_recorded(annotation, value, form):
    validate = TypeAdapter(annotation).validate_python

    assert input_form(value, validate) == (form, True)
    assert same_form(recorded_form(validate(restore(form))), recorded_form(value))


def test_a_value_that_the_annotation_cannot_give_back_is_not_exact():
    assert not input_form(Channel.RED, lambda value: value).exact
    assert not input_form(6, lambda value: value * 2, converts=True).exact
    assert input_form(6, lambda value: value, converts=True).exact
    assert not input_form(np.zeros(3), lambda value: value).exact


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3).T, np.array([])])
def test_an_array_is_recorded_by_type_shape_and_digest(array):
    assert recorded_form(array) == {
        "unrecorded": "numpy.ndarray",
        "dtype": "float64",
        "shape": list(array.shape),
        "sha256": sha256(np.ascontiguousarray(array)).hexdigest(),
    }


def test_masked_and_object_arrays_are_told_apart_by_their_digests():
    arrays = [
        np.ma.array([1, 2], mask=[0, 1]),
        np.ma.array([1, 2], mask=[0, 0]),
        np.ma.array([1, 3], mask=[0, 0]),
        np.array(["a", None]),
        np.array(["a", "b"], dtype=object),
    ]
    digests = {recorded_form(array)["sha256"] for array in arrays}

    assert len(digests) == len(arrays)
    assert recorded_form(np.array(["a", None])) == recorded_form(np.array(["a", None]))


def test_what_has_neither_form_nor_digest_is_refused_with_its_type(tmp_path):
    numbers = iter(number for number in range(3))
    (tmp_path / "file").touch()
    with (tmp_path / "file").open() as file:
        for value in (numbers, file, threading.Lock(), lambda: 0, json, [1, {"deep": threading.Lock()}]):
            with pytest.raises(InputError, match=r"which a record cannot hold .* make it inside the Method"):
                recorded_form(value)
    assert list(numbers) == [0, 1, 2]


def test_a_value_inside_itself_or_too_deep_is_recorded_by_its_digest():
    itself: list[Any] = [1]
    itself.append(itself)
    deep: Any = 1
    for _ in range(120):
        deep = [deep]

    assert recorded_form(itself).keys() == {"unrecorded", "sha256"}
    assert recorded_form(deep).keys() == {"unrecorded", "sha256"}


def test_a_secret_is_withheld_and_not_in_a_digest():
    assert recorded_form([SecretStr("hush")]) == [{"withheld": True}]
    first, second = ({1j: Holder(SecretStr(text))} for text in ("hush", "other"))
    assert recorded_form(first) == recorded_form(second)


class Holder:
    def __init__(self, secret: SecretStr) -> None:
        self.secret = secret


@given(values)
def test_a_readable_form_never_fails_and_fits_json(value):
    form, missing = readable_form(value)

    assert strict_json(json.dumps(form), "x") == form or "NaN" in json.dumps(form)
    assert missing == ()


def test_a_key_too_long_for_a_name_is_part_of_a_pair():
    assert restore(readable_form({10**4300: 1})[0]) == {10**4300: 1}


def test_a_reader_sees_a_value_as_python_writes_it():
    for value in (math.inf, (1, 2), b"a", Fraction(1, 3), Decimal("1.10"), {1: math.nan}, dt.date(2020, 1, 2)):
        assert text_of(recorded_form(value)) == repr(value)
    assert text_of("Infinity") == '"Infinity"'
    assert json.loads(text_of(recorded_form(Channel.RED))) == recorded_form(Channel.RED)


@given(
    st.dictionaries(st.sampled_from(["python", "value", "dtype", "base64"]), values, max_size=3).filter(is_marker)
    | st.fixed_dictionaries({"python": st.text(), "value": scalars})
)
def test_a_foreign_form_is_restored_or_refused(form):
    foreign = json.loads(json.dumps(recorded_form(form)))
    foreign = dict(foreign["value"]) if is_marker(foreign) else foreign
    for name in ("int", "float", "tuple", "complex", "datetime.datetime", "numpy.float64", "numpy.S99999999999"):
        try:
            restore(foreign | {"python": name})
        except InputError:
            continue


def test_a_zone_is_kept():
    moment = dt.datetime(2020, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Paris"), fold=1)
    restored = restore(recorded_form(moment))

    assert (restored.tzinfo, restored.fold) == (ZoneInfo("Europe/Paris"), 1)
