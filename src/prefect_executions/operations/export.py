"""Export executions as one zip, from the archive, or from this workbench before they are archived."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from itertools import islice
from typing import NamedTuple

from prefect_executions.archive.archive import Archive
from prefect_executions.archive.bundle import ArchivedBundle
from prefect_executions.bundles.annotations import annotation_file
from prefect_executions.bundles.export import BundleToExport, Exporter
from prefect_executions.bundles.layout import ExportFormat, ExportLevel
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.source import FolderSource
from prefect_executions.errors import NotAvailableError, RequestError
from prefect_executions.query.filter import Filter
from prefect_executions.workbench.archived_source import ArchivedSource
from prefect_executions.workbench.catalog import Catalog

_AHEAD = 4
"""Bundles that are fetched ahead in parallel, because a remote archive has a high latency."""

_HELD = 16 << 20
"""Largest total size of a bundle's small files to fetch together and hold in memory."""


class Exported(NamedTuple):
    """The ids of the exported executions, and the size of the zip in bytes."""

    ids: tuple[str, ...]
    size: int


def export(
    catalog: Catalog,
    ids: Iterable[str],
    write: Callable[[bytes], object],
    *,
    form: ExportFormat = ExportFormat.ZIP,
    level: ExportLevel = ExportLevel.FULL,
    progress: Callable[[str], object] = lambda _: None,
) -> Exported:
    """Write the executions *ids* as one zip; the same executions give the same bytes, in any order.

    *progress* is called with each id when it is written. Nothing is unpacked, and memory
    does not grow with the size of a bundle.

    Raises:
        RequestError: If no id is given, or *level* does not fit *form*.
        NotFoundError: If an execution does not exist.
        NotAvailableError: If an execution is not sealed yet.
        BundleError: If a file of a bundle is missing or damaged; discard the output then.
    """
    wanted = sorted(set(ids))
    if not wanted:
        raise RequestError("no execution is to be exported; name one, or give a filter that matches some")
    exporter = Exporter(write, form, level, only=wanted[0] if len(wanted) == 1 else None)
    for bundle in _prefetched(catalog, wanted):
        exporter.add(bundle)
        progress(bundle.id)
    return Exported(tuple(wanted), exporter.close())


def matching_ids(catalog: Catalog, criteria: Filter) -> Iterator[str]:
    """Yield the ids of all sealed executions that meet *criteria*, newest first.

    Raises:
        LedgerError: If the ledger is unavailable.
    """
    return (row.id for row in catalog.workbench.ledger.search(criteria) if row.manifest_sha256)


def sealed_ids(catalog: Catalog, ids: Sequence[str]) -> Iterator[str]:
    """Yield those of *ids* that are sealed: only they can be exported.

    Raises:
        LedgerError: If the ledger is unavailable.
    """
    return (row.id for row in catalog.workbench.ledger.get_many(ids) if row.manifest_sha256)


def _prefetched(catalog: Catalog, ids: Sequence[str]) -> Iterator[BundleToExport]:
    waiting = iter(ids)
    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="export") as pool:
        fetches: deque[Future[BundleToExport]] = deque()
        try:
            while True:
                next_ids = islice(waiting, _AHEAD - len(fetches))
                fetches += [pool.submit(_bundle_of, catalog, execution_id) for execution_id in next_ids]
                if not fetches:
                    return
                yield fetches.popleft().result()
        finally:
            for fetch in fetches:
                fetch.cancel()


def _bundle_of(catalog: Catalog, execution_id: str) -> BundleToExport:
    archive = catalog.workbench.archive
    if archive.seal_of(execution_id) is not None:
        bundle = archive.bundle(execution_id)
        return BundleToExport(
            id=execution_id,
            source=_PrefetchedSource(archive, bundle),
            manifest_sha256=bundle.seal.manifest_sha256,
            finished=bundle.seal.finished,
            absent=frozenset(bundle.seal.absent),
            inclusion=archive.inclusion(execution_id),
            annotations=annotation_file(archive.annotations(execution_id)),
        )
    record = catalog.record(execution_id)
    local = OpenBundle(catalog.workbench.folder, execution_id)
    if not local.sealed:
        cure = "'executions settle --once' seals it" if record.status.terminal else "export it when it has ended"
        raise NotAvailableError(f"execution {execution_id} is {record.status} and not sealed yet; {cure}.")
    return BundleToExport(
        id=execution_id,
        source=FolderSource(local.folder),
        manifest_sha256=sha256(local.paths.manifest.read_bytes()).hexdigest(),
        finished=record.job_status.end_found,
    )


class _PrefetchedSource(ArchivedSource):
    """An archived bundle with its small files prefetched."""

    def __init__(self, archive: Archive, bundle: ArchivedBundle) -> None:
        super().__init__(archive, bundle)
        small = {path: size for path, size in self.files.items() if path not in bundle.seal.data}
        self._held: Mapping[str, bytes] = bundle.read_many(small) if sum(small.values()) <= _HELD else {}

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield a file's content in blocks."""
        return iter([self._held[path]]) if path in self._held else super().blocks(path)
