"""The ledger accepts every text and number."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledgers import SEAL, a_fresh_url, as_read
from prefect_executions.executions.record import Metric, Metrics
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.lifecycle.status import Status
from prefect_executions.query.filter import Filter
from records import NOON, a_job_status, a_method, a_record, a_request, an_agent, an_output


@pytest.fixture(scope="module")
def sqlite(need, tmp_path_factory):
    """A ledger for properties that try many executions."""
    with a_fresh_url("sqlite", need, tmp_path_factory.mktemp("one")) as url, Ledger.open(url) as opened:
        yield opened


@pytest.fixture(scope="module")
def both(sqlite, need, tmp_path_factory):
    with a_fresh_url("postgresql", need, tmp_path_factory.mktemp("other")) as url, Ledger.open(url) as postgres:
        yield sqlite, postgres


encodable = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(["\0", "%s ? :x", "'\"--", "\uffff"])
hostile = st.text(max_size=12) | encodable
numbers = st.integers() | st.integers(-(2**130), 2**130) | st.floats() | st.just(10**400)
values = st.recursive(
    st.none() | st.booleans() | numbers | hostile, lambda inner: st.lists(inner, max_size=3), max_leaves=5
)


@st.composite
def hostile_records(draw, words=hostile, given_values=values):
    names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
    metrics = st.builds(
        Metric, name=encodable, value=numbers, step=st.none() | st.integers(-(2**70), 2**70), time=st.just(NOON)
    )
    job_status = a_job_status(
        Status.FAILED,
        execution_id=draw(names),
        message=draw(encodable),
        outputs=[an_output(f"outputs/{draw(encodable)}")],
    )
    return a_record(
        job_status=job_status,
        method=a_method(title=draw(encodable), description=draw(encodable)),
        request=a_request(
            values=draw(st.dictionaries(encodable, given_values, max_size=3)),
            files=(),
            tags=tuple(draw(st.lists(encodable, max_size=3))),
            flow_run_name=draw(encodable),
        ),
        agent=an_agent(claims={"name": draw(words)}),
        metrics=Metrics(
            params=draw(st.dictionaries(encodable, given_values, max_size=3)),
            metrics=tuple(draw(st.lists(metrics, max_size=3))),
        ),
    )


@given(record=hostile_records())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_hostile_values_are_stored_equally_in_both_databases(both, record):
    dumps = []
    for ledger in both:
        ledger.clear()
        ledger.record(record, archive="pending", manifest_sha256=SEAL)
        assert ledger.find(record.id) == ledger.get(record.id).id
        assert len(ledger.list(Filter(method=record.method.id)).rows) == 1
        dumps.append(ledger.dump())
    assert dumps[0] == dumps[1]


as_documents = values.filter(lambda value: "\\ud" not in ascii(value))


@given(record=hostile_records(words=encodable, given_values=as_documents))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_a_record_and_its_parsed_documents_give_equal_rows(sqlite, record):
    dumps = []
    for source in (record, as_read(record)):
        sqlite.clear()
        sqlite.record(source, archive="local")
        dumps.append(sqlite.dump())
    assert dumps[0] == dumps[1]
