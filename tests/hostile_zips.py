"""Hostile zips, built field by field around the files of a valid bundle."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

LINK, DEVICE, PIPE, FILE = 0o120777, 0o020666, 0o010666, 0o100644


@dataclass(frozen=True)
class Member:
    """An entry and its two headers; a field that is None is computed from the data."""

    name: bytes
    data: bytes = b"x"
    method: int = 0
    flags: int = 0x800
    mode: int = FILE
    size: int | None = None
    packed: int | None = None
    checksum: int | None = None
    extra: bytes = b""
    local_extra: bytes = b""
    local_name: bytes | None = None
    offset: int | None = None
    disk: int = 0

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
        out += struct.pack("<4s5H3L2H", b"PK\3\4", 20, *sizes, len(local), len(member.local_extra))
        out += local + member.local_extra + stream
        place = offset if member.offset is None else member.offset
        rest = (len(member.name), len(member.extra), 0, member.disk, 0, member.mode << 16, place)
        central += struct.pack("<4s6H3L5H2L", b"PK\1\2", 0x314, 20, *sizes, *rest) + member.name + member.extra
    entries = len(members) if count is None else count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, entries, entries, len(central), len(out), len(comment))
    return bytes(out + central + end + comment)


def members_of(files: Mapping[str, bytes]) -> list[Member]:
    return [Member(path.encode(), data) for path, data in files.items()]


Hostile = Callable[[list[Member]], bytes]


def with_one_more(name: str, **fields: Any) -> Hostile:
    return lambda members: a_zip([*members, Member(name.encode(), **fields)])


def with_first(**fields: Any) -> Hostile:
    return lambda members: a_zip([replace(members[0], **fields), *members[1:]])


def _extra(kind: int, data: bytes) -> bytes:
    return struct.pack("<HH", kind, len(data)) + data


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
    "a NUL in the name": (with_one_more("evil\0.txt"), r"evil"),
    "a line break in the name": (with_one_more(f"{TOP}outputs/a\nb"), r"control character"),
    "a symbolic link": (with_one_more(f"{TOP}outputs/evil", data=b"/etc/passwd", mode=LINK), r"evil'.*link"),
    "a device": (with_one_more(f"{TOP}outputs/evil", mode=DEVICE), r"evil'.*special file"),
    "a pipe": (with_one_more(f"{TOP}outputs/evil", mode=PIPE), r"evil'.*special file"),
    "a hard link": (
        with_one_more(f"{TOP}outputs/evil", extra=_extra(0x000D, bytes(12) + b"/etc/passwd")),
        r"evil'.*link",
    ),
    "a link as ASi Unix writes it": (with_one_more(f"{TOP}evil", extra=_extra(0x756E, bytes(20))), r"evil'.*link"),
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
