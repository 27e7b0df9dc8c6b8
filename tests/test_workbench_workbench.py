"""The workbench when another process seals first or a bundle is out of reach; and the heartbeat."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import pytest

from benches import begun, bench_at, record_of
from prefect_executions.documents import FORMAT
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import OpeningRecord
from prefect_executions.lifecycle.history import EntryKind, JobStatus
from prefect_executions.lifecycle.status import Observer, Reason, Status
from prefect_executions.operations.verify import verify_target
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.heartbeat import Leases
from prefect_executions.workbench.index import rebuild_ledger
from prefect_executions.workbench.recovery import recover, restore
from prefect_executions.workbench.sealing import Ending
from records import EXECUTION_ID, SOURCE, a_job_status

LOST = Ending(Status.FAILED, Reason.LOST, datetime(2031, 1, 1, tzinfo=UTC), Observer.SETTLE, message="it is gone")


def a_running_record():
    return record_of(EXECUTION_ID, job_status=a_job_status(Status.EXECUTING, execution_id=EXECUTION_ID))


def test_a_lost_execution_is_sealed_from_its_opening_record(tmp_path):
    there = bench_at(tmp_path / "there")
    begun(there, a_running_record())
    here = bench_at(tmp_path / "here", archive=there)
    found = recover(here.archive, EXECUTION_ID)
    assert found.code == {"code/flows/coins.py": SOURCE}
    outcome = here.stand_in(found.record, found.code, LOST, fill=partial(restore, here.archive, found))
    assert outcome.archived
    assert (outcome.job_status.execution_status, outcome.job_status.reason) == (Status.FAILED, Reason.LOST)
    assert not (here.folder / EXECUTION_ID).exists()
    assert list(here.unfinished()) == []
    assert all(one.report.passed for one in verify_target(Catalog(here), EXECUTION_ID))


def test_an_opening_record_of_an_execution_that_has_ended_is_not_sealed(tmp_path):
    there = bench_at(tmp_path)
    there.archive.put_opening(EXECUTION_ID, OpeningRecord.of(record_of(EXECUTION_ID)).to_json())
    with pytest.raises(BundleError, match="says that it is COMPLETED: it was forged"):
        recover(there.archive, EXECUTION_ID)


def test_a_lost_execution_of_an_older_version_is_sealed_in_the_current_format(tmp_path):
    there, record = bench_at(tmp_path / "there"), a_running_record()
    older = {name: document.model_copy(update={"format": 1}) for name, document in vars(record).items() if document}
    begun(there, replace(record, **older))
    here = bench_at(tmp_path / "here", archive=there)
    found = recover(here.archive, EXECUTION_ID)
    assert found.record.format == 1
    here.stand_in(found.record, found.code, LOST, fill=partial(restore, here.archive, found))
    assert here.archived_record(EXECUTION_ID).format == FORMAT
    assert all(one.report.passed for one in verify_target(Catalog(here), EXECUTION_ID))


def test_four_sealers_at_once_call_before_seal_once(tmp_path):
    bench, done = bench_at(tmp_path), []
    begun(bench, a_running_record())

    def before_seal(bundle):
        time.sleep(0.05)  # the others come meanwhile
        done.append(bundle.sealed)
        bundle.write_document(bundle.read(JobStatus))
        return ("it was done",)

    seal = partial(bench.seal, EXECUTION_ID, LOST, before_seal=before_seal)
    sealers = [threading.Thread(target=seal) for _ in range(4)]
    for thread in sealers:
        thread.start()
    for thread in sealers:
        thread.join()
    job_status = bench.record(EXECUTION_ID).job_status
    assert done == [False]
    assert [entry.message for entry in job_status.history if entry.kind is EntryKind.NOTE] == ["it was done"]
    assert all(one.report.passed for one in verify_target(Catalog(bench), EXECUTION_ID))


def test_a_rebuilt_ledger_has_the_row_of_an_unarchived_execution(tmp_path):
    bench = bench_at(tmp_path)
    begun(bench, a_running_record())
    shutil.move(tmp_path / "archive", tmp_path / "away")
    (tmp_path / "archive").touch()
    assert not bench.seal(EXECUTION_ID, LOST).archived
    before = bench.ledger.dump()
    (tmp_path / "archive").unlink()
    shutil.move(tmp_path / "away", tmp_path / "archive")
    rebuild_ledger(bench)
    assert bench.ledger.get(EXECUTION_ID).archive == "pending"
    assert bench.ledger.dump() == before


def test_the_loser_of_a_seal_race_is_set_aside_and_noted(tmp_path):
    there = bench_at(tmp_path / "there")
    bundle = begun(there, a_running_record())
    here = bench_at(tmp_path / "here", archive=there)
    here.stand_in(recover(here.archive, EXECUTION_ID).record, {}, LOST)
    late = there.seal(EXECUTION_ID, Ending(Status.COMPLETED, None, LOST.at, Observer.HOOK))
    assert late.job_status.execution_status is Status.FAILED
    assert there.record(EXECUTION_ID).job_status.reason is Reason.LOST
    assert (bundle.aside / "outputs").is_dir()
    [word] = Catalog(there).beside(EXECUTION_ID).late
    assert (word.status, word.execution_id) == (Status.COMPLETED, EXECUTION_ID)
    assert list(there.unfinished()) == []
    assert there.ledger.get(EXECUTION_ID).status is Status.FAILED


def test_an_open_execution_has_a_heartbeat_until_it_is_released(tmp_path):
    bench = bench_at(tmp_path)
    leases, others = Leases(lambda: bench.archive.marks, period=0.01), set(threading.enumerate())
    leases.hold("one", "")
    leases.hold("two", "")
    wait_for(lambda: {mark.id for mark in bench.archive.marks.open()} == {"one", "two"})
    leases.release("one")
    leases.release("two")
    wait_for(lambda: not any(thread.name == "heartbeat" for thread in set(threading.enumerate()) - others))
    bench.archive.store.delete("open/one", "open/two")
    leases.hold("three", "")
    wait_for(lambda: [mark.id for mark in bench.archive.marks.open()] == ["three"])
    leases.release("three")


def wait_for(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)
