"""The structure of PNG, JPEG and TIFF files: what a file contains besides the pixels that a decoder returns.

Law: every byte of the file is accounted for. A file with parts that are not described here,
or that a decoder of 8 bits a channel would round, is refused with the reason.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from zlib import crc32

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAX_PAGES = 10_000
_MAX_COMPRESSED_PAGES = 4_000
"""Pages that libtiff decodes: for each of them it reads the directories of all pages before."""
_MOST_PARTS = 100_000
_MOST_TAGS = 200_000
"""Tags of all pages of a TIFF, each of which pillow parses several times."""
_MOST_SCANS = 100
_MOST_SCANNED = 2_500_000_000
"""Pixels of all scans of a JPEG: each scan refines all pixels."""


Fact = tuple[object, ...] | None
"""The values of one fact: integers, floats or bytes; None if a picture lacks it."""


class PicturePage(NamedTuple):
    """One picture of a file: the bits of each channel, and every fact that is not a pixel, by name."""

    bits: tuple[int, ...]
    facts: Mapping[str, tuple[object, ...]]


class PictureFile(NamedTuple):
    """The format of a file, as pillow names it, and its pages."""

    format: str
    pages: tuple[PicturePage, ...]


def read_structure(data: bytes) -> PictureFile:
    """Return the structure of a picture.

    Raises:
        ValueError: If it is damaged, or cannot be compared completely by its pixels; the message says why.
    """
    try:
        if data.startswith(_PNG):
            return PictureFile("PNG", (_png_page(data),))
        if data.startswith(_JPEG):
            return PictureFile("JPEG", (_jpeg_page(data),))
        if data.startswith(_TIFF):
            return PictureFile("TIFF", tuple(_Tiff(data).pages()))
    except (struct.error, IndexError, OverflowError) as error:
        raise ValueError("the picture is damaged or incomplete") from error
    raise ValueError("only PNG, TIFF and JPEG pictures are compared by pixels")


# --- PNG (ISO/IEC 15948) ---------------------------------------------------------


def _png_page(data: bytes) -> PicturePage:
    facts: dict[str, list[bytes]] = {}
    chunks = list(_png_chunks(data))
    names = [name for name, _ in chunks]
    if names[0] != b"IHDR" or names[-1] != b"IEND" or names.count(b"IEND") != 1 or names.count(b"IHDR") != 1:
        raise ValueError("the picture is damaged or incomplete")
    if b"acTL" in names:
        raise ValueError("it has several frames")
    depth, color = chunks[0][1][8], chunks[0][1][9]
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color] if color in {0, 2, 3, 4, 6} else 0
    if depth > 8 and channels > 1:  # noqa: PLR2004 - bits
        raise ValueError(f"its {channels} channels have {depth} bits each")
    for name, content in chunks:
        if name not in {b"IHDR", b"IDAT", b"IEND"}:
            facts.setdefault(f"PNG chunk {name.decode('latin-1')}", []).append(content)
    return PicturePage((depth,) * channels, {name: tuple(contents) for name, contents in facts.items()})


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, count = len(_PNG), 0
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
        if crc32(name + content) != checksum:
            raise ValueError("the picture is damaged: a checksum is wrong")
        yield name, content
        at += length + 12
        count += 1
        if count > _MOST_PARTS:
            raise ValueError(f"it has more than {_MOST_PARTS} chunks")


# --- JPEG (ITU T.81) -------------------------------------------------------------

_EOI, _SOS, _COM = 0xD9, 0xDA, 0xFE
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_APPLICATION = range(0xE0, 0xF0)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _jpeg_page(data: bytes) -> PicturePage:
    facts: dict[str, list[bytes]] = {}
    bits: tuple[int, ...] = ()
    at, scans, pixels = 2, 0, 0
    while True:
        if data[at] != 0xFF:  # noqa: PLR2004 - each marker begins with this byte
            raise ValueError("the picture is damaged or incomplete")
        marker = data[at + 1]
        at += 2 if marker != 0xFF else 1  # noqa: PLR2004 - a fill byte
        if marker == _EOI:
            break
        if marker in _ALONE or marker == 0xFF:  # noqa: PLR2004 - a fill byte
            continue
        (length,) = struct.unpack_from(">H", data, at)
        content = data[at + 2 : at + length]
        at += max(length, 2)
        if marker in _APPLICATION or marker == _COM:
            facts.setdefault(f"JPEG segment {marker:X}", []).append(content)
        elif marker in _FRAMES:
            bits, pixels = (content[0],) * content[5], max(pixels, _pixels(content))
        elif marker == _SOS:
            at, scans = _end_of_scan(data, at, (scans + 1) * pixels, scans), scans + 1
    if at != len(data):
        raise ValueError("more data follows the picture")
    if set(bits) != {8}:
        raise ValueError("its channels do not have 8 bits")
    return PicturePage(bits, {name: tuple(contents) for name, contents in facts.items()})


def _pixels(frame: bytes) -> int:
    height, width = struct.unpack_from(">HH", frame, 1)
    return int(height * width)


def _end_of_scan(data: bytes, at: int, pixels: int, before: int) -> int:
    if pixels > _MOST_SCANNED:
        raise ValueError(f"its scans have more than {_MOST_SCANNED} pixels")
    if before >= _MOST_SCANS:  # a decoder takes the time of a whole picture for each
        raise ValueError(f"it has more than {_MOST_SCANS} scans")
    while (at := data.find(b"\xff", at)) >= 0:
        if data[at + 1] and data[at + 1] not in _ALONE:
            return at
        at += 2
    raise ValueError("the picture is damaged or incomplete")


# --- TIFF (revision 6.0, and BigTIFF) --------------------------------------------

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8, 17: 8}
_LETTERS = {3: "H", 4: "I", 5: "II", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 16: "Q", 17: "q"}
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _EXTRA, _FORMAT = 258, 259, 262, 277, 338, 339
_DATA = ((273, 279), (324, 325))  # offsets and sizes of strips, and of tiles
_ENCODING = frozenset(
    {256, 257, _BITS, _COMPRESSION, 266, 273, _SAMPLES, 278, 279, 284, 317, 322, 323, 324, 325, _EXTRA, _FORMAT}
)
_POINTERS = frozenset({330, 513, 514, 34665, 34853, 40965})
_EXACT = frozenset({((1,), 1), ((8,), 1), ((16,), 1), ((16,), 2), ((32,), 2), ((32,), 3)})
"""Bits and sample format of a single channel that pillow keeps: integers without and with a sign, and floats."""
_UNALIGNED = 15
"""Writers align data to 16 bytes at most."""


class _Tiff:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data[:1] == b"I" else ">"
        self._is_big = data[2:4] in {b"+\0", b"\0+"}
        self._covered = [(0, 16 if self._is_big else 8)]
        self._directories: set[int] = set()
        self._taken = self._tags = self._compressed = 0

    def pages(self) -> Iterator[PicturePage]:
        """Yield the pages, then check that they are all that the file contains."""
        at = self._read("Q", 8) if self._is_big else self._read("I", 4)
        while at:
            if at in self._directories:
                raise ValueError("its directories have no end")
            if len(self._directories) >= _MAX_PAGES:
                raise ValueError(f"it has more than {_MAX_PAGES} pages")
            self._directories.add(at)
            tags, at = self._directory(at)
            yield self._page(tags)
        self._check_covered()

    def _read(self, letter: str, at: int) -> int:
        return int(struct.unpack_from(self._order + letter, self._data, at)[0])

    def _directory(self, at: int) -> tuple[dict[int, tuple[object, ...]], int]:
        letters, width = ("Q", 8) if self._is_big else ("H", 2), 20 if self._is_big else 12
        count = self._read(letters[0], at)
        begin, end = at + letters[1], at + letters[1] + count * width
        following = self._read("Q" if self._is_big else "I", end)
        self._covered.append((at, end + (8 if self._is_big else 4)))
        self._taken += end - begin
        self._tags += count
        if self._tags > _MOST_TAGS:
            raise ValueError(f"it has more than {_MOST_TAGS} tags")
        tags = dict(self._tag(begin + number * width) for number in range(count))
        if len(tags) != count:
            raise ValueError("a directory has a tag twice")
        return tags, following

    def _tag(self, at: int) -> tuple[int, tuple[object, ...]]:
        tag, kind = self._read("H", at), self._read("H", at + 2)
        count = self._read("Q" if self._is_big else "I", at + 4)
        if kind not in _SIZES or tag in _POINTERS:
            raise ValueError(f"it has the tag {tag}, which refers to other parts of the file")
        room, place, size = (8, at + 12, count * _SIZES[kind]) if self._is_big else (4, at + 8, count * _SIZES[kind])
        self._taken += size
        if self._taken > len(self._data) * 2:  # honest files share few values, and a hostile file repeats large ones
            raise ValueError("its directories share too much data")
        if size > room:
            place = self._read("Q" if self._is_big else "I", place)
            self._covered.append((place, place + size))
        if place + size > len(self._data):
            raise ValueError("the picture is damaged or incomplete")
        raw = self._data[place : place + size]
        letter = _LETTERS.get(kind)
        return tag, struct.unpack(f"{self._order}{count * len(letter)}{letter[0]}", raw) if letter else (raw,)

    def _page(self, tags: dict[int, tuple[object, ...]]) -> PicturePage:
        for offsets, sizes in _DATA:
            if len(tags.get(offsets, ())) != len(tags.get(sizes, ())):
                raise ValueError("the picture is damaged or incomplete")
            for begin, size in zip(_integers(tags, offsets), _integers(tags, sizes), strict=True):
                self._covered.append((begin, begin + size))
        self._compressed += _integers(tags, _COMPRESSION) not in {(), (1,)}
        if self._compressed > _MAX_COMPRESSED_PAGES:
            raise ValueError(f"it has more than {_MAX_COMPRESSED_PAGES} compressed pages")
        bits = _integers(tags, _BITS) or (1,)
        if len(bits) != (_integers(tags, _SAMPLES) or (1,))[0]:
            raise ValueError("its channels are not described")
        formats = set(_integers(tags, _FORMAT) or (1,))
        extra, photometric = _integers(tags, _EXTRA), _integers(tags, _PHOTOMETRIC)
        # 3: RGB; 4: CMYK, or RGB and an alpha channel that is not multiplied in
        colors = {(3, (2,), ()), (4, (5,), ()), (4, (2,), (2,))}
        if len(bits) == 1:
            exact = not extra and photometric in {(0,), (1,), (3,)} and (bits, formats.pop()) in _EXACT and not formats
        else:
            exact = (len(bits), photometric, extra) in colors and set(bits) == {8} and formats == {1}
        if not exact:
            raise ValueError(f"pixels of {len(bits)} x {bits[0]} bits of this kind are not compared completely")
        # Pillow inverts some pictures in which 0 is white; the other kinds have different modes.
        hidden = _ENCODING if photometric == (0,) else _ENCODING | {_PHOTOMETRIC}
        return PicturePage(bits, {f"TIFF tag {tag}": value for tag, value in tags.items() if tag not in hidden})

    def _check_covered(self) -> None:
        reached = 0
        for begin, end in [*sorted(self._covered), (len(self._data), len(self._data))]:
            if not self._is_empty(reached, begin):
                raise ValueError("it contains data besides the pages that it lists")
            if end > len(self._data):
                raise ValueError("the picture is damaged or incomplete")
            reached = max(reached, end)

    def _is_empty(self, begin: int, end: int) -> bool:
        """Whether a gap contains only zeros that align data, and the header of a file that was appended as a page."""
        gap = self._data[begin:end]
        header = max(gap.find(mark) for mark in _TIFF[:2])
        if header >= 0 and len(gap) >= header + 8:
            is_of_page = begin + header + self._read("I", begin + header + 4) in self._directories
            gap = gap[:header] + gap[header + 8 :] if is_of_page else gap
        return len(gap) <= _UNALIGNED and not gap.strip(b"\0")


def _integers(tags: Mapping[int, tuple[object, ...]], tag: int) -> tuple[int, ...]:
    values = tags.get(tag, ())
    if not all(isinstance(value, int) for value in values):
        raise ValueError(f"its tag {tag} does not contain integers")
    return tuple(value for value in values if isinstance(value, int))
