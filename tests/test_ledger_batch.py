"""A search reads everything that it needs of many executions with few statements."""

from __future__ import annotations

import pytest

from ledgers import KINDS, SEAL, a_fresh_url, an_id, numbered
from prefect_executions.ledger.batch import BATCH_COLUMNS, PART_COLUMNS
from prefect_executions.ledger.ledger import Ledger


@pytest.fixture(params=KINDS)
def ledger(request, need, tmp_path):
    with a_fresh_url(request.param, need, tmp_path) as url, Ledger.open(url) as opened:
        yield opened


def readable(value):
    return value.hex() if isinstance(value, bytes) else value


def by_id(batch):
    """Return the rows of a batch by id of the execution, without keys."""
    rows = [dict(zip(BATCH_COLUMNS, map(readable, row), strict=True)) for row in batch.executions]
    ids = {row.pop("key"): row["id"] for row in rows}
    found = {row["id"]: {"executions": [row]} for row in rows}
    for table, parts in batch.parts.items():
        for part in parts:
            columns = dict(zip(PART_COLUMNS[table], map(readable, part), strict=True))
            found[ids[columns.pop("execution")]].setdefault(table, []).append(columns)
    return found


def test_a_batch_has_the_rows_of_its_executions(ledger):
    for number in range(5):
        ledger.record(numbered(number), archive="archived", manifest_sha256=SEAL)
    found = by_id(ledger.batch([an_id(3), an_id(1), an_id(77)]))
    assert found.keys() == {an_id(1), an_id(3)}
    for execution_id, tables in found.items():
        for table, rows in tables.items():
            column = "id" if table == "executions" else "execution"
            stored = [row for row in ledger.rows(table) if row[column] == execution_id]
            for row in stored:
                row.pop("position", None)
                row.pop("execution", None)
                row.pop("method", None)
            if table == "executions":
                assert rows[0].pop("method_title") == "Segment coins"
            assert rows == stored
        assert tables.keys() == {"executions", *PART_COLUMNS} - {"leaves"}


def test_a_batch_of_no_execution_is_empty(ledger):
    for ids in ([], [an_id(1)]):
        batch = ledger.batch(ids)
        assert batch.executions == []
        assert batch.parts == {table: [] for table in PART_COLUMNS}


def test_a_scan_reads_every_execution_as_a_batch_does(ledger):
    with ledger.bulk() as bulk:
        for number in range(25):
            bulk.record(numbered(number), archive="local")
    batches = list(ledger.scan(size=10))
    assert [len(batch.executions) for batch in batches] == [10, 10, 5]
    scanned = {}
    for batch in batches:
        scanned |= by_id(batch)
    assert scanned == by_id(ledger.batch([an_id(number) for number in range(25)]))
    ledger.clear()
    assert list(ledger.scan()) == []
