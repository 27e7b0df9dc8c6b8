"""The sealing hook: called twice, late, in another process, with a stale run, against unavailable services."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.flow_engine import run_flow
from prefect.states import AwaitingRetry, Crashed, Pending, Running, Scheduled

from homes import WHOLE_WAY, Bundles, kinds
from journeys import Run
from prefect_executions import MethodFlow, background, current_execution, method, open_catalog
from prefect_executions.executions.annotations import AnnotationKind, LabelChange
from prefect_executions.executions.record import Relative
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.prefect_api.run_labels import run_labels
from prefect_executions.settings import Settings
from prefect_executions.workbench.recovery import settle_all
from prefect_executions.workbench.workbench import Workbench

pytestmark = pytest.mark.usefixtures("prefect_server")

CRASH = "Process exited with status code: -9."


@pytest.fixture
def bundles(home: Path) -> Bundles:
    return Bundles(home)


@method(version="1")
def halves(number: int = 2) -> float:
    current_execution().output("half.txt").write_text(str(number / 2))
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number / 2


def crashed(**parameters: Any) -> tuple[FlowRun, State[Any]]:
    """Make a flow run that crashed before its body began, as a worker reports it."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(halves, parameters=parameters, state=Scheduled())
        client.set_flow_run_state(run.id, Pending())
        client.set_flow_run_state(run.id, Crashed(message=CRASH))
        run = client.read_flow_run(run.id)
    assert run.state is not None
    return run, run.state


def call_hook(run: FlowRun, state: State[Any], flow: MethodFlow[Any, Any] = halves) -> None:
    """Call the hook as Prefect's runners do."""
    flow.on_crashed_hooks[0](flow=flow, flow_run=run, state=state)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_never_began_leaves_a_record(bundles):
    run, state = crashed(number=4)
    call_hook(run, state)
    record = bundles.record()

    assert kinds(record) == ["CREATED", "SCHEDULED", "FAILED"]
    assert (record.id, record.job_status.reason, record.job_status.message) == (str(run.id), Reason.CRASHED, CRASH)
    assert (record.request.validated, record.request.parameters) == (False, {"number": 4})
    assert bundles.failed_checks() == []


def test_a_run_that_never_began_has_its_submitted_name(bundles):
    run, state = crashed()
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(run.id, run_labels([LabelChange(AnnotationKind.NAME, "run 7")]))
        run = client.read_flow_run(run.id)
    call_hook(run, state)
    background.drain()
    assert open_catalog().search('name:"run 7" status:failed').ids == (str(run.id),)


def test_a_second_call_of_the_hook_changes_nothing(bundles):
    run, state = crashed()
    call_hook(run, state)
    before = contents(bundles.one())
    call_hook(run, state)
    call_hook(run, Crashed(message="and once more"))

    assert contents(bundles.one()) == before


def test_parallel_calls_of_the_hook_leave_one_record(bundles, home):
    run, state = crashed()
    hooks = [threading.Thread(target=call_hook, args=(run, state)) for _ in range(6)]
    for hook in hooks:
        hook.start()
    for hook in hooks:
        hook.join()

    assert kinds(bundles.record()) == ["CREATED", "SCHEDULED", "FAILED"]
    assert bundles.failed_checks() == []
    assert bundles.open_scratch() == []
    assert len(Ledger.open(f"sqlite:///{home / 'ledger.db'}").list().rows) == 1


def test_a_stale_flow_run_is_enough(bundles):
    run, state = crashed(number=6)
    call_hook(FlowRun(id=run.id, flow_id=run.flow_id), state)

    assert bundles.record().request.parameters == {"number": 6}
    assert bundles.record().request.flow_run_name == run.name


def test_a_state_that_is_not_final_is_ignored(bundles):
    run, _ = crashed()
    call_hook(run, Running())

    assert bundles.folders() == []


def test_a_late_state_does_not_change_a_sealed_record(bundles):
    finished = halves(2, return_state=True)
    before = contents(bundles.one())
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(finished.state_details.flow_run_id)
    call_hook(run, Crashed(message="too late"))

    assert bundles.record().status is Status.COMPLETED
    assert contents(bundles.one()) == before


def again(run: FlowRun) -> FlowRun:
    """Retry a flow run manually, as the Prefect UI does."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, AwaitingRetry(message="Retry from the UI"), force=True)
        return client.read_flow_run(run.id)


def test_a_manual_retry_is_a_new_generation_with_its_own_times(bundles):
    finished = halves(3, return_state=True)
    with get_client(sync_client=True) as client:
        run = again(client.read_flow_run(finished.state_details.flow_run_id))
    run_flow(halves, flow_run=run, return_type="state")
    first, second = (bundles.record(folder) for folder in bundles.folders())

    assert (first.id, second.id) == (str(run.id), f"{run.id}.2")
    assert kinds(first) == [*WHOLE_WAY, "FAILED"]
    assert kinds(second) == ["CREATED", "STARTED", "EXECUTING", "FAILED"]  # it was never PENDING
    assert second.job_status.history[0].time > first.job_status.history[-1].time
    assert second.job_status.attempt == 1
    assert second.request.relatives == (Relative(execution_id=first.id, relation="retry-of"),)
    assert bundles.failed_checks() == []


@pytest.mark.long
def test_a_manual_retry_that_crashes_before_it_begins_leaves_a_record(bundles):
    run, state = crashed()
    call_hook(run, state)
    retried = again(run)
    call_hook(retried, state)  # the first end, reported late, does not end the second generation
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Crashed(message="again"), force=True)
        ended = client.read_flow_run(run.id)
    assert ended.state is not None
    call_hook(ended, ended.state)
    second = bundles.record(bundles.folders()[1])

    assert [folder.name for folder in bundles.folders()] == [str(run.id), f"{run.id}.2"]
    assert kinds(second) == ["CREATED", "FAILED"]
    assert (second.job_status.message, bundles.record(bundles.folders()[0]).job_status.message) == ("again", CRASH)
    assert bundles.failed_checks() == []


# --- in another process --------------------------------------------------------

OTHER_PROCESS = """
import json, sys
from pathlib import Path
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import load_flow_from_entrypoint

flow = load_flow_from_entrypoint(sys.argv[1], use_placeholder_flow=False)
run, state = (kind.model_validate_json(text) for kind, text in zip((FlowRun, State), sys.argv[2:], strict=True))
flow.on_crashed_hooks[0](flow=flow, flow_run=run, state=state)
print("the hook has ended")
"""


def call_in_other_process(run: FlowRun, state: State[Any], folder: Path, **environment: str) -> str:
    """Call the hook in another process and folder with run and state as JSON; return its output."""
    words = [f"{Path(__file__)}:halves", run.model_dump_json(), state.model_dump_json()]
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    assert "the hook has ended" in done.stdout
    return done.stdout


@pytest.mark.long
def test_the_hook_works_in_another_process_and_folder(bundles, tmp_path):
    run, state = crashed(number=8)
    output = call_in_other_process(run, state, tmp_path)

    assert bundles.record().request.parameters == {"number": 8}
    assert bundles.failed_checks() == []
    assert f"Execution {run.id} FAILED: {bundles.one()}" in output


DIRECTLY = """
import sys
from prefect.flows import load_flow_from_entrypoint
load_flow_from_entrypoint(sys.argv[1], use_placeholder_flow=False)(4)
"""


@pytest.mark.long
def test_the_terminal_shows_what_the_hook_did_and_prefects_log_that_it_was_called(bundles):
    done = subprocess.run(
        [sys.executable, "-c", DIRECTLY, f"{Path(__file__)}:halves"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    run = bundles.record().id

    assert "Beginning flow run" in done.stderr
    assert f"Execution {run} COMPLETED: {bundles.one()}" in done.stderr
    assert "hook" not in done.stderr.lower()
    output = [line.message for line in Run(UUID(run), bundles).log(until="finished running")]
    assert "Running hook 'seal_execution' in response to entering state 'Completed'" in output


@pytest.fixture
def wall() -> Iterator[str]:
    """Start a server that accepts connections and never answers; return its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.long
def test_a_hanging_archive_delays_the_hook_up_to_its_time_limit_and_settle_finishes(bundles, home, tmp_path, wall):
    run, state = crashed()
    output = call_in_other_process(
        run,
        state,
        tmp_path,
        EXECUTIONS_ARCHIVE="s3://bucket/prefix",
        EXECUTIONS_ARCHIVE_TIMEOUT="600",
        EXECUTIONS_HOOK_TIMEOUT="3",
        AWS_ENDPOINT_URL=wall,
        AWS_ACCESS_KEY_ID="key",
        AWS_SECRET_ACCESS_KEY="secret",
    )

    assert "was not finished in time; 'executions settle' finishes it" in output
    assert bundles.failed_checks() == []
    assert bundles.open_scratch() == [str(run.id)]

    bench = Workbench.of(Settings(), archive_block=lambda name: (name, {}))
    assert [(one.id, one.result) for one in settle_all(bench)] == [(str(run.id), "archived")]
    (row,) = Ledger.open(f"sqlite:///{home / 'ledger.db'}").list().rows
    assert (row.id, row.status, row.archive) == (str(run.id), Status.FAILED, "archived")


@pytest.mark.long
def test_the_hook_seals_without_prefects_server(bundles, tmp_path):
    run, state = crashed(number=10)
    away = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_CLIENT_MAX_RETRIES": "0"}
    call_in_other_process(run, state, tmp_path, PREFECT_LOGGING_TO_API_ENABLED="false", **away)

    assert bundles.record().request.parameters == {"number": 10}
    assert kinds(bundles.record()) == ["CREATED", "FAILED"]
    assert bundles.failed_checks() == []


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("EXECUTIONS_HOOK_TIMEOUT=soon", "EXECUTIONS_HOOK_TIMEOUT"),
        ("EXECUTIONS_HOME=/dev/null/home", "cannot be written"),
    ],
)
def test_the_hook_never_raises_and_logs_the_error(bundles, monkeypatch, caplog, setting, reason):
    run, state = crashed()
    monkeypatch.setenv(*setting.split("="))
    call_hook(run, state)

    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert reason in warning
    assert f"execution {run.id} is not sealed yet" in warning


BREAKS = """
from prefect_executions import method
from prefect_executions.archive.archive import Archive

def broken(*_, **__):
    raise ModuleNotFoundError("No module named 'gone'")

@method(version="1")
def breaks() -> None:
    Archive.seal = broken

breaks()
"""


@pytest.mark.long
def test_the_hook_reports_a_sealed_but_unfinished_execution(bundles, tmp_path):
    script = tmp_path / "breaks.py"
    script.write_text(BREAKS)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)

    warning = (
        f"execution {bundles.one().name} is sealed but not finished; 'executions settle' finishes it: No module named"
    )
    assert warning in done.stderr
    assert bundles.failed_checks() == []


def test_the_documents_of_a_run_that_never_began_say_what_is_unknown(bundles):
    run, state = crashed()
    call_hook(run, state)
    instance = json.loads((bundles.one() / "metadata/instance.json").read_bytes())

    assert instance == {"format": 2, "gpus": [], "packages": {}, "environment": {}}
