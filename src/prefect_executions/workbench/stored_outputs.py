"""The outputs of an execution as a record or a folder has them: look one up, read one against its digest."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from prefect_executions.bundles.layout import OUTPUTS
from prefect_executions.errors import BundleError, NotFoundError
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.mediatypes import media_type


class StoredOutput(NamedTuple):
    """One output: its name below ``outputs/``, size in bytes, media type, and its digest after gathering."""

    name: str
    size: int
    media_type: str
    sha256: str | None

    @property
    def path(self) -> str:
        """Its path in the bundle."""
        return f"{OUTPUTS}/{self.name}"


def recorded_outputs(record: ExecutionRecord) -> tuple[StoredOutput, ...]:
    """Return the outputs and logs of an ended execution."""
    return tuple(
        StoredOutput(output.path.removeprefix(f"{OUTPUTS}/"), output.size, output.media_type, output.sha256)
        for output in record.job_status.outputs
    )


def current_outputs(folder: Path) -> tuple[StoredOutput, ...]:
    """Return the files below the folder ``outputs/`` of an open execution; they have no digest yet."""
    return tuple(sorted(_files(folder)))


def _files(folder: Path) -> Iterator[StoredOutput]:
    for above, _, names in os.walk(folder):
        for name in names:
            path = Path(above, name)
            with suppress(OSError):  # the Method may remove it meanwhile
                info = path.lstat()
                if stat.S_ISREG(info.st_mode):
                    yield StoredOutput(path.relative_to(folder).as_posix(), info.st_size, media_type(name), None)


def output_named(outputs: Iterable[StoredOutput], name: str, *, of: str, target: str) -> StoredOutput:
    """Return the output *name*, which may begin with ``outputs/``.

    *of* names the execution in an error, and *target* names it on the command line.

    Raises:
        NotFoundError: If there is no such output; the message says how to list them.
    """
    by_name = {output.name: output for output in outputs}
    output = by_name.get(name) or by_name.get(name.removeprefix(f"{OUTPUTS}/"))
    if output is None:
        raise NotFoundError(f"{of} has no output '{name}'. 'executions outputs {target}' lists them.")
    return output


def checked_blocks(blocks: Iterable[bytes], output: StoredOutput, *, of: str, target: str) -> Iterator[bytes]:
    """Yield the *blocks* of an output and check its recorded size and digest, if it has one.

    *of* and *target* are those of `output_named`.

    Raises:
        BundleError: If it differs from its record; discard the blocks yielded so far.
    """
    digest, size = sha256(), 0
    for block in blocks:
        size += len(block)
        if output.sha256 is not None and size > output.size:  # before more of a forged file is read
            raise BundleError(f"{output.path} of {of} has more than the recorded {output.size} bytes")
        digest.update(block)
        yield block
    if output.sha256 is not None and digest.hexdigest() != output.sha256:
        raise BundleError(
            f"{output.path} of {of} has the digest {digest.hexdigest()} and was recorded as {output.sha256}. "
            f"'executions verify {target}' checks the other files."
        )
