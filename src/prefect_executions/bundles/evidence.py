"""What a verification reads of a bundle, each byte once, shared by its checks.

What cannot be read is kept as a fault of the file that it belongs to, so that one
damaged file hides no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar, cast

from prefect_executions.attestation.dsse import Envelope
from prefect_executions.attestation.keys import VerifyingKey
from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.source import Source
from prefect_executions.bundles.zip_reader import Limits, ZipReader
from prefect_executions.crate import reader as crate_reader
from prefect_executions.documents import Document, strict_json
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import (
    ExecuteRequest,
    ExecutionRecord,
)
from prefect_executions.executions.summary import ReadSummary, RecordSummary, summary_of
from prefect_executions.provenance import reader as prov_reader
from prefect_executions.settings import ArchiveLevel

D = TypeVar("D", bound=Document)

_WHOLE = {*(kind.file_name for kind in layout.DOCUMENTS), layout.PROVENANCE, layout.CRATE, layout.MANIFEST}
_WHOLE |= {layout.ATTESTATION, layout.INCLUSION}
"""The files that are read as a whole."""

_DATA = (layout.INPUTS + "/", layout.OUTPUTS + "/", layout.OUTPUT_ZIP)
_KEPT_BY_LEVEL: Mapping[ArchiveLevel, tuple[str, ...]] = {
    ArchiveLevel.FULL: _DATA,
    ArchiveLevel.OUTPUTS: (layout.OUTPUTS + "/", layout.OUTPUT_ZIP),
    ArchiveLevel.NONE: (),
}


class Member(NamedTuple):
    """A file of ``output.zip`` as it was read."""

    sha256: str
    """Its digest, or words that equal no digest and say what is wrong with it."""
    size: int


class Evidence:
    """All that the checks look at."""

    def __init__(self, source: Source, limits: Limits, trusted: Mapping[str, VerifyingKey]) -> None:
        self.source = source
        self.limits = limits
        self.trusted = trusted
        """The keys of those whose signature is believed, by their ids."""
        self._documents: dict[type[Document], Document | BundleError] = {}

    @property
    def files(self) -> Mapping[str, int]:
        """The size of every file that is there."""
        return self.source.files

    @cached_property
    def data(self) -> Mapping[str, bytes | BundleError]:
        """The bytes of each file that is read as a whole, or why it cannot be."""
        return {path: self._whole(path) for path in _WHOLE if path in self.files}

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """The digest of every file that is there; for one that cannot be read, words that equal no digest."""
        return {path: self._digest(path) for path in self.files}

    @cached_property
    def kept(self) -> Mapping[str, str]:
        """The digest of every file that is there, on its own or in ``output.zip`` only."""
        try:
            zipped = {name: member.sha256 for name, member in self.members.items()}
        except BundleError:
            zipped = {}
        return {**zipped, **self.digests}

    @cached_property
    def listed(self) -> Mapping[str, str]:
        """What the manifest says.

        Raises:
            BundleError: If it is missing or no manifest.
        """
        return manifest.parse(self.bytes_of(layout.MANIFEST))

    @cached_property
    def envelope(self) -> Envelope:
        """What the attestation holds, believed in nothing.

        Raises:
            BundleError: If it is missing or no envelope.
        """
        return Envelope.from_json(self.bytes_of(layout.ATTESTATION), layout.ATTESTATION)

    @cached_property
    def members(self) -> Mapping[str, Member]:
        """Every file of ``output.zip``.

        Raises:
            BundleError: If the zip is missing, cannot be read or is not sound.
        """
        if layout.OUTPUT_ZIP not in self.files:
            raise BundleError("it is missing")
        with self.source.open(layout.OUTPUT_ZIP) as stream:
            reader = ZipReader.open(stream, self.limits)
            return {name: self._member(reader, name) for name, entry in reader.entries.items() if not entry.is_folder}

    @cached_property
    def record(self) -> ExecutionRecord:
        """All documents as one value.

        Raises:
            BundleError: If one is missing or damaged.
        """
        return ExecutionRecord.read(self.document, self.files.__contains__)

    @cached_property
    def account(self) -> RecordSummary:
        """What the JSON documents tell."""
        return summary_of(self.record)

    @cached_property
    def provenance_summary(self) -> ReadSummary:
        """What `provo.xml` tells.

        Raises:
            BundleError: If it is missing or damaged.
        """
        return prov_reader.read(self.bytes_of(layout.PROVENANCE))

    @cached_property
    def crate_summary(self) -> ReadSummary:
        """What `ro-crate-metadata.json` tells.

        Raises:
            BundleError: If it is missing or damaged.
        """
        return crate_reader.read(self.bytes_of(layout.CRATE))

    @cached_property
    def absent(self) -> Mapping[str, str]:
        """Why what begins with a path is not there: the source says so, or the request's archive level does."""
        return {**self._left_out_by_level(), **self.source.absent}

    def absence_reason(self, path: str) -> str | None:
        """Return why the file at *path* need not be there, or nothing when it must be."""
        folders = [path[: end + 1] for end, letter in enumerate(path) if letter == "/"]
        return next((self.absent[place] for place in (path, *folders) if place in self.absent), None)

    def bytes_of(self, path: str) -> bytes:
        """Return a file that is read as a whole.

        Raises:
            BundleError: If it is missing or cannot be read.
        """
        data = self.data.get(path, BundleError(f"{path} is missing"))
        if isinstance(data, BundleError):
            raise data
        return data

    def json_of(self, kind: type[Document]) -> Any:
        """Return a document as it is written, with no member said twice.

        Raises:
            BundleError: If it is missing or no JSON.
        """
        return strict_json(self.bytes_of(kind.file_name), kind.file_name)

    def document(self, kind: type[D]) -> D:
        """Return a document as its model reads it.

        Raises:
            BundleError: If it is missing or damaged.
        """
        if kind not in self._documents:
            self._documents[kind] = self._read(kind)
        found = self._documents[kind]
        if isinstance(found, BundleError):
            raise found
        return cast("D", found)

    def _read(self, kind: type[Document]) -> Document | BundleError:
        try:
            self.json_of(kind)
            return kind.from_json(self.bytes_of(kind.file_name))
        except BundleError as error:  # each check asks, and to find what is wrong may take long
            return error

    def _left_out_by_level(self) -> dict[str, str]:
        try:
            level = self.document(ExecuteRequest).archive
        except BundleError:
            return {}
        # All or nothing: where one file of a part is there, the others must be too.
        return {
            part: f"the archive level is '{level}'"
            for part in _DATA
            if part not in _KEPT_BY_LEVEL[level] and not any(path.startswith(part) for path in self.files)
        }

    def _whole(self, path: str) -> bytes | BundleError:
        size = self.files[path]
        if size > self.limits.document:
            return BundleError(f"{path} has {size} bytes; the limit for a document is {self.limits.document}")
        try:
            data = b"".join(self.source.blocks(path))
        except BundleError as error:
            return error
        # A folder's file may have grown since it was listed.
        return data if len(data) == size else BundleError(f"{path} changed while it was read")

    def _digest(self, path: str) -> str:
        digest = sha256()
        try:
            if path in _WHOLE:
                digest.update(self.bytes_of(path))
            else:
                for block in self.source.blocks(path):
                    digest.update(block)
        except BundleError as error:
            return f"unreadable ({error})"
        return digest.hexdigest()

    def _member(self, reader: ZipReader, name: str) -> Member:
        entry, digest = reader.entries[name], sha256()
        if name in self.files and self.files[name] != entry.size:
            # Not read: a zip is not to unfold to more than the outputs that lie beside it.
            return Member(f"of {entry.size} bytes", entry.size)
        try:
            for block in reader.blocks(entry):
                digest.update(block)
        except BundleError as error:
            return Member(f"unreadable ({error})", entry.size)
        return Member(digest.hexdigest(), entry.size)
