"""`executions stats`: success, failures by reason, durations, waiting times, throughput and resources."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from prefect_executions.cli.arguments import Json, open_catalog
from prefect_executions.cli.completion import Names, QueryText
from prefect_executions.cli.output import (
    format_duration,
    format_number,
    format_size,
    format_time,
    say,
    show_facts,
    show_json,
    to_json,
)
from prefect_executions.cli.tables import Column, name_column, show_table

if TYPE_CHECKING:
    from prefect_executions.ledger.index.statistics import Distribution, Statistics
    from prefect_executions.ledger.index.summaries import Histogram
    from prefect_executions.workbench.results import SearchResults

_BAR = 10
"""The columns of the longest bar."""
_BINS = 30
_EIGHTHS = " ▏▎▍▌▋▊▉"
_LEVELS = " ▁▂▃▄▅▆▇█"
_MEASURES = ("duration", "wait", "cpu", "memory")


def stats(
    query: QueryText = "",
    /,
    *,
    by: Names = "",
    per: str | None = None,
    as_json: Json = False,
) -> None:
    """Show success, failures, durations, waits, throughput, resources.

    Args:
        query: The query, such as 'method:mnist started:-30d'; all executions without one.
        by: Fields and values that group the executions, separated by commas: method,host.
        per: A row for each hour or day in which executions ended: hour or day.
        as_json: Print one JSON document with all numbers; durations are in seconds, memory in bytes.
    """
    catalog = open_catalog()
    # Start-up time of the CLI: the catalog has imported it already.
    from prefect_executions.workbench.lookup import index_new  # noqa: PLC0415

    index_new(catalog.workbench)
    results = catalog.search(query, columns=["id"], limit=1)
    names = [name.strip() for name in by.split(",") if name.strip()]
    found = results.statistics(*names, per=per)
    if as_json:
        groups = [_document(one, names) for one in found]
        show_json({"query": results.query, "total": results.total, "by": names, "per": per, "groups": groups})
    elif not found:
        say("No executions found." if not results.total else "None of the executions has ended.")
    elif names or per:
        _show_groups(found, names, per)
    else:
        _show_one(found[0], results)


def _show_one(one: Statistics, results: SearchResults) -> None:
    show_facts(_facts(one))
    _show_failures([one], ())
    if sys.stdout.isatty():
        _show_chart("ended", results.histogram("finished", _BINS), _as_time)
        _show_chart("duration", results.histogram("duration", _BINS), _seconds)


def _facts(one: Statistics) -> Iterator[tuple[str, object]]:
    from prefect_executions.ledger.index.statistics import Period  # noqa: PLC0415 - start-up time of the CLI

    yield "executions", one.executions
    for status, count in one.statuses.items():
        yield status.lower(), count
    yield "success", _rate(one.success_rate)
    for name, shown in (("duration", _seconds), ("wait", _seconds), ("cpu", _seconds), ("memory", _bytes)):
        measure: Distribution | None = getattr(one, name)
        if measure:
            yield name, f"mean {shown(measure.mean)}, median {shown(measure.median)}, p95 {shown(measure.p95)}"
    for period in Period:
        if (rate := one.throughput(period)) is not None:
            yield f"ended per {period}", format_number(rate)


def _show_groups(found: Sequence[Statistics], names: Sequence[str], per: str | None) -> None:
    bars, most = sys.stdout.isatty(), max(one.executions for one in found)
    period = [Column(per, short=_short_periods)] if per else []
    head: list[str | Column] = [
        *period,
        *map(name_column, names),
        "executions",
        "success",
        "median",
        "p95",
        *(Column(name, optional=True) for name in ("mean", "wait", "CPU", "memory")),
        *([Column("")] if bars else []),
    ]
    rows = ([*_cells(one, per=per), *([_bar(one.executions / most)] if bars else [])] for one in found)
    show_table(head, rows)
    _show_failures(found, names)


def _cells(one: Statistics, *, per: str | None) -> Iterator[object]:
    if per:
        yield format_time(one.period)
    yield from map(_value, one.values)
    yield one.executions
    yield _rate(one.success_rate)
    duration, wait, cpu, memory = (getattr(one, name) for name in _MEASURES)
    yield from (_seconds(duration.median), _seconds(duration.p95), _seconds(duration.mean)) if duration else ("",) * 3
    yield _seconds(wait.median) if wait else ""
    yield _seconds(cpu.median) if cpu else ""
    yield _bytes(memory.median) if memory else ""


def _show_failures(found: Sequence[Statistics], names: Sequence[str]) -> None:
    """Show how many executions of each group failed for each reason, all periods together."""
    counts: dict[tuple[str, ...], int] = {}
    judged: dict[tuple[str, ...], int] = {}
    for one in found:
        values = tuple(map(_value, one.values))
        judged[values] = judged.get(values, 0) + one.judged
        for reason, count in one.failures.items():
            counts[*values, reason] = counts.get((*values, reason), 0) + count
    most_first = sorted(counts.items(), key=lambda item: -item[1])
    rows = [(*key, count, _rate(count / judged[key[:-1]])) for key, count in most_first]
    show_table([*map(name_column, names), "reason", "failed", "rate"], rows, title="failures")


def _show_chart(name: str, histogram: Histogram, shown: Any) -> None:
    if not histogram.counts:
        return
    most = max(histogram.counts)
    levels = (0 if count == 0 else 1 + round(count / most * (len(_LEVELS) - 2)) for count in histogram.counts)
    line = "".join(_LEVELS[level] for level in levels)
    say(f"{name:<10}{shown(histogram.edges[0])} {line} {shown(histogram.edges[-1])}")


def _bar(share: float) -> str:
    whole, eighths = divmod(max(round(share * _BAR * 8), 1), 8)
    return ("█" * whole + _EIGHTHS[eighths]).rstrip()


def _document(one: Statistics, names: Sequence[str]) -> dict[str, Any]:
    from prefect_executions.ledger.index.statistics import Period  # noqa: PLC0415 - start-up time of the CLI

    failures = [
        {"reason": reason, "executions": count, "rate": one.failure_rate(reason)}
        for reason, count in one.failures.items()
    ]
    return {
        "values": dict(zip(names, map(to_json, one.values), strict=True)),
        **({"period": one.period} if one.period else {}),
        "executions": one.executions,
        "statuses": dict(one.statuses),
        "successRate": one.success_rate,
        "failures": failures,
        **{name: getattr(one, name) for name in _MEASURES},
        "throughput": {period: one.throughput(period) for period in Period},
    }


def _short_periods(times: Sequence[str]) -> list[str]:
    return [time[:10] if all("00:00:00Z" in each for each in times) else f"{time[:16]}Z" for time in times]


def _value(value: object) -> str:
    return "(none)" if value is None else format_number(value)


def _rate(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.1%}"


def _seconds(seconds: float) -> str:
    return format_duration(timedelta(seconds=seconds))


def _bytes(size: float) -> str:
    return format_size(round(size))


def _as_time(seconds: float) -> str:
    from prefect_executions.ledger.rows import time_of  # noqa: PLC0415 - start-up time of the CLI

    return format_time(time_of(int(seconds * 1e6)))
