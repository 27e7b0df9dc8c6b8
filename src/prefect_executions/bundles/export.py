"""Sealed bundles as one zip that leaves the house: plain, as a bag, or as a crate.

Law: the same bundles give the same bytes, whenever and wherever they are exported. So
what is written anew is stored, not deflated (libraries deflate differently), and
outputs are copied out of ``output.zip`` as they are packed there. What is copied
is checked: each file against the manifest, and the manifest against the seal.

A bag (BagIt, RFC 8493): a folder ``data/`` and beside it the digests of all that lies in it.

Written in version 0.97, which is what `bagit.py` writes and reads in full: of 1.0 it
does not decode ``%25``, so a name with a percent sign would have two spellings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar

from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.layout import ExportFormat, ExportLevel
from prefect_executions.bundles.source import Source
from prefect_executions.bundles.zip_reader import TRUSTED_LIMITS, ZipEntry, ZipReader
from prefect_executions.bundles.zip_writer import CompressedData, ZipWriter
from prefect_executions.crate import writer as crate_writer
from prefect_executions.documents import Document, Part
from prefect_executions.errors import BundleError, RequestError

if TYPE_CHECKING:
    from hashlib import _Hash


import hashlib
import re
from collections.abc import Sequence

from prefect_executions.bundles.source import SubfolderSource
from prefect_executions.errors import NameRefusedError

BAG_DECLARATION = "bagit.txt"
BAG_PAYLOAD = "data/"

_INFO = "bag-info.txt"
_FETCH = "fetch.txt"
_MANIFEST = re.compile(r"(tag)?manifest-(\w+)\.txt")
_LINE = re.compile(r"([0-9A-Fa-f]+)[ \t]+\*?(.+)")
_CODED = re.compile(r"%(0[DdAa]|25)")
_MISTAKEN = re.compile(r"%0[DdAa]")
_ALGORITHMS = ("md5", "sha1", "sha256", "sha512")
_LARGEST_TAG = 64 << 20


def bag_tag_files(digests: Mapping[str, str], size: int, names: Sequence[str]) -> dict[str, bytes]:
    """Return the files beside ``data/``.

    *digests* are those of the payload by path below ``data/``, *size* its bytes, and
    *names* say outside of the bag what it holds. The same payload gives the same bytes.

    Raises:
        NameRefusedError: If BagIt has no way to write one of the paths.
    """
    lines = [f"{digest}  {_coded(BAG_PAYLOAD + path)}\n" for path, digest in sorted(digests.items())]
    told = [f"External-Identifier: {name}\n" for name in names]
    tags = {
        BAG_DECLARATION: b"BagIt-Version: 0.97\nTag-File-Character-Encoding: UTF-8\n",
        _INFO: "".join([*told, f"Payload-Oxum: {size}.{len(digests)}\n"]).encode(),
        "manifest-sha256.txt": "".join(lines).encode(),
    }
    listed = "".join(f"{sha256(data).hexdigest()}  {name}\n" for name, data in sorted(tags.items()))
    return tags | {"tagmanifest-sha256.txt": listed.encode()}


def bag_payload(bag: Source) -> SubfolderSource:
    """Return the payload of *bag* when every file in it has the digests that its manifests say.

    Raises:
        BundleError: If a digest is wrong, a file is missing or listed nowhere, or something is to be fetched.
    """
    if _FETCH in bag.files:
        raise BundleError(f"{_FETCH}: the bag wants files from elsewhere to be fetched; nothing is")
    manifests = {path: found for path in bag.files if (found := _MANIFEST.fullmatch(path))}
    unknown = [path for path, found in manifests.items() if found[2] not in _ALGORITHMS]
    if unknown or not any(found[1] is None for found in manifests.values()):
        known = ", ".join(_ALGORITHMS)
        raise BundleError(
            f"{unknown[0] if unknown else 'the bag'}: there must be a manifest of {known}, and of no other"
        )
    listed = {path: dict(_listed(path, _text(bag, path))) for path in manifests}
    wanted: dict[str, list[tuple[str, str, str]]] = {}
    for name, digests in listed.items():
        for path, digest in digests.items():
            wanted.setdefault(path, []).append((manifests[name][2], digest, name))
    _check_complete(bag, {path: set(digests) for path, digests in listed.items() if manifests[path][1] is None})
    for path, told in wanted.items():
        _check(bag, path, told)
    return SubfolderSource(bag, BAG_PAYLOAD)


def _check_complete(bag: Source, listed: Mapping[str, set[str]]) -> None:
    there = {path for path in bag.files if path.startswith(BAG_PAYLOAD)}
    for name, paths in listed.items():
        for path in sorted(there ^ paths):
            fault = "not listed in" if path in there else "missing and listed in"
            raise BundleError(f"{path!r} is {fault} {name} of the bag")


def _check(bag: Source, path: str, told: Sequence[tuple[str, str, str]]) -> None:
    if path not in bag.files:
        raise BundleError(f"{path!r} is missing and listed in {told[0][2]} of the bag")
    digests = {name: hashlib.new(name, usedforsecurity=False) for name, _, _ in told}
    for block in bag.blocks(path):
        for digest in digests.values():
            digest.update(block)
    for name, expected, source in told:
        if digests[name].hexdigest() != expected:
            raise BundleError(f"{path!r} is {digests[name].hexdigest()}; {source} of the bag says {expected}")


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
        found = _LINE.fullmatch(line)
        if not found:
            raise BundleError(f"line {number} of {manifest} is not 'digest path'")
        path = _CODED.sub(lambda coded: chr(int(coded[1], 16)), found[2].removeprefix("./"))
        if path in seen:
            raise BundleError(f"line {number} of {manifest}: {path!r} is there twice")
        seen.add(path)
        yield path, found[1].lower()


def _coded(path: str) -> str:
    if _MISTAKEN.search(path):
        raise NameRefusedError(f"{path!r} cannot be told by BagIt, which takes its %0A or %0D for a line break")
    return path.replace("\r", "%0D").replace("\n", "%0A")


_WHOLE = 8 << 20
"""Bytes of a file up to which it is read as a whole, so that its checksum can stand before it."""


class ExportedBundle(Part):
    """One bundle of an export, by the digest of its manifest."""

    id: str
    manifest_sha256: str


class Export(Document):
    """What an export of several bundles, or of parts of one, holds; it lies beside the bundles."""

    file_name: ClassVar[str] = "export.json"

    level: ExportLevel
    executions: tuple[ExportedBundle, ...]


@dataclass(frozen=True, kw_only=True)
class BundleToExport:
    """A sealed bundle that is to be exported.

    `absent` are the files that nobody keeps any more, `inclusion` is the proof that it is in a checkpoint.
    """

    id: str
    source: Source
    manifest_sha256: str
    finished: datetime | None
    absent: frozenset[str] = frozenset()
    inclusion: bytes | None = None


class Exporter:
    """An export in the making; *write* takes its bytes in order.

    Raises:
        RequestError: If a crate is asked for without the files that it names.
    """

    def __init__(
        self, write: Callable[[bytes], object], form: ExportFormat, level: ExportLevel, *, only: str | None
    ) -> None:
        """Begin an export of the execution *only*, or of several."""
        if form is ExportFormat.CRATE and level is not ExportLevel.FULL:
            raise RequestError(
                f"a crate holds all files that {layout.CRATE} names: leave --level {level}, or --format crate"
            )
        self._zip = ZipWriter(write)
        self._form, self._level, self._only = form, level, only
        self._bag = f"{only or 'executions'}/" if form is ExportFormat.BAGIT else ""
        self._root = f"{self._bag}{BAG_PAYLOAD}" if self._bag else ""
        self._digests: dict[str, str] = {}
        self._size = 0
        self._left: list[ExportedBundle] = []
        self._finished: list[datetime] = []

    def add(self, bundle: BundleToExport) -> None:
        """Add a bundle; the caller adds them in the order of their ids.

        Raises:
            BundleError: If a file is missing or damaged; nothing that was written so far is to be used.
        """
        place = self._root + ("" if self._only and self._form is not ExportFormat.ZIP else f"{bundle.id}/")
        _Copy(bundle, self._level, self._zip, place, self._tell).run(folders=self._form is not ExportFormat.BAGIT)
        self._left.append(ExportedBundle(id=bundle.id, manifest_sha256=bundle.manifest_sha256))
        self._finished += [bundle.finished] if bundle.finished else []

    def close(self) -> int:
        """Write what stands beside the bundles, and the directory; return the length of the zip."""
        if self._only is None or self._level is not ExportLevel.FULL:
            told = Export(level=self._level, executions=tuple(self._left))
            self._beside(told.file_name, told.to_json())
        if self._form is ExportFormat.CRATE and self._only is None:
            ids = [one.id for one in self._left]
            self._beside(layout.CRATE, crate_writer.collect(ids, max(self._finished, default=None)))
        if self._bag:
            for name, data in bag_tag_files(self._digests, self._size, [one.id for one in self._left]).items():
                self._zip.add_bytes(self._bag + name, data, deflate=False)
        return self._zip.close()

    def _beside(self, name: str, data: bytes) -> None:
        self._tell(self._root + name, sha256(data).hexdigest(), len(data))
        self._zip.add_bytes(self._root + name, data, deflate=False)

    def _tell(self, name: str, digest: str, size: int) -> None:
        if self._bag:
            self._digests[name.removeprefix(self._root)] = digest
            self._size += size


class _Copy:
    """The copying of one bundle to its *place* in the zip."""

    def __init__(
        self,
        bundle: BundleToExport,
        level: ExportLevel,
        writer: ZipWriter,
        place: str,
        tell: Callable[[str, str, int], None],
    ) -> None:
        self._bundle, self._source = bundle, bundle.source
        self._level, self._zip, self._place, self._tell = level, writer, place, tell
        self._listed = self._read_manifest()

    def run(self, *, folders: bool) -> None:
        files, outputs = self._source.files, layout.OUTPUTS + "/"
        paths = [path for path in files if not path.startswith(outputs) and _leaves(path, self._level)]
        zipped = layout.OUTPUT_ZIP in paths
        there = {*paths, *((path for path in self._listed if path.startswith(outputs)) if zipped else ())}
        missing = [
            path
            for path in self._listed
            if path not in there and path not in self._bundle.absent and _leaves(path, self._level)
        ]
        if missing:
            raise BundleError(f"execution {self._bundle.id} cannot be exported: {missing[0]} is missing")
        for path in sorted(paths):
            self._copy(path, files[path])
        if self._bundle.inclusion and layout.INCLUSION not in files:
            self._add_inclusion(self._bundle.inclusion)
        if zipped:
            self._copy_outputs(folders=folders)

    def _copy(self, path: str, size: int) -> None:
        digest, name = sha256(), self._place + path
        hashed = _hashed(self._source.blocks(path), digest)
        if size <= _WHOLE:
            self._zip.add_bytes(name, b"".join(hashed), deflate=False)
        else:
            self._zip.add_stream(name, hashed, size, deflate=False)
        expected = self._bundle.manifest_sha256 if path == layout.MANIFEST else self._listed.get(path)
        found = digest.hexdigest()
        if found != expected and (expected or path not in layout.UNLISTED):
            raise self._damaged(f"{path} is {found} and was sealed as {expected or 'nothing'}")
        self._tell(name, found, size)

    def _add_inclusion(self, data: bytes) -> None:
        name = self._place + layout.INCLUSION
        self._zip.add_bytes(name, data, deflate=False)
        self._tell(name, sha256(data).hexdigest(), len(data))

    def _copy_outputs(self, *, folders: bool) -> None:
        # output.zip was copied, and its digest checked, before.
        with self._source.open(layout.OUTPUT_ZIP) as stream:
            reader = ZipReader.open(stream, TRUSTED_LIMITS)
            for entry in sorted(reader.entries.values()):
                if not entry.is_folder:
                    self._copy_output(reader, entry)
                elif folders:
                    self._zip.add_folder(self._place + entry.name)

    def _copy_output(self, reader: ZipReader, entry: ZipEntry) -> None:
        if entry.name not in self._listed:
            raise self._damaged(f"{layout.OUTPUT_ZIP} has {entry.name}, which the manifest does not list")
        packed = CompressedData(entry.method, entry.checksum, entry.packed, entry.size)
        self._zip.add_compressed(self._place + entry.name, reader.compressed_blocks(entry), packed)
        self._tell(self._place + entry.name, self._listed[entry.name], entry.size)

    def _read_manifest(self) -> Mapping[str, str]:
        if layout.MANIFEST not in self._source.files:
            raise self._damaged(f"{layout.MANIFEST} is missing")
        data = b"".join(self._source.blocks(layout.MANIFEST))
        found = sha256(data).hexdigest()
        if found != self._bundle.manifest_sha256:
            raise self._damaged(f"{layout.MANIFEST} is {found} and was sealed as {self._bundle.manifest_sha256}")
        return manifest.parse(data)

    def _damaged(self, what: str) -> BundleError:
        return BundleError(
            f"execution {self._bundle.id} cannot be exported: {what}. 'executions verify {self._bundle.id}' tells more."
        )


def absent_at_level(level: ExportLevel) -> Mapping[str, str]:
    """Return why what begins with a path is not in an export of *level*."""
    parts = {
        ExportLevel.FULL: (),
        ExportLevel.OUTPUTS: (layout.INPUTS + "/",),
        ExportLevel.METADATA: (layout.INPUTS + "/", layout.OUTPUTS + "/", layout.OUTPUT_ZIP),
    }
    return dict.fromkeys(parts[level], f"it was exported with the level '{level}'")


def _leaves(path: str, level: ExportLevel) -> bool:
    if path.startswith(layout.INPUTS + "/"):
        return level is ExportLevel.FULL
    return level is not ExportLevel.METADATA or not (path == layout.OUTPUT_ZIP or path.startswith(layout.OUTPUTS + "/"))


def _hashed(blocks: Iterator[bytes], digest: _Hash) -> Iterator[bytes]:
    for block in blocks:
        digest.update(block)
        yield block
