"""What Prefect is told: status changes and the archive's word as acknowledged events, progress as an artifact.

Law: an event counts as told when Prefect's API has acknowledged it. Nobody waits
for that longer than `PATIENCE`; what is not acknowledged is told again by settle.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from contextvars import copy_context
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

from prefect_executions import events
from prefect_executions.capture.secrets import redact_urls
from prefect_executions.engine.client import client, configured_api
from prefect_executions.errors import OrchestratorError
from prefect_executions.events import Event
from prefect_executions.lifecycle import JobStatus

log = logging.getLogger("prefect_executions")

PATIENCE = 5.0
"""Seconds that the end of an execution may wait for Prefect's acknowledgement."""

_TOGETHER = 1.0
"""Seconds that the end waits for the archive's word: both are one request then, and who was too late tells nothing."""

_REST = 15.0
"""Seconds in which an API that did not answer is not waited for again."""

_away_until: dict[str | None, float] = {}
"""When each API that did not answer may be waited for again."""


class Progress(NamedTuple):
    """A progress artifact in the Prefect UI; `id` is None before the first one is made."""

    id: UUID | None


def tell(told: Iterable[Event]) -> None:
    """Tell events to Prefect's API in one request; when it returns they are acknowledged.

    Raises:
        Exception: Whatever Prefect's client raises, if they are not.
    """
    bodies = [event.as_json() for event in told]
    if bodies:
        client().request("POST", "/events", json=bodies)


def was_told(execution_id: str) -> bool:
    """Return whether Prefect has events of an execution, so that somebody keeps a record of it.

    Raises:
        OrchestratorError: If Prefect's API cannot be asked.
    """
    wanted = {"filter": {"resource": {"id": [f"{events.RESOURCE}.{execution_id}"]}}, "limit": 1}
    try:
        return bool(client().request("POST", "/events/filter", json=wanted).json()["events"])
    except Exception as error:
        raise OrchestratorError(f"Prefect's API does not tell the events of {execution_id}: {error}") from error


class EndTelling:
    """The telling of one sealed execution's end, in a thread beside its archiving.

    All its status changes are told, because the process that should have told the
    first of them may have been killed. Telling once more changes nothing.
    """

    def __init__(self, job_status: JobStatus) -> None:
        self._job_status = job_status
        self._archive: Event | None = None
        self._known = threading.Event()
        self._withdrawn = False
        self._acknowledged = _too_old(job_status)
        # A new thread has none of Prefect's settings.
        self._thread = threading.Thread(target=copy_context().run, args=(self._tell,), name="tell", daemon=True)
        if not self._acknowledged:
            self._thread.start()

    def archived(self, manifest_sha256: str) -> None:
        """Say that the archive has all of the record."""
        self._archive = events.archived(self._job_status, manifest_sha256, datetime.now(UTC))
        self._known.set()

    def not_archived(self, why: str) -> None:
        """Say why the archive did not take the record."""
        self._archive = events.archive_failed(self._job_status, redact_urls(why), datetime.now(UTC))
        self._known.set()

    def withdraw(self) -> None:
        """Tell nothing: another sealed the execution before, and its end is another's to tell."""
        self._withdrawn = True
        self._known.set()

    def acknowledged(self) -> bool:
        """Return whether all is told, once it is, after `PATIENCE` at the latest."""
        api, now = configured_api(), time.monotonic()
        if not self._acknowledged and now >= _away_until.get(api, now):
            self._thread.join(PATIENCE)
            if not self._acknowledged:
                _away_until[api] = time.monotonic() + _REST
                log.debug("the end of execution %s is not told to Prefect yet", self._job_status.job_id)
        return self._acknowledged

    def _tell(self) -> None:
        together = self._known.wait(_TOGETHER)
        if not self._withdrawn:
            told = list(events.changes(self._job_status, datetime.now(UTC)))
            if not self._told([*told, *([self._archive] if self._archive else [])]):
                return
            if not together:
                self._known.wait()
                if self._archive and not self._told([self._archive]):
                    return
        self._acknowledged = True

    def _told(self, some: list[Event]) -> bool:
        try:
            tell(some)
        except Exception as error:  # noqa: BLE001 - a thread of ours must not speak up; settle tells again
            log.debug("events of execution %s are not told: %s", self._job_status.job_id, error)
            return False
        return True


def _too_old(job_status: JobStatus) -> bool:
    """Whether Prefect would have forgotten the end by now, so that nobody reacts to it."""
    return job_status.finished is not None and datetime.now(UTC) - job_status.finished > events.KEPT


def show_progress(artifact: Progress, flow_run_id: UUID, percent: float, message: str | None) -> Progress:
    """Show *percent* (0-100) on the run's page in the Prefect UI and return the artifact, made at the first call."""
    if artifact.id is None:
        made = client().create_artifact(
            ArtifactCreate(
                type="progress",
                key=f"progress-{flow_run_id}",
                description=message,
                data=percent,
                flow_run_id=flow_run_id,
            )
        )
        return Progress(made.id)
    client().update_artifact(artifact.id, ArtifactUpdate(data=percent, description=message))
    return artifact
