"""Output of commands: facts, lines and logs, JSON with `--json`, progress, and atomic files.

Law: no output is interpreted. Names, messages and logs are foreign text, so
control characters are escaped, and no text is markup.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast

from cyclopts import Parameter
from pydantic.alias_generators import to_camel

from prefect_executions.documents import Part, text_of_time
from prefect_executions.errors import WorldError
from prefect_executions.lifecycle.status import Status

if TYPE_CHECKING:
    from rich.console import Console

    from prefect_executions.executions.record import Usage
    from prefect_executions.lifecycle.history import JobStatus


OutputFile = Annotated[str | None, Parameter(name=["--output", "-o"], allow_leading_hyphen=True)]

# ECMA-48: control sequences (colours, cursor) and operating system commands (titles, links).
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_BROKEN_LINE = re.compile(r"\r+\n|\r")
_LONGEST_LINE = 1 << 16

_LONGEST_VALUE = 500
_NOTABLE = timedelta(seconds=1)
STATUS_COLOURS = {str(Status.COMPLETED): "green", str(Status.FAILED): "red", str(Status.CANCELLED): "yellow"}
_UNITS = ("B", "kB", "MB", "GB", "TB")
_THOUSAND = 1000
_LARGEST_INTEGER = 10**20
_LARGE, _LARGEST = 1e5, 1e15  # between them a number has more than five digits and needs no exponent


def escape_controls(value: object, *, lines: bool = False) -> str:
    """Return *value* with control characters escaped; with *lines*, line ends and tabs stay."""
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    allowed = "\n\t" if lines else ""
    return "".join(char if char in allowed or _is_printable(char) else _escape(char) for char in text)


def format_time(time: datetime | None) -> str:
    """Return *time* in UTC to the second, or an empty text."""
    return "" if time is None else f"{time:%Y-%m-%d %H:%M:%S}Z"


def format_duration(duration: timedelta | None) -> str:
    """Return *duration* as text for people, or an empty text."""
    if duration is None:
        return ""
    seconds = duration.total_seconds()
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.2f} s"
    return str(timedelta(seconds=round(seconds)))


def format_end(job_status: JobStatus) -> str:
    """Return when an execution ended, or between which times if nothing observed the end."""
    if job_status.finished_before is None:
        return format_time(job_status.finished)
    return f"between {format_time(job_status.finished)} and {format_time(job_status.finished_before)}"


def format_took(job_status: JobStatus, usage: Usage | None) -> str:
    """Return how long an execution took, and the Method's own time if that is at least a second less."""
    if job_status.started is None or job_status.finished is None:
        return ""
    took = job_status.finished - job_status.started
    if job_status.finished_before is not None:
        return f"at least {format_duration(took)}"
    own = None if usage is None or usage.wall_seconds is None else timedelta(seconds=usage.wall_seconds)
    if own is None or took - own < _NOTABLE or not code_began(job_status):
        return format_duration(took)
    return f"{format_duration(took)}, of which the Method {format_duration(own)}"


def code_began(job_status: JobStatus) -> bool:
    """Whether the Method's own code began: a file that cannot be staged ends a run before it."""
    return any(entry.status is Status.EXECUTING for entry in job_status.history)


def format_returned(usage: Usage | None) -> str | None:
    """Return what the Method returned, shortened; None if it returned nothing."""
    from prefect_executions.executions.values import text_of  # noqa: PLC0415 - start-up time of the CLI

    returned = usage.returned if usage else None
    if returned is None:
        return None
    text = returned.text or returned.type if returned.value is None else text_of(returned.value)
    return shorten(text)


def shorten(text: str) -> str:
    """Return *text*, or its first 500 characters and an ellipsis."""
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def format_size(size: int) -> str:
    """Return *size* in bytes as text for people, in powers of 1000."""
    number, unit = float(size), 0
    while number >= _THOUSAND and unit < len(_UNITS) - 1:
        number, unit = number / _THOUSAND, unit + 1
    return f"{size} B" if unit == 0 else f"{number:.1f} {_UNITS[unit]}"


def format_number(value: object) -> str:
    """Return *value* as text for people: fractions are rounded to six digits, large ones to a tenth."""
    if isinstance(value, int) and abs(value) >= _LARGEST_INTEGER:
        return f"{Decimal(value):.6g}"
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    return f"{value:.1f}" if _LARGE <= abs(value) < _LARGEST else f"{value:.6g}"


def pluralize(number: int, noun: str) -> str:
    """Return *number* and *noun*, with a plural s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def show_json(value: Any) -> None:
    """Write *value* to standard output as one JSON document."""
    text = json.dumps(to_json(value), indent=2, ensure_ascii=False)
    _write("".join(f"\\u{ord(char):04x}" if char != "\n" and not _is_printable(char) else char for char in text))


def to_json(value: Any) -> Any:
    """Return *value* as JSON types: fields with camelCase names, times as in the bundle's documents."""
    if isinstance(value, Part):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    members = _members(value)
    if members is not None:
        return {name: to_json(member) for name, member in members}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return _scalar(value)


def _members(value: Any) -> list[tuple[str, Any]] | None:
    if isinstance(value, dict):
        return [(str(name), member) for name, member in value.items()]
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


def show_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Show names and values, one pair per line, without pairs that have no value.

    On a terminal long values are wrapped between words; a link or a path stays one word, so that it can be copied.
    """
    pairs = [(name, value) for name, value in facts if value not in {None, ""}]
    if not sys.stdout.isatty():
        for name, value in pairs:
            _write(f"{name}\t{escape_controls(value)}")
        return
    from rich.text import Text  # noqa: PLC0415 - only a terminal needs it, and start-up time of the CLI

    console, width = terminal(), max((len(name) for name, _ in pairs), default=0) + 2
    for name, value in pairs:
        lines = escape_controls(value, lines=True).split("\n")
        wrapped = [part for line in lines for part in wrap_words(line, console.width - width)]
        text = ("\n" + " " * width).join(wrapped)
        line = Text.assemble((name.ljust(width), "dim"), (text, STATUS_COLOURS.get(str(value), "")))
        console.print(line, soft_wrap=True)


def wrap_words(line: str, width: int, *, fold: bool = False) -> list[str]:
    """Return *line* in parts of at most *width* columns, split at spaces; further parts are indented as the first is.

    A word that is longer is split only with *fold*, so that a link can be copied from a line of its own.
    """
    from rich.cells import cell_len, chop_cells  # noqa: PLC0415 - as above

    if cell_len(line) <= width:
        return [line]
    indent = line[: len(line) - len(line.lstrip(" "))]
    parts = [indent]
    for word in line.split(" "):
        begun = parts[-1].strip(" ")
        if begun and cell_len(f"{parts[-1]} {word}") > width:
            parts.append(indent + word)
        elif word:
            parts[-1] += f" {word}" if begun else word
    return [piece for part in parts for piece in (chop_cells(part, max(width, 2)) if fold else [part])]


def say(text: str) -> None:
    """Write *text* to standard output as a line."""
    _write(escape_controls(text, lines=True))


def say_words(text: str) -> None:
    """Write sentences to standard output; on a terminal, long lines are wrapped between words."""
    say(_wrapped(text) if sys.stdout.isatty() else text)


def warn_error(error: BaseException, advice: str = "") -> None:
    """Write the message of *error* to standard error; on a terminal, long lines are wrapped between words."""
    text = f"error: {error}{advice}"
    warn(_wrapped(text) if sys.stderr.isatty() else text)


def _wrapped(text: str) -> str:
    width = shutil.get_terminal_size().columns
    return "\n".join(part for line in text.split("\n") for part in wrap_words(line, width))


def warn(text: str) -> None:
    """Write *text* to standard error as a line."""
    sys.stderr.write(escape_controls(text, lines=True) + "\n")
    sys.stderr.flush()


def confirmed(question: str) -> bool | None:
    """Return the answer of a person at the terminal to *question*; None if there is no terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    sys.stderr.write(escape_controls(f"{question} [y/N] "))
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


@contextmanager
def status_line(text: str, *, quiet: bool = False) -> Iterator[None]:
    """Show *text* on standard error during the block: a spinner on a terminal, else one plain line."""
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
    """Show progress on standard error: a bar on a terminal, else one plain line.

    Call the yielded function after each step, with the step's subject and, if *total*
    is not known at the start, the number of all steps.
    """
    if quiet or not sys.stderr.isatty():
        with status_line(text, quiet=quiet):
            yield lambda _subject, _total=None: None
        return
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it, and start-up time of the CLI
    from rich.progress import Progress  # noqa: PLC0415 - as above

    with Progress(console=Console(stderr=True, markup=False), transient=True) as progress:
        task = progress.add_task(escape_controls(text), total=total)
        yield lambda _subject, total=None: progress.update(task, advance=1, total=total)


def write_log(blocks: Iterable[bytes]) -> None:
    """Write bytes to standard output: unchanged to a pipe, as escaped text to a terminal."""
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

    Colours are removed, a carriage return becomes a new line, so that no line hides
    another, and other control characters are escaped.
    """
    decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
    for block in blocks:
        rest += decoder.decode(block)
        cut = rest.rfind("\n") + 1
        if len(rest) - cut > _LONGEST_LINE:  # a log may lack line ends
            cut = len(rest)
        if cut:
            yield _as_line(rest[:cut])
            rest = rest[cut:]
    rest += decoder.decode(b"", final=True)
    if rest:
        yield _as_line(rest)


def _as_line(text: str) -> str:
    return escape_controls(_BROKEN_LINE.sub("\n", _ESCAPES.sub("", text)), lines=True)


def _is_printable(character: str) -> bool:
    """Whether *character* is not a control character, a change of text direction or a lone surrogate."""
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escape(character: str) -> str:
    code = ord(character)
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character)
    return short or (f"\\x{code:02x}" if code < 1 << 8 else f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}")


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def terminal() -> Console:
    """Return the terminal on standard output; it interprets no markup in texts."""
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it, and start-up time of the CLI

    return Console(highlight=False, markup=False, emoji=False)


def write_file(blocks: Iterable[bytes], target: Path) -> None:
    """Write the file *target* atomically: completely or not at all.

    Raises:
        WorldError: If the file cannot be written.
    """
    with atomic_file(target) as file:
        file.writelines(blocks)


@contextmanager
def atomic_file(target: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that is renamed to *target* if the block succeeds, and else is removed.

    Raises:
        WorldError: If the file cannot be written.
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
