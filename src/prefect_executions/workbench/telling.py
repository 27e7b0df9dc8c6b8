"""Who tells the world that an execution ended, and what is done where nobody does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from prefect_executions.lifecycle.history import JobStatus


class EndTelling(Protocol):
    """The telling of one sealed execution's end, which goes on beside its archiving."""

    def archived(self, manifest_sha256: str) -> None:
        """Say that the archive has all of the record."""

    def not_archived(self, why: str) -> None:
        """Say why the archive did not take the record."""

    def withdraw(self) -> None:
        """Tell nothing: another sealed the execution before."""

    def then(self, act: Callable[[], None]) -> None:
        """Do *act* as soon as all is told and heard; what is not, settle tells again."""


Tell = Callable[[JobStatus], EndTelling]


class _Nobody:
    def archived(self, manifest_sha256: str) -> None:
        pass

    def not_archived(self, why: str) -> None:
        pass

    def withdraw(self) -> None:
        pass

    def then(self, act: Callable[[], None]) -> None:
        act()


def tell_nobody(job_status: JobStatus) -> EndTelling:  # noqa: ARG001 - it is a `Tell`
    """Tell nobody, where a workbench stands by itself."""
    return _Nobody()
