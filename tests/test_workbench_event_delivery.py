"""Events of a sealed execution are delivered beside archiving, by the winner of a race, until acknowledged."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from benches import begun, record_of
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.lifecycle.status import Observer, Reason, Status
from prefect_executions.settings import Settings
from prefect_executions.workbench.sealing import Ending
from prefect_executions.workbench.workbench import Workbench
from records import EXECUTION_ID

NOW = datetime(2026, 9, 22, 13, tzinfo=UTC)
WELL = Ending(Status.COMPLETED, None, NOW, Observer.HOOK)
LOST = Ending(Status.FAILED, Reason.LOST, NOW, Observer.SETTLE)


class Listener:
    """Somebody who is told of ends, and hears them or does not."""

    def __init__(self) -> None:
        self.hears = True
        self.told: list[str] = []

    def __call__(self, job_status: JobStatus) -> Listener:
        self.told.append(job_status.execution_status)
        return self

    def archived(self, manifest_sha256: str) -> None:
        self.told.append(f"archived {len(manifest_sha256)}")

    def not_archived(self, why: str) -> None:
        self.told.append(f"not archived: {why}")

    def withdraw(self) -> None:
        self.told.append("withdrawn")

    def on_acknowledged(self, act: Callable[[], None]) -> None:
        if self.hears:
            act()


def bench_that_tells(home: Path, listener: Listener, archive: str = "") -> Workbench:
    return Workbench.of(
        Settings(home=home, archive=archive), archive_block=lambda name: (name, {}), deliver_events=listener
    )


def unfinished(bench: Workbench) -> list[str]:
    return list(bench.unfinished())


def test_the_end_is_delivered_with_the_archive_event(tmp_path):
    listener = Listener()
    bench = bench_that_tells(tmp_path, listener)
    begun(bench, record_of(end=Status.EXECUTING))
    bench.seal(EXECUTION_ID, WELL)

    assert listener.told == ["COMPLETED", "archived 64"]
    assert unfinished(bench) == []


def test_settle_delivers_unacknowledged_events_again(tmp_path):
    listener = Listener()
    bench = bench_that_tells(tmp_path, listener)
    begun(bench, record_of(end=Status.EXECUTING))
    listener.hears = False
    bench.seal(EXECUTION_ID, WELL)
    assert unfinished(bench) == [EXECUTION_ID]

    listener.hears = True
    bench.settle(EXECUTION_ID)
    assert unfinished(bench) == []
    assert listener.told == ["COMPLETED", "archived 64"] * 2


def test_a_refusal_of_the_archive_is_delivered_with_its_reason(tmp_path):
    listener = Listener()
    bench = bench_that_tells(tmp_path, listener)
    begun(bench, record_of(end=Status.EXECUTING))
    folder = tmp_path / "archive"
    folder.rename(tmp_path / "elsewhere")
    folder.write_text("no folder any more")
    bench.seal(EXECUTION_ID, WELL)

    first, second = listener.told
    assert first == "COMPLETED"
    assert second.startswith("not archived: ")
    assert len(second) > len("not archived: ")
    assert unfinished(bench) == [EXECUTION_ID]


def test_a_late_seal_delivers_no_events(tmp_path):
    early, late = Listener(), Listener()
    slow = bench_that_tells(tmp_path / "slow", late, str(tmp_path / "archive"))
    begun(slow, record_of(end=Status.EXECUTING))
    settling = bench_that_tells(tmp_path / "settling", early, str(tmp_path / "archive"))
    settling.stand_in(record_of(end=Status.EXECUTING), {}, LOST)
    outcome = slow.seal(EXECUTION_ID, WELL)

    assert outcome.job_status.execution_status is Status.FAILED
    assert early.told == ["FAILED", "archived 64"]
    assert late.told == ["COMPLETED", "withdrawn"]
