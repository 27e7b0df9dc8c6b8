"""Where a command's result goes: a file that is there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, cast

from cyclopts import Parameter

from prefect_executions.errors import WorldError

Target = Annotated[str | None, Parameter(name=["--output", "-o"], allow_leading_hyphen=True)]


def save(blocks: Iterable[bytes], target: Path) -> None:
    """Write a file that is there whole or not at all.

    Raises:
        WorldError: If the disk refuses.
    """
    with saved(target) as file:
        file.writelines(blocks)


@contextmanager
def saved(target: Path) -> Iterator[BinaryIO]:
    """Open a file to be written that takes the name *target* when the context is left well, and goes when not.

    Raises:
        WorldError: If the disk refuses.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".", suffix=".part", delete=False) as file:
            part = Path(file.name)
            try:
                yield cast("BinaryIO", file)
                file.close()
                part.chmod(0o666 & ~_umask())
                part.replace(target)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise WorldError(f"{target} cannot be written: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
