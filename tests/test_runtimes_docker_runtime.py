"""The Docker runtime on a real engine: images, users, networks, limits."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from docker import APIClient

import registry
from planning import planning
from prefect_executions.errors import InfrastructureError, NotFoundError, PlanError
from prefect_executions.runtimes.docker.runtime import DockerRuntime
from prefect_executions.runtimes.interface import Network, Plan, Pull, Resources, RunStatus

PATIENT = 120.0


@pytest.fixture
def engine(need) -> Iterator[APIClient]:
    with APIClient(need("EXECUTIONS_TEST_DOCKER", "a Docker engine"), version="auto") as api:
        yield api


@pytest.fixture
def runtime(engine: APIClient) -> Iterator[DockerRuntime]:
    opened = DockerRuntime(os.environ["EXECUTIONS_TEST_DOCKER"], open_network="host")
    yield opened
    opened.close()


@pytest.fixture
def plan(runtime: DockerRuntime, tmp_path: Path) -> Iterator[Callable[..., Plan]]:
    with planning(runtime, tmp_path) as compiled:
        yield compiled


def test_the_engine_creates_exactly_the_planned_container(runtime, plan, engine, tmp_path):
    limits = Resources(cpus=0.5, memory=64 << 20, processes=40, time_limit=600)
    made = plan("sleep 300", resources=limits, user="1234:1234", environment={"A": "b"})
    run = runtime.run(made)
    details = engine.inspect_container(run.seen().container)
    host = details["HostConfig"]
    assert (host["NanoCpus"], host["Memory"], host["PidsLimit"]) == (500_000_000, 64 << 20, 40)
    assert details["Config"]["User"] == "1234:1234"
    assert "A=b" in details["Config"]["Env"]
    assert details["Config"]["Labels"]["prefect-executions.execution"] == "an-execution"
    shown = json.loads((tmp_path / "plan" / "plan.json").read_text())["spec"]
    assert {name: host[name] for name in shown["HostConfig"]} == shown["HostConfig"]
    assert details["Image"] == shown["Image"] == run.seen().image
    assert run.seen().node == engine.info()["Name"]


def test_a_local_image_has_an_id_and_no_digest(runtime, plan):
    made = plan()
    seen = runtime.run(made).seen()
    assert (made.image_digest, seen.image_digest) == (None, None)
    assert seen.image.startswith("sha256:")


def test_an_image_is_pulled_by_policy_and_has_the_registrys_digest(plan, engine):
    with registry.serving("science/hello") as (address, digest):
        name = f"{address}/science/hello"
        with pytest.raises(PlanError, match="forbids a pull"):
            plan(image=f"{name}:1", pull=Pull.NEVER)
        made = plan(image=f"{name}:1", pull=Pull.MISSING)
        assert made.image_digest == f"{name}@{digest}"
        assert plan(image=f"{name}@{digest}", pull=Pull.ALWAYS).image_digest == made.image_digest
        with pytest.raises(PlanError, match="cannot be pulled"):
            plan(image=f"{name}:2", pull=Pull.MISSING)
    assert plan(image=f"{name}:1", pull=Pull.MISSING).image_digest == made.image_digest, "it is here"
    with pytest.raises(InfrastructureError, match="hello"):
        plan(image=f"{name}:1", pull=Pull.ALWAYS)
    engine.remove_image(made.spec["Image"], force=True)


def test_exactly_the_same_image_is_found_by_id_or_pulled_by_digest(runtime, engine):
    here = engine.inspect_image("executions-test")["Id"]
    assert runtime.ensure_image(here, None) == here
    assert runtime.ensure_image(f"sha256:{'0' * 64}", None) is None
    with registry.serving("science/hello") as (address, digest):
        name = f"{address}/science/hello@{digest}"
        assert runtime.ensure_image(None, f"{address}/science/hello@sha256:{'0' * 64}") is None
        assert runtime.ensure_image(None, name) == name
    assert runtime.ensure_image(here, name) == name, "it is here"
    engine.remove_image(name, force=True)
    assert runtime.ensure_image(here, name) == here


def test_an_image_without_a_shell_is_refused_and_leaves_no_container(runtime, plan, engine):
    with registry.serving("science/empty") as (address, _):
        made = plan(image=f"{address}/science/empty:1", pull=Pull.MISSING)
        with pytest.raises(PlanError, match="/bin/sh"):
            runtime.run(made)
        with pytest.raises(NotFoundError):
            runtime.find(made.id)
        engine.remove_image(made.spec["Image"], force=True)


def test_the_script_runs_as_the_requested_user(runtime, plan):
    (tell,) = runtime.run(plan("id -u", user="somebody")).logs()
    assert tell.data == b"1234\n"


def test_a_closed_network_has_only_loopback(runtime, plan):
    (tell,) = runtime.run(plan("ls /sys/class/net", network=Network.CLOSED)).logs()
    assert tell.data == b"lo\n"


def test_a_missing_network_is_refused(engine, plan, tmp_path):
    other = DockerRuntime(os.environ["EXECUTIONS_TEST_DOCKER"], open_network="nowhere")
    with pytest.raises(PlanError, match="nowhere"):
        other.compile(plan().request, tmp_path / "other")
    other.close()


def test_the_process_limit_is_enforced(runtime, plan):
    script = "for i in $(seq 60); do sleep 60 & done; exit 0"
    end = runtime.run(plan(script, resources=Resources(processes=20))).wait(PATIENT)
    assert end.status is RunStatus.FAILED


def test_a_script_that_exceeds_its_memory_fails_with_the_reason(runtime, plan):
    greedy = "exec perl -e 'my $x = q(x) x 200_000_000'"
    end = runtime.run(plan(greedy, resources=Resources(memory=32 << 20))).wait(PATIENT)
    assert (end.status, end.code) == (RunStatus.FAILED, 137)
    assert "memory" in end.why


def test_a_run_whose_container_was_removed_is_lost(runtime, plan, engine):
    run = runtime.run(plan("sleep 300"))
    engine.remove_container(run.seen().container, force=True)
    end = run.wait(PATIENT)
    assert (end.status, end.code) == (RunStatus.LOST, None)
    assert run.cancel() == end
    assert list(run.logs()) == []
    run.discard()


def test_a_run_whose_container_was_killed_has_failed(runtime, plan, engine):
    run = runtime.run(plan("sleep 300"))
    engine.kill(run.seen().container)
    end = run.wait(PATIENT)
    assert (end.status, end.code) == (RunStatus.FAILED, 137)


def test_a_created_container_waits_and_can_be_cancelled(runtime, plan, engine):
    made = plan("true")
    engine.create_container_from_config(made.spec)
    run = runtime.find(made.id)
    assert run.status() is RunStatus.WAITING
    assert run.cancel().status is RunStatus.CANCELLED
    with pytest.raises(NotFoundError):
        runtime.find(made.id)


def test_a_data_folder_that_the_engine_cannot_see_is_refused(runtime, plan, tmp_path):
    made = plan()
    (tmp_path / "data").rmdir()
    with pytest.raises(PlanError, match="data"):
        runtime.run(made)
    (tmp_path / "data").mkdir()


def test_an_unavailable_engine_is_an_error(tmp_path):
    with pytest.raises(InfrastructureError, match="engine"):
        DockerRuntime(f"unix://{tmp_path}/nobody")


def test_logs_can_be_abandoned_halfway(runtime, plan):
    run = runtime.run(plan("while :; do echo more; sleep 0.05; done"))
    pieces = run.logs()
    assert next(pieces).data.startswith(b"more")
    pieces.close()
    assert run.cancel(grace=1).status is RunStatus.CANCELLED
