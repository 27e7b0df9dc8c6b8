"""The contract of every runtime, on real processes, a real Docker engine and a real Kubernetes cluster."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_executions.errors import NameRefusedError, NotFoundError, PlanError, RequestError
from prefect_executions.runtimes.interface import (
    MAX_VARIABLE_BYTES,
    RUN_ID_ENV,
    Capability,
    LogChunk,
    Network,
    Plan,
    Pull,
    Resources,
    Run,
    RunRequest,
    RunStatus,
    Runtime,
)
from prefect_executions.runtimes.kubernetes.api import Cluster
from prefect_executions.runtimes.registry import open_runtime

PATIENT = 120.0

HOSTILE = {
    "COMMAND": "$(touch hacked) `touch hacked`; touch hacked & | > hacked",
    "QUOTES": "'\"'\"\\'\\\"",
    "LINES": "first\nsecond\r\n\n\tlast\n",
    "EMPTY": "",
    "SPACES": "  a  b  ",
    "STARS": "* ~ ? [a-z] {a,b} !! %s %n",
    "EQUALS": "a=b=c",
    "PLACEHOLDER": "{{ NAME }} ${HOME}",
    "WORDS": "Ελλάδα 🌍 \u202e\ufeff\x7f\x1b[31m",
    "LONG": "x" * (MAX_VARIABLE_BYTES - len("LONG=")),
}

Ask = Callable[..., RunRequest]


ENGINES = {
    "process": None,
    "docker": ("EXECUTIONS_TEST_DOCKER", "a Docker engine"),
    "kubernetes": ("EXECUTIONS_TEST_KUBERNETES", "a Kubernetes cluster"),
}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> tuple[str, str | None]:
    needed = ENGINES[request.param]
    return request.param, request.getfixturevalue("need")(*needed) if needed else None


@pytest.fixture
def runtime(engine: tuple[str, str | None], tmp_path: Path) -> Iterator[Runtime]:
    name, address = engine
    opened = open_runtime(name, state=tmp_path / "state", engine=address, open_network="host")
    yield opened
    if address is not None:
        opened.close()


@pytest.fixture
def ask(runtime: Runtime, tmp_path: Path) -> Iterator[Ask]:
    """Return a function that makes a request that *runtime* accepts; all runs are discarded afterwards."""
    ids: list[str] = []
    (tmp_path / "data").mkdir()

    def request(script: str = "true", **wishes) -> RunRequest:
        ids.append(f"test-{uuid4()}")
        image = {"image": "executions-test", "pull": Pull.NEVER} if Capability.IMAGE in runtime.capabilities else {}
        fields = {"id": ids[-1], "execution_id": "an-execution", "data": tmp_path / "data"}
        return RunRequest(script=script, **(fields | image | wishes))

    yield request
    for name in ids:
        try:
            runtime.find(name).discard()
        except NotFoundError:
            continue


@pytest.fixture
def start(runtime: Runtime, ask: Ask, tmp_path: Path) -> Callable[..., Run]:
    return lambda script, **wishes: runtime.run(runtime.compile(ask(script, **wishes), tmp_path / "plan"))


@pytest.fixture
def nudge(engine: tuple[str, str | None], tmp_path: Path) -> Callable[[Run], None]:
    """Return a function that makes the file `go` where a running script sees it, shared with us or not."""

    def make_go(run: Run) -> None:
        name, address = engine
        if name == "kubernetes":
            with (
                closing(Cluster(address)) as cluster,
                closing(cluster.command(run.seen().pod, "script", "touch /ccp_data/go")) as command,
            ):
                assert command.code() == 0
        else:
            (tmp_path / "data" / "go").touch()

    return make_go


def begun(run: Run) -> RunStatus:
    """Return how a run stands as soon as its machine has it."""
    until = time.monotonic() + PATIENT
    while run.status() is RunStatus.WAITING and time.monotonic() < until:
        time.sleep(0.05)
    return run.status()


def written(run: Run) -> dict[str, bytes]:
    """Return all that a run has written until its end, by stream."""
    output = {"stdout": b"", "stderr": b""}
    for chunk in run.logs():
        output[chunk.stream] += chunk.data
    return output


def test_the_logs_and_exit_code_of_a_failing_script_are_complete(start, nudge):
    run = start("echo begun; echo apart >&2; while [ ! -e go ]; do sleep 0.05; done; sleep 1; echo over; exit 7")
    assert run.exit_code is None
    assert begun(run) is RunStatus.RUNNING

    pieces = run.logs()
    early = {chunk.stream: chunk.data for chunk in (next(pieces), next(pieces))}
    assert early == {"stdout": b"begun\n", "stderr": b"apart\n"}
    assert run.status() is RunStatus.RUNNING
    with pytest.raises(TimeoutError):
        run.wait(0.01)

    waiting = time.monotonic()
    nudge(run)
    end = run.wait(PATIENT)
    assert time.monotonic() - waiting >= 1
    assert (end.status, end.code, run.exit_code, run.status()) == (RunStatus.FAILED, 7, 7, RunStatus.FAILED)
    assert end.started is not None
    assert end.ended is not None
    assert (end.ended - end.started).total_seconds() < PATIENT
    assert list(pieces) == [LogChunk("stdout", b"over\n")]
    assert written(run) == {"stdout": b"begun\nover\n", "stderr": b"apart\n"}, "the logs are there afterwards, too"


def test_cancel_ends_detached_processes_and_those_that_ignore_sigterm(start):
    mark = f"{time.time_ns()}"  # a time to sleep that no other process has
    run = start(
        f"""
        trap '' TERM
        setsid sh -c "trap '' TERM; while :; do sleep {mark}; done" &
        env -i setsid sleep {mark} &
        (setsid sleep {mark} &)
        echo ready
        while :; do sleep {mark}; done
        """
    )
    next(run.logs())
    assert sleepers(mark)

    end = run.cancel(grace=0.3)
    assert end.status is RunStatus.CANCELLED
    assert not sleepers(mark)
    assert run.status() is RunStatus.CANCELLED
    assert run.cancel() == run.wait() == end, "once more changes nothing"


def test_a_script_that_handles_sigterm_chooses_its_exit_code(start, tmp_path):
    run = start("trap 'echo heard > heard; exit 3' TERM; echo ready; sleep 300 & wait")
    next(run.logs())
    end = run.cancel(grace=PATIENT)
    assert (end.status, end.code) == (RunStatus.CANCELLED, 3)
    assert (tmp_path / "data" / "heard").exists()


def test_a_run_that_has_ended_keeps_its_end(start):
    run = start("exit 4")
    end = run.wait(PATIENT)
    assert run.cancel() == end
    assert end.status is RunStatus.FAILED


def test_processes_that_a_script_leaves_behind_are_ended(start):
    mark = f"{time.time_ns()}"
    run = start(f"setsid sleep {mark} & exit 0")
    assert run.wait(PATIENT).status is RunStatus.SUCCEEDED
    assert not sleepers(mark)


def test_the_time_limit_ends_every_process(start):
    mark = f"{time.time_ns()}"
    run = start(f"trap '' TERM; (setsid sleep {mark} &); sleep {mark}; sleep {mark}", resources=Resources(time_limit=1))
    end = run.wait(PATIENT)
    assert end.status is RunStatus.EXPIRED
    assert end.code in {137, 143}
    assert end.why
    assert not sleepers(mark)


def test_a_script_within_its_time_limit_has_not_expired(start):
    assert start("exit 0", resources=Resources(time_limit=60)).wait(PATIENT).status is RunStatus.SUCCEEDED


def test_a_signal_that_ends_the_script_becomes_a_shells_exit_code(start):
    assert start("kill -9 $$").wait(PATIENT).code == 137


def test_environment_and_secrets_arrive_unchanged_without_the_workers_variables(start, monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_API_KEY", "the worker's own")
    run = start("env -0 > seen", environment=HOSTILE, secrets={"TOKEN": "'$(id)'\n"})
    assert run.wait(PATIENT).code == 0
    pairs = (tmp_path / "data" / "seen").read_bytes().decode().split("\0")[:-1]
    seen = dict(pair.split("=", 1) for pair in pairs)
    expected = HOSTILE | {"TOKEN": "'$(id)'\n", "EXECUTION_ID": "an-execution", RUN_ID_ENV: run.id}
    assert {name: seen.get(name) for name in expected} == expected
    assert "PREFECT_API_KEY" not in seen
    assert not (tmp_path / "data" / "hacked").exists()


def test_the_script_starts_in_the_data_folder_and_its_files_stay(runtime, start, tmp_path):
    (tmp_path / "data" / "given.txt").write_text("given")
    run = start('pwd; cp given.txt "$SEEN/left.txt"', environment={"SEEN": runtime.mount_path(tmp_path / "data")})
    assert written(run) == {"stdout": f"{runtime.mount_path(tmp_path / 'data')}\n".encode(), "stderr": b""}
    assert (tmp_path / "data" / "left.txt").read_text() == "given"


def test_logs_return_all_bytes_unchanged(start):
    script = "perl -e 'print pack(q(C*), 0..255) x 4000; print STDERR pack(q(C*), reverse 0..255)'"
    output = written(start(script))
    assert output["stdout"] == bytes(range(256)) * 4000
    assert output["stderr"] == bytes(reversed(range(256)))


def test_limits_apply_inside_the_run(runtime, start):
    quota = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null | grep -q ^100000"
    seen = "test $(nproc) = 1" if runtime.name == "process" else quota
    # More memory than it may have, while what a shell takes is allowed.
    greedy = "perl -e 'my $x = q(x) x 400_000_000; print length $x'"
    limits = Resources(cpus=1, memory=300 << 20, time_limit=600)
    end = start(f"{seen} || exit 3; {greedy} && exit 4; exit 5", resources=limits).wait(PATIENT)
    assert end.code == 5, end


def test_a_killed_caller_finds_its_run_again(runtime, engine, ask, nudge, tmp_path):
    plan = runtime.compile(ask("echo begun; echo apart >&2; while [ ! -e go ]; do sleep 0.1; done; exit 9"), tmp_path)
    options = {"state": str(tmp_path / "state"), "engine": engine[1]}
    code = f"""
import sys, signal, os
from pathlib import Path
from prefect_executions.runtimes.interface import Plan
from prefect_executions.runtimes.registry import open_runtime
options = {options!r}
runtime = open_runtime({runtime.name!r}, state=Path(options["state"]), engine=options["engine"], open_network="host")
runtime.run(Plan.model_validate_json(sys.stdin.buffer.read()))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], input=plan.to_json(), check=False, start_new_session=True)
    assert done.returncode == -signal.SIGKILL

    run = runtime.find(plan.id)
    assert begun(run) is RunStatus.RUNNING
    nudge(run)
    assert written(run) == {"stdout": b"begun\n", "stderr": b"apart\n"}
    assert run.wait(PATIENT).code == 9
    assert runtime.find(plan.id).exit_code == 9


def test_an_id_is_started_once_and_found_until_it_is_discarded(runtime, ask, tmp_path):
    plan = runtime.compile(ask("exit 0"), tmp_path / "plan")
    with pytest.raises(NotFoundError, match=plan.id):
        runtime.find(plan.id)
    run = runtime.run(plan)
    with pytest.raises(PlanError, match="before"):
        runtime.run(plan)
    run.wait(PATIENT)
    with pytest.raises(PlanError, match="before"):
        runtime.run(plan)
    run.discard()
    run.discard()
    with pytest.raises(NotFoundError):
        runtime.find(plan.id)


def test_discarding_a_running_run_ends_it(runtime, start):
    mark = f"{time.time_ns()}"
    run = start(f"echo ready; sleep {mark}")
    next(run.logs())
    run.discard()
    assert not sleepers(mark)


def test_a_plan_shows_everything_but_secrets_and_needs_them_to_run(runtime, ask, tmp_path):
    request = ask("echo $TOKEN", secrets={"TOKEN": "tr0ub4dor"}, environment={"PLAIN": "seen"})
    plan = runtime.compile(request, tmp_path / "plan")
    assert (tmp_path / "plan" / "plan.json").read_bytes() == plan.to_json()
    assert (tmp_path / "plan" / "entrypoint.sh").read_text() == "echo $TOKEN"
    shown = plan.to_json().decode() + repr(plan)
    assert "tr0ub4dor" not in shown
    assert "TOKEN" in shown
    assert "seen" in shown
    read = Plan.model_validate_json(plan.to_json())
    with pytest.raises(PlanError, match="TOKEN"):
        runtime.run(read)


@pytest.mark.parametrize("wish", Capability)
def test_an_unsupported_capability_is_refused_before_anything_is_started(wish, runtime, ask, tmp_path):
    requests = {
        Capability.DATA: {},
        Capability.ENVIRONMENT: {"environment": {"A": "b"}},
        Capability.SECRETS: {"secrets": {"A": "b"}},
        Capability.IMAGE: {"image": "executions-test"},
        Capability.USER: {"user": "1234"},
        Capability.OPEN_NETWORK: {"network": Network.OPEN},
        Capability.CLOSED_NETWORK: {"network": Network.CLOSED},
        Capability.CPUS: {"resources": Resources(cpus=1)},
        Capability.MEMORY: {"resources": Resources(memory=1 << 30)},
        Capability.GPUS: {"resources": Resources(gpus=1)},
        Capability.PROCESSES: {"resources": Resources(processes=50)},
        Capability.TIME_LIMIT: {"resources": Resources(time_limit=10)},
    }
    request = ask("true", **requests[wish])
    # No engine with a GPU is at hand.
    if wish in runtime.capabilities and wish is not Capability.GPUS:
        runtime.compile(request, tmp_path / "plan")
        assert (tmp_path / "plan" / "plan.json").exists()
    else:
        with pytest.raises(PlanError, match=str(wish)):
            runtime.compile(request, tmp_path / "plan")
        assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"environment": {"A": "nul\0"}}, "NUL"),
        ({"secrets": {"A": "sesame\0"}}, "NUL"),
        ({"environment": {"A": "\udc80"}}, "UTF-8"),
        ({"environment": {"A": "x" * 1_000_000}}, "file"),
        ({"environment": {f"A{number}": "x" * 100_000 for number in range(20)}}, "file"),
        ({"environment": {"A B": "1"}}, "A B"),
        ({"environment": {"2A": "1"}}, "2A"),
        ({"environment": {"": "1"}}, "name"),
        ({"environment": {"A=B": "1"}}, "A=B"),
        ({"environment": {"PWD": "/"}}, "PWD"),
        ({"environment": {"EXECUTION_ID": "another"}}, "EXECUTION_ID"),
        ({"environment": {"A": "1"}, "secrets": {"A": "2"}}, "twice"),
        ({"script": "echo \0"}, "NUL"),
        ({"data": Path("relative")}, "absolute"),
        ({"data": Path("/is/not/there")}, "/is/not/there"),
        ({"resources": Resources(cpus=4096)}, "4096"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_values_that_cannot_be_passed_on_unchanged_are_refused(wishes, message, runtime, ask, tmp_path):
    with pytest.raises(PlanError, match=message) as refused:
        runtime.compile(ask(**wishes), tmp_path / "plan")
    assert "sesame" not in str(refused.value)


def test_a_refusal_lists_all_reasons(runtime, ask, tmp_path):
    with pytest.raises(PlanError, match=r"(?s)NUL.*4096"):
        runtime.compile(ask(environment={"A": "\0"}, resources=Resources(cpus=4096)), tmp_path / "plan")


@pytest.mark.parametrize("name", ["", "a b", "../a", "A", "a/b", "-a", "a" * 64, "ä", ".a"])
def test_an_id_that_some_infrastructure_rejects_is_refused(name, tmp_path):
    with pytest.raises(NameRefusedError, match="id of a run"):
        RunRequest(id=name, execution_id="e", script="true", data=tmp_path)


def test_an_unknown_runtime_is_refused_with_the_list_of_runtimes(tmp_path):
    with pytest.raises(RequestError, match="process, docker"):
        open_runtime("quantum", state=tmp_path)


def sleepers(mark: str) -> list[str]:
    """Return the processes of this machine, in containers too, whose command names *mark*."""
    names = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state = (place / "stat").read_text().rpartition(")")[2].split()[0]
            command = (place / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX" and mark.encode() in command:
            names.append(place.name)
    return names
