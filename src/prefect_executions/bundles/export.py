"""Exports sealed bundles as one zip: as folders, as a BagIt bag (RFC 8493), or as an RO-Crate.

Law: equal bundles give equal bytes, whenever and wherever they are exported. So new
entries are stored, not deflated (libraries deflate differently), and outputs are copied
from ``output.zip`` in compressed form. Every copied file is checked against the manifest,
and the manifest against the seal.

A bag is a folder ``data/``, the payload, with manifests of its digests beside it. Bags have
version 0.97, which `bagit.py` reads and writes completely: for 1.0 it does not decode
``%25``, so that a name with a percent sign would have two spellings.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar

from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.layout import ExportFormat, ExportLevel
from prefect_executions.bundles.source import Source, SubfolderSource
from prefect_executions.bundles.zip_reader import TRUSTED_LIMITS, ZipEntry, ZipReader
from prefect_executions.bundles.zip_writer import CompressedData, ZipWriter
from prefect_executions.crate.collection import CollectedCrate, collect
from prefect_executions.documents import ArchiveDocument, Part
from prefect_executions.errors import BundleError, NameRefusedError, RequestError
from prefect_executions.executions.record import Agent

if TYPE_CHECKING:
    from hashlib import _Hash

BAG_DECLARATION = "bagit.txt"
BAG_PAYLOAD = "data/"

_INFO = "bag-info.txt"
_FETCH = "fetch.txt"
_MANIFEST = re.compile(r"(tag)?manifest-(\w+)\.txt")
_LINE = re.compile(r"([0-9A-Fa-f]+)[ \t]+\*?(.+)")
_ENCODED = re.compile(r"%(0[DdAa]|25)")
_AMBIGUOUS = re.compile(r"%0[DdAa]")
_ALGORITHMS = ("md5", "sha1", "sha256", "sha512")
_LARGEST_TAG = 64 << 20

_IN_MEMORY = 8 << 20
"""Files up to this many bytes are read into memory, so that their checksum can precede their data."""


class ExportedBundle(Part):
    """An exported bundle and the digest of its manifest."""

    id: str
    manifest_sha256: str


class Export(ArchiveDocument):
    """The document beside the bundles in an export of several bundles, or of parts of one."""

    file_name: ClassVar[str] = "export.json"

    level: ExportLevel
    executions: tuple[ExportedBundle, ...]


@dataclass(frozen=True, kw_only=True)
class BundleToExport:
    """A sealed bundle to export.

    `absent` are its files that no longer exist, `inclusion` is its proof of inclusion in a checkpoint.
    """

    id: str
    source: Source
    manifest_sha256: str
    finished: datetime | None
    absent: frozenset[str] = frozenset()
    inclusion: bytes | None = None


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
        self._digests: dict[str, str] = {}
        self._size = 0
        self._exported: list[ExportedBundle] = []
        self._crates: list[CollectedCrate] = []

    def add(self, bundle: BundleToExport) -> None:
        """Add a bundle; the caller adds bundles in the order of their ids.

        Raises:
            BundleError: If a file is missing or damaged; discard everything written so far.
        """
        prefix = self._root + ("" if self._only and self._format is not ExportFormat.ZIP else f"{bundle.id}/")
        copy = _BundleCopy(bundle, self._level, self._zip, prefix, self._record)
        copy.run(folders=self._format is not ExportFormat.BAGIT)
        self._exported.append(ExportedBundle(id=bundle.id, manifest_sha256=bundle.manifest_sha256))
        if self._format is ExportFormat.CRATE and self._only is None:
            agent = Agent.from_json(b"".join(bundle.source.blocks(Agent.file_name)))
            self._crates.append(CollectedCrate(bundle.id, bundle.finished, agent))

    def close(self) -> int:
        """Write the files beside the bundles, and the directory; return the length of the zip."""
        if self._only is None or self._level is not ExportLevel.FULL:
            document = Export(level=self._level, executions=tuple(self._exported))
            self._add_beside(document.file_name, document.to_json())
        ids = [bundle.id for bundle in self._exported]
        if self._format is ExportFormat.CRATE and self._only is None:
            self._add_beside(layout.CRATE, collect(self._crates))
        if self._bag:
            for name, data in bag_tag_files(self._digests, self._size, ids).items():
                self._zip.add_bytes(self._bag + name, data, deflate=False)
        return self._zip.close()

    def _add_beside(self, name: str, data: bytes) -> None:
        self._record(self._root + name, sha256(data).hexdigest(), len(data))
        self._zip.add_bytes(self._root + name, data, deflate=False)

    def _record(self, name: str, digest: str, size: int) -> None:
        if self._bag:
            self._digests[name.removeprefix(self._root)] = digest
            self._size += size


class _BundleCopy:
    """Copies one bundle below *prefix* in the zip; *record* receives the name, digest and size of each file."""

    def __init__(
        self,
        bundle: BundleToExport,
        level: ExportLevel,
        writer: ZipWriter,
        prefix: str,
        record: Callable[[str, str, int], None],
    ) -> None:
        self._bundle, self._source = bundle, bundle.source
        self._level, self._zip, self._prefix, self._record = level, writer, prefix, record
        self._listed = self._read_manifest()

    def run(self, *, folders: bool) -> None:
        files, outputs = self._source.files, layout.OUTPUTS + "/"
        paths = [path for path in files if not path.startswith(outputs) and _is_included(path, self._level)]
        with_outputs = layout.OUTPUT_ZIP in paths
        present = {*paths, *((path for path in self._listed if path.startswith(outputs)) if with_outputs else ())}
        missing = [
            path
            for path in self._listed
            if path not in present and path not in self._bundle.absent and _is_included(path, self._level)
        ]
        if missing:
            raise BundleError(f"execution {self._bundle.id} cannot be exported: {missing[0]} is missing")
        for path in sorted(paths):
            self._copy(path, files[path])
        if self._bundle.inclusion and layout.INCLUSION not in files:
            self._add_inclusion(self._bundle.inclusion)
        if with_outputs:
            self._copy_outputs(folders=folders)

    def _copy(self, path: str, size: int) -> None:
        digest, name = sha256(), self._prefix + path
        hashed = _hashed(self._source.blocks(path), digest)
        if size <= _IN_MEMORY:
            self._zip.add_bytes(name, b"".join(hashed), deflate=False)
        else:
            self._zip.add_stream(name, hashed, size, deflate=False)
        expected = self._bundle.manifest_sha256 if path == layout.MANIFEST else self._listed.get(path)
        actual = digest.hexdigest()
        if actual != expected and (expected or path not in layout.UNLISTED):
            sealed_as = f"was sealed as {expected}" if expected else "is not in the manifest"
            raise self._damaged(f"{path} is {actual} and {sealed_as}")
        self._record(name, actual, size)

    def _add_inclusion(self, data: bytes) -> None:
        name = self._prefix + layout.INCLUSION
        self._zip.add_bytes(name, data, deflate=False)
        self._record(name, sha256(data).hexdigest(), len(data))

    def _copy_outputs(self, *, folders: bool) -> None:
        # output.zip was copied, and its digest checked, before this call.
        with self._source.open(layout.OUTPUT_ZIP) as stream:
            reader = ZipReader.open(stream, TRUSTED_LIMITS)
            for entry in sorted(reader.entries.values()):
                if not entry.is_folder:
                    self._copy_output(reader, entry)
                elif folders:
                    self._zip.add_folder(self._prefix + entry.name)

    def _copy_output(self, reader: ZipReader, entry: ZipEntry) -> None:
        if entry.name not in self._listed:
            raise self._damaged(f"{layout.OUTPUT_ZIP} has {entry.name}, which the manifest does not list")
        packed = CompressedData(entry.method, entry.checksum, entry.packed, entry.size)
        self._zip.add_compressed(self._prefix + entry.name, reader.compressed_blocks(entry), packed)
        self._record(self._prefix + entry.name, self._listed[entry.name], entry.size)

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


def bag_tag_files(digests: Mapping[str, str], size: int, names: Sequence[str]) -> dict[str, bytes]:
    """Return the tag files of a bag, those beside ``data/``.

    *digests* are the digests of the payload by path below ``data/``, *size* is its number of
    bytes, and *names* become the External-Identifiers. Equal payloads give equal bytes.

    Raises:
        NameRefusedError: If BagIt cannot represent one of the paths.
    """
    lines = [f"{digest}  {_encoded(BAG_PAYLOAD + path)}\n" for path, digest in sorted(digests.items())]
    identifiers = [f"External-Identifier: {name}\n" for name in names]
    tags = {
        BAG_DECLARATION: b"BagIt-Version: 0.97\nTag-File-Character-Encoding: UTF-8\n",
        _INFO: "".join([*identifiers, f"Payload-Oxum: {size}.{len(digests)}\n"]).encode(),
        "manifest-sha256.txt": "".join(lines).encode(),
    }
    tag_manifest = "".join(f"{sha256(data).hexdigest()}  {name}\n" for name, data in sorted(tags.items()))
    return tags | {"tagmanifest-sha256.txt": tag_manifest.encode()}


def bag_payload(bag: Source) -> SubfolderSource:
    """Verify every file of *bag* against its manifests and return the payload.

    Raises:
        BundleError: If a digest is wrong, a file is missing or unlisted, or the bag refers to files elsewhere.
    """
    if _FETCH in bag.files:
        raise BundleError(f"{_FETCH}: the bag refers to files elsewhere, which are never fetched")
    manifests = {path: match for path in bag.files if (match := _MANIFEST.fullmatch(path))}
    unsupported = [path for path, match in manifests.items() if match[2] not in _ALGORITHMS]
    if unsupported or not any(match[1] is None for match in manifests.values()):
        supported = ", ".join(_ALGORITHMS)
        raise BundleError(
            f"{unsupported[0] if unsupported else 'the bag'}: a bag needs a manifest, and only of {supported}"
        )
    listed = {path: dict(_listed(path, _text(bag, path))) for path in manifests}
    claims: dict[str, list[tuple[str, str, str]]] = {}
    for name, digests in listed.items():
        for path, digest in digests.items():
            claims.setdefault(path, []).append((manifests[name][2], digest, name))
    _check_complete(bag, {path: set(digests) for path, digests in listed.items() if manifests[path][1] is None})
    for path, path_claims in claims.items():
        _check_digests(bag, path, path_claims)
    return SubfolderSource(bag, BAG_PAYLOAD)


def _check_complete(bag: Source, listed: Mapping[str, set[str]]) -> None:
    present = {path for path in bag.files if path.startswith(BAG_PAYLOAD)}
    for name, paths in listed.items():
        for path in sorted(present ^ paths):
            fault = "not listed in" if path in present else "missing and listed in"
            raise BundleError(f"{path!r} is {fault} {name} of the bag")


def _check_digests(bag: Source, path: str, claims: Sequence[tuple[str, str, str]]) -> None:
    if path not in bag.files:
        raise BundleError(f"{path!r} is missing and listed in {claims[0][2]} of the bag")
    digests = {algorithm: hashlib.new(algorithm, usedforsecurity=False) for algorithm, _, _ in claims}
    for block in bag.blocks(path):
        for digest in digests.values():
            digest.update(block)
    for algorithm, expected, name in claims:
        if digests[algorithm].hexdigest() != expected:
            raise BundleError(f"{path!r} is {digests[algorithm].hexdigest()}; {name} of the bag says {expected}")


def _text(bag: Source, path: str) -> str:
    if bag.files[path] > _LARGEST_TAG:
        raise BundleError(f"{path} has {bag.files[path]} bytes; the limit for it is {_LARGEST_TAG}")
    try:
        return b"".join(bag.blocks(path)).decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not UTF-8") from error


def _listed(manifest: str, text: str) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text.removesuffix("\n")), start=1):
        match = _LINE.fullmatch(line)
        if not match:
            raise BundleError(f"line {number} of {manifest} is not 'digest path'")
        path = _ENCODED.sub(lambda code: chr(int(code[1], 16)), match[2].removeprefix("./"))
        if path in seen:
            raise BundleError(f"line {number} of {manifest}: {path!r} is listed twice")
        seen.add(path)
        yield path, match[1].lower()


def _encoded(path: str) -> str:
    if _AMBIGUOUS.search(path):
        raise NameRefusedError(f"{path!r} cannot be in a bag: BagIt decodes its %0A or %0D to a line break")
    return path.replace("\r", "%0D").replace("\n", "%0A")
