"""Hostile zips, built field by field around the files of a valid bundle."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any


def _extra(kind: int, data: bytes) -> bytes:
    return struct.pack("<HH", kind, len(data)) + data


LINK, DEVICE, PIPE, FILE = 0o120777, 0o020666, 0o010666, 0o100644


@dataclass(frozen=True)
class Member:
    """An entry and its two headers; a field that is None is computed from the data."""

    name: bytes
    data: bytes = b"x"
    method: int = 0
    flags: int = 0x800
    mode: int = FILE
    attributes: int = 0
    """The DOS attributes."""
    size: int | None = None
    packed: int | None = None
    checksum: int | None = None
    extra: bytes = b""
    local_extra: bytes = b""
    local_name: bytes | None = None
    offset: int | None = None
    disk: int = 0
    local: tuple[int, int, int] | None = None
    """Checksum, packed size and size in the local header, where they differ."""
    descriptor: bytes = b""
    """What follows the data."""

    @property
    def stream(self) -> bytes:
        if self.method != 8:
            return self.data
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
        return compressor.compress(self.data) + compressor.flush()


def a_zip(members: Sequence[Member], *, comment: bytes = b"", before: bytes = b"", count: int | None = None) -> bytes:
    """Return a zip of *members*; *count* is their number in the end record."""
    out, central = bytearray(before), bytearray()
    for member in members:
        stream, offset = member.stream, len(out)
        numbers = (
            zlib.crc32(member.data) if member.checksum is None else member.checksum,
            len(stream) if member.packed is None else member.packed,
            len(member.data) if member.size is None else member.size,
        )
        local = member.name if member.local_name is None else member.local_name
        sizes = (member.flags, member.method, 0, 33, *numbers)
        before_name = (*sizes[:-3], *(member.local or numbers))
        out += struct.pack("<4s5H3L2H", b"PK\3\4", 20, *before_name, len(local), len(member.local_extra))
        out += local + member.local_extra + stream + member.descriptor
        place = offset if member.offset is None else member.offset
        rest = (len(member.name), len(member.extra), 0, member.disk, 0, member.mode << 16 | member.attributes, place)
        central += struct.pack("<4s6H3L5H2L", b"PK\1\2", 0x314, 20, *sizes, *rest) + member.name + member.extra
    entries = len(members) if count is None else count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, entries, entries, len(central), len(out), len(comment))
    return bytes(out + central + end + comment)


def members_of(files: Mapping[str, bytes]) -> list[Member]:
    return [Member(path.encode(), data) for path, data in files.items()]


def streamed(member: Member, *, size_known: bool = False, signature: bytes = b"PK\7\x08", wide: bool = False) -> Member:
    """Return *member* as a program writes it that does not know its checksum before its data."""
    numbers = (zlib.crc32(member.data), len(member.stream), len(member.data))
    return replace(
        member,
        flags=member.flags | 8,
        local=(0, 0, numbers[2] if size_known else 0),
        descriptor=signature + struct.pack("<LQQ" if wide else "<LLL", *numbers),
    )


Hostile = Callable[[list[Member]], bytes]


def with_streamed(**fields: Any) -> Hostile:
    """Return a zip whose first entry is streamed, and lies in *fields*."""
    return lambda members: a_zip([replace(streamed(members[0]), **fields), *members[1:]])


def with_one_more(name: str, **fields: Any) -> Hostile:
    return lambda members: a_zip([*members, Member(name.encode(), **fields)])


def with_first(**fields: Any) -> Hostile:
    return lambda members: a_zip([replace(members[0], **fields), *members[1:]])


TOP = "0b1e5a52/"
CORPUS: Mapping[str, tuple[Hostile, str]] = {
    "path traversal": (with_one_more("../evil"), r"'\.\./evil'.*leads out"),
    "path traversal inside": (with_one_more(f"{TOP}outputs/../../evil"), r"evil'.*leads out"),
    "path traversal for Windows": (with_one_more("..\\evil"), r"evil'.*backslash"),
    "absolute path": (with_one_more("/etc/evil"), r"'/etc/evil'.*absolute"),
    "a drive's name": (with_one_more("C:evil"), r"'C:evil'.*drive"),
    "a dot for a part": (with_one_more(f"{TOP}./evil"), r"empty part"),
    "an empty part": (with_one_more(f"{TOP}/evil"), r"empty part"),
    "an empty name": (with_one_more(""), r"''"),
    "a NUL in the name": (with_one_more("evil\0.txt"), r"evil.*NUL character"),
    "a line break in the name": (with_one_more(f"{TOP}outputs/a\nb"), r"control character"),
    "a symbolic link": (with_one_more(f"{TOP}outputs/evil", data=b"/etc/passwd", mode=LINK), r"evil'.*link"),
    "a device": (with_one_more(f"{TOP}outputs/evil", mode=DEVICE), r"evil'.*special file"),
    "a pipe": (with_one_more(f"{TOP}outputs/evil", mode=PIPE), r"evil'.*special file"),
    "a hard link": (
        with_one_more(f"{TOP}outputs/evil", extra=_extra(0x000D, bytes(12) + b"/etc/passwd")),
        r"evil'.*link",
    ),
    "a link as ASi Unix writes it": (with_one_more(f"{TOP}evil", extra=_extra(0x756E, bytes(20))), r"evil'.*link"),
    "a file that DOS takes for a folder": (
        with_one_more(f"{TOP}outputs/evil", attributes=0x10),
        r"evil'.*special file",
    ),
    "a file that DOS takes for a label": (with_one_more(f"{TOP}outputs/evil", attributes=0x08), r"evil'.*special file"),
    "another name for some readers": (
        with_one_more(f"{TOP}a", extra=_extra(0x7075, b"\1" + bytes(4) + b"../evil")),
        r"another name",
    ),
    "a device's name": (with_one_more(f"{TOP}outputs/NUL.txt"), r"NUL\.txt'.*device"),
    "another device's name": (with_one_more(f"{TOP}aux/a"), r"aux/a'.*device"),
    "a name that Windows shortens": (with_one_more(f"{TOP}outputs/a. "), r"space or dot"),
    "a name too long": (with_one_more(f"{TOP}outputs/{'a' * 300}"), r"longer than 255"),
    "a path that no system opens": (with_one_more(f"{TOP}{'a/' * 5000}x"), r"its name has \d+ bytes; the limit is"),
    "more folders than there may be files": (with_one_more(f"{TOP}{'a/' * 1500}x"), r"more than 1000 folders"),
    "the same name twice": (with_one_more(f"{TOP}metadata/method.json"), r"method\.json'.*two entries have this name"),
    "a folder of the same name": (
        with_one_more(f"{TOP}metadata/method.json/", data=b"", mode=0o040755),
        r"method\.json'.*two entries have this name",
    ),
    "names that differ in capitals only": (with_one_more(f"{TOP}metadata/METHOD.json"), r"same file"),
    "folders that differ in capitals only": (with_one_more(f"{TOP}Metadata/x"), r"as the same folder"),
    "names that differ in their form only": (
        lambda members: a_zip([*members, Member("é".encode()), Member("e\u0301".encode())]),
        r"same file",
    ),
    "a file below a file": (with_one_more(f"{TOP}metadata/method.json/a"), r"method\.json'.*folder has the same name"),
    "overlapping entries": (
        with_one_more(f"{TOP}outputs/evil", offset=0),
        r"overlaps|method\.json'|another|two entries",
    ),
    "an entry inside another": (with_one_more(f"{TOP}outputs/evil", offset=40), r"overlap|local header"),
    "something before the first entry": (lambda members: a_zip(members, before=b"#!/bin/sh\n"), r"before its first"),
    "something behind the end": (lambda members: a_zip(members) + b"x", r"does not end"),
    "a comment": (lambda members: a_zip(members, comment=b"PK\5\6"), r"comment|does not end"),
    "a comment that holds a whole second directory": (
        lambda members: a_zip(members, comment=a_zip([Member(b"evil")])),
        r"does not end as a zip|data before its first|directory",
    ),
    "something behind the padding": (
        lambda members: a_zip(members) + bytes(511 - len(a_zip(members)) % 512) + b"x",
        r"does not end",
    ),
    "more padding than a comment may have": (lambda members: a_zip(members).ljust(512 * 500, b"\0"), r"not a zip"),
    "a descriptor with another checksum": (
        with_streamed(descriptor=b"PK\7\x08" + bytes(12)),
        r"does not end where the next entry begins",
    ),
    "a descriptor with another size": (
        lambda members: with_streamed(
            descriptor=struct.pack("<4sLLL", b"PK\7\x08", zlib.crc32(members[0].data), len(members[0].data), 1)
        )(members),
        r"does not end where the next entry begins",
    ),
    "no descriptor where one is announced": (with_streamed(descriptor=b""), r"does not end where"),
    "two descriptors": (
        lambda members: with_streamed(descriptor=streamed(members[0]).descriptor * 2)(members),
        r"does not end where",
    ),
    "a descriptor of 64 bits without a reason": (
        lambda members: a_zip([streamed(members[0], wide=True), *members[1:]]),
        r"does not end where",
    ),
    "a descriptor that is not announced": (with_first(descriptor=b"PK\7\x08" + bytes(12)), r"does not end where"),
    "zeros in a local header without a descriptor": (with_first(local=(0, 0, 0)), r"other sizes or another checksum"),
    "another checksum before a descriptor": (with_streamed(local=(1, 0, 0)), r"other sizes or another checksum"),
    "another size before a descriptor": (with_streamed(local=(0, 0, 1)), r"other sizes or another checksum"),
    "another packed size before a descriptor": (with_streamed(local=(0, 1, 0)), r"other sizes or another checksum"),
    "another name before a descriptor": (with_streamed(local_name=b"0b1e5a52/auth/jwt.jsox"), r"local header differs"),
    "sizes that do not fit before a descriptor": (
        with_streamed(local=(0, 0xFFFFFFFF, 0xFFFFFFFF)),
        r"other sizes or another checksum",
    ),
    "64-bit sizes that lie before a descriptor": (
        with_streamed(local=(0, 0xFFFFFFFF, 0xFFFFFFFF), local_extra=_extra(1, struct.pack("<QQ", 1, 1))),
        r"other sizes or another checksum",
    ),
    "a streamed entry inside another": (
        lambda members: a_zip([*members, replace(streamed(Member(f"{TOP}outputs/evil".encode())), offset=40)]),
        r"overlap|local header|another name",
    ),
    "a folder with another name in its local header": (
        with_one_more(f"{TOP}outputs/", data=b"", mode=0o040755, local_name=f"{TOP}outputx/".encode()),
        r"local header differs",
    ),
    "a folder with packed data": (
        with_one_more(f"{TOP}outputs/", data=b"evil", method=8, size=0, mode=0o040755),
        r"announces 0 bytes and has more",
    ),
    "a folder with much packed data": (
        with_one_more(f"{TOP}outputs/", data=bytes(100_000), method=8, size=0, mode=0o040755),
        r"cannot have 0 bytes",
    ),
    "a traversal without the flag for UTF-8": (with_one_more("ü/../../evil", flags=0), r"evil'.*leads out"),
    "another name for readers of Unicode paths": (
        with_one_more(f"{TOP}ü", flags=0, extra=_extra(0x7075, b"\1" + bytes(4) + b"evil")),
        r"another name",
    ),
    "another name in a local header for readers of Unicode paths": (
        with_one_more(f"{TOP}ü", flags=0, local_extra=_extra(0x7075, b"\1" + bytes(4) + b"evil")),
        r"another name",
    ),
    "a smaller size": (with_first(size=1), r"cannot have 1 bytes"),
    "a larger size": (with_first(size=1 << 30), r"cannot have"),
    "a larger size that deflate allows": (with_first(method=8, size=100_000), r"announces 100000 bytes"),
    "a smaller size than is packed": (with_first(method=8, size=1), r"announces 1 bytes and has more"),
    "a wrong checksum": (with_first(checksum=1), r"another checksum"),
    "another name in the local header": (with_first(local_name=b"0b1e5a52/auth/jwt.jsox"), r"local header differs"),
    "an encrypted entry": (with_first(flags=0x801), r"encrypted"),
    "an entry with strong encryption": (with_first(extra=_extra(0x0017, bytes(8))), r"encrypt"),
    "an entry with AES": (with_first(method=99, extra=_extra(0x9901, bytes(7))), r"encrypt"),
    "an unknown method": (with_first(method=12, data=b""), r"another method"),
    "a name that is not UTF-8": (with_first(name=b"0b1e5a52/\xff\xfe"), r"not UTF-8"),
    "a surrogate in a name": (with_first(name=b"0b1e5a52/\xed\xa0\x80"), r"not UTF-8"),
    "a name in another code page": (with_first(name="0b1e5a52/ä".encode("cp437"), flags=0), r"not UTF-8"),
    "broken extra fields": (with_first(extra=b"\1\0\xff\xff"), r"extra fields"),
    "another disk": (with_first(disk=1), r"in parts"),
    "no entry": (lambda _members: a_zip([]), r"contains no bundle"),
    "more entries than there are": (lambda members: a_zip(members, count=len(members) + 1), r"directory"),
    "fewer entries than there are": (lambda members: a_zip(members, count=len(members) - 1), r"directory"),
    "too many entries": (
        lambda members: a_zip([*members, *(Member(f"{TOP}outputs/{number}".encode()) for number in range(1000))]),
        r"entries; the limit is 1000",
    ),
    "a bomb": (
        with_one_more(f"{TOP}outputs/evil", data=bytes(30 << 20), method=8),
        r"expands from \d+ to \d+ bytes; the limit is",
    ),
    "a file of no bundle": (with_one_more("evil.txt"), r"'evil\.txt' belongs to no bundle"),
    "a file that the format does not know": (with_one_more(f"{TOP}evil.txt"), r"evil\.txt' is not allowed"),
    "a file that no manifest lists": (
        with_one_more(f"{TOP}outputs/evil.txt"),
        r"evil\.txt' is present and not in the manifest",
    ),
}
"""By fault: the function that makes the zip, and a pattern of the error message."""
