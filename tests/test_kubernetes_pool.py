"""A Kubernetes work pool for real: our image in a job of a cluster, and what the record says of pod, node and image."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from docker import APIClient

import images
from journeys import program, waited
from pools import Place, make_pool
from prefect_executions.lifecycle.history import EntryKind
from prefect_executions.lifecycle.status import Status
from prefect_executions.runtimes.kubernetes.api import Cluster

POOL = "cluster"
WAITS = """
import os
import time
from pathlib import Path

from prefect_executions import current_execution, method


@method(version="1")
def waits() -> None:
    current_execution().output(os.environ["POD_NAME"]).write_text("it was here")
    first = Path(__file__).with_name(current_execution().metadata.execution_id.partition(".")[0] + ".begun")
    if not first.exists():
        first.touch()
        time.sleep(900)
"""
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
def cluster(need) -> Iterator[Cluster]:
    with closing(Cluster(need("EXECUTIONS_TEST_KUBERNETES", "a Kubernetes cluster"))) as opened:
        yield opened


@pytest.fixture
def operator(place: Place, home: Path, monkeypatch) -> Place:
    return place.at_home(monkeypatch)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_method_in_a_pod_leaves_a_record_that_says_where_it_ran(operator, api):
    operator.cli("deploy", "flows/count_words.py:count_words", "--pool", POOL)
    wishes = ("-p", "most=3", "--cpus", "1", "--memory", "700m", "--wait", "--json")
    submitted = json.loads(operator.cli("submit", "count-words", "--pool", POOL, *wishes))
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
    assert f"pod\t{here.pod} on {here.node}\n" in operator.cli("show", submitted["id"])
    operator.cli("verify", submitted["id"])
    waited(lambda: operator.settled(submitted["id"]), "a round of settle")
    assert submitted["id"] in operator.cli("list")
    assert record.status is Status.COMPLETED


def deploy_waits(operator: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deploy a Method that its first pod never ends and each later one at once; its folder is one of the node."""
    methods = operator.folder / "methods"
    methods.mkdir(exist_ok=True)
    (methods / "waits.py").write_text(WAITS)
    folders = {"archive": operator.archive, "methods": methods}
    variables = {
        "volumes": [{"name": name, "hostPath": {"path": str(path)}} for name, path in folders.items()],
        "volume_mounts": [{"name": name, "mountPath": str(path)} for name, path in folders.items()],
    }
    told = [word for name, value in variables.items() for word in ("--job-variable", f"{name}={json.dumps(value)}")]
    monkeypatch.chdir(methods)
    operator.cli("deploy", "waits.py:waits", "--pool", POOL, "--folder", str(methods), *told)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("grace", [240, 0])  # seconds: with time to tell Prefect, and without
def test_a_run_whose_pod_is_deleted_is_one_execution_that_ends_in_another_pod(operator, cluster, grace, monkeypatch):
    deploy_waits(operator, monkeypatch)
    execution_id = json.loads(operator.cli("submit", f"waits/waits-{POOL}", "--json"))["id"]
    first = operator.folder / "methods" / f"{execution_id}.begun"
    waited(lambda: first.exists() and operator.begun(execution_id), f"the Method's code in {execution_id}")
    deleted = operator.record(execution_id).instance.pod
    cluster.request("delete", f"core/pods/{deleted}", {"gracePeriodSeconds": grace})

    # Kubernetes replaces the pod, and Prefect may send the run to another job besides: who ends first is the record.
    waited(lambda: operator.record(execution_id).instance.pod != deleted, f"another pod of {execution_id}")
    waited(lambda: operator.settled(execution_id), f"the seal of {execution_id}")
    record = operator.record(execution_id)
    here, history = record.instance, record.job_status.history
    assert (record.status, record.job_status.attempt > 1) == (Status.COMPLETED, True)
    began = next(number for number, entry in enumerate(history) if entry.status is Status.EXECUTING)
    again = next(number for number, entry in enumerate(history) if entry.kind is EntryKind.ATTEMPT)
    assert began < again
    assert any(f"it ran in pod {deleted} before" in (entry.message or "") for entry in history)
    assert [one.path for one in record.job_status.outputs if not one.path.endswith(".log")] == [f"outputs/{here.pod}"]
    job = record.infrastructure.identifier
    assert job is None or here.pod.startswith(job.partition(":")[2])
    operator.cli("verify", execution_id)
    listed = [line.split("\t")[0] for line in operator.cli("list").splitlines()]
    assert listed.count(execution_id) == 1
