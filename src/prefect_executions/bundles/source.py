"""Sources that a bundle is read from: a folder, a zip, or a subfolder of either; `Source` is their protocol."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, Protocol, cast

from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.zip_reader import Limits, ZipEntry, ZipReader
from prefect_executions.errors import BundleError, NotFoundError
from prefect_executions.executions.record import DOCUMENTS, ExecutionRecord
from prefect_executions.seekable import SeekableFile

_BLOCK = 1 << 20

_BUFFER = 1 << 16

# A decompressed file that needs seeking stays in memory up to this size; a larger one goes to a temporary file.
_IN_MEMORY = 8 << 20


class Source(Protocol):
    """The files of a bundle, for reading."""

    @property
    def files(self) -> Mapping[str, int]:
        """The size of every file by its path in the bundle."""

    @property
    def irregular(self) -> tuple[str, ...]:
        """One sentence for each entry that is not a plain file, such as a link."""

    @property
    def empty_folders(self) -> tuple[str, ...]:
        """The path of each folder without a file or folder in it."""

    @property
    def absent(self) -> Mapping[str, str]:
        """The reason why a file, or a whole folder (``inputs/``), is legitimately absent, by its path."""

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield a file's content in blocks.

        Raises:
            BundleError: If it cannot be read, or its size or checksum is not the announced one.
        """

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading and seeking; the caller closes it.

        Raises:
            BundleError: If it cannot be read, or its size or checksum is not the announced one.
        """


def record_of(source: Source) -> ExecutionRecord:
    """Return the record in *source*.

    Raises:
        BundleError: If a document is missing or invalid; the message names it.
    """
    names = [kind.file_name for kind in DOCUMENTS.values() if kind.file_name in source.files]
    return ExecutionRecord.from_json({name: b"".join(source.blocks(name)) for name in names})


class FolderSource:
    """A bundle in a folder; links are not followed."""

    def __init__(self, folder: Path, absent: Mapping[str, str] | None = None, *, limits: Limits | None = None) -> None:
        """List the files; *limits* are those of a folder from a stranger.

        Raises:
            BundleError: If it cannot be read, or exceeds *limits*.
        """
        self._folder = folder
        self.absent: Mapping[str, str] = absent or {}
        sizes: dict[str, int] = {}
        irregular: list[str] = []
        empty: list[str] = []
        for number, (path, status) in enumerate(_walk(folder), start=1):
            if limits and number > limits.entries:
                raise BundleError(f"it has more than {limits.entries} files")
            if stat.S_ISDIR(status.st_mode):
                empty.append(path)
            elif stat.S_ISREG(status.st_mode):
                sizes[path] = status.st_size
            else:
                irregular.append(f"{path!r} is a link or a special file; a bundle has plain files only")
        self.files: Mapping[str, int] = dict(sorted(sizes.items()))
        self.irregular = tuple(sorted(irregular))
        self.empty_folders = tuple(sorted(empty))
        total = sum(sizes.values())
        if limits and total > limits.allowance:
            largest = max(sizes, key=sizes.__getitem__)
            raise BundleError(f"it has {total} bytes, most of them in {largest!r}; the limit is {limits.allowance}")

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield a file's content in blocks."""
        with self.open(path) as stream, _read_errors_of(path):
            while block := stream.read(_BLOCK):
                yield block

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading and seeking."""
        with _read_errors_of(path):
            descriptor = os.open(self._folder / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            return os.fdopen(descriptor, "rb")


class ZipSource:
    """A bundle in a zip, with its files at the root of the zip or in the only top folder."""

    absent: Mapping[str, str] = {}
    irregular: tuple[str, ...] = ()

    def __init__(self, stream: BinaryIO, limits: Limits, *, top: str | None = None) -> None:
        """Read the directory. Paths are relative to the folder *top*; by default, to the only top folder if any."""
        self._zip = ZipReader.open(stream, limits)
        files = {name: entry for name, entry in self._zip.entries.items() if not entry.is_folder}
        for entry in files.values():
            self._zip.data_offset(entry)
        self._zip.check_folders()
        top = _only_folder(files) if top is None else top
        self.empty_folders = tuple(sorted(folder.removeprefix(top) for folder in _empty_folders(self._zip.entries)))
        self._entries = {name.removeprefix(top): entry for name, entry in files.items()}
        self.files: Mapping[str, int] = {path: entry.size for path, entry in sorted(self._entries.items())}

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield a file's content in blocks."""
        return self._zip.blocks(self._entries[path], header_checked=True)

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading and seeking; a compressed file is decompressed first."""
        entry = self._entries[path]
        if entry.stored:
            window = _Window(self._zip.stream, self._zip.data_offset(entry), entry.size)
            return cast("BinaryIO", io.BufferedReader(window, _BUFFER))
        content = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - the caller closes it
        try:
            for block in self.blocks(path):
                content.write(block)
        except BaseException:
            content.close()
            raise
        content.seek(0)
        return cast("BinaryIO", content)


class _Window(SeekableFile):
    """A window of an open file; the file's position may change between two reads."""

    def __init__(self, stream: BinaryIO, begin: int, size: int) -> None:
        super().__init__(size)
        self._stream, self._begin = stream, begin

    def fetch(self, into: memoryview) -> int:
        self._stream.seek(self._begin + self.position)
        data = self._stream.read(min(len(into), self.left))
        into[: len(data)] = data
        return len(data)


class HeldSource:
    """A copy of a small source in memory, in which each file is read once."""

    def __init__(self, source: Source) -> None:
        """Read all files of *source*.

        Raises:
            BundleError: If one cannot be read.
        """
        self._held = {path: b"".join(source.blocks(path)) for path in source.files}
        self.files, self.irregular = source.files, source.irregular
        self.empty_folders, self.absent = source.empty_folders, source.absent

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield a file's content as one block."""
        yield self._held[path]

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading and seeking."""
        return io.BytesIO(self._held[path])


class SubfolderSource:
    """The files of another source below *prefix*, as a source."""

    irregular: tuple[str, ...] = ()

    def __init__(
        self,
        source: Source,
        prefix: str,
        files: Mapping[str, int] | None = None,
        empty_folders: tuple[str, ...] = (),
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        """Select the files of *source* below *prefix*, or *files* if the caller has listed them already.

        *renamed* gives the name below *prefix* of each file that has another path here.
        """
        self._source = source
        self._prefix = prefix
        self.absent: Mapping[str, str] = {}
        if files is None:
            files = {path.removeprefix(prefix): size for path, size in source.files.items() if path.startswith(prefix)}
        self.files: Mapping[str, int] = files
        self.empty_folders = empty_folders
        self.renamed = renamed or {}

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield a file's content in blocks."""
        return self._source.blocks(self._prefix + self.renamed.get(path, path))

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading and seeking."""
        return self._source.open(self._prefix + self.renamed.get(path, path))


class VerifiedSource:
    """A verified bundle. Each file that is read in blocks has the digest of its manifest, whatever changed since."""

    irregular: tuple[str, ...] = ()

    def __init__(self, source: Source, manifest_sha256: str | None) -> None:
        """Select the files of *source* that its manifest lists; the verification found the digest *manifest_sha256*.

        Raises:
            BundleError: If the manifest has another digest by now.
        """
        self._source = source
        self._manifest = b"".join(source.blocks(layout.MANIFEST))
        if sha256(self._manifest).hexdigest() != manifest_sha256:
            raise _changed(layout.MANIFEST)
        self._listed = manifest.parse(self._manifest)
        self.files: Mapping[str, int] = {
            path: size for path, size in source.files.items() if path in self._listed or path in layout.UNLISTED
        }
        self.empty_folders, self.absent = source.empty_folders, source.absent

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield a file's content in blocks; discard them if the last step raises.

        Raises:
            BundleError: If it cannot be read, or has been changed since the verification.
        """
        if path == layout.MANIFEST:
            yield self._manifest
            return
        digest = sha256()
        for block in self._source.blocks(path):
            digest.update(block)
            yield block
        if self._listed.get(path, digest.hexdigest()) != digest.hexdigest():
            raise _changed(path)

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading and seeking; the digest of what is read is not checked."""
        return self._source.open(path)


def _changed(path: str) -> BundleError:
    return BundleError(f"{path} was changed after the bundle was verified; verify it again")


@contextmanager
def open_source(path: Path, limits: Limits, *, top: str | None = None, folders_too: bool = False) -> Iterator[Source]:
    """Open the folder or zip at *path*; *top* is the folder of a zip as in `ZipSource`.

    *limits* hold for a zip, and for a folder if *folders_too*: a folder needs no limit if nothing copies it.

    Raises:
        NotFoundError: If *path* does not exist or cannot be opened.
        BundleError: If it is a file but not a valid zip, or exceeds *limits*.
    """
    if path.is_dir():
        yield FolderSource(path, limits=limits if folders_too else None)
        return
    if path.exists() and not path.is_file():  # opening a pipe waits until another program writes into it
        raise NotFoundError(f"{path} is neither a file nor a folder; save it as a file first")
    try:
        stream = path.open("rb")
    except OSError as error:
        raise NotFoundError(f"{path} cannot be opened: {error.strerror}") from error
    with stream:
        yield ZipSource(stream, limits, top=top)


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield each file, link and empty folder below *folder*, with its status."""
    waiting = [""]
    while waiting:
        above = waiting.pop()
        with _read_errors_of(above), os.scandir(folder / above) as scan:
            entries = list(scan)
            if not entries and above:
                yield above.removesuffix("/"), (folder / above).lstat()
            for entry in entries:
                path = f"{above}{entry.name}"
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(path + "/")
                else:
                    yield path, status


def hard_linked(folder: Path) -> Iterator[str]:
    """Yield each file below *folder* that also has a name outside of it, as a hard link."""
    inside: dict[tuple[int, int], list[str]] = {}
    links: dict[tuple[int, int], int] = {}
    for path, status in _walk(folder):
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            inside.setdefault((status.st_dev, status.st_ino), []).append(path)
            links[status.st_dev, status.st_ino] = status.st_nlink
    for file, paths in inside.items():
        if links[file] > len(paths):
            yield from paths


def _empty_folders(entries: Mapping[str, ZipEntry]) -> Iterator[str]:
    parents = {name.removesuffix("/").rpartition("/")[0] for name in entries}
    for name, entry in entries.items():
        if entry.is_folder and name.removesuffix("/") not in parents:
            yield name.removesuffix("/")


def _only_folder(files: Mapping[str, object]) -> str:
    tops = {name.partition("/")[0] for name in files if "/" in name}
    top = next(iter(tops)) + "/" if len(tops) == 1 else ""
    contains_all = top and all(name.startswith(top) for name in files)
    return top if contains_all and top.removesuffix("/") not in layout.FOLDERS else ""


@contextmanager
def _read_errors_of(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
