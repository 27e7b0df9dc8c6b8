"""Compares the records of two executions, part by part.

Law: this module does not judge. A value that only one record has is a difference.
Ids, times of day and process numbers are left out, because they always differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from difflib import unified_diff
from typing import Any, NamedTuple

from prefect_executions.executions.record import ExecutionRecord, Metric
from prefect_executions.executions.summary import error_text

RecordParts = Mapping[str, Any]

_ABSENT = object()
_NO_NEWLINE = "\n\\ No newline at end of file\n"  # the text of diff and git


class Difference(NamedTuple):
    """A fact of at least one of two records, with both values; None where it is absent."""

    part: str
    name: str
    before: Any
    after: Any
    same: bool


class Changed(NamedTuple):
    """A changed file of the recorded source: its unified diff, or the reason why it has none."""

    path: str
    diff: str | None
    why: str | None = None


def compare(before: ExecutionRecord, after: ExecutionRecord) -> Iterator[Difference]:
    """Yield every fact of both records, equal or not, by part and sorted by name within a part."""
    new_parts = _parts(after)
    for part, first in _parts(before).items():
        second = new_parts[part]
        for name in sorted({*first, *second}):
            old, new = first.get(name, _ABSENT), second.get(name, _ABSENT)
            same = old is not _ABSENT and new is not _ABSENT and _equal(old, new)
            if same and old is None:
                continue
            yield Difference(part, name, _or_none(old), _or_none(new), same)


def changed_sources(before: ExecutionRecord, after: ExecutionRecord) -> tuple[str, ...]:
    """Return the sorted paths of the source files that differ."""
    first, second = (_sources(record) for record in (before, after))
    return tuple(path for path in sorted({*first, *second}) if first.get(path) != second.get(path))


def source_diff(path: str, before: bytes | None, after: bytes | None) -> Changed:
    """Return the unified diff of one source file; None means that a side does not have the file."""
    try:
        first, second = ((data or b"").decode().splitlines(keepends=True) for data in (before, after))
    except UnicodeDecodeError:
        return Changed(path, None, "it is not UTF-8 text")
    names = ["/dev/null" if data is None else f"{side}/{path}" for side, data in (("a", before), ("b", after))]
    lines = unified_diff(first, second, names[0], names[1])
    return Changed(path, "".join(line if line.endswith("\n") else f"{line}{_NO_NEWLINE}" for line in lines))


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
        "error": error_text(raised) if raised else None,
        "attempts": record.job_status.attempt,
    }


def _inputs(record: ExecutionRecord) -> RecordParts:
    """Represent files by digest: their origin does not change what is computed."""
    staged: dict[str, list[str]] = {}
    for file in record.request.files:
        staged.setdefault(file.input, []).append(f"{file.name} sha256:{file.sha256}")
    files = {name: found[0] if len(found) == 1 else found for name, found in staged.items()}
    return {**record.request.values, **files}


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
    infrastructure, instance = record.infrastructure, record.instance
    return {
        "type": infrastructure.type,
        "work pool": infrastructure.work_pool,
        "work queue": infrastructure.work_queue,
        "image": infrastructure.image,
        "image digest": infrastructure.image_digest or infrastructure.image_id,
        "prefect": infrastructure.prefect_version,
        "host": instance.hostname,
        "CPU": instance.cpu_model,
        "CPUs": instance.cpu_count,
        "memory": instance.memory,
        "GPUs": [gpu.name for gpu in instance.gpus] or None,
        **{f"job variable {name}": value for name, value in infrastructure.job_variables.items()},
    }


def _timings(record: ExecutionRecord) -> RecordParts:
    job_status, usage = record.job_status, record.instance.usage
    return {
        "wait for the start": _seconds(job_status.created, job_status.started),
        "took": _seconds(job_status.started, job_status.finished),
        "in the Method": usage and usage.wall_seconds,
        "CPU": usage and usage.cpu_seconds,
        "peak memory": usage and usage.peak_memory,
    }


def _seconds(begin: datetime | None, end: datetime | None) -> float | None:
    return (end - begin).total_seconds() if begin and end else None


def _equal(old: Any, new: Any) -> bool:
    """Compare as JSON values: true differs from 1, and 1 equals 1.0."""
    if isinstance(old, bool) or isinstance(new, bool):
        return old is new
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_equal(old[name], new[name]) for name in old)
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return len(old) == len(new) and all(map(_equal, old, new))
    return bool(old == new)


def _or_none(value: Any) -> Any:
    return None if value is _ABSENT else value
