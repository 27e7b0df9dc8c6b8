"""Exports sealed bundles as one zip: as folders, as a BagIt bag (RFC 8493), or as an RO-Crate.

Law: equal bundles give equal bytes, whenever they are exported, with the same zlib (versions of
zlib may deflate differently). Outputs are copied from ``output.zip`` in compressed form, and what
does not shrink is stored. Every copied file is checked against the manifest, and the manifest
against the seal.

`export.json` beside the bundles says what is in the export, what was omitted, and which
files of a bag have another name than in their bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING, ClassVar

from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.bag import BAG_PAYLOAD, bag_tag_files, stand_ins
from prefect_executions.bundles.layout import ExportFormat, ExportLevel
from prefect_executions.bundles.source import Source
from prefect_executions.bundles.zip_reader import TRUSTED_LIMITS, ZipEntry, ZipReader
from prefect_executions.bundles.zip_writer import CompressedData, ZipWriter, worth_deflating
from prefect_executions.crate.collection import CollectedCrate, collect
from prefect_executions.documents import ArchiveDocument, Part
from prefect_executions.errors import BundleError, RequestError
from prefect_executions.executions.record import Agent

if TYPE_CHECKING:
    from hashlib import _Hash

_IN_MEMORY = 8 << 20
"""Files up to this many bytes are read into memory, so that their checksum can precede their data."""


_WORTH_DEFLATING = 512
"""Smaller files are stored, because deflating saves nearly nothing."""


class ExportedBundle(Part):
    """An exported bundle, the digest of its manifest, and its files with another name in the export."""

    id: str
    manifest_sha256: str
    renamed: dict[str, str] | None = None
    """The path in the bundle of each file that a bag cannot name, by its path in the bag."""


class Export(ArchiveDocument):
    """The document beside the bundles in an export of several bundles, of parts of one, or with renamed files."""

    file_name: ClassVar[str] = "export.json"

    level: ExportLevel
    executions: tuple[ExportedBundle, ...]


@dataclass(frozen=True, kw_only=True)
class BundleToExport:
    """A sealed bundle to export.

    `absent` are its files that no longer exist, `inclusion` is its proof of inclusion in a checkpoint, and
    `annotations` is the document with its annotations.
    """

    id: str
    source: Source
    manifest_sha256: str
    finished: datetime | None
    absent: frozenset[str] = frozenset()
    inclusion: bytes | None = None
    annotations: bytes = b""


class Exporter:
    """An export that is being written; *write* receives its bytes in order.

    Raises:
        RequestError: If a crate is requested without the files that it names.
    """

    def __init__(
        self, write: Callable[[bytes], object], export_format: ExportFormat, level: ExportLevel, *, only: str | None
    ) -> None:
        """Begin an export of the single execution *only*, or, if that is None, of several."""
        if export_format is ExportFormat.CRATE and level is not ExportLevel.FULL:
            raise RequestError(
                f"a crate contains every file that {layout.CRATE} names: omit either --level {level} or --format crate"
            )
        self._zip = ZipWriter(write)
        self._format, self._level, self._only = export_format, level, only
        self._bag = f"{only or 'executions'}/" if export_format is ExportFormat.BAGIT else ""
        self._root = f"{self._bag}{BAG_PAYLOAD}" if self._bag else ""
        self._with_list = only is None or level is not ExportLevel.FULL
        """Whether `export.json` is written. It is not allowed in a bundle, so each bundle then has its own folder."""
        self._digests: dict[str, str] = {}
        self._size = 0
        self._exported: list[ExportedBundle] = []
        self._crates: list[CollectedCrate] = []
        self._finished: list[datetime] = []

    def add(self, bundle: BundleToExport) -> None:
        """Add a bundle; the caller adds bundles in the order of their ids.

        Raises:
            BundleError: If a file is missing or damaged; discard everything written so far.
        """
        copy = _BundleCopy(bundle, self._level, self._zip, self._record)
        renamed = stand_ins(copy.paths) if self._bag else {}
        self._with_list |= bool(renamed)
        at_root = self._only and self._format is not ExportFormat.ZIP and not self._with_list
        folder = self._root if at_root else f"{self._root}{bundle.id}/"
        copy.run(folder, renamed, folders=self._format is not ExportFormat.BAGIT)
        originals = {stored: path for path, stored in sorted(renamed.items())} or None
        exported = ExportedBundle(id=bundle.id, manifest_sha256=bundle.manifest_sha256, renamed=originals)
        self._exported.append(exported)
        self._finished += [bundle.finished] if bundle.finished else []
        if self._format is ExportFormat.CRATE and self._only is None:
            agent = Agent.from_json(b"".join(bundle.source.blocks(Agent.file_name)))
            self._crates.append(CollectedCrate(bundle.id, bundle.finished, agent))

    def close(self) -> int:
        """Write the files beside the bundles, and the directory; return the length of the zip."""
        if self._with_list:
            document = Export(level=self._level, executions=tuple(self._exported))
            self._add_beside(document.file_name, document.to_json())
        ids, newest = [bundle.id for bundle in self._exported], max(self._finished, default=None)
        if self._format is ExportFormat.CRATE and self._only is None:
            self._add_beside(layout.CRATE, collect(self._crates))
        if self._bag:
            for name, data in bag_tag_files(self._digests, self._size, ids, newest).items():
                _add(self._zip, self._bag + name, data)
        return self._zip.close()

    def _add_beside(self, name: str, data: bytes) -> None:
        self._record(self._root + name, sha256(data).hexdigest(), len(data))
        _add(self._zip, self._root + name, data)

    def _record(self, name: str, digest: str, size: int) -> None:
        if self._bag:
            self._digests[name.removeprefix(self._root)] = digest
            self._size += size


class _BundleCopy:
    """Copies one bundle to a folder of the zip; *record* receives the name, digest and size of each file."""

    def __init__(
        self,
        bundle: BundleToExport,
        level: ExportLevel,
        writer: ZipWriter,
        record: Callable[[str, str, int], None],
    ) -> None:
        self._bundle, self._source = bundle, bundle.source
        self._zip, self._record = writer, record
        self._folder = ""
        self._renamed: Mapping[str, str] = {}
        self._listed = self._read_manifest()
        outputs = layout.OUTPUTS + "/"
        self._beside = [
            path for path in self._source.files if not path.startswith(outputs) and _is_included(path, level)
        ]
        with_outputs = layout.OUTPUT_ZIP in self._beside
        zipped = [path for path in self._listed if with_outputs and path.startswith(outputs)]
        self.paths = frozenset([*self._beside, *zipped])
        """The paths in the bundle of all files to copy."""
        for path in self._listed:
            if path not in self.paths and path not in bundle.absent and _is_included(path, level):
                raise BundleError(f"execution {bundle.id} cannot be exported: {path} is missing")

    def run(self, folder: str, renamed: Mapping[str, str], *, folders: bool) -> None:
        """Copy all files to *folder*, some of them *renamed*; with *folders* also the empty folders."""
        self._folder, self._renamed = folder, renamed
        for path in sorted(self._beside):
            self._copy(path, self._source.files[path])
        if self._bundle.inclusion and layout.INCLUSION not in self._source.files:
            self._add_unlisted(layout.INCLUSION, self._bundle.inclusion)
        if self._bundle.annotations and layout.ANNOTATIONS not in self._source.files:
            self._add_unlisted(layout.ANNOTATIONS, self._bundle.annotations)
        if layout.OUTPUT_ZIP in self._beside:
            self._copy_outputs(folders=folders)

    def _name(self, path: str) -> str:
        return self._folder + self._renamed.get(path, path)

    def _copy(self, path: str, size: int) -> None:
        digest, name = sha256(), self._name(path)
        hashed = _hashed(self._source.blocks(path), digest)
        if size <= _IN_MEMORY:
            _add(self._zip, name, b"".join(hashed))
        else:
            first = next(hashed, b"")
            deflate = worth_deflating(name, first, least=_WORTH_DEFLATING)
            self._zip.add_stream(name, chain([first], hashed), size, deflate=deflate)
        expected = self._bundle.manifest_sha256 if path == layout.MANIFEST else self._listed.get(path)
        actual = digest.hexdigest()
        if actual != expected and (expected or path not in layout.UNLISTED):
            sealed_as = f"was sealed as {expected}" if expected else "is not in the manifest"
            raise self._damaged(f"{path} is {actual} and {sealed_as}")
        self._record(name, actual, size)

    def _add_unlisted(self, path: str, data: bytes) -> None:
        name = self._name(path)
        _add(self._zip, name, data)
        self._record(name, sha256(data).hexdigest(), len(data))

    def _copy_outputs(self, *, folders: bool) -> None:
        # output.zip was copied, and its digest checked, before this call.
        with self._source.open(layout.OUTPUT_ZIP) as stream:
            reader = ZipReader.open(stream, TRUSTED_LIMITS)
            for entry in sorted(reader.entries.values()):
                if not entry.is_folder:
                    self._copy_output(reader, entry)
                elif folders:
                    self._zip.add_folder(self._folder + entry.name)

    def _copy_output(self, reader: ZipReader, entry: ZipEntry) -> None:
        if entry.name not in self._listed:
            raise self._damaged(f"{layout.OUTPUT_ZIP} has {entry.name}, which the manifest does not list")
        packed = CompressedData(entry.method, entry.checksum, entry.packed, entry.size)
        self._zip.add_compressed(self._name(entry.name), reader.compressed_blocks(entry), packed)
        self._record(self._name(entry.name), self._listed[entry.name], entry.size)

    def _read_manifest(self) -> Mapping[str, str]:
        if layout.MANIFEST not in self._source.files:
            raise self._damaged(f"{layout.MANIFEST} is missing")
        data = b"".join(self._source.blocks(layout.MANIFEST))
        actual = sha256(data).hexdigest()
        if actual != self._bundle.manifest_sha256:
            raise self._damaged(f"{layout.MANIFEST} is {actual} and was sealed as {self._bundle.manifest_sha256}")
        return manifest.parse(data)

    def _damaged(self, fault: str) -> BundleError:
        return BundleError(
            f"execution {self._bundle.id} cannot be exported: {fault}; run 'executions verify {self._bundle.id}'"
        )


def _add(writer: ZipWriter, name: str, data: bytes) -> None:
    writer.add_bytes(name, data, deflate=worth_deflating(name, data, least=_WORTH_DEFLATING))


def absent_at_level(level: ExportLevel) -> Mapping[str, str]:
    """Return the path prefixes that an export of *level* omits, with the reason."""
    parts = {
        ExportLevel.FULL: (),
        ExportLevel.OUTPUTS: (layout.INPUTS + "/",),
        ExportLevel.METADATA: (layout.INPUTS + "/", layout.OUTPUTS + "/", layout.OUTPUT_ZIP),
    }
    return dict.fromkeys(parts[level], f"it was exported with the level '{level}'")


def _is_included(path: str, level: ExportLevel) -> bool:
    if path.startswith(layout.INPUTS + "/"):
        return level is ExportLevel.FULL
    return level is not ExportLevel.METADATA or not (path == layout.OUTPUT_ZIP or path.startswith(layout.OUTPUTS + "/"))


def _hashed(blocks: Iterator[bytes], digest: _Hash) -> Iterator[bytes]:
    for block in blocks:
        digest.update(block)
        yield block
