"""A Kubernetes work pool for real: our image in a job of a cluster, and what the record says of pod, node and image."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import APIClient

import images
from journeys import program, waited
from pools import Place, make_pool
from prefect_executions.lifecycle import Status

POOL = "cluster"
IMAGE = "executions:kubernetes-pool"
WORKER = "kubernetes-worker"


@pytest.fixture(scope="module")
def api(need) -> Iterator[APIClient]:
    with APIClient(need("EXECUTIONS_TEST_DOCKER", "a Docker engine"), version="auto", timeout=600) as api:
        yield api


@pytest.fixture(scope="module")
def place(api: APIClient, need, prefect_server: str, tmp_path_factory) -> Iterator[Place]:
    """Make the work pool of deployments/kubernetes/ with a worker; the archive is a folder of the node."""
    config = need("EXECUTIONS_TEST_KUBERNETES", "a Kubernetes cluster")
    image, made = images.ours(api, IMAGE), Place(tmp_path_factory.mktemp("srv"))
    made.archive.mkdir()
    defaults = {
        "image": image,
        "image_pull_policy": "Never",
        "host_network": True,
        "volumes": [{"name": "archive", "hostPath": {"path": str(made.archive)}}],
        "volume_mounts": [{"name": "archive", "mountPath": str(made.archive)}],
    }
    make_pool(POOL, "kubernetes", defaults, made.archive)
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--name", WORKER]
    told = {"KUBECONFIG": config, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    with program(worker, made.folder / "worker.log", told):
        yield made


@pytest.fixture
def operator(place: Place, home: Path, monkeypatch) -> Place:
    return place.at_home(monkeypatch)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_method_in_a_pod_leaves_a_record_that_says_where_it_ran(operator, api):
    operator.told("deploy", "flows/count_words.py:count_words", "--pool", POOL)
    wishes = ("-p", "most=3", "--cpus", "1", "--memory", "700m", "--wait", "--json")
    submitted = json.loads(operator.told("submit", "count-words", "--pool", POOL, *wishes))
    assert (submitted["state"], submitted["status"]) == ("COMPLETED", "COMPLETED"), operator.folder

    record = operator.record(submitted["id"])
    there, here = record.infrastructure, record.instance
    assert (there.type, there.work_pool, there.worker) == ("executions-kubernetes", POOL, WORKER)
    assert (there.image_id, there.image_digest) == (api.inspect_image(IMAGE)["Id"], None)
    assert there.identifier.startswith("default:")
    assert here.pod.startswith(there.identifier.partition(":")[2])
    assert here.node == os.uname().nodename
    assert (here.cpu_count, here.memory, here.own_process) == (1, 700 << 20, True)
    assert [one["Id"] for one in api.containers(all=True) if one["Id"] == here.container_id]
    operator.told("verify", submitted["id"])
    waited(lambda: operator.settled(submitted["id"]), "a round of settle")
    assert submitted["id"] in operator.told("list")
    assert record.status is Status.COMPLETED
