"""The transfer of a data folder to a cluster without a shared disk, and back: as a tar stream, in one pass.

The tar that comes back was written by a script. It may name paths outside the
folder, or contain special files; these are refused or left out.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, cast
from uuid import uuid4

from prefect_executions.errors import InfrastructureError

if TYPE_CHECKING or sys.version_info >= (3, 11, 4):
    import tarfile
else:  # earlier versions have no extraction filter; Debian 12 has 3.11.2
    from backports import tarfile

_CHUNK = 256 * 1024
_BLOCK = tarfile.BLOCKSIZE
_ENCODING = ("utf-8", "surrogateescape")  # a name may have any bytes
_UNFINISHED = ".fetched-"


def unsendable(folder: Path) -> Iterator[Path]:
    """Yield the paths in *folder* that are neither files nor folders nor links."""
    return (path for path in folder.rglob("*") if not (path.is_symlink() or path.is_file() or path.is_dir()))


@dataclass(frozen=True)
class TarStream:
    """The tar of a folder. Its size is known before it is read: the receiver cannot see the end of its input."""

    members: tuple[tuple[Path, tarfile.TarInfo], ...]

    @classmethod
    def of(cls, folder: Path) -> TarStream:
        """Return the tar of all content of *folder*, with the folder's own mode."""
        members = []
        with tarfile.open(fileobj=io.BytesIO(), mode="w", format=tarfile.GNU_FORMAT) as archive:
            for path in (folder, *sorted(folder.rglob("*"))):
                member = archive.gettarinfo(path, path.relative_to(folder).as_posix())
                # The user of the container owns the unpacked files.
                member.uid = member.gid = 0
                member.uname = member.gname = ""
                members.append((path, member))
        return cls(members=tuple(members))

    @property
    def size(self) -> int:
        """The number of bytes that `chunks` yields."""
        return 2 * _BLOCK + sum(len(_head(member)) + _padded(member) for _, member in self.members)

    def chunks(self) -> Iterator[bytes]:
        """Yield the tar.

        Raises:
            InfrastructureError: If the size of a file has changed.
        """
        for path, member in self.members:
            yield _head(member)
            if member.isreg():
                yield from _read(path, member.size)
                yield b"\0" * (_padded(member) - member.size)
        yield b"\0" * 2 * _BLOCK


class Readable(Protocol):
    """A source of bytes."""

    def read(self, size: int, /) -> bytes:
        """Return the next *size* bytes, fewer only at the end."""


def unpack(packed: Readable, folder: Path, *, check: Callable[[], None]) -> None:
    """Replace the content of *folder* by that of the tar *packed*; idempotent.

    *check* is called after the last byte, and raises if the tar is incomplete: a tar
    that was cut between two files looks complete.

    Raises:
        InfrastructureError: If the tar is cut, or names a path elsewhere; *folder* is unchanged.
    """
    new = folder / f"{_UNFINISHED}{uuid4().hex}"
    new.mkdir()
    try:
        stream = cast("IO[bytes]", packed)  # a stream is only read
        with tarfile.open(fileobj=stream, mode="r|", encoding=_ENCODING[0], errors=_ENCODING[1]) as members:
            members.extractall(new, filter=_safe)  # noqa: S202 - the filter makes it safe
        check()
    except (tarfile.TarError, EOFError) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise InfrastructureError(f"The data cannot be fetched into {folder}: {error}") from error
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    for old in folder.iterdir():
        if old == new:
            continue
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink()
    for path in new.iterdir():
        path.rename(folder / path.name)
    new.rmdir()


def _safe(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    if member.issym():
        # A link may have any target, as before; nothing is written through it.
        return tarfile.tar_filter(member, folder)
    return tarfile.data_filter(member, folder) if member.isreg() or member.isdir() or member.islnk() else None


def _head(member: tarfile.TarInfo) -> bytes:
    return member.tobuf(tarfile.GNU_FORMAT, *_ENCODING)


def _padded(member: tarfile.TarInfo) -> int:
    return -(-member.size // _BLOCK) * _BLOCK if member.isreg() else 0


def _read(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        remaining = size
        while remaining and (data := file.read(min(remaining, _CHUNK))):
            remaining -= len(data)
            yield data
        if remaining or file.read(1):
            raise InfrastructureError(f"{path} has changed while it was sent; do not change the data folder")
