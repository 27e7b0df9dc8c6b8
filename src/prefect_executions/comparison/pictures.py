"""How two pictures differ, pixel by pixel; read with the package pillow, which is an extra."""

from __future__ import annotations

import io
from array import array
from collections.abc import Callable
from typing import NamedTuple

_CHANNELS = {"L": "B", "LA": "B", "RGB": "B", "RGBA": "B", "CMYK": "B", "I;16": "H", "I": "i", "F": "f"}
"""Modes of pillow that are compared as they are, with the type of a channel; all others are made RGBA first."""


class PictureDrift(NamedTuple):
    """How many pixels differ of how many, and the largest difference in a channel, in its own steps."""

    differing: int
    pixels: int
    largest: float


class SizesDiffer(NamedTuple):
    """Width and height of each of the two pictures, in pixels."""

    before: tuple[int, int]
    after: tuple[int, int]


def picture_drift(before: bytes, after: bytes, near: Callable[[float, float], bool]) -> PictureDrift | SizesDiffer:
    """Return how two pictures differ; two values of a channel that are *near* are the same.

    Raises:
        ImportError: If pillow is not installed.
        ValueError: If one of them is no picture, or one that is too large to be opened safely.
    """
    from PIL import Image  # noqa: PLC0415 - an extra of this package

    try:
        with Image.open(io.BytesIO(before)) as one, Image.open(io.BytesIO(after)) as other:
            if one.size != other.size:
                return SizesDiffer(one.size, other.size)
            mode = one.mode if one.mode == other.mode and one.mode in _CHANNELS else "RGBA"
            first, second = (array(_CHANNELS[mode], picture.convert(mode).tobytes()) for picture in (one, other))
            pixels = one.size[0] * one.size[1]
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
    if first == second:
        return PictureDrift(0, pixels, 0)
    channels = max(1, len(first) // pixels)
    far = {at: abs(a - b) for at, (a, b) in enumerate(zip(first, second, strict=True)) if a != b and not near(a, b)}
    return PictureDrift(len({at // channels for at in far}), pixels, max(far.values(), default=0))
