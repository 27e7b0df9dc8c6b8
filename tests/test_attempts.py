"""An execution that begins more than once, waits, calls others, or has steps: one record tells all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect import flow
from pydantic import SecretStr

from homes import WHOLE_WAY, Bundles, kinds
from prefect_executions import current_execution, method
from prefect_executions.lifecycle import Observer, Reason

pytestmark = pytest.mark.usefixtures("prefect_server")

PLANTED = "-".join(["plAnted", "s3cret", "a71f0c"])  # noqa: FLY002 - the record keeps this file, too


@pytest.fixture
def bundles(home: Path) -> Bundles:
    return Bundles(home)


# --- retries -------------------------------------------------------------------


def test_retries_are_attempts_of_one_execution_each_with_its_times_and_its_error(bundles, monkeypatch):
    @method(version="1")
    @flow(retries=2)
    def flaky(token: SecretStr) -> str:
        attempt = current_execution().metadata.attempt
        print(f"words of {attempt}", end="")
        if attempt == 1:
            raise ValueError(f"cannot open with {token.get_secret_value()}")
        if attempt == 2:
            raise TimeoutError("too late")
        return "done"

    monkeypatch.setenv("THE_TOKEN", PLANTED)
    assert flaky("env:THE_TOKEN") == "done"
    record = bundles.record()
    first, begun, second, last = (entry for entry in record.job_status.history if entry.kind.startswith("attempt"))

    assert kinds(record) == [*WHOLE_WAY, "attempt-failed", "attempt", "attempt-failed", "attempt", "COMPLETED"]
    assert [entry.attempt for entry in (first, begun, second, last)] == [1, 2, 2, 3]
    assert record.job_status.attempt == 3
    assert first.time < begun.time < second.time < last.time
    assert (first.observer, first.reason, first.message) == (
        Observer.HOOK,
        Reason.ERROR,
        "ValueError: cannot open with ********",
    )
    assert (second.reason, second.message) == (Reason.TIMED_OUT, "TimeoutError: too late")
    assert first.prefect_state.name == second.prefect_state.name == "AwaitingRetry"
    assert begun.prefect_state.type == last.prefect_state.type == "RUNNING"

    stdout, stderr = ((bundles.one() / "outputs" / f"{name}.log").read_text() for name in ("stdout", "stderr"))
    said = stdout.splitlines()
    assert said[0::2] == ["words of 1", "words of 2", "words of 3"]
    assert [line.partition(",")[0] for line in said[1::2]] == ["--- attempt 2", "--- attempt 3"]
    assert "raise ValueError" in stderr.partition("--- attempt 2")[0]
    assert "raise TimeoutError" in stderr.partition("--- attempt 2")[2].partition("--- attempt 3")[0]
    assert PLANTED not in stdout + stderr + record.job_status.to_json().decode()

    assert record.instance.usage.exception is None
    assert record.instance.usage.exit_code == 0
    assert bundles.failed_checks() == []
