"""A Docker work pool for real: our image, our worker, nothing shared but the archive; what the record says of it."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, redirect_stdout
from pathlib import Path
from uuid import UUID

import pytest
from docker import APIClient, DockerClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

import images
import registry
from journeys import command, program, waited
from prefect_executions import engine
from prefect_executions.cli import main
from prefect_executions.events import SeenLabel
from prefect_executions.executions import ExecutionRecord
from prefect_executions.lifecycle import Reason, Status
from prefect_executions.settings import Settings
from prefect_executions.settle import settle
from prefect_executions.workbench import Workbench
from prefect_executions.workbench.reading import Reader

ROOT = Path(__file__).parents[1]
POOL = "containers"
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


class Place:
    """A folder that stands for /srv/executions of a machine, and the command line of its operator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archive = folder / "archive"
        self.settings = Settings(home=folder / "home", archive=str(self.archive))
        self.workbench = Workbench.of(self.settings, archive_block=engine.archive_block)

    def told(self, *words: str, code: int = 0) -> str:
        """Run the command line here and return what it shows; a process of its own would take seconds to start."""
        shown = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        with redirect_stdout(shown):
            found = main(words)
        told = shown.buffer.getvalue().decode()
        assert found == code, told
        return told

    def record(self, execution_id: str) -> ExecutionRecord:
        return Reader(self.workbench).record(execution_id)

    def settled(self, execution_id: str) -> bool:
        """Go one round of settling, as an operator's machine does; whether the execution is sealed then."""
        time.sleep(1)
        list(settle(self.workbench, self.settings))
        return self.workbench.archive.seal_of(execution_id) is not None


@pytest.fixture(scope="module")
def place(api: APIClient, prefect_server: str, tmp_path_factory) -> Iterator[Place]:
    """Make the work pool of deployments/docker/ with a worker, and the image that its runs have."""
    image, made = images.ours(api), Place(tmp_path_factory.mktemp("srv"))
    made.archive.mkdir()
    template = (ROOT / "deployments" / "docker" / "base-job-template.json").read_text(encoding="utf-8")
    template = template.replace("/srv/executions", str(made.folder)).replace("executions:1", image)
    with get_client(sync_client=True) as client:
        pool = WorkPoolCreate(name=POOL, type="executions-docker", base_job_template=json.loads(template))
        client.create_work_pool(pool)
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--name", "docker-worker"]
    told = {"DOCKER_HOST": os.environ["EXECUTIONS_TEST_DOCKER"], "PREFECT_WORKER_QUERY_SECONDS": "1"}
    with program(worker, made.folder / "worker.log", told):
        yield made


@pytest.fixture
def operator(place: Place, home: Path, monkeypatch) -> Place:
    """Let the command line here have the home and the archive of that machine."""
    monkeypatch.setenv("EXECUTIONS_HOME", str(place.settings.home))
    monkeypatch.setenv("EXECUTIONS_ARCHIVE", place.settings.archive)
    monkeypatch.chdir(ROOT)
    return place


def container_of(api: APIClient, execution_id: str) -> Mapping[str, str]:
    (found,) = api.containers(all=True, filters={"label": f"io.prefect.flow-run-id={execution_id}"})
    return found


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_method_in_a_container_leaves_a_record_that_says_where_it_ran(operator, api):
    place = operator
    place.told("deploy", "flows/count_words.py:count_words", "--pool", POOL)
    wishes = ("-p", "most=3", "--cpus", "1", "--memory", "512m", "--time-limit", "10m")
    submitted = json.loads(place.told("submit", "count-words", "--pool", POOL, *wishes, "--wait", "--json"))
    assert (submitted["state"], submitted["status"]) == ("COMPLETED", "COMPLETED"), (
        place.folder / "worker.log"
    ).read_text()

    record = place.record(submitted["id"])
    container, image = container_of(api, submitted["id"]), api.inspect_image(images.OURS)
    there, here = record.infrastructure, record.instance
    assert (there.type, there.work_pool, there.worker) == ("executions-docker", POOL, "docker-worker")
    assert (there.image, there.image_id, there.image_digest) == (images.OURS, image["Id"], None)
    assert there.identifier.endswith(f":{container['Id']}")
    assert (here.container_id, here.node) == (container["Id"], api.info()["Name"])
    assert (here.cpu_count, here.memory, here.own_process) == (1, 512 << 20, True)
    assert record.method.code.image == images.OURS
    assert record.method.code.repository.commit == images.COMMIT
    place.told("verify", submitted["id"])
    assert place.told("outputs", submitted["id"], "counts.csv").startswith("word,count")

    assert submitted["id"] not in place.told("list"), "its ledger was the container's own"
    place.told("settle", "--once")
    assert submitted["id"] in place.told("list")

    command("prefect", "deployment", "run", f"count-words/{POOL}", "--param", "most=2", "--watch")
    place.told("settle", "--once")
    (newest, *_) = json.loads(place.told("list", "--json"))["executions"]
    assert place.record(newest["id"]).request.values["most"] == 2
    place.told("verify", newest["id"])


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
    place.told("deploy", "waits.py:waits", "--pool", POOL, *variables)
    execution_id = json.loads(place.told("submit", f"waits/{POOL}", "--json"))["id"]

    def begun() -> bool:
        opened = (place.archive / "executions" / execution_id / "opening.json").exists()
        return opened and place.record(execution_id).status is Status.EXECUTING

    waited(begun, f"the Method's code in {execution_id}")
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
    assert record.infrastructure.image_id == api.inspect_image(images.OURS)["Id"]
    place.told("verify", execution_id)
    assert execution_id in place.told("list")


def test_the_digest_of_an_image_is_that_of_its_registry(address, api):
    from prefect_executions.runtimes.docker_worker import seen  # noqa: PLC0415 - needs the extra

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
