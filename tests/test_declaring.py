"""A Method that a class holds is the flow that Prefect makes of it, and keeps its record."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prefect import flow
from pydantic import SecretStr

from homes import Bundles
from prefect_executions import InputFile, current_execution, method

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def bundles(home: Path) -> Bundles:
    return Bundles(home)


class Telescope:
    """What holds Methods: of itself, of its class, and of nothing."""

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


def test_what_a_method_is_called_on_is_no_input_and_stays_itself(bundles):
    telescope = Telescope(5)

    assert telescope.look(times=3) == 15
    assert telescope.seen == [3]
    request = bundles.record().request
    assert (request.values, request.parameters) == ({"times": 3}, {"times": 3})
    assert request.validated
    assert bundles.failed_checks() == []


def test_the_form_of_a_method_in_a_class_asks_what_a_caller_gives_and_says_what_it_is():
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


def test_a_static_method_is_bound_to_nothing(bundles):
    assert Telescope.wait(3) == 3
    assert bundles.record().request.values == {"nights": 3}


def test_other_options_leave_a_method_bound(bundles, tmp_path):
    (tmp_path / "scene.txt").write_text("*")

    assert Telescope(5).look.with_options(retries=1)(3) == 15
    assert Telescope.gather.with_options(name="again")(tmp_path / "scene.txt", times=4) == "**"
    assert Telescope.wait.with_options(name="later")(2) == 2
    asked = {bundles.record(folder).method.id: bundles.record(folder).request.values for folder in bundles.folders()}
    assert [asked[name] for name in ("look", "later")] == [{"times": 3}, {"nights": 2}]
    assert list(asked["again"]) == ["scene", "times"]


async def _turned() -> int:
    return await Telescope(7).turn()


def test_an_async_method_of_an_object_runs_in_its_loop(bundles):
    assert asyncio.run(_turned()) == 7
    assert bundles.record().request.values == {}


def test_a_secret_of_a_method_in_a_class_is_given_by_its_name(bundles, monkeypatch):
    monkeypatch.setenv("KEY", "open")

    assert Telescope(5).unlock("env:KEY", times=2) == "openopen"
    assert bundles.record().request.values == {"key": {"secret": "env:KEY"}, "times": 2}
