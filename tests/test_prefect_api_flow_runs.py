"""Facts about a flow run's infrastructure from Prefect and its workers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from prefect.client.schemas.objects import FlowRun

from prefect_executions.events import SeenLabel
from prefect_executions.executions.record import Instance
from prefect_executions.prefect_api import flow_runs
from prefect_executions.runtimes.worker_labels import pod_labels

SHA = "sha256:" + "a" * 64
NOON = datetime(2026, 9, 22, 12, tzinfo=UTC)


def a_run(labels: dict[str, Any]) -> FlowRun:
    return FlowRun(flow_id=uuid4(), labels={"prefect.worker.type": "executions-docker", **labels})


def a_pod(name: str, image_id: str | None, at: datetime = NOON) -> dict[str, Any]:
    """A pod as Kubernetes' clients tell it; without an image where its container has not run."""
    statuses = (
        None if image_id is None else [{"image": "coins:1", "image_id": image_id, "container_id": "docker://c0ffee"}]
    )
    return {
        "metadata": {"name": name, "creation_timestamp": at},
        "spec": {"node_name": "node-1"},
        "status": {"container_statuses": statuses},
    }


def test_the_labels_of_a_worker_are_recorded():
    run = a_run({SeenLabel.IMAGE: "coins:1", SeenLabel.IMAGE_ID: SHA, SeenLabel.IMAGE_DIGEST: SHA})
    infrastructure = flow_runs.infrastructure(run, {})
    assert (infrastructure.type, infrastructure.image, infrastructure.image_id, infrastructure.image_digest) == (
        "executions-docker",
        "coins:1",
        SHA,
        SHA,
    )


def test_without_labels_of_a_worker_the_fields_are_absent():
    infrastructure = flow_runs.infrastructure(a_run({}), {})
    assert (infrastructure.image, infrastructure.image_id, infrastructure.image_digest) == (None, None, None)
    assert flow_runs.with_worker_labels(Instance(), a_run({})) == Instance()


def test_the_runs_own_observation_overrides_its_workers():
    run = a_run({SeenLabel.CONTAINER: "outside", SeenLabel.NODE: "node-1", SeenLabel.POD: "pod-1"})
    instance = flow_runs.with_worker_labels(Instance(container_id="inside"), run)
    assert (instance.container_id, instance.node, instance.pod) == ("inside", "node-1", "pod-1")


def test_labels_of_another_pod_are_ignored():
    seen_there = {SeenLabel.IMAGE_ID: SHA, SeenLabel.POD: "coins-x7-abcde", SeenLabel.CONTAINER: "c0ffee"}
    run = a_run({"prefect.worker.type": "executions-kubernetes", **seen_there})
    run.infrastructure_pid = "science:coins-x7"

    there = flow_runs.infrastructure(run, {"POD_NAME": "coins-x7-abcde"})
    assert (there.image_id, there.identifier) == (SHA, "science:coins-x7")
    replaced = flow_runs.infrastructure(run, {"POD_NAME": "coins-x7-fghij"})
    assert (replaced.image_id, replaced.identifier) == (None, "science:coins-x7")
    of_the_job_before = flow_runs.infrastructure(run, {"POD_NAME": "coins-x6-klmno"})
    assert (of_the_job_before.image_id, of_the_job_before.identifier) == (None, None)
    assert flow_runs.with_worker_labels(Instance(pod="coins-x7-fghij"), run) == Instance(pod="coins-x7-fghij")


def test_of_several_pods_the_newest_started_one_is_labelled():
    pods = [
        a_pod("first", f"docker-pullable://science/coins@{SHA}"),
        a_pod("second", f"docker://{SHA}", NOON + timedelta(minutes=1)),
        a_pod("third", None, NOON + timedelta(minutes=2)),
    ]
    assert pod_labels(pods) == {
        SeenLabel.IMAGE.value: "coins:1",
        SeenLabel.IMAGE_ID.value: SHA,
        SeenLabel.CONTAINER.value: "c0ffee",
        SeenLabel.POD.value: "second",
        SeenLabel.NODE.value: "node-1",
    }
    first = pod_labels(pods[:1])
    assert first[SeenLabel.IMAGE_DIGEST.value] == SHA
    assert SeenLabel.IMAGE_ID.value not in first
    assert pod_labels(pods[2:]) == {}
