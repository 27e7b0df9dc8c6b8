"""Compare two executions, wherever their records are kept.

How the outputs of two executions agree, each compared as the Method of the first has declared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from prefect_executions.comparison.outputs import compare_output, judged
from prefect_executions.comparison.records import Changed, Difference, changed_sources, compare, source_diff
from prefect_executions.comparison.verdict import Agreement, OutputVerdict
from prefect_executions.errors import ExecutionsError, NotFoundError
from prefect_executions.executions.record import BundleFile, ExecutionRecord
from prefect_executions.lifecycle.history import OutputFile
from prefect_executions.mediatypes import media_type
from prefect_executions.methods.model import Comparison, comparison_of
from prefect_executions.workbench.catalog import Catalog

_COMPARED = 64 << 20
"""Bytes of an output up to which its content is compared; a larger one by its digest alone."""

Content = Callable[[str], bytes]
"""What gives the content of the output at a path."""


def compare_outputs(
    before: Iterable[BundleFile | OutputFile],
    after: Iterable[BundleFile | OutputFile],
    contents: tuple[Content, Content],
    *,
    declared: Mapping[str, Comparison] | None,
    tolerance: float = 0,
) -> Iterator[OutputVerdict]:
    """Yield how each output of *after* agrees with that of *before*, in the order of their paths.

    *contents* give what the two have written. What cannot be read is told to differ, with the reason.
    """
    first, second = ({file.path: file for file in files} for files in (before, after))
    for path in sorted({*first, *second}):
        how = comparison_of(path, declared)
        if path not in second:
            yield OutputVerdict(path=path, agreement=Agreement.GONE, by="bytes", words=("it was not written",))
        elif path not in first:
            yield OutputVerdict(path=path, agreement=Agreement.NEW, by="bytes", words=("it was not there",))
        elif first[path].sha256 == second[path].sha256:
            yield OutputVerdict(path=path, agreement=Agreement.SAME, by="bytes")
        elif max(first[path].size, second[path].size) > _COMPARED:
            yield judged(path, Agreement.DIFFERS, ("too large to be compared by its content",), declared=how)
        else:
            yield _compared(path, contents, how, tolerance)


def _compared(path: str, contents: tuple[Content, Content], how: Comparison | None, tolerance: float) -> OutputVerdict:
    try:
        one, other = (content(path) for content in contents)
    except ExecutionsError as error:
        return judged(path, Agreement.DIFFERS, (str(error),), declared=how)
    return compare_output(path, media_type(path), one, other, tolerance=tolerance, declared=how)


class Compared(NamedTuple):
    """What two executions tell, equal or not, and the source files and outputs that are not the same."""

    before: str
    after: str
    differences: tuple[Difference, ...]
    sources: tuple[Changed, ...]
    outputs: tuple[OutputVerdict, ...]
    """How the outputs agree that have other bytes."""


def compare_executions(reader: Catalog, before: str, after: str) -> Compared:
    """Compare the executions *before* and *after*, given by their full ids.

    Raises:
        NotFoundError: If there is no such execution.
        BundleError: If a document is damaged.
    """
    first, second = reader.record(before), reader.record(after)
    sources = tuple(_source(reader, first, second, path) for path in changed_sources(first, second))
    told = tuple(compare(first, second))
    return Compared(before, after, told, sources, tuple(_outputs(reader, first, second)))


def _outputs(reader: Catalog, before: ExecutionRecord, after: ExecutionRecord) -> Iterator[OutputVerdict]:
    contents = (partial(_output, reader, before.id), partial(_output, reader, after.id))
    written = (before.job_status.outputs, after.job_status.outputs)
    for one in compare_outputs(*written, contents, declared=before.method.comparisons):
        if one.agreement not in {Agreement.SAME, Agreement.GONE, Agreement.NEW}:
            yield one


def _output(reader: Catalog, execution_id: str, path: str) -> bytes:
    return b"".join(reader.blocks(execution_id, path))


def _source(reader: Catalog, before: ExecutionRecord, after: ExecutionRecord, path: str) -> Changed:
    found = []
    for record in (before, after):
        files = record.method.code.files if record.method.code else ()
        told = any(file.path == path for file in files)
        try:
            found.append(reader.read(record.id, path) if told else None)
        except NotFoundError:
            return Changed(path, None, f"execution {record.id} does not keep it")
    return source_diff(path, *found)
