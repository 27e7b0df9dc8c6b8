"""What the terminal sees: tables on a terminal, tab-separated text in a pipe, JSON when asked for.

Law: nothing that is shown is interpreted. Names, messages and logs come from
others, so control characters are written out, and no text is markup.

Where a command's result goes: a file that is there whole or not at all.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pydantic.alias_generators import to_camel

from prefect_executions.documents import Part, text_of_time
from prefect_executions.lifecycle.status import Status

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from prefect_executions.comparison.verdict import OutputVerdict


import os
import tempfile
from pathlib import Path
from typing import Annotated, BinaryIO, cast

from cyclopts import Parameter

from prefect_executions.errors import WorldError

# ECMA-48: control sequences (colours, cursor) and operating system commands (titles, links).
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_BROKEN_LINE = re.compile(r"\r+\n|\r")
_LONGEST_LINE = 1 << 16

_COLOURS = {str(Status.COMPLETED): "green", str(Status.FAILED): "red", str(Status.CANCELLED): "yellow"}
_UNITS = ("B", "kB", "MB", "GB", "TB")
_THOUSAND = 1000
_SHORT = 36  # characters of an id


def escape_controls(value: object, *, lines: bool = False) -> str:
    """Return *value* as text that no terminal interprets; with *lines*, line ends and tabs stay."""
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(one if one in kept or _is_shown(one) else _written_out(one) for one in text)


def format_time(time: datetime | None) -> str:
    """Return *time* to the second in UTC, or nothing."""
    return "" if time is None else f"{time:%Y-%m-%d %H:%M:%S}Z"


def format_duration(duration: timedelta | None) -> str:
    """Return *duration* for people, or nothing."""
    if duration is None:
        return ""
    seconds = duration.total_seconds()
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.2f} s"
    return str(timedelta(seconds=round(seconds)))


def format_size(size: int) -> str:
    """Return *size* in bytes for people, in powers of a thousand."""
    number, unit = float(size), 0
    while number >= _THOUSAND and unit < len(_UNITS) - 1:
        number, unit = number / _THOUSAND, unit + 1
    return f"{size} B" if unit == 0 else f"{number:.1f} {_UNITS[unit]}"


def pluralize(number: int, noun: str) -> str:
    """Return *number* with its noun, whose plural ends in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def show_json(value: Any) -> None:
    """Write *value* as one JSON document."""
    text = json.dumps(to_json(value), indent=2, ensure_ascii=False)
    _write("".join(f"\\u{ord(one):04x}" if one != "\n" and not _is_shown(one) else one for one in text))


def to_json(value: Any) -> Any:
    """Return *value* as JSON holds it: values of ours by camelCase names, times as documents write them."""
    if isinstance(value, Part):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    members = _members(value)
    if members is not None:
        return {name: to_json(one) for name, one in members}
    if isinstance(value, list | tuple):
        return [to_json(one) for one in value]
    return _scalar(value)


def _members(value: Any) -> list[tuple[str, Any]] | None:
    if isinstance(value, dict):
        return [(str(name), one) for name, one in value.items()]
    if is_dataclass(value):
        return [(to_camel(field.name), getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(to_camel(name), getattr(value, name)) for name in value._fields]
    return None


def _scalar(value: Any) -> Any:
    if isinstance(value, datetime):
        return text_of_time(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, StrEnum):
        return value.value
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def show_table(head: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Show *rows*: on a terminal under their *head*, in a pipe without it, each after the *title* if there is one."""
    told = [[escape_controls(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in told:
            _write("\t".join([*([title] if title else []), *row]))
        return
    if not told:
        return
    if title:
        _write("")
    _console().print(table_of(head, told, title=title))


def table_of(head: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> Table:
    """Return *rows* as a terminal's table under their *head*."""
    from rich.table import Table  # noqa: PLC0415 - only a terminal needs it, and start-up time of the CLI
    from rich.text import Text  # noqa: PLC0415 - the same

    told = [[escape_controls(cell) for cell in row] for row in rows]
    shown = bool(head)
    table = Table(box=None, title=title, title_justify="left", title_style="bold", pad_edge=False, show_header=shown)
    for number, cells in enumerate(zip(*told, strict=True)):
        # Where the terminal is narrow, what is long is folded and what is short stays whole.
        table.add_column(head[number] if shown else "", no_wrap=max(map(len, cells)) <= _SHORT, overflow="fold")
    for row in told:
        table.add_row(*(Text(cell, _COLOURS.get(cell, ""), overflow="fold") for cell in row))
    return table


def show_verdicts(outputs: Iterable[OutputVerdict], *, title: str | None = None) -> None:
    """Show how outputs agree, by what they were compared, and what differs."""
    rows = ((one.path, one.agreement, one.by, "; ".join(one.words)) for one in outputs)
    show_table(("output", "agreement", "by", "what"), rows, title=title)


def show_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Show names and values, one pair a line; a pair without a value is left out.

    What is longer than a line of the terminal is wrapped by the terminal alone, so
    that a link or a path that is copied is whole.
    """
    told = [(name, value) for name, value in facts if value not in {None, ""}]
    if not sys.stdout.isatty():
        for name, value in told:
            _write(f"{name}\t{escape_controls(value)}")
        return
    from rich.text import Text  # noqa: PLC0415 - only a terminal needs it, and start-up time of the CLI

    console, width = _console(), max((len(name) for name, _ in told), default=0)
    for name, value in told:
        text = escape_controls(value, lines=True).replace("\n", "\n" + " " * (width + 2))
        line = Text.assemble((name.ljust(width), "dim"), "  ", (text, _COLOURS.get(str(value), "")))
        console.print(line, soft_wrap=True)


def say(text: str) -> None:
    """Write a line of our own to standard output."""
    _write(escape_controls(text, lines=True))


def warn(text: str) -> None:
    """Write a line of our own to standard error."""
    sys.stderr.write(escape_controls(text, lines=True) + "\n")
    sys.stderr.flush()


@contextmanager
def status_line(text: str, *, quiet: bool = False) -> Iterator[None]:
    """Say on standard error what takes long, while it does: a moving line on a terminal, else one plain line."""
    if quiet:
        yield
        return
    if not sys.stderr.isatty():
        warn(f"{text} …")
        yield
        return
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it, and start-up time of the CLI

    with Console(stderr=True, markup=False).status(f"{escape_controls(text)} …"):
        yield


@contextmanager
def progress_bar(text: str, total: int | None = None, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Say on standard error how far a work of *total* steps is; what is yielded is called after each.

    It takes what the step was about, and the number of all steps where that is known later only.
    On a terminal it is a bar, else one plain line.
    """
    if quiet or not sys.stderr.isatty():
        with status_line(text, quiet=quiet):
            yield lambda _what, _of=None: None
        return
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it, and start-up time of the CLI
    from rich.progress import Progress  # noqa: PLC0415 - the same

    with Progress(console=Console(stderr=True, markup=False), transient=True) as progress:
        task = progress.add_task(escape_controls(text), total=total)
        yield lambda _what, of=None: progress.update(task, advance=1, total=of)


def write_log(blocks: Iterable[bytes]) -> None:
    """Write bytes to standard output: as they are into a pipe, as safe text on a terminal."""
    if not sys.stdout.isatty():
        sys.stdout.flush()
        for block in blocks:
            sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
        return
    for text in log_text(blocks):
        sys.stdout.write(text)
        sys.stdout.flush()


def log_text(blocks: Iterable[bytes]) -> Iterator[str]:
    """Return a log as text for a terminal, line by line.

    Colours are taken away, a carriage return becomes a new line, so that no line
    hides another, and other control characters are written out.
    """
    decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
    for block in blocks:
        rest += decoder.decode(block)
        cut = rest.rfind("\n") + 1
        if len(rest) - cut > _LONGEST_LINE:  # a line may never end
            cut = len(rest)
        if cut:
            yield _as_line(rest[:cut])
            rest = rest[cut:]
    rest += decoder.decode(b"", final=True)
    if rest:
        yield _as_line(rest)


def _as_line(text: str) -> str:
    return escape_controls(_BROKEN_LINE.sub("\n", _ESCAPES.sub("", text)), lines=True)


def _is_shown(character: str) -> bool:
    """Whether it stands for itself: no control character, no change of direction, no half of a pair."""
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _written_out(character: str) -> str:
    code = ord(character)
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character)
    return short or (f"\\x{code:02x}" if code < 1 << 8 else f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}")


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it, and start-up time of the CLI

    return Console(highlight=False, markup=False, emoji=False)


OutputFile = Annotated[str | None, Parameter(name=["--output", "-o"], allow_leading_hyphen=True)]


def write_file(blocks: Iterable[bytes], target: Path) -> None:
    """Write a file that is there whole or not at all.

    Raises:
        WorldError: If the disk refuses.
    """
    with atomic_file(target) as file:
        file.writelines(blocks)


@contextmanager
def atomic_file(target: Path) -> Iterator[BinaryIO]:
    """Open a file to be written that takes the name *target* when the context is left well, and goes when not.

    Raises:
        WorldError: If the disk refuses.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".", suffix=".part", delete=False) as file:
            part = Path(file.name)
            try:
                yield cast("BinaryIO", file)
                file.close()
                part.chmod(0o666 & ~_umask())
                part.replace(target)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise WorldError(f"{target} cannot be written: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
