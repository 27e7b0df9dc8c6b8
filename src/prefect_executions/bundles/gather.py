"""The heavy half of sealing: every output's digest and ``output.zip``, in one read of each byte.

It runs in the body of the flow, where time is the user's own. Its result lies in
the scratch folder, so that another process can do the light half.

Memory does not grow with a file: blocks of 1 MiB go through, hashed in threads
(hashlib lets go of the interpreter) while they are written.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from prefect_executions.bundles import layout
from prefect_executions.bundles.data_folder import collect_outputs
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.sanitize import FolderListing, sanitize
from prefect_executions.bundles.zip_writer import ZipWriter
from prefect_executions.errors import BundleError, SealedError
from prefect_executions.executions.record import BundleFile, ExecuteRequest
from prefect_executions.fsync import sync
from prefect_executions.lifecycle.history import OutputFile
from prefect_executions.mediatypes import already_compressed, media_type
from prefect_executions.tracepoints import TracePoint, trace_point

_GATHERED = "gathered.json"

_BLOCK = 1 << 20

# Smaller files are stored as they are: deflating saves a few kB each, and for
# 10,000 of them costs more than all the rest.
_WORTH_DEFLATING = 16 << 10

# What does not shrink by a tenth in a sample is not worth the time. The sample is
# taken behind the beginning, because scientific files begin with readable headers.
_SAMPLE, _SHRINKS_TO = 4 << 10, 0.9

_LONG_TO_SYNC, _MANY_TO_SYNC = 1 << 20, 64

# Handing less than this to a thread costs more than hashing it.
_WORTH_A_THREAD = 64 << 10


@dataclass(frozen=True)
class Gathered:
    """What the heavy half found."""

    files: tuple[BundleFile, ...]
    """The files under ``outputs/``."""
    inputs_and_code: tuple[BundleFile, ...]
    """The files under ``inputs/`` and ``code/``."""
    output_zip: BundleFile
    notes: tuple[str, ...]
    """What could not be kept as it was, one sentence each, for the history."""

    @property
    def outputs(self) -> tuple[OutputFile, ...]:
        """What `jobStatus.json` is to list."""
        return tuple(
            OutputFile(path=file.path, sha256=file.sha256, size=file.size, media_type=media_type(file.path))
            for file in self.files
        )


def gather(bundle: OpenBundle, *, stop: Callable[[], bool] = lambda: False) -> Gathered:
    """Hash all files that the Method left, write ``output.zip`` and keep the result in the scratch folder.

    Called again it returns the same; when a file was changed since, it gathers
    anew. It must be called under the bundle's lock. What cannot be read is noted
    and left out, because nothing that happens after the work may lose the rest.
    *stop* is asked between blocks.

    Raises:
        SealedError: If the bundle is sealed and what was gathered is no longer known here.
        BundleError: If *stop* said so, or the disk is full: nothing is in the
            bundle that was not there before, and the same call may succeed later.
    """
    if bundle.sealed:
        earlier = load_gathered(bundle)
        if earlier is None:
            raise SealedError(f"the bundle {bundle.id} is sealed; its jobStatus.json tells its outputs")
        return earlier
    try:
        left = collect_outputs(bundle)
        found, notes = sanitize(bundle)
        notes = (*left, *notes)
        return _still_true(bundle, found) or _Gathering(bundle, stop, found).run(notes)
    except OSError as error:
        raise BundleError(
            f"the outputs of {bundle.id} cannot be gathered: {error}; free some space, try again"
        ) from error


def load_gathered(bundle: OpenBundle) -> Gathered | None:
    """Return what an earlier `gather` kept, or nothing when there was none.

    Raises:
        BundleError: If what it kept cannot be read.
    """
    told = _load(bundle)
    return None if told is None else _from_json(told)


class _Gathering:
    """One gathering: what is open, and what was found so far."""

    def __init__(self, bundle: OpenBundle, stop: Callable[[], bool], found: Mapping[str, FolderListing]) -> None:
        self.bundle = bundle
        self.found = found
        self.root = str(bundle.folder)
        self.stop = stop
        self.notes: list[str] = []
        self.stamps: list[_Stamp] = []

    def run(self, notes: tuple[str, ...]) -> Gathered:
        fresh = self.bundle.scratch / "output.zip.new"
        try:
            with ThreadPoolExecutor(2, "gather") as self.pool, fresh.open("wb", buffering=0) as stream:
                outputs, output_zip = self._zip(stream.fileno())
                kept = tuple(self._kept())
            sync(self._heavy(fresh, output_zip, kept))
            trace_point(TracePoint.ZIP_WRITTEN, self.bundle.id)
            fresh.replace(self.bundle.paths.output_zip)
            trace_point(TracePoint.ZIP_KEPT, self.bundle.id)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        gathered = Gathered(outputs, kept, output_zip, (*notes, *self.notes, *_changed_inputs(self.bundle, kept)))
        _keep(self.bundle, gathered, self.stamps)
        return gathered

    def _heavy(self, fresh: Path, output_zip: BundleFile, kept: Sequence[BundleFile]) -> Iterator[Path]:
        """What takes long to reach the disk and so must not be left to the light half, which syncs the rest."""
        if output_zip.size >= _LONG_TO_SYNC:
            yield fresh
        for file in kept:
            if file.size >= _LONG_TO_SYNC or len(kept) > _MANY_TO_SYNC:
                yield self.bundle.folder / file.path

    def _zip(self, descriptor: int) -> tuple[tuple[BundleFile, ...], BundleFile]:
        whole = _Digest(self.pool)

        def write(data: bytes) -> None:
            whole.update(data)
            _write_all(descriptor, data)

        writer = ZipWriter(write)
        found = self.found[layout.OUTPUTS]
        self.notes += found.unreadable
        for folder in found.empty_folders:
            writer.add_folder(folder)
            self.stamps.append((folder + "/", 0, 0))
        files = [file for path in found.files if (file := self._read(path, writer))]
        size = writer.close()
        return tuple(files), BundleFile(layout.OUTPUT_ZIP, whole.finish(), size)

    def _kept(self) -> Iterator[BundleFile]:
        for top in (layout.CODE, layout.INPUTS):
            self.notes += self.found[top].unreadable
            for path in self.found[top].files:
                if file := self._read(path, None):
                    yield file

    def _read(self, path: str, writer: ZipWriter | None) -> BundleFile | None:
        self._check_stop()
        descriptor = -1
        try:
            descriptor = _open(f"{self.root}/{path}")
            told = os.fstat(descriptor)
            first = os.read(descriptor, min(told.st_size, _BLOCK))
        except OSError as error:
            self.notes.append(f"{path} cannot be read and is left out: {error.strerror}")
            if descriptor >= 0:
                os.close(descriptor)
            return None
        # A change after this moment changes the stamp too, so the next `gather` sees it.
        self.stamps.append((path, told.st_size, told.st_mtime_ns))
        try:
            if len(first) < told.st_size:
                return self._stream(path, descriptor, told.st_size, first, writer)
        finally:
            os.close(descriptor)
            trace_point(TracePoint.FILE_READ, self.bundle.id, path)
        if writer:
            writer.add_bytes(path, first, deflate=_worth_deflating(path, first))
        return BundleFile(path, sha256(first).hexdigest(), len(first))

    def _stream(self, path: str, descriptor: int, size: int, first: bytes, writer: ZipWriter | None) -> BundleFile:
        digest = _Digest(self.pool)
        done = 0

        def blocks() -> Iterator[bytes]:
            nonlocal done
            block = first
            while block:
                digest.update(block)
                done += len(block)
                yield block
                block = self._next(path, descriptor, size - done)

        if writer:
            writer.add_stream(path, blocks(), size, deflate=_worth_deflating(path, first))
        else:
            for _ in blocks():
                pass
        if done != size:
            self.notes.append(f"{path} became shorter while it was read")
        return BundleFile(path, digest.finish(), done)

    def _next(self, path: str, descriptor: int, left: int) -> bytes:
        self._check_stop()
        try:
            # Not beyond the size it had at first: a file that still grows would never end.
            return os.read(descriptor, min(left, _BLOCK))
        except OSError as error:
            self.notes.append(f"{path} cannot be read to its end and is cut: {error.strerror}")
            return b""

    def _check_stop(self) -> None:
        if self.stop():
            raise BundleError(f"gathering the outputs of {self.bundle.id} was stopped; the same call begins it anew")


class _Digest:
    """A SHA-256 that is made beside the caller's own work."""

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
        except RuntimeError:  # the interpreter is ending and starts no thread any more
            self._digest.update(block)

    def finish(self) -> str:
        self._wait()
        return self._digest.hexdigest()

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()
            self._last = None


_Stamp = tuple[str, int, int]
"""Path, size and time of change in nanoseconds, by which a later change is seen."""


def _open(path: str) -> int:
    # O_NONBLOCK: a file that became a pipe since the folder was listed must not hold us.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags)
    except PermissionError:
        # The Method may have closed its own file to itself; it is still ours to open.
        Path(path).chmod(0o600)
        return os.open(path, flags)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _worth_deflating(path: str, block: bytes) -> bool:
    if len(block) < _WORTH_DEFLATING or already_compressed(media_type(path)):
        return False
    middle = len(block) // 2
    sample = block[middle : middle + _SAMPLE] + block[-_SAMPLE:]
    return len(zlib.compress(sample, 1)) < _SHRINKS_TO * len(sample)


def _changed_inputs(bundle: OpenBundle, kept: tuple[BundleFile, ...]) -> Iterator[str]:
    if not (bundle.folder / ExecuteRequest.file_name).exists():
        return
    staged = {file.path: file.sha256 for file in bundle.read(ExecuteRequest).files}
    for file in kept:
        if staged.get(file.path, file.sha256) != file.sha256:
            yield f"{file.path} was changed after it was staged, so it is not the recorded input any more"


def _stamps_now(root: str, found: Mapping[str, FolderListing]) -> Iterator[_Stamp]:
    yield from ((folder + "/", 0, 0) for folder in found[layout.OUTPUTS].empty_folders)
    for there in found.values():
        for path in there.files:
            try:
                told = os.lstat(f"{root}/{path}")
            except FileNotFoundError:
                continue  # it went away since it was listed, so the stamps differ
            yield path, told.st_size, told.st_mtime_ns


def _still_true(bundle: OpenBundle, found: Mapping[str, FolderListing]) -> Gathered | None:
    told = _load(bundle)
    if told is None or told["fingerprint"] != _fingerprint(_stamps_now(str(bundle.folder), found)):
        return None
    gathered = _from_json(told)
    try:
        zipped = bundle.paths.output_zip.lstat()
    except FileNotFoundError:
        return None
    return gathered if stat.S_ISREG(zipped.st_mode) and zipped.st_size == gathered.output_zip.size else None


def _fingerprint(stamps: Iterator[_Stamp] | list[_Stamp]) -> str:
    return sha256(repr(sorted(stamps)).encode()).hexdigest()


def _keep(bundle: OpenBundle, gathered: Gathered, stamps: list[_Stamp]) -> None:
    told = {
        "fingerprint": _fingerprint(stamps),
        "files": gathered.files,
        "kept": gathered.inputs_and_code,
        "zip": gathered.output_zip,
        "notes": gathered.notes,
    }
    bundle.put(bundle.scratch / _GATHERED, json.dumps(told).encode())


def _load(bundle: OpenBundle) -> dict[str, Any] | None:
    path = bundle.scratch / _GATHERED
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}; remove it and seal again") from error
    return told


def _from_json(told: dict[str, Any]) -> Gathered:
    return Gathered(
        files=tuple(BundleFile(*file) for file in told["files"]),
        inputs_and_code=tuple(BundleFile(*file) for file in told["kept"]),
        output_zip=BundleFile(*told["zip"]),
        notes=tuple(told["notes"]),
    )
