"""Tables that fit the terminal: long cells are shortened or wrapped, and less important columns are left out.

Law: a pipe gets every cell whole, as tab-separated text, whatever the width of a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import count, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_executions.cli.output import (
    STATUS_COLOURS,
    escape_controls,
    format_number,
    format_size,
    say,
    terminal,
    wrap_words,
)

if TYPE_CHECKING:
    from rich.text import Text

    from prefect_executions.comparison.verdict import OutputVerdict

_GAP = "  "
_ID_PREFIX = 8
_DIGEST_PREFIX = 12
_SHORTEST = 4  # characters of a cropped cell if the terminal is very narrow


class Column(NamedTuple):
    """A column of a table, and what happens to its cells if the table is wider than the terminal.

    First *short* forms are shown; then cells are cropped with an ellipsis, or wrapped with
    *wrap*, to at least *least* characters; then columns that are *optional* are left out, the last first.
    """

    name: str
    least: int | None = None
    """The fewest characters of its cells; None shows them whole."""
    wrap: bool = False
    optional: bool = False
    short: Callable[[Sequence[str]], list[str]] | None = None
    """Returns the short forms of all cells of the column."""
    people: Callable[[Any], str] | None = None
    """Returns the form of a cell for people; without it, and in a pipe, its text is shown."""


def short_ids(ids: Sequence[str]) -> list[str]:
    """Return the shortest beginning of each id that no other one has, at least 8 characters; ``.2`` stays."""
    parts = [execution_id.partition(".") for execution_id in ids]
    whole = {head for head, _, _ in parts}
    length = next(size for size in count(_ID_PREFIX) if len({head[:size] for head in whole}) == len(whole))
    return [f"{head[:length]}{dot}{generation}" for head, dot, generation in parts]


def _short_digests(digests: Sequence[str]) -> list[str]:
    return [digest[:_DIGEST_PREFIX] for digest in digests]


def _without_seconds(times: Sequence[str]) -> list[str]:
    return [f"{time[:16]}Z" if time.endswith("Z") else time for time in times]


def id_column(name: str = "id") -> Column:
    """Return a column of execution ids, which the commands accept in their short form."""
    return Column(name, short=short_ids)


def text_column(name: str) -> Column:
    """Return a column of sentences, which are wrapped and never cropped."""
    return Column(name, least=24, wrap=True)


def name_column(name: str, least: int = 16) -> Column:
    """Return a column of names, which may be cropped."""
    return Column(name, least=least)


def time_column(name: str, *, optional: bool = False) -> Column:
    """Return a column of times."""
    return Column(name, short=_without_seconds, optional=optional)


def digest_column(name: str, *, optional: bool = True) -> Column:
    """Return a column of digests or commits."""
    return Column(name, short=_short_digests, optional=optional)


def value_column(name: str = "value") -> Column:
    """Return a column of values: numbers are rounded, and long texts are wrapped."""
    return Column(name, least=24, wrap=True, people=format_number)


SIZE = Column("size", people=lambda size: format_size(size) if isinstance(size, int) else str(size))
VERSION = Column("version", least=9, optional=True)


def show_table(head: Sequence[str | Column], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Show *rows*: on a terminal below *head*, in a pipe without a header, each line after *title*.

    A column that is given by its name alone is always shown whole.
    """
    rows = list(rows)
    if not sys.stdout.isatty():
        for row in rows:
            say("\t".join([*([title] if title else []), *map(escape_controls, row)]))
        return
    if not rows:
        return
    if title:
        say("")
    terminal().print(table_of(head, rows, title=title), soft_wrap=True)


def table_of(
    head: Sequence[str | Column],
    rows: Sequence[Sequence[object]],
    *,
    title: str | None = None,
    width: int | None = None,
) -> Text:
    """Return *rows* as a table below *head*, for a terminal of *width* columns, by default the one that is here."""
    from rich.text import Text  # noqa: PLC0415 - only a terminal needs it, and start-up time of the CLI

    columns = [column if isinstance(column, Column) else Column(column) for column in head]
    cells = [_cells(column, [row[index] for row in rows]) for index, column in enumerate(columns)]
    shown = _fitted(columns, cells, width or terminal().width)
    lines = [Text(title, "bold")] if title else []
    names = Text(_GAP.join(_crop(columns[index].name, size) for index, size in shown).rstrip(), "bold")
    lines += [names] if names else []
    for number in range(len(rows)):
        row = [cells[index][number] for index, _ in shown]
        parts = [_parts(columns[index], cell, size) for cell, (index, size) in zip(row, shown, strict=True)]
        for line in zip_longest(*parts, fillvalue=""):
            text = Text()
            for part, cell, (_, size) in zip(line, row, shown, strict=True):
                text.append(_crop(part, size), STATUS_COLOURS.get(cell, "")).append(_GAP)
            text.rstrip()
            lines.append(text)
    return Text("\n", no_wrap=True, overflow="ignore").join(lines)


def _parts(column: Column, cell: str, size: int) -> list[str]:
    return wrap_words(cell, size, fold=True) if column.wrap else [cell]


def _crop(text: str, size: int) -> str:
    """Return *text* with exactly *size* columns, with an ellipsis if it is longer."""
    from rich.cells import cell_len, set_cell_size  # noqa: PLC0415 - as above

    return set_cell_size(text, size) if cell_len(text) <= size else f"{set_cell_size(text, size - 1)}…"


def _cells(column: Column, values: Sequence[object]) -> list[str]:
    return [escape_controls(column.people(value) if column.people else value) for value in values]


def _fitted(columns: Sequence[Column], cells: list[list[str]], width: int) -> list[tuple[int, int]]:
    """Return the columns to show by their index, with their widths; *cells* get their short forms if necessary."""
    kept, sizes = [*range(len(columns))], list(map(_size, columns, cells))
    if _total(sizes, kept) > width:
        for index, column in enumerate(columns):
            if column.short:
                cells[index] = column.short(cells[index])
        sizes = [min(size, width) for size in map(_size, columns, cells)]
    least = [
        size if column.least is None else min(size, column.least) for column, size in zip(columns, sizes, strict=True)
    ]
    while _total(least, kept) > width and (optional := [index for index in kept if columns[index].optional]):
        kept.remove(optional[-1])
    if _total(least, kept) > width:
        least = [min(size, _SHORTEST) for size in least]
    while _total(sizes, kept) > width and (wide := [index for index in kept if sizes[index] > least[index]]):
        sizes[max(wide, key=lambda index: sizes[index])] -= 1
    return [(index, sizes[index]) for index in kept]


def _total(sizes: Sequence[int], kept: Sequence[int]) -> int:
    return sum(sizes[index] for index in kept) + len(_GAP) * (len(kept) - 1)


def _size(column: Column, cells: Sequence[str]) -> int:
    from rich.cells import cell_len  # noqa: PLC0415 - as above

    return max(map(cell_len, [column.name, *cells]))


def show_verdicts(outputs: Iterable[OutputVerdict], *, title: str | None = None) -> None:
    """Show how each output agrees, how it was compared, and its differences."""
    rows = ((output.path, output.agreement, output.by, "; ".join(output.words)) for output in outputs)
    show_table((name_column("output", 24), "agreement", "by", text_column("what")), rows, title=title)
