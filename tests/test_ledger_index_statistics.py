"""Statistics of the column index agree with those that the standard library computes from the ledger's rows."""

from __future__ import annotations

import statistics as standard
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from random import Random

import pytest

from ledgers import an_id
from prefect_executions.errors import RequestError
from prefect_executions.executions.record import ExecutionRecord, Usage
from prefect_executions.ledger.index.index import ColumnIndex
from prefect_executions.ledger.index.search import Found, search
from prefect_executions.ledger.index.statistics import Distribution, Period, Statistics, statistics
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.ledger.rows import Row
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.query.parser import parse, parse_target
from records import NOON, a_job_status, a_method, a_record, an_instance

ENDS = (Status.COMPLETED, Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.EXECUTING)
REASONS = (Reason.ERROR, Reason.TIMED_OUT, None)


def a_random_record(random: Random, number: int) -> ExecutionRecord:
    end, method = random.choice(ENDS), random.choice(("train", "evaluate"))
    status = a_job_status(
        end,
        execution_id=an_id(number),
        method_id=method,
        begins=NOON + timedelta(seconds=random.uniform(0, 200_000)),
        reason=random.choice(REASONS) if end is Status.FAILED else None,
    )
    history = status.history
    if end.terminal:
        last = history[-1].model_copy(update={"time": history[-1].time + timedelta(seconds=random.expovariate(0.01))})
        status = status.model_copy(update={"history": (*history[:-1], last)})
    usage = Usage(cpu_seconds=random.choice((None, random.uniform(0, 50))), peak_memory=random.choice((None, 10**9)))
    return a_record(job_status=status, method=a_method(id=method), instance=an_instance(usage=usage))


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    ledger = Ledger.open(f"sqlite:///{tmp_path_factory.mktemp('statistics') / 'ledger.db'}")
    yield ledger
    ledger.close()


@pytest.fixture(scope="module")
def found(ledger) -> Found:
    random, index = Random(1), ColumnIndex(ledger, None)  # noqa: S311  not for cryptography
    for part in range(3):
        with ledger.bulk() as bulk:
            for number in range(60):  # the last thirty of a part are recorded again by the next one
                bulk.record(a_random_record(random, part * 30 + number), archive="local")
        index.snapshot()
    assert len(index.snapshot().segments) == 3
    return search(index.snapshot(), parse("*"), ledger.related)


def agrees(one: Distribution | None, numbers: Iterable[float | None]) -> bool:
    known = [number for number in numbers if number is not None]
    if one is None:
        return not known
    p95 = standard.quantiles(known, n=100, method="inclusive")[94] if len(known) > 1 else known[0]
    expected = (len(known), standard.fmean(known), standard.median(known), p95, max(known), sum(known))
    return (one.count, one.mean, one.median, one.p95, one.maximum, one.total) == pytest.approx(expected)


def check(one: Statistics, rows: list[Row]) -> None:
    assert one.executions == len(rows)
    assert one.statuses == Counter(row.status for row in rows)
    assert one.failures == Counter(row.reason for row in rows if row.status is Status.FAILED and row.reason)
    judged = [row for row in rows if row.status in {Status.COMPLETED, Status.FAILED}]
    assert one.success_rate == sum(row.status is Status.COMPLETED for row in judged) / len(judged)
    assert one.failure_rate(Reason.ERROR) == sum(row.reason is Reason.ERROR for row in judged) / len(judged)
    assert agrees(one.duration, (row.duration and row.duration.total_seconds() for row in rows))
    assert agrees(one.wait, ((row.started - (row.scheduled or row.created)).total_seconds() for row in rows))
    assert agrees(one.cpu, (row.cpu and row.cpu.total_seconds() for row in rows))
    assert agrees(one.memory, (row.memory for row in rows))


def test_all_executions_together(ledger, found):
    (one,) = found.statistics()
    rows = list(ledger.search())
    check(one, rows)
    ends = [row.finished for row in rows if row.finished]
    hours = (max(ends) - min(ends)) / timedelta(hours=1)
    assert one.throughput(Period.HOUR) == pytest.approx(len(ends) / hours)
    assert one.throughput(Period.DAY) == pytest.approx(24 * len(ends) / hours)


def test_groups_are_the_largest_first(ledger, found):
    groups = found.statistics([parse_target("method")])
    assert [one.executions for one in groups] == sorted((one.executions for one in groups), reverse=True)
    assert {one.values for one in groups} == {("train",), ("evaluate",)}
    for one in groups:
        check(one, [row for row in ledger.search() if row.method_id == one.values[0]])


def test_periods_have_what_ended_in_them_in_the_order_of_time(ledger, found):
    days = found.statistics([parse_target("method")], Period.DAY)
    rows = [row for row in ledger.search() if row.finished]
    assert sum(one.executions for one in days) == len(rows)
    assert [one.period for one in days] == sorted(one.period for one in days)
    for one in days:
        own = [row for row in rows if row.method_id == one.values[0] and row.finished.date() == one.period.date()]
        check(one, own)
        assert one.throughput(Period.DAY) == len(own)


def test_nothing_found_has_no_statistics(ledger, found):
    nothing = search(ColumnIndex(ledger, None).snapshot(), parse("method:none"), ledger.related)
    assert nothing.statistics() == ()
    assert nothing.statistics([parse_target("method")], Period.HOUR) == ()


def test_an_execution_without_start_has_no_times(tmp_path):
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        record = a_record(job_status=a_job_status(Status.SCHEDULED, started=False))
        ledger.record(replace(record, instance=an_instance(usage=None)), archive="local")
        (one,) = search(ColumnIndex(ledger, None).snapshot(), parse("*"), ledger.related).statistics()
    assert (one.duration, one.wait, one.cpu, one.memory, one.success_rate) == (None,) * 5
    assert one.throughput(Period.DAY) is None


def test_too_many_groups_are_refused(found):
    with pytest.raises(RequestError, match="more than 50; group by fewer values"):
        statistics(found.matched, [parse_target("id")], most=50)
