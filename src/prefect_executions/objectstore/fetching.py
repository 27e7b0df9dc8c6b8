"""Bringing an object to a file that appears only when its size and digest are right.

No client of an object store notices a flipped bit by itself (measured with
s3fs, boto3 and obstore), and a download that was cut leaves a file of the right
size with holes. So what arrives is counted and hashed here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from prefect_executions.errors import ArchiveError


class Expected(NamedTuple):
    """What an object must be: the name that errors tell, its size in bytes and its SHA-256 in hex."""

    name: str
    size: int
    sha256: str


class Arriving:
    """The file ``<name>.part`` beside the one that is brought; left well, it takes the name."""

    def __init__(self, to: Path, expected: Expected) -> None:
        self._to = to
        # Two processes may bring the same file: each writes its own.
        self._part = to.with_name(f"{to.name}.{os.getpid()}.part")
        self._expected = expected
        self._digest = sha256()
        self._size = 0

    def __enter__(self) -> Self:
        try:
            self._to.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("wb")
        except OSError as error:
            raise self._cannot(error) from error
        return self

    def take(self, piece: bytes) -> None:
        """Append the next piece.

        Raises:
            ArchiveError: If the piece cannot be written, or more arrives than was expected.
        """
        self._size += len(piece)
        if self._size > self._expected.size:
            raise ArchiveError(
                f"{self._expected.name} is longer than the {self._expected.size} bytes that were archived"
            )
        self._digest.update(piece)
        try:
            self._file.write(piece)
        except OSError as error:
            raise self._cannot(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if kind is None:
                self._check()
                self._part.replace(self._to)
        except OSError as failure:
            raise self._cannot(failure) from failure
        finally:
            self._part.unlink(missing_ok=True)

    def _check(self) -> None:
        name, size, digest = self._expected
        if self._size != size:
            raise ArchiveError(f"{name} ended after {self._size} of {size} bytes")
        if self._digest.hexdigest() != digest:
            raise ArchiveError(
                f"{name} arrived damaged: its SHA-256 is {self._digest.hexdigest()} and should be {digest}. "
                "Try again; if it stays so, the archived object itself is damaged."
            )

    def _cannot(self, error: OSError) -> ArchiveError:
        return ArchiveError(f"{self._expected.name} cannot be written to {self._to}: {error.strerror or error}")


def bring(pieces: Iterable[bytes], to: Path, expected: Expected) -> None:
    """Write *pieces* to the file *to*, if together they are what is expected.

    Raises:
        ArchiveError: If they are not; the file *to* is then as it was before.
    """
    with Arriving(to, expected) as arriving:
        for piece in pieces:
            arriving.take(piece)
