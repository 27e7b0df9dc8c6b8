"""Recording of a run: every end leaves one correct record."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
import pytest
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_progress_artifact
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.exceptions import ParameterTypeError
from prefect.flows import Flow
from prefect.states import Completed, Failed
from pydantic import BaseModel, Field, SecretStr, model_validator

from homes import WHOLE_WAY, Bundles, holding, kinds
from marks import long_if
from prefect_executions import Comparison, Execution, InputFile, MethodFlow, background, current_execution, method
from prefect_executions.capture.code import PROCESS
from prefect_executions.errors import InputError, MethodError, NoExecutionError, RequestError, SecretError
from prefect_executions.executions.record import Returned
from prefect_executions.executions.value_types import restore
from prefect_executions.flow import entrypoints
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.lifecycle.history import EntryKind
from prefect_executions.lifecycle.status import Observer, Reason, Status
from prefect_executions.prefect_api import events as prefect_events

pytestmark = pytest.mark.usefixtures("prefect_server")

PLANTED = "-".join(["plAnted", "s3cret", "9f2c71"])  # noqa: FLY002 - the record keeps this file, too


@pytest.fixture
def bundles(home: Path) -> Bundles:
    return Bundles(home)


@method(version="1.0.0", title="Add", keywords=["sum"], type="Analysis")
def add(one: int, other: int = 2) -> int:
    """Add two numbers.

    Args:
        one: The first number.
    """
    current_execution().output("sum.txt").write_text(str(one + other))
    return one + other


def test_a_method_is_a_flow_and_returns_what_its_function_returns(bundles):
    assert isinstance(add, Flow)
    assert add(1) == 3
    assert (bundles.one() / "outputs" / "sum.txt").read_text() == "3"


def test_a_completed_run_has_every_status_with_its_time(bundles):
    add(1)
    record = bundles.record()

    assert kinds(record) == [*WHOLE_WAY, "COMPLETED"]
    times = [entry.time for entry in record.job_status.history]
    assert times == sorted(times)
    assert [entry.observer for entry in record.job_status.history] == [
        Observer.PREFECT,
        Observer.PREFECT,
        Observer.PREFECT,
        Observer.HOOK,
        Observer.HOOK,
    ]
    assert record.job_status.history[-1].prefect_state.type == "COMPLETED"


def test_the_times_of_a_direct_call_are_those_of_prefects_history(bundles):
    state = add(1, return_state=True)
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(state.state_details.flow_run_id)
    prefects = {one.type.value: one.timestamp for one in states}
    ours = {entry.status: entry.time for entry in bundles.record().job_status.history}

    assert ours[Status.SCHEDULED] == prefects["PENDING"]
    assert ours[Status.STARTED] == prefects["RUNNING"]
    assert ours[Status.COMPLETED] == prefects["COMPLETED"]
    assert ours[Status.CREATED] <= prefects["PENDING"]


def test_the_execution_id_is_the_flow_run_id(bundles):
    state = add(1, return_state=True)

    assert bundles.one().name == str(state.state_details.flow_run_id)


def test_the_record_verifies_and_leaves_nothing_open(bundles):
    add(1)

    assert bundles.failed_checks() == []
    assert bundles.open_scratch() == []
    subprocess.run(["sha256sum", "-c", "--quiet", "manifest-sha256.txt"], cwd=bundles.one(), check=True)


def test_the_validated_inputs_are_recorded_beside_the_raw_parameters(bundles):
    add(one="1")
    request = bundles.record().request

    assert request.values == {"one": 1, "other": 2}
    assert request.parameters["one"] == "1"


def test_the_ledger_has_the_row(bundles, home):
    add(1)
    background.drain()
    (row,) = Ledger.open(f"sqlite:///{home / 'ledger.db'}").list().rows

    assert (row.id, row.status, row.archive) == (bundles.one().name, Status.COMPLETED, "archived")


def test_an_error_is_recorded_with_its_traceback_and_raised_as_it_is(bundles):
    @method(version="1")
    def fails() -> None:
        current_execution().output("half.txt").write_text("kept")
        raise LookupError("no such star")

    with pytest.raises(LookupError, match="no such star"):
        fails()
    record = bundles.record()
    raised = record.instance.usage.exception

    assert (record.status, record.job_status.reason) == (Status.FAILED, Reason.ERROR)
    assert (raised.type, raised.message) == ("LookupError", "no such star")
    assert "raise LookupError" in raised.traceback
    assert "prefect" not in raised.traceback.lower().replace("test_flow", "").split("raise lookuperror", maxsplit=1)[0]
    assert (bundles.one() / "outputs" / "half.txt").read_text() == "kept"
    assert bundles.failed_checks() == []


@pytest.mark.long
def test_an_error_whose_str_fails_is_recorded_with_its_traceback(bundles):
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    @method(version="1")
    def fails() -> None:
        raise MuteError

    with pytest.raises(MuteError, match="<exception str\\(\\) failed>"):  # printable, so that Prefect can end the run
        fails()
    raised = bundles.record().instance.usage.exception

    assert raised.type.endswith("MuteError")
    assert raised.message == "<exception str() failed>"
    assert "raise MuteError" in raised.traceback


@pytest.mark.long
def test_an_error_with_lone_surrogates_ends_the_run_and_its_record(bundles):
    @method(version="1")
    def fails() -> None:
        try:
            int("\udcfc")
        except ValueError as error:
            raise OSError("no file Gr\udcfcn.txt") from error

    with pytest.raises(OSError, match="no file") as caught:
        fails()
    record = bundles.record()

    assert caught.value.args == ("no file Gr\\udcfcn.txt",)
    assert (record.status, record.job_status.reason) == (Status.FAILED, Reason.ERROR)
    assert "OSError: no file Gr\\udcfcn.txt" in record.job_status.message
    assert bundles.failed_checks() == []


def test_a_time_limit_ends_the_code_and_is_recorded(bundles):
    @method(version="1")
    @flow(timeout_seconds=0.5)
    def slow() -> None:
        for _ in range(100):
            time.sleep(0.05)

    with pytest.raises(TimeoutError):
        slow()

    assert bundles.record().job_status.reason is Reason.TIMED_OUT
    assert bundles.record().job_status.history[-1].prefect_state.name == "TimedOut"


@pytest.mark.long
def test_the_time_limit_excludes_sealing(bundles):
    @method(version="1")
    @flow(timeout_seconds=1)
    def writes_much() -> None:
        for number in range(3000):
            current_execution().output(f"many/{number}").write_bytes(b"x" * 50_000)
        time.sleep(0.6)

    begun = time.monotonic()
    writes_much.with_options(timeout_seconds=60)()
    assert time.monotonic() - begun > 0
    assert bundles.record().status is Status.COMPLETED


def test_an_async_method_runs_in_its_loop(bundles):
    @method(version="1")
    async def waits(seconds: float) -> str:
        await asyncio.sleep(seconds)
        current_execution().output("waited.txt").write_text("yes")
        return "waited"

    assert asyncio.run(waits(0.01)) == "waited"
    assert bundles.record().status is Status.COMPLETED
    assert bundles.failed_checks() == []


@pytest.mark.long
def test_an_async_method_is_timed_out_too(bundles):
    @method(version="1")
    @flow(timeout_seconds=0.2)
    async def waits() -> None:
        await asyncio.sleep(30)

    with pytest.raises(TimeoutError):
        asyncio.run(waits())
    assert bundles.record().job_status.reason is Reason.TIMED_OUT


@pytest.mark.long
def test_the_event_loop_runs_on_while_the_end_waits_for_the_code_of_another_run(bundles):
    released: list[str] = []

    def release(how: str) -> None:
        released.append(how)
        if len(released) == 1:
            PROCESS.lock.release()

    @method
    async def waits() -> None:
        sys.modules["loaded_late"] = ModuleType("loaded_late")  # only then the end looks at the code again
        PROCESS.lock.acquire()
        asyncio.get_running_loop().call_later(0.5, release, "loop")
        timer.start()

    timer = threading.Timer(20, release, ("timer",))
    try:
        asyncio.run(waits())
    finally:
        timer.cancel()
        del sys.modules["loaded_late"]
        if not released:
            PROCESS.lock.release()
    assert released == ["loop"]
    assert bundles.record().status is Status.COMPLETED


@pytest.mark.long
def test_a_cancelled_async_method_with_a_full_thread_pool_records_its_error_and_masks_it(bundles):
    release = threading.Event()

    @method(version="1")
    async def fails_beside_blocked_threads(token: SecretStr) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(64):  # more than asyncio's default pool has threads
            loop.run_in_executor(None, release.wait, 60)
        raise RuntimeError(f"refused: {token.get_secret_value()}")

    async def cancelled_soon() -> BaseException:
        threading.Timer(20, release.set).start()  # what hangs ends, so that the test does
        call = asyncio.ensure_future(fails_beside_blocked_threads("env:FULL_POOL"))
        with pytest.raises((asyncio.CancelledError, TimeoutError, RuntimeError)) as raised:
            await asyncio.wait_for(call, 5)
        return raised.value

    os.environ["FULL_POOL"] = PLANTED
    try:
        error: BaseException | None = asyncio.run(cancelled_soon())
    finally:
        del os.environ["FULL_POOL"]
        release.set()
    while error is not None:
        assert PLANTED not in repr(error)
        error = error.__cause__ or error.__context__
    usage = json.loads((bundles.one() / "metadata/instance.json").read_text())["usage"]
    assert usage["exception"]["type"] == "RuntimeError"
    assert PLANTED not in json.dumps(usage)


def test_a_system_exit_is_a_crash_with_its_exit_code(bundles):
    @method(version="1")
    def leaves() -> None:
        sys.exit(3)

    with pytest.raises(SystemExit):
        leaves()
    record = bundles.record()

    assert (record.job_status.reason, record.instance.usage.exit_code) == (Reason.CRASHED, 3)
    assert record.job_status.partial is True


def test_a_returned_state_decides_the_status(bundles):
    @method(version="1")
    def gives_up() -> Any:
        return Failed(message="not today")

    gives_up(return_state=True)
    record = bundles.record()

    assert (record.status, record.job_status.message) == (Status.FAILED, "not today")


@pytest.mark.long
def test_a_completed_state_with_another_name_is_completed(bundles):
    @method(version="1")
    def skips() -> Any:
        return Completed(name="Skipped")

    skips(return_state=True)

    assert bundles.record().status is Status.COMPLETED
    assert bundles.record().job_status.history[-1].prefect_state.name == "Skipped"


class Limits(BaseModel):
    low: int = 0
    high: int = Field(10, description="above low")

    @model_validator(mode="after")
    def _ordered(self) -> Limits:
        if self.high <= self.low:
            raise ValueError("high must be above low")
        return self


@method(version="1")
def within(limits: Limits) -> int:
    return limits.high - limits.low


def test_parameters_that_do_not_validate_leave_a_failed_record(bundles):
    with pytest.raises(ParameterTypeError):
        within({"low": 5, "high": 1})
    record = bundles.record()

    assert kinds(record) == ["CREATED", "SCHEDULED", "FAILED"]
    assert record.request.validated is False
    assert record.request.parameters == {"limits": {"low": 5, "high": 1}}
    assert "high must be above low" in record.job_status.message
    assert bundles.failed_checks() == []


def test_a_nested_model_is_recorded_with_its_defaults(bundles):
    within({"low": 5})

    assert bundles.record().request.values == {"limits": {"low": 5, "high": 10}}


@method(version="1")
def reads(text: InputFile, more: list[InputFile] = []) -> str:  # noqa: B006 - the shape that users write
    together = text.read_text() + "".join(file.read_text() for file in more)
    assert current_execution().input("text") == Path(text)
    return together


def test_an_input_file_is_staged_before_the_function_starts(bundles, tmp_path):
    (tmp_path / "a.txt").write_text("alpha")
    (tmp_path / "b.txt").write_text("beta")

    assert reads(tmp_path / "a.txt", [tmp_path / "b.txt"]) == "alphabeta"
    files = bundles.record().request.files

    assert [(file.input, file.name, file.size) for file in files] == [("text", "a.txt", 5), ("more", "b.txt", 4)]
    assert [(bundles.one() / file.path).read_text() for file in files] == ["alpha", "beta"]
    assert bundles.failed_checks() == []


@pytest.mark.long
def test_a_url_of_fsspec_is_staged(bundles):
    import fsspec  # noqa: PLC0415 - only this test needs it

    with fsspec.open("memory://staged/a.txt", "wt") as stream:
        stream.write("from memory")

    assert reads("memory://staged/a.txt") == "from memory"
    assert bundles.record().request.files[0].origin == "memory://staged/a.txt"


class Scene(BaseModel):
    scene: InputFile
    level: int = 1


@pytest.mark.long
def test_a_file_inside_a_model_is_staged(bundles, tmp_path):
    @method(version="1")
    def looks(options: Scene) -> str:
        return options.scene.read_text()

    (tmp_path / "scene.txt").write_text("hills")

    assert looks({"scene": str(tmp_path / "scene.txt")}) == "hills"
    assert bundles.record().request.files[0].input == "options.scene"


class Flats(BaseModel):
    dark: InputFile = "dark.txt"  # type: ignore[assignment]  # as users write it; defaults are not validated
    others: list[InputFile] = Field(default=["other.txt"], alias="moreFlats")
    label: str = "dark.txt"


@dataclass
class Mask:
    file: InputFile


class Frame(NamedTuple):
    file: InputFile
    seconds: int


def test_a_file_is_staged_wherever_an_annotation_declares_one(bundles, tmp_path, monkeypatch):
    @method(version="1")
    def looks(
        frames: set[InputFile],
        frame: Frame,
        mask: Mask,
        flats: Flats = Flats(),  # noqa: B008 - the shape that users write
        named: dict[str, InputFile] = {"a": "a.txt"},  # noqa: B006 - the same
    ) -> list[str]:
        inside = [*frames, frame.file, mask.file, flats.dark, *flats.others, *named.values()]
        assert (frame.seconds, flats.label) == (3, "dark.txt")
        return sorted(f"inputs/{one.rpartition('/inputs/')[2]}" for one in inside)

    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt", "dark.txt", "other.txt"):
        (tmp_path / name).write_text(name)
    staged = looks({"a.txt", "b.txt"}, Frame("b.txt", 3), Mask("a.txt"))
    request = bundles.record().request

    assert staged == sorted(file.path for file in request.files)
    assert {file.input for file in request.files} == {
        "frames",
        "frame",
        "mask.file",
        "flats.dark",
        "flats.moreFlats",
        "named.a",
    }
    assert request.values["flats"]["moreFlats"] == ["other.txt"]


def test_a_missing_input_fails_before_the_code_and_is_named(bundles, tmp_path):
    ran = []

    @method(version="1")
    def looks(scene: InputFile) -> None:
        ran.append(scene)

    with pytest.raises(InputError, match="scene") as refused:
        looks(tmp_path / "gone.tif")
    record = bundles.record()

    assert ran == []
    assert "staging.py" not in "".join(traceback.format_exception(refused.value)), "frames that say nothing to authors"
    assert kinds(record) == ["CREATED", "SCHEDULED", "STARTED", "FAILED"]
    assert "scene" in record.instance.usage.exception.message


@pytest.mark.parametrize("level", long_if(["full", "outputs", "none"], {"full", "none"}))
def test_the_archive_level_decides_what_is_archived(bundles, home, tmp_path, level):
    @method(version="1", archive=level)
    def copies(text: InputFile) -> None:
        current_execution().output("copy.txt").write_text(text.read_text())

    (tmp_path / "a.txt").write_text("alpha")
    copies(tmp_path / "a.txt")
    background.drain()
    data = list((home / "archive").glob("executions/*/data/*"))

    assert len(data) == {"full": 2, "outputs": 1, "none": 0}[level]
    assert (bundles.record().request.files[0].path is None) is (level != "full")
    assert bundles.failed_checks() == []


def test_metrics_params_progress_and_notes_are_recorded(bundles):
    @method(version="1")
    def trains() -> None:
        execution = current_execution()
        execution.log_params({"rate": 0.1, "layers": [3, 4]})
        for epoch in range(3):
            execution.log_metrics({"loss": 1 / (epoch + 1), "seen": epoch}, step=epoch)
            execution.progress(100 * (epoch + 1) / 4, f"epoch {epoch}")
        execution.note("the third epoch was the last")

    trains()
    record = bundles.record()

    assert record.metrics.params == {"rate": 0.1, "layers": [3, 4]}
    assert [(metric.name, metric.value, metric.step) for metric in record.metrics.metrics][-2:] == [
        ("loss", pytest.approx(1 / 3), 2),
        ("seen", 2, 2),
    ]
    assert {type(metric.value) for metric in record.metrics.metrics if metric.name == "seen"} == {int}
    assert record.job_status.progress == 100
    assert "the third epoch was the last" in [entry.message for entry in record.job_status.history]
    assert [entry.progress for entry in record.job_status.history if entry.kind is EntryKind.PROGRESS][-1] == 75


def test_progress_shows_in_prefect_as_an_artifact(bundles):
    @method(version="1")
    @flow(name="Works 2 (well)")
    def works() -> None:
        current_execution().progress(40, "nearly half")
        time.sleep(0.3)

    works()
    with get_client(sync_client=True) as client:
        artifacts = client.request("POST", "/artifacts/filter", json={}).json()
    (ours,) = [one for one in artifacts if one["flow_run_id"] == bundles.one().name]

    assert (ours["type"], ours["key"], ours["data"]) == ("progress", "works-2-well-progress", 40.0)
    assert ours["description"] == "nearly half"


@pytest.mark.long
@pytest.mark.parametrize(("fails", "end"), [(False, (100.0, "completed")), (True, (40.0, "failed"))])
def test_the_progress_artifact_ends_with_the_run(bundles, fails, end):
    @method(version="1")
    def works() -> None:
        create_progress_artifact(5.0, key="works-progress-of-its-own")
        current_execution().progress(40, "nearly half")
        if fails:
            raise RuntimeError("no more")

    works(return_state=True)
    prefect_events.flush_events()
    background.drain()
    with get_client(sync_client=True) as client:
        artifacts = client.request("POST", "/artifacts/filter", json={}).json()
    shown = {one["key"]: one for one in artifacts if one["flow_run_id"] == bundles.one().name}

    assert (shown["works-progress"]["data"], shown["works-progress"]["description"]) == end
    assert shown["works-progress-of-its-own"]["data"] == 5.0


MISSING = [
    "0.5",
    None,
    [1],
    1 + 2j,
    np.complex128(1 + 2j),
    np.ma.masked,
    np.ma.array([1.5], mask=[True]),
    np.datetime64("NaT"),
    np.timedelta64(5, "ns"),
    np.array([1, 2]),
    10**4300,
    Decimal("1e999"),
    Decimal("sNaN"),
    Fraction(10**400),
]


@pytest.mark.long
def test_a_metric_that_is_not_a_number_is_unrecorded_with_a_warning(bundles):
    @method(version="1")
    def logs() -> None:
        for number, value in enumerate(MISSING):
            current_execution().log_metrics({f"bad-{number}": value, "good": number})

    logs()
    record = bundles.record()
    notes = [entry.message for entry in record.job_status.history if entry.kind is EntryKind.NOTE]

    assert [(metric.name, metric.value) for metric in record.metrics.metrics] == [
        ("good", number) for number in range(len(MISSING))
    ]
    assert [note.partition(" is unrecorded: ")[0] for note in notes] == [
        f"metric 'bad-{number}'" for number in range(len(MISSING))
    ]
    assert "metric 'bad-4' is unrecorded" in (bundles.one() / "outputs/stderr.log").read_text()


@pytest.mark.parametrize("asynchronous", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_returned_value_is_recorded(bundles, asynchronous):
    def gives() -> dict[str, object]:
        return {"answer": 42}

    async def gives_later() -> dict[str, object]:
        return {"answer": 42}

    given = method(version="1")(gives_later if asynchronous else gives)()
    assert (asyncio.run(given) if asynchronous else given) == {"answer": 42}
    assert bundles.record().instance.usage.returned == Returned(type="builtins.dict", value={"answer": 42})
    assert bundles.failed_checks() == []


@pytest.mark.long
def test_a_value_that_cannot_be_recorded_does_not_change_the_run(bundles):
    @method(version="1")
    def gives() -> object:
        return Unprintable()

    assert isinstance(gives(), Unprintable)
    record = bundles.record()
    assert record.status is Status.COMPLETED
    assert record.instance.usage.returned.type == f"{__name__}.Unprintable"


@pytest.mark.long
def test_an_array_as_a_metric_is_noted_with_its_shape(bundles):
    @method(version="1")
    def logs() -> None:
        current_execution().log_metrics({"losses": np.zeros((2, 3))})

    logs()
    (note,) = [entry.message for entry in bundles.record().job_status.history if entry.kind is EntryKind.NOTE]
    assert note == "metric 'losses' is unrecorded: its value must be a single number, not ndarray of shape (2, 3)"


@pytest.mark.long
def test_numbers_of_any_library_are_recorded_with_their_value(bundles):
    values = {
        "true": (True, 1),
        "numpy-true": (np.bool_(1), 1),
        "half": (np.float16(0.5), 0.5),
        "no-mask": (np.ma.array([1.5], mask=[False]), 1.5),
        "large": (np.uint64(2**63), 2**63),
        "decimal": (Decimal("0.1"), 0.1),
        "third": (Fraction(1, 3), 1 / 3),
        "infinite": (np.float32("inf"), math.inf),
    }

    @method(version="1")
    def logs() -> None:
        current_execution().log_metrics({name: value for name, (value, _) in values.items()})

    logs()
    record = bundles.record()

    assert {metric.name: metric.value for metric in record.metrics.metrics} == {
        name: expected for name, (_, expected) in values.items()
    }
    assert [entry.message for entry in record.job_status.history if entry.kind is EntryKind.NOTE] == [
        f"metric 'third' is recorded as {1 / 3!r}, the nearest double to its value"
    ]


@pytest.mark.long
def test_params_have_values_that_json_lacks(bundles):
    @method(version="1")
    def logs() -> None:
        current_execution().log_params(
            {
                "rate": math.inf,
                "names": {1: "a", "b": (1, 2)},
                "same": {1: "a", "1": "b"},
                "phase": 1 + 2j,
                "date": np.datetime64("NaT"),
                "mask": [np.ma.masked],
                "many": 10**5000,
                "raw": b"\xff",
                "array": np.array([1.0, 2.0]),
            }
        )

    logs()
    record = bundles.record()
    params = record.metrics.params
    notes = [entry.message for entry in record.job_status.history if entry.kind is EntryKind.NOTE]

    assert params["rate"] == {"python": "float", "value": "Infinity"}
    assert params["names"] == {"1": "a", "b": [1, 2]}
    assert restore(params["same"]) == {1: "a", "1": "b"}
    assert restore(params["phase"]) == 1 + 2j
    assert np.isnat(restore(params["date"]))
    assert restore(params["many"]) == 10**5000
    assert restore(params["raw"]) == b"\xff"
    assert params["mask"][0]["unrecorded"].startswith("numpy.ma")
    assert params["array"]["sha256"] == sha256(np.array([1.0, 2.0]).tobytes()).hexdigest()
    assert [note.partition(":")[0] for note in notes] == [
        "param 'mask' is recorded without its value",
        "param 'array' is recorded without its value",
    ]
    assert bundles.failed_checks() == []


@pytest.mark.long
def test_an_invalid_report_is_noted_and_does_not_end_the_method(bundles):
    @method(version="1")
    def reports() -> None:
        execution = current_execution()
        execution.progress("half")
        execution.progress(float("nan"))
        execution.progress(101)
        execution.log_metrics({"loss": 1}, step="first")
        execution.log_metrics({"loss": 1}, step=1.5)
        execution.log_metrics({"loss": 1}, step=10**4300)
        execution.log_metrics({1: 1})
        execution.log_params({1: 1})
        execution.log_metrics([0.5])
        execution.log_params("fast")
        execution.log_params({"strange": Unprintable()})
        execution.note(b"done")
        execution.note(Unprintable())
        execution.log_metrics({"loss": 1}, step=3.0)
        execution.progress(100.00000000000001)
        with pytest.raises(RequestError, match="7 is of type int"):
            execution.output(7)

    reports()
    record = bundles.record()
    notes = [entry.message for entry in record.job_status.history if entry.kind is EntryKind.NOTE]

    assert [metric.step for metric in record.metrics.metrics] == [3]
    assert [entry.progress for entry in record.job_status.history if entry.kind is EntryKind.PROGRESS] == [100]
    for note, words in zip(
        notes,
        (
            "progress is unrecorded: it must be a number from 0 to 100; 'half' was given",
            "progress is unrecorded: it must be a number from 0 to 100; nan was given",
            "progress is unrecorded: it must be a number from 0 to 100; 101 was given",
            "metric 'loss' is unrecorded: its step must be an integer; 'first' was given",
            "metric 'loss' is unrecorded: its step must be an integer; 1.5 was given",
            "metric 'loss' is unrecorded: it has more than 4300 digits",
            "a name in metrics is unrecorded: a name must be a string; 1 is of type int",
            "a name in params is unrecorded: a name must be a string; 1 is of type int",
            "a report of metrics is unrecorded: it must be a mapping such as {'loss': 0.1}, not list",
            "a report of params is unrecorded: it must be a mapping such as {'loss': 0.1}, not str",
            f"param 'strange' is recorded without its value: {Unprintable.__module__}.Unprintable",
            "b'done'",
            "a note is unrecorded: ZeroDivisionError: ",
        ),
        strict=True,
    ):
        assert note.startswith(words)


class Unprintable:
    def __str__(self) -> str:
        return str(1 // 0)

    __repr__ = __str__


@pytest.mark.long
def test_an_output_may_be_named_by_a_path(bundles):
    @method(version="1")
    def draws() -> None:
        current_execution().output(Path("plots") / "area.png").write_bytes(b"drawn")

    draws()
    assert (bundles.one() / "outputs/plots/area.png").read_bytes() == b"drawn"


@pytest.mark.long
def test_a_report_after_the_end_is_refused(bundles):
    @method(version="1")
    def ends() -> Execution:
        return current_execution()

    execution = ends()
    for tell in (
        lambda: execution.note("late"),
        lambda: execution.progress(50),
        lambda: execution.log_metrics({"late": 1}),
        lambda: execution.log_params({"late": 1}),
    ):
        with pytest.raises(NoExecutionError, match=f"{execution.id} has ended"):
            tell()
    assert bundles.failed_checks() == []


def test_there_is_no_current_execution_outside_a_run():
    with pytest.raises(NoExecutionError, match="No execution is running here"):
        current_execution()


def test_a_call_of_the_plain_function_is_not_recorded(bundles):
    @method(version="1")
    def doubles(number: int) -> int:
        return 2 * number

    assert doubles.fn(4) == 8
    assert bundles.folders() == []


def test_a_task_reports_to_the_execution_that_called_it(bundles):
    @task
    def square(number: int) -> int:
        current_execution().log_metrics({"square": number**2}, step=number)
        return number**2

    @method(version="1")
    def squares() -> int:
        return sum(future.result() for future in square.map([1, 2, 3]))

    assert squares() == 14
    assert sorted(metric.value for metric in bundles.record().metrics.metrics) == [1, 4, 9]


@method(version="1")
def warns(name: str, token: SecretStr) -> None:
    logger = logging.getLogger("a.library")
    logger.warning("the library warns of %s", name)
    thread = threading.Thread(target=logger.error, args=(f"refused {token.get_secret_value()}",))
    thread.start()
    thread.join()
    logger.debug("nobody asked for this")


def test_log_records_of_libraries_are_kept_once_and_masked(bundles, monkeypatch):
    monkeypatch.setenv("THE_TOKEN", PLANTED)
    warns("ice", "env:THE_TOKEN")
    log = (bundles.one() / "outputs" / "stderr.log").read_text().splitlines()

    assert [line.partition(" | ")[2] for line in log if "a.library" in line] == [
        "WARNING | a.library - the library warns of ice",
        "ERROR   | a.library - refused ********",
    ]


class Wordless:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


@method(version="1")
def mumbles(token: SecretStr | None = None) -> int:
    for logger in (get_run_logger(), logging.getLogger("a.library")):
        secret = token.get_secret_value() if token else "?"
        logger.warning("%d words of %s", "no", secret)
        logger.warning("%d words", Wordless())
        logger.warning("and on it goes")
    return 3


MUMBLING = "import sys, test_flow_recording; print(test_flow_recording.mumbles(*sys.argv[1:]))"


@pytest.mark.long
@pytest.mark.parametrize("token", [[], ["env:THE_TOKEN"]])
def test_a_log_record_that_cannot_be_formatted_does_not_end_the_run(bundles, token):
    done = subprocess.run(  # in a process of its own: pytest's log handlers raise
        [sys.executable, "-c", MUMBLING, *token],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "THE_TOKEN": PLANTED},
        capture_output=True,
        text=True,
        check=True,
    )
    log = (bundles.one() / "outputs" / "stderr.log").read_text()

    secret = "********" if token else "?"
    assert done.stdout == "3\n"
    assert log.count(f"| WARNING | '%d words of %s' with ('no', '{secret}')\n") == 1
    assert log.count(f"| WARNING | a.library - '%d words of %s' with ('no', '{secret}')\n") == 1
    assert log.count("a log record that cannot be formatted\n") == 2
    assert log.count("and on it goes\n") == 2
    assert PLANTED not in done.stderr + log
    assert bundles.failed_checks() == []


def test_a_method_that_calls_a_method_leaves_two_bundles_with_their_own_logs(bundles):
    @method(version="1")
    def inner() -> None:
        print("inside")

    @method(version="1")
    def outer() -> None:
        print("before")
        inner()
        print("after")

    outer()
    logs = {
        bundles.record(folder).method.id: (folder / "outputs" / "stdout.log").read_text()
        for folder in bundles.folders()
    }

    assert logs == {"inner": "inside\n", "outer": "before\nafter\n"}
    assert bundles.failed_checks() == []


@pytest.mark.long
def test_ten_concurrent_runs_in_one_process_never_mix(bundles):
    @method(version="1")
    async def counts(number: int) -> None:
        for line in range(20):
            print(f"{number} {line}")
            await asyncio.sleep(0)
        current_execution().output("number.txt").write_text(str(number))

    async def all_of_them() -> None:
        await asyncio.gather(*(counts(number) for number in range(10)))

    asyncio.run(all_of_them())
    for folder in bundles.folders():
        number = (folder / "outputs" / "number.txt").read_text()
        assert (folder / "outputs" / "stdout.log").read_text() == "".join(f"{number} {line}\n" for line in range(20))
    assert len(bundles.folders()) == 10
    assert bundles.failed_checks() == []


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


def test_the_form_describes_the_inputs(bundles):
    @method(version="2", secrets=["key"])
    def paints(
        picture: InputFile, colour: Colour = Colour.RED, key: str = "env:KEY", token: SecretStr | None = None
    ) -> None:
        """Paint.

        Args:
            picture: What to paint on.
        """

    form = paints.parameters.model_dump()["properties"]

    assert form["picture"]["format"] == "uri-reference"
    assert form["picture"]["description"] == "What to paint on."
    assert form["key"]["pattern"].startswith("^(env:")
    assert "Secret block" in form["key"]["description"]
    assert paints.method.secrets == {"key", "token"}
    assert paints.method.inputs["colour"].json_schema["enum"] == ["red", "blue"]


@method(version="1")
def uses_secret(token: SecretStr, place: str = "") -> None:
    print(f"the token is {token.get_secret_value()}")
    subprocess.run(["echo", token.get_secret_value()], check=True)
    execution = current_execution()
    execution.progress(50, f"half way with {token.get_secret_value()}")
    execution.note(f"a note of {token.get_secret_value()}")
    execution.log_params({"used": {"tokens": [token.get_secret_value()]}})
    execution.log_metrics({f"with {token.get_secret_value()}": 1})
    raise RuntimeError(f"refused: {token.get_secret_value()}")


def test_a_secret_in_plain_text_is_refused_before_a_run_exists(bundles):
    refuses = uses_secret.with_options(name="refuses-a-secret")
    with pytest.raises(SecretError) as refused:
        refuses(PLANTED)
    with get_client(sync_client=True) as client:
        named = FlowFilter(name=FlowFilterName(any_=["refuses-a-secret"]))
        assert client.read_flow_runs(flow_filter=named) == []

    assert PLANTED not in str(refused.value)
    assert bundles.folders() == []


def test_a_secret_block_is_resolved_in_the_run(bundles):
    @method(version="1")
    def tells_length(token: SecretStr) -> int:
        return len(token.get_secret_value())

    Secret(value=PLANTED).save("a-token", overwrite=True)

    assert tells_length("a-token") == len(PLANTED)
    assert bundles.record().request.values == {"token": {"secret": "a-token"}}


def test_a_missing_secret_fails_before_the_code(bundles, monkeypatch):
    monkeypatch.delenv("NOT_THERE", raising=False)
    with pytest.raises(SecretError, match="token"):
        uses_secret("env:NOT_THERE")

    assert bundles.record().request.values["token"] == {"withheld": True}


def everything_prefect_knows(flow_run_id: UUID) -> str:
    responses = []
    with get_client(sync_client=True) as client:
        responses.append(client.request("GET", f"/flow_runs/{flow_run_id}").text)
        responses.append(client.request("GET", "/flow_run_states/", params={"flow_run_id": str(flow_run_id)}).text)
        responses.append(client.request("POST", "/artifacts/filter", json={}).text)
        runs = {"flow_runs": {"id": {"any_": [str(flow_run_id)]}}}
        responses.append(client.request("POST", "/task_runs/filter", json=runs).text)
        for _ in range(20):
            logs = {"logs": {"flow_run_id": {"any_": [str(flow_run_id)]}}}
            responses.append(client.request("POST", "/logs/filter", json=logs).text)
            if "Finished in state" in responses[-1]:
                break
            time.sleep(0.5)
        responses.append(client.request("POST", "/events/filter", json={"limit": 50}).text)
    return "\n".join(responses)


def test_a_planted_secret_is_in_no_file(bundles, home, monkeypatch):
    monkeypatch.setenv("PLANTED_TOKEN", PLANTED)
    monkeypatch.setenv("EXECUTIONS_ENVIRONMENT", "PLANTED_TOKEN")
    url = f"https://someone:{PLANTED}@example.org/data?X-Amz-Signature={PLANTED}"
    with pytest.raises(RuntimeError):
        uses_secret("env:PLANTED_TOKEN", place=url)
    flow_run_id = UUID(bundles.one().name)

    assert holding(home, PLANTED.encode()) == []
    prefects = (
        everything_prefect_knows(flow_run_id)
        .replace(f"https://someone:{PLANTED}@", "")
        .replace(f"X-Amz-Signature={PLANTED}", "")
    )
    assert PLANTED not in prefects
    assert "the token is ********" in (bundles.one() / "outputs" / "stdout.log").read_text()


@task
def refuses_by_name(token: SecretStr) -> None:
    raise ValueError(f"the server refused {token.get_secret_value()}")


class UnreachableError(Exception):
    """An error whose message is not among its arguments."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url

    def __str__(self) -> str:
        return f"{self.url} is out of reach"


@method(version="1")
def fails_with_secrets(token: SecretStr) -> None:
    value = token.get_secret_value()
    refuses_by_name(token, return_state=True)
    errors = [UnreachableError(f"https://example.org/{value}"), FileNotFoundError(2, "no file", f"/run/{value}")]
    raise subprocess.CalledProcessError(22, ["curl", "-H", f"X-Key: {value}"]) from ExceptionGroup("all", errors)


def test_a_secret_in_an_error_of_a_task_or_a_program_is_in_no_file(bundles, home, monkeypatch):
    monkeypatch.setenv("PLANTED_TOKEN", PLANTED)
    with pytest.raises(subprocess.CalledProcessError):
        fails_with_secrets("env:PLANTED_TOKEN")
    prefects = everything_prefect_knows(UUID(bundles.one().name))

    assert holding(home, PLANTED.encode()) == []
    assert PLANTED not in prefects
    assert "the server refused ********" in prefects
    assert "X-Key: ********" in bundles.record().instance.usage.exception.message


@pytest.mark.long
def test_user_hooks_run_after_the_sealing_hook(bundles):
    seen: list[Any] = []

    @method(version="1")
    @flow(
        on_completion=[lambda flow, run, state: seen.append((run.id, (bundles.one() / "manifest-sha256.txt").exists()))]
    )
    def works() -> None: ...

    works()

    assert seen == [(UUID(bundles.one().name), True)]


def test_with_options_returns_another_recorded_method(bundles):
    renamed = add.with_options(name="renamed", retries=1, timeout_seconds=30, on_failure=[print])

    assert isinstance(renamed, MethodFlow)
    assert (renamed.method.id, renamed.retries, renamed.time_limit, renamed.timeout_seconds) == (
        "renamed",
        1,
        30.0,
        None,
    )
    assert renamed(5) == 7
    assert bundles.record().method.id == "renamed"


def test_how_outputs_are_compared_is_declared_and_stays_with_other_options():
    declared = {"rows.csv": Comparison(tolerance=1e-6)}

    @method(version="1", comparisons=declared)
    def works() -> None: ...

    assert works.method.comparisons == works.with_options(name="other").method.comparisons == declared


def test_an_unavailable_archive_refuses_the_run_before_the_work(bundles, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EXECUTIONS_ARCHIVE", str(tmp_path / "file" / "archive"))
    ran = []

    @method(version="1")
    def works() -> None:
        ran.append(1)

    with pytest.raises(Exception, match="archive"):
        works()
    assert ran == []
    assert kinds(bundles.record()) == ["CREATED", "SCHEDULED", "STARTED", "FAILED"]


def test_an_archive_that_fails_during_the_run_does_not_change_its_result(bundles, home):
    @method(version="1")
    def breaks_the_archive() -> str:
        (home / "archive").rename(home / "gone")
        (home / "archive").write_text("no folder any more")
        return "fine"

    assert breaks_the_archive() == "fine"
    background.drain()
    (row,) = Ledger.open(f"sqlite:///{home / 'ledger.db'}").list().rows

    assert (row.status, row.archive) == (Status.COMPLETED, "pending")
    assert bundles.failed_checks() == []
    assert bundles.open_scratch() == [bundles.one().name]


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: method(type="Cooking")(lambda: None), "not a known type"),
        (lambda: method(archive="some")(lambda: None), "archive must be one of full, outputs, none; 'some' was given"),
        (lambda: method(add), "a Method already"),
        (lambda: method(version="1")(print), "decorates a function or a flow"),
    ],
)
def test_a_wrong_declaration_says_why(declare: Callable[[], object], message):
    with pytest.raises(MethodError, match=message):
        declare()


@pytest.mark.parametrize("decorate", [method, method(version="1"), lambda function: method(flow(function))])
def test_a_generator_is_refused_when_it_is_used(decorate):
    @decorate
    def yields():
        yield 1

    with pytest.raises(MethodError, match="'yields' is a generator"):
        yields(1, a=2)
    assert not hasattr(yields, "deploy")


def test_a_generator_does_not_prevent_the_other_methods_of_its_file(bundles, tmp_path):
    methods = ("def rows():\n    yield 1\n", "def other():\n    return 2\n")
    (tmp_path / "mixed.py").write_text(
        "from prefect_executions import method\n" + "".join(map("@method\n{}".format, methods))
    )
    assert entrypoints.load_method(f"{tmp_path / 'mixed.py'}:other")() == 2
    with pytest.raises(MethodError, match="'rows' is a generator"):
        entrypoints.load_deployable(f"{tmp_path / 'mixed.py'}:rows")


def test_the_documents_follow_ogcs_schema(bundles):
    add(1)
    status = json.loads((bundles.one() / "metadata" / "jobStatus.json").read_bytes())

    assert status["jobID"] == bundles.one().name
    assert (status["type"], status["status"], status["processID"]) == ("process", "successful", "add")
    assert datetime.fromisoformat(status["created"]).utcoffset().total_seconds() == 0


NAMED, CLEAR = SecretStr("env:SESAME"), SecretStr("open, Sesame!")


@pytest.mark.long
def test_the_form_shows_the_default_of_a_secret_only_if_it_is_a_name(bundles, monkeypatch):
    @method(version="1")
    def reads(named: SecretStr = NAMED, clear: SecretStr | None = None) -> str:
        return named.get_secret_value()

    @method(version="1")
    def careless(clear: SecretStr = CLEAR) -> None: ...

    assert reads.parameters.model_dump()["properties"]["named"]["default"] == "env:SESAME"
    assert "Sesame!" not in str(careless.parameters.model_dump())
    monkeypatch.setenv("SESAME", "mountain")
    assert reads() == "mountain"
