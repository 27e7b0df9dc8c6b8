"""The results of a search: the exact total, rows with chosen columns, facets, groups and statistics.

Law: results show the executions of one moment, however long they are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_executions.bundles.layout import OUTPUTS
from prefect_executions.errors import NotAvailableError, RequestError
from prefect_executions.ledger.index.index import ColumnIndex
from prefect_executions.ledger.index.keys import SortKey
from prefect_executions.ledger.index.search import MOST_VALUES, Cell, Found, FoundPage, search
from prefect_executions.ledger.index.statistics import Period, Statistics
from prefect_executions.ledger.index.summaries import BINS, Facet, Group, Histogram
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.query.canonical import canonical, canonical_target
from prefect_executions.query.hints import hints
from prefect_executions.query.literals import Text
from prefect_executions.query.parser import parse, parse_target
from prefect_executions.query.tree import (
    Condition,
    FieldTarget,
    Operator,
    QueryTree,
    Target,
    ValueSource,
    ValueTarget,
    resolve,
)

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = ("id", "status", "method", "version", "started", "duration")
"""The columns of a search that names none; the keys that it sorts by follow."""

EVERY_NAME = {"param:*": ValueSource.PARAM, "metric:*": ValueSource.METRIC, "in:*": ValueSource.INPUT}
"""Columns that stand for all params, metrics or inputs of the results."""

_MOST_COLUMNS = 1_000
_FIRST_PAGE, _LARGEST_PAGE = 1_000, 64_000


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The results in groups of equal values, the largest first."""

    by: tuple[str, ...]
    """The names of `Group.values`."""
    measured: Mapping[str, Target]
    """The keys of `Group.measures` by the names that were asked for."""
    groups: tuple[Group, ...]

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)


class SearchResults:
    """The executions that a query found at one moment; iterate over their rows as mappings from column to value.

    Rows are read page by page while you iterate, so the first one comes at once. A
    value is a number, a text, a boolean, a time in UTC, a duration, a tuple for a field
    with several values, or None if it is missing.
    """

    def __init__(
        self,
        found: Found,
        *,
        tree: QueryTree,
        keys: Sequence[SortKey],
        columns: Sequence[Target],
        limit: int | None,
        after: str | None,
    ) -> None:
        self._found, self._keys, self._targets = found, tuple(keys), tuple(columns)
        self._limit, self._after, self._tree = limit, after, tree
        self.query = canonical(tree)
        """The query in its canonical form."""
        self.total = found.total
        """How many executions were found, exactly, whatever the limit."""
        self.columns = tuple(map(canonical_target, self._targets))

    def __iter__(self) -> Iterator[dict[str, Cell]]:
        return (dict(zip(self.columns, row, strict=True)) for page in self._pages() for row in page.rows)

    def __repr__(self) -> str:
        return f"<{self.total} executions: {self.query}>"

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the rows."""
        return self._page.ids

    @cached_property
    def hints(self) -> tuple[str, ...]:
        """A sentence for each thing in the query that is probably a mistake, such as a name that nothing has."""
        return hints(self._tree, self._found.recorded_names)

    @property
    def rows(self) -> tuple[tuple[Cell, ...], ...]:
        """The rows up to the limit, each a tuple in the order of `columns`."""
        return self._page.rows

    @property
    def after(self) -> str | None:
        """The cursor of the next page; None if no row is left."""
        return self._page.after

    def facets(self, *names: str, most: int = MOST_VALUES) -> dict[str, Facet]:
        """Return how many executions have each value of the fields, params or metrics *names*, the *most* frequent.

        Raises:
            QueryError: If a name cannot be read.
        """
        targets = {name: parse_target(name) for name in names}
        return {name: self._found.facet(target, most=most) for name, target in targets.items()}

    def groups(self, *by: str, aggregate: Sequence[str] = ()) -> Groups:
        """Return the executions in groups of equal values of *by*, with statistics of the numbers of *aggregate*.

        Raises:
            QueryError: If a name cannot be read.
        """
        targets = [parse_target(name) for name in by]
        measured = {name: parse_target(name) for name in aggregate}
        found = self._found.groups(targets, tuple(measured.values()))
        return Groups(by=tuple(map(canonical_target, targets)), measured=measured, groups=found)

    def histogram(self, name: str, bins: int = BINS) -> Histogram:
        """Return the distribution of the numbers of *name* in *bins* of equal width; times are seconds since 1970.

        Raises:
            QueryError: If the name cannot be read.
        """
        return self._found.histogram(parse_target(name), bins)

    def statistics(self, *by: str, per: str | None = None) -> tuple[Statistics, ...]:
        """Return success, failures by reason, durations, waits, throughput and resources of the executions found.

        They are those of all of them, or of groups of equal values of *by*, or of each
        *per* ``"hour"`` or ``"day"`` in which they ended.

        Raises:
            QueryError: If a name cannot be read.
            RequestError: If *per* is something else, or there are too many groups.
        """
        if per is not None and per not in set(Period):
            raise RequestError(f"a period is {' or '.join(Period)}, not '{per}'")
        return self._found.statistics([parse_target(name) for name in by], Period(per) if per else None)

    def to_dicts(self) -> list[dict[str, Cell]]:
        """Return the rows as a list of dictionaries."""
        return list(self)

    def to_pandas(self) -> DataFrame:
        """Return the rows as a pandas DataFrame with a column for each of `columns`.

        Times are in UTC and durations are timedeltas. A column of whole numbers with
        missing values has the type Int64, so that no number loses digits.

        Raises:
            NotAvailableError: If pandas is not installed.
        """
        try:
            import pandas as pd  # noqa: PLC0415  optional, and takes a second to import
        except ImportError as error:
            raise NotAvailableError("to_pandas() needs pandas. Run: pip install pandas. Or use to_dicts()") from error
        rows = [row for page in self._pages() for row in page.rows]
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(self.columns)
        series = (pd.Series(list(values), dtype=_dtype(values)) for values in columns)
        return pd.DataFrame(dict(zip(self.columns, series, strict=True)))

    @cached_property
    def _page(self) -> FoundPage:
        return self._read(self._limit, self._after)

    def _read(self, limit: int | None, after: str | None) -> FoundPage:
        most = max(self.total, 1) if limit is None else limit
        return self._found.page(self._keys, limit=most, after=after, columns=self._targets)

    def _pages(self) -> Iterator[FoundPage]:
        size, left, after = _FIRST_PAGE, self._limit, self._after
        if left is not None and left <= size:
            yield self._page
            return
        while left is None or left > 0:
            page = self._read(size if left is None else min(size, left), after)
            yield page
            if page.after is None:
                return
            left, after = None if left is None else left - len(page.ids), page.after
            size = min(2 * size, _LARGEST_PAGE)


def _dtype(values: Sequence[Cell]) -> str | None:
    """Return the type of a column of a DataFrame; None lets pandas choose."""
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return "object"
    if kinds == {int}:
        exact = all(value is None or abs(value) < 1 << 63 for value in values)  # type: ignore[arg-type, operator]
        return ("Int64" if None in values else "int64") if exact else "object"
    if kinds == {datetime}:
        return "datetime64[us, UTC]"
    return "float64" if kinds == {float} else None


def open_index(ledger: Ledger, folder: Path) -> ColumnIndex:
    """Return the column index of *ledger*: beside its file, or in *folder* if it is not a file."""
    if ledger.file is not None:
        return ColumnIndex(ledger, ledger.file.with_name(f"{ledger.file.name}.index"))
    return ColumnIndex(ledger, folder)  # that of another ledger has a stale mark, and is built again


def output_versions(index: ColumnIndex, method: str, name: str) -> tuple[str, ...]:
    """Return the first 32 digits of each distinct digest of the output *name* of a Method, the oldest first."""
    of_method = Condition(FieldTarget("method"), Operator.EQUAL, (Text((method,)),))
    return search(index.snapshot(), of_method, index.ledger.related).digests(f"{OUTPUTS}/{name}")


def _columns_of(found: Found, name: str) -> Sequence[Target]:
    """Return the column *name*; for ``param:*``, ``metric:*`` and ``in:*`` one for each name in the results."""
    source = EVERY_NAME.get(name)
    if source is None:
        return (parse_target(name),)
    names = sorted(one.name for one in found.names(most=_MOST_COLUMNS) if one.source is source)
    return [ValueTarget(source, each) for each in names]


def find_results(
    index: ColumnIndex,
    query: str | QueryTree,
    now: datetime,
    *,
    sort: Sequence[str] = (),
    limit: int | None = None,
    after: str | None = None,
    columns: Sequence[str] = (),
) -> SearchResults:
    """Return what *query* finds; relative times count from *now*. The names are those of the search language.

    Raises:
        QueryError: If the query or a name cannot be read.
        RequestError: If *limit* is not positive.
        LedgerError: If the ledger is unavailable.
    """
    if limit is not None and limit < 1:
        raise RequestError(f"a page needs a limit of at least 1, not {limit}")
    tree = parse(query) if isinstance(query, str) else query
    keys = [SortKey(parse_target(key.removeprefix("-")), key.startswith("-")) for key in sort]
    found = search(index.snapshot(), resolve(tree, now), index.ledger.related)
    chosen = [target for name in columns or COLUMNS for target in _columns_of(found, name)]
    chosen += [] if columns else [key.target for key in keys]
    return SearchResults(
        found,
        tree=tree,
        keys=keys,
        columns=list(dict.fromkeys(chosen)),
        limit=limit,
        after=after,
    )
