"""Where a bundle can be read from: a folder, a zip of that folder, or what another room hands in."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, Protocol, cast

from prefect_executions.bundles import layout
from prefect_executions.bundles.zip_reader import Limits, ZipReader
from prefect_executions.errors import BundleError, NotFoundError
from prefect_executions.executions.record import DOCUMENTS, ExecutionRecord
from prefect_executions.seekable import SeekableFile

_BLOCK = 1 << 20

_BUFFER = 1 << 16

# What is unpacked to be read here and there stays in memory up to this size, and goes to a file beyond.
_IN_MEMORY = 8 << 20


class Source(Protocol):
    """A bundle to be read."""

    @property
    def files(self) -> Mapping[str, int]:
        """The size of every file, by its path in the bundle."""

    @property
    def irregular(self) -> tuple[str, ...]:
        """One sentence for each thing that is there and no plain file."""

    @property
    def absent(self) -> Mapping[str, str]:
        """Why a file, or all of a folder (``inputs/``), is not kept there, by its path."""

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield a file's content in blocks.

        Raises:
            BundleError: If it cannot be read or is not what was announced.
        """

    def open(self, path: str) -> BinaryIO:
        """Open a file to be read here and there; the caller closes it.

        Raises:
            BundleError: If it cannot be read or is not what was announced.
        """


def record_of(source: Source) -> ExecutionRecord:
    """Return the record in *source*.

    Raises:
        BundleError: If a document is missing or invalid; the message names it.
    """
    names = [kind.file_name for kind in DOCUMENTS.values() if kind.file_name in source.files]
    return ExecutionRecord.from_json({name: b"".join(source.blocks(name)) for name in names})


class FolderSource:
    """A bundle in a folder; no link is followed."""

    def __init__(self, folder: Path, absent: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self.absent: Mapping[str, str] = absent or {}
        sizes: dict[str, int] = {}
        irregular: list[str] = []
        for path, told in _walk(folder):
            if stat.S_ISREG(told.st_mode):
                sizes[path] = told.st_size
            else:
                irregular.append(f"{path!r} is a link or a special file; a bundle holds plain files only")
        self.files: Mapping[str, int] = dict(sorted(sizes.items()))
        self.irregular = tuple(sorted(irregular))

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield a file's content in blocks."""
        with self.open(path) as stream, _naming(path):
            while block := stream.read(_BLOCK):
                yield block

    def open(self, path: str) -> BinaryIO:
        """Open a file to be read here and there."""
        with _naming(path):
            descriptor = os.open(self._folder / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            return os.fdopen(descriptor, "rb")


class ZipSource:
    """A bundle in a zip, with the bundle's files at its root or in its only folder."""

    absent: Mapping[str, str] = {}
    irregular: tuple[str, ...] = ()

    def __init__(self, stream: BinaryIO, limits: Limits, *, top: str | None = None) -> None:
        """Read the directory; the files are named below the folder *top*, the only one where that is not said."""
        self._zip = ZipReader.open(stream, limits)
        files = {name: entry for name, entry in self._zip.entries.items() if not entry.is_folder}
        for entry in files.values():
            self._zip.data_offset(entry)
        top = _only_folder(files) if top is None else top
        self._entries = {name.removeprefix(top): entry for name, entry in files.items()}
        self.files: Mapping[str, int] = {path: entry.size for path, entry in sorted(self._entries.items())}

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield a file's content in blocks."""
        return self._zip.blocks(self._entries[path])

    def open(self, path: str) -> BinaryIO:
        """Open a file to be read here and there; one that is packed is unpacked first."""
        entry = self._entries[path]
        if entry.stored:
            window = _Window(self._zip.stream, self._zip.data_offset(entry), entry.size)
            return cast("BinaryIO", io.BufferedReader(window, _BUFFER))
        unpacked = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - the caller closes it
        try:
            for block in self.blocks(path):
                unpacked.write(block)
        except BaseException:
            unpacked.close()
            raise
        unpacked.seek(0)
        return cast("BinaryIO", unpacked)


class _Window(SeekableFile):
    """A piece of a file that is open already; others may read from it in between."""

    def __init__(self, stream: BinaryIO, begin: int, size: int) -> None:
        super().__init__(size)
        self._stream, self._begin = stream, begin

    def fetch(self, into: memoryview) -> int:
        self._stream.seek(self._begin + self.position)
        found = self._stream.read(min(len(into), self.left))
        into[: len(found)] = found
        return len(found)


class SubfolderSource:
    """What of a source lies below *prefix*, as a source of its own."""

    irregular: tuple[str, ...] = ()

    def __init__(self, source: Source, prefix: str, files: Mapping[str, int] | None = None) -> None:
        """Look at *source* below *prefix*; *files*, where the caller knows them, are those there."""
        self._source = source
        self._prefix = prefix
        self.absent: Mapping[str, str] = {}
        if files is None:
            files = {path.removeprefix(prefix): size for path, size in source.files.items() if path.startswith(prefix)}
        self.files: Mapping[str, int] = files

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield a file's content in blocks."""
        return self._source.blocks(self._prefix + path)

    def open(self, path: str) -> BinaryIO:
        """Open a file to be read here and there."""
        return self._source.open(self._prefix + path)


@contextmanager
def open_source(place: Path, limits: Limits, *, top: str | None = None) -> Iterator[Source]:
    """Open the folder or zip at *place*; in a zip the files are named below *top*, its only folder where unsaid.

    Raises:
        NotFoundError: If there is nothing.
        BundleError: If it is a file and not a sound zip.
    """
    if place.is_dir():
        yield FolderSource(place)
        return
    try:
        stream = place.open("rb")
    except OSError as error:
        raise NotFoundError(f"{place} cannot be opened: {error.strerror}") from error
    with stream:
        yield ZipSource(stream, limits, top=top)


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    waiting = [""]
    while waiting:
        above = waiting.pop()
        with _naming(above), os.scandir(folder / above) as entries:
            for entry in entries:
                path = f"{above}{entry.name}"
                told = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(told.st_mode):
                    waiting.append(path + "/")
                else:
                    yield path, told


def _only_folder(files: Mapping[str, object]) -> str:
    tops = {name.partition("/")[0] for name in files if "/" in name}
    top = next(iter(tops)) + "/" if len(tops) == 1 else ""
    inside = top and all(name.startswith(top) for name in files)
    return top if inside and top.removesuffix("/") not in layout.FOLDERS else ""


@contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
