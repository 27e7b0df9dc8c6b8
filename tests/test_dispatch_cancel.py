"""Every way to cancel: the record has the request and its author, outputs are kept, and no process remains."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling, Pending, Scheduled

from benches import begun, bench_at, record_of
from homes import Bundles
from journeys import waited
from prefect_executions import current_execution, method
from prefect_executions.capture.processes import alive, this_process
from prefect_executions.cli import exit_codes
from prefect_executions.cli.app import main
from prefect_executions.dispatch.cancel import KillEscalation
from prefect_executions.executions.record import ExecutionRecord, Usage
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.prefect_api import blocks
from prefect_executions.settings import Settings
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.workbench import Workbench
from records import a_job_status, an_infrastructure, an_instance

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(900)]

LONGEST = 300.0
COMMAND = str(Path(sys.executable).with_name("executions"))
WAITING = """
import asyncio
import multiprocessing
import subprocess
import time

from prefect_executions import current_execution, method


@method(version="1")
def waits() -> None:
    execution = current_execution()
    child = subprocess.Popen(["sleep", "300"], start_new_session=True)
    fork = multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,))
    fork.start()
    execution.output("children.txt").write_text(f"{child.pid} {fork.pid}")
    execution.output("half.txt").write_text("half")
    print("now waiting", flush=True)
    time.sleep(300)


@method(version="1")
async def waits_async() -> None:
    print("now waiting", flush=True)
    await asyncio.sleep(300)


@method(version="1")
def calls() -> None:
    waits()


@method(version="1")
def never_begins() -> None:
    raise AssertionError


@never_begins.on_running
def starts_slowly(flow, run, state):
    print("now waiting", flush=True)
    time.sleep(300)


@method(version="1")
def calls_one_that_never_begins() -> None:
    never_begins()
"""


@pytest.fixture
def bundles(home: Path) -> Bundles:
    return Bundles(home)


@pytest.fixture
def cli(home: Path, capsys, monkeypatch) -> Callable[..., str]:
    """Return a function that runs the command line as Ada, checks its exit code and returns what it shows."""
    monkeypatch.setenv("EXECUTIONS_AGENT", "ada")

    def run(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        found = main(arguments)
        shown = capsys.readouterr()
        assert found == code, shown.err + shown.out
        return shown.out + shown.err

    return run


@pytest.fixture
def running(home: Path, tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], ExecutionRecord]]]:
    """Return a function that runs the Method in a process of its own, and comes back when it waits."""
    (tmp_path / "waiting.py").write_text(WAITING)
    made: list[subprocess.Popen[bytes]] = []
    bundles = Bundles(home)

    def run(*words: str, function: str = "waits") -> tuple[subprocess.Popen[bytes], ExecutionRecord]:
        known = set(bundles.folders())
        with (tmp_path / "log").open("ab") as log:
            command = [*words, COMMAND, "run", f"waiting.py:{function}", "--json"]
            made.append(subprocess.Popen(command, cwd=tmp_path, stdout=log))

        def waits() -> Path | None:
            fresh = [one for one in bundles.folders() if one not in known]
            return next((one for one in fresh if "now waiting" in text(one / "outputs/stdout.log")), None)

        return made[-1], bundles.record(waited(waits, "the Method to wait"))

    yield run
    for process in made:
        process.kill()
        process.wait()


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def children(bundles: Bundles, record: ExecutionRecord) -> list[Path]:
    pids = (bundles.home / "workbench" / record.id / "outputs/children.txt").read_text()
    return [Path(f"/proc/{pid}") for pid in pids.split()]


def prefects_state(record: ExecutionRecord) -> StateType | None:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(record.id)).state_type


# --- in a process of its own -----------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("shell", [(), ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")], ids=["terminal", "background"])
def test_a_run_in_another_process_is_cancelled_with_all_its_children(running, cli, bundles, shell, tmp_path):
    process, record = running(*shell)
    assert record.instance.own_process
    assert Path(f"/proc/{record.instance.pid}/stat").read_text().rpartition(")")[2].split()[1] == str(process.pid)
    assert record.instance.process.layout
    shown = cli("cancel", record.id[:13])
    sealed = bundles.record(bundles.home / "workbench" / record.id)

    assert (sealed.status, sealed.job_status.reason, sealed.job_status.partial) == (Status.CANCELLED, None, True)
    assert sealed.job_status.message == sealed.job_status.history[-1].message == "cancelled by ada"
    assert "cancelled by ada" in shown
    assert prefects_state(record) is StateType.CANCELLED
    assert (bundles.home / "workbench" / record.id / "outputs/half.txt").read_text() == "half"
    assert process.wait(60) == exit_codes.FAILED
    printed = json.loads((tmp_path / "log").read_text())
    assert (printed["id"], printed["status"], printed["sealed"]) == (record.id, "CANCELLED", True)
    waited(lambda: not any(one.exists() for one in children(bundles, record)), "the end of the children")
    assert "verified" in cli("verify", record.id)
    assert "ada" in cli("cancel", record.id)  # again


@pytest.mark.long
def test_a_run_that_is_terminated_prints_its_result(running, bundles, tmp_path):
    process, record = running()
    os.kill(process.pid, signal.SIGTERM)

    assert process.wait(60) == exit_codes.INTERRUPTED
    printed = json.loads((tmp_path / "log").read_text())
    assert (printed["id"], printed["status"], printed["reason"]) == (record.id, "FAILED", "crashed")
    assert bundles.failed_checks() == []


@pytest.mark.long
@pytest.mark.parametrize("function", ["waits", "waits_async", "calls", "calls_one_that_never_begins"])
def test_a_run_that_its_user_interrupts_is_cancelled(running, bundles, monkeypatch, tmp_path, function):
    monkeypatch.setenv("EXECUTIONS_AGENT", "ada")
    process, record = running(function=function)
    os.kill(process.pid, signal.SIGINT)

    assert process.wait(60) == exit_codes.INTERRUPTED
    assert json.loads((tmp_path / "log").read_text())["status"] == "CANCELLED"
    records = [bundles.record(folder) for folder in bundles.folders()]
    assert {(each.status, each.job_status.message) for each in records} == {(Status.CANCELLED, "interrupted by ada")}
    assert {prefects_state(each) for each in records} == {StateType.CANCELLED}
    assert record.id in {each.id for each in records}
    assert bundles.failed_checks() == []


@pytest.mark.long
def test_a_keyboard_interrupt_of_the_method_itself_is_no_request_to_cancel(cli, bundles, tmp_path):
    (tmp_path / "raises.py").write_text(
        "from prefect_executions import method\n\n@method(version='1')\ndef m():\n    raise KeyboardInterrupt\n"
    )
    done = subprocess.run([COMMAND, "run", "raises.py:m"], cwd=tmp_path, check=False, capture_output=True)
    assert done.returncode == exit_codes.INTERRUPTED
    record = bundles.record()
    assert (record.status, record.job_status.reason) == (Status.FAILED, Reason.CRASHED)


@pytest.mark.long
def test_signals_escalate_only_for_the_executions_own_process(running, cli, bundles):
    process, record = running()
    catalog = Catalog(Workbench.of(Settings.read(), archive_block=blocks.archive_block))
    os.kill(process.pid, signal.SIGSTOP)  # the command that would seal the record
    os.kill(record.instance.pid, signal.SIGSTOP)
    shared = record.instance.model_copy(update={"own_process": None})
    list(KillEscalation(catalog, replace(record, instance=shared)).step(100))
    assert record.instance.process is not None
    assert alive(record.instance.process) is True
    escalation = KillEscalation(catalog, record)

    assert ["SIGTERM" in words for words in escalation.step(10)] == [False, True]
    assert list(escalation.step(11)) == []
    assert not escalation.dead
    assert ["SIGKILL" in words for words in escalation.step(40)] == [True]
    waited(lambda: escalation.dead, "the end of the process")
    waited(lambda: not any(one.exists() for one in children(bundles, record)), "the end of the children")
    assert "executions settle --once" in cli("cancel", record.id, code=exit_codes.NOT_THERE)
    assert prefects_state(record) is StateType.RUNNING


@pytest.mark.parametrize("ended", [True, False])
def test_a_process_that_records_its_outputs_gets_no_signal_and_is_named(home, ended):
    usual = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the child inherits it, so that only SIGKILL ends it
    try:
        child = subprocess.Popen(["sleep", "60"])
    finally:
        signal.signal(signal.SIGTERM, usual)
    with child as sleeping:
        stat = Path(f"/proc/{sleeping.pid}/stat").read_text().rpartition(")")[2].split()
        process = this_process().model_copy(update={"pid": sleeping.pid, "started": stat[19]})
        instance = an_instance(
            pid=sleeping.pid,
            process=process,
            own_process=True,
            usage=Usage(exit_code=0) if ended else None,
        )
        record = record_of(
            job_status=a_job_status(Status.EXECUTING),
            instance=instance,
            infrastructure=an_infrastructure(type="direct"),
        )
        bench = bench_at(home)
        begun(bench, record).write_document(instance)
        escalation = KillEscalation(Catalog(bench), record)
        words = [*escalation.step(10), *escalation.step(40)]
        if ended:
            assert not escalation.dead
        else:
            waited(lambda: escalation.dead, "the end of the process")
        assert (f"kill -9 {sleeping.pid}, then executions settle --once" in words[-1]) is ended
        assert len(words) == (2 if ended else 3)
        sleeping.kill()
    bench.leases.release(record.id)


# --- in this process ---------------------------------------------------------------


@pytest.fixture
def soon(home: Path, cli: Callable[..., str]) -> Iterator[Callable[[Callable[[str], object]], None]]:
    """Return a function that a Method calls so that its execution is cancelled while it goes on."""
    threads: list[threading.Thread] = []

    def begin(wish: Callable[[str], object]) -> None:
        threads.append(threading.Thread(target=wish, args=(current_execution().id,)))
        threads[-1].start()

    yield begin
    for thread in threads:
        thread.join()


def cancelling(execution_id: str) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(execution_id), Cancelling())


def nap() -> None:
    until = time.monotonic() + LONGEST
    while time.monotonic() < until:
        time.sleep(0.02)
    raise AssertionError("nobody has cancelled")


@method(version="1")
def inner() -> None:
    current_execution().output("inner.txt").write_text("inner")
    nap()


@pytest.mark.long
def test_cancelling_in_prefect_cancels_a_call_and_the_method_that_it_called(bundles, soon):
    @method(version="1")
    def outer() -> None:
        soon(cancelling)
        inner()

    with pytest.raises(KeyboardInterrupt):
        outer()
    records = {one.method.id: one for one in map(bundles.record, bundles.folders())}

    assert {name: one.status for name, one in records.items()} == dict.fromkeys(("outer", "inner"), Status.CANCELLED)
    assert [one.job_status.message for one in records.values()] == [None, None]
    assert {prefects_state(one) for one in records.values()} == {StateType.CANCELLED}
    assert bundles.failed_checks() == []


def test_an_async_call_is_cancelled_by_the_command(bundles, cli, soon):
    @method(version="1")
    async def naps() -> None:
        soon(lambda execution_id: cli("cancel", execution_id))
        await asyncio.sleep(LONGEST)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(naps())
    record = bundles.record()

    assert (record.status, record.job_status.message) == (Status.CANCELLED, "cancelled by ada")
    assert (record.instance.own_process, record.instance.process.layout) == (False, None)


@pytest.mark.long
def test_an_error_that_follows_an_interruption_is_cancelled_as_well(bundles, cli, soon):
    @method(version="1")
    def stubborn() -> None:
        soon(lambda execution_id: cli("cancel", execution_id))
        try:
            nap()
        except KeyboardInterrupt:
            raise ValueError("interrupted") from None

    with pytest.raises(ValueError, match="interrupted"):
        stubborn()
    record = bundles.record()

    assert (record.status, record.job_status.message) == (Status.CANCELLED, "cancelled by ada")
    assert record.instance.usage.exception.message == "interrupted"


@pytest.mark.long
def test_a_method_that_completes_despite_the_request_is_cancelled_as_in_prefect(bundles):
    @method(version="1")
    def quick() -> None:
        cancelling(current_execution().id)

    quick(return_state=True)
    record = bundles.record()

    assert (record.status, record.instance.usage.exit_code) == (Status.CANCELLED, 0)
    assert prefects_state(record) is StateType.CANCELLED


def test_a_time_limit_ends_the_children_and_an_error_does_not(bundles):
    left: list[subprocess.Popen[bytes]] = []

    def leaves(*, late: bool) -> None:
        left.append(subprocess.Popen(["sleep", "300"]))
        if late:
            nap()
        raise ValueError("an error")

    hasty = method(version="1")(leaves).with_options(name="hasty", timeout_seconds=0.5)
    for late in (True, False):
        hasty(late=late, return_state=True)

    assert {one.job_status.reason for one in map(bundles.record, bundles.folders())} == {
        Reason.TIMED_OUT,
        Reason.ERROR,
    }
    assert left[0].wait(10) == -signal.SIGTERM
    assert left[1].poll() is None
    left[1].kill()
    left[1].wait()


# --- what is not running -------------------------------------------------------------


def test_a_run_that_no_worker_picked_up_is_cancelled_at_once(cli):
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(inner, state=Scheduled())
    shown = json.loads(cli("cancel", str(run.id), "--json").partition("Prefect says")[0])

    assert (shown["state"], shown["message"], shown["status"]) == ("Cancelled", "cancelled by ada", None)
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run.id).state
    assert state is not None
    assert (state.type, state.message) == (StateType.CANCELLED, "cancelled by ada")


def test_cancelling_a_starting_run_returns_after_the_wait(cli):
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(inner, state=Pending())

    assert "Cancelling" in cli("cancel", str(run.id), "--wait", "0")
    assert "settle --once" in cli("cancel", str(run.id), "--wait", "1", code=exit_codes.WORLD)


@pytest.mark.long
def test_an_ended_unknown_or_nested_execution_is_refused(bundles, cli):
    @method(version="1")
    def ends() -> None:
        within.append(cli("cancel", current_execution().id, code=exit_codes.REQUEST))

    @method(version="1")
    def calls() -> None:
        ends()

    within: list[str] = []
    calls()
    ended = bundles.folders()

    assert "cancel that one" in within[0]
    assert "COMPLETED" in cli("cancel", ended[0].name, code=exit_codes.NOT_THERE)
    assert "no execution" in cli("cancel", str(uuid4()), code=exit_codes.NOT_THERE)
    refused = cli("cancel", "ffff", code=exit_codes.NOT_THERE)
    assert "rebuilds the ledger from the archive. For a run that has not begun, give the whole flow run id." in refused
