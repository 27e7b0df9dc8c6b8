"""The bundles in a home for executions, as tests look at them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from prefect_executions import background
from prefect_executions.bundles.verify import verify
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.lifecycle.history import EntryKind

WHOLE_WAY = ["CREATED", "SCHEDULED", "STARTED", "EXECUTING"]


class Bundles:
    """The bundles in a home folder."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def folders(self) -> list[Path]:
        """Return them, when this process has done what it can."""
        background.drain()
        workbench = self.home / "workbench"
        if not workbench.is_dir():
            return []
        return sorted(entry for entry in workbench.iterdir() if not entry.name.startswith("."))

    def one(self) -> Path:
        (folder,) = self.folders()
        return folder

    def record(self, folder: Path | None = None) -> ExecutionRecord:
        folder = folder or self.one()
        return ExecutionRecord.from_json(
            {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in folder.rglob("*.json")
                if path.parent.name in {"auth", "metadata"}
            }
        )

    def failed_checks(self) -> list[str]:
        return [f"{folder.name}: {fault}" for folder in self.folders() for fault in verify(folder).faults]

    def open_scratch(self) -> list[str]:
        """What says that something is still to be done, when this process has done what it can."""
        background.drain()
        return [entry.name for entry in (self.home / "workbench" / ".open").iterdir()]


def holding(folder: Path, data: bytes) -> list[Path]:
    """Return the files below *folder* that hold *data*; what another process takes away meanwhile is not there."""
    found = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError, IsADirectoryError):
            if data in path.read_bytes():
                found.append(path)
    return found


def kinds(record: ExecutionRecord, *, without: str | None = None) -> list[str]:
    """Return what the entries of the history are; notes that begin with *without* are left out."""
    return [
        entry.status.value if entry.kind is EntryKind.STATUS else entry.kind.value
        for entry in record.job_status.history
        if without is None or not (entry.message or "").startswith(without)
    ]


def way(record: ExecutionRecord) -> list[str]:
    """The statuses of a record, whose times have to follow each other; what else its history has is left out."""
    reached = [entry for entry in record.job_status.history if entry.kind is EntryKind.STATUS]
    times = [entry.time for entry in reached]
    assert times == sorted(times), times
    return [entry.status.value for entry in reached]
