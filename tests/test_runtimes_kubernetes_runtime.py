"""The Kubernetes runtime on a real cluster: plans, data transfer, lost pods, permissions."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from docker import APIClient

from planning import planning
from prefect_executions.errors import InfrastructureError, NotFoundError, PlanError, RequestError
from prefect_executions.runtimes.interface import RUN_LABEL, Plan, Resources, RunStatus, SharedClaim
from prefect_executions.runtimes.kubernetes.api import Cluster
from prefect_executions.runtimes.kubernetes.runtime import KubernetesRuntime
from prefect_executions.runtimes.registry import open_runtime

PATIENT = 120.0


@pytest.fixture
def cluster(need) -> Iterator[Cluster]:
    with closing(Cluster(need("EXECUTIONS_TEST_KUBERNETES", "a Kubernetes cluster"))) as opened:
        yield opened


@pytest.fixture
def runtime(cluster: Cluster) -> Iterator[KubernetesRuntime]:
    with closing(KubernetesRuntime(os.environ["EXECUTIONS_TEST_KUBERNETES"], host_network=True)) as opened:
        yield opened


@pytest.fixture
def plan(runtime: KubernetesRuntime, tmp_path: Path) -> Iterator[Callable[..., Plan]]:
    with planning(runtime, tmp_path) as compiled:
        yield compiled


def of(cluster: Cluster, kind: str, run_id: str) -> list[dict]:
    """Return the objects of one kind with the label of a run."""
    return cluster.request("get", kind, label_selector=f"{RUN_LABEL}={run_id}")["items"]


def test_the_cluster_creates_the_planned_job_and_the_pod_gives_the_location(runtime, plan, cluster, tmp_path):
    limits = Resources(cpus=0.5, memory=64 << 20, time_limit=600)
    made = plan("exec perl -e 'my $x = q(x) x 200_000_000'", resources=limits, user="1234:1234", secrets={"TOKEN": "t"})
    run = runtime.run(made)
    end = run.wait(PATIENT)
    assert (end.status, end.code) == (RunStatus.FAILED, 137)
    assert "memory" in end.why

    (pod,) = of(cluster, "core/pods", made.id)
    script = next(container for container in pod["spec"]["containers"] if container["name"] == "script")
    assert script["resources"]["limits"] == {"cpu": "500m", "memory": str(64 << 20)}
    assert script["securityContext"] == {"allowPrivilegeEscalation": False, "runAsUser": 1234, "runAsGroup": 1234}
    assert pod["spec"]["activeDeadlineSeconds"] > 600
    assert pod["metadata"]["labels"]["prefect-executions.execution"] == "an-execution"
    shown = json.loads((tmp_path / "plan" / "plan.json").read_text())["spec"]
    assert [container["command"] for container in shown["spec"]["template"]["spec"]["containers"]] == [
        container["command"] for container in pod["spec"]["containers"]
    ]

    seen = run.seen()
    assert (seen.pod, seen.node) == (pod["metadata"]["name"], pod["spec"]["nodeName"])
    with closing(APIClient(os.environ["EXECUTIONS_TEST_DOCKER"], version="auto")) as engine:
        details = engine.inspect_container(seen.container)
    assert (seen.image, seen.image_digest) == (details["Image"], None), "it came from no registry"

    run.discard()
    assert [of(cluster, kind, made.id) for kind in ("batch/jobs", "core/pods", "core/secrets")] == [[], [], []]


def test_the_data_folder_is_sent_and_fetched_and_the_script_starts_once(runtime, plan, tmp_path):
    data = tmp_path / "data"
    (data / "deep" / "er").mkdir(parents=True)
    (data / "empty").mkdir()
    (data / "a name\nof two lines").write_bytes(b"kept")
    (data / os.fsdecode(b"bytes\xff")).write_bytes(bytes(range(256)) * 4096)
    (data / "deep" / "program").write_text("#!/bin/sh\necho from a program\n")
    (data / "deep" / "program").chmod(0o755)
    (data / "link").symlink_to("/nowhere/at/all")
    (data / "gone").write_text("removed there")
    (data / "large").write_bytes(large := os.urandom(32 << 20))
    made = plan("deep/program; rm gone; ln -s ../link deep/another; cp bytes* copy; echo new > empty/new; exit 3")
    run = runtime.run(made)
    assert runtime.find(made.id).wait(PATIENT) == runtime.find(made.id).wait(PATIENT) == run.wait(PATIENT)
    assert run.exit_code == 3
    assert [chunk.data for chunk in run.logs()] == [b"from a program\n"]
    paths = {path.relative_to(data).as_posix() for path in data.rglob("*")}
    assert paths == {
        *("deep", "deep/er", "deep/program", "deep/another", "empty", "empty/new", "link", "copy", "large"),
        *("a name\nof two lines", os.fsdecode(b"bytes\xff")),
    }
    assert (data / "copy").read_bytes() == bytes(range(256)) * 4096
    assert (data / "large").read_bytes() == large
    assert (data / "link").readlink() == Path("/nowhere/at/all")
    assert os.access(data / "deep" / "program", os.X_OK)

    (data / "later").touch()
    runtime.find(made.id).wait(PATIENT)
    assert (data / "later").exists(), "it came back once and for all"


def test_a_run_whose_pod_is_deleted_is_lost_and_is_not_started_again(runtime, plan, cluster):
    run = runtime.run(plan("echo begun; sleep 300"))
    pieces = run.logs()
    assert next(pieces).data == b"begun\n"
    pod = run.seen().pod
    cluster.request("delete", f"core/pods/{pod}")

    end = run.wait(PATIENT)
    assert end.status is RunStatus.LOST
    assert "was deleted before" in end.why
    assert list(pieces) == []
    assert runtime.find(run.id).wait(PATIENT) == run.cancel() == end, "all callers get the same end"
    until = time.monotonic() + PATIENT
    while of(cluster, "core/pods", run.id) and time.monotonic() < until:
        time.sleep(0.1)
    assert of(cluster, "core/pods", run.id) == []
    assert run.seen().pod == pod


def test_a_pod_that_is_gone_before_its_data_was_fetched_is_an_error(runtime, plan, cluster):
    run = runtime.run(plan("exit 0"))
    until = time.monotonic() + PATIENT
    while not run.status().is_over and time.monotonic() < until:
        time.sleep(0.1)
    cluster.request("delete", f"core/pods/{run.seen().pod}", grace_period_seconds="1")
    while [pod for pod in of(cluster, "core/pods", run.id) if pod["status"]["phase"] == "Running"]:
        assert time.monotonic() < until
        time.sleep(0.1)
    with pytest.raises(InfrastructureError, match="pod is gone"):
        run.wait(PATIENT)
    assert (run.status(), run.exit_code) == (RunStatus.SUCCEEDED, 0)


def test_a_run_whose_job_was_deleted_is_lost(runtime, plan, cluster):
    run = runtime.run(plan("sleep 300"))
    cluster.request("delete", f"batch/jobs/{run.id}", propagation_policy="Foreground")
    end = run.wait(PATIENT)
    assert end.status is RunStatus.LOST
    assert list(run.logs()) == []
    run.discard()


def test_an_image_that_cannot_be_pulled_ends_the_run_with_the_reason(runtime, plan):
    run = runtime.run(plan(image="there-is-no-such-image"))
    end = run.wait(PATIENT)
    assert (end.status, end.code) == (RunStatus.FAILED, None)
    assert "there-is-no-such-image" in end.why


def test_an_image_without_a_shell_ends_the_run_with_the_reason(runtime, plan, tmp_path):
    with closing(APIClient(os.environ["EXECUTIONS_TEST_DOCKER"], version="auto")) as engine:
        with tarfile.open(fileobj=(packed := io.BytesIO()), mode="w") as files:
            files.add(__file__, "a-file")
        engine.import_image_from_data(packed.getvalue(), repository="executions-empty", tag="1")
        end = runtime.run(plan(image="executions-empty:1")).wait(PATIENT)
        engine.remove_image("executions-empty:1", force=True)
    assert end.status is RunStatus.FAILED
    assert "/bin/sh" in end.why


def test_an_unschedulable_run_waits_and_can_be_cancelled(runtime, plan, cluster):
    (node,) = cluster.request("get", "/api/v1/nodes")["items"]
    all_of_it = Resources(cpus=float(node["status"]["allocatable"]["cpu"]))
    first = runtime.run(plan("echo begun; sleep 300", resources=all_of_it))
    next(first.logs())
    second = runtime.run(plan("true", resources=all_of_it))
    with pytest.raises(TimeoutError):
        second.wait(2)
    assert second.status() is RunStatus.WAITING
    assert second.cancel().status is RunStatus.CANCELLED
    with pytest.raises(NotFoundError):
        runtime.find(second.id)
    assert first.cancel(grace=1).status is RunStatus.CANCELLED


def test_a_field_that_the_cluster_drops_is_refused_and_no_job_remains(runtime, plan, cluster):
    made = plan()
    newer = made.spec | {"spec": made.spec["spec"] | {"aFieldOfTomorrow": True}}
    with pytest.raises(PlanError, match="aFieldOfTomorrow"):
        runtime.run(made.model_copy(update={"spec": newer}))
    with pytest.raises(NotFoundError):
        runtime.find(made.id)


def test_a_user_name_and_a_pipe_in_the_data_are_refused(plan, tmp_path):
    os.mkfifo(tmp_path / "data" / "pipe")
    with pytest.raises(PlanError, match=r"(?s)'somebody'.*pipe"):
        plan(user="somebody")


def test_a_shared_claim_needs_no_transfer(runtime, plan, cluster, tmp_path):
    name = f"test-{uuid4()}"
    shared = tmp_path / "data"
    (shared / "below").mkdir()
    size = {"resources": {"requests": {"storage": "1Mi"}}, "accessModes": ["ReadWriteMany"], "storageClassName": ""}
    volume = {
        "spec": {"capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteMany"], "hostPath": {"path": str(shared)}}
    }
    cluster.request("post", "/api/v1/persistentvolumes", {"metadata": {"name": name}, **volume})
    cluster.request(
        "post", "core/persistentvolumeclaims", {"metadata": {"name": name}, "spec": size | {"volumeName": name}}
    )
    other = KubernetesRuntime(
        os.environ["EXECUTIONS_TEST_KUBERNETES"], host_network=True, claim=SharedClaim(name=name, root=shared)
    )
    with closing(other), pytest.raises(PlanError, match="not below"):
        plan(by=other, data=tmp_path)
    run = other.run(plan("echo seen > told; while [ ! -e go ]; do sleep 0.1; done", by=other, data=shared / "below"))
    until = time.monotonic() + PATIENT
    while not (shared / "below" / "told").exists() and time.monotonic() < until:
        time.sleep(0.1)
    (shared / "below" / "go").touch()
    assert run.wait(PATIENT).code == 0
    run.discard()
    other.close()
    assert sorted(path.name for path in (shared / "below").iterdir()) == ["go", "told"]
    cluster.request("delete", f"core/persistentvolumeclaims/{name}")
    cluster.request("delete", f"/api/v1/persistentvolumes/{name}")


def test_the_documented_permissions_are_enough(plan, cluster, tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "runtimes.md").read_text(encoding="utf-8")
    role = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    name = f"test-{uuid4()}"
    rights = "/apis/rbac.authorization.k8s.io/v1/namespaces/default"
    cluster.request("post", "core/serviceaccounts", {"metadata": {"name": name}})
    cluster.request("post", f"{rights}/roles", role | {"metadata": {"name": name}})
    binding = {
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "default"}],
    }
    cluster.request("post", f"{rights}/rolebindings", {"metadata": {"name": name}, **binding})
    token = cluster.request("post", f"core/serviceaccounts/{name}/token", {"spec": {}})["status"]["token"]
    config = yaml.safe_load(Path(os.environ["EXECUTIONS_TEST_KUBERNETES"]).read_text(encoding="utf-8"))
    config["users"][0]["user"] = {"token": token}
    (tmp_path / "config").write_text(yaml.safe_dump(config))

    (tmp_path / "data" / "given").touch()
    with closing(KubernetesRuntime(str(tmp_path / "config"), host_network=True)) as limited:
        limits = Resources(cpus=1)
        run = limited.run(plan("echo told; mv given left", by=limited, secrets={"A": "b"}, resources=limits))
        assert [chunk.data for chunk in run.logs()] == [b"told\n"]
        assert limited.find(run.id).cancel().status is RunStatus.SUCCEEDED
        run.discard()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["left"]
    for kind in ("rolebindings", "roles"):
        cluster.request("delete", f"{rights}/{kind}/{name}")
    cluster.request("delete", f"core/serviceaccounts/{name}")


def test_an_unavailable_or_missing_cluster_is_an_error(tmp_path):
    with pytest.raises(InfrastructureError, match="No Kubernetes cluster is named"):
        KubernetesRuntime(str(tmp_path / "nowhere"))
    with pytest.raises(InfrastructureError, match="Kubernetes failed"):
        open_runtime("kubernetes", state=tmp_path, engine=_away(tmp_path))
    with pytest.raises(RequestError, match="bridge"):
        open_runtime("kubernetes", state=tmp_path, open_network="bridge")


def test_kubeconfig_is_read_when_the_runtime_is_opened(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", _away(tmp_path, namespace="science"))
    with closing(Cluster()) as named:
        assert named.namespace == "science"
        with pytest.raises(InfrastructureError, match="/version"):
            named.request("get", "/version")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    with pytest.raises(InfrastructureError, match=re.escape(f"is named by {tmp_path / 'nowhere'}")):
        Cluster()
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InfrastructureError, match=r"is named by ~/\.kube/config; set KUBECONFIG"):
        Cluster()


def _away(folder: Path, **context: str) -> str:
    """Write a kubeconfig that names a server that is not there, and return its path."""
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "a", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "a", "user": {}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a", **context}}],
        "current-context": "a",
    }
    config = folder / "config"
    config.write_text(yaml.safe_dump(kubeconfig))
    return str(config)
