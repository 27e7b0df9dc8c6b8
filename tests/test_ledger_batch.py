"""A search reads everything that it needs of many executions with few statements."""

from __future__ import annotations

from random import Random

import pytest

from ledgers import KINDS, SEAL, a_fresh_url, an_id, numbered
from prefect_executions.errors import NotFoundError
from prefect_executions.ledger.batch import BATCH_COLUMNS, LABELS, PART_COLUMNS, PARTS
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.ledger.rows import AnnotationRow
from records import NOON
from searches import random_records


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
    records = random_records(Random(5), 40)  # noqa: S311
    for record in records:
        ledger.record(record, archive="archived", manifest_sha256=SEAL)
    ids = [record.id for record in records[::2]]
    batch = ledger.batch([*ids, an_id(77)])
    found = by_id(batch)
    assert found.keys() == set(ids)
    stored = {table: list(ledger.rows(table)) for table in {"executions", *(part.table for part in PARTS.values())}}
    for execution_id, parts in found.items():
        (row,) = parts["executions"]
        assert [row.pop(label) for label in LABELS] == [None, 0, 0]
        assert row.pop("method") in batch.titles
        assert row.items() <= next(each for each in stored["executions"] if each["id"] == execution_id).items()
        for table in stored.keys() - {"executions"}:
            rows = [row for name, part in PARTS.items() if part.table == table for row in parts.get(name, [])]
            own = [each for each in stored[table] if each["execution"] == execution_id]
            assert len(rows) == len(own)
            assert all(any(row.items() <= each.items() for each in own) for row in rows)
    numbers = [row for parts in found.values() for row in parts.get("param_numbers", [])]
    assert numbers
    assert all(abs(row["number"]) < 2**53 for row in numbers)


def test_a_batch_has_the_labels_that_annotations_amount_to(ledger):
    for number in range(3):
        ledger.record(numbered(number), archive="archived", manifest_sha256=SEAL)
    changes = [("untag", "survey"), ("tag", "best"), ("name", "seven"), ("note", "one"), ("note", "two"), ("star", "")]
    rows = [AnnotationRow(*change, NOON, "ada", None, f"{at:064x}") for at, change in enumerate(changes)]
    ledger.annotate(an_id(1), reversed(rows))
    assert ledger.annotations(an_id(1)) == tuple(rows)
    for batch in (ledger.batch([an_id(0), an_id(1)]), *ledger.scan()):
        found = by_id(batch)
        assert [row["note"] for row in found[an_id(1)]["notes"]] == ["one", "two"]
        (row,) = found[an_id(1)]["executions"]
        assert (row["flow_run_name"], row["experiment"], row["starred"], row["recalled"]) == ("seven", None, 1, 0)
        before = [row["tag"] for row in found[an_id(0)]["tags"]]
        tags = [row["tag"] for row in found[an_id(1)]["tags"]]
        assert tags == [*(tag for tag in before if tag != "survey"), "best"]


def test_an_annotation_is_a_change_of_its_execution(ledger):
    ledger.record(numbered(1), archive="archived", manifest_sha256=SEAL)
    mark = ledger.mark()
    row = AnnotationRow("note", "one", NOON, "ada", None, "a" * 64)
    ledger.annotate(an_id(1), [row])
    assert [change.id for change in ledger.changes(mark).changes] == [an_id(1)]
    with pytest.raises(NotFoundError, match="not in the ledger"):
        ledger.annotate(an_id(2), [row])


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
