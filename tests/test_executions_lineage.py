"""A walk reaches every execution once, nearest first, and says what it leaves out."""

from __future__ import annotations

from random import Random

import pytest

from prefect_executions.executions.lineage import Direction, LineageEdge, run_order, walk

UP, DOWN = Direction.UP, Direction.DOWN


def neighbours_of(edges):
    calls = []

    def neighbours(keys, direction):
        calls.append(list(keys))
        return [edge for edge in edges if edge.near(direction) in keys]

    return neighbours, calls


def random_edges(seed: int, nodes: int) -> list[LineageEdge]:
    random = Random(seed)  # noqa: S311  test data
    return [
        LineageEdge(source, target, output=name)
        for source in range(nodes)
        for target in range(source + 1, nodes)
        for name in "ab"
        if random.random() < 2 / nodes
    ]


def shortest(edges, start: int, direction: Direction) -> dict[int, int]:
    """Return the distances by relaxing every edge until nothing changes."""
    found = {start: 0}
    for _ in range(len(edges) + 1):
        for edge in edges:
            near, far = edge.near(direction), edge.far(direction)
            if near in found and found[near] + 1 < found.get(far, 1 << 30):
                found[far] = found[near] + 1
    return found


@pytest.mark.parametrize("direction", [UP, DOWN])
@pytest.mark.parametrize("seed", range(10))
def test_the_distances_are_the_shortest(seed, direction):
    edges = random_edges(seed, 25)
    neighbours, calls = neighbours_of(edges)
    walked = walk(12, neighbours, direction, depth=99, most=99)
    assert walked.depths == shortest(edges, 12, direction)
    assert list(walked.depths.values()) == sorted(walked.depths.values())
    assert set(walked.edges) == {edge for edge in edges if edge.near(direction) in walked.depths}
    assert sorted(key for call in calls for key in call) == sorted(walked.depths)  # each node is read once
    assert walked.cut == 0


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_limit_of_depth_counts_the_neighbours_that_are_left_out(depth):
    neighbours, _ = neighbours_of([LineageEdge(n, n + 1) for n in range(5)])
    walked = walk(0, neighbours, DOWN, depth=depth, most=99)
    assert list(walked.depths) == list(range(depth + 1))
    assert walked.cut == 1


def test_a_limit_of_nodes_keeps_the_nearest():
    edges = [LineageEdge(0, 1), LineageEdge(0, 2), LineageEdge(1, 3), LineageEdge(2, 4)]
    walked = walk(0, neighbours_of(edges)[0], DOWN, depth=99, most=2)
    assert (list(walked.depths), walked.cut) == ([0, 1, 2], 2)
    assert walked.edges == tuple(edges[:2])


def test_a_circle_ends():
    edges = [LineageEdge(0, 1), LineageEdge(1, 0)]
    walked = walk(0, neighbours_of(edges)[0], DOWN, depth=99, most=99)
    assert walked.depths == {0: 0, 1: 1}
    assert run_order(walked) == (0, 1)


@pytest.mark.parametrize("seed", range(10))
def test_each_execution_runs_again_after_those_that_it_needs(seed):
    edges = random_edges(seed, 25)
    walked = walk(0, neighbours_of(edges)[0], DOWN, depth=99, most=99)
    order = run_order(walked)
    assert sorted(order) == sorted(walked.depths)
    assert all(order.index(edge.source) < order.index(edge.target) for edge in walked.edges)
