"""How the records of two executions differ, part by part.

Law: nothing is judged here. What one record tells and the other does not is a
difference; an id, a time of day or a process number is none, because it always differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from difflib import unified_diff
from typing import Any, NamedTuple

from prefect_executions.executions.record import ExecutionRecord, Metric

RecordParts = Mapping[str, Any]

_ABSENT = object()
_NO_END = "\n\\ No newline at end of file\n"  # as diff and git write it


class Difference(NamedTuple):
    """One thing that two records tell, or one of them: what it is, and both values; absent is None."""

    part: str
    name: str
    before: Any
    after: Any
    same: bool


class Changed(NamedTuple):
    """A file of the recorded source that is another: its unified diff, or in a word why there is none."""

    path: str
    diff: str | None
    why: str | None = None


def compare(before: ExecutionRecord, after: ExecutionRecord) -> Iterator[Difference]:
    """Yield all that the two records tell, equal or not, in the order of the parts and sorted by name in each."""
    told = [_parts(record) for record in (before, after)]
    for part, first in told[0].items():
        second = told[1][part]
        for name in sorted({*first, *second}):
            one, other = first.get(name, _ABSENT), second.get(name, _ABSENT)
            same = one is not _ABSENT and other is not _ABSENT and _equal(one, other)
            if same and one is None:
                continue
            yield Difference(part, name, _or_none(one), _or_none(other), same)


def changed_sources(before: ExecutionRecord, after: ExecutionRecord) -> tuple[str, ...]:
    """Return the paths of the source files that are not the same in both, sorted."""
    first, second = (_sources(record) for record in (before, after))
    return tuple(path for path in sorted({*first, *second}) if first.get(path) != second.get(path))


def source_diff(path: str, before: bytes | None, after: bytes | None) -> Changed:
    """Return the unified diff of one source file; None stands for a file that the one side does not have."""
    try:
        first, second = ((data or b"").decode().splitlines(keepends=True) for data in (before, after))
    except UnicodeDecodeError:
        return Changed(path, None, "it is no UTF-8 text")
    names = ["/dev/null" if data is None else f"{side}/{path}" for side, data in (("a", before), ("b", after))]
    lines = unified_diff(first, second, names[0], names[1])
    return Changed(path, "".join(line if line.endswith("\n") else f"{line}{_NO_END}" for line in lines))


def _parts(record: ExecutionRecord) -> dict[str, RecordParts]:
    return {
        "method": {"id": record.method.id, "version": record.method.version},
        "outcome": _outcome(record),
        "inputs": _inputs(record),
        "params": record.metrics.params if record.metrics else {},
        "metrics": _last(record.metrics.metrics if record.metrics else ()),
        "code": _code(record),
        "packages": record.instance.packages,
        "environment": _environment(record),
        "infrastructure": _infrastructure(record),
        "outputs": {file.path: file.sha256 for file in record.job_status.outputs},
        "timings": _timings(record),
    }


def _outcome(record: ExecutionRecord) -> RecordParts:
    usage = record.instance.usage
    raised = usage.exception if usage else None
    return {
        "status": record.status.value,
        "reason": record.job_status.reason and record.job_status.reason.value,
        "error": f"{raised.type}: {raised.message}" if raised else None,
        "attempts": record.job_status.attempt,
    }


def _inputs(record: ExecutionRecord) -> RecordParts:
    """A file is told by its digest: where it came from does not change what is computed."""
    staged: dict[str, list[str]] = {}
    for file in record.request.files:
        staged.setdefault(file.input, []).append(f"{file.name} sha256:{file.sha256}")
    alone = {name: files[0] if len(files) == 1 else files for name, files in staged.items()}
    return {**record.request.values, **alone}


def _last(metrics: tuple[Metric, ...]) -> RecordParts:
    return {metric.name: metric.value for metric in metrics}


def _code(record: ExecutionRecord) -> RecordParts:
    code = record.method.code
    if code is None:
        return {}
    repository = code.repository
    return {
        **_sources(record),
        "entrypoint": code.entrypoint,
        "package": code.package,
        "image": code.image_digest or code.image,
        "commit": repository and repository.commit,
        "uncommitted changes": repository and repository.diff_sha256,
    }


def _sources(record: ExecutionRecord) -> dict[str, str]:
    return {file.path: file.sha256 for file in (record.method.code.files if record.method.code else ())}


def _environment(record: ExecutionRecord) -> RecordParts:
    instance = record.instance
    variables = {f"${name}": value for name, value in instance.environment.items()}
    return {
        **variables,
        "python": instance.python and f"{instance.python.implementation} {instance.python.version}",
        "os": instance.os,
        "kernel": instance.kernel,
        "architecture": instance.architecture,
    }


def _infrastructure(record: ExecutionRecord) -> RecordParts:
    told, instance = record.infrastructure, record.instance
    return {
        "type": told.type,
        "work pool": told.work_pool,
        "work queue": told.work_queue,
        "image": told.image,
        "image digest": told.image_digest or told.image_id,
        "prefect": told.prefect_version,
        "host": instance.hostname,
        "CPU": instance.cpu_model,
        "CPUs": instance.cpu_count,
        "memory": instance.memory,
        "GPUs": [gpu.name for gpu in instance.gpus] or None,
        **{f"job variable {name}": value for name, value in told.job_variables.items()},
    }


def _timings(record: ExecutionRecord) -> RecordParts:
    told, usage = record.job_status, record.instance.usage
    return {
        "waited": _seconds(told.created, told.started),
        "took": _seconds(told.started, told.finished),
        "wall": usage and usage.wall_seconds,
        "CPU": usage and usage.cpu_seconds,
        "peak memory": usage and usage.peak_memory,
    }


def _seconds(begin: datetime | None, end: datetime | None) -> float | None:
    return (end - begin).total_seconds() if begin and end else None


def _equal(one: Any, other: Any) -> bool:
    """As JSON tells them apart: true is not 1, and 1 is 1.0."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _or_none(value: Any) -> Any:
    return None if value is _ABSENT else value
