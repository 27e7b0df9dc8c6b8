"""A descriptor as a Prefect flow: its scripts run in phases, and every end leaves one correct record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any
from uuid import UUID

import cloudpickle
import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.states import Cancelling
from prefect.utilities.callables import parameter_schema

import ogc
from crates import issues_in, warm_cache
from homes import Bundles, holding
from journeys import Station, command, program, waited
from prefect_executions import Method
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.cli.app import main
from prefect_executions.crate import reader as crate_reader
from prefect_executions.descriptors.inputs import parameter_schema as form_of
from prefect_executions.errors import InputError, MethodError, NotFoundError, PlanError, RequestError, ScriptError
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.flow.entrypoints import load_method, run_method
from prefect_executions.flow.invocation import Invocation
from prefect_executions.lifecycle.history import EntryKind
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.prefect_api.queries import is_method
from prefect_executions.provenance import reader as prov_reader

pytestmark = pytest.mark.usefixtures("prefect_server")

PLANTED = "-".join(["plAnted", "s3cret", "77a1"])  # noqa: FLY002 - the record keeps no such word
IRISES = Path(__file__).parents[1] / "flows" / "separate_irises" / "method.yaml"


@pytest.fixture
def bundles(home: Path) -> Bundles:
    return Bundles(home)


@pytest.fixture
def described(tmp_path: Path) -> Callable[..., Method]:
    """Return a function that writes a descriptor and returns its Method."""

    def write(execute: str = "true", *, deploy: str = "", undeploy: str = "", **inputs: Any) -> Method:
        scripts = {"deploy-script": deploy, "execute-script": execute, "undeploy-script": undeploy}
        descriptor = {
            "id": "described",
            "version": "2.1",
            "inputs": {name: one if "schema" in one else {"schema": one} for name, one in inputs.items()},
            "additionalParameters": {
                "parameters": [{"name": name, "value": text.split("\n")} for name, text in scripts.items()]
            },
        }
        path = tmp_path / "method.json"
        path.write_text(json.dumps(descriptor))
        return Method.from_file(path)

    return write


def phases(record: ExecutionRecord, task: str = "1.1") -> list[tuple[str, int | None]]:
    """Return the phases that ended, with their exit codes."""
    return [
        (str(entry.phase), entry.exit_code)
        for entry in record.job_status.history
        if entry.kind is EntryKind.PHASE_ENDED and str(entry.task).endswith(f".{task}")
    ]


def outputs(folder: Path) -> dict[str, str]:
    files = (path for path in (folder / "outputs").rglob("*") if path.is_file())
    return {path.relative_to(folder / "outputs").as_posix(): path.read_text() for path in files}


ALL_PHASES = ["launch", "deploy", "execute", "fetch", "undeploy", "destroy"]
TEXT = {"type": "string"}


def test_a_descriptor_method_is_a_flow_with_the_form_of_its_descriptor():
    flow = Method.from_file(IRISES)
    form = json.loads(json.dumps(parameter_schema(flow).model_dump_for_openapi()))
    for schema in form["properties"].values():
        if schema.get("default", "") is None:
            del schema["default"]

    assert isinstance(flow, Flow)
    assert (flow.name, flow.version) == ("separate-irises", "1.0.0")
    assert form == form_of(flow.method)
    assert is_method(form, flow.description)


def test_an_id_that_is_not_a_flow_name_is_refused_with_an_allowed_one(described):
    path = described().place
    path.write_text(path.read_text().replace('"described"', '"a/b"'))

    with pytest.raises(MethodError, match=r"/id: 'a/b' is also the flow name, which must not contain .*; write 'a-b'"):
        Method.from_file(path)


def test_options_make_another_flow_of_the_same_method(described):
    flow = described(x=TEXT)
    other = flow.with_options(name="another", version="3", retries=2, timeout_seconds=5)

    assert (other.name, other.version, other.retries) == ("another", "3", 2)
    assert (other.method.id, other.method.version, other.method.time_limit) == ("another", "3", 5)
    assert (flow.name, flow.version, flow.retries) == ("described", "2.1", 0)


def test_its_file_is_an_entrypoint():
    place = os.path.relpath(IRISES)
    for loaded in (load_flow_from_entrypoint(f"prefect_executions.flow.file:{place}"), load_method(place)):
        assert isinstance(loaded, Method)
        assert loaded.to_deployment("d").entrypoint == f"prefect_executions.flow.file:{place}"
    with pytest.raises(NotFoundError, match="nowhere"):
        load_method("nowhere/method.json")


def test_it_can_be_pickled_into_another_process(described, bundles):
    cloudpickle.loads(cloudpickle.dumps(described("cp /dev/null out")))()
    assert "out" in outputs(bundles.one())


def test_an_input_name_need_not_be_a_python_identifier(described, bundles):
    flow = described("echo {{ my-input }} {{ json }} > out", **{"my-input": TEXT, "json": TEXT})
    flow(**{"my-input": "a", "json": "b"})
    assert outputs(bundles.one())["out"] == "a b\n"
    assert set(parameter_schema(flow).properties) == {"my-input", "json"}


@pytest.mark.parametrize("name", ["_x", "wait_for", "self"])
def test_a_name_reserved_by_prefect_is_refused(described, name):
    with pytest.raises(MethodError, match=name):
        described(**{name: TEXT})


def test_outside_a_flow_run_its_function_refuses(described):
    with pytest.raises(RequestError, match="call the Method itself"):
        described().fn()


def test_its_scripts_run_in_phases_with_times_and_exit_codes(described, bundles, tmp_path):
    (tmp_path / "a.txt").write_text("given\n")
    flow = described(
        'cp "$INPUTS"/text/a.txt copy.txt; cmp copy.txt {{ text }}; cat made.txt',
        deploy='test -f {{ text }} && echo "$EXECUTION_ID" > made.txt; echo to-stderr >&2',
        undeploy='cat copy.txt; echo late > "$OUTPUTS/late.txt"',
        text={"type": "string", "format": "uri-reference"},
    )
    flow(text=str(tmp_path / "a.txt"))
    folder, record = bundles.one(), bundles.record()

    assert phases(record) == [(phase, 0) for phase in ALL_PHASES]
    entries = [entry for entry in record.job_status.history if entry.phase]
    assert [entry.phase for entry in entries if entry.kind is EntryKind.PHASE] == ALL_PHASES
    assert {entry.status for entry in entries if entry.phase in {"launch", "deploy"}} == {Status.STARTED}
    assert {entry.status for entry in entries if entry.phase not in {"launch", "deploy"}} == {Status.EXECUTING}
    times = [entry.time for entry in record.job_status.history]
    assert times == sorted(times)
    written = outputs(folder)
    assert written.keys() == {"copy.txt", "made.txt", "late.txt", "stdout.log", "stderr.log"}
    assert written["stdout.log"] == f"{record.id}\ngiven\n"
    assert "to-stderr\n" in written["stderr.log"]
    for teller, read in (("metadata/provo.xml", prov_reader.read), ("ro-crate-metadata.json", crate_reader.read)):
        in_order = sorted(read((folder / teller).read_bytes()).summary.phases)
        assert [(one.phase, one.exit_code, one.image) for one in in_order] == [(one, 0, None) for one in ALL_PHASES]
    assert bundles.failed_checks() == []
    assert bundles.open_scratch() == []


def test_the_bundle_has_the_plan_and_the_script_that_ran(described, bundles):
    described("echo {{ x }}", undeploy="true", x=TEXT)(x="it's")
    folder, record = bundles.one(), bundles.record()
    script = folder / "code/plan/1.1/entrypoint.sh"

    assert subprocess.run(["/bin/sh", script], capture_output=True, check=True).stdout.count(b"it's") == 1
    assert json.loads((script.parent / "plan.json").read_text())["runtime"] == "process"
    assert [run.id for run in record.instance.runs] == [f"{record.id}.1.1", f"{record.id}.1.1.undeploy"]
    assert {run.exit_code for run in record.instance.runs} == {0}
    assert record.instance.runs[0].process.pid
    assert record.method.code.entrypoint == "method.json"
    assert (folder / "code/method.json").is_file()


def test_hostile_values_arrive_unchanged_and_are_not_executed(described, bundles, tmp_path):
    touch = f"touch {tmp_path}/executed"
    values = {
        "command": f"$({touch})",
        "backticks": f"`{touch}`",
        "quotes": f"'; {touch}; '\"; {touch}; \"",
        "lines": f"a\nEND\n{touch}\n\\n\t",
        "options": "-rf / *",
        "mark": "\x1eno mark\n",
        "large": "ä" + "x" * 400_000,  # Prefect takes half a mebibyte of parameters
    }
    lines = [
        f'printf %s {{{{ {name} }}}} > {name}.bare; printf %s "{{{{ {name} }}}}" > {name}.double\n'
        f"printf %s '{{{{ {name} }}}}' > {name}.single; printf %s \"${name}\" > {name}.variable\n"
        f"cat > {name}.here <<UNTIL\n{{{{ {name} }}}}\nUNTIL"
        for name in values
    ]
    described("\n".join(lines), **dict.fromkeys(values, TEXT))(**values)
    written = outputs(bundles.one())

    for name, value in values.items():
        assert written[f"{name}.here"] == f"{value}\n", name
        for way in ("bare", "double", "single", "variable"):
            assert written[f"{name}.{way}"] == value, (name, way)
    assert not (tmp_path / "executed").exists()
    assert bundles.failed_checks() == []


@pytest.mark.long
def test_a_value_of_a_megabyte_is_refused_as_text_and_accepted_as_a_file(described, bundles, tmp_path):
    value = f"$(touch {tmp_path}/executed)'\"\n" * 20_000
    ran = run_method(described("true", x=TEXT), {"x": value}, Invocation(on_opened=print))
    assert ran.execution_id is None
    assert isinstance(ran.error, RequestError)
    assert "the largest is 'x'" in str(ran.error)
    assert len(str(ran.error)) < 1000
    assert bundles.folders() == []

    (tmp_path / "value").write_text(value)
    described("cat {{ x }} > same", x=TEXT | {"format": "uri-reference"})(x=str(tmp_path / "value"))
    assert outputs(bundles.one())["same"] == value
    assert not (tmp_path / "executed").exists()
    assert bundles.failed_checks() == []


@pytest.mark.long
def test_a_value_with_nul_is_refused_and_the_record_says_why(described, bundles):
    Secret(value="a\0b").save("nul", overwrite=True)  # as a parameter, no server on PostgreSQL would take it
    with pytest.raises(InputError, match="NUL"):
        described("echo {{ x }}", x={"type": "string", "format": "secret"})(x="nul")
    record = bundles.record()

    assert record.status is Status.FAILED
    assert phases(record) == [("launch", 1), ("destroy", 0)]
    assert bundles.failed_checks() == []


def test_invalid_values_are_refused_before_anything_runs(described, bundles):
    flow = described(x={"type": "integer"}, y={"type": "string", "readOnly": True, "default": "mine"})
    with pytest.raises(InputError, match="'x'"):
        flow(x="seven")
    with pytest.raises(InputError, match="bound"):
        flow(x=7, y="yours")
    assert {bundles.record(folder).status for folder in bundles.folders()} == {Status.FAILED}
    assert bundles.failed_checks() == []


def test_a_secret_reaches_the_scripts_and_nothing_else(described, bundles, monkeypatch):
    monkeypatch.setenv("PLANTED", PLANTED)
    flow = described(
        'test {{ token }} = "$token" && printf %s "$token" | wc -c; echo "it is {{ token }}"',
        undeploy='echo "$token" >&2',
        token={"type": "string", "format": "secret", "default": PLANTED},
    )
    flow(token="env:PLANTED")
    folder = bundles.one()

    assert outputs(folder)["stdout.log"] == f"{len(PLANTED)}\nit is ********\n"
    assert bundles.record().request.values["token"] == {"secret": "env:PLANTED"}
    assert holding(bundles.home, PLANTED.encode()) == []
    assert bundles.failed_checks() == []


def test_a_failed_deploy_ends_the_run_and_undeploy_still_runs(described, bundles):
    flow = described("touch executed", deploy="echo half > half.txt; exit 3", undeploy="echo undeployed")
    with pytest.raises(ScriptError, match=r"deploy-script ended with exit code 3"):
        flow()
    record = bundles.record()

    assert (record.status, record.job_status.reason) == (Status.FAILED, Reason.ERROR)
    assert phases(record) == [("launch", 0), ("deploy", 3), ("fetch", 0), ("undeploy", 0), ("destroy", 0)]
    assert record.instance.usage.exit_code == 3
    written = outputs(bundles.one())
    assert (written["half.txt"], written["stdout.log"]) == ("half\n", "undeployed\n")
    assert "executed" not in written
    assert Status.EXECUTING not in {entry.status for entry in record.job_status.history}
    assert bundles.failed_checks() == []


def test_a_time_limit_of_the_request_only_tightens_and_undeploy_still_runs(described, bundles, monkeypatch):
    monkeypatch.setenv("EXECUTIONS_TIME_LIMIT", "1")
    flow = described(
        "echo half > half.txt; sleep 300", undeploy="echo undeployed", ccpmaxtime={"type": "string", "default": "7000"}
    )
    with pytest.raises(TimeoutError, match="1 s"):
        flow()
    record = bundles.record()

    assert (record.status, record.job_status.reason) == (Status.FAILED, Reason.TIMED_OUT)
    assert [phase for phase, _ in phases(record)] == ["launch", "execute", "fetch", "undeploy", "destroy"]
    assert dict(phases(record))["undeploy"] == 0
    written = outputs(bundles.one())
    assert (written["half.txt"], written["stdout.log"]) == ("half\n", "undeployed\n")
    assert bundles.failed_checks() == []


def test_cancellation_ends_the_scripts_and_undeploy_still_runs(described, bundles):
    flow = described(
        "echo half > half.txt; echo $$ > pid.txt; echo begun; sleep 300", undeploy="cat pid.txt; echo undeployed"
    )
    asking = threading.Thread(target=copy_context().run, args=(_cancel_when_begun, bundles))
    asking.start()
    with pytest.raises(KeyboardInterrupt):
        flow()
    asking.join()
    record, written = bundles.record(), outputs(bundles.one())

    assert (record.status, record.job_status.partial) == (Status.CANCELLED, True)
    assert [phase for phase, _ in phases(record)] == ["launch", "execute", "fetch", "undeploy", "destroy"]
    assert written["half.txt"] == "half\n"
    assert written["stdout.log"].endswith("undeployed\n")
    assert not Path(f"/proc/{written['pid.txt'].strip()}").exists()
    assert bundles.failed_checks() == []


def _cancel_when_begun(bundles: Bundles) -> None:
    logs = lambda: [one for one in bundles.home.rglob("stdout.log") if "begun" in one.read_text()]  # noqa: E731
    (log,) = waited(logs, "the script's first word")
    folder = log.parents[1]
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(folder.name), Cancelling())
    OpenBundle.load(folder.parent, folder.name).request_cancel()


@pytest.mark.long
def test_replicas_run_in_parallel_each_with_its_own_task_id_and_outputs(described, bundles, capsys):
    flow = described(
        'echo "$ccptaskid" > task.txt; echo "I am ${ccptaskid##*.}"; test "${ccptaskid##*.}" != 2',
        undeploy="true",
        ccpreplicas={"type": "string", "default": "1"},
    )
    with pytest.raises(ScriptError, match="of replica 2 ended with exit code 1"):
        flow(ccpreplicas="3")
    record, written = bundles.record(), outputs(bundles.one())

    assert record.status is Status.FAILED
    for number, code in ((1, 0), (2, 1), (3, 0)):
        assert dict(phases(record, f"1.{number}"))["execute"] == code
        assert written[f"replica-{number}/task.txt"] == f"{record.id}.1.{number}\n"
    assert sorted(written["stdout.log"].splitlines()) == [f"[{n}] I am {n}" for n in (1, 2, 3)]
    assert bundles.failed_checks() == []
    assert main(["show", record.id]) == 0
    assert "\tphase-ended execute of replica 2 exit code 1\n" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux binds a process to CPUs")
def test_the_scripts_get_what_the_request_asks_for(described, bundles, monkeypatch):
    monkeypatch.setenv("EXECUTIONS_CPUS", "1.0")
    monkeypatch.setenv("EXECUTIONS_MEMORY", str(1 << 30))
    described("nproc; ulimit -v", undeploy="nproc")()

    assert outputs(bundles.one())["stdout.log"].split() == ["1", str(1 << 20), "1"]
    plan = json.loads((bundles.one() / "code/plan/1.1/plan.json").read_text())
    assert plan["request"]["resources"] == {"cpus": 1.0, "memory": 1 << 30}


@pytest.mark.parametrize(("wish", "value"), [("CPUS", "0.5"), ("GPUS", "1")])
def test_a_request_that_cannot_be_met_fails_before_the_scripts_begin(described, bundles, monkeypatch, wish, value):
    monkeypatch.setenv(f"EXECUTIONS_{wish}", value)
    with pytest.raises(PlanError, match=wish.lower()):
        described("true")()
    assert phases(bundles.record()) == [("launch", 1), ("destroy", 0)]


def test_an_image_is_never_ignored_silently(described, bundles):
    with pytest.raises(PlanError, match="image"):
        described(ccpimage={"type": "string", "format": "url", "default": "science/ndvi:1"})()
    record = bundles.record()

    assert record.status is Status.FAILED
    assert phases(record) == [("launch", 1), ("destroy", 0)]
    assert record.instance.runs is None


@pytest.mark.long
def test_the_next_attempt_has_a_data_folder_of_its_own(described, bundles):
    flow = described('test ! -e seen && touch seen "try-${ccptaskid%.*}"; test "${ccptaskid%.*}" = "$EXECUTION_ID.2"')
    flow.with_options(retries=1)()
    record = bundles.record()

    assert record.status is Status.COMPLETED
    assert [phases(record, f"{attempt}.1")[1] for attempt in (1, 2)] == [("execute", 1), ("execute", 0)]
    assert f"try-{record.id}.2" in outputs(bundles.one())


@pytest.mark.long
def test_the_ro_crate_validator_and_ogc_agree(described, bundles, tmp_path):
    (tmp_path / "a.txt").write_text("given")
    file = {"type": "string", "format": "uri-reference"}
    with pytest.raises(ScriptError):
        described("cat {{ text }} > out; exit 1", deploy="true", undeploy="true", text=file)(
            text=str(tmp_path / "a.txt")
        )
    folder = bundles.one()

    assert issues_in(folder, warm_cache(tmp_path)) == []
    judged = {"method": "process", "request": "execute", "jobStatus": "statusInfo"}
    for name, schema in judged.items():
        assert ogc.faults(schema, json.loads((folder / f"metadata/{name}.json").read_bytes())) == [], name


@pytest.mark.long
def test_a_worker_runs_it_from_its_file(tmp_path):
    station = Station(tmp_path)
    command("prefect", "work-pool", "create", "described", "--type", "process")
    command("executions", "deploy", os.path.relpath(IRISES), "--pool", "described")
    with station.worker("described"):
        parameters = ["-p", "one=virginica", "-p", "other=versicolor"]
        command("prefect", "deployment", "run", "separate-irises/separate-irises-described", *parameters, "--watch")
    record = station.bundles.record()

    assert (record.status, record.infrastructure.work_pool) == (Status.COMPLETED, "described")
    assert outputs(station.bundles.one())["stdout.log"] == "100 flowers, 3 of them placed wrongly\n"
    assert station.bundles.failed_checks() == []


@pytest.mark.long
def test_scripts_of_a_killed_run_are_ended_and_their_outputs_are_kept(described, tmp_path, monkeypatch):
    home = tmp_path / "killed"
    described("echo half > half.txt; echo $$ > pid.txt; echo begun; exec sleep 300")
    words = [str(Path(sys.executable).with_name("executions")), "run", str(tmp_path / "method.json")]
    with program(words, tmp_path / "run.log", {"EXECUTIONS_HOME": str(home)}) as run:
        (log,) = waited(
            lambda: [one for one in home.rglob("stdout.log") if "begun" in one.read_text()], "the script's first word"
        )
        run.kill()
        run.wait()
    (pid,) = home.rglob("pid.txt")
    assert Path(f"/proc/{pid.read_text().strip()}").exists(), "it outlives the run"
    command("executions", "settle", "--once", environment={"EXECUTIONS_HOME": str(home)})
    bundles = Bundles(home)
    record = bundles.record(log.parents[1])

    assert (record.status, record.job_status.reason) == (Status.FAILED, Reason.CRASHED)
    assert outputs(log.parents[1])["half.txt"] == "half\n"
    assert any("the orphaned scripts of" in str(entry.message) for entry in record.job_status.history)
    assert not Path(f"/proc/{outputs(log.parents[1])['pid.txt'].strip()}").exists()
    assert bundles.failed_checks() == []
