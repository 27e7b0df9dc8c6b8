"""Tasks that a Method submits and does not await belong to its record."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner

from homes import Bundles
from prefect_executions import current_execution, method
from prefect_executions.lifecycle.status import Reason

pytestmark = pytest.mark.usefixtures("prefect_server")

PARTS = 5


@pytest.fixture
def bundles(home: Path) -> Bundles:
    return Bundles(home)


@task
def write_slowly(number: int) -> int:
    execution = current_execution()
    with execution.output(f"{number}.txt").open("w") as file:
        for _ in range(PARTS):
            file.write("*" * 1000)
            file.flush()
            time.sleep(0.1)
    execution.log_metrics({"written": number})
    execution.note(f"{number} is written")
    return number


@task
async def write_slowly_too(number: int) -> None:
    current_execution().output(f"{number}.txt").write_text("*")
    await asyncio.sleep(0.3)
    current_execution().output(f"{number}.txt").write_text("*" * 1000 * PARTS)
    current_execution().log_metrics({"written": number})


@task
def submit_another(number: int) -> None:
    write_slowly.submit(number)


def _is_whole(bundles: Bundles, *numbers: int) -> bool:
    record = bundles.record()
    sizes = {output.path: output.size for output in record.job_status.outputs if not output.path.endswith(".log")}
    assert bundles.failed_checks() == []
    assert sizes == {f"outputs/{number}.txt": 1000 * PARTS for number in numbers}
    return sorted(metric.value for metric in record.metrics.metrics) == sorted(numbers)


def test_tasks_that_are_not_awaited_are_in_the_record(bundles):
    @method(version="1")
    def lets_go() -> str:
        write_slowly.submit(1)
        write_slowly.submit(2)
        return "gone"

    assert lets_go() == "gone"
    assert _is_whole(bundles, 1, 2)


@pytest.mark.long
def test_tasks_whose_futures_are_returned_are_in_the_record(bundles):
    @method(version="1")
    def hands_on() -> object:
        return write_slowly.map([1, 2])

    assert [state.result() for state in hands_on()] == [1, 2]
    assert _is_whole(bundles, 1, 2)


@pytest.mark.long
def test_tasks_of_tasks_and_queued_tasks_are_in_the_record(bundles):
    @method(version="1")
    @flow(task_runner=ThreadPoolTaskRunner(max_workers=2))
    def lets_go() -> None:
        submit_another.submit(1)
        write_slowly.submit(2)
        write_slowly.submit(3)

    lets_go()
    assert _is_whole(bundles, 1, 2, 3)


def test_an_error_of_the_function_does_not_truncate_outputs_of_its_tasks(bundles):
    @method(version="1")
    def fails() -> None:
        write_slowly.submit(1)
        raise LookupError("no such star")

    with pytest.raises(LookupError):
        fails()
    assert bundles.record().job_status.reason is Reason.ERROR
    assert _is_whole(bundles, 1)


def test_tasks_of_an_async_method_are_in_the_record(bundles):
    @method(version="1")
    async def lets_go() -> None:
        write_slowly.submit(1)
        write_slowly_too.submit(2)

    asyncio.run(lets_go())
    assert _is_whole(bundles, 1, 2)
