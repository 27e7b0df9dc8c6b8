"""Compares two outputs of the same name: first by bytes, then as JSON, table, picture or lines of text.

Law: every difference is reported, and every part that is not judged is named; nothing is ignored silently.
Content that cannot be compared completely and in its own type is compared by bytes, with the reason.
Pictures are compared pixel by pixel with pillow, an optional dependency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from operator import ne

from prefect_executions.comparison.json_values import compare_json
from prefect_executions.comparison.pictures import compare_pictures
from prefect_executions.comparison.results import Incomparable, Result, Runs
from prefect_executions.comparison.tables import compare_tables
from prefect_executions.comparison.text import compare_lines
from prefect_executions.comparison.verdict import Agreement, OutputVerdict
from prefect_executions.documents import clean_text
from prefect_executions.methods.model import Comparison

LOGS = frozenset({"outputs/stdout.log", "outputs/stderr.log"})
"""Logs contain times and generated names, so their differences are reported but not judged."""

_TABS = "text/tab-separated-values"
_TEXT_FAMILIES = ("text/", "chemical/", "message/")
_TEXT_ENDINGS = ("json", "jsonl", "xml", "yaml", "toml", "javascript", "n-triples", "n-quads", "trig", "postscript")
_TEXT_TYPES = frozenset(f"application/x-{name}" for name in ("csh", "latex", "sh", "tcl", "tex", "texinfo", "troff"))

_Compare = Callable[[bytes, bytes], Result]


def compare_output(
    path: str,
    media_type: str,
    before: bytes,
    after: bytes,
    *,
    tolerance: float = 0,
    declared: Comparison | None = None,
    runs: Runs | None = None,
) -> OutputVerdict:
    """Return how the output at *path* agrees with the recorded one, compared as its Method *declared*.

    *tolerance* is a relative difference of numbers; the larger of *tolerance* and the declared tolerance applies.
    Times in text are volatile if they are times of the *runs*. A file whose content does not match its name is
    compared as text, and a file that is not text by bytes alone; the words give the reason.
    """
    if before == after:
        return OutputVerdict(path=path, agreement=Agreement.SAME, by="bytes")
    comparison = (declared or Comparison()).at_least(tolerance)
    reasons: list[str] = []
    for by, compare in _comparers(path.lower(), media_type, comparison, runs or Runs()):
        try:
            result = compare(before, after)
        except Incomparable as error:
            reasons.append(str(error))
            continue
        words = result.words if result.agreement is Agreement.EQUAL else (*result.words, *_why(by, reasons))
        return judged(path, result.agreement, words, by=by, declared=declared)
    words = (_byte_difference(before, after), *_why("bytes", reasons))
    return judged(path, Agreement.DIFFERS, words, declared=declared)


def judged(
    path: str, agreement: Agreement, words: tuple[str, ...], *, by: str = "bytes", declared: Comparison | None = None
) -> OutputVerdict:
    """Return the verdict on an output; an output that differs in every run is reported but not judged."""
    if agreement is Agreement.DIFFERS:
        reason = "a log, which contains times and is not judged" if path in LOGS else None
        if declared is not None and declared.is_volatile:
            reason = "not judged, because the Method declares that it differs in every run"
        agreement, words = (Agreement.VOLATILE, (reason, *words)) if reason else (agreement, words)
    # JSON may hold a lone surrogate as an escape, which a verdict in UTF-8 cannot hold.
    return OutputVerdict(path=path, agreement=agreement, by=by, words=tuple(map(clean_text, words)), declared=declared)


def _comparers(name: str, media_type: str, comparison: Comparison, runs: Runs) -> Iterator[tuple[str, _Compare]]:
    by = comparison.by or _kind(name, media_type)
    if by == "JSON":
        yield by, partial(compare_json, comparison=comparison, runs=runs)
    elif by == "table":
        delimiter = "\t" if media_type == _TABS or name.endswith(".tsv") else ","
        yield by, partial(compare_tables, comparison=comparison, delimiter=delimiter)
    elif by == "pixels":
        yield by, partial(compare_pictures, comparison=comparison, runs=runs)
    if by != "bytes":
        is_text = comparison.by == "lines" or by in {"JSON", "table"} or _is_text(media_type)
        yield "lines", partial(compare_lines, runs=runs, is_text=is_text)


def _kind(name: str, media_type: str) -> str:
    if media_type.endswith("json") or name.endswith(".json"):
        return "JSON"
    if media_type in {"text/csv", _TABS} or name.endswith((".csv", ".tsv")):
        return "table"
    return "pixels" if media_type.startswith("image/") and "svg" not in media_type else "lines"


def _is_text(media_type: str) -> bool:
    return media_type.startswith(_TEXT_FAMILIES) or media_type.endswith(_TEXT_ENDINGS) or media_type in _TEXT_TYPES


def _why(by: str, reasons: list[str]) -> Iterator[str]:
    if reasons:
        yield f"compared by {by}, because {reasons[0]}"


def _byte_difference(before: bytes, after: bytes) -> str:
    if len(before) != len(after):
        return f"it had {len(before)} bytes and has {len(after)}"
    return f"{sum(map(ne, before, after))} of {len(before)} bytes differ"
