"""stdout and stderr: kept as they happen, told apart, still shown, and never the reason that a run fails."""

# ruff: noqa: S605 - prints, shells and stand-ins are what is tested here

from __future__ import annotations

import asyncio
import contextvars
import io
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefect_executions.capture.secrets import MASK, SecretMask
from prefect_executions.capture.streams import SafeStream, open_streams
from prefect_executions.errors import BundleError

HEAD = """
import ctypes, logging, os, signal, subprocess, sys, threading, time
from pathlib import Path
from prefect_executions.capture.secrets import SecretMask
from prefect_executions.capture.streams import open_streams
folder = Path(sys.argv[1])
told = []
def forward(stream, text): told.append((stream, text))
mask = SecretMask(["hunter2"])
"""


def run(code: str, folder: Path, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HEAD + textwrap.dedent(code), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def log(folder: Path, name: str = "stdout") -> str:
    return (folder / f"{name}.log").read_text()


@pytest.fixture
def show(monkeypatch) -> Callable[[], io.StringIO]:
    """Return what puts a terminal in the place of sys.stdout: in the test's body, for pytest puts its own before."""

    def put() -> io.StringIO:
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stdout", stream)
        return stream

    return put


class TestOwnedProcess:
    def test_python_subprocesses_and_c_code_are_kept_and_still_shown(self, tmp_path):
        done = run(
            """
            print("before")
            with open_streams(folder, owns_process=True, mask=mask, forward=forward):
                print("python")
                print("python-error", file=sys.stderr)
                sys.stdout.buffer.write(b"bytes\\n"); sys.stdout.buffer.flush()
                os.system("echo shell; echo shell-error >&2")
                subprocess.run(["echo", "child"], check=True)
                ctypes.CDLL(None).puts(b"from-c")
                while "from-c" not in (folder / "stdout.log").read_text(): time.sleep(0.01)  # libc may hold it
                logging.basicConfig(stream=sys.stderr); logging.warning("logged")
                print("no newline", end="")
            print("|after")
            print(sorted("".join(text for stream, text in told if stream == "stdout").split()), file=sys.stderr)
            """,
            tmp_path,
        )
        assert done.returncode == 0, done.stderr
        words = {"python", "bytes", "shell", "child", "from-c"}
        assert words <= set(log(tmp_path).split())
        assert {"python-error", "shell-error"} <= set(log(tmp_path, "stderr").split())
        assert "logged" in log(tmp_path, "stderr")
        assert log(tmp_path).endswith("no newline")
        assert "before" not in log(tmp_path)
        assert "after" not in log(tmp_path)
        assert done.stdout.startswith("before\n")
        assert done.stdout.endswith("no newline|after\n")
        assert words <= set(done.stdout.split())
        assert "shell-error" in done.stderr
        assert all(repr(word) in done.stderr for word in words)

    def test_what_a_killed_process_forked_keeps_no_supervisor_waiting(self, tmp_path):
        done = run(
            """
            with open_streams(folder, owns_process=True, mask=mask, forward=forward):
                child = os.fork()
                if child == 0:
                    print("a fork says so", flush=True)
                    time.sleep(300)
                    os._exit(0)
                (folder / "child").write_text(str(child))
                while "a fork" not in (folder / "stdout.log").read_text(): time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            """,
            tmp_path,
        )  # returns when nobody holds its pipes any more
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
        assert done.returncode == -signal.SIGKILL
        assert "a fork says so" in log(tmp_path)

    def test_what_was_written_survives_a_kill(self, tmp_path):
        command = [
            sys.executable,
            "-c",
            HEAD
            + textwrap.dedent("""
            streams = open_streams(folder, owns_process=True, mask=mask, forward=forward)
            print("first line")
            os.system("echo second line")
            os.kill(os.getpid(), signal.SIGKILL)
            """),
            str(tmp_path),
        ]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL
        assert log(tmp_path) == "first line\nsecond line\n"

    @pytest.mark.parametrize("on_broken_pipe", ["SIG_IGN", "SIG_DFL"])
    def test_a_terminal_that_died_changes_nothing(self, tmp_path, on_broken_pipe):
        code = HEAD + textwrap.dedent("""
            sys.stdin.readline()
            with open_streams(folder, owns_process=True, mask=mask, forward=forward) as streams:
                streams.terminal("stderr").write("console")
                signal.signal(signal.SIGPIPE, signal.ON_BROKEN_PIPE)
                print("into the void")
                time.sleep(0.7)
                print("and again", file=sys.stderr)
            (folder / "alive").write_text(str(told))
            os._exit(0)
            """).replace("ON_BROKEN_PIPE", on_broken_pipe)
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            process.stdout.close()
            process.stderr.close()
            process.stdin.write(b"\n")
            process.stdin.close()
            assert process.wait(timeout=60) == 0
        assert log(tmp_path) == "into the void\n"
        assert log(tmp_path, "stderr") == "and again\n"
        assert "into the void" in (tmp_path / "alive").read_text()

    def test_a_terminal_that_is_stuck_does_not_hold_up_the_end(self, tmp_path):
        code = HEAD + textwrap.dedent("""
            with open_streams(folder, owns_process=True, mask=mask):
                print("x" * 1_000_000)
            os._exit(7)
            """)
        read, write = os.pipe()
        with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=write) as process:
            assert process.wait(timeout=60) == 7
        os.close(read)
        os.close(write)
        assert len(log(tmp_path)) == 1_000_001

    def test_secrets_are_in_no_log_on_no_terminal_and_in_no_forwarded_text(self, tmp_path):
        done = run(
            """
            with open_streams(folder, owns_process=True, mask=mask, forward=forward):
                os.system("echo shell hunter2")
                print("hun", end="", flush=True); time.sleep(0.7); print("ter2", file=sys.stdout)
            print(told, file=sys.stderr)
            """,
            tmp_path,
        )
        assert log(tmp_path) == f"shell {MASK}\n{MASK}\n"
        assert done.stdout == f"shell {MASK}\n{MASK}\n"
        assert "hunter2" not in done.stderr
        assert done.stderr.count(MASK) == 2

    def test_lines_of_our_own_are_in_the_log_and_nowhere_else(self, tmp_path):
        done = run(
            """
            with open_streams(folder, owns_process=True, mask=mask, forward=forward) as streams:
                writer = "import os\\nfor number in range(1000): os.write(2, b'user %d\\\\n' % number)"
                child = subprocess.Popen([sys.executable, "-c", writer])
                for number in range(1000):
                    streams.append_line("stderr", f"own {number} hunter2")
                    time.sleep(0.0001)
                    if number == 500: child.wait()
            (folder / "told").write_text("".join(text for _, text in told))
            """,
            tmp_path,
        )
        users = [f"user {number}" for number in range(1000)]
        assert done.stderr.splitlines() == users
        assert (tmp_path / "told").read_text().splitlines() == users
        lines = log(tmp_path, "stderr").splitlines()
        assert [line for line in lines if line.startswith("user")] == users
        assert [line for line in lines if line.startswith("own")] == [f"own {number} {MASK}" for number in range(1000)]

    def test_what_is_forwarded_comes_in_whole_lines_and_bounded_chunks(self, tmp_path):
        run(
            """
            with open_streams(folder, owns_process=True, mask=mask, forward=forward):
                for number in range(100_000):
                    print("é line", number)
            assert len(told) > 1
            assert all(len(text.encode()) <= 256 * 1024 and text.endswith("\\n") for _, text in told)
            (folder / "told").write_text("".join(text for _, text in told))
            """,
            tmp_path,
        )
        assert (tmp_path / "told").read_text() == log(tmp_path)

    def test_what_is_too_much_for_the_forward_is_in_the_file_and_told_as_left_out(self, tmp_path):
        run(
            """
            with open_streams(folder, owns_process=True, mask=mask, forward=forward):
                print("the first line", flush=True)
                time.sleep(0.6)
                for number in range(400): os.write(1, b"x" * 99_999 + b"\\n")
                print("the last line", flush=True)
            (folder / "told").write_text("".join(text for _, text in told))
            """,
            tmp_path,
        )
        told = (tmp_path / "told").read_text()
        left_out = [int(number) for number in re.findall(r"\[(\d+) bytes exceeded the rate of this log", told)]
        assert told.startswith("the first line\n")
        assert told.endswith("x\nthe last line\n")
        assert sum(left_out) > 20_000_000
        written = len(log(tmp_path))
        assert written == 40_000_000 + len("the first line\nthe last line\n")
        assert 0 <= len(told) + sum(left_out) - written < 100 * len(left_out)

    def test_a_forward_that_exits_harms_nothing(self, tmp_path):
        done = run(
            """
            def forward(stream, text): raise SystemExit(1)
            with open_streams(folder, owns_process=True, mask=mask, forward=forward):
                print("one"); time.sleep(0.7); print("two")
            """,
            tmp_path,
        )
        assert done.returncode == 0
        assert done.stdout == "one\ntwo\n"

    def test_a_process_that_outlives_the_run_cannot_change_the_log(self, tmp_path):
        done = run(
            """
            with open_streams(folder, owns_process=True, mask=mask):
                child = subprocess.Popen("echo early; read line; echo late", shell=True, stdin=subprocess.PIPE)
                while "early" not in (folder / "stdout.log").read_text(): time.sleep(0.01)
            child.communicate(b"go")
            """,
            tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert log(tmp_path) == "early\n"

    def test_a_second_attempt_appends_and_forwards_only_its_own(self, tmp_path):
        run(
            """
            for attempt in (1, 2):
                told.clear()
                with open_streams(folder, owns_process=True, mask=mask, forward=forward):
                    print("attempt", attempt)
            assert told == [("stdout", "attempt 2\\n")], told
            (folder / "done").touch()
            """,
            tmp_path,
        )
        assert log(tmp_path) == "attempt 1\nattempt 2\n"
        assert (tmp_path / "done").exists()

    def test_a_run_whose_streams_are_closed_is_captured_all_the_same(self, tmp_path):
        code = HEAD + textwrap.dedent("""
            with open_streams(folder, owns_process=True, mask=mask, forward=forward):
                print("python"); os.system("echo shell")
            try: os.fstat(1)
            except OSError: (folder / "closed").touch()
            """)
        shell = 'exec "$0" -c "$1" "$2" >&- 2>&-'
        subprocess.run(["sh", "-c", shell, sys.executable, code, str(tmp_path)], timeout=60, check=True)
        assert sorted(log(tmp_path).split()) == ["python", "shell"]
        assert (tmp_path / "closed").exists()

    def test_a_nested_execution_has_its_own_log_and_is_still_shown(self, tmp_path):
        done = run(
            """
            with open_streams(folder, owns_process=True, mask=mask):
                print("outer one")
                with open_streams(folder / "inner", owns_process=True, mask=mask):
                    print("inner")
                print("outer two")
            """,
            tmp_path,
        )
        assert log(tmp_path) == "outer one\nouter two\n"
        assert log(tmp_path / "inner") == "inner\n"
        assert sorted(done.stdout.splitlines()) == ["inner", "outer one", "outer two"]

    def test_a_replaced_python_stream_is_captured_and_not_shown_twice(self, tmp_path):
        done = run(
            """
            import io
            cell = sys.stdout = io.StringIO()
            with open_streams(folder, owns_process=True, mask=mask, forward=forward):
                print("cell"); os.system("echo shell")
                thread = threading.Thread(target=print, args=("thread",)); thread.start(); thread.join()
            assert sys.stdout is cell
            assert cell.getvalue() == "cell\\nthread\\n", cell.getvalue()
            assert "".join(text for _, text in told) == "cell\\nshell\\nthread\\n", told
            """,
            tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert log(tmp_path) == "cell\nshell\nthread\n"
        assert done.stdout == "shell\n"

    def test_a_forked_child_that_leaves_the_block_closes_nothing(self, tmp_path):
        done = run(
            """
            with open_streams(folder, owns_process=True, mask=mask):
                child = os.fork()
                print("child" if child == 0 else "parent", flush=True)
                if child: os.waitpid(child, 0)
            if child == 0: os._exit(0)
            """,
            tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert sorted(log(tmp_path).split()) == ["child", "parent"]

    def test_pytests_own_capture_does_not_disturb_it(self, tmp_path, capfd):
        with open_streams(tmp_path, owns_process=True, mask=SecretMask()):
            print("python")
            os.system("echo shell")
        assert sorted(log(tmp_path).split()) == ["python", "shell"]
        assert sorted(capfd.readouterr().out.split()) == ["python", "shell"]


class TestSharedProcess:
    def test_what_python_code_prints_is_kept_shown_and_forwarded(self, tmp_path, show):
        shown = show()
        told = []
        with open_streams(tmp_path, owns_process=False, mask=SecretMask(), forward=lambda *told_: told.append(told_)):
            print("out")
            print("error", file=sys.stderr)
            sys.stdout.write("half")
        print("after")
        assert log(tmp_path) == "out\nhalf"
        assert log(tmp_path, "stderr") == "error\n"
        assert shown.getvalue() == "out\nhalfafter\n"
        assert sorted(told) == [("stderr", "error\n"), ("stdout", "half"), ("stdout", "out\n")]
        assert sys.stdout is shown

    def test_ten_threads_with_contexts_do_not_mix(self, tmp_path, show):
        shown = show()

        def execution(number: int) -> None:
            with open_streams(tmp_path / str(number), owns_process=False, mask=SecretMask()):
                barrier.wait()
                for _ in range(200):
                    print(f"line of {number}")
                barrier.wait()

        barrier = threading.Barrier(10)
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(lambda number: contextvars.copy_context().run(execution, number), range(10)))
        for number in range(10):
            assert log(tmp_path / str(number)) == f"line of {number}\n" * 200
        assert len(shown.getvalue().splitlines()) == 2000
        assert sys.stdout is shown

    def test_ten_asyncio_tasks_do_not_mix(self, tmp_path, show):
        shown = show()

        async def execution(number: int) -> None:
            with open_streams(tmp_path / str(number), owns_process=False, mask=SecretMask()):
                for _ in range(20):
                    print(f"line of {number}")
                    await asyncio.sleep(0)
                    await asyncio.to_thread(print, f"thread of {number}")

        async def everything() -> None:
            await asyncio.gather(*map(execution, range(10)))
            print("outside")

        asyncio.run(everything())
        for number in range(10):
            assert log(tmp_path / str(number)) == f"line of {number}\nthread of {number}\n" * 20
        assert shown.getvalue().endswith("outside\n")

    def test_a_nested_execution_writes_to_its_own_log_only(self, tmp_path, show):
        shown = show()
        with open_streams(tmp_path / "outer", owns_process=False, mask=SecretMask()):
            print("one")
            with open_streams(tmp_path / "inner", owns_process=False, mask=SecretMask()):
                print("two")
            print("three")
        assert log(tmp_path / "outer") == "one\nthree\n"
        assert log(tmp_path / "inner") == "two\n"
        assert shown.getvalue() == "one\ntwo\nthree\n"

    def test_a_plain_thread_belongs_to_the_only_execution_but_not_an_older_thread(self, tmp_path, show):
        shown = show()
        go, gone = threading.Event(), threading.Event()

        def older() -> None:
            go.wait(10)
            print("older")
            gone.set()

        old = threading.Thread(target=older)
        old.start()
        with open_streams(tmp_path, owns_process=False, mask=SecretMask()):
            go.set()
            gone.wait(10)
            young = threading.Thread(target=print, args=("younger",))
            young.start()
            young.join()
        old.join()
        assert log(tmp_path) == "younger\n"
        assert shown.getvalue() == "older\nyounger\n"

    def test_with_two_executions_open_a_plain_thread_belongs_to_neither(self, tmp_path, show):
        shown = show()

        def execution(name: str) -> None:
            with open_streams(tmp_path / name, owns_process=False, mask=SecretMask()):
                barrier.wait()
                stranger = threading.Thread(target=print, args=("whose?",))
                stranger.start()
                stranger.join()
                barrier.wait()

        barrier = threading.Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(execution, ["a", "b"]))
        assert log(tmp_path / "a") == log(tmp_path / "b") == ""
        assert shown.getvalue() == "whose?\nwhose?\n"

    def test_code_outside_is_not_captured_and_a_late_write_goes_to_the_outer_execution(self, tmp_path, show):
        shown = show()
        with open_streams(tmp_path / "outer", owns_process=False, mask=SecretMask()):
            with open_streams(tmp_path / "inner", owns_process=False, mask=SecretMask()):
                late = contextvars.copy_context()
            late.run(print, "late")
        late.run(print, "too late")
        assert log(tmp_path / "inner") == ""
        assert log(tmp_path / "outer") == "late\n"
        assert shown.getvalue() == "late\ntoo late\n"

    def test_secrets_are_masked_at_the_write(self, tmp_path, show):
        shown = show()
        with open_streams(tmp_path, owns_process=False, mask=SecretMask(["hunter2"])) as streams:
            print("is hun", end="", flush=True)
            print("ter2")
            assert log(tmp_path) == f"is {MASK}\n"
            print("hunt", end="")
            streams.append_line("stdout", "own hunter2")
        assert log(tmp_path) == f"is {MASK}\nown {MASK}\nhunt"
        assert shown.getvalue() == f"is {MASK}\nhunt"

    def test_a_stream_that_others_have_put_over_ours_stays(self, tmp_path, show):
        show()
        streams = open_streams(tmp_path, owns_process=False, mask=SecretMask())
        theirs = sys.stdout = io.StringIO()
        streams.close()
        assert sys.stdout is theirs

    def test_without_a_python_stream_the_log_is_kept_all_the_same(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "stdout", None)
        with open_streams(tmp_path, owns_process=False, mask=SecretMask()):
            print("kept")
            assert not sys.stdout.isatty()
        assert log(tmp_path) == "kept\n"
        assert sys.stdout is None

    def test_the_stand_in_behaves_like_the_stream_it_stands_for(self, tmp_path, monkeypatch):
        original = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", errors="replace")
        monkeypatch.setattr(sys, "stdout", original)
        with open_streams(tmp_path, owns_process=False, mask=SecretMask()):
            assert (sys.stdout.encoding, sys.stdout.errors) == ("latin-1", "replace")
            assert not sys.stdout.isatty()
            assert isinstance(sys.stdout, io.TextIOBase)
            assert sys.stdout.line_buffering is original.line_buffering
            with pytest.raises(io.UnsupportedOperation):
                sys.stdout.fileno()
            with pytest.raises(TypeError):
                sys.stdout.write(b"bytes")
            sys.stdout.buffer.write(b"\xff\n")
            sys.stdout.writelines(["a\n", "b\n"])
            sys.stdout.flush()
            sys.stdout.close()
            print("still open \u20ac")
        assert (tmp_path / "stdout.log").read_bytes() == b"\xff\na\nb\nstill open \xe2\x82\xac\n"
        original.flush()
        assert original.buffer.getvalue() == b"\xff\na\nb\nstill open ?\n"

    def test_a_broken_terminal_does_not_fail_the_print(self, tmp_path, monkeypatch):
        read, write = os.pipe()
        os.close(read)
        broken = os.fdopen(write, "w", buffering=1)
        monkeypatch.setattr(sys, "stdout", broken)
        with open_streams(tmp_path, owns_process=False, mask=SecretMask()):
            print("kept", flush=True)
        assert log(tmp_path) == "kept\n"
        with pytest.raises(BrokenPipeError):
            broken.close()

    def test_a_logger_that_prints_in_the_forward_is_heard_by_no_execution(self, tmp_path, show):
        shown = show()

        def forward(stream: str, text: str) -> None:
            print("forwarded", text, end="")

        with (
            open_streams(tmp_path / "outer", owns_process=False, mask=SecretMask()),
            open_streams(tmp_path / "inner", owns_process=False, mask=SecretMask(), forward=forward),
        ):
            print("once")
            time.sleep(0.7)
        assert log(tmp_path / "outer") == ""
        assert log(tmp_path / "inner") == "once\n"
        assert shown.getvalue() == "once\nforwarded once\n"

    @pytest.mark.long
    def test_a_forked_child_can_print_whoever_held_the_log(self, tmp_path, show):
        show()
        with open_streams(tmp_path, owns_process=False, mask=SecretMask(), forward=lambda *_: None):
            stop = threading.Event()
            busy = threading.Thread(target=contextvars.copy_context().run, args=(_print_until, stop))
            busy.start()
            for _ in range(20):
                child = os.fork()
                if child == 0:
                    signal.alarm(20)
                    print("child")
                    os._exit(0)
                assert os.waitpid(child, 0)[1] == 0
            stop.set()
            busy.join()
        assert log(tmp_path).count("child") == 20

    def test_closing_twice_changes_nothing(self, tmp_path, show):
        show()
        streams = open_streams(tmp_path, owns_process=False, mask=SecretMask())
        streams.close()
        streams.close()
        streams.append_line("stdout", "too late")
        assert log(tmp_path) == ""

    def test_closing_does_not_wait_for_the_next_tick(self, tmp_path, show):
        show()
        # Ten times half a second would be five; no absolute time is asserted, only that no tick is waited for.
        started = time.monotonic()
        for _ in range(10):
            open_streams(tmp_path, owns_process=False, mask=SecretMask(), forward=lambda *_: None).close()
        assert time.monotonic() - started < 10 * 0.5


def _print_until(stop: threading.Event) -> None:
    while not stop.is_set():
        print("busy")


def test_a_log_that_cannot_be_opened_refuses_the_run(tmp_path):
    (tmp_path / "stdout.log").mkdir()
    for owns_process in (True, False, True):
        with pytest.raises(BundleError, match=r"stdout\.log cannot be opened"):
            open_streams(tmp_path, owns_process=owns_process, mask=SecretMask())


def test_a_safe_stream_swallows_that_its_reader_is_gone():
    read, write = os.pipe()
    os.close(read)
    stream = SafeStream(write)
    assert stream.write("text") == 4
    stream.flush()
    os.close(write)
    assert stream.write("text") == 4
    closed = io.StringIO()
    closed.close()
    assert SafeStream(closed).write("text") == 4
    assert SafeStream(None).write("text") == 4


def test_a_safe_stream_writes_what_the_terminal_cannot_show():
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    SafeStream(ascii_only).write("é\n")
    assert ascii_only.buffer.getvalue() == b"\\xe9\n"


def test_a_logging_handler_on_a_safe_stream_survives_a_dead_worker():
    read, write = os.pipe()
    os.close(read)
    handler = logging.StreamHandler(SafeStream(write))
    handler.handleError = lambda record: pytest.fail("the handler failed")
    handler.handle(logging.LogRecord("name", logging.INFO, "", 0, "message", (), None))
    os.close(write)


def test_richs_console_on_a_safe_stream_does_not_exit():
    console = pytest.importorskip("rich.console")
    read, write = os.pipe()
    os.close(read)
    console.Console(file=SafeStream(write)).print("[bold]message[/]")
    os.close(write)
