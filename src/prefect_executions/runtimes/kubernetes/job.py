"""The Job of one run: looked at, noted on, removed.

What the Job's annotations say was decided once, whoever asks: a note is written
only onto the version of the Job that was looked at.

What the API of Kubernetes says of a Job and its pod, judged: does it wait, does it run, how did it end.

Pure: objects in, values out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from prefect_executions.documents import in_utc
from prefect_executions.errors import InfrastructureError
from prefect_executions.runtimes.interface import LABEL_PREFIX, RUN_LABEL, Exit, RunLocation, RunStatus
from prefect_executions.runtimes.kubernetes.api import Cluster, Command, Json, Refused

ASSIGNED_POD = f"{LABEL_PREFIX}.given"
"""The annotation of a Job that names the one pod that was given the data; another one never begins."""

CANCELLED = f"{LABEL_PREFIX}.cancelled"
"""The annotation of a Job that somebody has cancelled."""

END = f"{LABEL_PREFIX}.end"
"""The annotation of a Job that says how its run ended; whoever sees the end first writes it, and it stays."""

FETCHED = f"{LABEL_PREFIX}.fetched"
"""The annotation of a Job whose data came back."""

DATA_FOLDER = f"{LABEL_PREFIX}.data"
"""The annotation of a Job with the data folder of the machine that asked; absent where a claim shares it."""

RECEIVER, KEEPER, SCRIPT = "receiver", "keeper", "script"
"""The containers of a pod, in the order in which they begin."""

EXPIRED = "expired"
"""What a container's first process leaves as its last message when the time limit has ended it."""

JsonObject = Mapping[str, Any]

# What the kubelet does not try again, or what never gets better.
_HOPELESS = {"ErrImageNeverPull", "InvalidImageName", "CreateContainerError", "RunContainerError", "ImageInspectError"}
_DELETED = "was deleted before what it wrote there came back, and that is gone"
_BUSY = re.compile("deadline|time[d ]*out", re.IGNORECASE)
_NOT_THERE = re.compile("unknown|not found|denied|unauthorized|does not exist", re.IGNORECASE)


@dataclass(frozen=True)
class JobSnapshot:
    """One look at a Job and those of its pods that there are."""

    job: JsonObject
    pods: tuple[JsonObject, ...] = field(default=())

    @property
    def notes(self) -> Mapping[str, str]:
        """The annotations of the Job."""
        return self.job["metadata"].get("annotations") or {}

    @property
    def pod(self) -> JsonObject | None:
        """The pod that was given the data, else the newest one that may be."""
        given = self.notes.get(ASSIGNED_POD)
        if given is not None:
            uid = given.partition(" ")[2]
            return next((pod for pod in self.pods if pod["metadata"]["uid"] == uid), None)
        waiting = [pod for pod in self.pods if "deletionTimestamp" not in pod["metadata"]]
        return max(waiting, key=lambda pod: pod["metadata"]["creationTimestamp"], default=None)

    @property
    def begun(self) -> bool:
        """Whether the script has begun."""
        return bool(self.script.get("running") or self.script.get("terminated"))

    @property
    def script(self) -> JsonObject:
        """The state of the script's container."""
        return self._state(SCRIPT)

    @property
    def receives(self) -> bool:
        """Whether a pod waits for its data."""
        return "running" in self._state(RECEIVER)

    @property
    def keeps(self) -> bool:
        """Whether what the script wrote can still be read."""
        return "running" in self._state(KEEPER)

    def end(self) -> Exit | None:
        """Return how the run has ended; None while it waits or runs."""
        if END in self.notes:
            return Exit.model_validate_json(self.notes[END])
        pod = self.pod
        if pod is None:
            return _gone(self.notes[ASSIGNED_POD]) if ASSIGNED_POD in self.notes else None
        done = self.script.get("terminated")
        if pod["status"].get("reason"):
            return _failed_whole(pod["status"], None if done is None else done["exitCode"])
        # Whether it ended by itself or with its pod cannot be told apart: what it left is gone in both cases.
        deleted = "deletionTimestamp" in pod["metadata"] and FETCHED not in self.notes
        if done:
            return _ended(done, deleted=deleted, cancelled=CANCELLED in self.notes)
        if pod["status"].get("phase") == "Failed":
            return _gone(pod["metadata"]["name"]) if deleted else _failed_before(pod)
        return None if self.begun else _hopeless(pod)

    def seen(self) -> RunLocation:
        """Return what the cluster says of the pod."""
        pod = self.pod
        if pod is None:
            return RunLocation(pod=self.notes.get(ASSIGNED_POD, "").partition(" ")[0] or None)
        told = next(_containers(pod, SCRIPT), {})
        image = told.get("imageID", "").rpartition("://")[2]
        by_digest = "@sha256:" in image
        return RunLocation(
            container=told.get("containerID", "").rpartition("://")[2] or None,
            pod=pod["metadata"]["name"],
            node=pod["spec"].get("nodeName"),
            image=image if image.startswith("sha256:") else None,
            image_digest=image if by_digest else None,
        )

    def _state(self, container: str) -> JsonObject:
        pod = self.pod
        told = {} if pod is None else next(_containers(pod, container), {})
        state: JsonObject = told.get("state") or {}
        return state


def _containers(pod: JsonObject, name: str = "") -> Iterator[JsonObject]:
    status = pod["status"]
    for told in [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]:
        if told["name"] == name or not name:
            yield told


def _ended(done: JsonObject, *, deleted: bool, cancelled: bool) -> Exit:
    code = done["exitCode"]
    started, ended = parse_time(done.get("startedAt")), parse_time(done.get("finishedAt"))
    status, why = (RunStatus.SUCCEEDED if code == 0 else RunStatus.FAILED), None
    if done.get("reason") == "OOMKilled" and code:
        why = "a process of it wanted more memory than its limit"
    elif done.get("reason") not in {None, "Completed", "Error"}:
        why = f"{done['reason']}: {done.get('message', '')}"
    if cancelled:
        status, why = RunStatus.CANCELLED, "it was cancelled"
    elif (done.get("message") or "").strip() == EXPIRED:
        status, why = RunStatus.EXPIRED, "it ran longer than its time limit"
    elif deleted:
        status, why = RunStatus.LOST, f"its pod {_DELETED}"
    return Exit(status=status, code=code, why=why, started=started, ended=ended)


def _gone(given: str) -> Exit:
    pod = given.partition(" ")[0]
    return Exit(status=RunStatus.LOST, why=f"its pod {pod} {_DELETED}")


def _failed_whole(told: JsonObject, code: int | None) -> Exit:
    """The end of a pod that its node has given up, with all that was in it."""
    status = RunStatus.EXPIRED if told["reason"] == "DeadlineExceeded" else RunStatus.LOST
    return Exit(status=status, code=code, why=f"its pod failed, {told['reason']}: {told.get('message', '')}")


def _failed_before(pod: JsonObject) -> Exit:
    done = [one["state"]["terminated"] for one in _containers(pod) if (one.get("state") or {}).get("terminated")]
    said = "; ".join(str(one.get("message") or one.get("reason")) for one in done if one.get("exitCode"))
    return Exit(status=RunStatus.FAILED, why=f"its pod cannot begin: {said}")


def _hopeless(pod: JsonObject) -> Exit | None:
    for told in _containers(pod):
        waiting = (told.get("state") or {}).get("waiting") or {}
        reason, said = waiting.get("reason", ""), waiting.get("message", "")
        absent = reason in {"ErrImagePull", "ImagePullBackOff"} and _NOT_THERE.search(said)
        if (reason in _HOPELESS and not _BUSY.search(said)) or absent:
            return Exit(status=RunStatus.FAILED, why=f"its pod cannot begin, {reason}: {said}")
    return None


def parse_time(told: str | None) -> datetime | None:
    """Return a time of the API, which has whole seconds."""
    return None if told is None else in_utc(datetime.fromisoformat(told))


_LOOK = (0.1, 1.0)  # seconds between two looks: at first, and in the end
_UNTIL_REMOVED = 120.0  # a node on a busy machine
_GONE, _CONFLICT = 404, 409


class Job:
    """One Job of a cluster, by the id of its run, which is its name."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self.name = name

    def look(self) -> JobSnapshot | None:
        """Return how the Job and its pods are now; None when it is gone."""
        try:
            job = self._cluster.ask("get", f"batch/jobs/{self.name}")
        except Refused as error:
            if error.status == _GONE:
                return None
            raise InfrastructureError(f"Kubernetes does not show the Job {self.name}: {error}") from error
        if job["metadata"].get("labels", {}).get(RUN_LABEL) != self.name:
            return None  # somebody else's
        return JobSnapshot(job=job, pods=tuple(self._pods()))

    def annotate(
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
        self.annotate(END, told, unless=(END,), parallelism=0 if over else None)
        look = self.look()
        return end if look is None else look.end()

    def command(
        self, look: JobSnapshot, container: str, script: str, *arguments: str, talks: bool = False
    ) -> Command | None:
        """Start a shell's script in a container of the run's pod; None when that does not run any more."""
        pod = look.pod
        if pod is None:
            return None
        with suppress(Refused):
            return self._cluster.command(pod["metadata"]["name"], container, script, *arguments, talks=talks)
        return None

    def remove(self) -> None:
        """Remove the Job, its Secret and its pods; return when no script of it runs any more."""
        self.annotate(CANCELLED, "removed", unless=(CANCELLED, END))
        look = self.look()
        # Where no script runs, and none will, the node need not be waited for: it takes its time to say so.
        runs = (
            "" if look is None or look.script.get("terminated") else look.notes.get(ASSIGNED_POD, "").partition(" ")[2]
        )
        self._delete(f"batch/jobs/{self.name}", propagation_policy="Foreground")
        for pod in self._pods():
            grace = "1" if pod["metadata"]["uid"] == runs else "0"
            self._delete(f"core/pods/{pod['metadata']['name']}", grace_period_seconds=grace)
        self._delete(f"core/secrets/{self.name}")
        for _ in backoff(_UNTIL_REMOVED):
            if self.look() is None and not self._pods():
                return
        raise InfrastructureError(
            f"The pod of {self.name} is still there after {_UNTIL_REMOVED:g} s; its node may be away: try again later"
        )

    def _pods(self) -> list[Json]:
        try:
            told = self._cluster.ask("get", "core/pods", label_selector=f"{RUN_LABEL}={self.name}")
        except Refused as error:
            raise InfrastructureError(f"Kubernetes does not show the pods of {self.name}: {error}") from error
        return list(told["items"])

    def _delete(self, path: str, **wishes: str) -> None:
        try:
            self._cluster.ask("delete", path, None, **wishes)
        except Refused as error:
            if error.status != _GONE:
                raise InfrastructureError(f"Kubernetes does not let {path} be deleted: {error}") from error


def backoff(timeout: float | None = None) -> Iterator[None]:
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
