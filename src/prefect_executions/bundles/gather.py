"""Gathers outputs, the slow half of sealing: the digest of each file and ``output.zip``, reading each byte once.

It runs inside the flow, as part of the user's time. Its result is a file in the
scratch folder, so that another process can seal.

Memory does not grow with the size of files: blocks of 1 MiB are hashed in threads
(hashlib releases the GIL) while they are written.

Law: no open descriptor changes a file after it was read. A file that is open or mapped for writing, or
that has a hard link outside the bundle, is replaced by a copy of the hashed bytes, written in the same
pass. Later writes go to the replaced inode, which is no longer in the bundle.
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from prefect_executions.bundles import layout
from prefect_executions.bundles.data_folder import collect_outputs, has_data_folders
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.sanitize import FolderListing, sanitize
from prefect_executions.bundles.zip_writer import ZipWriter, worth_deflating
from prefect_executions.capture.logfiles import is_open_for_writing
from prefect_executions.errors import BundleError, SealedError
from prefect_executions.executions.record import BundleFile, ExecuteRequest
from prefect_executions.fsync import sync
from prefect_executions.lifecycle.history import OutputFile
from prefect_executions.mediatypes import media_type
from prefect_executions.tracepoints import TracePoint, trace_point

_GATHERED = "gathered.json"

_BLOCK = 1 << 20

# Smaller files are stored: deflating saves a few kB each, and for 10,000 files
# takes longer than everything else.
_WORTH_DEFLATING = 16 << 10

_LONG_TO_SYNC, _MANY_TO_SYNC = 1 << 20, 64

# Passing a smaller block to a thread takes longer than hashing it.
_WORTH_A_THREAD = 64 << 10


@dataclass(frozen=True)
class Gathered:
    """The result of `gather`."""

    files: tuple[BundleFile, ...]
    """The files under ``outputs/``."""
    inputs_and_code: tuple[BundleFile, ...]
    """The files under ``inputs/`` and ``code/``."""
    output_zip: BundleFile
    notes: tuple[str, ...]
    """One sentence for the history on each file that was changed or left out."""

    @property
    def outputs(self) -> tuple[OutputFile, ...]:
        """The outputs as `jobStatus.json` lists them."""
        return tuple(
            OutputFile(path=file.path, sha256=file.sha256, size=file.size, media_type=media_type(file.path))
            for file in self.files
        )


def gather(bundle: OpenBundle, *, stop: Callable[[], bool] = lambda: False) -> Gathered:
    """Hash all outputs, inputs and code, write ``output.zip`` and save the result in the scratch folder.

    A second call returns the saved result, unless a file has changed since. Call it under
    the bundle's lock. A file that cannot be read is noted and left out, so that one bad
    file does not lose the others. *stop* is called between blocks and aborts when it
    returns true.

    Raises:
        SealedError: If the bundle is sealed and the scratch folder has no saved result.
        BundleError: If *stop* returned true, or the disk is full. The bundle is unchanged
            and the call may be repeated.
    """
    if bundle.sealed:
        earlier = load_gathered(bundle)
        if earlier is None:
            raise SealedError(f"the bundle {bundle.id} is sealed; its jobStatus.json lists its outputs")
        return earlier
    try:
        notes = collect_outputs(bundle)
        listings, changes = sanitize(bundle)
        return _saved_result(bundle, listings) or _Gathering(bundle, stop, listings).run((*notes, *changes))
    except OSError as error:
        raise BundleError(
            f"the outputs of {bundle.id} cannot be gathered: {error}; free some space and try again"
        ) from error


def load_gathered(bundle: OpenBundle) -> Gathered | None:
    """Return the saved result of an earlier `gather`, or None."""
    saved = _load(bundle)
    return None if saved is None else _from_json(saved)


class _Gathering:
    """The state of one call of `gather`."""

    def __init__(self, bundle: OpenBundle, stop: Callable[[], bool], listings: Mapping[str, FolderListing]) -> None:
        self.bundle = bundle
        self.listings = listings
        self.root = str(bundle.folder)
        self.stop = stop
        self.notes: list[str] = []
        self.stamps: list[_Stamp] = []
        self.held = _held_before(bundle)
        # The data folders of scripts hold hard links to the outputs. They go with the scratch folder.
        self.links_count = not has_data_folders(bundle)

    def run(self, notes: tuple[str, ...]) -> Gathered:
        temporary = self.bundle.scratch / "output.zip.new"
        try:
            with ThreadPoolExecutor(2, "gather") as self.pool, temporary.open("wb", buffering=0) as stream:
                outputs, output_zip = self._zip(stream.fileno())
                inputs_and_code = tuple(self._inputs_and_code())
            sync(self._slow_to_sync(temporary, output_zip, inputs_and_code))
            trace_point(TracePoint.ZIP_WRITTEN, self.bundle.id)
            temporary.replace(self.bundle.paths.output_zip)
            trace_point(TracePoint.ZIP_KEPT, self.bundle.id)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        kept = {file.path for file in (*outputs, *inputs_and_code)}
        held = sorted(self.held & kept)
        still_open = (f"{path} was still open for writing; the record has its content at that time" for path in held)
        notes = (*notes, *self.notes, *still_open, *_changed_inputs(self.bundle, inputs_and_code))
        gathered = Gathered(outputs, inputs_and_code, output_zip, notes)
        _save(self.bundle, gathered, self.stamps, held)
        return gathered

    def _slow_to_sync(self, temporary: Path, output_zip: BundleFile, others: Sequence[BundleFile]) -> Iterator[Path]:
        """Yield the files whose fsync takes long; sealing, which must be fast, syncs the others."""
        if output_zip.size >= _LONG_TO_SYNC:
            yield temporary
        for file in others:
            if file.size >= _LONG_TO_SYNC or len(others) > _MANY_TO_SYNC:
                yield self.bundle.folder / file.path

    def _zip(self, descriptor: int) -> tuple[tuple[BundleFile, ...], BundleFile]:
        digest = _Digest(self.pool)

        def write(data: bytes) -> None:
            digest.update(data)
            _write_all(descriptor, data)

        writer = ZipWriter(write)
        listing = self.listings[layout.OUTPUTS]
        self.notes += listing.unreadable
        for folder in listing.empty_folders:
            writer.add_folder(folder)
            self.stamps.append((folder + "/", 0, 0))
        files = [file for path in listing.files if (file := self._read(path, writer))]
        size = writer.close()
        return tuple(files), BundleFile(layout.OUTPUT_ZIP, digest.finish(), size)

    def _inputs_and_code(self) -> Iterator[BundleFile]:
        for top in (layout.CODE, layout.INPUTS):
            self.notes += self.listings[top].unreadable
            for path in self.listings[top].files:
                if file := self._read(path, None):
                    yield file

    def _read(self, path: str, writer: ZipWriter | None) -> BundleFile | None:
        self._check_stop()
        descriptor = -1
        try:
            descriptor = _open(f"{self.root}/{path}")
            status = os.fstat(descriptor)
            first = os.read(descriptor, min(status.st_size, _BLOCK))
        except OSError as error:
            self.notes.append(f"{path} cannot be read and is left out: {error.strerror}")
            if descriptor >= 0:
                os.close(descriptor)
            return None
        copy = None
        try:
            copy = self._copy_if_shared(path, descriptor, status)
            if len(first) < status.st_size:
                file = self._stream(_Reading(path, descriptor, status.st_size, first), writer, copy)
            else:
                file = self._whole(path, first, writer, copy)
            replaced = copy is not None and copy.take_place()
        finally:
            os.close(descriptor)
            if copy is not None:
                copy.close()
            trace_point(TracePoint.FILE_READ, self.bundle.id, path)
        # A later change also changes the stamp, so the next `gather` notices it.
        self.stamps.append((path, file.size if replaced else status.st_size, status.st_mtime_ns))
        return file

    def _copy_if_shared(self, path: str, descriptor: int, status: os.stat_result) -> _Copy | None:
        """Return a copy to fill if others may write to the file later."""
        if is_open_for_writing(descriptor):
            self.held.add(path)
        elif status.st_nlink == 1 or not self.links_count or status.st_nlink == self._links_inside[status.st_ino]:
            return None
        return _Copy(self.bundle, path, status)

    @cached_property
    def _links_inside(self) -> Counter[int]:
        """How many names each file with several names has in the bundle."""
        names: Counter[int] = Counter()
        for path in (path for listing in self.listings.values() for path in listing.files):
            with suppress(OSError):  # it was removed since it was listed
                names[os.lstat(f"{self.root}/{path}").st_ino] += 1
        return names

    def _whole(self, path: str, data: bytes, writer: ZipWriter | None, copy: _Copy | None) -> BundleFile:
        if copy is not None:
            copy.write(data)
        if writer:
            writer.add_bytes(path, data, deflate=worth_deflating(path, data, least=_WORTH_DEFLATING))
        return BundleFile(path, sha256(data).hexdigest(), len(data))

    def _stream(self, reading: _Reading, writer: ZipWriter | None, copy: _Copy | None) -> BundleFile:
        digest = _Digest(self.pool)
        done = 0

        def blocks() -> Iterator[bytes]:
            nonlocal done
            block = reading.first
            while block:
                digest.update(block)
                if copy is not None:
                    copy.write(block)
                done += len(block)
                yield block
                block = self._next(reading, done)

        path = reading.path
        if writer:
            writer.add_stream(
                path, blocks(), reading.size, deflate=worth_deflating(path, reading.first, least=_WORTH_DEFLATING)
            )
        else:
            for _ in blocks():
                pass
        if done != reading.size:
            self.notes.append(f"{path} became shorter while it was being read")
        return BundleFile(path, digest.finish(), done)

    def _next(self, reading: _Reading, done: int) -> bytes:
        self._check_stop()
        try:
            # Stop at the initial size: a file that still grows would never end.
            return os.read(reading.descriptor, min(reading.size - done, _BLOCK))
        except OSError as error:
            self.notes.append(f"{reading.path} cannot be read to its end and is truncated: {error.strerror}")
            return b""

    def _check_stop(self) -> None:
        if self.stop():
            raise BundleError(f"gathering the outputs of {self.bundle.id} was aborted; call it again to start over")


class _Reading(NamedTuple):
    """A large file while it is read: its path in the bundle, its size at the beginning, and its first block."""

    path: str
    descriptor: int
    size: int
    first: bytes


class _Copy:
    """A copy of a file, with its mode and times, that takes the place of the file in the bundle.

    If the disk is full or the folder is read-only, the file itself stays: sealing must not fail for want of a copy.
    """

    def __init__(self, bundle: OpenBundle, path: str, status: os.stat_result) -> None:
        self._target, self._status = bundle.folder / path, status
        self._temporary = bundle.scratch / "copy.new"
        self._descriptor = -1
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with suppress(OSError):
            self._descriptor = os.open(self._temporary, flags, 0o600)

    def write(self, block: bytes) -> None:
        if self._descriptor >= 0:
            try:
                _write_all(self._descriptor, block)
            except OSError:
                self.close()

    def take_place(self) -> bool:
        """Replace the file, if the copy is complete; return whether the copy is in its place."""
        if self._descriptor < 0:
            return False
        try:
            os.fchmod(self._descriptor, stat.S_IMODE(self._status.st_mode))
            os.utime(self._descriptor, ns=(self._status.st_atime_ns, self._status.st_mtime_ns))
            self._temporary.replace(self._target)
        except OSError:
            return False
        finally:
            self.close()
        return True

    def close(self) -> None:
        """Close the copy, and remove it unless it has taken its place; idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
            self._temporary.unlink(missing_ok=True)


class _Digest:
    """A SHA-256 that is computed in a thread while the caller continues."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._digest = sha256()
        self._last: Future[None] | None = None

    def update(self, block: bytes) -> None:
        self._wait()
        if len(block) < _WORTH_A_THREAD:
            self._digest.update(block)
            return
        try:
            self._last = self._pool.submit(self._digest.update, block)
        except RuntimeError:  # the interpreter is shutting down and starts no more threads
            self._digest.update(block)

    def finish(self) -> str:
        self._wait()
        return self._digest.hexdigest()

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()
            self._last = None


_Stamp = tuple[str, int, int]
"""Path, size and modification time in nanoseconds, to detect a later change."""


def _open(path: str) -> int:
    # O_NONBLOCK: a file that was replaced by a pipe since the folder was listed must not block.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags)
    except PermissionError:
        # The Method may have removed its own read permission; the owner can restore it.
        Path(path).chmod(0o600)
        return os.open(path, flags)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _changed_inputs(bundle: OpenBundle, files: tuple[BundleFile, ...]) -> Iterator[str]:
    if not (bundle.folder / ExecuteRequest.file_name).exists():
        return
    staged = {file.path: file.sha256 for file in bundle.read(ExecuteRequest).files}
    for file in files:
        if staged.get(file.path, file.sha256) != file.sha256:
            yield f"{file.path} was changed after it was staged and is no longer the recorded input"


def _current_stamps(root: str, listings: Mapping[str, FolderListing]) -> Iterator[_Stamp]:
    yield from ((folder + "/", 0, 0) for folder in listings[layout.OUTPUTS].empty_folders)
    for listing in listings.values():
        for path in listing.files:
            try:
                status = os.lstat(f"{root}/{path}")
            except FileNotFoundError:
                continue  # it was removed since it was listed, so the stamps differ
            yield path, status.st_size, status.st_mtime_ns


def _saved_result(bundle: OpenBundle, listings: Mapping[str, FolderListing]) -> Gathered | None:
    """Return the result of an earlier call if no file has changed since."""
    saved = _load(bundle)
    if saved is None or saved.get("fingerprint") != _fingerprint(_current_stamps(str(bundle.folder), listings)):
        return None
    gathered = _from_json(saved)
    try:
        zipped = bundle.paths.output_zip.lstat()
    except FileNotFoundError:
        return None
    return gathered if stat.S_ISREG(zipped.st_mode) and zipped.st_size == gathered.output_zip.size else None


def _fingerprint(stamps: Iterator[_Stamp] | list[_Stamp]) -> str:
    return sha256(repr(sorted(stamps)).encode()).hexdigest()


def _save(bundle: OpenBundle, gathered: Gathered, stamps: list[_Stamp], held: Sequence[str]) -> None:
    saved = {
        "fingerprint": _fingerprint(stamps),
        "files": gathered.files,
        "kept": gathered.inputs_and_code,
        "zip": gathered.output_zip,
        "notes": gathered.notes,
        "held": held,
    }
    bundle.put(bundle.scratch / _GATHERED, json.dumps(saved).encode())


def _load(bundle: OpenBundle) -> dict[str, Any] | None:
    """Return the saved result, or None if there is none or a power cut has damaged it."""
    try:
        saved: dict[str, Any] = json.loads((bundle.scratch / _GATHERED).read_bytes())
        _from_json(saved)
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    return saved


def _held_before(bundle: OpenBundle) -> set[str]:
    """The files that an earlier call has replaced because they were open for writing."""
    return set((_load(bundle) or {}).get("held", ()))


def _from_json(saved: dict[str, Any]) -> Gathered:
    return Gathered(
        files=tuple(BundleFile(*file) for file in saved["files"]),
        inputs_and_code=tuple(BundleFile(*file) for file in saved["kept"]),
        output_zip=BundleFile(*saved["zip"]),
        notes=tuple(saved["notes"]),
    )
