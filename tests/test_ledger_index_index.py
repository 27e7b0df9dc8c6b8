"""The column index follows the ledger, in one process and in several, and survives a kill at each step."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from random import Random

import pytest

from ledgers import SEAL, an_id, numbered
from prefect_executions.ledger.index.files import MANIFEST, SUFFIX, read_manifest
from prefect_executions.ledger.index.index import ColumnIndex
from prefect_executions.ledger.index.search import search
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.lifecycle.status import Status
from prefect_executions.query.parser import parse
from searches import random_records


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        yield ledger


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "ledger.db.index"


def record(ledger, *numbers, **changes):
    for number in numbers:
        ledger.record(numbered(number, **changes), archive="archived", manifest_sha256=SEAL)


def found(column_index, query=""):
    """Return the numbers of the executions that a query finds, newest first."""
    ids = search(column_index.snapshot(), parse(query), column_index.ledger.related).page(limit=100_000).ids
    return [int(execution_id[-12:]) for execution_id in ids]


def segments(folder):
    return {path.name for path in folder.glob(f"*{SUFFIX}")}


def test_a_new_changed_or_removed_execution_is_seen_by_the_next_query(ledger, folder):
    column_index = ColumnIndex(ledger, folder)
    assert found(column_index) == []
    record(ledger, 1, 2)
    assert found(column_index) == [2, 1]
    record(ledger, 1, end=Status.FAILED)
    assert found(column_index, "status:failed") == [1]
    ledger.remove(an_id(2))
    assert found(column_index) == [1]


def test_another_process_reads_the_files_and_what_changed_since(ledger, folder):
    record(ledger, 1, 2)
    ColumnIndex(ledger, folder).snapshot()
    record(ledger, 3)
    other = ColumnIndex(ledger, folder)
    assert found(other) == [3, 2, 1]
    assert [part.segment.size for part in other.snapshot().segments] == [2, 1]


def test_many_changes_are_written_and_merged_by_size(ledger, folder):
    record(ledger, *range(40))
    column_index = ColumnIndex(ledger, folder, most_in_memory=4)
    column_index.snapshot()
    sizes = []
    for number in range(40, 64):
        record(ledger, number)
        assert found(column_index)[0] == number
        sizes.append([part.segment.size for part in column_index.snapshot().segments])
    assert [40, 4] in sizes
    assert [52] in sizes  # the newer ones had more than a fourth: all are merged
    assert found(ColumnIndex(ledger, folder)) == [*range(63, -1, -1)]
    assert segments(folder) == set(read_manifest(folder).segments)


def test_a_reader_opens_the_segments_that_another_process_has_written(ledger, folder):
    record(ledger, *range(10))
    reader, writer = ColumnIndex(ledger, folder), ColumnIndex(ledger, folder, most_in_memory=4)
    assert len(found(reader)) == len(found(writer)) == 10
    record(ledger, *range(5, 15), end=Status.FAILED)
    assert len(found(writer)) == 15
    assert found(reader, "status:failed") == [*range(14, 4, -1)]
    assert len(reader.snapshot().segments) == len(writer.snapshot().segments)


def test_a_deleted_index_is_written_again(ledger, folder):
    record(ledger, *range(10))
    column_index = ColumnIndex(ledger, folder, most_in_memory=4)
    column_index.snapshot()
    for path in folder.iterdir():
        path.unlink()
    record(ledger, *range(10, 15))
    assert len(found(column_index)) == 15
    assert len(found(ColumnIndex(ledger, folder))) == 15


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / MANIFEST).write_text("{"),
        lambda folder: (folder / MANIFEST).write_text('{"format": 0}'),
        lambda folder: next(folder.glob(f"*{SUFFIX}")).unlink(),
        lambda folder: os.truncate(next(folder.glob(f"*{SUFFIX}")), 100),
        lambda folder: os.truncate(next(folder.glob(f"*{SUFFIX}")), 0),
    ],
)
def test_a_damaged_index_is_built_again(ledger, folder, damage):
    record(ledger, 1, 2)
    ColumnIndex(ledger, folder).snapshot()
    damage(folder)
    assert found(ColumnIndex(ledger, folder)) == [2, 1]
    assert segments(folder) == set(read_manifest(folder).segments)


def test_the_index_of_a_rebuilt_ledger_is_built_again(ledger, folder):
    record(ledger, 1, 2)
    column_index = ColumnIndex(ledger, folder)
    assert found(column_index) == [2, 1]
    ledger.clear()
    record(ledger, 3)
    assert found(column_index) == [3]
    assert found(ColumnIndex(ledger, folder)) == [3]


def test_without_a_folder_that_can_be_written_the_index_is_in_memory(ledger, tmp_path):
    (tmp_path / "file").touch()
    record(ledger, 1)
    for folder in (None, tmp_path / "file" / "index"):
        column_index = ColumnIndex(ledger, folder, most_in_memory=1)
        assert found(column_index) == [1]
        record(ledger, 2, 3)
        assert found(column_index) == [3, 2, 1]
        ledger.remove(an_id(2))
        ledger.remove(an_id(3))


def test_a_query_continues_while_another_process_writes(ledger, folder):
    record(ledger, 1)
    column_index = ColumnIndex(ledger, folder, most_in_memory=1)
    column_index.snapshot()
    record(ledger, 2, 3)
    with ColumnIndex(ledger, folder)._lock(wait=True) as locked:
        assert locked
        assert found(column_index) == [3, 2, 1]
        assert read_manifest(folder).segments == column_index.segment_names[:1]
    assert found(column_index) == [3, 2, 1]
    assert read_manifest(folder).mark == ledger.mark()


def test_executions_that_begin_at_the_same_time_are_ordered_by_id(ledger, folder):
    for records in (random_records(Random(3), 40), random_records(Random(4), 40, first=20)):  # noqa: S311
        for each in records:
            ledger.record(each, archive="archived", manifest_sha256=SEAL)
        column_index = ColumnIndex(ledger, folder, most_in_memory=8)
        expected = [(row.first_known, row.id) for row in ledger.search()]
        page = search(column_index.snapshot(), parse(""), ledger.related).page(limit=1000)
        assert list(page.ids) == [execution_id for _, execution_id in expected]


WRITER = """
import os, signal, sys
from pathlib import Path
from prefect_executions.ledger.index.index import ColumnIndex
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.tracepoints import EVENT

step, url, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
reached = 0

def on_audit_event(event, arguments):
    global reached
    if event == EVENT:
        reached += 1
        if reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(on_audit_event)
ColumnIndex(Ledger.open(url), folder, most_in_memory=1).snapshot()
print(reached)
"""


@pytest.mark.parametrize(
    "begun", [pytest.param(False, id="first", marks=pytest.mark.long), pytest.param(True, id="later")]
)
def test_a_writer_that_is_killed_at_any_step_leaves_a_correct_index(ledger, folder, begun, tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    record(ledger, *range(10))
    if begun:
        ColumnIndex(ledger, folder).snapshot()
        record(ledger, *range(5, 12), end=Status.FAILED)
        ledger.remove(an_id(0))
        shutil.copytree(folder, tmp_path / "begun")
    expected = found(ColumnIndex(ledger, None)), found(ColumnIndex(ledger, None), "status:failed")
    for step in range(1, 20):
        shutil.rmtree(folder, ignore_errors=True)
        if begun:
            shutil.copytree(tmp_path / "begun", folder)
        ended = subprocess.run(
            [sys.executable, "-c", WRITER, str(step), url, str(folder)], capture_output=True, text=True, check=False
        )
        for column_index in (ColumnIndex(ledger, folder), ColumnIndex(ledger, None)):
            assert (found(column_index), found(column_index, "status:failed")) == expected
        if ended.returncode != -signal.SIGKILL:
            assert ended.returncode == 0, ended.stderr
            break
    assert int(ended.stdout) == step - 1 == 4
    assert segments(folder) == set(read_manifest(folder).segments)
