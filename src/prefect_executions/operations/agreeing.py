"""How the outputs of two executions agree, each compared as the Method of the first has declared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prefect_executions.comparison.outputs import compare_output, judged
from prefect_executions.comparison.verdict import Agreement, OutputVerdict
from prefect_executions.errors import ExecutionsError
from prefect_executions.executions.record import BundleFile
from prefect_executions.lifecycle.history import OutputFile
from prefect_executions.mediatypes import media_type
from prefect_executions.methods.comparisons import Comparison, comparison_of

_COMPARED = 64 << 20
"""Bytes of an output up to which its content is compared; a larger one by its digest alone."""

Content = Callable[[str], bytes]
"""What gives the content of the output at a path."""


def agreements(
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
