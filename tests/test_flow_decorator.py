"""`@method`: the form, the descriptor, and Methods that are members of a class."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import pytest
from prefect import flow
from pydantic import BaseModel, Field, Json, SecretStr

import ogc
from homes import Bundles
from prefect_executions import InputFile, current_execution, method
from prefect_executions.errors import MethodError

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def bundles(home: Path) -> Bundles:
    return Bundles(home)


class Telescope:
    """A class with an instance method, class method and static method that are Methods."""

    aperture = 8

    def __init__(self, focus: int) -> None:
        self.focus = focus
        self.seen: list[int] = []

    @method(version="1")
    def look(self, times: int = 2) -> int:
        """Look through it.

        Args:
            times: How often.
        """
        self.seen.append(times)
        current_execution().output("seen.txt").write_text(str(times))
        return self.focus * times

    @method(version="1")
    @flow(name="gather-light")
    @classmethod
    def gather(cls, scene: InputFile, times: int = 2) -> str:
        return scene.read_text() * (cls.aperture // times)

    @method(version="1")
    @staticmethod
    def wait(nights: int = 1) -> int:
        return nights

    @method(version="1")
    def unlock(self, key: SecretStr, times: int = 1) -> str:
        return key.get_secret_value() * times

    @method(version="1")
    async def turn(self) -> int:
        """Turn it."""
        return self.focus


def test_self_is_not_an_input_and_stays_the_object(bundles):
    telescope = Telescope(5)

    assert telescope.look(times=3) == 15
    assert telescope.seen == [3]
    request = bundles.record().request
    assert (request.values, request.parameters) == ({"times": 3}, {"times": 3})
    assert request.validated
    assert bundles.failed_checks() == []


def test_the_form_of_a_method_in_a_class_omits_self_and_has_descriptions():
    assert list(Telescope.look.method.inputs) == ["times"]
    assert Telescope.look.parameters.properties["times"] == {
        "default": 2,
        "description": "How often.",
        "position": 1,
        "title": "times",
        "type": "integer",
        "x-prefect-executions": "1",
    }
    assert "x-prefect-executions: 1" in Telescope.turn.description


def test_a_class_method_is_bound_to_its_class(bundles, tmp_path):
    (tmp_path / "scene.txt").write_text("*")

    assert Telescope.gather(str(tmp_path / "scene.txt")) == "****"
    request = bundles.record().request
    assert request.method_id == "gather-light"
    assert list(request.values) == list(request.parameters) == ["scene", "times"]
    assert [file.input for file in request.files] == ["scene"]


@pytest.mark.long
def test_a_static_method_stays_unbound(bundles):
    assert Telescope.wait(3) == 3
    assert bundles.record().request.values == {"nights": 3}


@pytest.mark.long
def test_other_options_leave_a_method_bound(bundles, tmp_path):
    (tmp_path / "scene.txt").write_text("*")

    assert Telescope(5).look.with_options(retries=1)(3) == 15
    assert Telescope.gather.with_options(name="again")(tmp_path / "scene.txt", times=4) == "**"
    assert Telescope.wait.with_options(name="later")(2) == 2
    values = {bundles.record(folder).method.id: bundles.record(folder).request.values for folder in bundles.folders()}
    assert [values[name] for name in ("look", "later")] == [{"times": 3}, {"nights": 2}]
    assert list(values["again"]) == ["scene", "times"]


async def _turned() -> int:
    return await Telescope(7).turn()


def test_an_async_method_of_an_object_runs_in_its_loop(bundles):
    assert asyncio.run(_turned()) == 7
    assert bundles.record().request.values == {}


@pytest.mark.long
def test_a_secret_of_a_method_in_a_class_is_given_by_its_name(bundles, monkeypatch):
    monkeypatch.setenv("KEY", "open")

    assert Telescope(5).unlock("env:KEY", times=2) == "openopen"
    assert bundles.record().request.values == {"key": {"secret": "env:KEY"}, "times": 2}


class Shift(BaseModel):
    """How far."""

    by: Annotated[int, Field(description="Pixels.", ge=0)] = 0


@method(version="1")
def register(  # noqa: PLR0917 - each parameter is another case
    scene: Annotated[InputFile, Field(description="The picture.")],
    threshold: Annotated[float, Field(ge=0, le=1, description="Brighter pixels count.")] = 0.5,
    key: Annotated[SecretStr | None, Field(description="Opens the catalogue.")] = None,
    shift: Annotated[Shift, Field(description="Where to.")] = Shift(),  # noqa: B008 - as authors write it
    limit: int = Field(default=3, description="At most."),
    rounds: Annotated[int, Field(description="The docstring says it better.")] = 1,
) -> None:
    """Put one picture upon another.

    Args:
        rounds: How often it is tried.
    """


def test_a_description_comes_from_the_docstring_or_from_the_annotation_into_descriptor_and_form():
    descriptions = {
        "scene": "The picture.",
        "threshold": "Brighter pixels count.",
        "key": "Opens the catalogue.",
        "shift": "Where to.",
        "limit": "At most.",
        "rounds": "How often it is tried.",
    }

    assert {name: described.description for name, described in register.method.inputs.items()} == descriptions
    assert {
        name: described["description"] for name, described in register.parameters.properties.items()
    } == descriptions
    assert register.parameters.properties["threshold"]["maximum"] == 1
    assert register.parameters.properties["scene"]["format"] == "uri-reference"


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: Annotated[int, Field(json_schema_extra={"unit": "lives"})] = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


@method(version="1")
def keep(
    pet: Annotated[Cat | Dog, Field(discriminator="kind")],
    weight: Annotated[float, Field(examples=[4.5], json_schema_extra={"unit": "kg", "keywords": 3})] = 4.5,
    names: dict[Annotated[str, Field(pattern="^[a-z]+$")], int | None] = {},  # noqa: B006 - as authors write it
    told: Json[list[int]] = "[]",
    nothing: None = None,
) -> None: ...


def test_the_descriptor_of_any_pydantic_type_follows_ogcs_schema():
    document = json.loads(keep.method.to_json())

    assert ogc.faults("process", document) == []
    assert document["inputs"]["pet"]["schema"]["oneOf"][1]["properties"]["kind"]["enum"] == ["dog"]
    assert document["inputs"]["weight"]["unit"] == "kg"
    assert document["inputs"]["weight"]["schema"] == {"default": 4.5, "type": "number"}
    assert document["inputs"]["nothing"]["schema"] == {"default": None, "enum": [None], "nullable": True}


def in_list(keys: list[SecretStr]) -> None: ...


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: method(keywords="spectra"), r"keywords must be a list of strings: keywords=\['spectra'\]"),
        (lambda: method(secrets="token"), r"secrets must be a list of strings: secrets=\['token'\]"),
        (lambda: method(version=1.0), "version is invalid: Input should be a valid string; 1.0 was given"),
        (lambda: method(outputs=["a.csv"]), "outputs is invalid"),
        (lambda: method(comparisons={"a.csv": "bytes"}), "comparisons.a.csv is invalid"),
        (lambda: method("1.0.0"), r"name its arguments: @method\(version='1.0.0'\)"),
        (lambda: method(in_list), "'keys' holds several secrets"),
    ],
)
def test_an_invalid_declaration_is_refused_with_the_reason(declare: Callable[[], object], message):
    with pytest.raises(MethodError, match=message):
        declare()


@pytest.mark.parametrize("collection", [list, tuple, set, frozenset])
def test_keywords_and_secrets_may_be_any_collection_of_strings(collection):
    @method(keywords=collection(["spectra"]), secrets=collection(["key"]))
    def measure(key: str): ...

    assert measure.method.keywords == ("spectra",)
    assert measure.method.secrets == {"key"}


def test_a_misspelled_argument_is_a_type_error():
    with pytest.raises(TypeError, match=r"method\(\) got an unexpected keyword argument 'versoin'$"):
        method(versoin="1")


def test_an_option_of_flow_is_refused_with_its_place():
    with pytest.raises(TypeError, match=r"'retries'; it is an option of @flow\(retries=…\), written below @method"):
        method(retries=2)
