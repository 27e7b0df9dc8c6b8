"""The process runtime: the launcher, and what remains after it dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_executions.capture.processes import alive, kill_execution_processes
from prefect_executions.errors import InfrastructureError, PlanError
from prefect_executions.runtimes.interface import RUN_ID_ENV, Plan, Resources, Run, RunRequest, RunStatus
from prefect_executions.runtimes.process.runtime import INHERITED, ProcessRuntime

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is missing")

PATIENT = 120.0


@pytest.fixture
def runtime(tmp_path: Path) -> ProcessRuntime:
    return ProcessRuntime(tmp_path / "state")


@pytest.fixture
def plan(runtime: ProcessRuntime, tmp_path: Path) -> Callable[..., Plan]:
    (tmp_path / "data").mkdir()

    def compiled(script: str, **wishes) -> Plan:
        request = RunRequest(id="a-run", execution_id="e", data=tmp_path / "data", script=script, **wishes)
        return runtime.compile(request, tmp_path / "plan")

    return compiled


def until(come: Callable[[], object]) -> None:
    """Return when *come* tells something true."""
    patience = time.monotonic() + PATIENT
    while not come():
        assert time.monotonic() < patience
        time.sleep(0.02)


def begun(run: Run, state: Path) -> dict[str, dict[str, int]]:
    """Return the processes of the launcher and the script, once the script has written output."""
    next(run.logs())
    processes: dict[str, dict[str, int]] = json.loads((state / run.id / "begun.json").read_text())
    return processes


def test_a_killed_launcher_ends_the_script_and_the_run_is_lost(runtime, plan, tmp_path):
    run = runtime.run(plan("echo ready; setsid sleep 300 & sleep 300"))
    processes = begun(run, tmp_path / "state")
    os.kill(processes["launcher"]["pid"], signal.SIGKILL)
    end = run.wait(PATIENT)
    assert (end.status, end.code) == (RunStatus.LOST, None), "no process observed its exit code"
    until(lambda: alive(run.seen().process) is False)
    assert run.cancel(grace=0.2) == end
    assert kill_execution_processes(run.id, cookie=RUN_ID_ENV) == 0, "its child processes were found by the run id"


def test_a_launcher_stopped_from_outside_records_that(runtime, plan, tmp_path):
    run = runtime.run(plan("echo ready; sleep 300"))
    os.kill(begun(run, tmp_path / "state")["launcher"]["pid"], signal.SIGTERM)
    end = run.wait(PATIENT)
    assert (end.status, end.code) == (RunStatus.FAILED, 143)
    assert "was stopped" in end.why


def test_a_caller_killed_before_the_start_leaves_a_lost_run(runtime, tmp_path):
    (tmp_path / "state" / "a-run").mkdir(parents=True)
    (tmp_path / "state" / "a-run" / "lock").touch()
    assert runtime.find("a-run").status() is RunStatus.LOST


def test_the_usage_of_a_script_is_measured(runtime, plan):
    end = runtime.run(plan("perl -e 'my $x = q(x) x 60_000_000; 1 for 1..2_000_000'")).wait(PATIENT)
    assert end.cpu_seconds > 0.01
    assert end.peak_memory > 60_000_000


def test_a_script_inherits_only_the_listed_variables(runtime, plan, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not for scripts")
    run = runtime.run(plan("env > seen", environment={"HOME": "/elsewhere"}))
    run.wait(PATIENT)
    seen = dict(line.split("=", 1) for line in (tmp_path / "data" / "seen").read_text().splitlines())
    assert seen.keys() <= {*INHERITED, "EXECUTION_ID", "EXECUTION_RUN", "PWD", "OLDPWD", "SHLVL", "_"}
    assert seen["HOME"] == "/elsewhere"


def test_no_secret_is_on_disk_or_in_the_launchers_environment(runtime, plan, tmp_path):
    run = runtime.run(plan("echo ready; sleep 300", secrets={"TOKEN": "tr0ub4dor"}))
    processes = begun(run, tmp_path / "state")
    contents = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    launcher = Path(f"/proc/{processes['launcher']['pid']}")
    script = Path(f"/proc/{processes['script']['pid']}")
    assert not [content for content in contents if b"tr0ub4dor" in content]
    assert b"tr0ub4dor" not in (launcher / "environ").read_bytes() + (launcher / "cmdline").read_bytes()
    assert b"tr0ub4dor" not in (script / "cmdline").read_bytes()
    run.discard()


def test_the_launcher_is_detached_from_its_caller(runtime, plan, tmp_path):
    run = runtime.run(plan("echo ready; sleep 300"))
    pid = begun(run, tmp_path / "state")["launcher"]["pid"]
    assert os.getsid(pid) not in {os.getsid(0), os.getsid(run.seen().process.pid)}
    assert pid not in [int(child) for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    run.discard()


@pytest.mark.parametrize(
    ("limits", "message"),
    [(Resources(cpus=0.5), "whole"), (Resources(gpus=1), "gpus"), (Resources(processes=9), "proc")],
)
def test_a_limit_that_a_process_does_not_support_is_refused(limits, message, plan):
    with pytest.raises(PlanError, match=message):
        plan("true", resources=limits)


def test_a_missing_data_folder_is_an_error_and_frees_the_id(runtime, plan, tmp_path):
    made = plan("true")
    (tmp_path / "data").rmdir()
    with pytest.raises(InfrastructureError, match=r"a-run cannot be started.*data"):
        runtime.run(made)
    (tmp_path / "data").mkdir()
    assert runtime.run(made).wait(PATIENT).code == 0


@pytest.mark.parametrize("less", [[], ["setpriv", "--bounding-set", "-sys_admin"]], ids=["as-it-is", "without-right"])
def test_parallel_scripts_see_their_own_data_at_the_same_path(less, tmp_path):
    if less and os.geteuid():
        pytest.skip("only root can give up a right")
    namespace = [*less, "unshare", "--user", "--map-root-user", "--mount", "true"]
    if subprocess.run(namespace, check=False, capture_output=True).returncode:
        pytest.skip("this kernel lets users make no namespaces")
    place = tmp_path / "ccp_data"
    place.mkdir()
    code = f"""
import os
from pathlib import Path
from prefect_executions.runtimes.process.runtime import ProcessRuntime
from prefect_executions.runtimes.interface import RunRequest
top = Path({str(tmp_path)!r})
runtime = ProcessRuntime(top / "state", shown_at={str(place)!r})
def start(name):
    (top / name).mkdir()
    assert runtime.mount_path(top / name) == {str(place)!r}
    script = "pwd; while [ ! -e go ]; do sleep 0.05; done; id -u > {place}/$NAME"
    request = RunRequest(id=name, execution_id="e", data=top / name, script=script, environment={{"NAME": name}})
    return runtime.run(runtime.compile(request, top / "plan"))
runs = [start("first"), start("second")]
for run in runs:
    (top / run.id / "go").touch()
    assert run.wait(120).code == 0, list(run.logs())
    assert (top / run.id / run.id).read_text() == f"{{os.getuid()}}\\n"
    assert b"".join(piece.data for piece in run.logs()) == b"{place}\\n"
assert not list(Path({str(place)!r}).iterdir())
"""
    subprocess.run([*less, sys.executable, "-c", code], check=True)


def test_a_script_that_uses_a_missing_mount_path_is_refused(tmp_path):
    runtime = ProcessRuntime(tmp_path / "state", shown_at="/is/not/here")
    request = RunRequest(id="a-run", execution_id="e", data=tmp_path, script="ls /is/not/here")
    with pytest.raises(PlanError, match="make that folder"):
        runtime.compile(request, tmp_path / "plan")


def test_the_documented_example_runs():
    page = (Path(__file__).parents[1] / "docs" / "runtimes.md").read_text(encoding="utf-8")
    example = page.partition("```python\n")[2].partition("```")[0]
    subprocess.run([sys.executable, "-c", example], check=True)
