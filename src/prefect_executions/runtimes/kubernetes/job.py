"""The Kubernetes Job of one run: snapshots of it and its pods, annotations, removal.

Annotations store decisions that several processes could make differently. An
annotation is written only onto the version of the Job that was read, so each
decision is made once.
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
"""The annotation with the only pod that gets the data; a script starts in no other pod."""

CANCELLED = f"{LABEL_PREFIX}.cancelled"
"""The annotation of a cancelled Job."""

END = f"{LABEL_PREFIX}.end"
"""The annotation with the end of the run; the first observer writes it, and it never changes."""

FETCHED = f"{LABEL_PREFIX}.fetched"
"""The annotation of a Job whose data folder was fetched."""

DATA_FOLDER = f"{LABEL_PREFIX}.data"
"""The annotation with the data folder of the calling machine; absent if a claim shares the folder."""

RECEIVER, KEEPER, SCRIPT = "receiver", "keeper", "script"
"""The containers of a pod, in the order of their start."""

EXPIRED = "expired"
"""The termination message of a container that exceeded the time limit."""

JsonObject = Mapping[str, Any]

_POLL = (0.1, 1.0)  # seconds, at first and at most
_REMOVE_TIMEOUT = 120.0  # seconds; the node may be a busy machine
_NOT_FOUND_STATUS, _CONFLICT = 404, 409
# Reasons for which the kubelet does not retry, or a retry never succeeds.
_PERMANENT = {"ErrImageNeverPull", "InvalidImageName", "CreateContainerError", "RunContainerError", "ImageInspectError"}
_DELETED = "was deleted before its output was fetched, so the output is lost"
_BUSY = re.compile("deadline|time[d ]*out", re.IGNORECASE)
_NOT_FOUND = re.compile("unknown|not found|denied|unauthorized|does not exist", re.IGNORECASE)


@dataclass(frozen=True)
class JobSnapshot:
    """A Job and its pods at one moment."""

    job: JsonObject
    pods: tuple[JsonObject, ...] = field(default=())

    @property
    def annotations(self) -> Mapping[str, str]:
        """The annotations of the Job."""
        return self.job["metadata"].get("annotations") or {}

    @property
    def pod(self) -> JsonObject | None:
        """The pod that got the data, else the newest candidate."""
        assigned = self.annotations.get(ASSIGNED_POD)
        if assigned is not None:
            uid = assigned.partition(" ")[2]
            return next((pod for pod in self.pods if pod["metadata"]["uid"] == uid), None)
        waiting = [pod for pod in self.pods if "deletionTimestamp" not in pod["metadata"]]
        return max(waiting, key=lambda pod: pod["metadata"]["creationTimestamp"], default=None)

    @property
    def started(self) -> bool:
        """Whether the script has started."""
        return bool(self.script.get("running") or self.script.get("terminated"))

    @property
    def script(self) -> JsonObject:
        """The state of the script's container."""
        return self._state(SCRIPT)

    @property
    def waits_for_data(self) -> bool:
        """Whether the pod waits for its data."""
        return "running" in self._state(RECEIVER)

    @property
    def keeps_data(self) -> bool:
        """Whether the script's output can still be read."""
        return "running" in self._state(KEEPER)

    def end(self) -> Exit | None:
        """Return how the run has ended; None while it waits or runs."""
        if END in self.annotations:
            return Exit.model_validate_json(self.annotations[END])
        pod = self.pod
        if pod is None:
            return _lost_with_pod(self.annotations[ASSIGNED_POD]) if ASSIGNED_POD in self.annotations else None
        terminated = self.script.get("terminated")
        if pod["status"].get("reason"):
            return _pod_failure(pod["status"], None if terminated is None else terminated["exitCode"])
        # The script may have ended by itself or with its pod; its output is lost in both cases.
        deleted = "deletionTimestamp" in pod["metadata"] and FETCHED not in self.annotations
        if terminated:
            return _script_end(terminated, deleted=deleted, cancelled=CANCELLED in self.annotations)
        if pod["status"].get("phase") == "Failed":
            return _lost_with_pod(pod["metadata"]["name"]) if deleted else _start_failure(pod)
        return None if self.started else _permanent_failure(pod)

    def seen(self) -> RunLocation:
        """Return the pod, its node and its image as the cluster reports them."""
        pod = self.pod
        if pod is None:
            return RunLocation(pod=self.annotations.get(ASSIGNED_POD, "").partition(" ")[0] or None)
        container = next(_containers(pod, SCRIPT), {})
        image = container.get("imageID", "").rpartition("://")[2]
        return RunLocation(
            container=container.get("containerID", "").rpartition("://")[2] or None,
            pod=pod["metadata"]["name"],
            node=pod["spec"].get("nodeName"),
            image=image if image.startswith("sha256:") else None,
            image_digest=image if "@sha256:" in image else None,
        )

    def _state(self, container: str) -> JsonObject:
        pod = self.pod
        status = {} if pod is None else next(_containers(pod, container), {})
        state: JsonObject = status.get("state") or {}
        return state


def _containers(pod: JsonObject, name: str = "") -> Iterator[JsonObject]:
    status = pod["status"]
    for container in [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]:
        if container["name"] == name or not name:
            yield container


def _script_end(terminated: JsonObject, *, deleted: bool, cancelled: bool) -> Exit:
    code = terminated["exitCode"]
    started, ended = parse_time(terminated.get("startedAt")), parse_time(terminated.get("finishedAt"))
    status, why = (RunStatus.SUCCEEDED if code == 0 else RunStatus.FAILED), None
    if terminated.get("reason") == "OOMKilled" and code:
        why = "a process exceeded the memory limit"
    elif terminated.get("reason") not in {None, "Completed", "Error"}:
        why = f"{terminated['reason']}: {terminated.get('message', '')}"
    if cancelled:
        status, why = RunStatus.CANCELLED, "it was cancelled"
    elif (terminated.get("message") or "").strip() == EXPIRED:
        status, why = RunStatus.EXPIRED, "it exceeded its time limit"
    elif deleted:
        status, why = RunStatus.LOST, f"its pod {_DELETED}"
    return Exit(status=status, code=code, why=why, started=started, ended=ended)


def _lost_with_pod(assigned: str) -> Exit:
    pod = assigned.partition(" ")[0]
    return Exit(status=RunStatus.LOST, why=f"its pod {pod} {_DELETED}")


def _pod_failure(status: JsonObject, code: int | None) -> Exit:
    """Return the end of a pod that its node gave up, with all of its containers."""
    run_status = RunStatus.EXPIRED if status["reason"] == "DeadlineExceeded" else RunStatus.LOST
    return Exit(status=run_status, code=code, why=f"its pod failed, {status['reason']}: {status.get('message', '')}")


def _start_failure(pod: JsonObject) -> Exit:
    states = [container.get("state") or {} for container in _containers(pod)]
    ends = [state["terminated"] for state in states if state.get("terminated")]
    reasons = "; ".join(str(end.get("message") or end.get("reason")) for end in ends if end.get("exitCode"))
    return Exit(status=RunStatus.FAILED, why=f"its pod cannot start: {reasons}")


def _permanent_failure(pod: JsonObject) -> Exit | None:
    for container in _containers(pod):
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        missing = reason in {"ErrImagePull", "ImagePullBackOff"} and _NOT_FOUND.search(message)
        if (reason in _PERMANENT and not _BUSY.search(message)) or missing:
            return Exit(status=RunStatus.FAILED, why=f"its pod cannot start, {reason}: {message}")
    return None


def parse_time(text: str | None) -> datetime | None:
    """Return a time of the API, which has whole seconds."""
    return None if text is None else in_utc(datetime.fromisoformat(text))


class Job:
    """A Job of a cluster; its name is the run's id."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self.name = name

    def snapshot(self) -> JobSnapshot | None:
        """Return the Job and its pods as they are now; None if the Job is gone."""
        try:
            job = self._cluster.request("get", f"batch/jobs/{self.name}")
        except Refused as error:
            if error.status == _NOT_FOUND_STATUS:
                return None
            raise InfrastructureError(f"Kubernetes refuses to show the Job {self.name}: {error}") from error
        if job["metadata"].get("labels", {}).get(RUN_LABEL) != self.name:
            return None  # not ours
        return JobSnapshot(job=job, pods=tuple(self._pods()))

    def annotate(
        self, name: str, value: str | None, *, unless: tuple[str, ...] = (), parallelism: int | None = None
    ) -> None:
        """Write one annotation; None removes it. Nothing changes if an annotation of *unless* exists."""
        while True:
            snapshot = self.snapshot()
            if snapshot is None or snapshot.annotations.keys() & set(unless):
                return
            version = snapshot.job["metadata"]["resourceVersion"]
            change: dict[str, object] = {"metadata": {"annotations": {name: value}, "resourceVersion": version}}
            if parallelism is not None:
                change["spec"] = {"parallelism": parallelism}
            try:
                self._cluster.request("patch", f"batch/jobs/{self.name}", change)
            except Refused as error:
                if error.status not in {_CONFLICT, _NOT_FOUND_STATUS}:
                    raise InfrastructureError(f"Kubernetes refuses a change of the Job {self.name}: {error}") from error
            else:
                return

    def end(self) -> Exit | None:
        """Return how the run has ended, None while it has not; the first observer stores it for all."""
        snapshot = self.snapshot()
        if snapshot is None:
            return Exit(status=RunStatus.LOST, why="its Job is gone, and its pod with it")
        end = snapshot.end()
        if end is None or END in snapshot.annotations:
            return end
        # A pod that replaces a lost one would only wait.
        over = end.status is RunStatus.LOST or not snapshot.started
        text = end.model_dump_json(by_alias=True, exclude_none=True)
        self.annotate(END, text, unless=(END,), parallelism=0 if over else None)
        snapshot = self.snapshot()
        return end if snapshot is None else snapshot.end()

    def command(
        self, snapshot: JobSnapshot, container: str, script: str, *arguments: str, stdin: bool = False
    ) -> Command | None:
        """Start the shell text *script* in a container of the run's pod; None if the container does not run."""
        pod = snapshot.pod
        if pod is None:
            return None
        with suppress(Refused):
            return self._cluster.command(pod["metadata"]["name"], container, script, *arguments, stdin=stdin)
        return None

    def remove(self) -> None:
        """Remove the Job, its Secret and its pods; return when its script has stopped."""
        self.annotate(CANCELLED, "removed", unless=(CANCELLED, END))
        snapshot = self.snapshot()
        # If no script runs or will run, there is no need to wait for the node, which reports late.
        running = ""
        if snapshot is not None and not snapshot.script.get("terminated"):
            running = snapshot.annotations.get(ASSIGNED_POD, "").partition(" ")[2]
        self._delete(f"batch/jobs/{self.name}", propagation_policy="Foreground")
        for pod in self._pods():
            grace = "1" if pod["metadata"]["uid"] == running else "0"
            self._delete(f"core/pods/{pod['metadata']['name']}", grace_period_seconds=grace)
        self._delete(f"core/secrets/{self.name}")
        for _ in backoff(_REMOVE_TIMEOUT):
            if self.snapshot() is None and not self._pods():
                return
        raise InfrastructureError(
            f"The pod of {self.name} still exists after {_REMOVE_TIMEOUT:g} s; "
            "its node may be unavailable: try again later"
        )

    def _pods(self) -> list[Json]:
        try:
            response = self._cluster.request("get", "core/pods", label_selector=f"{RUN_LABEL}={self.name}")
        except Refused as error:
            raise InfrastructureError(f"Kubernetes refuses to show the pods of {self.name}: {error}") from error
        return list(response["items"])

    def _delete(self, path: str, **options: str) -> None:
        try:
            self._cluster.request("delete", path, None, **options)
        except Refused as error:
            if error.status != _NOT_FOUND_STATUS:
                raise InfrastructureError(f"Kubernetes refuses to delete {path}: {error}") from error


def backoff(timeout: float | None = None) -> Iterator[None]:
    """Yield at once, and again after growing pauses, for *timeout* seconds."""
    pause, longest = _POLL
    until = None if timeout is None else time.monotonic() + timeout
    while True:
        yield
        left = longest if until is None else until - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(pause, left))
        pause = min(pause * 1.3, longest)
