"""The Job of one run: looked at, noted on, removed.

What the Job's annotations say was decided once, whoever asks: a note is written
only onto the version of the Job that was looked at.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

from prefect_executions.errors import InfrastructureError
from prefect_executions.runtimes.interface import Exit, RunStatus
from prefect_executions.runtimes.kubernetes.api import Cluster, Command, Json, Refused
from prefect_executions.runtimes.kubernetes.looking import CANCELLED, END, GIVEN, Look
from prefect_executions.runtimes.plans import LABEL

_LOOK = (0.1, 1.0)  # seconds between two looks: at first, and in the end
_UNTIL_REMOVED = 120.0  # a node on a busy machine
_GONE, _CONFLICT = 404, 409


class Job:
    """One Job of a cluster, by the id of its run, which is its name."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self.name = name

    def look(self) -> Look | None:
        """Return how the Job and its pods are now; None when it is gone."""
        try:
            job = self._cluster.ask("get", f"batch/jobs/{self.name}")
        except Refused as error:
            if error.status == _GONE:
                return None
            raise InfrastructureError(f"Kubernetes does not show the Job {self.name}: {error}") from error
        if job["metadata"].get("labels", {}).get(LABEL) != self.name:
            return None  # somebody else's
        return Look(job=job, pods=tuple(self._pods()))

    def note(
        self, name: str, value: str | None, *, unless: tuple[str, ...] = (), parallelism: int | None = None
    ) -> None:
        """Write one annotation, None removes it; leave all as it is when one of *unless* is there."""
        while True:
            look = self.look()
            if look is None or look.notes.keys() & set(unless):
                return
            version = look.job["metadata"]["resourceVersion"]
            change: dict[str, object] = {"metadata": {"annotations": {name: value}, "resourceVersion": version}}
            if parallelism is not None:
                change["spec"] = {"parallelism": parallelism}
            try:
                self._cluster.ask("patch", f"batch/jobs/{self.name}", change)
            except Refused as error:
                if error.status not in {_CONFLICT, _GONE}:
                    raise InfrastructureError(f"Kubernetes does not let the Job {self.name} change: {error}") from error
            else:
                return

    def end(self) -> Exit | None:
        """Return how the run has ended, None while it has not; who sees it first writes it down for all."""
        look = self.look()
        if look is None:
            return Exit(status=RunStatus.LOST, why="its Job is gone, and its pod with it")
        end = look.end()
        if end is None or END in look.notes:
            return end
        # A pod in the place of a lost one would only wait.
        over = end.status is RunStatus.LOST or not look.begun
        told = end.model_dump_json(by_alias=True, exclude_none=True)
        self.note(END, told, unless=(END,), parallelism=0 if over else None)
        look = self.look()
        return end if look is None else look.end()

    def command(self, look: Look, container: str, script: str, *arguments: str, talks: bool = False) -> Command | None:
        """Start a shell's script in a container of the run's pod; None when that does not run any more."""
        pod = look.pod
        if pod is None:
            return None
        with suppress(Refused):
            return self._cluster.command(pod["metadata"]["name"], container, script, *arguments, talks=talks)
        return None

    def remove(self) -> None:
        """Remove the Job, its Secret and its pods; return when no script of it runs any more."""
        self.note(CANCELLED, "removed", unless=(CANCELLED, END))
        look = self.look()
        # Where no script runs, and none will, the node need not be waited for: it takes its time to say so.
        runs = "" if look is None or look.script.get("terminated") else look.notes.get(GIVEN, "").partition(" ")[2]
        self._delete(f"batch/jobs/{self.name}", propagation_policy="Foreground")
        for pod in self._pods():
            grace = "1" if pod["metadata"]["uid"] == runs else "0"
            self._delete(f"core/pods/{pod['metadata']['name']}", grace_period_seconds=grace)
        self._delete(f"core/secrets/{self.name}")
        for _ in pauses(_UNTIL_REMOVED):
            if self.look() is None and not self._pods():
                return
        raise InfrastructureError(
            f"The pod of {self.name} is still there after {_UNTIL_REMOVED:g} s; its node may be away: try again later"
        )

    def _pods(self) -> list[Json]:
        try:
            told = self._cluster.ask("get", "core/pods", label_selector=f"{LABEL}={self.name}")
        except Refused as error:
            raise InfrastructureError(f"Kubernetes does not show the pods of {self.name}: {error}") from error
        return list(told["items"])

    def _delete(self, path: str, **wishes: str) -> None:
        try:
            self._cluster.ask("delete", path, None, **wishes)
        except Refused as error:
            if error.status != _GONE:
                raise InfrastructureError(f"Kubernetes does not let {path} be deleted: {error}") from error


def pauses(timeout: float | None = None) -> Iterator[None]:
    """Yield at once, and again after pauses that grow, until *timeout* seconds are over."""
    pause, longest = _LOOK
    until = None if timeout is None else time.monotonic() + timeout
    while True:
        yield
        left = longest if until is None else until - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(pause, left))
        pause = min(pause * 1.3, longest)
