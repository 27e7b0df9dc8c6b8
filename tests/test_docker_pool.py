"""A Docker work pool for real: our image, our worker, nothing shared but the archive; what the record says of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest
from docker import APIClient, DockerClient
from prefect.client.orchestration import get_client

import images
import registry
from homes import WHOLE_WAY, way
from journeys import command, program, waited
from pools import Place, make_pool
from prefect_executions.events import SeenLabel
from prefect_executions.lifecycle.status import Reason, Status

POOL = "containers"
IMAGE = "executions:docker-pool"
WAITS = """
import time

from prefect_executions import current_execution, method


@method(version="1")
def waits() -> None:
    current_execution().output("half.txt").write_text("half")
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def address(need) -> str:
    return need("EXECUTIONS_TEST_DOCKER", "a Docker engine")


@pytest.fixture(scope="module")
def api(address: str) -> Iterator[APIClient]:
    with APIClient(address, version="auto", timeout=600) as api:
        yield api


@pytest.fixture(scope="module")
def place(api: APIClient, prefect_server: str, tmp_path_factory) -> Iterator[Place]:
    """Make the work pool of deployments/docker/ with a worker, and the image that its runs have."""
    image, made = images.ours(api, IMAGE), Place(tmp_path_factory.mktemp("srv"))
    made.archive.mkdir()
    volumes = [f"{made.archive}:{made.archive}"]
    make_pool(POOL, "docker", {"image": image, "volumes": volumes}, made.archive)
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--name", "docker-worker"]
    told = {"DOCKER_HOST": os.environ["EXECUTIONS_TEST_DOCKER"], "PREFECT_WORKER_QUERY_SECONDS": "1"}
    with program(worker, made.folder / "worker.log", told):
        yield made


@pytest.fixture
def operator(place: Place, home: Path, monkeypatch) -> Place:
    return place.at_home(monkeypatch)


def container_of(api: APIClient, execution_id: str) -> Mapping[str, str]:
    (found,) = api.containers(all=True, filters={"label": f"io.prefect.flow-run-id={execution_id}"})
    return found


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_method_in_a_container_leaves_a_record_that_says_where_it_ran(operator, api):
    place = operator
    place.cli("deploy", "flows/count_words.py:count_words", "--pool", POOL)
    wishes = ("-p", "most=3", "--cpus", "1", "--memory", "512m", "--time-limit", "10m")
    submitted = json.loads(place.cli("submit", "count-words", "--pool", POOL, *wishes, "--wait", "--json"))
    assert (submitted["state"], submitted["status"]) == ("COMPLETED", "COMPLETED"), (
        place.folder / "worker.log"
    ).read_text()

    record = place.record(submitted["id"])
    container, image = container_of(api, submitted["id"]), api.inspect_image(IMAGE)
    there, here = record.infrastructure, record.instance
    assert (there.type, there.work_pool, there.worker) == ("executions-docker", POOL, "docker-worker")
    assert (there.image, there.image_id, there.image_digest) == (IMAGE, image["Id"], None)
    assert there.identifier.endswith(f":{container['Id']}")
    assert (here.container_id, here.node) == (container["Id"], api.info()["Name"])
    assert (here.cpu_count, here.memory, here.own_process) == (1, 512 << 20, True)
    assert record.method.code.image == IMAGE
    assert record.method.code.repository.commit == images.COMMIT
    place.cli("verify", submitted["id"])
    assert place.cli("outputs", submitted["id"], "counts.csv").startswith("word,count")

    assert submitted["id"] not in place.cli("list"), "its ledger was the container's own"
    place.cli("settle", "--once")
    assert submitted["id"] in place.cli("list")

    command("prefect", "deployment", "run", f"count-words/count-words-{POOL}", "--param", "most=2", "--watch")
    place.cli("settle", "--once")
    (newest, *_) = json.loads(place.cli("list", "--json"))["executions"]
    assert place.record(newest["id"]).request.values["most"] == 2
    assert way(place.record(newest["id"])) == [*WHOLE_WAY, "COMPLETED"]
    place.cli("verify", newest["id"])


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_container_that_is_killed_leaves_a_true_record(operator, api, monkeypatch):
    place = operator
    methods = place.folder / "methods"
    methods.mkdir()
    (methods / "waits.py").write_text(WAITS)
    monkeypatch.chdir(methods)
    volumes = [f"{folder}:{folder}" for folder in (place.archive, methods)]
    variables = ("--folder", str(methods), "--job-variable", f"volumes={json.dumps(volumes)}")
    place.cli("deploy", "waits.py:waits", "--pool", POOL, *variables)
    execution_id = json.loads(place.cli("submit", f"waits/waits-{POOL}", "--json"))["id"]

    waited(lambda: place.begun(execution_id), f"the Method's code in {execution_id}")
    container = container_of(api, execution_id)
    api.kill(container["Id"], "SIGKILL")

    def crashed() -> bool:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(UUID(execution_id)).state.is_crashed()

    waited(crashed, f"the crash of {execution_id}")
    waited(lambda: place.settled(execution_id), f"the seal of {execution_id}, when it has been silent for a while")
    record = place.record(execution_id)
    assert (record.status, record.job_status.reason) == (Status.FAILED, Reason.CRASHED)
    assert "137" in record.job_status.message
    assert record.instance.container_id == container["Id"]
    assert record.infrastructure.image_id == api.inspect_image(IMAGE)["Id"]
    place.cli("verify", execution_id)
    assert execution_id in place.cli("list")


def test_the_digest_of_an_image_is_that_of_its_registry(address, api):
    from prefect_executions.runtimes.docker.worker import seen  # noqa: PLC0415 - needs the extra

    with registry.serving("science/hello") as (there, digest), closing(DockerClient(address)) as client:
        name = f"{there}/science/hello:1"
        api.pull(name)
        container = client.containers.create(name, command="none")
        try:
            told = seen(client, container, name)
        finally:
            container.remove()
    assert told == {
        SeenLabel.IMAGE.value: name,
        SeenLabel.IMAGE_ID.value: api.inspect_image(name)["Id"],
        SeenLabel.IMAGE_DIGEST.value: digest,
        SeenLabel.CONTAINER.value: container.id,
        SeenLabel.NODE.value: api.info()["Name"],
    }
    api.remove_image(name, force=True)
