"""The content of a bundle for its verification, read once and shared by all checks.

A file that cannot be read is recorded as a fault of that file, so that one damaged
file does not hide another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, wraps
from hashlib import sha1, sha256
from typing import Any, TypeVar, cast

from prefect_executions.attestation.dsse import Envelope
from prefect_executions.attestation.policy import SignaturePolicy
from prefect_executions.bundles import layout, manifest, rebuilt
from prefect_executions.bundles.source import Source
from prefect_executions.bundles.zip_reader import Limits, ZipReader
from prefect_executions.crate import reader as crate_reader
from prefect_executions.documents import Document, strict_json
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import BundleFile, ExecuteRequest, ExecutionRecord
from prefect_executions.executions.summary import ReadSummary, RecordSummary, summary_of
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.provenance import reader as prov_reader
from prefect_executions.provenance.times import Times, time_faults
from prefect_executions.settings import ArchiveLevel

D = TypeVar("D", bound=Document)
R = TypeVar("R")

_IN_MEMORY = {kind.file_name for kind in layout.DOCUMENTS}
_IN_MEMORY |= {
    layout.PROVENANCE,
    layout.CRATE,
    layout.MANIFEST,
    layout.ATTESTATION,
    layout.INCLUSION,
    layout.ANNOTATIONS,
}
"""The files that are read into memory."""

_DATA = (layout.INPUTS + "/", layout.OUTPUTS + "/", layout.OUTPUT_ZIP)
_KEPT_BY_LEVEL: Mapping[ArchiveLevel, tuple[str, ...]] = {
    ArchiveLevel.FULL: _DATA,
    ArchiveLevel.OUTPUTS: (layout.OUTPUTS + "/", layout.OUTPUT_ZIP),
    ArchiveLevel.NONE: (),
}


class Unchecked(str):
    """A sentence on something that was not checked, because it is not in the bundle."""

    __slots__ = ()


Findings = Iterator[str]
"""The faults that a check yields, and `Unchecked` sentences."""

_SMALL = 1 << 20
"""The largest document in bytes that is read as one in its only form; it cannot exceed the limits of `strict_json`."""

_DIGITS = 2000
"""Digits that are searched for at each multiple of their number; an integer that is too long has twice as many."""

_UNREAD = object()
"""The place of a result that was not read yet."""

_NOT_LISTED = "not read, because the manifest does not list it"


def _read_once(read: Callable[[Evidence], R]) -> Callable[[Evidence], R]:
    """Cache what *read* returns, or the error that it raises: each check asks, and reading may be slow."""
    name = read.__name__

    @wraps(read)
    def result(evidence: Evidence) -> R:
        value = evidence.results.get(name, _UNREAD)
        if value is _UNREAD:
            try:
                value = read(evidence)
            except BundleError as error:
                value = _Fault(str(error))
            evidence.results[name] = value
        return cast("R", _unless_fault(value))

    return result


class _Fault(str):
    """The message of an error. A cached error would keep all data alive: the frames in its traceback refer to it."""

    __slots__ = ()


def _unless_fault(value: R | _Fault) -> R:
    if isinstance(value, _Fault):
        raise BundleError(value)
    return value


class Evidence:
    """Everything that the checks read."""

    def __init__(self, source: Source, limits: Limits, signatures: SignaturePolicy) -> None:
        self.source = source
        self.limits = limits
        self.signatures = signatures
        self.results: dict[str, object] = {}
        self._documents: dict[type[Document], Document | _Fault] = {}
        self._times: Times | None = None
        self._member_sizes: Mapping[str, int] = {}
        self.canonical: set[type[Document]] = set()
        """The documents that have the bytes of their only form."""

    @cached_property
    def files(self) -> Mapping[str, int]:
        """The size of every file in the source, without desktop files that the manifest does not list."""
        skipped = set(self.skipped)
        return {path: size for path, size in self.source.files.items() if path not in skipped}

    @cached_property
    def skipped(self) -> tuple[str, ...]:
        """The desktop files that the manifest does not list; they are never read."""
        return tuple(path for path in self.source.files if layout.is_desktop_file(path) and not self._is_listed(path))

    @cached_property
    def data(self) -> Mapping[str, bytes | BundleError]:
        """The bytes of each file of `_IN_MEMORY`, or the error that reading it raised."""
        return {path: self._read_file(path) for path in _IN_MEMORY if path in self.source.files}

    @property
    @_read_once
    def digests(self) -> Mapping[str, str]:
        """The digest of every listed file; for another file, which is not read, a text that equals no digest.

        Raises:
            BundleError: If the manifest is missing or damaged.
        """
        listed = self.listed
        return {path: self._digest(path) if _is_read(path, listed) else _NOT_LISTED for path in self.files}

    @cached_property
    def available(self) -> Mapping[str, str]:
        """The digest of every file of the source and of ``output.zip``; one in both has the source's digest."""
        try:
            return {**self.members, **self.digests}
        except BundleError:
            return self.digests

    @property
    @_read_once
    def listed(self) -> Mapping[str, str]:
        """The digest of each file in the manifest.

        Raises:
            BundleError: If the manifest is missing or damaged.
        """
        return manifest.parse(self.bytes_of(layout.MANIFEST))

    @property
    @_read_once
    def envelope(self) -> Envelope:
        """The attestation's envelope, not verified.

        Raises:
            BundleError: If it is missing or not an envelope.
        """
        return Envelope.from_json(self.bytes_of(layout.ATTESTATION), layout.ATTESTATION)

    @property
    @_read_once
    def members(self) -> Mapping[str, str]:
        """The digest of every file of ``output.zip``; for an unreadable file, a text that equals no digest.

        Raises:
            BundleError: If the zip is missing, unreadable or invalid.
        """
        if layout.OUTPUT_ZIP not in self.files:
            raise BundleError("it is missing")
        with self.source.open(layout.OUTPUT_ZIP) as stream:
            reader = ZipReader.open(stream, self.limits)
            self._member_sizes = {name: entry.size for name, entry in reader.entries.items()}
            return {
                name: self._member_digest(reader, name) if name in self.listed else _NOT_LISTED
                for name, entry in reader.entries.items()
                if not entry.is_folder
            }

    def size_of(self, path: str) -> int | None:
        """Return the size of a file of the source, or else of ``output.zip``; None if neither has it."""
        if path not in self.files:
            with suppress(BundleError):
                _ = self.members  # it reads the sizes as well
        return self.files.get(path, self._member_sizes.get(path))

    @cached_property
    def member_folders(self) -> Collection[str]:
        """The folders of ``output.zip``; none if it cannot be read."""
        if layout.OUTPUT_ZIP in self.files:
            with suppress(BundleError), self.source.open(layout.OUTPUT_ZIP) as stream:
                entries = ZipReader.open(stream, self.limits).entries
                return {name.removesuffix("/") for name, entry in entries.items() if entry.is_folder}
        return ()

    @property
    @_read_once
    def record(self) -> ExecutionRecord:
        """The record: all documents together.

        Raises:
            BundleError: If one is missing or damaged.
        """
        return ExecutionRecord.read(self.document, self.files.__contains__)

    @property
    def format(self) -> int:
        """The bundle format, whose rules apply to this bundle.

        Raises:
            BundleError: If `jobStatus.json` is missing or damaged.
        """
        return self.document(JobStatus).format

    @property
    @_read_once
    def sizes(self) -> Mapping[str, int]:
        """The size of every file in the source, and the recorded size of each output and input that is absent.

        Raises:
            BundleError: If a document is missing or damaged.
        """
        outputs = {file.path: file.size for file in self.record.job_status.outputs}
        inputs = {file.path: file.size for file in self.record.request.files if file.path is not None}
        return {**outputs, **inputs, **self.files}

    @property
    @_read_once
    def summary(self) -> RecordSummary:
        """The summary of the JSON documents."""
        return summary_of(self.record)

    @property
    @_read_once
    def provenance_summary(self) -> ReadSummary:
        """The summary in `provo.xml`.

        Raises:
            BundleError: If it is missing or damaged.
        """
        if self.rebuilt_provenance:
            return self.rebuilt_provenance
        times = Times()
        summary = prov_reader.read(self.bytes_of(layout.PROVENANCE), times.add)
        self._times = times
        return summary

    def provenance_time_faults(self) -> Iterator[str]:
        """Yield the contradictions between the times in `provo.xml`.

        Raises:
            BundleError: If it is missing or not PROV, or has an invalid time.
        """
        if self.rebuilt_provenance and rebuilt.times_in_order(self.record):
            return
        with suppress(BundleError):
            _ = self.provenance_summary  # it reads the times in the same pass
        if self._times is None:  # it is not PROV of one execution
            yield from time_faults(self.bytes_of(layout.PROVENANCE))
        else:
            yield from self._times.faults()

    @property
    @_read_once
    def crate_summary(self) -> ReadSummary:
        """The summary in `ro-crate-metadata.json`.

        Raises:
            BundleError: If it is missing or damaged.
        """
        return self.rebuilt_crate or crate_reader.read(self.bytes_of(layout.CRATE))

    @property
    @_read_once
    def rebuilt_provenance(self) -> ReadSummary | None:
        """The summary in `provo.xml` if it has exactly the bytes that the documents give."""
        with suppress(BundleError):
            data = self.bytes_of(layout.PROVENANCE)
            return rebuilt.provenance(data, self.record, self.summary, self._listed_files)
        return None

    @property
    @_read_once
    def rebuilt_crate(self) -> ReadSummary | None:
        """The summary in `ro-crate-metadata.json` if it has exactly the bytes that the documents give."""
        with suppress(BundleError):
            return rebuilt.crate(self.bytes_of(layout.CRATE), self.record, self.summary, self._listed_files)
        return None

    @cached_property
    def _listed_files(self) -> list[BundleFile]:
        return [BundleFile(path, digest, self.sizes.get(path, 0)) for path, digest in self.listed.items()]

    @cached_property
    def absent(self) -> Mapping[str, str]:
        """The reason why paths with a given prefix are absent, from the source or the request's archive level."""
        absent = {**self._absent_by_level(), **self.source.absent}
        return {prefix: why for prefix, why in absent.items() if not self._has_part(prefix)}

    def _has_part(self, prefix: str) -> bool:
        """Whether a file of a folder is present. All or nothing: then the others of the folder must be present too."""
        return prefix.endswith("/") and any(path.startswith(prefix) for path in self.files)

    def has_folder(self, folder: str) -> bool:
        """Whether the empty *folder* belongs to the bundle: a folder of the format, or of ``output.zip``."""
        return folder in layout.FOLDERS or folder in self.member_folders

    def absence_reason(self, path: str) -> str | None:
        """Return why the file at *path* may be absent, or None if it must be present."""
        if not self.absent:
            return None
        folders = [path[: end + 1] for end, letter in enumerate(path) if letter == "/"]
        return next((self.absent[prefix] for prefix in (path, *folders) if prefix in self.absent), None)

    def bytes_of(self, path: str) -> bytes:
        """Return the bytes of a file of `_IN_MEMORY`.

        Raises:
            BundleError: If it is missing or cannot be read.
        """
        data = self.data.get(path, BundleError(f"{path} is missing"))
        if isinstance(data, BundleError):
            raise BundleError(str(data))
        return data

    def json_of(self, kind: type[Document]) -> Any:
        """Return a document as parsed JSON; a duplicate member is an error.

        Raises:
            BundleError: If it is missing or not valid JSON.
        """
        return strict_json(self.bytes_of(kind.file_name), kind.file_name)

    def document(self, kind: type[D]) -> D:
        """Return a document, validated by its model.

        Raises:
            BundleError: If it is missing or damaged.
        """
        if kind not in self._documents:
            self._documents[kind] = self._read(kind)
        return cast("D", _unless_fault(self._documents[kind]))

    def _is_listed(self, path: str) -> bool:
        try:
            return path in self.listed
        except BundleError:
            return False

    def git_object(self, path: str) -> str:
        """Return the id of a file's content in Git (``git hash-object``).

        Raises:
            BundleError: If it cannot be read.
        """
        digest = sha1(b"blob %d\0" % self.files[path], usedforsecurity=False)
        for block in self.source.blocks(path):
            digest.update(block)
        return digest.hexdigest()

    def _read(self, kind: type[Document]) -> Document | _Fault:
        try:
            if document := self._read_canonical(kind):
                return document
            self.json_of(kind)
            return kind.from_json(self.bytes_of(kind.file_name))
        except BundleError as error:  # cached, because each check asks and validation may be slow
            return _Fault(str(error))

    def _read_canonical(self, kind: type[Document]) -> Document | None:
        """Return a document in its only form, which has no duplicate member and no NaN; otherwise None."""
        data = self.bytes_of(kind.file_name)
        if len(data) <= _SMALL and not _has_constant_or_long_integer(data):
            with suppress(BundleError):
                document = kind.from_json(data)
                if document.to_json() == data:
                    self.canonical.add(kind)
                    return document
        return None

    def _absent_by_level(self) -> dict[str, str]:
        try:
            level = self.document(ExecuteRequest).archive
        except BundleError:
            return {}
        return {part: f"the archive level is '{level}'" for part in _DATA if part not in _KEPT_BY_LEVEL[level]}

    def _read_file(self, path: str) -> bytes | BundleError:
        size = self.source.files[path]
        if size > self.limits.document:
            return BundleError(f"{path} has {size} bytes; the limit for a document is {self.limits.document}")
        try:
            data = b"".join(self.source.blocks(path))
        except BundleError as error:
            return BundleError(str(error))  # without its frames, as `_Fault`
        # A file in a folder may have grown since it was listed.
        return data if len(data) == size else BundleError(f"{path} changed while it was being read")

    def _digest(self, path: str) -> str:
        digest = sha256()
        try:
            if path in _IN_MEMORY:
                digest.update(self.bytes_of(path))
            else:
                for block in self.source.blocks(path):
                    digest.update(block)
        except BundleError as error:
            return f"unreadable ({error})"
        return digest.hexdigest()

    def _member_digest(self, reader: ZipReader, name: str) -> str:
        entry, digest = reader.entries[name], sha256()
        if name in self.files and self.files[name] != entry.size:
            # Not read: a zip must not expand to more than the outputs beside it.
            return f"of {entry.size} bytes"
        try:
            for block in reader.blocks(entry):
                digest.update(block)
        except BundleError as error:
            return f"unreadable ({error})"
        return digest.hexdigest()


def _has_constant_or_long_integer(data: bytes) -> bool:
    """Whether *data* may have what `strict_json` refuses although a model reads and writes it; never a false no."""
    starts = range(0, len(data) - _DIGITS + 1, _DIGITS)
    return b"NaN" in data or b"Infinity" in data or any(data[start : start + _DIGITS].isdigit() for start in starts)


def _is_read(path: str, listed: Mapping[str, str]) -> bool:
    return path in _IN_MEMORY or path in listed
