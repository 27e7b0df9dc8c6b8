"""The executions that a command works on: the ids or the query among its arguments, and its filter options.

Law: a word that may be an execution id, or the beginning of one, is never read as a query.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from prefect_executions.cli.output import pluralize, warn
from prefect_executions.errors import NotFoundError, RequestError
from prefect_executions.query.filter import EVERYTHING, Filter

if TYPE_CHECKING:
    from prefect_executions.workbench.catalog import Catalog
    from prefect_executions.workbench.results import SearchResults

_ID = re.compile(r"[A-Za-z0-9._-]*")
"""The characters of ids, their prefixes and their generations."""


class Selection(NamedTuple):
    """The ids of the selected executions, and the query that selected them, or None if they were named."""

    ids: tuple[str, ...]
    query: str | None = None

    @property
    def several(self) -> bool:
        """Whether the request may name several executions; a query may, however many it finds."""
        return self.query is not None or len(self.ids) > 1


def is_query(word: str) -> bool:
    """Whether *word* is a query: it has a character that no execution id has."""
    return _ID.fullmatch(word) is None


def is_search(target: str) -> bool:
    """Whether *target*, which may also be a path or an address, is a query.

    A file that exists is a path; so is what ends in ``.zip``, or has a ``/`` and no operator of the language.
    """
    if not is_query(target) or "://" in target or target.endswith(".zip") or _exists(target):
        return False
    return "/" not in target or any(operator in target for operator in ':<>=~"*')


def _exists(target: str) -> bool:
    try:
        return os.path.lexists(target)
    except (OSError, ValueError):  # too long, or a NUL
        return False


def query_among(words: Sequence[str]) -> str | None:
    """Return the query that *words* are; None if they are ids.

    Raises:
        RequestError: If a query stands beside other words: a shell splits a query that is not in quotes.
    """
    if not any(map(is_query, words)):
        return None
    if len(words) > 1:
        raise RequestError(f"give ids, or one query in quotes: {shlex.quote(' '.join(words))}")
    return words[0]


def select(
    catalog: Catalog,
    words: Sequence[str],
    criteria: Filter = EVERYTHING,
    *,
    only: str = "",
    limit: int | None = None,
    find: Callable[[str], str] | None = None,
) -> Selection:
    """Return the executions that *words*, ids or a query, name; a query is narrowed by *criteria* and the query *only*.

    Ids are in the order of the words, results of a query newest first, at most *limit*. If there may be
    several, their number is written to standard error. *find* completes an id.

    Raises:
        RequestError: If a query stands beside other words, or ids beside filters or a limit.
        QueryError: If the query cannot be read.
        NotFoundError: If an id does not exist, or the query finds nothing.
    """
    text = query_among(words)
    if text is None:
        if words and criteria != EVERYTHING:
            raise RequestError("ids and filter options exclude each other; give ids, or a query or filters")
        if words and limit is not None:
            raise RequestError("ids and --limit exclude each other; give ids, or a query with --limit")
        find = find or _finder(catalog)
        ids = tuple(dict.fromkeys(map(find, words)))
        if len(ids) > 1:
            warn(pluralize(len(ids), "execution"))
        return Selection(ids)
    found = search_now(catalog, text, criteria, only=only, limit=limit)
    if not found.total:
        raise NotFoundError(f"nothing to do: no execution matches. Next: executions search {shlex.quote(text)}")
    if len(found.ids) < found.total:
        warn(f"Limited to the newest {len(found.ids)}")
    return Selection(found.ids, found.query)


def _finder(catalog: Catalog) -> Callable[[str], str]:
    def find(word: str) -> str:
        try:
            return catalog.find(word)
        except NotFoundError as error:
            quoted = shlex.quote(f'"{word}"')
            raise NotFoundError(f"{error} To search for this text, put it in quotes of its own: {quoted}") from error

    return find


def search_now(
    catalog: Catalog,
    text: str,
    criteria: Filter = EVERYTHING,
    *,
    only: str = "",
    limit: int | None = None,
    after: str | None = None,
) -> SearchResults:
    """Return the ids that the query *text* finds, narrowed by *criteria* and by the query *only*, newest first.

    Their number is written to standard error.

    Raises:
        QueryError: If a query cannot be read.
        RequestError: If the query is empty: in a script it comes from an empty variable.
    """
    # Start-up time of the CLI: the search imports NumPy and RE2.
    from prefect_executions.query.parser import parse  # noqa: PLC0415
    from prefect_executions.query.tree import conjunction  # noqa: PLC0415
    from prefect_executions.workbench.lookup import index_new  # noqa: PLC0415

    if not text.strip():
        raise RequestError("the query is empty; '*' finds all executions")
    narrowed = [*criteria.terms(), *([parse(only)] if only else [])]
    index_new(catalog.workbench)
    found = catalog.search(conjunction([parse(text), *narrowed]), columns=["id"], limit=limit, after=after)
    warn(f"{pluralize(found.total, 'execution')} {'matches' if found.total == 1 else 'match'} {found.query}")
    for hint in found.hints:
        warn(f"note: {hint}")
    return found
