"""What somebody hands in, as the bundles that it holds: one, many side by side, in a bag, or another system's export.

Nothing is believed here but names: which files belong to which bundle. Every file
belongs to one, so that nothing comes along unseen.
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
"""By one of these, where there is no manifest, an export of CCP is known."""

_DEEPEST = 8
"""Folders above a bundle, at most."""


class IncomingBundle(NamedTuple):
    """One bundle among what was handed in: where it lies there, and how much of it, if somebody said so."""

    kind: BundleKind
    path: str
    source: Source
    level: ExportLevel = ExportLevel.FULL


@contextmanager
def open_container(place: Path, limits: Limits) -> Iterator[Source]:
    """Open the folder or zip at *place*, with all names as they are there.

    Raises:
        NotFoundError: If there is nothing.
        BundleError: If it is a file and not a sound zip, or holds what is no plain file.
    """
    with open_source(place, limits, top="") as source:
        if source.irregular:
            raise BundleError(source.irregular[0])
        yield source


def find_bundles(source: Source) -> tuple[IncomingBundle, ...]:
    """Return the bundles in *source*, in the order of their places.

    Raises:
        BundleError: If there is none, a file belongs to none, a bag around them is
            damaged, or not all are there that an export should have.
    """
    found = tuple(_found(source, ""))
    if not found:
        raise BundleError(
            f"it holds no bundle: neither {layout.MANIFEST}, nor {BAG_DECLARATION}, nor {_CCP[0]} was found"
        )
    return found


def _found(source: Source, place: str) -> Iterator[IncomingBundle]:
    roots = _roots(source.files)
    owned: dict[str, dict[str, int]] = {root: {} for root in roots}
    beside: list[str] = []
    for path, size in source.files.items():
        root = next((above for above in _above(path) if above in owned), None)
        if root is None:
            beside.append(path)
        else:
            owned[root][path.removeprefix(root)] = size
    export = _export(source, beside, place) if roots else None
    for root, kind in sorted(roots.items()):
        part = SubfolderSource(source, root, owned[root])
        if kind is None:
            if place:
                raise BundleError(f"{place + root!r} is a bag in a bag, which nobody needs")
            yield from _found(bag_payload(part), f"{root}{BAG_PAYLOAD}")
        else:
            level = export.level if export else ExportLevel.FULL
            part.absent = absent_at_level(level)
            yield IncomingBundle(kind, place + root, part, level)


def _roots(files: Mapping[str, int]) -> dict[str, BundleKind | None]:
    """Return the folders that are a bundle each, or, with no kind, a bag; of two inside each other the outer one."""
    marks = [*((name, BundleKind.CCP) for name in _CCP), *((name.replace("/", "_"), BundleKind.FLAT) for name in _CCP)]
    roots: dict[str, BundleKind | None] = {}
    for path in files:
        for mark, kind in marks:
            if path == mark or path.endswith(f"/{mark}"):
                roots.setdefault(path.removesuffix(mark), kind)
    for mark, whose in ((layout.MANIFEST, BundleKind.BUNDLE), (BAG_DECLARATION, None)):
        for path in files:
            if path == mark or path.endswith(f"/{mark}"):
                roots[path.removesuffix(mark)] = whose
    return {
        root: kind
        for root, kind in roots.items()
        if not any(above != root and above in roots for above in _above(root))
    }


def _above(path: str) -> Iterator[str]:
    """Yield the folders above *path*, from the top, which is the empty text, as far as a bundle may lie deep."""
    yield ""
    end = -1
    for _ in range(_DEEPEST):
        end = path.find("/", end + 1)
        if end < 0:
            return
        yield path[: end + 1]


def _export(source: Source, beside: list[str], place: str) -> Export | None:
    export: Export | None = None
    for path in beside:
        if path == Export.file_name:
            data = _whole(source, path)
            strict_json(data, path)
            export = Export.from_json(data)
        elif path != layout.CRATE:
            raise BundleError(f"{place + path!r} belongs to no bundle")
    return export


def _whole(source: Source, path: str) -> bytes:
    limit = Limits().document
    if source.files[path] > limit:
        raise BundleError(f"{path} has {source.files[path]} bytes; the limit for a document is {limit}")
    return b"".join(source.blocks(path))
