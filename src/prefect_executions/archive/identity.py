"""The identity of an archive: a random id in its object `identity`, which a Workbench remembers.

A mount point without its file system is an empty folder, and a wrong URL may lead to
an archive as well. A Workbench that used an archive before refuses to write to another one.

Law: only the first write creates the identity, and it never changes afterwards.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from prefect_executions.errors import ArchiveError
from prefect_executions.objectstore.interface import Store

IDENTITY = "identity"

_BYTES = 32
ACCEPT = (
    "Mount its disk, or correct EXECUTIONS_ARCHIVE. If it was emptied or replaced on purpose, run: "
    "executions settle --once --accept-archive"
)
"""What to do about a fault of an archive's identity."""


class ArchiveIdentity:
    """The identity of the archive in *store*, and the id that was seen there before, in a file of *memory*.

    *lost* returns an execution that was archived earlier and that the store lacks, or
    None. It is called for an archive without an identity that was never seen before.
    """

    def __init__(self, store: Store, memory: Path, *, lost: Callable[[], str | None]) -> None:
        self._store = store
        self._memory = memory
        self._file = memory / sha256(store.url.encode()).hexdigest()[:16]
        self._lost = lost

    def fault(self) -> str | None:
        """Return why the archive is not the one that was seen at its URL before, or None.

        Raises:
            ArchiveError: If the archive is unavailable.
        """
        return self._fault(self._found())

    def check(self) -> None:
        """Check that the archive is the one that was seen at its URL before.

        Raises:
            ArchiveError: If it is not, or is unavailable.
        """
        self._checked()

    def claim(self) -> None:
        """Do as `check`, then remember the archive; a new archive gets its identity. Call it before a write.

        Raises:
            ArchiveError: If it is another archive, or is unavailable.
        """
        found = self._checked() or self._create()
        if self._known() is None:
            self._remember(found)

    def accept(self) -> None:
        """Remember the archive that is there now, whichever it is.

        Raises:
            ArchiveError: If it is unavailable.
        """
        self._remember(self._found() or self._create())

    def _checked(self) -> str | None:
        found = self._found()
        fault = self._fault(found)
        if fault is not None:
            raise ArchiveError(f"{fault}. {ACCEPT}")
        return found

    def _fault(self, found: str | None) -> str | None:
        known = self._known()
        if known is not None and found != known:
            what = f"its '{IDENTITY}' differs" if found else f"it has no '{IDENTITY}'"
            return f"{self._store.url} is not the archive that this workbench used before: {what}"
        # An archive of an earlier version has no identity, and a Workbench of that version remembers none.
        lost = None if found or self._memory.is_dir() else self._lost()
        return f"{self._store.url} has none of the newest archived executions, such as {lost}" if lost else None

    def _found(self) -> str | None:
        data = self._store.get_many([IDENTITY], limit=_BYTES).get(IDENTITY)
        return None if data is None else data.decode(errors="replace")

    def _create(self) -> str:
        new = secrets.token_hex(_BYTES // 2)
        if self._store.put_if_absent(IDENTITY, new.encode()):
            return new
        return self._found() or new

    def _known(self) -> str | None:
        try:
            return self._file.read_text()
        except OSError:
            return None

    def _remember(self, found: str) -> None:
        if self._store.url.startswith("memory:"):  # it ends with its process
            return
        temporary = self._file.with_name(f".{self._file.name}-{secrets.token_hex(4)}")
        try:
            self._memory.mkdir(parents=True, exist_ok=True)
            temporary.write_text(found)
            temporary.replace(self._file)
        except OSError as error:
            raise ArchiveError(f"{self._file} cannot be written: {error.strerror}") from error
