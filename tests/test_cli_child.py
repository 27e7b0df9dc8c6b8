"""The child process of `executions run`: exit codes, signals, and what the command does when it dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefect_executions.cli import exit_codes
from prefect_executions.executions.record import Instance

COMMAND = str(Path(sys.executable).with_name("executions"))

PARENT = """
import os, signal, sys, time
from prefect_executions.cli.child import run_in_child

def work():
    print("child", os.getpid(), flush=True)
    {work}
    return 7

def died(child):
    print("dead", child.pid, child.how, flush=True)
    return 1

sys.exit(run_in_child(work, died))
"""

METHOD = """
import os, signal, time
from prefect_executions import current_execution, method

@method(version="1")
def dies(how: str, wait: float = 0) -> None:
    current_execution().output("half.txt").write_text("half")
    print("begun", flush=True)
    time.sleep(wait)
    if how == "exit":
        os._exit(0)
    os.kill(os.getpid(), signal.Signals[how])
    time.sleep(600)
"""


def parent(work: str) -> subprocess.Popen[str]:
    code = PARENT.replace("{work}", work)
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code], text=True, **streams)


def outcome(work: str, given: str = "") -> tuple[int, list[str]]:
    with parent(work) as made:
        printed, _ = made.communicate(given, timeout=60)
    return made.returncode, printed.splitlines()


def test_the_exit_code_of_the_child_is_that_of_the_command():
    assert outcome("pass")[0] == 7
    assert outcome("sys.exit(3)")[0] == 3
    assert outcome("raise ValueError('no')")[0] == 1
    assert [len(outcome(work)[1]) for work in ("pass", "sys.exit(3)")] == [1, 1]  # not dead


@pytest.mark.parametrize(
    ("work", "how"),
    [
        ("os._exit(0)", "exited with code 0, by os._exit or in C code"),
        ("os._exit(7)", "exited with code 7, by os._exit or in C code"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "died of SIGSEGV (Segmentation fault)"),
        ("os.abort()", "died of SIGABRT (Aborted)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL"),
    ],
)
def test_the_death_of_the_child_is_reported_with_its_cause(work, how):
    code, (begun, dead) = outcome(work)
    assert code == 1
    assert dead.startswith(f"dead {begun.split()[1]} {how}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_command_alone_reaches_the_child(number):
    handler = f"got = []; signal.signal({int(number)}, lambda *_: got.append('received'))"
    loop = "while not got: time.sleep(0.01)"
    with parent(f"{handler}; print('ready', flush=True)\n    {loop}\n    print(got[0], flush=True)") as made:
        while made.stdout.readline() != "ready\n":
            pass
        made.send_signal(number)
        assert made.stdout.read() == "received\n"
        assert made.wait(60) == 7


INTERRUPTED = """
    from prefect_executions.cli.child import was_interrupted
    try:
        print("ready", flush=True)
        {work}
    except KeyboardInterrupt:
        print(was_interrupted(), flush=True)
"""


@pytest.mark.parametrize(("work", "noted"), [("time.sleep(600)", True), ("raise KeyboardInterrupt", False)])
def test_only_a_signal_to_the_command_is_an_interruption_by_its_user(work, noted):
    with parent(INTERRUPTED.replace("{work}", work).strip()) as made:
        while made.stdout.readline() != "ready\n":
            pass
        if noted:
            made.send_signal(signal.SIGINT)
        assert made.stdout.read() == f"{noted}\n"
        assert made.wait(60) == 7


def test_a_signal_that_ends_both_is_an_interruption():
    with parent("time.sleep(600)") as made:
        child = made.stdout.readline().split()[1]
        made.send_signal(signal.SIGTERM)
        assert made.stdout.read() == f"dead {child} was ended by SIGTERM (Terminated)\n"
        assert made.wait(60) == exit_codes.INTERRUPTED


def test_the_child_ends_with_a_killed_command():
    with parent("time.sleep(600)") as made:
        child = Path("/proc", made.stdout.readline().split()[1])
        made.kill()
        made.wait(60)
        until = time.monotonic() + 60
        while (child / "exe").exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert not (child / "exe").exists()


def test_a_fork_of_a_dead_child_that_still_runs_does_not_hold_up_the_command():
    # The fork ends when its standard input does, which is after the command has ended.
    fork = "if os.fork() == 0: os.close(1); os.close(2); sys.stdin.read(); os._exit(0)"
    with parent(f"{fork}\n    os._exit(3)") as made:
        child = made.stdout.readline().split()[1]
        assert made.stdout.read() == f"dead {child} exited with code 3, by os._exit or in C code\n"
        assert made.wait(60) == 1


def test_the_end_of_the_child_is_noticed_if_sigchld_is_ignored():
    code = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n" + PARENT.replace("{work}", "pass")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 7


def test_the_child_reads_standard_input():
    assert outcome("print('read', input(), flush=True)", "a line\n")[1][1] == "read a line"


def test_a_process_with_threads_makes_no_child():
    work = "import threading; threading.Thread(target=time.sleep, args=(1,)).start(); print(os.getpid())"
    code = f"{work.replace('print(os.getpid())', 'first = os.getpid()')}\n"
    text = code.replace("import threading", "import os, time, threading") + PARENT.replace(
        "{work}", "print('same', os.getpid() == first, flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[1]) == (7, "same True")


@pytest.mark.parametrize(
    ("how", "words"),
    [("exit", "exited with code 0"), pytest.param("SIGSEGV", "died of SIGSEGV", marks=pytest.mark.long)],
)
def test_a_run_whose_process_dies_is_sealed_at_once_and_says_why(prefect_server, home, tmp_path, how, words):
    (tmp_path / "dies.py").write_text(METHOD)
    command = [COMMAND, "run", "dies.py:dies", "-p", f"how={how}", "--json"]
    environment = os.environ | {"EXECUTIONS_HOME": str(home)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == exit_codes.FAILED, done.stderr
    assert f"The process of the Method {words}" in done.stderr
    shown = json.loads(done.stdout)
    assert (shown["status"], shown["reason"], shown["sealed"], shown["archive"]) == (
        "FAILED",
        "crashed",
        True,
        "archived",
    )
    assert "outputs/half.txt" in shown["outputs"]
    assert shown["finishedBefore"] is None
    folder = Path(shown["folder"])
    assert (folder / "outputs/stdout.log").read_text() == "begun\n"
    instance = Instance.from_json((folder / Instance.file_name).read_bytes())
    assert (
        f"Its process {instance.pid} on {instance.hostname} {words}"
        in (json.loads((folder / "metadata/jobStatus.json").read_text())["message"])
    )
    verified = subprocess.run(
        [COMMAND, "verify", str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert verified.returncode == 0, verified.stdout
