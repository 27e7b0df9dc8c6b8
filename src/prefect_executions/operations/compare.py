"""Compare two executions, wherever their records are kept."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from prefect_executions.comparison.records import Changed, Difference, changed_sources, compare, source_diff
from prefect_executions.comparison.verdict import Agreement, OutputVerdict
from prefect_executions.errors import NotFoundError
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.operations.agreeing import agreements
from prefect_executions.workbench.catalog import Reader


class Compared(NamedTuple):
    """What two executions tell, equal or not, and the source files and outputs that are not the same."""

    before: str
    after: str
    differences: tuple[Difference, ...]
    sources: tuple[Changed, ...]
    outputs: tuple[OutputVerdict, ...]
    """How the outputs agree that have other bytes."""


def compare_executions(reader: Reader, before: str, after: str) -> Compared:
    """Compare the executions *before* and *after*, given by their full ids.

    Raises:
        NotFoundError: If there is no such execution.
        BundleError: If a document is damaged.
    """
    first, second = reader.record(before), reader.record(after)
    sources = tuple(_source(reader, first, second, path) for path in changed_sources(first, second))
    told = tuple(compare(first, second))
    return Compared(before, after, told, sources, tuple(_outputs(reader, first, second)))


def _outputs(reader: Reader, before: ExecutionRecord, after: ExecutionRecord) -> Iterator[OutputVerdict]:
    contents = (partial(_output, reader, before.id), partial(_output, reader, after.id))
    written = (before.job_status.outputs, after.job_status.outputs)
    for one in agreements(*written, contents, declared=before.method.comparisons):
        if one.agreement not in {Agreement.SAME, Agreement.GONE, Agreement.NEW}:
            yield one


def _output(reader: Reader, execution_id: str, path: str) -> bytes:
    return b"".join(reader.blocks(execution_id, path))


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
