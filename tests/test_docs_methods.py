"""The page docs/methods.md is true: its Methods load, run, and do what it says of them."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator, Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from prefect_executions import Comparison, Execution, current_execution, method
from prefect_executions.bundles.verify import verify
from prefect_executions.errors import InputError, NoExecutionError, SecretError
from prefect_executions.executions.record import ExecuteRequest
from prefect_executions.flow.decorator import Declaration
from prefect_executions.methods.model import comparison_of

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Any:
    """Return the page's Python as the module that a reader would make of it."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    file = tmp_path_factory.mktemp("page") / "methods_page.py"
    file.write_text("\n\n".join(blocks), encoding="utf-8")
    spec = spec_from_file_location(file.stem, file)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bundles(home, prefect_server):
    """Return a function that gives the sealed bundles of all runs so far, oldest first."""

    def all_of_them() -> list[Path]:
        folders = [folder for folder in (home / "workbench").iterdir() if not folder.name.startswith(".")]
        assert [fault for folder in folders for fault in verify(folder).faults] == []
        return sorted(folders, key=lambda folder: read(folder, "jobStatus")["created"])

    return all_of_them


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "metadata" / f"{name}.json").read_bytes())


def values(folder: Path) -> Mapping[str, Any]:
    return ExecuteRequest.from_json((folder / "metadata" / "request.json").read_bytes()).values


def test_every_argument_of_the_decorator_and_of_a_comparison_is_told():
    told = set(re.findall(r"^\| `(\w+)` \| .* \| .* \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert told == Declaration.__annotations__.keys() | Comparison.model_fields.keys()


def test_what_is_declared_of_outputs_is_in_the_descriptor(page):
    assert page.fit.method.comparisons["trace.bin"].is_volatile
    assert comparison_of("outputs/fits/deep/a.dat", page.fit.method.comparisons).by == "table"


def test_everything_that_an_execution_offers_is_told():
    ours = {"change", "close"}  # for the record around the Method, not for its author
    offered = {name for name in dir(Execution) if not name.startswith("_")} - ours
    assert not {name for name in offered if not re.search(rf"\b{name}\b", PAGE.read_text(encoding="utf-8"))}


def test_the_first_method_is_described_by_its_signature_and_docstring(page):
    points = page.estimate_pi.method.inputs["points"]
    assert points.description == "How many points are thrown."
    assert points.json_schema == {"type": "integer", "default": 1000}


def test_the_first_method_runs(page, bundles):
    assert page.estimate_pi(points=20_000) == pytest.approx(3.14, abs=0.05)
    (folder,) = bundles()
    assert read(folder, "metrics")["metrics"][0]["name"] == "inside"
    assert (folder / "code" / "methods_page.py").exists()


def test_a_plain_function_is_tested_without_an_execution(page):
    with pytest.raises(NoExecutionError):
        page.estimate_pi.fn()


def test_files_are_staged_and_the_values_that_were_used_are_kept(page, bundles, tmp_path):
    for name, size in {"scene": 3, "one": 4, "two": 5}.items():
        (tmp_path / f"{name}.fits").write_bytes(b"*" * size)
    assert page.measure(tmp_path / "scene.fits", flats=[tmp_path / "one.fits", tmp_path / "two.fits"]) == 12
    (folder,) = bundles()
    assert [file["size"] for file in read(folder, "request")["files"]] == [3, 4, 5]
    inputs = values(folder)
    assert (inputs["channel"], inputs["crop"], inputs["threshold"]) == ("green", {"width": 512, "height": 512}, 0.5)


def test_a_missing_file_ends_the_run_before_the_code(page, bundles, tmp_path):
    with pytest.raises(InputError, match="scene"):
        page.measure(tmp_path / "missing.fits")
    (folder,) = bundles()
    assert "EXECUTING" not in {entry["status"] for entry in read(folder, "jobStatus")["history"]}


def test_a_secret_is_given_by_its_name(page, bundles, tmp_path, monkeypatch):
    monkeypatch.setenv("TELESCOPE_TOKEN", "correct-horse-battery")
    (tmp_path / "scene.fits").write_bytes(b"***")
    page.measure(tmp_path / "scene.fits", token="env:TELESCOPE_TOKEN")
    (folder,) = bundles()
    assert values(folder)["token"] == {"secret": "env:TELESCOPE_TOKEN"}
    everything = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    assert b"correct-horse-battery" not in everything


def test_a_secret_given_in_clear_is_refused(page, home, prefect_server, tmp_path):
    with pytest.raises(SecretError):
        page.measure(tmp_path / "scene.fits", token="Correct Horse!")
    assert not home.exists()


def test_what_a_method_tells_is_where_the_page_says(page, bundles, capfd):
    page.descend(rate=1.5, steps=4)
    (folder,) = bundles()
    assert (folder / "outputs" / "path" / "last.txt").read_text() == "16.0\n"
    assert "lowest point: 16.0" in (folder / "outputs" / "stdout.log").read_text()
    assert read(folder, "metrics")["params"] == {"start": 1.0}
    assert [metric["step"] for metric in read(folder, "metrics")["metrics"] if metric["name"] == "height"] == [
        1,
        2,
        3,
        4,
    ]
    history = read(folder, "jobStatus")["history"]
    kinds = [entry["kind"] for entry in history]
    assert kinds.index("progress") < kinds.index("note")
    assert any(entry.get("message", "").startswith("the rate is too high") for entry in history)


@pytest.fixture
def sockets_left_by_prefect() -> Iterator[None]:
    """Collect the connections that Prefect's engine for async flows opens to ask for a result storage, and leaves."""
    yield
    gc.collect()


def leaves_sockets(test: Any) -> Any:
    ignored = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
    return ignored(pytest.mark.usefixtures("sockets_left_by_prefect")(test))


@leaves_sockets
async def test_an_async_flow_and_its_tasks_tell_one_execution(page, bundles):
    assert await page.weigh_all() == 60
    (folder,) = bundles()
    assert {metric["step"] for metric in read(folder, "metrics")["metrics"]} == {1, 2, 3}
    assert read(folder, "method")["id"] == "weigh-all"


@pytest.mark.long
@leaves_sockets
async def test_with_options_gives_another_method_with_the_same_declaration(page, bundles):
    assert await page.patient(samples=1) == 10
    (folder,) = bundles()
    told = read(folder, "method")
    assert (told["id"], told["version"], told["timeLimit"]) == ("weigh-patiently", "2.1.0", 3600)


def test_retries_are_attempts_of_one_execution(bundles):
    @method(version="1")
    def stubborn() -> None:
        execution = current_execution()
        attempt = execution.metadata.attempt
        execution.output(f"{attempt}.txt").write_text("tried")
        if attempt == 1:
            raise RuntimeError("not yet")

    stubborn.with_options(retries=1)()
    (folder,) = bundles()
    assert read(folder, "jobStatus")["attempt"] == 2
    assert (folder / "outputs" / "1.txt").exists()
    assert (folder / "outputs" / "2.txt").exists()


def test_a_time_limit_keeps_what_was_written(bundles):
    @method(version="1")
    def endless() -> None:
        current_execution().output("half.txt").write_text("half")
        while True:
            pass

    with pytest.raises(TimeoutError):
        endless.with_options(timeout_seconds=0.5)()
    (folder,) = bundles()
    assert read(folder, "jobStatus")["reason"] == "timed_out"
    assert (folder / "outputs" / "half.txt").read_text() == "half"


def test_a_method_that_calls_a_method_leaves_two_bundles(page, bundles):
    @method(version="1")
    def twice() -> float:
        return page.estimate_pi(points=10, seed=1) - page.estimate_pi(points=10, seed=1)

    assert twice() == 0
    assert len(bundles()) == 3
