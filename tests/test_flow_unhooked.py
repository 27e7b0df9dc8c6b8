"""Ends of a flow run for which Prefect calls no hook."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect import task
from prefect.client.orchestration import get_client
from prefect.exceptions import Abort, CancelledRun
from prefect.states import Cancelled, Completed, Crashed, Failed, State
from pydantic import SecretStr

from homes import Bundles
from marks import long_after
from prefect_executions import background, current_execution, method
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.flow import unhooked
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.settings import Settings

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def bundles(home: Path) -> Bundles:
    return Bundles(home)


def sealed_record(bundles: Bundles) -> ExecutionRecord:
    background.drain()
    assert (bundles.one() / "manifest-sha256.txt").exists()
    assert bundles.failed_checks() == []
    return bundles.record()


@task
def cancelled_task() -> Any:
    return Cancelled(message="of a task")


def several() -> Any:
    return [Completed(), Cancelled(message="second")]


def of_a_task() -> Any:
    return cancelled_task.submit()


def of_tasks_and_states() -> Any:
    return (cancelled_task.submit(), Completed())


def alone() -> Any:
    current_execution().output("done.txt").write_text("so far")
    return Cancelled(message="nothing to do")


@pytest.mark.parametrize(
    "returns",
    [alone, several, *(pytest.param(one, marks=pytest.mark.long) for one in (of_a_task, of_tasks_and_states))],
)
def test_a_returned_cancelled_state_is_sealed_as_cancelled(bundles, returns):
    method(version="1")(returns)(return_state=True)

    record = sealed_record(bundles)
    assert (record.status, record.job_status.reason) == (Status.CANCELLED, None)
    assert record.job_status.history[-1].prefect_state.type == "CANCELLED"


@pytest.mark.long
def test_an_async_method_that_returns_cancelled_is_sealed(bundles):
    @method(version="1")
    async def gives_up() -> Any:
        current_execution().output("done.txt").write_text("so far")
        return Cancelled(message="nothing to do")

    with pytest.raises(CancelledRun):
        asyncio.run(gives_up())

    record = sealed_record(bundles)
    assert (record.status, record.job_status.message) == (Status.CANCELLED, "nothing to do")
    assert [output.path for output in record.job_status.outputs] == [
        "outputs/done.txt",
        "outputs/stderr.log",
        "outputs/stdout.log",
    ]


@pytest.mark.long
def test_a_nested_method_that_returns_cancelled_is_sealed(bundles):
    inner = method(version="1")(alone)

    @method(version="1")
    def outer() -> str:
        return inner(return_state=True).name

    assert outer() == "Cancelled"
    background.drain()
    statuses = {record.method.id: record.status for record in map(bundles.record, bundles.folders())}
    assert statuses == {"alone": Status.CANCELLED, "outer": Status.COMPLETED}


@pytest.mark.parametrize(
    ("returned", "status", "reason"),
    long_after(
        3,
        [
            (Crashed(message="gone"), Status.FAILED, Reason.CRASHED),
            (Failed(message="no"), Status.FAILED, Reason.ERROR),
            ([Failed(message="no"), Completed()], Status.FAILED, Reason.ERROR),
            (Completed(data={"much": 1}), Status.COMPLETED, None),
            (Completed(data=Cancelled()), Status.COMPLETED, None),
            ({"a": Cancelled()}, Status.COMPLETED, None),
            ([Cancelled(), "text"], Status.COMPLETED, None),
            (Failed(message="\udc80\0"), Status.FAILED, Reason.ERROR),
        ],
    ),
)
def test_other_returned_states_are_sealed_by_their_hook(bundles, returned, status, reason):
    @method(version="1")
    def returns() -> Any:
        return returned

    returns(return_state=True)

    record = sealed_record(bundles)
    assert (record.status, record.job_status.reason) == (status, reason)


def test_a_secret_in_a_returned_state_is_masked_and_its_texts_can_be_sent(bundles, monkeypatch):
    @method(version="1")
    def returns(token: SecretStr) -> Any:
        return Failed(name="No\udc80", message=f"no \0 with {token.get_secret_value()}")

    monkeypatch.setenv("THE_TOKEN", "pl4nted-s3cret")
    returns("env:THE_TOKEN", return_state=True)

    record = sealed_record(bundles)
    state = state_in_prefect(record.id)
    assert (state.name, state.message) == ("No\\udc80", "no \\x00 with ********")
    assert record.job_status.message == state.message


@pytest.mark.parametrize("error", [GeneratorExit("stop"), Abort("no")])
def test_an_exception_that_prefect_ignores_is_a_crash(bundles, error):
    @method(version="1")
    def ends() -> None:
        current_execution().output("done.txt").write_text("so far")
        raise error

    with pytest.raises(type(error)):
        ends()

    record = sealed_record(bundles)
    assert (record.status, record.job_status.reason) == (Status.FAILED, Reason.CRASHED)
    assert record.job_status.message == f"Execution was interrupted by {type(error).__name__}: {error}"
    assert state_in_prefect(record.id).is_crashed()


@pytest.mark.long
def test_a_coroutine_that_is_closed_is_a_crash(bundles):
    @method(version="1")
    async def waits() -> None:
        started.set()
        await asyncio.sleep(60)

    async def abandon() -> None:
        call = asyncio.ensure_future(waits())
        await started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    started = asyncio.Event()
    asyncio.run(abandon())

    record = sealed_record(bundles)
    assert (record.status, record.job_status.reason) == (Status.FAILED, Reason.CRASHED)


def state_in_prefect(execution_id: str) -> State[Any]:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(execution_id).state
    assert state is not None
    return state


def test_the_first_part_of_a_large_result_decides():
    seen = []

    class Lazy(list):
        def __iter__(self):
            for number in range(3):
                seen.append(number)
                yield number

    assert not unhooked._cancels(Lazy())
    assert seen == [0]
    assert unhooked._cancels([Cancelled(), Completed()])
    assert not unhooked._cancels([Cancelled(), 1])
    assert not unhooked._cancels([])


PAUSES = """
from prefect.states import Paused
from prefect_executions import current_execution, method


@method(version="1")
def pauses() -> object:
    current_execution().output("a.txt").write_text("a")
    return Paused(timeout_seconds=600)


pauses(return_state=True)
"""


@pytest.mark.long
def test_a_run_that_returns_paused_stays_open_and_is_listed(home, bundles: Bundles, tmp_path):
    (tmp_path / "pauses.py").write_text(PAUSES)
    subprocess.run([sys.executable, "pauses.py"], cwd=tmp_path, check=True)
    folder = bundles.one()

    assert not (folder / "manifest-sha256.txt").exists()
    with Ledger.open(Settings.read().ledger_url) as ledger:
        assert [(row.id, row.status) for row in ledger.list().rows] == [(folder.name, Status.EXECUTING)]
