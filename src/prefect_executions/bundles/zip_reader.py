"""A strict zip reader for hostile input: it refuses what is ambiguous and repairs nothing.

It accepts only zips in which every reader sees the same files: the directory ends the
file, entries follow each other without gaps from the first byte on, each local header
agrees with the directory, names are unique and relative, and the data has the announced
size and checksum. `zipfile` reads most zips in tests/hostile_zips.py without an error,
and takes 1.6 times as long for small entries.

It accepts what common programs write and every reader understands:

- a local header whose checksum and sizes are zero because they follow the data
  (libarchive, Java, Info-ZIP to a pipe); the bytes that follow must state them;
- a comment, unless it holds an end record;
- zeros after the end up to a multiple of 512 bytes (bsdtar to a pipe);
- a name in UTF-8 without the flag that says so (Info-ZIP, macOS).

The reader unpacks nothing to disk. It checks the limits against the directory before it
reads any data.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from prefect_executions.errors import BundleError

_LOCAL = struct.Struct("<4sHHHHHLLLHH")
_FORM, _NUMBERS = struct.Struct("<HH"), struct.Struct("<LLLHH")  # parts of a local header
_CENTRAL = struct.Struct("<4sBBHHHHHLLLHHHHHLL")
_END = struct.Struct("<4sHHHHLLH")
_END64 = struct.Struct("<4sQHHLLQQQQ")
_LOCATOR64 = struct.Struct("<4sLQL")

_FULL32, _FULL16 = 0xFFFFFFFF, 0xFFFF
_STORED, _DEFLATED = 0, 8
_UTF8, _SIZES_FOLLOW = 0x800, 0x008
# Bits 1 and 2 give deflate's compression level; every other bit is encryption, patches or unused.
_ALLOWED_FLAGS = _UTF8 | _SIZES_FOLLOW | 0x006

# Deflate's own bound: no stream expands to more than 1032 times its length (zlib's technical notes).
_DEFLATE_BOUND = 1032

# APPNOTE 4.6.9 and 4.5: extra fields that may hold another name, the target of a link, or a key,
# the latter with the length up to which they are harmless.
_UNICODE_PATH = 0x7075
_ZIP64 = 1
_LONGEST_HARMLESS = {0x000D: 12, 0x756E: 0, 0x0017: 0, 0x9901: 0}

_BLOCK = 1 << 20
_LONGEST_DESCRIPTOR = 24
_LONGEST_COMMENT = 0xFFFF

_TAPE_BLOCK = 512
"""bsdtar and bsdcpio fill their last block with zeros, as for a tape; on a pipe also in a zip."""

_NO_DOS_FILE = stat.FILE_ATTRIBUTE_DIRECTORY | 0x08  # a volume label
_LONGEST_EMPTY = 16
"""Packed bytes that a folder may have: Java deflates its empty data to 2."""

ACCEPTED = "accepted are a zip without encryption whose files are stored or deflated, and the unpacked folder"
"""The end of a message on a zip that is harmless, but not in a form that every program reads alike."""

# Linux opens no path above 4096 bytes (PATH_MAX); an export adds some folders in front.
_LONGEST_NAME = 8192


class Limits(NamedTuple):
    """The resources that an untrusted bundle may take on this machine."""

    entries: int = 500_000
    """Entries of a zip; a million would take more than 200 MiB of memory."""
    allowance: int = 20 << 30
    """Unpacked bytes that any zip may have, however small it is."""
    expansion: int = 200
    """Beyond the allowance: how many times its own length a zip may expand to."""
    document: int = 64 << 20
    """Bytes of a document that is read into memory."""


TRUSTED_LIMITS = Limits(entries=10_000_000, allowance=1 << 50)
"""For our own zips whose digest was checked: their content is what a Method wrote."""


class ZipEntry(NamedTuple):
    """An entry of the directory, with the offsets where its local header begins and where the next entry begins."""

    name: str
    flags: int
    method: int
    checksum: int
    packed: int
    size: int
    offset: int
    end: int
    is_folder: bool

    @property
    def raw_name(self) -> bytes:
        """The name as it is in the zip."""
        return self.name.encode()

    @property
    def stored(self) -> bool:
        """Whether the data is not compressed."""
        return self.method == _STORED


@dataclass(frozen=True)
class ZipReader:
    """A zip with a valid directory; local headers and data are checked when they are read."""

    stream: BinaryIO
    entries: Mapping[str, ZipEntry]
    """Every file and folder by its name, in the order of their offsets."""

    @classmethod
    def open(cls, stream: BinaryIO, limits: Limits) -> ZipReader:
        """Read the directory of *stream*.

        Raises:
            BundleError: If it is truncated, not a zip, inconsistent, has a refused
                name, or exceeds *limits*.
        """
        begin, length, count = _find_directory(stream)
        if count > limits.entries:
            raise BundleError(f"it has {count} entries; the limit is {limits.entries}")
        if length > count * (_CENTRAL.size + 3 * _FULL16):
            raise BundleError("its directory is longer than its entries can be")
        stream.seek(begin)
        entries = _in_order(list(_directory(_exactly(stream, length), count)), begin)
        unpacked, packed = sum(entry.size for entry in entries), begin + length
        if unpacked > max(limits.allowance, limits.expansion * packed):
            raise BundleError(f"it expands from {packed} to {unpacked} bytes; the limit is {limits.allowance}")
        return cls(stream, {entry.name: entry for entry in entries})

    def data_offset(self, entry: ZipEntry) -> int:
        """Return where the data of *entry* begins, after comparing its local header with the directory.

        Raises:
            BundleError: If they differ, or the data does not end where the next entry begins.
        """
        raw_name = entry.raw_name
        self.stream.seek(entry.offset)
        header = _exactly(self.stream, _LOCAL.size + len(raw_name))
        begin: int = entry.offset + len(header)
        if _is_plain(header, raw_name, entry) and begin + entry.packed == entry.end:
            return begin
        magic, _needed, flags, method, _time, _date, *numbers, name_length, extra_length = _LOCAL.unpack_from(header)
        expected = (b"PK\3\4", entry.flags, entry.method, len(raw_name), raw_name)
        if (magic, flags, method, name_length, header[_LOCAL.size :]) != expected:
            raise BundleError(f"{entry.name!r}: its local header differs from the directory")
        extra = _extra_fields(_exactly(self.stream, extra_length), raw_name) if extra_length else {}
        if not _agrees(entry, numbers, extra.get(_ZIP64)):
            raise BundleError(f"{entry.name!r}: its local header has other sizes or another checksum")
        begin += extra_length
        self._check_end(entry, begin + entry.packed, wide=_ZIP64 in extra)
        return begin

    def blocks(self, entry: ZipEntry, *, header_checked: bool = False) -> Iterator[bytes]:
        """Yield the content of *entry* in blocks, never more than the directory announced.

        *header_checked* says that `data_offset` of this entry was called before.

        Raises:
            BundleError: If the local header, the size or the checksum differs from the directory.
        """
        # Without a descriptor, `data_offset` accepts data only if it ends where the next entry begins.
        known = header_checked and not entry.flags & _SIZES_FOLLOW
        begin = entry.end - entry.packed if known else self.data_offset(entry)
        if (whole := self._small(entry, begin)) is not None:
            yield whole
            return
        packed_blocks = _range(self.stream, begin, entry.packed)
        size = checksum = 0
        for block in _inflated(packed_blocks, entry) if entry.method == _DEFLATED else packed_blocks:
            size += len(block)
            if size > entry.size:
                break
            checksum = zlib.crc32(block, checksum)
            yield block
        if size != entry.size:
            raise BundleError(
                f"{entry.name!r}: it announces {entry.size} bytes and has {'more' if size > entry.size else size}"
            )
        if checksum != entry.checksum:
            raise BundleError(f"{entry.name!r}: its data has another checksum than announced")

    def compressed_blocks(self, entry: ZipEntry) -> Iterator[bytes]:
        """Yield the data of *entry* as stored in the zip; size and checksum of its content are not checked.

        Raises:
            BundleError: If the local header differs from the directory.
        """
        return _range(self.stream, self.data_offset(entry), entry.packed)

    def check_folders(self) -> None:
        """Check that each folder has no content.

        Raises:
            BundleError: If one has, or its local header differs from the directory.
        """
        for entry in self.entries.values():
            if entry.is_folder and not entry.packed:
                self.data_offset(entry)
            elif entry.is_folder:
                for _ in self.blocks(entry):
                    pass

    def _small(self, entry: ZipEntry, begin: int) -> bytes | None:
        """Return the content of a small entry, read at once; None if the entry is large or damaged."""
        if entry.packed > _BLOCK or entry.size > _BLOCK:
            return None
        self.stream.seek(begin)
        data = self.stream.read(entry.packed)
        if entry.method == _DEFLATED:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                data = inflate.decompress(data, entry.size + 1)
            except zlib.error:
                return None
            if not inflate.eof or inflate.unused_data or inflate.unconsumed_tail:
                return None
        return data if len(data) == entry.size and zlib.crc32(data) == entry.checksum else None

    def _check_end(self, entry: ZipEntry, end: int, *, wide: bool) -> None:
        length = entry.end - end
        if not length and not entry.flags & _SIZES_FOLLOW:
            return
        if 0 <= length <= _LONGEST_DESCRIPTOR:
            self.stream.seek(end)
            if _exactly(self.stream, length) in _descriptors(entry, wide=wide):
                return
        raise BundleError(f"{entry.name!r}: its data does not end where the next entry begins")


def _is_plain(header: bytes, raw_name: bytes, entry: ZipEntry) -> bool:
    """Whether a local header has no extra field, gives the sizes, and agrees with the directory in all of it."""
    if entry.flags & _SIZES_FOLLOW or entry.packed > _FULL32 or entry.size > _FULL32:
        return False
    form, numbers = (entry.flags, entry.method), (entry.checksum, entry.packed, entry.size, len(raw_name), 0)
    return (
        header[:4] == b"PK\3\4"
        and header[6:10] == _FORM.pack(*form)
        and header[14:] == _NUMBERS.pack(*numbers) + raw_name
    )


def _agrees(entry: ZipEntry, numbers: Sequence[int], wide: bytes | None) -> bool:
    """Whether checksum and sizes of a local header are those of the directory, or zero because they follow the data.

    Python wrote zeros into the 64-bit field and the header until 3.11.4; libarchive and Info-ZIP
    give the size before the data, and nothing else.
    """
    checksum, packed, size = numbers
    follows = bool(entry.flags & _SIZES_FOLLOW)
    if wide is not None and not (follows and not any((size, packed, *wide))):
        size, packed = _widen(wide, (size, packed), entry.name)
    pairs = ((checksum, entry.checksum), (packed, entry.packed), (size, entry.size))
    return all(local == listed or (follows and not local) for local, listed in pairs)


def _descriptors(entry: ZipEntry, *, wide: bool) -> Collection[bytes]:
    """Return the valid forms of the bytes after the data of *entry* (APPNOTE 4.3.9).

    The signature is usual and not required. Sizes have 64 bits if they need them, or if the
    local header has a zip64 field (*wide*).
    """
    if not entry.flags & _SIZES_FOLLOW:
        return {b""}
    numbers, forms = (entry.checksum, entry.packed, entry.size), []
    needs_64 = max(numbers) > _FULL32
    if wide or needs_64:
        forms.append(struct.pack("<LQQ", *numbers))
    if not needs_64:
        forms.append(struct.pack("<LLL", *numbers))
    return {signature + form for signature in (b"", b"PK\7\x08") for form in forms}


def _find_end(stream: BinaryIO) -> tuple[int, tuple[Any, ...]]:
    """Return the offset and the fields of the end record, the last one in the file."""
    length = stream.seek(0, 2)
    begin = max(0, length - _END.size - _LONGEST_COMMENT)
    stream.seek(begin)
    tail = _exactly(stream, length - begin)
    at = tail.rfind(b"PK\5\6")
    if at < 0:
        raise BundleError(f"it is not a zip, or truncated; {ACCEPTED}")
    record = tail[at : at + _END.size]
    fields = _END.unpack(record) if len(record) == _END.size else None
    rest = tail[at + _END.size :]
    padding = rest[fields[-1] :] if fields else b""
    if fields is None or fields[-1] > len(rest) or any(padding) or (padding and length % _TAPE_BLOCK):
        raise BundleError(
            "it does not end as a zip does: it is truncated, has data after its end, "
            f"or a comment that holds an end record; {ACCEPTED}"
        )
    return begin + at, fields


def _find_directory(stream: BinaryIO) -> tuple[int, int, int]:
    end, fields = _find_end(stream)
    _, disk, start_disk, entries_here, count, length, begin, _ = fields
    if disk or start_disk or entries_here != count:
        raise BundleError(f"it is one part of a multi-part zip; {ACCEPTED}")
    if end >= _LOCATOR64.size:
        stream.seek(end - _LOCATOR64.size)
        locator = _LOCATOR64.unpack(_exactly(stream, _LOCATOR64.size))
        if locator[0] == b"PK\6\7":
            begin, length, count = _read_end64(stream, end, locator, (begin, length, count))
            end -= _LOCATOR64.size + _END64.size
    if begin + length != end:
        raise BundleError("its directory does not end where its end record begins")
    return begin, length, count


def _read_end64(
    stream: BinaryIO, end: int, locator: tuple[bytes, int, int, int], narrow: tuple[int, int, int]
) -> tuple[int, int, int]:
    offset = end - _LOCATOR64.size - _END64.size
    if offset < 0 or locator[1:] != (0, offset, 1):
        raise BundleError("its 64-bit end record is not at the offset that its locator gives")
    stream.seek(offset)
    magic, rest, _made, _needed, disk, start_disk, entries_here, count, length, begin = _END64.unpack(
        _exactly(stream, _END64.size)
    )
    if magic != b"PK\6\6" or rest != _END64.size - 12 or disk or start_disk or entries_here != count:
        raise BundleError("its 64-bit end record is damaged")
    wide = (begin, length, count)
    for little, big, full in zip(narrow, wide, (_FULL32, _FULL32, _FULL16), strict=True):
        if little not in {full, big}:
            raise BundleError("its two end records differ")
    return wide


def _directory(data: bytes, count: int) -> Iterator[ZipEntry]:
    position = 0
    for _ in range(count):
        if position + _CENTRAL.size > len(data):
            raise BundleError("its directory is shorter than its end record says")
        fields = _CENTRAL.unpack_from(data, position)
        name_length, extra_length, comment_length = fields[11:14]
        position += _CENTRAL.size
        name = data[position : position + name_length]
        position += name_length
        extra = data[position : position + extra_length]
        position += extra_length + comment_length
        if fields[0] != b"PK\1\2" or position > len(data):
            raise BundleError("its directory is damaged")
        yield _entry(fields, name, extra)
    if position != len(data):
        raise BundleError("its directory is longer than its entries")


def _entry(fields: tuple[int, ...], raw_name: bytes, raw_extra: bytes) -> ZipEntry:
    _, _, _, _, flags, method, _, _, checksum, packed, size, _, _, _, disk, _, attributes, offset = fields
    name = _name(raw_name)
    extra = _extra_fields(raw_extra, raw_name)
    if _ZIP64 in extra:
        size, packed, offset = _widen(extra[_ZIP64], (size, packed, offset), name)
    if flags & ~_ALLOWED_FLAGS or method not in {_STORED, _DEFLATED} or disk:
        raise BundleError(
            f"{name!r}: it is encrypted, in parts, or compressed by another method than deflate; {ACCEPTED}"
        )
    kind = stat.S_IFMT(attributes >> 16)
    is_folder = name.endswith("/")
    # Of a zip from Windows, 7-Zip takes an entry with the DOS attribute for a folder, and unzip skips a volume label.
    if kind not in {0, stat.S_IFDIR if is_folder else stat.S_IFREG} or (not is_folder and attributes & _NO_DOS_FILE):
        raise BundleError(f"{name!r}: it is a link or a special file")
    if (
        (is_folder and (size or packed > _LONGEST_EMPTY))
        or (method == _STORED and packed != size)
        or size > packed * _DEFLATE_BOUND
    ):
        raise BundleError(f"{name!r}: it cannot have {size} bytes in {packed}")
    return ZipEntry(name, flags, method, checksum, packed, size, offset, 0, is_folder)


def _name(raw: bytes) -> str:
    try:
        # APPNOTE, D.1: without the flag a name is in code page 437, but only old programs for DOS write that.
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{raw[:80]!r}: its name is not UTF-8; {ACCEPTED}") from error
    if len(raw) > _LONGEST_NAME:
        raise BundleError(f"{name[:80]!r} …: its name has {len(raw)} bytes; the limit is {_LONGEST_NAME}")
    parts = name.removesuffix("/").split("/")
    if "\0" in name:
        raise BundleError(f"{name!r}: it has a NUL character, at which some programs end the name")
    if not {"", ".", ".."}.isdisjoint(parts):
        raise BundleError(f"{name!r}: it is absolute, leads out of the zip, or has an empty part")
    return name


def _in_order(entries: list[ZipEntry], directory: int) -> list[ZipEntry]:
    entries.sort(key=lambda entry: entry.offset)
    names: set[str] = set()
    for entry in entries:
        name = entry.name.removesuffix("/")
        if name in names:
            raise BundleError(f"{name!r}: two entries have this name")
        names.add(name)
    if (entries[0].offset if entries else directory) != 0:
        raise BundleError(f"it has data before its first entry; {ACCEPTED}")
    ends = [*(entry.offset for entry in entries), directory][1:]
    for entry, end in zip(entries, ends, strict=True):
        if entry.offset + _LOCAL.size + len(entry.name.encode()) + entry.packed > end:
            raise BundleError(f"{entry.name!r}: it overlaps the next entry")
    return [entry._replace(end=end) for entry, end in zip(entries, ends, strict=True)]


def _extra_fields(data: bytes, raw_name: bytes) -> dict[int, bytes]:
    name = raw_name.decode()
    fields: dict[int, bytes] = {}
    position = 0
    while position < len(data):
        if position + 4 > len(data):
            raise BundleError(f"{name!r}: its extra fields are damaged")
        kind, length = struct.unpack_from("<HH", data, position)
        position += 4 + length
        if position > len(data) or kind in fields:
            raise BundleError(f"{name!r}: its extra fields are damaged")
        fields[kind] = data[position - length : position]
        if length > _LONGEST_HARMLESS.get(kind, length):
            raise BundleError(f"{name!r}: its extra fields make it a link, or encrypt it")
    # A version and the CRC of the name in the header, 5 bytes, precede the Unicode name.
    if _UNICODE_PATH in fields and fields[_UNICODE_PATH][5:] != raw_name:
        raise BundleError(f"{name!r}: its extra fields give it another name")
    return fields


def _widen(field: bytes, values: tuple[int, ...], name: str) -> list[int]:
    """Return *values* with those that do not fit 32 bits taken from the zip64 *field* (APPNOTE 4.5.3)."""
    missing = sum(value == _FULL32 for value in values)
    if len(field) != 8 * missing:
        raise BundleError(f"{name!r}: its 64-bit sizes contradict its 32-bit sizes")
    wide = iter(struct.unpack(f"<{missing}Q", field))
    return [next(wide) if value == _FULL32 else value for value in values]


def _range(stream: BinaryIO, begin: int, length: int) -> Iterator[bytes]:
    while length:
        # The caller may read elsewhere in the stream between two blocks.
        stream.seek(begin)
        block = _exactly(stream, min(length, _BLOCK))
        begin += len(block)
        length -= len(block)
        yield block


def _inflated(raw: Iterator[bytes], entry: ZipEntry) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for packed in raw:
            waiting = packed
            while waiting and not inflate.eof:
                yield inflate.decompress(waiting, _BLOCK)
                waiting = inflate.unconsumed_tail
            if inflate.eof and (inflate.unused_data or waiting):
                raise BundleError(f"{entry.name!r}: bytes follow the end of its compressed data")
        while rest := inflate.decompress(b"", _BLOCK):
            yield rest
    except zlib.error as error:
        raise BundleError(f"{entry.name!r}: its data is damaged: {error}") from error
    if not inflate.eof:
        raise BundleError(f"{entry.name!r}: its data is truncated")


def _exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) != length:
        raise BundleError("it is truncated")
    return data
