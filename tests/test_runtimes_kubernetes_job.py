"""The end of a Kubernetes run, from API responses that no test can provoke at will."""

from __future__ import annotations

import pytest

from prefect_executions.runtimes.interface import Exit, RunStatus
from prefect_executions.runtimes.kubernetes.job import ASSIGNED_POD, CANCELLED, END, FETCHED, JobSnapshot

ENDED = {
    "exitCode": 0,
    "reason": "Completed",
    "startedAt": "2026-01-01T10:00:00Z",
    "finishedAt": "2026-01-01T10:00:05Z",
}


def look(
    state: dict | None = None, *, status: dict | None = None, notes: dict | None = None, **metadata
) -> JobSnapshot:
    """Return a snapshot of a Job and its one pod, whose script's container is in *state*."""
    pod_status = {"containerStatuses": [{"name": "script", "state": state}] if state else [], **(status or {})}
    pod = {
        "metadata": {"name": "a-pod", "uid": "1", "creationTimestamp": "2026-01-01T09:00:00Z", **metadata},
        "spec": {"nodeName": "a-node"},
        "status": pod_status,
    }
    return JobSnapshot(job={"metadata": {"annotations": notes}}, pods=(pod,))


def test_a_pod_that_waits_for_resources_or_its_image_has_not_ended():
    assert look().end() is None
    assert look({"waiting": {"reason": "ImagePullBackOff", "message": "dial tcp: connection refused"}}).end() is None
    assert look({"waiting": {"reason": "CreateContainerError", "message": "context deadline exceeded"}}).end() is None
    assert not look({"waiting": {}}).started


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("ErrImageNeverPull", "not present"),
        ("InvalidImageName", "invalid"),
        ("ErrImagePull", "manifest unknown"),
        ("ImagePullBackOff", "pull access denied"),
        ("CreateContainerError", "no such user"),
    ],
)
def test_a_permanent_problem_is_a_failure_with_its_reason(reason, message):
    end = look({"waiting": {"reason": reason, "message": message}}).end()
    assert (end.status, end.code) == (RunStatus.FAILED, None)
    assert message in end.why


@pytest.mark.parametrize(
    ("reason", "status"),
    [("Evicted", RunStatus.LOST), ("NodeLost", RunStatus.LOST), ("DeadlineExceeded", RunStatus.EXPIRED)],
)
def test_a_pod_that_its_node_gave_up_has_failed_despite_its_containers(reason, status):
    gone = {"phase": "Failed", "reason": reason, "message": "The node was low on resource: memory."}
    for state in (None, {"terminated": {"exitCode": 137, "reason": "Error"}}):
        end = look(state, status=gone).end()
        assert end.status is status
        assert reason in end.why


def test_a_pod_that_cannot_start_fails_with_its_containers_messages():
    receiver = {"terminated": {"exitCode": 127, "reason": "ContainerCannotRun", "message": "/bin/sh: not found"}}
    status = {"phase": "Failed", "initContainerStatuses": [{"name": "receiver", "state": receiver}]}
    end = look(status=status).end()
    assert end.status is RunStatus.FAILED
    assert "/bin/sh: not found" in end.why


def test_a_successful_script_in_a_deleted_pod_is_lost_unless_its_data_was_fetched():
    deleted = {"deletionTimestamp": "2026-01-01T11:00:00Z", "deletionGracePeriodSeconds": 0}
    given = {ASSIGNED_POD: "a-pod 1"}
    assert look({"terminated": ENDED}, notes=given).end().status is RunStatus.SUCCEEDED
    assert look({"terminated": ENDED}, notes=given, **deleted).end().status is RunStatus.LOST
    fetched = look({"terminated": ENDED}, notes=given | {FETCHED: "then"}, **deleted)
    assert fetched.end().status is RunStatus.SUCCEEDED
    unseen = look({"waiting": {"reason": "ContainerCreating"}}, status={"phase": "Failed"}, notes=given, **deleted)
    assert unseen.end().status is RunStatus.LOST, "a container that is removed with its pod has no end that anybody saw"


def test_the_annotated_end_never_changes():
    noted = Exit(status=RunStatus.FAILED, code=3)
    notes = {END: noted.model_dump_json(exclude_none=True), CANCELLED: "then"}
    assert look({"terminated": ENDED}, notes=notes).end() == noted
    assert JobSnapshot(job={"metadata": {"annotations": notes}}).end() == noted


def test_a_pod_that_replaces_the_assigned_one_does_not_count():
    replaced = look({"running": {}}, notes={ASSIGNED_POD: "first 0"})
    assert replaced.pod is None
    assert replaced.end().status is RunStatus.LOST
    assert "first" in replaced.end().why
    assert replaced.seen().pod == "first"


@pytest.mark.parametrize(
    ("image_id", "image", "digest"),
    [
        ("docker://sha256:aa", "sha256:aa", None),
        ("docker-pullable://science/hello@sha256:bb", None, "science/hello@sha256:bb"),
        ("sha256:aa", "sha256:aa", None),
        ("registry.example/hello@sha256:bb", None, "registry.example/hello@sha256:bb"),
        ("", None, None),
    ],
)
def test_the_image_is_read_from_the_status_of_each_kind_of_node(image_id, image, digest):
    container = {"name": "script", "imageID": image_id, "containerID": "containerd://cc", "state": {"running": {}}}
    seen = look(status={"containerStatuses": [container]}).seen()
    assert (seen.image, seen.image_digest) == (image, digest)
    assert (seen.container, seen.pod, seen.node) == ("cc", "a-pod", "a-node")
