"""Finds the bundles in a folder or zip to import: one or several bundles, in a bag or not, or exports of CCP.

It reads file names, to assign each file to its bundle, then manifests and `export.json`.
The files of a bag are read only if each of them belongs to a bundle. A file that belongs
to no bundle is an error, so that nothing is imported unnoticed. Files that file managers
add (`layout.is_desktop_file`) are skipped, unless a manifest lists them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.bag import BAG_DECLARATION, BAG_PAYLOAD, check_bag, extra_files
from prefect_executions.bundles.export import Export, absent_at_level
from prefect_executions.bundles.layout import BundleKind, ExportLevel
from prefect_executions.bundles.relations import RelatedBundle, relation_faults
from prefect_executions.bundles.source import Source, SubfolderSource, open_source
from prefect_executions.bundles.zip_reader import Limits
from prefect_executions.comparison.verdict import Verdict
from prefect_executions.crate.collection import CollectedCrate, collect
from prefect_executions.documents import strict_json
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import Agent, ExecuteRequest
from prefect_executions.lifecycle.history import JobStatus

_CCP = ("metadata/request.json", "metadata/method.json")
"""Without a manifest, one of these files identifies an export of CCP."""

NO_BUNDLE = f"it contains no bundle: neither {layout.MANIFEST}, nor {BAG_DECLARATION}, nor {_CCP[0]} was found"

_DEEPEST = 8
"""The most folders that may be above a bundle."""

_NAMED, _LONGEST = 3, 200
"""Files that a note names, and the most characters of a name."""


class IncomingBundle(NamedTuple):
    """A bundle to import: its kind, its path in the folder or zip, and the level of its export."""

    kind: BundleKind
    path: str
    source: Source
    level: ExportLevel = ExportLevel.FULL
    folder: str = ""
    """The name of its folder; empty at the root of a zip, folder or bag."""
    export: Export | None = None
    """The `export.json` beside it."""


class BundleId(NamedTuple):
    """The id of the execution in a bundle, as its documents say, and the digest of its manifest."""

    id: str
    manifest_sha256: str


@dataclass(frozen=True)
class Container:
    """The bundles in a folder or zip."""

    bundles: tuple[IncomingBundle, ...]
    skipped: tuple[str, ...] = ()
    """The desktop files, which no manifest lists."""
    stray_folders: tuple[str, ...] = ()
    """The empty folders outside all bundles."""
    crates: tuple[bytes, ...] = ()
    """The crates beside the bundles, which no manifest lists."""
    beside_payload: tuple[str, ...] = ()
    """The files of a bag that are neither payload nor defined by BagIt."""

    def some_bundles(self) -> tuple[IncomingBundle, ...]:
        """Return the bundles.

        Raises:
            BundleError: If there is none.
        """
        if not self.bundles:
            raise BundleError(NO_BUNDLE)
        return self.bundles

    def reading(self, sources: Sequence[Source]) -> Container:
        """Return the container with another source for each bundle, of the same content."""
        bundles = (bundle._replace(source=source) for bundle, source in zip(self.bundles, sources, strict=True))
        return replace(self, bundles=tuple(bundles))

    def faults(self) -> Iterator[str]:
        """Yield a sentence for each bundle that is there twice, and each contradiction to `export.json` or another."""
        first: dict[str, int] = {}
        for index, known in self.ids.items():
            other = first.setdefault(known.id, index)
            if other != index:
                paths = f"{self.bundles[other].path!r} and {self.bundles[index].path!r}"
                yield f"execution {known.id} is in it twice, at {paths}"
        exports = {id(bundle.export): bundle.export for bundle in self.bundles if bundle.export}
        for key, export in exports.items():
            group = [index for index, bundle in enumerate(self.bundles) if id(bundle.export) == key]
            present = [self.ids[index] for index in group if index in self.ids]
            yield from _export_faults(export, present, complete=len(present) == len(group))
        yield from relation_faults(list(self._related()))

    def _related(self) -> Iterator[RelatedBundle]:
        """Yield the bundles that name another bundle here, and those that are named; damaged ones are left out."""
        requests: dict[int, ExecuteRequest] = {}
        for index in self.ids if len(self.ids) > 1 else ():
            with suppress(BundleError):
                data = _read_document(self.bundles[index].source, ExecuteRequest.file_name)
                requests[index] = ExecuteRequest.from_json(data)
        present = {known.id for known in self.ids.values()}
        links = {index: {link.execution_id for link in request.relatives} for index, request in requests.items()}
        named = set().union(*links.values())
        for index, request in requests.items():
            source, known = self.bundles[index].source, self.ids[index]
            if known.id in named or not present.isdisjoint(links[index]):
                with suppress(BundleError):
                    status = JobStatus.from_json(_read_document(source, JobStatus.file_name))
                    verdict = _read_document(source, Verdict.file_name) if Verdict.file_name in source.files else None
                    judged = Verdict.from_json(verdict) if verdict is not None else None
                    yield RelatedBundle(known.manifest_sha256, request, status, judged)

    def notes(self) -> Iterator[str]:
        """Yield a sentence for each file that was skipped, and each crate beside the bundles that does not fit them."""
        yield from map(skipped_file, self.skipped)
        if count := len(self.beside_payload):
            names = ", ".join(repr(path[:_LONGEST]) for path in self.beside_payload[:_NAMED])
            more = f" and {count - _NAMED} more" if count > _NAMED else ""
            yield f"{names}{more}: not in the payload {BAG_PAYLOAD} of the bag, so part of no execution, and ignored"
        for crate in self.crates:
            if crate != self._crate():
                yield (
                    f"{layout.CRATE!r} beside the bundles was not checked: no manifest lists it, and it is not the one "
                    "that an export of these bundles has"
                )

    def _crate(self) -> bytes | None:
        """Return the crate that an export of the bundles has beside them; None if one of them is damaged."""
        crates = []
        for index, known in self.ids.items():
            source = self.bundles[index].source
            try:
                agent = Agent.from_json(_read_document(source, Agent.file_name))
                status = JobStatus.from_json(_read_document(source, JobStatus.file_name))
            except BundleError:
                return None
            crates.append(CollectedCrate(known.id, status.end_found, agent))
        return collect(sorted(crates, key=lambda crate: crate.execution_id))

    def folder_faults(self) -> Iterator[str]:
        """Yield a sentence for each folder that lacks the name of the execution in it, or is empty."""
        for index, known in self.ids.items():
            folder = self.bundles[index].folder
            if folder and folder != known.id:
                yield misnamed(folder, known.id)
        for folder in self.stray_folders:
            yield f"{folder!r} is an empty folder that belongs to no bundle"

    @cached_property
    def ids(self) -> Mapping[int, BundleId]:
        """The ids of the bundles of this package by their index, except those whose documents are damaged."""
        ids = {}
        for index, bundle in enumerate(self.bundles):
            if bundle.kind is BundleKind.BUNDLE:
                with suppress(BundleError):
                    ids[index] = _id_of(bundle.source)
        return ids


def misnamed(folder: str, execution_id: str) -> str:
    """Return the sentence on a folder that lacks the name of the execution in it."""
    return f"the folder {folder!r} holds execution {execution_id}: rename it to {execution_id}"


def skipped_file(path: str) -> str:
    """Return the sentence on a desktop file that was skipped."""
    return f"{path!r} was skipped: file managers add such files, and no manifest lists it"


@contextmanager
def open_container(path: Path, limits: Limits, *, folders_too: bool = False) -> Iterator[Source]:
    """Open the folder or zip at *path*, with paths relative to its root; the arguments are those of `open_source`.

    Raises:
        NotFoundError: If *path* does not exist or cannot be opened.
        BundleError: If it is a file but not a valid zip, or contains a link or special file.
    """
    with open_source(path, limits, top="", folders_too=folders_too) as source:
        if source.irregular:
            raise BundleError(source.irregular[0])
        yield source


def find_bundles(source: Source) -> tuple[IncomingBundle, ...]:
    """Return the bundles of `read_container`.

    Raises:
        BundleError: As `read_container`, and if there is none.
    """
    return read_container(source).some_bundles()


def read_container(source: Source) -> Container:
    """Return the bundles in *source*, sorted by path.

    Raises:
        BundleError: If a file belongs to no bundle, or the bag around them is damaged or incomplete.
    """
    search = _Search()
    bundles = tuple(search.find(source, ""))
    return Container(
        bundles, tuple(search.skipped), tuple(search.stray_folders), tuple(search.crates), tuple(search.beside_payload)
    )


class _Search:
    """One search for bundles, and what it found outside of them."""

    def __init__(self) -> None:
        self.skipped: list[str] = []
        self.stray_folders: list[str] = []
        self.crates: list[bytes] = []
        self.beside_payload: list[str] = []

    def find(self, source: Source, prefix: str) -> Iterator[IncomingBundle]:
        """Yield the bundles in *source*, which is the payload of a bag at *prefix*, or everything."""
        roots = _roots([path for path in source.files if not layout.is_desktop_file(path)])
        files, beside = _assigned(source.files, roots)
        folders, stray_folders = _assigned(dict.fromkeys(source.empty_folders, 0), roots)
        self.stray_folders += [prefix + folder for folder in stray_folders if not layout.is_desktop_file(f"{folder}/")]
        self.skipped += [prefix + path for path in beside if layout.is_desktop_file(path)]
        documents = [path for path in beside if not layout.is_desktop_file(path)]
        if prefix and files.get("", {}).pop(Export.file_name, None) is not None:
            documents.append(Export.file_name)  # as this package wrote it into bags of version 0.97
        export = _export(source, documents, roots, prefix) if roots else None
        crates = [path for path in documents if roots and path.rpartition("/")[2] == layout.CRATE]
        self.crates += [_read_document(source, path) for path in crates]
        for root, kind in sorted(roots.items()):
            part = SubfolderSource(source, root, files[root], tuple(folders[root]))
            if kind is not None:
                yield self._bundle(IncomingBundle(kind, prefix + root, part, folder=_last(root), export=export))
            elif prefix:
                raise BundleError(f"{prefix + root!r} is a bag in a bag, which is not supported")
            else:
                yield from self._in_bag(part, root)

    def _in_bag(self, bag: Source, path: str) -> Iterator[IncomingBundle]:
        folders = [folder.removeprefix(BAG_PAYLOAD) for folder in bag.empty_folders if folder.startswith(BAG_PAYLOAD)]
        payload = SubfolderSource(bag, BAG_PAYLOAD, empty_folders=tuple(folders))
        bundles = tuple(self.find(payload, path + BAG_PAYLOAD))
        for bundle in bundles:
            if bundle.kind is BundleKind.BUNDLE:
                _check_listed(bundle)
        check_bag(bag)
        self.beside_payload += [path + name for name in extra_files(bag)]
        yield from bundles

    def _bundle(self, bundle: IncomingBundle) -> IncomingBundle:
        """Return *bundle* without its desktop files, with the original names of renamed files."""
        source, export = bundle.source, bundle.export
        level = export.level if export else ExportLevel.FULL
        names = {path: path for path in source.files}
        exported = next((one for one in export.executions if one.id == bundle.folder), None) if export else None
        if exported and exported.renamed:
            names |= _renamed(exported.renamed, source)
            names = {path: stored for path, stored in names.items() if path not in exported.renamed}
        listed = _listed(source) if any(map(layout.is_desktop_file, names)) else {}
        skipped = {path for path in names if layout.is_desktop_file(path) and path not in listed}
        self.skipped += [bundle.path + path for path in names if path in skipped]
        files = {path: source.files[stored] for path, stored in sorted(names.items()) if path not in skipped}
        moved = {path: stored for path, stored in names.items() if path != stored}
        part = SubfolderSource(source, "", files, source.empty_folders, moved)
        part.absent = absent_at_level(level)
        return bundle._replace(source=part, level=level)


def _renamed(renamed: Mapping[str, str], source: Source) -> Mapping[str, str]:
    """Return the name in *source* of each file that `export.json` lists as renamed, by its path in the bundle."""
    for stored, path in renamed.items():
        if stored not in source.files:
            raise BundleError(f"{Export.file_name} lists {stored!r}, which is missing")
        if not layout.is_open_path(path) or path in source.files:
            raise BundleError(f"{Export.file_name} gives {stored!r} the path {path!r}, which is not allowed")
    names = {path: stored for stored, path in renamed.items()}
    if len(names) < len(renamed):
        raise BundleError(f"{Export.file_name} gives two files the same path")
    return names


def _check_listed(bundle: IncomingBundle) -> None:
    listed = _listed(bundle.source)
    for path in bundle.source.files:
        if path not in listed and path not in layout.UNLISTED:
            raise BundleError(f"{bundle.path + path!r} is present and not in the manifest")


def _listed(source: Source) -> Mapping[str, str]:
    """Return the files in the manifest of *source*; none without a manifest."""
    return manifest.parse(_read_document(source, layout.MANIFEST)) if layout.MANIFEST in source.files else {}


def _id_of(source: Source) -> BundleId:
    status = strict_json(_read_document(source, JobStatus.file_name), JobStatus.file_name)
    execution_id = status.get("jobID") if isinstance(status, dict) else None
    if not isinstance(execution_id, str):
        raise BundleError(f"{JobStatus.file_name} has no jobID")
    return BundleId(execution_id, sha256(_read_document(source, layout.MANIFEST)).hexdigest())


def _export_faults(export: Export, present: Sequence[BundleId], *, complete: bool) -> Iterator[str]:
    """Yield the contradictions between *export* and the bundles beside it; *complete* if none of these is damaged."""
    times = Counter(listed.id for listed in export.executions)
    yield from (f"{Export.file_name} lists execution {name} twice" for name, count in times.items() if count > 1)
    if complete:
        missing = times.keys() - {known.id for known in present}
        yield from (f"{Export.file_name} lists execution {name}, which is missing" for name in sorted(missing))
    digests = {listed.id: listed.manifest_sha256 for listed in export.executions}
    for known in present:
        if known.id not in digests:
            yield f"{Export.file_name} does not list execution {known.id}"
        elif digests[known.id] != known.manifest_sha256:
            yield (
                f"the manifest of execution {known.id} is {known.manifest_sha256}; "
                f"{Export.file_name} says {digests[known.id]}"
            )


def _roots(paths: Collection[str]) -> dict[str, BundleKind | None]:
    """Return the folders that are a bundle, or a bag (kind None); of two nested ones, the outer one."""
    marks = [*((name, BundleKind.CCP) for name in _CCP), *((name.replace("/", "_"), BundleKind.FLAT) for name in _CCP)]
    roots: dict[str, BundleKind | None] = {}
    for path in paths:
        for mark, kind in marks:
            if path == mark or path.endswith(f"/{mark}"):
                roots.setdefault(path.removesuffix(mark), kind)
    for mark, mark_kind in ((layout.MANIFEST, BundleKind.BUNDLE), (BAG_DECLARATION, None)):
        for path in paths:
            if path == mark or path.endswith(f"/{mark}"):
                roots[path.removesuffix(mark)] = mark_kind
    return {
        root: kind
        for root, kind in roots.items()
        if not any(folder != root and folder in roots for folder in _folders_above(root))
    }


def _assigned(
    paths: Mapping[str, int], roots: Mapping[str, BundleKind | None]
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Return *paths* by the root that they lie below, relative to it, and those that lie below none."""
    below: dict[str, dict[str, int]] = {root: {} for root in roots}
    beside: list[str] = []
    for path, size in paths.items():
        root = next((folder for folder in _folders_above(path) if folder in below), None)
        if root is None:
            beside.append(path)
        else:
            below[root][path.removeprefix(root)] = size
    return below, beside


def _folders_above(path: str) -> Iterator[str]:
    """Yield the folders above *path* from the root (the empty string) down to `_DEEPEST` levels."""
    yield ""
    end = -1
    for _ in range(_DEEPEST):
        end = path.find("/", end + 1)
        if end < 0:
            return
        yield path[: end + 1]


def _last(folder: str) -> str:
    return folder.removesuffix("/").rpartition("/")[2]


def _export(source: Source, documents: list[str], roots: Collection[str], prefix: str) -> Export | None:
    """Return the `export.json` among *documents*, which lie outside the bundles at *roots*."""
    export: Export | None = None
    for path in documents:
        folder, _, name = path.rpartition("/")
        above_all = all(root.startswith(f"{folder}/" if folder else "") for root in roots)
        if name not in {Export.file_name, layout.CRATE} or not above_all:
            raise BundleError(f"{prefix + path!r} belongs to no bundle")
        data = _read_document(source, path)
        strict_json(data, path)
        if name == Export.file_name:
            if export:
                raise BundleError(f"{prefix + path!r} is the second {Export.file_name}")
            export = Export.from_json(data)
    return export


def _read_document(source: Source, path: str) -> bytes:
    limit = Limits().document
    if path not in source.files:
        raise BundleError(f"{path} is missing")
    if source.files[path] > limit:
        raise BundleError(f"{path} has {source.files[path]} bytes; the limit for a document is {limit}")
    return b"".join(source.blocks(path))
