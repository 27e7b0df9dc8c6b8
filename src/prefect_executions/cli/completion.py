"""`executions completion`, and the completion of ids, queries and names at the shell's TAB.

Law: completion never fails: without a ledger, and in a text that cannot be read, it has no answer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from prefect_executions.cli.arguments import Json, open_catalog
from prefect_executions.cli.output import show_json
from prefect_executions.cli.selection import is_query
from prefect_executions.errors import AmbiguousIdError, ExecutionsError

if TYPE_CHECKING:
    from cyclopts import App

_QUOTES = ("'", '"')
# In an open quote, bash inserts a candidate as it is; the library's line escapes it there, too.
_ESCAPED = """[[ "$_x" == "${cur}"* ]] && { printf -v _q '%q' "$_x"; COMPREPLY+=("$_q"); }"""
_AS_TYPED = """[[ "$_x" == "${cur#[\\'\\"]}"* ]] && { printf -v _q '%q' "$_x"; \
[[ "$cur" == [\\'\\"]* ]] && _q="$_x"; COMPREPLY+=("$_q"); }"""


def completion_command(app: App) -> Any:
    """Return the command `completion` of *app*."""

    def completion(shell: Literal["bash", "zsh", "fish"], /, *, as_json: Json = False) -> None:
        """Print the script that completes commands, ids and queries at TAB.

        Args:
            shell: bash, zsh or fish.
            as_json: Print one JSON document with the script.
        """
        script = app.generate_completion(shell=shell).replace(_ESCAPED, _AS_TYPED)
        if as_json:
            show_json({"shell": shell, "script": script})
        else:
            sys.stdout.write(script)

    return completion


def complete_selection(context: Any) -> list[tuple[str, str]]:
    """Return what an argument may become that takes ids or a query."""
    typed = _unquoted(context.incomplete)
    return [*_ids(typed), *complete_query(context)]


def complete_query(context: Any) -> list[tuple[str, str]]:
    """Return what a query may become: fields, recorded names and values, each with how many executions have it."""
    typed = _unquoted(context.incomplete)
    with suppress(ExecutionsError, OSError):
        catalog = open_catalog()
        found = catalog.suggest(typed)
        if len(found) == 1 and found[0].text.endswith(":"):  # a shell takes a single candidate for the end of the word
            found = (*found, *catalog.suggest(found[0].text))
        return [(one.text, one.description) for one in found]
    return []


def complete_names(context: Any) -> list[tuple[str, str]]:
    """Return what a list of names of fields and values, separated by commas, may become."""
    typed = _unquoted(context.incomplete)
    head, comma, last = typed.rpartition(",")
    minus, name = ("-", last[1:]) if last.startswith("-") else ("", last)
    field = "" if ":" in name else "has:"  # whose values are names of fields and values
    with suppress(ExecutionsError, OSError):
        found = open_catalog().suggest(field + name)
        return [(head + comma + minus + one.text.removeprefix(field), one.description) for one in found]
    return []


def complete_id(context: Any) -> list[tuple[str, str]]:
    """Return the ids that an argument may become that takes one id, at most 20."""
    return list(_ids(_unquoted(context.incomplete)))


def _ids(typed: str) -> Iterator[tuple[str, str]]:
    """Yield the ids that begin with *typed*, at most 20."""
    if not typed or is_query(typed):
        return
    with suppress(ExecutionsError, OSError):
        try:
            yield open_catalog().workbench.ledger.find(typed), ""
        except AmbiguousIdError as error:
            yield from ((candidate, "") for candidate in error.candidates)


def _unquoted(word: str) -> str:
    """Return *word* without the quote at its begin: bash completes a word in quotes with it."""
    return word[1:] if word.startswith(_QUOTES) else word


Selected = Annotated[str, Parameter(completer=complete_selection)]
"""Ids, or one query."""
OneId = Annotated[str, Parameter(completer=complete_id)]
QueryText = Annotated[str, Parameter(allow_leading_hyphen=True, completer=complete_query)]
Names = Annotated[str, Parameter(allow_leading_hyphen=True, completer=complete_names)]
"""Names of fields and values, separated by commas."""
