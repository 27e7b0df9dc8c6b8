"""The list of bundles that this user sealed on this machine, in a file outside of every home.

A replay does not ask before it runs their code, whichever home it uses. Nothing in a bundle puts it on
the list: only the sealing of a run does, and an import does not.
"""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)


class LocalSeals:
    """The SHA-256 digests of manifests, one a line; without a *file* the list is always empty."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def add(self, manifest_sha256: str) -> None:
        """Append a digest; a failure is logged, because the seal does not depend on it."""
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, f"{manifest_sha256}\n".encode())  # one short write: lines never mix
            finally:
                os.close(descriptor)
        except OSError as error:
            log.debug("cannot add to the list of local seals: %s", error)

    def has(self, manifest_sha256: str) -> bool:
        """Whether the digest is on the list; False if others can write the list, or it is unreadable."""
        if self._file is None:
            return False
        with suppress(OSError), self._file.open("rb") as lines:
            status = os.fstat(lines.fileno())
            private = status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            return private and f"{manifest_sha256}\n".encode() in lines
        return False
