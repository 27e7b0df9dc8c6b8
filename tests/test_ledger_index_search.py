"""Pages, facets and groups of a search agree with plain Python on random executions."""

from __future__ import annotations

import base64
import math
from collections import Counter
from decimal import Decimal
from random import Random

import pytest

from ledgers import SEAL, an_id, numbered
from prefect_executions.errors import RequestError
from prefect_executions.ledger.index.index import ColumnIndex
from prefect_executions.ledger.index.keys import SortKey
from prefect_executions.ledger.index.search import search
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.query.match import values_of, version_key
from prefect_executions.query.parser import parse, parse_target
from searches import facts_of, random_records

SORTS = (
    "epochs",
    "param:lr",
    "metric:x",
    "metric:x.min",
    "in:epochs",
    "status",
    "version",
    "date",
    "duration",
    "name",
    "id",
)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """Executions in two segments, of which the second replaces rows of the first, and their facts."""
    folder, random = tmp_path_factory.mktemp("index"), Random(11)  # noqa: S311 - reproducible executions
    with Ledger.open(f"sqlite:///{folder / 'ledger.db'}") as ledger:
        index, records = ColumnIndex(ledger, folder / "index"), {}
        for first, many in ((0, 80), (60, 40)):
            for found in random_records(random, many, first=first):
                ledger.record(found, archive="archived", manifest_sha256=SEAL)
                records[found.id] = found
            index.snapshot()
        facts = {each: facts_of(record, archive="archived", records={}) for each, record in records.items()}
        yield search(index.snapshot(), parse(""), ledger.related), facts


def scalar(target, facts):
    """Return the value that sorts an execution; None if it is missing, NaN, a list or an object."""
    (value, *_) = values_of(target, facts) or (None,)
    is_scalar = isinstance(value, bool | int | float | Decimal | str) or value is None or hasattr(value, "real")
    if not is_scalar and not hasattr(value, "resolution"):  # datetime and timedelta have one
        return None
    return None if value != value else value  # noqa: PLR0124 - NaN


def rank(target, value):
    if isinstance(value, bool):
        return 1, value
    if isinstance(value, str):
        return 2, (version_key(value), value) if getattr(target, "name", "") == "version" else value
    return 3, value


def ordered(facts, sort):
    """Return the ids in the order of *sort*: stable sorts, the last key first."""
    ids = sorted(facts, key=lambda each: (*facts[each].fields["date"], each), reverse=True)
    for key in reversed(sort):
        values = {each: scalar(key.target, facts[each]) for each in ids}
        have = [each for each in ids if values[each] is not None]
        have.sort(key=lambda each: rank(key.target, values[each]), reverse=key.descending)
        ids = [*have, *(each for each in ids if values[each] is None)]
    return ids


@pytest.mark.parametrize("descending", [True, False], ids=["descending", "ascending"])
@pytest.mark.parametrize("name", SORTS)
def test_pages_follow_the_order_of_a_key(indexed, name, descending):
    found, facts = indexed
    sort = [SortKey(parse_target(name), descending)]
    expected = ordered(facts, sort)
    assert list(found.page(sort, limit=1000).ids) == expected
    for limit in (1, 7, 50):
        pages, after = [], None
        while True:
            page = found.page(sort, limit=limit, after=after)
            pages += page.ids
            after = page.after
            if after is None:
                break
        assert pages == expected


def test_pages_follow_the_order_of_several_keys(indexed):
    found, facts = indexed
    sort = [SortKey(parse_target(name), descending) for name, descending in (("status", False), ("param:lr", True))]
    first = found.page(sort, limit=30)
    second = found.page(sort, limit=1000, after=first.after)
    assert [*first.ids, *second.ids] == ordered(facts, sort)


def test_a_cursor_of_another_order_is_refused(indexed):
    found, _ = indexed
    after = found.page([SortKey(parse_target("status"), descending=True)], limit=1).after
    for wrong in (after, "x", "W10="):
        with pytest.raises(RequestError, match="not a cursor"):
            found.page([SortKey(parse_target("duration"), descending=True)], after=wrong)
    with pytest.raises(RequestError, match="at least 1"):
        found.page(limit=0)


def test_a_cursor_of_a_number_fits_beside_its_option_on_a_line(indexed):
    found, _ = indexed
    sorts = [[SortKey(parse_target(name), descending=True)] for name in ("metric:x", "duration", "date")]
    pages = [found.page(sort, limit=limit) for sort in sorts for limit in range(1, 20)]
    cursors = [page.after for page in pages if ".2" not in page.ids[-1]]
    assert max(map(len, cursors)) <= 80 - len("--after ")


def test_a_damaged_cursor_is_refused(indexed):
    found, _ = indexed
    sort = [SortKey(parse_target("duration"), descending=True)]
    data = base64.urlsafe_b64decode(found.page(sort, limit=1).after)
    begin, values = data[:29], data[29:]
    assert found.page(sort, after=base64.urlsafe_b64encode(begin + values).decode()).ids
    for content in (b"", values[:-1], b"[]", b"[1,2]", b"[[1]]", b"[{}]", b"[" * 100_000, b'[{"exact":"x"}]', b"\xff"):
        with pytest.raises(RequestError, match="not a cursor"):
            found.page(sort, after=base64.urlsafe_b64encode(begin + content).decode())
    for size in (4, 12, 20):
        with pytest.raises(RequestError, match="not a cursor"):
            found.page(sort, after=base64.urlsafe_b64encode(data[:size]).decode())


def test_a_cursor_stays_valid_while_executions_arrive(tmp_path):
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        for number in range(6):
            ledger.record(numbered(number), archive="archived", manifest_sha256=SEAL)
        index = ColumnIndex(ledger, None)
        sort = [SortKey(parse_target("duration"), descending=True)]
        page = search(index.snapshot(), parse(""), ledger.related).page(sort, limit=3)
        ledger.record(numbered(9), archive="archived", manifest_sha256=SEAL)
        ledger.remove(an_id(2))
        rest = search(index.snapshot(), parse(""), ledger.related).page(sort, after=page.after)
        assert [*page.ids, *rest.ids] == [an_id(number) for number in (5, 4, 3, 1, 0)]


@pytest.mark.parametrize(
    "name", ["status", "method", "reason", "tag", "media", "param:epochs", "in:x", "metric:lr", "host"]
)
def test_facets_count_each_value_of_the_results(indexed, name):
    found, facts = indexed
    target = parse_target(name)
    expected, missing = Counter(), 0
    for one in facts.values():
        if name in {"tag", "media"}:
            values = set(values_of(target, one))
        else:
            value = scalar(target, one)
            values = set() if value is None else {value}
        missing += not values
        expected.update(rank(None, value) for value in values)
    facet = found.facet(target, most=1000)
    assert Counter({rank(None, value): count for value, count in facet.values}) == expected
    assert (facet.missing, facet.distinct) == (missing, len(expected))
    assert [count for _, count in facet.values] == sorted(expected.values(), reverse=True)


def test_groups_have_success_rate_and_statistics(indexed):
    found, facts = indexed
    status, host, duration = map(parse_target, ("status", "host", "duration"))
    groups = {group.values: group for group in found.groups([host, status], [duration, parse_target("metric:x")])}
    expected = {}
    for each, one in facts.items():
        key = scalar(host, one), scalar(status, one)
        expected.setdefault(key, []).append(each)
    assert {key: group.executions for key, group in groups.items()} == {key: len(ids) for key, ids in expected.items()}
    for key, ids in expected.items():
        took = [value.total_seconds() for each in ids if (value := scalar(duration, facts[each])) is not None]
        measure = groups[key].measures[duration]
        assert measure.count == len(took)
        if took:
            mean = sum(took) / len(took)
            assert measure.mean == pytest.approx(mean)
            assert (measure.minimum, measure.maximum) == pytest.approx((min(took), max(took)))
            assert measure.minimum_id in ids
        if len(took) > 1:
            assert measure.sd == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in took) / (len(took) - 1)))
    whole = found.groups([parse_target("param:nobody_has_this")])
    completed = sum(scalar(status, one) == "COMPLETED" for one in facts.values())
    failed = sum(scalar(status, one) == "FAILED" for one in facts.values())
    assert [group.success_rate for group in whole] == [completed / (completed + failed)]


def test_an_execution_with_two_tags_is_in_two_groups(indexed):
    found, facts = indexed
    tag = parse_target("tag")
    expected = Counter(value for one in facts.values() for value in (set(values_of(tag, one)) or {None}))
    assert {group.values[0]: group.executions for group in found.groups([tag])} == expected


def test_a_histogram_counts_every_finite_number(indexed):
    found, facts = indexed
    target = parse_target("duration")
    values = [value for one in facts.values() if (value := scalar(target, one)) is not None]
    histogram = found.histogram(parse_target("date"), 7)
    assert (len(histogram.edges), sum(histogram.counts), histogram.missing) == (8, len(facts), 0)
    histogram = found.histogram(target)
    assert (sum(histogram.counts), histogram.missing) == (len(values), len(facts) - len(values))
    assert found.histogram(parse_target("metric:none")).counts == ()


def test_names_and_values_complete_with_their_counts(indexed):
    found, facts = indexed
    counts = Counter(name for one in facts.values() for name, value in one.params.items() if value is not None)
    names = {one.name: one.executions for one in found.names(most=100) if one.source == "param"}
    assert names == counts
    begin_with_x = {one.name for one in found.names("X", most=100) if one.source == "param"}
    assert begin_with_x == {name for name in counts if name.startswith("x")}
    methods = Counter(value for one in facts.values() for value in one.fields["method"])
    assert dict(found.values(parse_target("method"), "A")) == {"a": methods["a"], "Ab": methods["Ab"]}


def test_cells_have_the_values_of_the_documents(indexed):
    found, facts = indexed
    names = ("id", "status", "started", "duration", "tag", "param:epochs", "metric:x.max", "size")
    page = found.page(limit=1000, columns=[*map(parse_target, names)])
    for execution_id, row in zip(page.ids, page.rows, strict=True):
        one = facts[execution_id]
        for name, value in zip(names, row, strict=True):
            target = parse_target(name)
            if name in {"tag", "size"}:
                assert set(value) == set(values_of(target, one))
            elif name.startswith(("param", "metric")):
                expected = scalar(target, one)
                assert (value if value == value else None) == expected  # noqa: PLR0124 - NaN
            else:
                assert value == scalar(target, one)
