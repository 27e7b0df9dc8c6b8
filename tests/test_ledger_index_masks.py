"""The masks of the column index agree with the naive evaluator on random executions and random queries."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings

from ledgers import SEAL
from prefect_executions.ledger.index.index import ColumnIndex
from prefect_executions.ledger.index.search import search
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.query.match import matches
from prefect_executions.query.tree import resolve
from queries import NOW, trees
from searches import facts_of, random_records


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """A base of 60 executions in a file; a tail in which some are new, changed or removed; and their facts."""
    folder, random = tmp_path_factory.mktemp("index"), Random(7)  # noqa: S311 - reproducible executions
    with Ledger.open(f"sqlite:///{folder / 'ledger.db'}") as ledger:
        index = ColumnIndex(ledger, folder / "index")
        records = {}

        def record(found, archive="archived"):
            ledger.record(found, archive=archive, manifest_sha256=SEAL if archive == "archived" else None)
            records[found.id] = found, archive

        for found in random_records(random, 60):
            record(found)
        index.snapshot()
        for found in random_records(random, 30, first=45):  # some have an id that is in the base
            record(found)
            index.snapshot()
        for execution_id in list(records)[::9]:
            ledger.remove(execution_id)
            del records[execution_id]
        index.snapshot()
        record(random_records(random, 1, first=99)[0], "local")
        every = {execution_id: found for execution_id, (found, _) in records.items()}
        facts = {
            execution_id: facts_of(found, archive=archive, records=every)
            for execution_id, (found, archive) in records.items()
        }
        yield index.snapshot(), ledger, facts


def found_ids(snapshot, ledger, tree):
    found = search(snapshot, tree, ledger.related)
    ids = found.page(limit=1000).ids
    assert len(ids) == found.total
    return set(ids)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=trees)
def test_a_query_finds_what_the_naive_evaluator_finds(indexed, tree):
    snapshot, ledger, facts = indexed
    resolved = resolve(tree, NOW)
    expected = {execution_id for execution_id, one in facts.items() if matches(resolved, one)}
    assert found_ids(snapshot, ledger, resolved) == expected
