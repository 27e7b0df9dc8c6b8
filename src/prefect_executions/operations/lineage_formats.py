"""The drawing of a lineage: as a tree of text, for Graphviz or Mermaid, and as SVG.

In a graph, solid lines are the data flow and dashed ones orchestration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType
from xml.sax.saxutils import escape

from prefect_executions.executions.lineage import DATA, Lineage, LineageEdge, Walk

_WIDTH, _HEIGHT, _MARGIN, _LEFT = 230.0, 46.0, 16.0, 10
_LONGEST = 30
_COLOURS = {"COMPLETED": "#2e7d32", "FAILED": "#c62828", "CANCELLED": "#616161"}
_OPEN = "#1565c0"
_WHOLE: Mapping[str, str] = MappingProxyType({})


def tree_lines(lineage: Lineage, ids: Mapping[str, str] = _WHOLE) -> Iterator[str]:
    """Yield the lines of the trees: one for each direction of data flow and of orchestration that has executions.

    Each execution is once in a tree, below the nearest one that leads to it. *ids* has the forms of ids to show.
    """
    yield _summary(lineage, lineage.start, ids)
    for title, walks in (("data flow", lineage.data), ("orchestration", lineage.orchestration)):
        for walked in walks:
            if len(walked.depths) > 1:
                yield f"{title}, {walked.direction}"
                yield from _branches(lineage, walked, ids)


def _branches(lineage: Lineage, walked: Walk, ids: Mapping[str, str]) -> Iterator[str]:
    below: dict[int, list[LineageEdge]] = {}
    placed = {lineage.start}
    for edge in walked.edges:
        near, far = edge.near(walked.direction), edge.far(walked.direction)
        if far not in placed and walked.depths[far] == walked.depths[near] + 1:
            placed.add(far)
            below.setdefault(near, []).append(edge)
    waiting = [(edge, "") for edge in reversed(below.get(lineage.start, []))]
    last = {edges[-1] for edges in below.values()}
    while waiting:  # a chain may be longer than Python's limit of recursion
        edge, indent = waiting.pop()
        far = edge.far(walked.direction)
        what = edge.output or edge.input if edge.relation == DATA else edge.relation
        yield f"{indent}{'└── ' if edge in last else '├── '}{_summary(lineage, far, ids)}  {what}"
        inner = indent + ("    " if edge in last else "│   ")
        waiting += [(each, inner) for each in reversed(below.get(far, []))]


def _summary(lineage: Lineage, key: int, ids: Mapping[str, str] = _WHOLE) -> str:
    node = lineage.nodes.get(key)
    if node is None:
        return lineage.label(key)
    recalled = "  RECALLED" if node.recalled else ""
    return f"{ids.get(node.id, node.id)}  {node.method}  {node.status}{recalled}"


def document(lineage: Lineage) -> dict[str, object]:
    """Return the lineage as a JSON document: every execution, and every edge with its files."""
    return {
        "start": lineage.label(lineage.start),
        "executions": list(lineage.nodes.values()),
        "dataFlow": {walked.direction.value: _walk_document(lineage, walked) for walked in lineage.data},
        "orchestration": {walked.direction.value: _walk_document(lineage, walked) for walked in lineage.orchestration},
        "cut": lineage.cut,
    }


def _walk_document(lineage: Lineage, walked: Walk) -> dict[str, object]:
    edges = []
    for edge in walked.edges:
        ends = {"from": lineage.label(edge.source), "to": lineage.label(edge.target)}
        files = {"output": edge.output or None, "input": edge.input or None, "sha256": edge.sha256}
        edges.append(ends | (files if edge.relation == DATA else {"relation": edge.relation}))
    depths = {lineage.label(key): depth for key, depth in walked.depths.items()}
    return {"depths": depths, "edges": edges, "cut": walked.cut}


def dot(lineage: Lineage) -> str:
    """Return the graph in the language of Graphviz."""
    lines = ["digraph lineage {", "  rankdir=LR;", "  node [shape=box];"]
    for number, key in enumerate(_keys(lineage)):
        label = "\\n".join(each.replace("\\", "\\\\").replace('"', '\\"') for each in _label(lineage, key))
        lines.append(f'  n{number} [label="{label}"];')
    for source, target, relation in _arrows(lineage):
        style = "" if relation == DATA else f' [style=dashed, label="{relation}"]'
        lines.append(f"  n{source} -> n{target}{style};")
    return "\n".join([*lines, "}", ""])


def mermaid(lineage: Lineage) -> str:
    """Return the graph in the language of Mermaid, which pages of Markdown show."""
    lines = ["flowchart LR"]
    for number, key in enumerate(_keys(lineage)):
        label = "<br>".join(escape(each, {'"': "#quot;"}) for each in _label(lineage, key))
        lines.append(f'  n{number}["{label}"]')
    for source, target, relation in _arrows(lineage):
        lines.append(f"  n{source} {'-->' if relation == DATA else f'-. {relation} .->'} n{target}")
    return "\n".join([*lines, ""])


def svg(lineage: Lineage) -> str:
    """Return the graph as SVG, without scripts and styles; the same lineage gives the same bytes."""
    # Loading the layout library takes 20 ms, and only this format needs it.
    from graphlay import Graph, layout  # noqa: PLC0415

    keys, arrows = _keys(lineage), _arrows(lineage)
    graph = Graph()
    for key in keys:
        graph.node(key, width=_WIDTH, height=_HEIGHT)
    for source, target, _ in arrows:
        graph.edge(keys[source], keys[target])
    placed = layout(graph)
    centers = [(float(node["center"]["x"]), float(node["center"]["y"])) for node in placed.nodes]
    paths = [[(float(point["x"]), float(point["y"])) for point in edge["points"]] for edge in placed.edges]
    points = [point for path in paths for point in path]
    points += [(x + side * _WIDTH / 2, y + side * _HEIGHT / 2) for x, y in centers for side in (-1, 1)]
    left, top = (min(point[axis] for point in points) - _MARGIN for axis in (0, 1))
    width, height = (max(point[axis] for point in points) + _MARGIN - low for axis, low in ((0, left), (1, top)))
    size = f'viewBox="{left:g} {top:g} {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f"  <title>Lineage of {escape(lineage.label(lineage.start))}</title>",
    ]
    for path, (_, _, relation) in zip(paths, arrows, strict=True):
        lines += _svg_arrow(path, dashed=relation != DATA)
    for key, (x, y) in zip(keys, centers, strict=True):
        lines += _svg_node(lineage, key, x, y)
    return "\n".join([*lines, "</svg>", ""])


def _svg_arrow(path: list[tuple[float, float]], *, dashed: bool) -> Iterator[str]:
    way = " ".join(f"{x:g},{y:g}" for x, y in path)
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    yield f'  <polyline points="{way}" fill="none" stroke="#757575"{dashes}/>'
    for (x1, y1), (x2, y2) in list(pairwise(path))[-1:]:
        length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5 or 1.0
        dx, dy = (x2 - x1) / length, (y2 - y1) / length
        back = [(x2 - 8 * dx + 4 * side * dy, y2 - 8 * dy - 4 * side * dx) for side in (1, -1)]
        tip = " ".join(f"{x:g},{y:g}" for x, y in [(x2, y2), *back])
        yield f'  <polygon points="{tip}" fill="#757575"/>'


def _svg_node(lineage: Lineage, key: int, x: float, y: float) -> Iterator[str]:
    node = lineage.nodes.get(key)
    colour = _COLOURS.get(node.status, _OPEN) if node else "#757575"
    left, top = x - _WIDTH / 2, y - _HEIGHT / 2
    wide = 3 if key == lineage.start else 1
    yield f"  <g><title>{escape(_summary(lineage, key))}</title>"
    yield (
        f'    <rect x="{left:g}" y="{top:g}" width="{_WIDTH:g}" height="{_HEIGHT:g}" rx="4" fill="#ffffff" '
        f'stroke="{colour}" stroke-width="{wide}"/>'
    )
    for number, line in enumerate(_label(lineage, key)):
        yield f'    <text x="{left + _LEFT:g}" y="{top + 19 + 17 * number:g}" fill="#212121">{escape(line)}</text>'
    yield "  </g>"


def _label(lineage: Lineage, key: int) -> tuple[str, str]:
    node = lineage.nodes.get(key)
    if node is None:
        return "file", f"sha256:{(lineage.file or '')[:16]}"
    recalled = "  RECALLED" if node.recalled else ""
    return _cropped(_printable(node.method)), f"{node.id[:8]}  {node.status}{recalled}"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _cropped(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _keys(lineage: Lineage) -> list[int]:
    return list(dict.fromkeys([lineage.start, *lineage.nodes]))


def _arrows(lineage: Lineage) -> list[tuple[int, int, str]]:
    """Return the edges between the numbers of the nodes; several files between two executions are one."""
    numbers = {key: number for number, key in enumerate(_keys(lineage))}
    walks = (*lineage.data, *lineage.orchestration)
    edges = (edge for walked in walks for edge in walked.edges)
    return list(dict.fromkeys((numbers[edge.source], numbers[edge.target], edge.relation) for edge in edges))
