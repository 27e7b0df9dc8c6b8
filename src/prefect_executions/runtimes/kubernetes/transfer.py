"""The data folder on its way to a cluster that shares no disk with us, and back: as a tar, in one pass.

What comes back was written by a script: it may name places outside of the
folder, or be anything but files. Such a thing is refused, or left out.
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
else:  # before it nothing kept what is unpacked inside its folder; Debian 12 has 3.11.2
    from backports import tarfile

_CHUNK = 256 * 1024
_BLOCK = tarfile.BLOCKSIZE
_ENCODING = ("utf-8", "surrogateescape")  # a name may have any bytes
_UNFINISHED = ".fetched-"


def unsendable(folder: Path) -> Iterator[Path]:
    """Yield what is in *folder* and is neither a file nor a folder nor a link."""
    return (path for path in folder.rglob("*") if not (path.is_symlink() or path.is_file() or path.is_dir()))


@dataclass(frozen=True)
class TarStream:
    """The tar of a folder: its size is known before it is read, because who receives it cannot be told its end."""

    members: tuple[tuple[Path, tarfile.TarInfo], ...]

    @classmethod
    def of(cls, folder: Path) -> TarStream:
        """Return the load of all that is in *folder*, and of its own mode."""
        found = []
        with tarfile.open(fileobj=io.BytesIO(), mode="w", format=tarfile.GNU_FORMAT) as made:
            for path in (folder, *sorted(folder.rglob("*"))):
                member = made.gettarinfo(path, path.relative_to(folder).as_posix())
                # Whoever unpacks it there is the user who runs there.
                member.uid = member.gid = 0
                member.uname = member.gname = ""
                found.append((path, member))
        return cls(members=tuple(found))

    @property
    def size(self) -> int:
        """The number of bytes that `chunks` yields."""
        return 2 * _BLOCK + sum(len(_head(member)) + _padded(member) for _, member in self.members)

    def chunks(self) -> Iterator[bytes]:
        """Yield the tar.

        Raises:
            InfrastructureError: If a file is not any more as long as it was.
        """
        for path, member in self.members:
            yield _head(member)
            if member.isreg():
                yield from _read(path, member.size)
                yield b"\0" * (_padded(member) - member.size)
        yield b"\0" * 2 * _BLOCK


class Readable(Protocol):
    """Whatever bytes can be read from."""

    def read(self, size: int, /) -> bytes:
        """Return the next *size* bytes, fewer only at the end."""


def unpack(packed: Readable, folder: Path, *, check: Callable[[], None]) -> None:
    """Let *folder* have what the tar *packed* has, and nothing else; a second time gives the same.

    *check* is called when all was read, and raises if it was not whole: a tar that
    was cut between two files looks like one that ends there.

    Raises:
        InfrastructureError: If the tar ends too early, or wants to write elsewhere; *folder* is as it was.
    """
    made = folder / f"{_UNFINISHED}{uuid4().hex}"
    made.mkdir()
    try:
        stream = cast("IO[bytes]", packed)  # a stream is only read
        with tarfile.open(fileobj=stream, mode="r|", encoding=_ENCODING[0], errors=_ENCODING[1]) as members:
            members.extractall(made, filter=_safe)  # noqa: S202 - that is what the filter is for
        check()
    except (tarfile.TarError, EOFError) as error:
        shutil.rmtree(made, ignore_errors=True)
        raise InfrastructureError(f"The data cannot be brought back to {folder}: {error}") from error
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    for old in folder.iterdir():
        if old == made:
            continue
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink()
    for new in made.iterdir():
        new.rename(folder / new.name)
    made.rmdir()


def _safe(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    if member.issym():
        # A link may name any place, as it did where it was made; nothing is written through it.
        return tarfile.tar_filter(member, folder)
    return tarfile.data_filter(member, folder) if member.isreg() or member.isdir() or member.islnk() else None


def _head(member: tarfile.TarInfo) -> bytes:
    return member.tobuf(tarfile.GNU_FORMAT, *_ENCODING)


def _padded(member: tarfile.TarInfo) -> int:
    return -(-member.size // _BLOCK) * _BLOCK if member.isreg() else 0


def _read(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        left = size
        while left and (data := file.read(min(left, _CHUNK))):
            left -= len(data)
            yield data
        if left or file.read(1):
            raise InfrastructureError(f"{path} has changed while it was handed over; leave the data folder alone")
