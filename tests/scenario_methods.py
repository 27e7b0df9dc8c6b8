"""The Methods of the scenario matrix; a copy of this file is deployed to workers, served and executed."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from prefect import serve
from prefect.flow_runs import suspend_flow_run

from prefect_executions import Execution, current_execution, method

LONGEST = 3600  # seconds, more than all rows take together; a run that a failed test has forgotten ends by itself

if os.environ.get("SCENARIO_SLOW_IMPORT") and os.environ.get("PREFECT__FLOW_RUN_ID"):
    with suppress(FileExistsError):  # the first to come waits; after it comes the process of its hooks
        Path(os.environ["SCENARIO_SLOW_IMPORT"]).touch(exist_ok=False)
        time.sleep(LONGEST)  # the run is cancelled before the flow can begin


def die_in_a_hook(flow, flow_run, state) -> None:  # type: ignore[no-untyped-def]
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LONGEST)


@method(version="1")
def plays(part: str, flag: str = "") -> str:
    """Play the part that a row of the matrix names.

    Args:
        part: The row's part.
        flag: A file that is waited for.
    """
    execution = current_execution()
    execution.output("half.txt").write_text("half")
    print("begins", flush=True)
    if part == "raises unless":
        if not Path(flag).exists():
            raise LookupError("not yet")
    elif part == "kills itself":
        os.kill(os.getpid(), signal.SIGKILL)
    elif part == "terminates itself":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LONGEST)
    elif part == "is terminated":
        _cleaning(execution, lambda: os.kill(os.getpid(), signal.SIGTERM))
    elif part == "cleans up":
        _cleaning(execution, lambda: None)
    elif part == "is suspended":
        suspend_flow_run(timeout=LONGEST)
    else:
        _wait(flag)
    for number in range(20):
        print(f"line {number}", flush=True)
        print(f"error {number}", file=sys.stderr)
    execution.output("done.txt").write_text("done")
    return part


@method(version="1")
def dies_in_its_hook() -> str:
    current_execution().output("done.txt").write_text("done")
    return "done"


dies_in_its_hook.on_completion(die_in_a_hook)


def _cleaning(execution: Execution, act) -> None:  # type: ignore[no-untyped-def]
    try:
        act()
        time.sleep(LONGEST)
    except BaseException:
        time.sleep(2)
        execution.output("cleaned.txt").write_text("cleaned")
        raise


def _wait(flag: str) -> None:
    until = time.monotonic() + LONGEST
    while time.monotonic() < until and not (flag and Path(flag).exists()):
        time.sleep(0.1)


if __name__ == "__main__":
    if sys.argv[1:] == ["alone"]:
        plays.serve("alone")
    else:
        serve(plays.to_deployment("served"), dies_in_its_hook.to_deployment("served"), limit=12)
