"""Processes: which one is meant, whether it lives, and that what a run has left behind is ended and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forks import Family, family
from journeys import waited
from prefect_executions.capture.processes import (
    EXECUTION_ID_ENV,
    alive,
    clock_ticks_since_boot,
    end_descendants,
    kill_execution_processes,
    send,
    this_process,
)
from prefect_executions.executions.record import Instance, Process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is missing")

NAMED = "from prefect_executions.capture.processes import this_process as p; print(p().model_dump_json(), flush=True);"
DEAF = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
LOUD = "echo ready; exec sleep 300"


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a shell script, and comes back when it has written a line."""
    made: list[subprocess.Popen[str]] = []

    def start(script: str, **environment: str) -> subprocess.Popen[str]:
        told = os.environ | environment
        made.append(subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True, env=told))
        assert made[-1].stdout is not None
        made[-1].stdout.readline()
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


@pytest.fixture(scope="module")
def forked() -> Iterator[Family]:
    """Return a process with two that it forked, all of which live."""
    with family() as made:
        yield made


def of(child: subprocess.Popen[str]) -> Process:
    """Name a child as it would name itself."""
    stat = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    return this_process().model_copy(update={"pid": child.pid, "started": stat[19]})


def test_a_process_is_named_alike_by_itself_and_from_outside():
    with subprocess.Popen(
        [sys.executable, "-c", f"{NAMED} input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        told = Process.model_validate_json(child.stdout.readline())
        assert told == of(child)
        assert alive(told) is True
        child.communicate("\n")
    assert alive(told) is False


def test_a_process_that_ended_and_was_not_waited_for_is_dead(started):
    child = started("echo ready; exec sleep 300")
    told = of(child)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert Path(f"/proc/{child.pid}").exists()
    assert alive(told) is False


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"started": "1"}, False),
        ({"started": None}, False),
        ({"boot": "another"}, None),
        ({"boot": None}, None),
        ({"pids": "pid:[1]"}, None),
        ({"host": "renamed"}, True),
    ],
)
def test_a_pid_alone_names_nobody(change, answer):
    assert alive(this_process().model_copy(update=change)) is answer


def test_a_signal_goes_to_the_process_that_is_meant_and_to_no_other(started):
    child = started(LOUD)
    told = of(child)

    assert not send(told.model_copy(update={"started": "1"}), signal.SIGKILL)
    assert not send(told.model_copy(update={"boot": "another"}), signal.SIGKILL)
    assert child.poll() is None
    assert send(told, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not send(told, signal.SIGKILL)


def test_all_that_carries_the_cookie_is_ended_however_deaf_and_wherever_it_went(started):
    deaf = started(DEAF, **{EXECUTION_ID_ENV: "mine"})
    left = started("setsid sleep 300 & echo $!", **{EXECUTION_ID_ENV: "mine"})
    others = started(LOUD, **{EXECUTION_ID_ENV: "yours"}), started(LOUD)
    left.wait()

    assert kill_execution_processes("mine", grace=0.3) >= 2
    assert deaf.wait() == -signal.SIGKILL
    assert [one.poll() for one in others] == [None, None]
    assert kill_execution_processes("mine") == 0


def test_who_asks_is_spared_with_all_above_it(started):
    script = (
        "from prefect_executions.capture.processes import kill_execution_processes; import subprocess;"
        "child = subprocess.Popen(['sleep', '300']); print(kill_execution_processes('mine', grace=5), child.wait())"
    )
    # The shell carries it, too, and waits for what it has started.
    command = ["sh", "-c", f'"$0" -c "{script}"; echo alive', sys.executable]
    done = subprocess.run(
        command, env=os.environ | {EXECUTION_ID_ENV: "mine"}, capture_output=True, text=True, check=False
    )

    assert done.stdout == "1 -15\nalive\n", done.stderr


def test_what_was_started_before_is_spared_with_what_it_starts_later(started):
    server = started(LOUD)
    time.sleep(0.05)  # the system counts starts in hundredths of a second
    since = clock_ticks_since_boot()
    deep = started("sh -c 'sleep 300 & wait' & echo ready; wait")

    assert end_descendants(since) >= 1
    deep.wait(60)
    assert server.poll() is None


def test_the_tracker_of_shared_memory_is_left_to_clean_up():
    script = (
        "import multiprocessing as m, multiprocessing.resource_tracker as t, os\n"
        "from prefect_executions.capture.processes import end_descendants\n"
        "m.set_start_method('spawn'); lock = m.Lock(); pid = t._resource_tracker._pid\n"
        "print(end_descendants(0), os.path.exists(f'/proc/{pid}'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert (done.stdout, done.stderr) == ("0 True\n", "")


def test_what_a_killed_process_forked_is_ended_and_no_process_of_the_same_words():
    with family() as mine, family() as other:
        mine.kill()

        assert len(mine.children) == mine.living == 2
        assert kill_execution_processes("an execution") == 0
        assert kill_execution_processes("an execution", instance=mine.instance) == 2
        waited(lambda: mine.living == 0, "the end of the forks")
        assert (other.living, other.popen.poll()) == (2, None)


@pytest.mark.long
def test_what_the_process_before_forked_is_ended_as_well():
    with family() as before:
        before.kill()
        now = Instance(process=this_process(), own_process=True, earlier_processes=(before.process,))

        assert kill_execution_processes("an execution", instance=now) == 2
        waited(lambda: before.living == 0, "the end of the forks")


@pytest.mark.parametrize(
    ("of_instance", "of_process"),
    [
        ({"own_process": None}, {}),
        ({"process": None}, {}),
        ({}, {"layout": None}),
        ({}, {"layout": "another"}),
        ({}, {"boot": "another"}),
        ({}, {"pids": "pid:[1]"}),
        ({}, {"started": None}),
        ({}, {"started": "9" * 18}),
    ],
)
def test_no_fork_is_ended_where_anything_else_is_told_of_its_process(forked, of_instance, of_process):
    process = forked.process.model_copy(update=of_process)
    instance = forked.instance.model_copy(update={"process": process} | of_instance)

    assert kill_execution_processes("an execution", instance=instance) == 0
    assert (forked.living, forked.popen.poll()) == (2, None)


def test_a_fork_tells_no_layout_which_would_be_its_parents(forked):
    assert forked.process.layout
    assert [child.layout for child in forked.children] == [None, None]


def test_a_program_that_is_laid_out_without_chance_tells_no_layout(need_program):
    if subprocess.run([need_program("setarch"), "-R", "true"], capture_output=True, check=False).returncode:
        pytest.skip("the leave to lay a program out without chance is missing: seccomp(2) refuses personality(2)")
    with family("setarch", "-R") as alike:
        assert alike.process.layout is None
