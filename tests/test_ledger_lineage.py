"""Lineage of executions and files in both databases agrees with the terms `uses:` and `usedby:`."""

from __future__ import annotations

from datetime import timedelta
from random import Random

import pytest

from ledgers import KINDS, SEAL, a_fresh_url, an_id
from lineages import an_execution, diamonds, digest, record_graph
from prefect_executions.errors import NotFoundError, RequestError
from prefect_executions.executions.lineage import Direction
from prefect_executions.executions.record import Relative
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.ledger.rows import AnnotationRow
from prefect_executions.query.tree import Link
from records import NOON

UP, DOWN = Direction.UP, Direction.DOWN


@pytest.fixture(params=KINDS)
def ledger(request, need, tmp_path):
    with a_fresh_url(request.param, need, tmp_path) as url, Ledger.open(url) as opened:
        yield opened


def depths(lineage, walked) -> dict[str, int]:
    return {lineage.label(key): depth for key, depth in walked.depths.items()}


def test_a_diamond_has_each_execution_once(ledger):
    record_graph(ledger, diamonds(4))
    found = ledger.lineage(an_id(12), [UP, DOWN], depth=99, most=99)
    up, down = found.data
    assert depths(found, up) == {an_id(n): 8 - 2 * (n // 3) - (n % 3 > 0) for n in range(13)}
    assert len(up.edges) == 16
    assert depths(found, down) == {an_id(12): 0}
    (edge,) = (
        each for each in up.edges if (found.label(each.source), found.label(each.target)) == (an_id(9), an_id(10))
    )
    assert (edge.output, edge.input, edge.sha256) == ("outputs/9.csv", "from_9", digest(9))


@pytest.mark.parametrize("seed", range(3))
def test_one_step_agrees_with_the_terms_of_searches(ledger, seed):
    random = Random(seed)  # noqa: S311  test data
    record_graph(ledger, {number: random.sample(range(12), random.choice([0, 1, 2])) for number in range(12)})
    for number in range(12):
        found = ledger.lineage(an_id(number), [UP, DOWN], depth=1, most=99)
        up, down = ({*depths(found, walked)} - {an_id(number)} for walked in found.data)
        assert up == ledger.related(Link.USED_BY, [an_id(number)])
        assert down == ledger.related(Link.USES, [an_id(number)])


@pytest.mark.parametrize("seed", range(3))
def test_a_walk_of_many_depths_agrees_with_its_steps(ledger, seed):
    # Nodes use one of the last few nodes, so that the walk is narrow in some depths and wide in others.
    random = Random(seed)  # noqa: S311  test data
    graph: dict[int, list[object]] = {number: [max(0, number - random.choice([1, 1, 2]))] for number in range(1, 300)}
    graph |= {number: [random.randrange(290, 300)] for number in range(300, 330)}
    record_graph(ledger, {0: [], **graph})
    edges = {(one, number) for number, uses in graph.items() for one in uses}
    for direction, start in ((DOWN, 0), (UP, 329), (UP, 299)):
        found = ledger.lineage(an_id(start), [direction], depth=10**6, most=10**6)
        (walked,) = found.data
        expected, frontier = {start: 0}, [start]
        while frontier:
            ends = {a if direction is UP else b for a, b in edges if (b if direction is UP else a) in frontier}
            frontier = sorted(ends - expected.keys())
            expected |= dict.fromkeys(frontier, max(expected.values()) + 1)
        assert depths(found, walked) == {an_id(number): depth for number, depth in expected.items()}
        assert {(found.label(each.source), found.label(each.target)) for each in walked.edges} == {
            (an_id(a), an_id(b)) for a, b in edges if a in expected and b in expected
        }
    (walked,) = ledger.lineage(an_id(0), [DOWN], depth=20, most=10**6).data
    assert max(walked.depths.values()) == 20
    assert walked.cut


def test_orchestration_is_apart_from_the_data_flow(ledger):
    parent = Relative(execution_id=an_id(1), relation="parent")
    rerun = Relative(execution_id=an_id(2), relation="rerun-of")
    for record in (an_execution(1), an_execution(2, relatives=[parent]), an_execution(3, [1], relatives=[rerun])):
        ledger.record(record, archive="archived", manifest_sha256=SEAL)
    found = ledger.lineage(an_id(1), [DOWN], depth=99, most=99)
    assert depths(found, found.data[0]) == {an_id(1): 0, an_id(3): 1}
    assert depths(found, found.orchestration[0]) == {an_id(1): 0, an_id(2): 1, an_id(3): 2}
    assert [edge.relation for edge in found.orchestration[0].edges] == ["parent", "rerun-of"]
    assert ledger.lineage(an_id(1), [DOWN], depth=99, most=99, orchestration=False).orchestration == ()


def test_a_file_has_the_lineage_of_its_makers_and_users(ledger):
    record_graph(ledger, {1: [], 2: [1], 3: [2], 4: ["outside"], 5: [4]})
    made = ledger.lineage_of_file(digest(2), [UP, DOWN], depth=99, most=99)
    up, down = (depths(made, walked) for walked in made.data)
    file = f"sha256:{digest(2)}"
    assert up == {file: 0, an_id(2): 1, an_id(1): 2}
    assert down == {file: 0, an_id(3): 1}
    outside = ledger.lineage_of_file(digest("outside"), [DOWN], depth=99, most=99)
    assert list(depths(outside, outside.data[0]))[1:] == [an_id(4), an_id(5)]


def test_the_cost_and_the_recall_of_an_execution_are_known(ledger):
    record_graph(ledger, {1: [], 2: [1]})
    ledger.annotate(an_id(2), [AnnotationRow("recall", "bad sensor", NOON, "ada", None, "a" * 64)])
    found = ledger.lineage(an_id(1), [DOWN], depth=1, most=1)
    first, second = found.nodes.values()
    assert (first.recalled, second.recalled) == (None, "bad sensor")
    assert second.cpu == timedelta(seconds=2)
    assert second.duration == ledger.get(an_id(2)).duration


def test_a_digest_is_found_by_its_beginning(ledger):
    record_graph(ledger, {1: ["outside"]})
    for name in (1, "outside"):
        assert ledger.find_digest(digest(name)) == ledger.find_digest(digest(name)[:7].upper()) == digest(name)
    with pytest.raises(NotFoundError, match="begins with"):
        ledger.find_digest("0" * 64)
    with pytest.raises(RequestError, match="not the beginning"):
        ledger.find_digest("xyz")


def test_an_ambiguous_digest_is_refused(ledger):
    record_graph(ledger, {number: [] for number in range(600)})
    digits = [digest(number)[:4] for number in range(600)]
    twice = next(each for each in digits if digits.count(each) > 1)
    with pytest.raises(RequestError, match="more digits"):
        ledger.find_digest(twice)


def test_an_execution_that_does_not_exist_has_no_lineage(ledger):
    with pytest.raises(NotFoundError, match="not in the ledger"):
        ledger.lineage(an_id(1), [UP], depth=1, most=1)
