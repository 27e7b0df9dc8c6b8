"""Verify what somebody names: an execution where it is kept, a folder, a zip, or the address of a zip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from prefect_executions.bundles.arrivals import Kind, arrivals, open_whole
from prefect_executions.bundles.verifying import DEFAULT_LIMITS, Check, Report, verify
from prefect_executions.errors import BundleError, NotAvailableError, NotFoundError
from prefect_executions.workbench.archived import ArchivedSource
from prefect_executions.workbench.downloads import downloaded, is_url
from prefect_executions.workbench.reading import Reader


class Verified(NamedTuple):
    """One copy of a bundle, and what its verification found."""

    place: str
    report: Report


def verify_target(reader: Reader, text: str) -> Iterator[Verified]:
    """Verify every copy of what *text* names: a folder, a zip or a URL with bundles, or an execution by its id.

    A path that exists is meant before an id. Of an execution both copies are
    verified, that on this workbench first: either may be damaged alone.

    Raises:
        NotFoundError: If there is no such thing.
        NotAvailableError: If the execution is not sealed yet.
        ArchiveError: If the archive cannot be asked; the copy here was verified before.
    """
    if is_url(text):
        with downloaded(text) as path:
            yield from _verify_place(path, "download")
    elif Path(text).exists():
        yield from _verify_place(Path(text), "folder" if Path(text).is_dir() else "zip")
    elif "/" in text or text.endswith(".zip"):
        raise NotFoundError(f"there is no file or folder {text}")
    else:
        yield from verify_execution(reader, reader.find(text))


def verify_execution(reader: Reader, execution_id: str) -> Iterator[Verified]:
    """Verify the sealed copies of an execution, on this workbench and in the archive.

    Raises:
        NotAvailableError: If it is not sealed yet.
        ArchiveError: If the archive cannot be asked; the copy here was verified before.
    """
    local = reader.local_source(execution_id)
    if local is not None:
        yield Verified("workbench", verify(local))
    archived = reader.bundle_source(execution_id)
    if archived is not None:
        yield Verified("archive", _with_seal(archived))
    elif local is None:
        status = reader.record(execution_id).status
        cure = "'executions settle --once' seals it" if status.terminal else "verify it when it has ended"
        raise NotAvailableError(f"execution {execution_id} is {status} and not sealed yet; {cure}.")


def _verify_place(path: Path, what: str) -> Iterator[Verified]:
    """Verify each bundle of a folder or zip, in a bag or not; what is no whole export is verified as one bundle."""
    with suppress(BundleError), open_whole(path, DEFAULT_LIMITS) as whole:
        found = arrivals(whole)
        if all(one.kind is Kind.BUNDLE for one in found):
            for one in found:
                yield Verified(what if len(found) == 1 else f"{what} {one.place}", verify(one.source))
            return
    yield Verified(what, verify(path))


def _with_seal(source: ArchivedSource) -> Report:
    return Report((Check("seal", tuple(source.seal_faults())), *verify(source).checks))
