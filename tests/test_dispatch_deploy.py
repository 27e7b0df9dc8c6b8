"""Deployments and requests on a real Prefect server; a resource that a pool cannot guarantee is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow
from prefect.states import Completed, Crashed

from homes import Bundles
from prefect_executions import background, current_execution, method
from prefect_executions.capture.host import this_user
from prefect_executions.cli.app import main
from prefect_executions.cli.arguments import open_catalog
from prefect_executions.dispatch.deploy import schedule_of
from prefect_executions.dispatch.options import SubmitOptions
from prefect_executions.dispatch.submit import resources_of, wait
from prefect_executions.errors import RequestError
from prefect_executions.flow.entrypoints import load_method
from prefect_executions.lifecycle.status import Reason
from prefect_executions.prefect_api import flow_runs
from prefect_executions.prefect_api import queries as prefect_queries

ROOT = Path(__file__).parents[1]
METHOD = '''
from pydantic import SecretStr

from prefect import flow
from prefect_executions import method


@method(version="2.0.0")
def greet(name: str, times: int = 1, token: SecretStr | None = None) -> str:
    """Greet somebody.

    Args:
        name: Who is greeted.
    """
    return name * times


@flow
def plain() -> None: ...
'''
CONTAINERS = {
    "job_configuration": {"image": "{{ image }}", "env": "{{ env }}"},
    "variables": {
        "type": "object",
        "properties": {
            "image": {"type": "string"},
            "env": {"type": "object"},
            "mem_limit": {"type": "string"},
            "container_create_kwargs": {"type": "object", "default": {"shm_size": "1g"}},
        },
    },
}
SIZED = {
    "job_configuration": {"cpu": "{{ cpus }}"},
    "variables": {"properties": {name: {"type": "number"} for name in ("cpus", "memory", "gpus")}},
}


@pytest.fixture
def client(prefect_server: str) -> SyncPrefectClient:
    return get_client(sync_client=True)


@pytest.fixture
def pool(client: SyncPrefectClient) -> Iterator[Callable[..., str]]:
    """Return a function that makes a work pool with a name of its own; what was deployed there goes with it."""
    made: list[str] = []

    def make(kind: str = "process", template: Mapping[str, Any] = {}) -> str:
        name = f"{kind}-{uuid4().hex[:8]}"
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=dict(template)))
        made.append(name)
        return name

    yield make
    deployed = {one.id for one in client.read_deployments() if one.work_pool_name in made}
    for run in client.read_flow_runs():
        if run.deployment_id in deployed:
            client.delete_flow_run(run.id)
    for deployment in deployed:
        client.delete_deployment(deployment)


@pytest.fixture
def cli(home, tmp_path, monkeypatch, capsys, prefect_server) -> Callable[..., str]:
    """Return a function that runs the command line beside greet.py, checks its exit code and returns what it shows."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "greet.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        found = main(arguments)
        shown = capsys.readouterr()
        assert found == code, shown.err + shown.out
        return shown.err if code else shown.out

    return run


def run_of(client: SyncPrefectClient, shown: str) -> FlowRun:
    return client.read_flow_run(UUID(json.loads(shown)["id"]))


def test_a_deployed_method_runs_on_request(cli, pool, client, tmp_path):
    name = pool()
    shown = json.loads(
        cli("deploy", "methods/greet.py:greet", "--pool", name, "-p", "times=3", "--schedule", "15m", "--json")
    )
    deployment = client.read_deployment_by_name(f"greet/greet-{name}")
    assert (shown["name"], UUID(shown["id"])) == (f"greet/greet-{name}", deployment.id)
    assert deployment.entrypoint == "methods/greet.py:greet"
    assert deployment.pull_steps == [
        {"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path.resolve())}}
    ]
    assert (deployment.parameters, deployment.version) == ({"times": 3}, "2.0.0")
    assert deployment.description == "Greet somebody."
    assert deployment.parameter_openapi_schema["properties"]["name"]["description"] == "Who is greeted."
    assert [one.schedule.interval.total_seconds() for one in deployment.schedules] == [900]
    assert prefect_queries.is_method(deployment.parameter_openapi_schema, deployment.description)
    assert prefect_queries.TAG in client.read_flow(deployment.flow_id).tags

    submitted = cli("submit", "greet", "--pool", name, "-p", "name=Ada", "--time-limit", "2m", "--json")
    run = run_of(client, submitted)
    assert run.deployment_id == deployment.id
    assert run.labels[flow_runs.REQUESTER_LABEL] == this_user()
    assert run.parameters == {"name": "Ada", "times": 3}
    assert run.job_variables == {"env": {"EXECUTIONS_TIME_LIMIT": "120"}}
    assert json.loads(submitted)["link"].endswith(str(run.id))


def test_a_submitted_execution_has_the_labels_of_its_request(cli, pool, client):
    name = pool()
    cli("deploy", "methods/greet.py:greet", "--pool", name)
    labels = ["--tag", "gpu", "--name", "run 7", "--experiment", "ablation"]
    run = run_of(client, cli("submit", "greet", "--pool", name, "-p", "name=Ada", *labels, "--json"))
    run_flow(load_method("methods/greet.py:greet"), flow_run=run)
    background.drain()
    (found,) = json.loads(cli("search", 'tag:gpu name:"run 7" experiment:ablation', "--json"))["executions"]
    assert (found["id"], found["status"]) == (str(run.id), "COMPLETED")
    stored = json.loads(cli("show", str(run.id), "--json"))["annotations"]
    assert {(one["kind"], one["agent"]) for one in stored} == {("name", this_user()), ("experiment", this_user())}
    assert "is empty" in cli("submit", "greet", "-p", "name=Ada", "--tag", " ", code=2)


def test_a_descriptor_is_deployed_by_its_path(cli, pool, client, monkeypatch):
    monkeypatch.chdir(ROOT)
    name = pool()
    cli("deploy", "flows/separate_irises/method.yaml", "--pool", name)
    deployment = client.read_deployment_by_name(f"separate-irises/separate-irises-{name}")
    assert deployment.entrypoint == "prefect_executions.flow.file:flows/separate_irises/method.yaml"
    assert deployment.parameter_openapi_schema["properties"]["one"]["enum"] == ["setosa", "versicolor", "virginica"]
    refused = cli("submit", f"separate-irises/separate-irises-{name}", "-p", "one=rosa", code=2)
    assert "rosa" in refused


def test_a_file_elsewhere_is_deployed_from_its_own_folder_unless_another_is_given(cli, pool, client, tmp_path):
    name = pool()
    elsewhere = tmp_path.parent / f"{name}.py"
    elsewhere.write_text(METHOD)
    cli("deploy", f"{elsewhere}:greet", "--pool", name)
    deployment = client.read_deployment_by_name(f"greet/greet-{name}")
    assert deployment.entrypoint == f"{name}.py:greet"
    (step,) = deployment.pull_steps
    assert step["prefect.deployments.steps.set_working_directory"] == {"directory": str(elsewhere.parent.resolve())}
    assert "outside" in cli("deploy", f"{elsewhere}:greet", "--pool", name, "--folder", "/code", code=2)


def test_a_second_deployment_replaces_the_first(cli, pool, client):
    name = pool()
    cli("deploy", "methods/greet.py:greet", "--pool", name, "--schedule", "0 6 * * *", "--timezone", "Europe/Berlin")
    (before,) = client.read_deployment_by_name(f"greet/greet-{name}").schedules
    cli("deploy", "methods/greet.py:greet", "--pool", name, "--schedule", "RRULE:FREQ=DAILY")
    (after,) = client.read_deployment_by_name(f"greet/greet-{name}").schedules
    assert (before.schedule.cron, before.schedule.timezone) == ("0 6 * * *", "Europe/Berlin")
    assert after.schedule.rrule.endswith("RRULE:FREQ=DAILY")


def test_an_idempotency_key_starts_one_run(cli, pool, client):
    name = pool()
    cli("deploy", "methods/greet.py:greet", "--pool", name)
    first, again, other = (
        run_of(client, cli("submit", f"greet/greet-{name}", "-p", "name=A", "--idempotency-key", key, "--json")).id
        for key in ("a", "a", "b")
    )
    assert first == again != other


def test_submit_says_why_a_run_waits(cli, pool, client, capsys):
    name = pool()
    cli("deploy", "methods/greet.py:greet", "--pool", name)
    words = ["submit", f"greet/greet-{name}", "-p", "name=A"]
    waits = f"No worker of pool '{name}' is online, so the run waits: prefect worker start --pool {name}"
    assert main(words) == 0
    assert waits in capsys.readouterr().err
    assert json.loads(cli(*words, "--json"))["waits"] == waits
    request = {"json": {"name": "here"}, "path_params": {"work_pool_name": name}}
    client.request("POST", "/work_pools/{work_pool_name}/workers/heartbeat", **request)
    assert json.loads(cli(*words, "--json"))["waits"] is None
    client.update_work_pool(name, WorkPoolUpdate(is_paused=True))
    assert f"prefect work-pool resume {name}" in json.loads(cli(*words, "--json"))["waits"]


def test_a_container_pool_needs_an_image_and_has_the_code_elsewhere(cli, pool, client):
    name = pool("docker", CONTAINERS)
    refused = cli("deploy", "methods/greet.py:greet", "--pool", name, code=2)
    assert "give --image" in refused
    cli("deploy", "methods/greet.py:greet", "--pool", name, "--image", "here:1", "--job-variable", 'env={"A": "b"}')
    deployment = client.read_deployment_by_name(f"greet/greet-{name}")
    assert deployment.job_variables == {"image": "here:1", "env": {"A": "b"}}
    (step,) = deployment.pull_steps
    assert step["prefect.deployments.steps.set_working_directory"] == {"directory": "/opt/executions"}


def test_resources_become_job_variables_of_the_pools_type(cli, pool, client):
    docker, kubernetes = pool("docker", CONTAINERS), pool("kubernetes", SIZED)
    for name in (docker, kubernetes):
        cli("deploy", "methods/greet.py:greet", "--pool", name, "--image", "here:1")
    wishes = ("-p", "name=A", "--cpus", "1.5", "--memory", "512m", "--gpus", "1", "--json")
    assert run_of(client, cli("submit", "greet", "--pool", docker, *wishes)).job_variables == {
        "mem_limit": "536870912b",
        "container_create_kwargs": {
            "shm_size": "1g",
            "nano_cpus": 1_500_000_000,
            "device_requests": [{"Driver": "nvidia", "Count": 1, "Capabilities": [["gpu"]]}],
        },
        "env": OF_SCRIPTS,
    }
    sized = run_of(client, cli("submit", "greet", "--pool", kubernetes, *wishes))
    assert sized.job_variables == {"cpus": 1.5, "memory": 512 << 20, "gpus": 1, "env": OF_SCRIPTS}


OF_SCRIPTS = {"EXECUTIONS_CPUS": "1.5", "EXECUTIONS_MEMORY": str(512 << 20), "EXECUTIONS_GPUS": "1"}


def test_a_process_pool_passes_resources_on_to_a_descriptors_scripts(cli, pool, client, monkeypatch):
    monkeypatch.chdir(ROOT)
    name = pool()
    cli("deploy", "flows/separate_irises/method.yaml", "--pool", name)
    wishes = ("--cpus", "1.5", "--memory", "512m", "--gpus", "1", "--time-limit", "30m", "--json")
    run = run_of(client, cli("submit", f"separate-irises/separate-irises-{name}", *wishes))
    assert run.job_variables == {"env": {**OF_SCRIPTS, "EXECUTIONS_TIME_LIMIT": "1800"}}


def test_a_resource_that_the_pool_cannot_guarantee_is_refused_before_a_run_is_created(cli, pool, client):
    names = pool(), pool("kubernetes", CONTAINERS)
    for name, image in zip(names, ([], ["--image", "here:1"]), strict=True):
        cli("deploy", "methods/greet.py:greet", "--pool", name, *image)
        refused = cli("submit", f"greet/greet-{name}", "-p", "name=A", "--gpus", "2", "--memory", "1g", code=2)
        assert f"'{name}'" in refused
        assert "memory, gpus" in refused
        deployment = client.read_deployment_by_name(f"greet/greet-{name}")
        assert not [run for run in client.read_flow_runs() if run.deployment_id == deployment.id]


def test_a_secret_in_plain_text_is_refused_and_not_repeated(cli, pool, client):
    name = pool()
    cli("deploy", "methods/greet.py:greet", "--pool", name)
    for words in (
        ("submit", f"greet/greet-{name}", "-p", "name=A"),
        ("deploy", "methods/greet.py:greet", "--pool", name),
    ):
        refused = cli(*words, "-p", "token=Sesame, open!", code=2)
        assert "Sesame" not in refused
        assert "token" in refused
    deployment = client.read_deployment_by_name(f"greet/greet-{name}")
    assert not [run for run in client.read_flow_runs() if run.deployment_id == deployment.id]
    run = run_of(client, cli("submit", f"greet/greet-{name}", "-p", "name=A", "-p", "token=env:SESAME", "--json"))
    assert run.parameters["token"] == "env:SESAME"


def test_an_input_too_large_for_prefect_is_refused_and_starts_nothing(cli, pool, client, tmp_path):
    name = pool()
    cli("deploy", "methods/greet.py:greet", "--pool", name)
    (tmp_path / "long").write_text("$(touch executed)'\"\n" * 60_000)
    deploying = ("deploy", "methods/greet.py:greet", "--pool", name, "--name", "other")
    for words in (("submit", f"greet/greet-{name}"), deploying):
        refused = cli(*words, "-p", "name=@long", code=2)
        assert "at most 524,288 bytes" in refused
        assert "the largest is 'name'" in refused
        assert "file" in refused
        assert len(refused) < 1000
    deployment = client.read_deployment_by_name(f"greet/greet-{name}")
    assert not [run for run in client.read_flow_runs() if run.deployment_id == deployment.id]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("deploy", "methods/greet.py:plain", "--pool", "POOL"), 2, "put @method above it"),
        (("deploy", "methods/nothing.py:greet", "--pool", "POOL"), 3, "there is no file"),
        (("deploy", "methods/greet.py:greet", "--pool", "nowhere"), 3, "no work pool 'nowhere'"),
        (("deploy", "methods/greet.py:greet", "--pool", "POOL", "--image", "a:1"), 2, "leave out --image"),
        (("deploy", "methods/greet.py:greet", "--pool", "POOL", "--schedule", "often"), 2, "not a schedule"),
        (("deploy", "methods/greet.py:greet", "--pool", "POOL", "-p", "tims=3"), 2, "no input tims"),
        (("submit", "nobody"), 3, "'nobody' is not deployed"),
        (("submit", "nobody/nowhere"), 3, "no deployment 'nobody/nowhere'"),
        (("submit", "greet", "--pool", "nowhere", "-p", "name=A"), 3, "'nowhere'"),
        (("submit", "greet/greet-POOL", "-p", "nam=A"), 2, "no input nam"),
        (("submit", "greet/greet-POOL"), 2, "name"),
        (("submit", "nothing/nowhere", "--cpus", "0"), 2, "--cpus must be a number above 0, not 0"),
        (("submit", "greet/greet-POOL", "-p", "name=A", "--cpus", "0"), 2, "--cpus must be a number above 0, not 0"),
        (("submit", "greet/greet-POOL", "-p", "name=A", "--memory", "much"), 2, "--memory must be a size such as 512m"),
        (
            ("submit", "greet/greet-POOL", "-p", "name=A", "--time-limit", "0"),
            2,
            "--time-limit must be a duration such as 90s",
        ),
    ],
)
def test_a_wrong_request_is_refused_with_a_message(cli, pool, words, code, message):
    name = pool()
    cli("deploy", "methods/greet.py:greet", "--pool", name)
    assert message in cli(*(word.replace("POOL", name) for word in words), code=code)


def test_one_of_several_deployments_has_to_be_named(cli, pool):
    name = pool()
    for deployment in ("one", "other"):
        cli("deploy", "methods/greet.py:greet", "--pool", name, "--name", deployment)
    refused = cli("submit", "greet", "--pool", name, "-p", "name=A", code=2)
    assert "greet/one" in refused
    assert "greet/other" in refused


def test_without_a_configured_server_nothing_is_deployed(cli, monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: PLC0415 - Prefect is imported by now

    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert "prefect server start" in cli("deploy", "methods/greet.py:greet", "--pool", "p", code=2)
        assert "prefect server start" in cli("submit", "greet", code=2)


@pytest.mark.parametrize("state", [Completed(), Crashed(message="it fell")])
def test_wait_returns_how_the_run_ended(cli, pool, client, state):
    name = pool()
    cli("deploy", "methods/greet.py:greet", "--pool", name)
    run = run_of(client, cli("submit", f"greet/greet-{name}", "-p", "name=A", "--json"))
    seen: list[str] = []

    def go_on(words: str) -> None:
        seen.append(words)
        client.set_flow_run_state(run.id, state, force=True)

    ended = wait(open_catalog(), str(run.id), tell=go_on, sealing=timedelta(0))
    assert (ended.succeeded, ended.status, ended.message) == (state.is_completed(), None, state.message)
    assert [words.split()[2] for words in seen] == ["Scheduled"]


def test_the_operators_time_limit_holds_in_addition_to_the_methods(home, monkeypatch, prefect_server):
    @method(version="1")
    def waits() -> None:
        current_execution().output("half.txt").write_text("half")
        while True:
            pass

    monkeypatch.setenv("EXECUTIONS_TIME_LIMIT", "0.5")
    with pytest.raises(TimeoutError):
        waits()
    record = Bundles(home).record()
    assert record.job_status.reason is Reason.TIMED_OUT
    assert record.instance.environment["EXECUTIONS_TIME_LIMIT"] == "0.5"


@pytest.mark.parametrize(
    ("text", "value"),
    [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400)],
)
def test_a_time_limit_is_read_as_seconds(text, value):
    assert resources_of(SubmitOptions(time_limit=text)).time_limit == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("100", 100), ("1k", 1024), ("512m", 512 << 20), ("4g", 4 << 30), ("4GiB", 4 << 30), ("1.5G", 3 << 29)],
)
def test_a_memory_limit_is_read_as_bytes(text, value):
    assert resources_of(SubmitOptions(memory=text)).memory == value


def test_an_empty_limit_is_no_limit():
    assert resources_of(SubmitOptions(memory="", time_limit="")) == resources_of(SubmitOptions())


@pytest.mark.parametrize("text", [" ", "m", "-1", "0", "1x", "1 m m"])
def test_a_value_without_a_valid_number_and_unit_is_refused(text):
    for option in ("time_limit", "memory"):
        with pytest.raises(RequestError, match=f"--{option.replace('_', '-')} must be"):
            resources_of(SubmitOptions(**{option: text}))


@pytest.mark.parametrize("text", ["", "0s", "often", "61 * * * *", "RRULE:FREQ=NEVER"])
def test_an_invalid_schedule_is_refused(text):
    with pytest.raises(RequestError):
        schedule_of(text)
