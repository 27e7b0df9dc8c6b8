"""Settle on a real server: each way to die or never to start ends in one true, verified record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prefect import task
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Completed, Crashed, Failed, Late, Pending, Running
from pydantic import SecretStr

from forks import family
from homes import kinds
from journeys import waited
from prefect_executions import background, current_execution, events, method
from prefect_executions.attestation.transparency import Inclusion
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.executions.annotations import AnnotationKind, LabelChange
from prefect_executions.executions.record import Instance, Raised, Usage
from prefect_executions.lifecycle.history import INTERRUPTED, EntryKind, advance
from prefect_executions.lifecycle.status import Observer, Reason, Status
from prefect_executions.operations.retention import remove
from prefect_executions.prefect_api import client as api_client
from prefect_executions.prefect_api import events as prefect_events
from prefect_executions.prefect_api import flow_runs
from prefect_executions.prefect_api.flow_runs import REQUESTER_LABEL
from prefect_executions.prefect_api.run_labels import run_labels
from prefect_executions.settings import ArchiveLevel, Settings
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.keyring import KeyRing
from prefect_executions.workbench.sealing import Ending
from records import OUTPUTS, a_method, a_request
from scenes import FAR, Scene, age

pytestmark = pytest.mark.usefixtures("prefect_server")

A_MINUTE = timedelta(minutes=1)
A_WHILE = timedelta(minutes=20)
NO_INFRASTRUCTURE = "Failed to submit flow run to infrastructure: RuntimeError: no such image"


@method(version="4")
def measures(number: int = 1) -> int:
    return number


@method(version="5")
def rests() -> None:
    """Do nothing, with no parameter."""


@task
def rest() -> None: ...


@method(version="1")
def opens(token: SecretStr) -> None: ...


@pytest.fixture
def scene(prefect_server: str, home: Path) -> Scene:
    return Scene(home)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Return the home of another machine with the same archive."""
    return tmp_path / "elsewhere"


# --- runs for which our code never ran -----------------------------------------


def test_a_run_that_ended_before_it_started_is_sealed_from_prefects_data(scene):
    numbers, nothing = scene.deploy(measures), scene.deploy(rests)
    unpicked = scene.run(numbers, Cancelling(), ago=A_WHILE, parameters={"number": 7})
    refused = scene.run(nothing, Pending(), Crashed(message=NO_INFRASTRUCTURE), ago=A_WHILE)
    pending = scene.run(nothing, Pending(), Cancelled(message="not now"), ago=A_WHILE)
    vanished = scene.run(numbers, Pending(), Running(), ago=A_WHILE)
    fresh = scene.run(numbers, Pending(), Cancelled())

    results = scene.settle()
    assert {result.id: result.result for result in results.values()} == {
        str(run.id): "archived" for run in (unpicked, refused, pending, vanished)
    }
    ends = {
        run.id: (record.status, record.job_status.reason, kinds(record))
        for run in (unpicked, refused, pending, vanished)
        for record in [scene.record(run)]
    }
    assert ends == {
        unpicked.id: (Status.CANCELLED, None, ["CREATED", "CANCELLED"]),
        refused.id: (Status.FAILED, Reason.INFRASTRUCTURE, ["CREATED", "SCHEDULED", "FAILED"]),
        pending.id: (Status.CANCELLED, None, ["CREATED", "SCHEDULED", "CANCELLED"]),
        vanished.id: (Status.FAILED, Reason.LOST, ["CREATED", "SCHEDULED", "STARTED", "note", "FAILED"]),
    }
    record = scene.record(unpicked)
    assert (record.method.id, record.method.version, record.request.parameters) == ("measures", "4", {"number": 7})
    assert (scene.record(refused).method.version, scene.record(refused).job_status.message) == ("5", NO_INFRASTRUCTURE)
    assert record.job_status.history[-1].observer is Observer.SETTLE
    assert scene.state(vanished).is_crashed()
    assert "never opened its record" in scene.record(vanished).job_status.message
    [note] = [one.message for one in scene.record(vanished).job_status.history if one.kind is EntryKind.NOTE]
    assert note == "outputs and logs, if any, were lost with the workbench on an unknown machine"
    assert str(fresh.id) not in scene.seals()  # its worker may be about to tell
    assert {row.id for row in scene.bench.ledger.list().rows} == set(scene.seals())
    assert list(scene.bench.unfinished()) == []
    assert scene.settle() == {}


def test_a_run_that_never_started_has_its_submitted_name_and_experiment(scene):
    labels = run_labels([LabelChange(AnnotationKind.NAME, "run 7"), LabelChange(AnnotationKind.EXPERIMENT, "ablation")])
    refused = Pending(), Crashed(message=NO_INFRASTRUCTURE)
    run = scene.run(scene.deploy(rests), *refused, ago=A_WHILE, labels={**labels, REQUESTER_LABEL: "ada"})
    scene.settle()
    catalog = Catalog(scene.bench)
    assert catalog.search('name:"run 7" experiment:ablation').ids == (str(run.id),)
    assert {one.annotation.agent for one in catalog.annotations(str(run.id))} == {"ada"}


def test_a_removed_execution_is_not_sealed_again(scene):
    run = scene.run(scene.deploy(rests), Pending(), Cancelled(), ago=A_WHILE)
    scene.settle()
    assert scene.seals() == [str(run.id)]
    remove(scene.bench, str(run.id), why="asked for", at=datetime.now(UTC))
    assert scene.settle(since=datetime.now(UTC) - timedelta(days=1)) == {}
    assert scene.seals() == []
    assert scene.bench.ledger.list().rows == ()


@pytest.mark.long
def test_a_run_recorded_in_another_archive_is_left_to_its_settle(scene):
    run = scene.run(scene.deploy(measures), Pending(), Running(), ago=A_WHILE)
    prefect_events.emit([events.progress_event(str(run.id), "measures", 50, None, datetime.now(UTC))])
    waited(lambda: prefect_events.has_events(str(run.id)), "the event")  # Prefect writes events down some seconds late
    result = scene.settle()[str(run.id)]
    assert (result.result, "another archive" in result.message) == ("report", True)
    assert scene.seals() == []
    assert scene.state(run).is_running()


def test_a_run_that_no_worker_picks_up_is_reported_on_each_round(scene):
    late = scene.run(scene.deploy(measures), Late(), ago=A_WHILE)
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="unserved", type="process"), overwrite=True)
    # A pool without workers may be one that Prefect itself serves.
    stuck = scene.run(scene.deploy(measures, "stuck", pool="unserved"), Pending(), ago=A_WHILE)
    for _ in range(2):
        results = scene.settle()
        assert {result.id: result.result for result in results.values()} == {
            str(late.id): "report",
            str(stuck.id): "report",
        }
        assert "no worker has picked it up" in results[str(late.id)].message
        assert "it is pending for" in results[str(stuck.id)].message
    scene.put(late, Cancelled(), A_MINUTE)
    assert scene.settle()[str(late.id)].status is Status.CANCELLED
    assert scene.record(late).request.deployment.name == "scene"


@pytest.mark.long
def test_a_run_whose_worker_died_before_the_start_is_given_up(scene):
    labels = {"prefect.worker.name": "gone", "prefect.worker.type": "process", "prefect.work-pool.name": "scenes"}
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="scenes", type="process"), overwrite=True)
        request = {"json": {"name": "gone"}, "path_params": {"work_pool_name": "scenes"}}
        client.request("POST", "/work_pools/{work_pool_name}/workers/heartbeat", **request)
    run = scene.run(scene.deploy(measures), Pending(), ago=A_WHILE, labels=labels)
    assert scene.settle()[str(run.id)].result == "report"
    age("gone", A_WHILE, "worker")

    assert scene.settle()[str(run.id)].result == "archived"
    record = scene.record(run)
    assert (record.status, record.job_status.reason) == (Status.FAILED, Reason.INFRASTRUCTURE)
    assert "worker was gone before it started the run" in record.job_status.message
    assert scene.state(run).is_crashed()


def test_a_run_whose_worker_died_before_it_claimed_the_run_is_given_up(scene):
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="unsaid", type="process"), overwrite=True)
    deployment = scene.deploy(measures, "unsaid", pool="unsaid")
    run, young = (scene.run(deployment, Pending(), ago=ago) for ago in (A_WHILE, A_MINUTE))
    assert scene.settle()[str(run.id)].result == "report"  # a pool without workers may have taken it
    with get_client(sync_client=True) as client:
        request = {"json": {"name": "another"}, "path_params": {"work_pool_name": "unsaid"}}
        client.request("POST", "/work_pools/{work_pool_name}/workers/heartbeat", **request)
    results = scene.settle()

    assert results[str(run.id)].result == "archived"
    assert str(young.id) not in results
    record = scene.record(run)
    assert (record.status, record.job_status.reason) == (Status.FAILED, Reason.INFRASTRUCTURE)
    assert "no worker took it within" in record.job_status.message


@pytest.mark.long
def test_a_method_is_recognised_when_its_deployment_is_renamed_or_gone(scene):
    renamed, deleted = scene.deploy(measures, "first name"), scene.deploy(rests)
    scene.settle()
    runs = [scene.run(one, Pending(), Crashed(message="no"), ago=A_MINUTE) for one in (renamed, deleted)]
    with get_client(sync_client=True) as client:
        client.delete_deployment(deleted)
        deployment = client.read_deployment(renamed).model_dump(mode="json") | {"name": "second name"}
        fields = DeploymentUpdate.model_fields.keys() & deployment.keys() | {"name"}
        client.delete_deployment(renamed)
        update = {name: deployment[name] for name in fields} | {
            "flow_id": deployment["flow_id"],
            "parameter_openapi_schema": None,
        }
        client.request("POST", "/deployments/", json=update)

    assert {one.status for one in scene.settle().values()} == {Status.FAILED}
    assert scene.seals() == sorted(str(run.id) for run in runs)
    assert [scene.record(run).method.id for run in runs] == ["measures", "rests"]


# --- runs that died --------------------------------------------------------------


def test_a_run_killed_on_this_machine_keeps_its_output(scene):
    deployment = scene.deploy(measures)
    killed, bundle = scene.opened(deployment)
    stopped, _ = scene.opened(deployment)
    scene.put(stopped, Cancelling())
    early, _ = scene.opened(deployment, status=Status.STARTED)
    results = scene.settle()

    assert {result.result for result in results.values()} == {"archived"}
    record = scene.record(killed)
    assert (record.status, record.job_status.reason, record.job_status.partial) == (Status.FAILED, Reason.CRASHED, True)
    assert "is gone; it ended in the Method's own code" in record.job_status.message
    assert [output.path for output in record.job_status.outputs] == sorted(OUTPUTS)
    assert (bundle.folder / "outputs/regions.csv").read_bytes() == OUTPUTS["outputs/regions.csv"]
    last = record.job_status.history[-1]
    assert (last.observer, last.prefect_state.id) == (Observer.SETTLE, scene.state(killed).id)
    assert (scene.record(stopped).status, scene.state(stopped).type.value) == (Status.CANCELLED, "CANCELLED")
    assert "own code had not begun" in scene.record(early).job_status.message
    assert not (scene.home / "workbench" / ".open" / str(killed.id)).exists()
    assert scene.settle() == {}


def test_the_end_of_a_killed_run_lies_between_its_last_sign_of_life_and_settle(scene, elsewhere):
    deployment = scene.deploy(measures)
    here, bundle = scene.opened(deployment)
    lost, _ = scene.opened(deployment, process=FAR, at=elsewhere)
    for run in (here, lost):
        scene.silence(run, 600)
    heartbeat = datetime.fromtimestamp((scene.archive / "open" / str(lost.id)).stat().st_mtime, UTC)
    write_late = bundle.folder / "outputs/late.txt"
    write_late.write_text("late")
    os.utime(write_late, (1e9, 1e9))  # as of an unpacked archive
    changed = datetime.fromtimestamp(write_late.stat().st_ctime, UTC)
    scene.settle()

    for run, sign in ((here, changed), (lost, heartbeat)):
        job_status = scene.record(run).job_status
        assert abs(job_status.finished - sign) < timedelta(seconds=3)
        assert job_status.finished < job_status.finished_before == job_status.history[-1].time
    assert scene.record(here).finished == changed


def test_steps_of_a_killed_run_do_not_stay_running(scene):
    deployment = scene.deploy(measures)
    killed, _ = scene.opened(deployment)
    stopped, _ = scene.opened(deployment)
    scene.put(stopped, Cancelling())
    with get_client(sync_client=True) as client:
        for run in (killed, stopped):
            for key, state in (("0", Running()), ("1", Completed())):
                client.create_task_run(rest, run.id, dynamic_key=key, name=f"rest-{key}", state=state)
    scene.settle()

    for run, ended in ((killed, "CRASHED"), (stopped, "CANCELLED")):
        steps = {step.name: step for step in scene.record(run).job_status.steps}
        interrupted = steps["rest-0"]
        assert (interrupted.state, interrupted.state_name, interrupted.finished) == (ended, INTERRUPTED, None)
        assert steps["rest-1"].state == "COMPLETED"
        assert interrupted.started <= scene.record(run).finished


def hook(scene: Scene, run: FlowRun) -> None:
    """Do what a worker does that sees the process of a run die."""
    scene.put(run, Crashed(message="killed"))
    measures.on_crashed_hooks[0](measures, run, scene.state(run))
    mark = scene.archive / "open" / str(run.id)
    waited(lambda: not mark.exists(), "the end of the hook's work")


@pytest.mark.parametrize(
    "end", [pytest.param(hook, marks=pytest.mark.long), lambda scene, _: scene.settle()], ids=["hook", "settle"]
)
def test_forks_of_a_killed_process_are_ended_if_it_was_the_executions_own(scene, end):
    deployment = scene.deploy(measures)
    with family() as mine, family() as shared:
        for one, own in ((mine, True), (shared, False)):
            run, bundle = scene.opened(deployment, process=one.process)
            bundle.write_document(bundle.read(Instance).model_copy(update={"own_process": own}))
            one.kill()
            end(scene, run)

            assert scene.record(run).job_status.reason is Reason.CRASHED
            if own:
                waited(lambda one=one: one.living == 0, "the end of the forks")
            assert one.living == (0 if own else 2)


def test_a_run_on_a_lost_machine_is_sealed_from_the_archive(scene, elsewhere):
    deployment = scene.deploy(measures)
    there, away = scene.home.with_name("there"), scene.home.with_name("away")
    gone, _ = scene.opened(deployment, process=FAR, at=there)
    large = {**OUTPUTS, "outputs/large.bin": os.urandom(2 * 1024**2)}  # what is small goes along with the seal
    sent, _ = scene.opened(deployment, process=FAR, at=there, outputs=large)
    alive, _ = scene.opened(deployment, process=FAR, at=there)
    far = scene.bench_at(there)
    far.gather(OpenBundle(far.folder, str(sent.id)), ArchiveLevel.FULL)
    there.rename(away)
    for run in (gone, sent):
        scene.silence(run)
    results = scene.settle(elsewhere)

    assert {result.id: result.result for result in results.values()} == {
        str(gone.id): "archived",
        str(sent.id): "archived",
        str(alive.id): "open",
    }
    records = [scene.record(run) for run in (gone, sent)]
    assert {(one.status, one.job_status.reason) for one in records} == {(Status.FAILED, Reason.LOST)}
    assert [[output.path for output in one.job_status.outputs] for one in records] == [[], sorted(large)]
    notes = [[one.message for one in record.job_status.history if one.kind is EntryKind.NOTE] for record in records]
    assert notes == [["outputs and logs were lost with the workbench on far"], []]
    assert scene.bench.archive.read(str(sent.id), "inputs/picture.png").startswith(b"\x89PNG")
    assert scene.state(gone).is_crashed()
    assert {entry.name for entry in (elsewhere / "workbench").iterdir()} <= {".open", ".archives"}

    # the machine comes back
    away.rename(there)
    for run in (gone, sent):
        age(run.id, A_MINUTE)
    late = scene.settle(there)
    assert late[str(gone.id)].status is Status.FAILED
    words = [json.loads(data) for name, data in scene.bench.archive.beside(str(gone.id)).items() if "late" in name]
    assert [word["executionId"] for word in words] == [str(gone.id)]
    assert (far.folder / ".late" / str(gone.id) / "outputs/regions.csv").exists()
    assert far.ledger.get(str(gone.id)).archive == "archived"
    assert scene.record(gone) == records[0]
    assert scene.settle(there).keys() == {str(alive.id)}


def test_an_opening_record_lost_in_a_power_cut_is_rebuilt_from_prefect(scene, elsewhere):
    there = scene.home.with_name("there")
    run, _ = scene.opened(scene.deploy(measures), process=FAR, at=there)
    scene.bench.archive.put_opening(str(run.id), b"", workbench=str(there))  # what the file system has after it
    there.rename(scene.home.with_name("away"))
    scene.silence(run)
    results = scene.settle(elsewhere)

    assert [(result.id, result.result) for result in results.values()] == [(str(run.id), "archived")]
    record = scene.record(run)
    assert (record.status, record.job_status.reason) == (Status.FAILED, Reason.LOST)
    assert [one.message for one in record.job_status.history if one.kind is EntryKind.NOTE] == [
        "outputs and logs, if any, were lost with the workbench on an unknown machine"
    ]
    assert scene.settle(elsewhere) == {}


@pytest.mark.long
def test_a_run_that_loses_the_race_to_seal_leaves_a_late_seal(scene, elsewhere):
    @method(version="1")
    def comes_late() -> str:
        execution = current_execution()
        execution.output("result.txt").write_text("late")
        run = flow_runs.flow_run(execution.metadata.execution_id)
        scene.seen_to_have_been(run, FAR)
        scene.silence(run)
        assert scene.settle(elsewhere, pause=lambda _: scene.silence(run))[str(run.id)].status is Status.FAILED
        return "done"

    state = comes_late(return_state=True)
    background.drain()
    run_id = str(state.state_details.flow_run_id)
    record = scene.record(run_id)

    assert (record.status, record.job_status.reason) == (Status.FAILED, Reason.LOST)
    [word] = [json.loads(data) for name, data in scene.bench.archive.beside(run_id).items() if "late" in name]
    assert (word["status"], word["executionId"]) == ("COMPLETED", run_id)
    assert (scene.home / "workbench" / ".late" / run_id / "outputs/result.txt").read_text() == "late"
    assert scene.bench.ledger.get(run_id).status is Status.FAILED
    assert list(scene.bench.unfinished()) == []
    assert scene.settle() == {}


@pytest.mark.long
def test_a_run_missing_in_prefect_is_sealed_from_our_own_record(scene):
    deployment = scene.deploy(measures)
    error = Raised(type="KeyError", message="x", traceback="")
    here = [(*scene.opened(deployment), usage) for usage in (Usage(exit_code=0), Usage(exception=error), None)]
    for _, bundle, usage in here:
        bundle.write_document(bundle.record().instance.model_copy(update={"usage": usage}))
    gone, _ = scene.opened(deployment, process=FAR, at=scene.home.with_name("there"))
    with get_client(sync_client=True) as client:
        for run in (*(run for run, *_ in here), gone):
            client.delete_flow_run(run.id)
    scene.silence(gone)
    scene.settle()

    ends = [(one.status, one.job_status.reason) for one in (scene.record(run) for run, *_ in here)]
    assert ends == [(Status.COMPLETED, None), (Status.FAILED, Reason.ERROR), (Status.FAILED, Reason.LOST)]
    assert (scene.record(gone).job_status.reason, scene.settle()) == (Reason.LOST, {})
    assert "Prefect no longer knows this flow run" in scene.record(gone).job_status.message


def test_an_interrupted_sealing_is_completed_with_its_own_end(scene):
    run, bundle = scene.opened(scene.deploy(measures))
    scene.put(run, Completed(message="well"))
    job_status = bundle.record().job_status
    ended = advance(job_status, Status.COMPLETED, job_status.updated + timedelta(seconds=1), observer=Observer.HOOK)
    bundle.write_document(ended)

    assert scene.settle()[str(run.id)].status is Status.COMPLETED
    assert kinds(scene.record(run))[-1] == "COMPLETED"
    assert [output.path for output in scene.record(run).job_status.outputs] == sorted(OUTPUTS)


def test_a_seal_wins_over_a_later_crash(scene):
    run, _ = scene.opened(scene.deploy(measures))
    scene.put(run, Completed())
    end = Ending(Status.COMPLETED, None, flow_runs.state_history(run.id)[-1].time, Observer.HOOK)
    scene.bench.seal(str(run.id), end)
    before = scene.bench.archive.seal_of(str(run.id))
    scene.put(run, Crashed(message="a zombie was found"), A_WHILE)

    assert scene.settle() == {}
    assert scene.bench.archive.seal_of(str(run.id)) == before
    assert scene.record(run).status is Status.COMPLETED


@pytest.mark.long
def test_a_second_generation_that_never_started_is_sealed_as_well(scene):
    run = scene.run(scene.deploy(measures), Pending(), Crashed(message="first"), ago=A_WHILE)
    scene.settle()
    for state in (AwaitingRetry(message="Retry from the UI"), Pending(), Failed(message="second")):
        scene.put(run, state)
    age(run.id, A_MINUTE)
    age(run.id, A_MINUTE, "flow_run")
    scene.sealed_before(A_WHILE)

    assert scene.settle().keys() == {f"{run.id}.2"}
    first, second = scene.record(run), scene.record(f"{run.id}.2")
    assert (first.job_status.message, second.job_status.message) == ("first", "second")
    assert scene.settle() == {}


def test_a_log_that_may_hold_an_unavailable_secret_is_withheld(scene):
    run, bundle = scene.opened(scene.deploy(measures))
    recorded = a_method(inputs={**a_method().inputs, "token": opens.method.inputs["token"]})
    request = bundle.record().request
    values = {**request.values, "token": {"secret": "env:TOKEN_THAT_IS_GONE"}}
    for document in (recorded, a_request(execution_id=str(run.id), values=values, relatives=())):
        bundle.write_document(document)
    (bundle.folder / "outputs/stdout.log").write_text("the token is Sesame")
    scene.settle()

    record = scene.record(run)
    aside = scene.home / "workbench" / ".withheld" / str(run.id)
    assert (aside / "stdout.log").read_text() == "the token is Sesame"
    assert (bundle.folder / "outputs/stdout.log").read_text() == ""
    [note] = [entry.message for entry in record.job_status.history if entry.kind is EntryKind.NOTE]
    assert "logs may hold a secret" in note
    paths = [path for path in scene.home.rglob("*") if path.is_file() and b"Sesame" in path.read_bytes()]
    assert paths == [aside / "stdout.log"]


@method(version="1")
def reads(sesame_word: str, options: dict[str, str]) -> None: ...


def test_values_with_the_operators_secret_names_are_withheld_from_a_run_that_never_started(scene, monkeypatch):
    monkeypatch.setenv("EXECUTIONS_SECRET_NAMES", "sesame_word")
    parameters = {"sesame_word": "open sesame!", "options": {"my_sesame_word": "second sesame!", "b": "plain"}}
    run = scene.run(scene.deploy(reads), Pending(), Cancelled(message="not now"), ago=A_WHILE, parameters=parameters)
    scene.settle()

    shown = scene.record(run).request.to_json()
    assert b"plain" in shown
    assert b"sesame!" not in shown


# --- many settlers, and few questions --------------------------------------------


def test_an_execution_sealed_by_another_machine_is_indexed(scene, elsewhere):
    run = scene.run(scene.deploy(measures), Pending(), Crashed(message="no"), ago=A_WHILE)
    assert scene.settle(elsewhere)[str(run.id)].result == "archived"
    assert scene.bench.ledger.list().rows == ()

    assert scene.settle()[str(run.id)].result == "archived"
    (row,) = scene.bench.ledger.list().rows
    assert (row.id, row.archive, row.status) == (str(run.id), "archived", Status.FAILED)
    assert scene.settle() == {}


@pytest.mark.long
def test_a_round_reads_only_what_changed_since_the_last(scene, requests):
    deployment = scene.deploy(measures)
    for _ in range(12):
        scene.run(deployment, Pending(), Crashed(message="no"), ago=A_WHILE)
    assert len(scene.settle()) == 12
    requests.clear()
    assert scene.settle() == {}
    quiet = len(requests)
    run = scene.run(deployment, Pending(), Crashed(message="no"), ago=A_MINUTE)
    requests.clear()

    assert scene.settle().keys() == {str(run.id)}
    assert len(requests) <= quiet + 4
    assert quiet <= 8
    assert scene.settle(since=run.created - 2 * A_WHILE) == {}


def test_a_round_writes_a_checkpoint_if_there_is_a_key(scene):
    KeyRing(Settings(home=scene.home)).create("own")
    run = scene.run(scene.deploy(measures), Pending(), Crashed(message="no"), ago=A_WHILE)
    assert scene.settle()[str(run.id)].result == "archived"
    assert scene.settle() == {}
    assert scene.bench.archive.checkpoints.numbers() == [1]
    proof = Inclusion.from_json(scene.bench.archive.inclusion(str(run.id)))
    assert proof.holds


@pytest.fixture
def requests(scene: Scene) -> Iterator[list[str]]:
    """Return the requests to Prefect's API that settle has made."""
    made: list[str] = []
    hooks = api_client.client()._client.event_hooks
    hooks["request"].append(listen := lambda request: made.append(f"{request.method} {request.url.path}"))
    yield made
    hooks["request"].remove(listen)


SETTLERS = """
import os, signal, sys, time
from pathlib import Path
from prefect_executions.prefect_api import client
from prefect_executions.tracepoints import EVENT
from prefect_executions.settings import Settings
from prefect_executions.settle.loop import settle
from prefect_executions.workbench.workbench import Workbench
from prefect_executions import background

steps = 0

def die(event, arguments):
    global steps
    if event == EVENT:
        steps -= 1
        if steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def settler(home, archive):
    settings = Settings(home=Path(home), archive=archive)
    list(settle(Workbench.of(settings, archive_block=None), settings, pause=lambda seconds: None))

what, archive, flag, *homes = sys.argv[1:]
sys.addaudithook(die)
if what == "together":
    children = []
    for number, home in enumerate(homes):
        if (child := os.fork()) == 0:
            client.ping()
            Path(f"{flag}-{number}").touch()
            while not Path(flag).exists():
                time.sleep(0.001)
            settler(home, archive)
            os._exit(0)
        children.append(child)
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))
killed = 0
while True:
    if (child := os.fork()) == 0:
        steps = 1 + 3 * killed
        settler(homes[0], archive)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    killed += 1
print(killed)
"""


def settlers(scene: Scene, what: str, flag: Path, *homes: Path) -> subprocess.Popen[str]:
    """Start settlers in processes of their own: together when *flag* is there, or in a row, each killed a bit later."""
    words = [sys.executable, "-c", SETTLERS, what, scene.bench.archive.store.url, str(flag), *map(str, homes)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.long
def test_parallel_settles_and_the_runs_own_hook_make_one_seal(scene, elsewhere, tmp_path):
    deployment = scene.deploy(measures)
    never = [scene.run(deployment, Pending(), Crashed(message="no"), ago=A_WHILE) for _ in range(3)]
    runs = [*never, *(run for run, _ in (scene.opened(deployment) for _ in range(3)))]
    homes = (scene.home, scene.home, elsewhere)
    started = settlers(scene, "together", tmp_path / "flag", *homes)
    hooks = [
        threading.Thread(target=measures.on_crashed_hooks[0], args=(measures, run, scene.state(run))) for run in never
    ]
    settling = threading.Thread(target=scene.settle)
    waited(lambda: len(list(tmp_path.glob("flag-*"))) == len(homes) or started.poll() is not None, "the settlers")
    (tmp_path / "flag").touch()
    for thread in (*hooks, settling):
        thread.start()
    for thread in (*hooks, settling):
        thread.join()
    output = started.communicate()[0]

    assert started.returncode == 0, output
    for home in (scene.home, elsewhere):  # each workbench removes what an unacknowledged event held up
        scene.settle(home)
    background.drain()
    there = scene.bench_at(elsewhere)
    for run in runs:
        record = scene.record(run, there)
        assert (record.status, record.job_status.reason) == (Status.FAILED, Reason.CRASHED)
        assert kinds(record).count("FAILED") == 1
        assert bool(record.job_status.outputs) == (run not in never)
    assert scene.seals() == sorted(str(run.id) for run in runs)
    assert {row.id for row in scene.bench.ledger.list().rows} == set(scene.seals())
    assert [*scene.bench.unfinished(), *there.unfinished(), *(scene.archive / "open").glob("*")] == []


@pytest.mark.long
def test_settle_may_be_killed_and_run_again(scene, tmp_path):
    deployment = scene.deploy(measures)
    never = scene.run(deployment, Pending(), Crashed(message="no"), ago=A_WHILE)
    killed, _ = scene.opened(deployment)
    scene.put(killed, Crashed(message="no"), A_WHILE)
    gone, _ = scene.opened(deployment, process=FAR, at=tmp_path / "there")
    scene.silence(gone, 24 * 3600)
    output = settlers(scene, "in a row", tmp_path / "flag", scene.home).communicate()[0]

    assert int(output.splitlines()[-1]) > 3, output
    age(gone.id, A_MINUTE)
    scene.settle()
    reasons = [scene.record(run).job_status.reason for run in (never, killed, gone)]
    assert reasons == [Reason.CRASHED, Reason.CRASHED, Reason.LOST]
    assert len(scene.record(killed).job_status.outputs) == len(OUTPUTS)
    assert scene.seals() == sorted(str(run.id) for run in (never, killed, gone))
    assert [*scene.bench.unfinished(), *(scene.archive / "open").glob("*")] == []
    assert scene.settle() == {}
    left = [path for path in scene.home.rglob("*") if path.is_file() and ".new" in path.name]
    assert left == []
