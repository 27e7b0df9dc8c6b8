"""The Methods of the journeys; a copy of this file is deployed to workers."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from prefect.logging import get_run_logger
from pydantic import BaseModel, SecretStr, model_validator

from prefect_executions import InputFile, current_execution, method

LONGEST = 900  # seconds; a run that a failed test has forgotten ends by itself


@method(version="1.2.0", title="Tell", type="Analysis", keywords=["words"])
def tells(words: str = "hello", times: int = 1, text: InputFile | None = None) -> str:
    """Print words in every possible way.

    Args:
        words: The words to print.
        times: How often it is written.
        text: More text to print.
    """
    execution = current_execution()
    execution.progress(50, "half way")
    execution.log_metrics({"letters": len(words)})
    print(f"python says {words}")
    os.system(f"echo shell says {words}")  # noqa: S605 - the shell is the example
    subprocess.run(["echo", "subprocess says", words], check=True)
    ctypes.CDLL(None).puts(f"c says {words}".encode())
    print(f"error stream says {words}", file=sys.stderr)
    get_run_logger().info("logger says %s", words)
    execution.output("words.txt").write_text(words * times + (text.read_text() if text else ""))
    return words


@method(version="1")
def fails() -> None:
    current_execution().output("half.txt").write_text("half")
    raise LookupError("no such star")


class Limits(BaseModel):
    low: int = 0
    high: int = 10

    @model_validator(mode="after")
    def _ordered(self) -> Limits:
        if self.high <= self.low:
            raise ValueError("high must be above low")
        return self


@method(version="1")
def within(limits: Limits) -> int:
    return limits.high - limits.low


@method(version="1")
def dies(how: Literal["kill", "exit", "terminate"], token: SecretStr | None = None) -> None:
    """Die, with children that would keep running and writing: one hides its execution id, two are plain forks."""
    execution = current_execution()
    execution.output("half.txt").write_text("half")
    if token is not None:
        subprocess.run(["echo", "the token is", token.get_secret_value()], check=True)
    if how == "kill":
        loop = "for n in $(seq {}); do echo {}; sleep 0.1; done"
        for name, word, environment in (("child.txt", "orphan", None), ("hidden.txt", "hidden", {})):
            words = ["sh", "-c", loop.format(10 * LONGEST, word)]
            child = subprocess.Popen(words, start_new_session=True, env=environment)
            execution.output(name).write_text(str(child.pid))
        pool = multiprocessing.get_context("fork").Pool(2)
        pool.map_async(time.sleep, [LONGEST] * 2, chunksize=1)
        forks = " ".join(str(child.pid) for child in multiprocessing.active_children())
        execution.output("forks.txt").write_text(forks)
    print("the last words")
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), signal.SIGTERM if how == "terminate" else signal.SIGKILL)
    time.sleep(LONGEST)


@method(version="1")
def waits() -> None:
    """Wait with a child process until the run is cancelled."""
    execution = current_execution()
    child = subprocess.Popen(["sleep", str(LONGEST)])
    execution.output("half.txt").write_text("half")
    execution.output("child.txt").write_text(str(child.pid))
    print("now waiting")
    time.sleep(LONGEST)


@method(version="1")
def inner(number: int) -> int:
    print(f"inner {number}")
    return number + 1


@method(version="1")
def outer(number: int = 1) -> int:
    print("outer begins")
    result = inner(number)
    print("outer ends")
    return result


@method(version="1")
async def counts(number: int = 3) -> int:
    for step in range(number):
        await asyncio.sleep(0.01)
        print(f"counted {step}")
    return number


@method(version="1")
def whispers(token: SecretStr) -> int:
    """Take a secret.

    Args:
        token: What opens the door.
    """
    return len(token.get_secret_value())


@method(version="1")
def chats(flag: str) -> str:
    """Print lines until the file *flag* exists, and then one more."""
    print("before")
    until = time.monotonic() + LONGEST
    while not Path(flag).exists() and time.monotonic() < until:
        time.sleep(0.05)
    for number in range(100):
        print(f"print {number}")
        print(f"error {number}", file=sys.stderr)
        get_run_logger().info("logger %d", number)
    os.system("echo shell")  # noqa: S605 - the shell is the example
    current_execution().output("done.txt").write_text("done")
    return "done"
