"""Lineage: the walk through a graph of executions, nearest first, and the order in which to run them again.

Data flow (an output of one execution is an input of another) and orchestration (parent and child, original and
rerun) are separate graphs. An edge leads from the earlier execution to the later one. This module is pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

DATA = "data"
"""The relation of an edge of the data flow; the others are those of `record.Relative`."""


class Direction(StrEnum):
    """Where a walk leads: to what an execution came from, or to what came from it."""

    UP = "up"
    DOWN = "down"


class LineageEdge(NamedTuple):
    """An edge between two nodes, named by their keys."""

    source: int
    target: int
    relation: str = DATA
    output: str = ""
    """The path of the file in the source, for a data edge."""
    input: str = ""
    """The name of the input of the target, for a data edge."""
    sha256: str = ""

    def far(self, direction: Direction) -> int:
        """Return the end that a walk in *direction* reaches."""
        return self.source if direction is Direction.UP else self.target

    def near(self, direction: Direction) -> int:
        """Return the end that a walk in *direction* comes from."""
        return self.target if direction is Direction.UP else self.source


Neighbours = Callable[[Sequence[int], Direction], Iterable[LineageEdge]]
"""Returns all edges of some nodes in a direction; a walk calls it once for each depth."""


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What a walk found: each node once, nearest first."""

    direction: Direction
    depths: Mapping[int, int]
    """The distance of each node from the start, in the order in which they were reached."""
    edges: tuple[LineageEdge, ...]
    """All edges between these nodes that the walk met, without repetitions."""
    cut: int
    """How many neighbours of these nodes the limits left out."""


def walk(start: int, neighbours: Neighbours, direction: Direction, *, depth: int, most: int) -> Walk:
    """Walk from *start* in *direction*, to *depth* edges and *most* nodes besides the start at most."""
    depths, edges, left_out = {start: 0}, dict[LineageEdge, None](), set[int]()
    frontier, distance = [start], 0
    while frontier:
        distance += 1
        reached: list[int] = []
        for edge in neighbours(frontier, direction):
            other = edge.far(direction)
            if other not in depths:
                if distance > depth or len(depths) > most:
                    left_out.add(other)
                    continue
                depths[other] = distance
                reached.append(other)
            edges[edge] = None
        frontier = reached
    return Walk(direction=direction, depths=depths, edges=tuple(edges), cut=len(left_out))


class LineageNode(NamedTuple):
    """An execution in a lineage."""

    id: str
    method: str
    version: str
    status: str
    started: datetime | None
    duration: timedelta | None
    cpu: timedelta | None
    agent: str | None
    archive: str
    recalled: str | None
    """The reason of its recall."""


class LineageLink(NamedTuple):
    """An edge of a lineage for readers: from the earlier execution to the later one."""

    source: str
    target: str
    relation: str
    """``data``, or how one execution led to the other: ``parent``, ``rerun-of`` and so on."""
    output: str
    """The path of the file in the source, for a data edge."""
    input: str
    """The name of the input of the target, for a data edge."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """The lineage of an execution, or of a file."""

    start: int
    file: str | None
    """The digest, if the lineage is that of a file; the start is then not a node."""
    nodes: Mapping[int, LineageNode]
    data: tuple[Walk, ...]
    orchestration: tuple[Walk, ...] = field(default=())

    @property
    def cut(self) -> int:
        """How many neighbours the limits left out."""
        return sum(each.cut for each in (*self.data, *self.orchestration))

    @property
    def executions(self) -> tuple[LineageNode, ...]:
        """The executions, the one at the start among them."""
        return tuple(self.nodes.values())

    @property
    def links(self) -> tuple[LineageLink, ...]:
        """The edges by the ids of their executions; a file at the start stands as ``sha256:`` and its digest."""
        edges = (edge for walk in (*self.data, *self.orchestration) for edge in walk.edges)
        return tuple(LineageLink(self.label(edge[0]), self.label(edge[1]), *edge[2:]) for edge in dict.fromkeys(edges))

    def label(self, key: int) -> str:
        """Return the id of a node, or the digest of the file at the start."""
        return self.nodes[key].id if key in self.nodes else f"sha256:{self.file}"


def run_order(walked: Walk) -> tuple[int, ...]:
    """Return the nodes of a walk so that each comes after those that it came from; of equal rank, the nearest first.

    Executions that started at the same moment may each use a file of the other; they are in the order of the walk.
    """
    sorter = TopologicalSorter[int](dict.fromkeys(walked.depths, ()))
    for edge in walked.edges:
        sorter.add(edge.target, edge.source)
    try:
        sorter.prepare()
    except CycleError:
        return tuple(walked.depths)
    order: list[int] = []
    places = {key: place for place, key in enumerate(walked.depths)}
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=places.__getitem__)
        order += ready
        sorter.done(*ready)
    return tuple(order)
