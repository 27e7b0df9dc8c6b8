"""The results of a search: the exact total, one page of rows with chosen columns, facets and groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from prefect_executions.ledger.index.index import ColumnIndex
from prefect_executions.ledger.index.keys import SortKey
from prefect_executions.ledger.index.search import Cell, Found, search
from prefect_executions.ledger.index.summaries import Facet, Group
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.query.canonical import canonical, canonical_target
from prefect_executions.query.parser import parse, parse_target
from prefect_executions.query.tree import Target, resolve

COLUMNS = ("id", "status", "method", "version", "started", "duration")
"""The columns of a search that names none; the keys that it sorts by follow."""


@dataclass(frozen=True, kw_only=True)
class SearchResults:
    """The executions that a query found at one moment; iterate over their rows as mappings."""

    query: str
    """The query in its canonical form."""
    total: int
    """How many executions it found, exactly; `rows` has one page of them."""
    ids: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    after: str | None
    """The cursor of the next page, or None on the last page."""
    facets: Mapping[str, Facet] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    grouped_by: tuple[str, ...] = ()
    aggregates: Mapping[str, Target] = field(default_factory=dict)
    """The targets of the statistics of each group by their names."""

    def __iter__(self) -> Iterator[dict[str, Cell]]:
        return (dict(zip(self.columns, row, strict=True)) for row in self.rows)

    def to_dicts(self) -> list[dict[str, Cell]]:
        """Return the rows of this page."""
        return list(self)


def open_index(ledger: Ledger, folder: Path) -> ColumnIndex:
    """Return the column index of *ledger*: beside its file, or in *folder* if it is not a file."""
    if ledger.file is not None:
        return ColumnIndex(ledger, ledger.file.with_name(f"{ledger.file.name}.index"))
    return ColumnIndex(ledger, folder)  # that of another ledger has a stale mark, and is built again


def find_results(
    index: ColumnIndex,
    query: str,
    now: datetime,
    *,
    sort: Sequence[str] = (),
    limit: int = 50,
    after: str | None = None,
    columns: Sequence[str] = (),
    facets: Sequence[str] = (),
    group_by: Sequence[str] = (),
    aggregate: Sequence[str] = (),
) -> SearchResults:
    """Return what *query* finds; relative times count from *now*. The names are those of the search language.

    Raises:
        QueryError: If the query or a name cannot be read.
        RequestError: If *after* is not a cursor of this search, or *limit* is not positive.
        LedgerError: If the ledger is unavailable.
    """
    tree = parse(query)
    keys = [SortKey(parse_target(key.removeprefix("-")), key.startswith("-")) for key in sort]
    chosen = [*map(parse_target, columns or COLUMNS), *([] if columns else (key.target for key in keys))]
    chosen = list(dict.fromkeys(chosen))
    by, measured = [parse_target(name) for name in group_by], {name: parse_target(name) for name in aggregate}
    counted = {name: parse_target(name) for name in facets}
    found: Found = search(index.snapshot(), resolve(tree, now), index.ledger.related)
    page = found.page(keys, limit=limit, after=after, columns=chosen)
    return SearchResults(
        query=canonical(tree),
        total=found.total,
        ids=page.ids,
        columns=tuple(map(canonical_target, chosen)),
        rows=page.rows,
        after=page.after,
        facets={name: found.facet(target) for name, target in counted.items()},
        groups=found.groups(by, tuple(measured.values())) if by else (),
        grouped_by=tuple(map(canonical_target, by)),
        aggregates=measured,
    )
