"""Comparison of two executions, on the workbench or in the archive: their records, sources and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from prefect_executions.comparison.outputs import compare_output, judged
from prefect_executions.comparison.records import Changed, Difference, changed_sources, compare, source_diff
from prefect_executions.comparison.results import Runs, RunSpan
from prefect_executions.comparison.verdict import Agreement, OutputVerdict
from prefect_executions.errors import ExecutionsError, NotFoundError
from prefect_executions.executions.record import BundleFile, ExecutionRecord
from prefect_executions.lifecycle.history import OutputFile
from prefect_executions.mediatypes import media_type
from prefect_executions.methods.model import Comparison, comparison_of
from prefect_executions.operations.bundle_reader import Opened

_COMPARED = 64 << 20
"""Largest output in bytes whose content is compared; larger outputs are compared by digest only."""

Content = Callable[[str], bytes]
"""Returns the content of the output at a path."""


def compare_outputs(
    before: Iterable[BundleFile | OutputFile],
    after: Iterable[BundleFile | OutputFile],
    contents: tuple[Content, Content],
    *,
    declared: Mapping[str, Comparison] | None,
    runs: Runs,
    tolerance: float = 0,
) -> Iterator[OutputVerdict]:
    """Yield the agreement of each output in *after* with that in *before*, sorted by path.

    Outputs with different bytes are read through *contents*, one reader for each side,
    and compared by the Method's *declared* comparison. Times of the *runs* may differ. An unreadable output counts as
    different, with the reason.
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
            yield judged(path, Agreement.DIFFERS, ("too large to compare its content",), declared=how)
        else:
            yield _compared(path, contents, how, tolerance, runs)


def run_of(record: ExecutionRecord) -> RunSpan:
    """Return when the execution ran; the finish of a record that is not final is unknown."""
    return RunSpan(record.job_status.started, record.job_status.finished)


def declared_by_both(before: ExecutionRecord, after: ExecutionRecord) -> Mapping[str, Comparison]:
    """Return the comparisons of outputs that both executions declare: one record alone could excuse any difference."""
    first, second = before.method.comparisons or {}, after.method.comparisons or {}
    return {name: comparison for name, comparison in first.items() if second.get(name) == comparison}


def _compared(
    path: str, contents: tuple[Content, Content], how: Comparison | None, tolerance: float, runs: Runs
) -> OutputVerdict:
    try:
        first, second = (content(path) for content in contents)
    except ExecutionsError as error:
        return judged(path, Agreement.DIFFERS, (str(error),), declared=how)
    return compare_output(path, media_type(path), first, second, tolerance=tolerance, declared=how, runs=runs)


class Compared(NamedTuple):
    """All compared fields of two executions, and the source files and outputs that differ."""

    before: str
    after: str
    differences: tuple[Difference, ...]
    sources: tuple[Changed, ...]
    outputs: tuple[OutputVerdict, ...]
    """The agreement of each output whose bytes differ."""


def compare_executions(before: Opened, after: Opened) -> Compared:
    """Compare two executions.

    Raises:
        NotFoundError: If an execution does not exist.
        BundleError: If a document is damaged.
    """
    first, second = before.reader.record(before.id), after.reader.record(after.id)
    sources = tuple(_source(before, after, path) for path in changed_sources(first, second))
    differences = tuple(compare(first, second))
    return Compared(before.id, after.id, differences, sources, tuple(_outputs(before, after)))


def output_verdicts(before: Opened, after: Opened) -> Iterator[OutputVerdict]:
    """Yield the agreement of each output of two executions, compared as both their Methods declare."""
    contents = (partial(_output, before), partial(_output, after))
    first, second = before.reader.record(before.id), after.reader.record(after.id)
    written, runs = (first.job_status.outputs, second.job_status.outputs), Runs(run_of(first), run_of(second))
    yield from compare_outputs(*written, contents, declared=declared_by_both(first, second), runs=runs)


def _outputs(before: Opened, after: Opened) -> Iterator[OutputVerdict]:
    for verdict in output_verdicts(before, after):
        if verdict.agreement not in {Agreement.SAME, Agreement.GONE, Agreement.NEW}:
            yield verdict


def _output(opened: Opened, path: str) -> bytes:
    return b"".join(opened.reader.blocks(opened.id, path))


def _source(before: Opened, after: Opened, path: str) -> Changed:
    texts: list[bytes | None] = []
    for opened in (before, after):
        record = opened.reader.record(opened.id)
        files = record.method.code.files if record.method.code else ()
        recorded = any(file.path == path for file in files)
        try:
            texts.append(opened.reader.read(opened.id, path) if recorded else None)
        except NotFoundError:
            return Changed(path, None, f"execution {record.id} does not keep it")
    return source_diff(path, *texts)
