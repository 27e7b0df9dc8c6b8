"""The files of the column index: immutable segments, and the manifest that lists them.

A segment is one file: arrays, each at a multiple of 64 bytes; a directory in JSON with the
place, length and type of each array; and a footer with the place and checksum of the directory.
Segments are mapped into memory. The manifest is replaced by an atomic rename after its segments are
on the disk. A reader that finds a segment missing or damaged reads the manifest again, or builds the index again.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np

from prefect_executions.fsync import sync
from prefect_executions.ledger.changes import FeedMark
from prefect_executions.ledger.index.columns import Array, ColumnKind, SegmentColumn, TextWords, Words
from prefect_executions.ledger.index.segment import Segment, SegmentKeys
from prefect_executions.tracepoints import TracePoint, trace_point

FORMAT = 2
"""Another format, or the other byte order, is not read but built again."""

MANIFEST = "manifest.json"
SUFFIX = ".columns"

_ALIGNMENT = 64  # a cache line
_FOOTER = struct.Struct("<8sQQI")
_MAGIC = b"execcols"


class DamagedIndexError(Exception):
    """A file of the index is missing, damaged or of another format; the index is built again."""


@dataclass(frozen=True, kw_only=True)
class IndexManifest:
    """The state of an index: its segments from old to new, and the mark in the ledger's change feed that they reach."""

    mark: FeedMark
    segments: tuple[str, ...]
    """The names of their files."""


def read_manifest(folder: Path) -> IndexManifest:
    """Return the manifest of the index in *folder*.

    Raises:
        DamagedIndexError: If there is none of this format.
    """
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        if (content["format"], content["byteorder"]) != (FORMAT, sys.byteorder):
            raise DamagedIndexError(f"{folder / MANIFEST} has another format")
        number, token = content["mark"]
        return IndexManifest(mark=FeedMark(int(number), int(token)), segments=tuple(map(str, content["segments"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedIndexError(f"{folder / MANIFEST} cannot be read: {error}") from error


def write_manifest(folder: Path, manifest: IndexManifest, *, rows: Sequence[int]) -> None:
    """Replace the manifest, and remove the files that it does not list; *rows* are the sizes of the segments.

    Raises:
        OSError: If the folder cannot be written.
    """
    content = {
        "format": FORMAT,
        "byteorder": sys.byteorder,
        "mark": list(manifest.mark),
        "segments": list(manifest.segments),
        "rows": list(rows),
    }
    aside = folder / f"{MANIFEST}.new"
    aside.write_text(json.dumps(content, indent=1), encoding="utf-8")
    sync([aside])
    trace_point(TracePoint.MANIFEST_WRITTEN, str(folder), aside.name)
    aside.replace(folder / MANIFEST)
    sync([folder])
    trace_point(TracePoint.SEGMENTS_LISTED, str(folder), MANIFEST)
    for path in folder.glob(f"*{SUFFIX}"):
        if path.name not in manifest.segments:
            with suppress(OSError):
                path.unlink()
    trace_point(TracePoint.SEGMENTS_CLEARED, str(folder))


def write_segment(folder: Path, segment: Segment) -> str:
    """Write *segment* to a new file, sync it, and return the name of the file.

    Raises:
        OSError: If it cannot be written.
    """
    name = f"{os.urandom(8).hex()}{SUFFIX}"
    with (folder / name).open("xb") as file:
        writer = _ArrayWriter(file)
        directory = json.dumps(_described(segment, writer), separators=(",", ":")).encode()
        writer.align()
        place = file.tell()
        file.write(directory)
        file.write(_FOOTER.pack(_MAGIC, place, len(directory), crc32(directory)))
        file.flush()
        os.fsync(file.fileno())
    trace_point(TracePoint.SEGMENT_WRITTEN, str(folder), name)
    return name


def open_segment(path: Path) -> Segment:
    """Map the segment in *path* into memory.

    Raises:
        DamagedIndexError: If it is missing or damaged.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        magic, place, length, checksum = _FOOTER.unpack_from(mapped, len(mapped) - _FOOTER.size)
        directory = mapped[place : place + length]
        if magic != _MAGIC or crc32(directory) != checksum:
            raise DamagedIndexError(f"{path} is damaged")
        return _opened(json.loads(directory), mapped)
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise DamagedIndexError(f"{path} cannot be read: {error}") from error


class _ArrayWriter:
    """Writes arrays to a file; equal arrays, such as the row numbers of two columns, are written once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._written: dict[tuple[bytes, str], list[Any]] = {}

    def align(self) -> None:
        self._file.write(bytes(-self._file.tell() % _ALIGNMENT))

    def put(self, data: Array) -> list[Any]:
        """Write an array and return its place, length and type."""
        content = np.ascontiguousarray(data).data
        key = blake2b(content).digest(), data.dtype.str
        if key not in self._written:
            self.align()
            self._written[key] = [self._file.tell(), len(data), data.dtype.str]
            self._file.write(content)
        return self._written[key]


def _described(segment: Segment, writer: _ArrayWriter) -> dict[str, Any]:
    return {
        "size": segment.size,
        "keys": [writer.put(half) for half in segment.keys],
        "by_key": writer.put(segment.by_key),
        "replaced": [writer.put(half) for half in segment.replaced],
        "columns": {name: _described_column(column, writer) for name, column in segment.columns.items()},
    }


def _described_column(column: SegmentColumn, writer: _ArrayWriter) -> dict[str, Any]:
    described: dict[str, Any] = {"kind": column.kind.value, "data": writer.put(column.data)}
    if column.rows is not None:
        described["rows"] = writer.put(column.rows)
    if column.several:
        described["several"] = True
    words = column.words
    if isinstance(words, TextWords):
        described["texts"] = [writer.put(words.blob), writer.put(words.starts)]
        if words.folded:
            described["folded"] = [writer.put(part) for part in words.folded]
    elif words is not None:
        described["words"] = writer.put(words)
    return described


def _opened(directory: Mapping[str, Any], mapped: mmap.mmap) -> Segment:
    def array(described: Sequence[Any]) -> Array:
        place, length, type_ = described
        return np.frombuffer(mapped, np.dtype(type_), length, place) if length else np.zeros(0, np.dtype(type_))

    def keys(described: Sequence[Any]) -> SegmentKeys:
        high, low = map(array, described)
        return SegmentKeys(high, low)

    def words(described: Mapping[str, Any]) -> Words | None:
        if "texts" in described:
            blob, starts = map(array, described["texts"])
            folded = tuple(map(array, described["folded"])) if "folded" in described else None
            return TextWords(blob, starts, folded)  # type: ignore[arg-type]  # a pair
        return array(described["words"]) if "words" in described else None

    size = directory["size"]

    def column(described: Mapping[str, Any]) -> SegmentColumn:
        return SegmentColumn(
            ColumnKind(described["kind"]),
            size,
            array(described["data"]),
            words(described),
            array(described["rows"]) if "rows" in described else None,
            described.get("several", False),
        )

    return Segment(
        size,
        keys(directory["keys"]),
        array(directory["by_key"]),
        keys(directory["replaced"]),
        {name: column(described) for name, described in directory["columns"].items()},
    )


def stray_files(folder: Path) -> Iterator[Path]:
    """Yield the files of the index in *folder*."""
    for pattern in (MANIFEST, f"{MANIFEST}.new", f"*{SUFFIX}"):
        yield from folder.glob(pattern)
