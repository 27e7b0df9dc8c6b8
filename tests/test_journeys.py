"""What users live through: deployed Methods on real workers, and what is left of each run."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.resources import as_file, files
from pathlib import Path
from uuid import UUID

import pytest
from lxml import etree
from prefect.automations import Automation
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events import EventTrigger, ResourceSpecification
from prefect.events.actions import RunDeployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.filesystems import RemoteFileSystem
from prov.model import ProvDocument

import ogc
from archives import KEY, SECRET, Place, place_on
from crates import issues_in, warm_cache
from homes import WHOLE_WAY, Bundles, holding, kinds
from journeys import DEPLOYMENT, METHODS, Line, Run, Station, command, program, waited
from marks import long_if
from prefect_executions.bundles.verify import verify
from prefect_executions.executions.record import ExecutionRecord, Relative
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.lifecycle.history import EntryKind
from prefect_executions.lifecycle.status import FROM_PREFECT, Reason, Status

pytestmark = pytest.mark.timeout(900)  # the first test waits for a server and a worker to start

LONG = bool(os.environ.get("EXECUTIONS_TEST_LONG"))
POOL = "journeys"
PLANTED = "-".join(["plAnted", "s3cret", "71c09a"])  # noqa: FLY002 - no bundle may hold it, nor its Method's file
ON_FAILURE = "count after a failure"


@pytest.fixture(scope="module")
def station(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    """Deploy the Methods on a work pool and run a worker for it."""
    station = Station(tmp_path_factory.mktemp("station"))
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    station.deploy(POOL, *(METHODS if LONG else ("tells", "whispers")))
    with station.worker(POOL):
        yield station


@pytest.fixture(scope="module")
def runs(station: Station) -> Iterator[Mapping[str, Run]]:
    """Let the runs that need no help set out together: they take their time on a small machine.

    Those that only long tests look at set out with these alone.
    """
    Secret(value=PLANTED).save("planted", overwrite=True)
    runs = {
        "tells": _ordered(station, f"tells/{DEPLOYMENT}-{POOL}", "--param", "words=moon", "--tag", "night"),
    }
    if LONG:
        _count_after_a_failure()
        runs |= {
            "killed": station.start(POOL, "dies", {"how": "kill", "token": "planted"}),
            "waits": station.start(POOL, "waits"),
            "unknown parameter": station.start(POOL, "tells", {"nonsense": 1}),
            "exits": station.start(POOL, "dies", {"how": "exit"}),
            "terminated": station.start(POOL, "dies", {"how": "terminate"}),
            "fails": station.start(POOL, "fails"),
            "out of order": station.start(POOL, "within", {"limits": {"low": 5, "high": 1}}),
            "outer": station.start(POOL, "outer"),
            "counts": station.start(POOL, "counts"),
        }
    yield runs
    if LONG:
        _end_child(runs["killed"])


def _count_after_a_failure() -> None:
    with get_client(sync_client=True) as client:
        counts = client.read_deployment_by_name(f"counts/{DEPLOYMENT}-{POOL}")
    failure = EventTrigger(
        expect={"execution.failed"},
        match_related=ResourceSpecification({"prefect.resource.id": "prefect-executions.method.fails"}),
    )
    action = RunDeployment(deployment_id=counts.id, parameters={"number": 7})
    Automation(name=ON_FAILURE, trigger=failure, actions=[action]).create()


def _ordered(station: Station, *words: str) -> Run:
    """Order a run as a user does, with Prefect's own command."""
    said = command("prefect", "deployment", "run", *words)
    found = re.search(r"UUID: ([0-9a-f-]{36})", said)
    assert found, said
    return Run(UUID(found[1]), station.bundles)


def _automated(station: Station) -> Run:
    """Wait for the run that the automation makes when `fails` has failed."""

    def made() -> Run | None:
        with get_client(sync_client=True) as client:
            for run in client.read_flow_runs(limit=200):
                if run.created_by is not None and run.created_by.display_value == ON_FAILURE:
                    return Run(run.id, station.bundles)
        return None

    return waited(made, "a run that the automation made")


def _end_child(run: Run) -> None:
    with suppress(OSError):
        os.kill(int(run.read("hidden.txt")), signal.SIGKILL)


@pytest.fixture(scope="module")
def told(runs: Mapping[str, Run]) -> ExecutionRecord:
    return runs["tells"].ended()


def faults(bundle: Path) -> list[str]:
    return [str(fault) for fault in verify(bundle).faults]


# --- a run that goes well ------------------------------------------------------


def test_a_deployed_run_goes_the_whole_way_and_each_status_is_timed(runs, told, station):
    history = [entry for entry in told.job_status.history if entry.kind is EntryKind.STATUS]
    states = {str(state.id): state for state in runs["tells"].states()}

    assert [entry.status.value for entry in history] == [*WHOLE_WAY, "COMPLETED"]
    assert [entry.time for entry in history] == sorted(entry.time for entry in history)
    for entry in history:
        if entry.prefect_state is not None:
            state = states[str(entry.prefect_state.id)]
            assert (state.type.value, state.name) == (entry.prefect_state.type, entry.prefect_state.name)
            assert FROM_PREFECT[state.type.value] is entry.status
    assert [entry.status.value for entry in history if entry.prefect_state is None] == ["EXECUTING"]
    assert "verified" in command("executions", "verify", told.id, environment=station.environment)


def test_the_record_tells_the_infrastructure_that_ran_it(runs, told):
    asked = runs["tells"].ask()

    assert told.infrastructure.type == "process"
    assert (told.infrastructure.work_pool, told.infrastructure.worker) == (POOL, f"{POOL}-worker")
    assert told.infrastructure.identifier == asked.infrastructure_pid == str(told.instance.pid)
    assert told.request.deployment is not None
    assert (told.request.deployment.id, told.request.deployment.name) == (asked.deployment_id, f"{DEPLOYMENT}-{POOL}")
    assert told.request.tags == ("night",)


def test_what_subprocesses_and_c_code_write_is_in_the_log_in_its_order(runs, told):
    assert runs["tells"].read("stdout.log").splitlines() == [
        f"{who} says moon" for who in ("python", "shell", "subprocess", "c")
    ]
    assert "error stream says moon\n" in runs["tells"].read("stderr.log")


@pytest.mark.parametrize("who", ["python", "shell", "subprocess", "c", "error stream", "logger"])
def test_each_line_is_once_in_prefects_log_and_once_at_the_worker(runs, told, station, who):
    line = f"{who} says moon"
    prefects = "\n".join(one.message for one in runs["tells"].log(until="Finished in state"))

    assert prefects.count(line) == 1
    assert station.output(POOL).read_text().count(line) == 1


def test_prefects_log_says_where_the_record_is(runs, told):
    assert Line("prefect.flow_runs", f"Execution {told.id} COMPLETED: {runs['tells'].folder}") in runs["tells"].log(
        until="Finished in state"
    )


@pytest.mark.long
def test_an_async_method_runs_on_a_worker(runs):
    assert runs["counts"].ended().status is Status.COMPLETED
    assert runs["counts"].read("stdout.log").splitlines() == ["counted 0", "counted 1", "counted 2"]
    assert faults(runs["counts"].folder) == []


@pytest.mark.long
def test_a_method_that_calls_a_method_leaves_two_records_that_know_each_other(runs, station):
    record = runs["outer"].ended()
    inner = [
        folder
        for folder in station.bundles.folders()
        if station.bundles.record(folder).request.relatives == (Relative(execution_id=record.id, relation="parent"),)
    ]

    assert len(inner) == 1
    assert (inner[0] / "outputs/stdout.log").read_text() == "inner 1\n"
    assert runs["outer"].read("stdout.log").splitlines() == ["outer begins", "outer ends"]
    assert faults(inner[0]) == faults(runs["outer"].folder) == []


@pytest.mark.long
def test_a_run_that_an_automation_made_says_so(runs, station):
    record = _automated(station).ended()

    assert record.request.created_by is not None
    assert (record.request.created_by["type"], record.request.created_by["name"]) == ("AUTOMATION", ON_FAILURE)
    assert (record.agent.source, record.agent.name) == ("prefect", ON_FAILURE)
    assert record.request.values == {"number": 7}


# --- a run that does not -------------------------------------------------------


@pytest.mark.long
def test_a_method_that_raises_leaves_its_error_and_what_it_wrote(runs):
    record = runs["fails"].ended()

    assert (record.status, record.job_status.reason) == (Status.FAILED, Reason.ERROR)
    assert kinds(record) == [*WHOLE_WAY, "FAILED"]
    assert record.instance.usage is not None
    assert record.instance.usage.exception is not None
    assert "no such star" in record.instance.usage.exception.traceback
    assert runs["fails"].read("half.txt") == "half"
    assert faults(runs["fails"].folder) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "reason", "sent", "message"),
    [
        ("out of order", Reason.ERROR, {"limits": {"low": 5, "high": 1}}, "high must be above low"),
        ("unknown parameter", Reason.CRASHED, {"nonsense": 1}, "status code: 1"),
    ],
)
def test_parameters_that_the_worker_refuses_leave_a_record(runs, name, reason, sent, message):
    record = runs[name].ended()

    assert (record.status, record.job_status.reason) == (Status.FAILED, reason)
    assert kinds(record) == ["CREATED", "SCHEDULED", "FAILED"]
    assert (record.request.parameters, record.request.validated) == (sent, False)
    assert message in (record.job_status.message or "")
    assert record.infrastructure.worker == f"{POOL}-worker"
    assert record.job_status.partial is None
    assert faults(runs[name].folder) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "message"),
    [("killed", "SIGKILL"), ("exits", "status code: 7"), ("terminated", "termination signal")],
)
def test_a_process_that_dies_leaves_what_it_had_written(runs, name, message):
    record = runs[name].ended()

    assert (record.status, record.job_status.reason) == (Status.FAILED, Reason.CRASHED)
    assert kinds(record) == [*WHOLE_WAY, "FAILED"]
    assert record.job_status.partial is True
    assert message in (record.job_status.message or "")
    assert "the last words\n" in runs[name].read("stdout.log")
    assert runs[name].read("half.txt") == "half"
    assert str(record.job_status.history[-1].prefect_state.id) in {str(state.id) for state in runs[name].states()}
    assert faults(runs[name].folder) == []


@pytest.mark.long
@pytest.mark.parametrize("name", ["killed", "exits", "terminated"])
def test_prefects_log_of_a_process_that_died_says_where_the_record_is(runs, name):
    runs[name].ended()
    place = f"Execution {runs[name].id} FAILED: {runs[name].folder}"

    assert runs[name].log(until=place)


@pytest.mark.long
def test_each_status_of_a_killed_run_is_one_event(runs):
    record = runs["killed"].ended()
    wanted = {"filter": {"resource": {"id": [f"prefect-executions.execution.{record.id}"]}}, "limit": 50}

    def told() -> list[str] | None:
        with get_client(sync_client=True) as client:
            events = client.request("POST", "/events/filter", json=wanted).json()["events"]
        names = sorted(event["event"] for event in events if event["event"].startswith("execution."))
        return names if "execution.failed" in names else None

    assert waited(told, "the event execution.failed") == sorted(
        f"execution.{status.lower()}" for status in [*WHOLE_WAY, "FAILED"]
    )


@pytest.mark.long
def test_the_log_of_a_signal_reaches_prefect_before_the_process_is_gone(runs):
    messages = {line.message for line in runs["terminated"].log(until="Crash detected")}

    assert "the last words" in messages


@pytest.mark.long
def test_a_secret_that_a_killed_process_could_not_mask_is_masked(runs, station):
    runs["killed"].ended()

    assert "the token is ********\n" in runs["killed"].read("stdout.log")
    assert holding(station.home, PLANTED.encode()) == []
    assert PLANTED not in station.output(POOL).read_text()


@pytest.mark.long
def test_a_child_of_a_killed_run_is_ended_wherever_it_went(runs):
    runs["killed"].ended()
    child, *forks = (runs["killed"].read("child.txt") + " " + runs["killed"].read("forks.txt")).split()

    assert len(forks) == 2
    for pid in (child, *forks):
        waited(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "the end of the child")
    assert "orphan" in runs["killed"].read("stdout.log")
    assert faults(runs["killed"].folder) == []


@pytest.mark.long
def test_a_child_that_outlives_a_killed_run_changes_its_record_no_more(runs):
    """One that hides what it was started for is not found."""
    runs["killed"].ended()
    child = int(runs["killed"].read("hidden.txt"))
    log = runs["killed"].read("stdout.log")
    time.sleep(1)

    assert "hidden" in Path(f"/proc/{child}/cmdline").read_text()
    assert runs["killed"].read("stdout.log") == log
    assert faults(runs["killed"].folder) == []


@pytest.mark.long
def test_a_cancelled_run_keeps_its_outputs_and_leaves_no_process(runs):
    run = runs["waits"]
    run.says("now waiting")
    child = int(run.read("child.txt"))
    command("prefect", "flow-run", "cancel", str(run.id))
    record = run.ended()

    assert (record.status, record.job_status.reason, record.job_status.partial) == (Status.CANCELLED, None, True)
    assert run.ask().state_type is StateType.CANCELLED
    assert run.read("half.txt") == "half"
    for process in (child, record.instance.pid):
        assert not Path(f"/proc/{process}").exists()
    assert str(record.job_status.history[-1].prefect_state.id) in {str(state.id) for state in run.states()}
    assert faults(run.folder) == []
    assert run.log(until=f"Execution {run.id} CANCELLED: {run.folder}")


@pytest.mark.long
def test_a_worker_that_dies_harms_no_run_that_goes_on(station, tmp_path):
    flag = tmp_path / "flag"
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="doomed", type="process"))
    station.deploy("doomed", "chats")
    with station.worker("doomed") as worker:
        run = station.start("doomed", "chats", {"flag": str(flag)})
        run.says("before")
        worker.kill()
        worker.wait()
    flag.touch()
    record = run.ended()

    assert record.status is Status.COMPLETED
    assert run.ask().state_type is StateType.COMPLETED
    assert run.read("stdout.log").splitlines() == ["before", *(f"print {number}" for number in range(100)), "shell"]
    assert "logger 99" in run.read("stderr.log")
    assert faults(run.folder) == []


@pytest.mark.long
def test_a_terminal_that_was_never_there_harms_no_run(station, home):
    words = "import sys; sys.path.insert(0, sys.argv[1]); from methods import chats; chats(sys.argv[1])"
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [sys.executable, "-c", words, str(station.methods.parent)], stdout=writer, stderr=writer, cwd=home.parent
    )
    os.close(writer)

    assert process.wait() in {0, 120}  # by which Python tells that its own last words could not be written
    assert Bundles(home).record().status is Status.COMPLETED
    assert Bundles(home).failed_checks() == []


# --- other ways to run ---------------------------------------------------------


SERVING = """
import os
import signal
import subprocess
import sys

from prefect_executions import current_execution, method


@method(version="1")
def serves(deadly: bool = False, patient: bool = False) -> None:
    subprocess.run(["echo", "subprocess"], check=True)
    print("python")
    current_execution().output("half.txt").write_text("half")
    if deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    if patient:
        child = subprocess.Popen(["sleep", "300"], start_new_session=True)
        print("child", child.pid)
        child.wait()


if __name__ == "__main__":
    serves.serve("served", print_starting_message=False)
"""


@pytest.mark.long
def test_a_served_method_leaves_its_records(station, tmp_path):
    (tmp_path / "serving.py").write_text(SERVING)
    environment = station.environment | {"PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    with program([sys.executable, "serving.py"], tmp_path / "log", environment):

        def deployed() -> bool:
            with get_client(sync_client=True) as client:
                return any(one.name == "served" for one in client.read_deployments())

        waited(deployed, "the served deployment")
        run = _ordered(station, "serves/served")
        killed = _ordered(station, "serves/served", "--param", "deadly=true")
        patient = _ordered(station, "serves/served", "--param", "patient=true")
        patient.says("child")
        command("executions", "cancel", str(patient.id), environment=environment | {"EXECUTIONS_AGENT": "ada"})
        record, killed_record, cancelled = run.ended(), killed.ended(), patient.ended()

    assert (cancelled.status, cancelled.job_status.message) == (Status.CANCELLED, "cancelled by ada")
    assert not Path("/proc", patient.read("stdout.log").split()[-1]).exists()
    assert patient.read("half.txt") == "half"
    assert kinds(record) == [*WHOLE_WAY, "COMPLETED"]
    assert record.infrastructure.type == "serve"
    assert record.request.deployment is not None
    assert record.request.deployment.name == "served"
    assert record.method.code is not None
    assert record.method.code.entrypoint == "serving.py:serves"
    assert (killed_record.status, killed_record.job_status.reason) == (Status.FAILED, Reason.CRASHED)
    assert [one.read("stdout.log") for one in (run, killed)] == ["subprocess\npython\n"] * 2
    assert faults(run.folder) == faults(killed.folder) == faults(patient.folder) == []


TEN = """
import os
import sys

sys.path.insert(0, sys.argv[1])
from methods import tells

children = []
for number in range(10):
    child = os.fork()
    if child == 0:
        tells(f"number {number}")
        sys.exit()
    children.append(child)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


@pytest.mark.long
def test_ten_at_once_in_ten_processes_leave_ten_right_records(station, home):
    command_line = [sys.executable, "-c", TEN, str(station.methods.parent)]
    done = subprocess.run(command_line, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    bundles = Bundles(home)
    rows = Ledger.open(f"sqlite:///{home / 'ledger.db'}").list().rows

    assert done.stdout.endswith(f"{[0] * 10}\n"), said
    assert sorted((folder / "outputs/words.txt").read_text() for folder in bundles.folders()) == [
        f"number {number}" for number in range(10)
    ]
    for folder in bundles.folders():
        number = (folder / "outputs/words.txt").read_text()
        assert (folder / "outputs/stdout.log").read_text() == f"python says {number}\n"
    assert bundles.failed_checks() == []
    assert {(row.id, row.status, row.archive) for row in rows} == {
        (folder.name, Status.COMPLETED, "archived") for folder in bundles.folders()
    }
    assert "database is locked" not in said


def test_the_form_is_on_the_server_and_holds_the_secret_rule(station):
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(f"whispers/{DEPLOYMENT}-{POOL}")
        form = deployment.parameter_openapi_schema["properties"]["token"]
        with pytest.raises(PrefectHTTPStatusError) as refused:
            client.create_flow_run_from_deployment(deployment.id, parameters={"token": "Open, Sesame!"})
        made = client.create_flow_run_from_deployment(deployment.id, parameters={"token": "planted"})
        client.delete_flow_run(made.id)

    assert refused.value.response.status_code == 409
    assert form["description"] == "What opens the door."
    assert "pattern" in form


# --- afterwards ----------------------------------------------------------------


@pytest.mark.long
def test_a_deleted_ledger_is_rebuilt_as_it_was(runs, station):
    for run in (*runs.values(), _automated(station)):
        if run is not runs["waits"]:
            run.ended()
    runs["waits"].says("now waiting")
    address = f"sqlite:///{station.home / 'ledger.db'}"
    before = Ledger.open(address).dump()
    listed = command("executions", "list", "--json", environment=station.environment)
    for file in station.home.glob("ledger.db*"):
        file.unlink()
    command("executions", "ledger", "rebuild", environment=station.environment)

    assert Ledger.open(address).dump() == before
    assert command("executions", "list", "--json", environment=station.environment) == listed


@pytest.fixture
def s3(need) -> Iterator[Place]:
    place = place_on("seaweedfs", need)
    yield place
    place.close()


def test_a_worker_archives_to_s3(station, s3, tmp_path):
    home = tmp_path / "executions"
    run = station.start(
        POOL,
        "tells",
        {"words": "sea"},
        environment={
            "EXECUTIONS_HOME": str(home),
            "EXECUTIONS_ARCHIVE": s3.url,
            "AWS_ENDPOINT_URL": s3.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        },
    )
    record = run.ended()

    assert record.status is Status.COMPLETED
    assert faults(run.folder) == []
    assert record.infrastructure.job_variables["env"] == sorted(record.infrastructure.job_variables["env"])
    _is_whole_in(s3, record)


def test_a_prefect_block_says_where_the_archive_is(station, home, s3, monkeypatch):
    RemoteFileSystem(basepath=s3.url, settings=s3.options).save("archive-of-journeys", overwrite=True)
    monkeypatch.setenv("EXECUTIONS_ARCHIVE", "block:archive-of-journeys")
    words = "import sys; sys.path.insert(0, sys.argv[1]); from methods import tells; tells('block')"
    subprocess.run([sys.executable, "-c", words, str(station.methods.parent)], check=True)

    _is_whole_in(s3, Bundles(home).record())


def _is_whole_in(s3: Place, record: ExecutionRecord) -> None:
    kept = {one["Key"] for one in s3.client.list_objects_v2(Bucket=s3.bucket)["Contents"]}

    assert f"some/prefix/executions/{record.id}/seal.json" in kept


# --- judges that nobody here wrote ---------------------------------------------

ENDS = long_if(
    ("tells", "killed", "unknown parameter", "fails", "outer"), {"killed", "unknown parameter", "fails", "outer"}
)


@pytest.mark.parametrize("name", ENDS)
def test_sha256sum_agrees(runs, name):
    runs[name].ended()

    subprocess.run(["sha256sum", "--check", "--quiet", "manifest-sha256.txt"], cwd=runs[name].folder, check=True)


@pytest.mark.parametrize("name", ENDS)
def test_w3cs_schema_and_another_reader_agree(runs, name):
    runs[name].ended()
    story = (runs[name].folder / "metadata/provo.xml").read_bytes()
    with as_file(files("prov") / "tests/schemas") as folder:
        etree.XMLSchema(etree.parse(folder / "prov.xsd")).assertValid(etree.fromstring(story))

    assert ProvDocument.deserialize(io.BytesIO(story), format="xml").unified().get_records()


@pytest.mark.parametrize("name", ENDS)
def test_ogcs_schemas_agree(runs, name):
    runs[name].ended()
    judged = {"method": "process", "request": "execute", "jobStatus": "statusInfo"}
    documents = {one: json.loads((runs[name].folder / f"metadata/{one}.json").read_bytes()) for one in judged}

    assert {one: ogc.faults(schema, documents[one]) for one, schema in judged.items()} == {one: [] for one in judged}
    assert ogc.faults("statusInfo", documents["jobStatus"] | {"status": "COMPLETED"}) != []


@pytest.mark.long
def test_the_ro_crate_validator_agrees(runs, tmp_path):
    cache = warm_cache(tmp_path)
    for name in ("tells", "killed", "fails"):
        runs[name].ended()

        assert issues_in(runs[name].folder, cache) == [], name
