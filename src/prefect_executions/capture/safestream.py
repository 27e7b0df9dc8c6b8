"""A text stream whose reader may be gone: writing to it never raises."""

from __future__ import annotations

import io
import os
from typing import TextIO


class SafeStream(io.TextIOBase):
    """Writes text to a file descriptor or another stream, and swallows that it is broken or closed.

    For the console handler of Prefect: its rich console answers a broken pipe
    with ``SystemExit``, and a dead worker leaves a broken pipe. A descriptor is
    borrowed, never closed here; None takes everything and keeps nothing.
    """

    def __init__(self, target: int | TextIO | None) -> None:
        super().__init__()
        self._target = target

    def retarget(self, target: int | TextIO | None) -> None:
        """Write to *target* from now on."""
        self._target = target

    def write(self, text: str) -> int:
        try:
            if isinstance(self._target, int):
                _write_all(self._target, as_bytes(text))
            elif self._target is not None:
                _write_somehow(self._target, text)
        except (OSError, ValueError):
            pass
        return len(text)

    def flush(self) -> None:
        try:
            if self._target is not None and not isinstance(self._target, int):
                self._target.flush()
        except (OSError, ValueError):
            pass

    def close(self) -> None:
        """Flush; what is borrowed stays open."""
        self.flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        try:
            return os.isatty(self.fileno())
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        if isinstance(self._target, int):
            return self._target
        if self._target is None:
            raise io.UnsupportedOperation("fileno")
        return self._target.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # read-only here, an attribute in typeshed
        return getattr(self._target, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]  # read-only here, an attribute in typeshed
        return getattr(self._target, "errors", None) or "backslashreplace"


def as_bytes(text: str) -> bytes:
    """Return *text* as UTF-8; bytes of undecodable file names come out as they were, other surrogates escaped."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _write_somehow(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
