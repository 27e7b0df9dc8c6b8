"""Compares two pictures pixel by pixel: all pages, and all bits of each channel.

Law: two pictures are equal only if everything else in their files is equal as well.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from math import copysign, isfinite, isnan
from struct import calcsize, unpack
from typing import TYPE_CHECKING
from warnings import catch_warnings, simplefilter

from prefect_executions.comparison.picture_files import Fact, PictureFile, PicturePage, read_structure
from prefect_executions.comparison.results import Incomparable, Result, Runs, first_few, within
from prefect_executions.comparison.verdict import Agreement
from prefect_executions.methods.model import Comparison

if TYPE_CHECKING:
    from PIL.Image import Image

_CHANNELS = {
    **dict.fromkeys(("1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr"), "B"),
    **dict.fromkeys(("I;16", "I;16L", "I;16B"), "H"),
    "I": "i",
    "F": "f",
}
"""Pillow modes whose pixels are those of the file, with the array type of a channel."""
_MOST_PIXELS = 200_000_000
_MOST_BYTES = 160 << 20
"""Memory of one decoded page; two are in memory, however small their files are."""
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2}
"""Memory that pillow takes for a pixel; 4 in every other mode."""
_MOST_COMPARED = 200_000_000
"""Values of channels that are compared one by one, which takes up to 0.3 µs each."""
_BLOCK = 1 << 16
_PNG_TIME = ">H5B"

_Equal = Callable[[float, float], bool]


@dataclass
class _Effort:
    """How many values may still be compared one by one, of all pages together."""

    left: int


def compare_pictures(before: bytes, after: bytes, comparison: Comparison, runs: Runs) -> Result:
    """Compare two pictures; they are equal if their pixels and all other facts in their files are.

    Raises:
        Incomparable: If pillow is missing, or either picture is damaged, too large, or of a
            kind of which pillow does not return all pages or bits.
    """
    try:
        files = read_structure(before), read_structure(after)
        if len(files[0].pages) != len(files[1].pages):
            return _differs(f"it had {len(files[0].pages)} pages and has {len(files[1].pages)}")
        with catch_warnings():
            simplefilter("ignore")  # pillow warns of large or odd pictures on stderr
            with _opened(before, files[0]) as first, _opened(after, files[1]) as second:
                words = list(_page_drift((first, second), files, comparison))
    except ImportError:
        raise Incomparable("comparing pixels needs the package pillow") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise Incomparable(f"{error}" or "the picture cannot be read") from error
    except Exception as error:  # the errors of pillow's decoders have no common base class
        raise Incomparable(f"the picture cannot be read ({type(error).__name__})") from error
    if words:
        return _differs(*first_few(words, "page"))
    return _compare_facts(files, runs, comparison)


def _opened(data: bytes, file: PictureFile) -> Image:
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 - an extra of this package

    try:
        picture = Image.open(BytesIO(data), formats=[file.format])
    except Image.DecompressionBombError as error:
        raise ValueError("it is too large") from error
    except UnidentifiedImageError as error:  # its text has a memory address
        raise ValueError("pillow cannot read the picture") from error
    if getattr(picture, "n_frames", 1) != len(file.pages):
        raise ValueError("not all of its pages can be read")
    return picture


def _page_drift(
    pictures: tuple[Image, Image], files: tuple[PictureFile, PictureFile], comparison: Comparison
) -> Iterator[str]:
    several, total, differs = len(files[0].pages) > 1, 0, False
    effort = _Effort(_MOST_COMPARED)
    for number, pages in enumerate(zip(files[0].pages, files[1].pages, strict=True)):
        total += max(_size_at(picture, number) for picture in pictures)
        if total > _MOST_PIXELS:
            raise ValueError("it is too large")
        words = _drift(*pictures, pages, comparison, effort)
        if words:
            yield f"page {number + 1}: {words}" if several else words
        differs = differs or words is not None
        if effort.left < 0:
            if not differs:
                raise ValueError(f"it has too many values to compare one by one; the limit is {_MOST_COMPARED}")
            if number + 1 < len(files[0].pages):
                yield f"the pages after page {number + 1} were not compared"
            return


def _size_at(picture: Image, number: int) -> int:
    if number:
        picture.seek(number)
    pixels = picture.size[0] * picture.size[1]
    if pixels * _PIXEL_BYTES.get(picture.mode, 4) > _MOST_BYTES:
        raise ValueError("it is too large")
    return pixels


def _mode(picture: Image) -> str:
    if picture.mode not in _CHANNELS:
        raise ValueError(f"its pixels, of the mode {picture.mode}, are not compared completely")
    return "I;16" if picture.mode.startswith("I;16") else picture.mode


def _strips(picture: Image) -> Iterator[array[int] | array[float]]:
    """Yield the channels of some rows at a time."""
    width, height = picture.size
    rows = max(1, _BLOCK // max(1, width))
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(height, top + rows)))
        channels = array(_CHANNELS[picture.mode], (strip.convert("L") if strip.mode == "1" else strip).tobytes())
        if channels.typecode == "H" and (picture.mode == "I;16B") is (sys.byteorder == "little"):
            channels.byteswap()
        yield channels


def _drift(
    first: Image, second: Image, pages: tuple[PicturePage, PicturePage], comparison: Comparison, effort: _Effort
) -> str | None:
    first.load()
    second.load()
    modes = _mode(first), _mode(second)
    if first.size != second.size:
        return f"it was {_size(first.size)} pixels and is {_size(second.size)}"
    bits = pages[0].bits, pages[1].bits
    if modes[0] != modes[1] or bits[0] != bits[1]:
        return f"its pixels were {_kind(modes[0], bits[0])} and are {_kind(modes[1], bits[1])}"
    # The pixels of a palette are names of colours, and names are not near to each other.
    exact = modes[0] == "P" or not (comparison.tolerance or comparison.absolute_tolerance)
    pixels = first.size[0] * first.size[1]
    equal = _same if exact else _within_tolerance(comparison)
    differing, largest = 0, 0.0
    for old, new in zip(_strips(first), _strips(second), strict=True):
        if old.tobytes() != new.tobytes():
            effort.left -= len(old)
            if effort.left < 0:
                break
            count, most = _count(old, new, len(first.getbands()), equal)
            differing, largest = differing + count, max(largest, most)
    least = "at least " if effort.left < 0 else ""
    return f"{least}{differing} of {pixels} pixels differ, in a channel by up to {largest:g}" if differing else None


def _count(
    first: array[int] | array[float], second: array[int] | array[float], channels: int, equal: _Equal
) -> tuple[int, float]:
    differing, largest, last = 0, 0.0, -1
    for at, (old, new) in enumerate(zip(first, second, strict=True)):
        if old is new or equal(old, new):
            continue
        differing += at // channels != last
        last, largest = at // channels, max(largest, abs(old - new))
    return differing, largest


def _same(first: float, second: float) -> bool:
    return (first == second and copysign(1, first) == copysign(1, second)) or (isnan(first) and isnan(second))


def _within_tolerance(comparison: Comparison) -> _Equal:
    relative, absolute = comparison.tolerance, comparison.absolute_tolerance

    def equal(first: float, second: float) -> bool:
        difference = abs(first - second)
        if not isfinite(difference):
            return _same(first, second)
        return difference <= absolute or difference <= relative * max(abs(first), abs(second))

    return equal


def _compare_facts(files: tuple[PictureFile, PictureFile], runs: Runs, comparison: Comparison) -> Result:
    differing: set[str] = set()
    volatile: set[str] = set()
    for old, new in zip(files[0].pages, files[1].pages, strict=True):
        for name in sorted({*old.facts, *new.facts}):
            facts = old.facts.get(name), new.facts.get(name)
            if facts[0] != facts[1]:
                (volatile if _only_times(name, *facts, runs) else differing).add(name)
    if differing:
        return _differs(f"the same pixels, but other metadata: {', '.join(first_few(sorted(differing), 'part'))}")
    if volatile:
        return Result(Agreement.VOLATILE, (f"the same pixels; only times differ, in {', '.join(sorted(volatile))}",))
    return Result(Agreement.EQUAL, (f"the same pixels in another file{within(comparison)}",))


def _only_times(name: str, old: Fact, new: Fact, runs: Runs) -> bool:
    if old is None or new is None or len(old) != len(new):
        return False
    texts = zip(*([_text(name, part) for part in fact] for fact in (old, new)), strict=True)
    return all(runs.only_times_differ(first, second) for first, second in texts)


def _text(name: str, part: object) -> str:
    if not isinstance(part, bytes):
        return repr(part)
    if name == "PNG chunk tIME" and len(part) == calcsize(_PNG_TIME):
        return "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z".format(*unpack(_PNG_TIME, part))
    return part.decode("latin-1")


def _differs(*words: str) -> Result:
    return Result(Agreement.DIFFERS, words)


def _kind(mode: str, bits: tuple[int, ...]) -> str:
    return f"{mode} with {' + '.join(map(str, bits))} bits"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
