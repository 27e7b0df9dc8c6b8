"""Finds the bundles in a folder or zip to import: one or several bundles, in a bag or not, or exports of CCP.

It reads only file names, to assign each file to its bundle, and the manifests of a bag.
A file that belongs to no bundle is an error, so that nothing is imported unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from prefect_executions.bundles import layout
from prefect_executions.bundles.export import BAG_DECLARATION, BAG_PAYLOAD, Export, absent_at_level, bag_payload
from prefect_executions.bundles.layout import BundleKind, ExportLevel
from prefect_executions.bundles.source import Source, SubfolderSource, open_source
from prefect_executions.bundles.zip_reader import Limits
from prefect_executions.documents import strict_json
from prefect_executions.errors import BundleError

_CCP = ("metadata/request.json", "metadata/method.json")
"""Without a manifest, one of these files identifies an export of CCP."""

_DEEPEST = 8
"""The most folders that may be above a bundle."""


class IncomingBundle(NamedTuple):
    """A bundle to import: its kind, its path in the folder or zip, and the level of its export."""

    kind: BundleKind
    path: str
    source: Source
    level: ExportLevel = ExportLevel.FULL


@contextmanager
def open_container(path: Path, limits: Limits) -> Iterator[Source]:
    """Open the folder or zip at *path*, with paths relative to its root.

    Raises:
        NotFoundError: If *path* does not exist or cannot be opened.
        BundleError: If it is a file but not a valid zip, or contains a link or special file.
    """
    with open_source(path, limits, top="") as source:
        if source.irregular:
            raise BundleError(source.irregular[0])
        yield source


def find_bundles(source: Source) -> tuple[IncomingBundle, ...]:
    """Return the bundles in *source*, sorted by path.

    Raises:
        BundleError: If there is none, a file belongs to none, or the bag around them is
            damaged or incomplete.
    """
    bundles = tuple(_find(source, ""))
    if not bundles:
        raise BundleError(
            f"it contains no bundle: neither {layout.MANIFEST}, nor {BAG_DECLARATION}, nor {_CCP[0]} was found"
        )
    return bundles


def _find(source: Source, prefix: str) -> Iterator[IncomingBundle]:
    roots = _roots(source.files)
    files_below: dict[str, dict[str, int]] = {root: {} for root in roots}
    unassigned: list[str] = []
    for path, size in source.files.items():
        root = next((folder for folder in _folders_above(path) if folder in files_below), None)
        if root is None:
            unassigned.append(path)
        else:
            files_below[root][path.removeprefix(root)] = size
    export = _export(source, unassigned, prefix) if roots else None
    for root, kind in sorted(roots.items()):
        part = SubfolderSource(source, root, files_below[root])
        if kind is None:
            if prefix:
                raise BundleError(f"{prefix + root!r} is a bag in a bag, which is not supported")
            yield from _find(bag_payload(part), f"{root}{BAG_PAYLOAD}")
        else:
            level = export.level if export else ExportLevel.FULL
            part.absent = absent_at_level(level)
            yield IncomingBundle(kind, prefix + root, part, level)


def _roots(files: Mapping[str, int]) -> dict[str, BundleKind | None]:
    """Return the folders that are a bundle, or a bag (kind None); of two nested ones, the outer one."""
    marks = [*((name, BundleKind.CCP) for name in _CCP), *((name.replace("/", "_"), BundleKind.FLAT) for name in _CCP)]
    roots: dict[str, BundleKind | None] = {}
    for path in files:
        for mark, kind in marks:
            if path == mark or path.endswith(f"/{mark}"):
                roots.setdefault(path.removesuffix(mark), kind)
    for mark, mark_kind in ((layout.MANIFEST, BundleKind.BUNDLE), (BAG_DECLARATION, None)):
        for path in files:
            if path == mark or path.endswith(f"/{mark}"):
                roots[path.removesuffix(mark)] = mark_kind
    return {
        root: kind
        for root, kind in roots.items()
        if not any(folder != root and folder in roots for folder in _folders_above(root))
    }


def _folders_above(path: str) -> Iterator[str]:
    """Yield the folders above *path* from the root (the empty string) down to `_DEEPEST` levels."""
    yield ""
    end = -1
    for _ in range(_DEEPEST):
        end = path.find("/", end + 1)
        if end < 0:
            return
        yield path[: end + 1]


def _export(source: Source, unassigned: list[str], prefix: str) -> Export | None:
    export: Export | None = None
    for path in unassigned:
        if path == Export.file_name:
            data = _read_document(source, path)
            strict_json(data, path)
            export = Export.from_json(data)
        elif path != layout.CRATE:
            raise BundleError(f"{prefix + path!r} belongs to no bundle")
    return export


def _read_document(source: Source, path: str) -> bytes:
    limit = Limits().document
    if source.files[path] > limit:
        raise BundleError(f"{path} has {source.files[path]} bytes; the limit for a document is {limit}")
    return b"".join(source.blocks(path))
