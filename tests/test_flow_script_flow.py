"""A descriptor in containers and pods: equal results, the recorded image, no containers left."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from docker import APIClient
from prefect.client.orchestration import get_client
from prefect.states import Cancelling

from homes import Bundles, holding
from journeys import command, program, waited
from prefect_executions import Method, background
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.cli.app import main
from prefect_executions.crate import reader as crate_reader
from prefect_executions.errors import InfrastructureError, ScriptError
from prefect_executions.lifecycle.history import EntryKind
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.provenance import reader as prov_reader

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(600)]

IRISES = Path(__file__).parents[1] / "flows" / "separate_irises" / "method.yaml"
IMAGE = "executions-test"


@pytest.fixture
def bundles(home: Path) -> Bundles:
    return Bundles(home)


@pytest.fixture
def engine(need, bundles, monkeypatch) -> Iterator[APIClient]:
    """Return the configured engine; afterwards check that no container of an execution is left."""
    monkeypatch.setenv("DOCKER_HOST", need("EXECUTIONS_TEST_DOCKER", "a Docker engine"))
    monkeypatch.setenv("EXECUTIONS_RUNTIME", "docker")
    monkeypatch.setenv("EXECUTIONS_RUNTIME_NETWORK", "host")
    with APIClient(os.environ["DOCKER_HOST"], version="auto") as api:
        yield api
        labels = [f"prefect-executions.execution={folder.name}" for folder in bundles.folders()]
        assert [one["Id"] for label in labels for one in api.containers(all=True, filters={"label": label})] == []


def described(folder: Path, execute: str, *, deploy: str = "", undeploy: str = "", **defaults: Any) -> Method:
    scripts = {"deploy-script": deploy, "execute-script": execute, "undeploy-script": undeploy}
    descriptor = {
        "id": "described",
        "version": "1",
        "inputs": {
            name: default if isinstance(default, dict) else {"schema": {"type": "string", "default": default}}
            for name, default in ({"ccpimage": IMAGE} | defaults).items()
        },
        "additionalParameters": {"parameters": [{"name": name, "value": [text]} for name, text in scripts.items()]},
    }
    (folder / "method.json").write_text(json.dumps(descriptor))
    return Method.from_file(folder / "method.json")


def phases(record) -> list[str]:
    return [str(entry.phase) for entry in record.job_status.history if entry.kind is EntryKind.PHASE_ENDED]


def digests(record) -> dict[str, str]:
    return {one.path: one.sha256 for one in record.job_status.outputs if not one.path.endswith("stderr.log")}


def test_a_container_computes_the_same_digits_as_a_process(engine, bundles, monkeypatch):
    irises = Method.from_file(IRISES)
    irises(ccpimage=IMAGE)
    in_container = bundles.record()
    monkeypatch.setenv("EXECUTIONS_RUNTIME", "process")
    irises()
    (other,) = (folder for folder in bundles.folders() if folder.name != in_container.id)

    assert len(digests(in_container)) == 3
    assert digests(in_container) == digests(bundles.record(other))
    assert bundles.failed_checks() == []


def test_a_pod_computes_the_same_digits_as_a_process(need, bundles, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", need("EXECUTIONS_TEST_KUBERNETES", "a Kubernetes cluster"))
    monkeypatch.setenv("EXECUTIONS_RUNTIME", "kubernetes")
    monkeypatch.setenv("EXECUTIONS_RUNTIME_NETWORK", "host")
    irises = Method.from_file(IRISES)
    irises(ccpimage=IMAGE)
    in_pod = bundles.record()
    monkeypatch.setenv("EXECUTIONS_RUNTIME", "process")
    irises()
    (other,) = (folder for folder in bundles.folders() if folder.name != in_pod.id)

    assert digests(in_pod) == digests(bundles.record(other))
    assert phases(in_pod) == ["launch", "deploy", "execute", "fetch", "destroy"]
    assert in_pod.instance.runs[0].runtime == "kubernetes"
    assert in_pod.instance.runs[0].node
    assert bundles.failed_checks() == []


def test_the_record_names_image_and_container_and_where_the_data_was(engine, bundles, tmp_path, monkeypatch):
    monkeypatch.setenv("EXECUTIONS_RUNTIME_IMAGE", IMAGE)
    monkeypatch.setenv("EXECUTIONS_MEMORY", str(256 << 20))
    described(tmp_path, "pwd; echo $OUTPUTS $INPUTS; cat /tmp/kept", deploy="echo kept > /tmp/kept", ccpimage="")()
    record = bundles.record()
    (run,) = record.instance.runs

    assert (bundles.one() / "outputs/stdout.log").read_text() == "/ccp_data\n/ccp_data /ccp_data/inputs\nkept\n"
    assert run.runtime == "docker"
    plan = json.loads((bundles.one() / "code/plan/1.1/plan.json").read_text())
    assert plan["spec"]["HostConfig"]["Memory"] == 256 << 20
    assert (run.image, run.image_name) == (engine.inspect_image(IMAGE)["Id"], IMAGE)
    for teller, read in (("metadata/provo.xml", prov_reader.read), ("ro-crate-metadata.json", crate_reader.read)):
        phases_told = sorted(read((bundles.one() / teller).read_bytes()).summary.phases)
        images = {one.phase: one.image and (one.image.id, one.image.name) for one in phases_told}
        assert images == {
            "launch": None,
            "deploy": (run.image, IMAGE),
            "execute": (run.image, IMAGE),
            "fetch": None,
            "destroy": None,
        }
    assert (run.node, run.image_digest) == (engine.info()["Name"], None)
    assert len(run.container) == 64


def test_a_replay_runs_in_the_recorded_image_or_reports_that_it_is_missing(
    engine, bundles, tmp_path, monkeypatch, capsys
):
    first = _image(engine, "first")
    described(tmp_path, "echo $BUILD > build.txt", ccpimage=_NAME)()
    background.drain()
    second = _image(engine, "second")
    assert engine.inspect_image(_NAME)["Id"] == second
    recorded = bundles.record()
    assert recorded.instance.runs[0].image == first
    (tmp_path / "method.json").unlink()
    monkeypatch.setenv("EXECUTIONS_RUNTIME", "process")

    assert main(["replay", recorded.id, "--json"]) == 0
    replay = json.loads(capsys.readouterr().out)
    assert replay["verdict"]["environment"] == []
    folder = next(one for one in bundles.folders() if one.name == replay["id"])
    assert bundles.record(folder).instance.runs[0].image == first
    background.drain()

    engine.remove_image(first, force=True)
    assert main(["replay", recorded.id]) == 3
    errors = capsys.readouterr().err
    assert "nothing was run" in errors
    assert f"image: {_NAME} ({first}) is neither in the runtime 'docker' nor in a registry" in errors
    engine.remove_image(second, force=True)


_NAME = "executions-replayed:1"


def _image(engine: APIClient, build: str) -> str:
    """Give the name to a new image, and return its id."""
    container = engine.create_container(IMAGE, ["true"], host_config=engine.create_host_config(network_mode="none"))
    made = engine.commit(container["Id"], *_NAME.split(":"), changes=[f"ENV BUILD={build}"])
    engine.remove_container(container["Id"])
    return made["Id"]


@pytest.mark.parametrize("how", ["fails", "expires", "cancelled"])
def test_undeploy_runs_after_every_end_and_no_container_is_left(engine, bundles, tmp_path, how):
    execute = "echo half > half.txt; echo begun; " + ("exit 5" if how == "fails" else "sleep 300")
    limit = {"ccpmaxtime": "8"} if how == "expires" else {}
    flow = described(tmp_path, execute, undeploy="echo undeployed > late.txt", **limit)
    if how == "cancelled":
        threading.Thread(target=copy_context().run, args=(_cancel_when_begun, bundles)).start()
    with pytest.raises({"fails": ScriptError, "expires": TimeoutError, "cancelled": KeyboardInterrupt}[how]):
        flow()
    record = bundles.record()

    assert phases(record) == ["launch", "execute", "fetch", "undeploy", "destroy"]
    assert record.status is (Status.CANCELLED if how == "cancelled" else Status.FAILED)
    assert record.job_status.reason == {"fails": Reason.ERROR, "expires": Reason.TIMED_OUT}.get(how)
    assert (bundles.one() / "outputs/half.txt").read_text() == "half\n"
    assert (bundles.one() / "outputs/late.txt").read_text() == "undeployed\n"
    assert bundles.failed_checks() == []


def _cancel_when_begun(bundles: Bundles) -> None:
    folder = _begun(bundles)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(folder.name), Cancelling())
    OpenBundle.load(folder.parent, folder.name).request_cancel()


def _begun(bundles: Bundles) -> Path:
    """Wait for the script's first output, and return the bundle."""

    def logs() -> list[Path]:
        return [log for log in bundles.home.rglob("stdout.log") if "begun" in log.read_text()]

    (log,) = waited(logs, "the script's first word")
    return log.parents[1]


def test_a_missing_image_fails_before_anything_runs(engine, bundles, tmp_path):
    with pytest.raises(InfrastructureError, match="science/nothing"):
        described(tmp_path, "true", ccpimage="127.0.0.1:1/science/nothing:1")()
    assert phases(bundles.record()) == ["launch", "destroy"]


def test_a_secret_is_in_no_plan_and_no_log(engine, bundles, tmp_path, monkeypatch):
    planted = "-".join(["plAnted", "s3cret", "d0ck"])  # noqa: FLY002 - no file of the test's holds it
    monkeypatch.setenv("PLANTED", planted)
    secret = {"schema": {"type": "string", "format": "secret", "default": "env:PLANTED"}}
    described(tmp_path, 'echo "$token"', token=secret)()

    assert (bundles.one() / "outputs/stdout.log").read_text() == "********\n"
    assert holding(bundles.home, planted.encode()) == []


def test_a_killed_container_is_recorded_as_a_failure(engine, bundles, tmp_path):
    flow = described(tmp_path, "echo half > half.txt; echo begun; sleep 300", undeploy="true")
    threading.Thread(target=_kill_when_begun, args=(engine, bundles)).start()
    with pytest.raises(ScriptError, match="exit code 137"):
        flow()
    record = bundles.record()

    assert (record.status, record.job_status.reason) == (Status.FAILED, Reason.ERROR)
    assert (bundles.one() / "outputs/half.txt").read_text() == "half\n"
    assert phases(record) == ["launch", "execute", "fetch", "undeploy", "destroy"]
    assert bundles.failed_checks() == []


def _kill_when_begun(engine: APIClient, bundles: Bundles) -> None:
    folder = _begun(bundles)
    (container,) = engine.containers(filters={"label": f"prefect-executions.execution={folder.name}"})
    engine.kill(container["Id"], "SIGKILL")


@pytest.mark.long
def test_a_container_whose_run_was_killed_is_removed_by_settle(engine, bundles, tmp_path):
    described(tmp_path, "echo half > half.txt; echo begun; sleep 300")
    words = [str(Path(sys.executable).with_name("executions")), "run", str(tmp_path / "method.json")]
    with program(words, tmp_path / "run.log", {}) as run:
        folder = _begun(bundles)
        run.kill()
        run.wait()
    label = {"label": f"prefect-executions.execution={folder.name}"}
    assert len(engine.containers(filters=label)) == 1, "it outlives the run"
    command("executions", "settle", "--once")
    record = bundles.record()

    assert (record.status, record.job_status.reason) == (Status.FAILED, Reason.CRASHED)
    assert (folder / "outputs/half.txt").read_text() == "half\n"
    assert engine.containers(all=True, filters=label) == []
    assert bundles.failed_checks() == []
