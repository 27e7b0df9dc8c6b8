"""Compare two executions, wherever their records are kept."""

from __future__ import annotations

from typing import NamedTuple

from prefect_executions.comparison.records import Changed, Difference, changed_sources, compare, source_diff
from prefect_executions.errors import NotFoundError
from prefect_executions.executions import ExecutionRecord
from prefect_executions.workbench.reading import Reader


class Compared(NamedTuple):
    """What two executions tell, equal or not, and the source files that are not the same."""

    before: str
    after: str
    differences: tuple[Difference, ...]
    sources: tuple[Changed, ...]


def compare_executions(reader: Reader, before: str, after: str) -> Compared:
    """Compare the executions *before* and *after*, given by their full ids.

    Raises:
        NotFoundError: If there is no such execution.
        BundleError: If a document is damaged.
    """
    first, second = reader.record(before), reader.record(after)
    sources = tuple(_source(reader, first, second, path) for path in changed_sources(first, second))
    return Compared(before, after, tuple(compare(first, second)), sources)


def _source(reader: Reader, before: ExecutionRecord, after: ExecutionRecord, path: str) -> Changed:
    found = []
    for record in (before, after):
        files = record.method.code.files if record.method.code else ()
        told = any(file.path == path for file in files)
        try:
            found.append(reader.read(record.id, path) if told else None)
        except NotFoundError:
            return Changed(path, None, f"execution {record.id} does not keep it")
    return source_diff(path, *found)
