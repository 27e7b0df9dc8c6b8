"""What it costs to tell Prefect of an execution: per status change, and beside the archiving of its end.

Run it with a Prefect server: ``PREFECT_API_URL=… python tests/benchmarks/bench_events.py``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def row(measure: str, figure: str, against: str, goal: str) -> None:
    print(f"| {measure} | {figure} | {against} | {goal} |")


def in_milliseconds(times: list[float]) -> str:
    return f"{statistics.median(times) * 1000:.2f} ms"


def a_status_change(rounds: int) -> None:
    """One acknowledged request with all changes of a run, against one request that asks for nothing."""
    from prefect_executions import events  # noqa: PLC0415 - after the environment is set
    from prefect_executions.lifecycle.status import Status  # noqa: PLC0415 - the same
    from prefect_executions.prefect_api import client as api_client  # noqa: PLC0415 - the same
    from prefect_executions.prefect_api import events as prefect_events  # noqa: PLC0415 - after the environment is set
    from records import a_job_status  # noqa: PLC0415 - from tests/

    told = list(events.status_events(a_job_status(Status.COMPLETED), datetime.now(UTC)))
    client = api_client.client()
    client.hello()
    pairs = [(seconds(client.hello), seconds(lambda: prefect_events.emit(told))) for _ in range(rounds)]
    nothing, all_of_them = ([*column] for column in zip(*pairs, strict=True))
    row(
        f"tell {len(told)} events, acknowledged", in_milliseconds(all_of_them), f"hello {in_milliseconds(nothing)}", "-"
    )
    each = [time / len(told) for time in all_of_them]
    row("the same for each status change", in_milliseconds(each), "-", "-")


def the_end(pairs: int) -> None:
    """Seal, archive to a folder and index, with and without the telling of the end, interleaved."""
    from uuid import uuid4  # noqa: PLC0415 - beside its one use

    from benches import begun, record_of  # noqa: PLC0415 - from tests/
    from prefect_executions.lifecycle.status import Observer, Status  # noqa: PLC0415 - the same
    from prefect_executions.prefect_api import events as prefect_events  # noqa: PLC0415 - after the environment is set
    from prefect_executions.settings import Settings  # noqa: PLC0415 - the same
    from prefect_executions.workbench.sealing import (  # noqa: PLC0415 - the same
        DeliverEvents,
        Ending,
        discard_events,
    )
    from prefect_executions.workbench.workbench import Workbench  # noqa: PLC0415 - the same

    home = Path(os.environ["EXECUTIONS_HOME"])

    def bench(name: str, deliver_events: DeliverEvents) -> Workbench:
        return Workbench.of(
            Settings(home=home / name), archive_block=lambda block: (block, {}), deliver_events=deliver_events
        )

    def once(workbench: Workbench) -> float:
        execution_id = str(uuid4())
        begun(workbench, record_of(execution_id, Status.EXECUTING))
        end = Ending(Status.COMPLETED, None, datetime.now(UTC), Observer.HOOK)
        return seconds(lambda: workbench.seal(execution_id, end))

    silent, telling = bench("silent", discard_events), bench("telling", prefect_events.TerminalEvents)
    for _ in range(5):
        once(silent), once(telling)
    times = [(once(silent), once(telling)) for _ in range(pairs)]
    added = statistics.median(told - untold for untold, told in times)
    base = statistics.median(untold for untold, _ in times)
    row("telling the end adds to sealing", f"{added * 1000:.1f} ms", f"untold {base * 1000:.1f} ms", "<= 5 ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EXECUTIONS_HOME"] = folder
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
        row("measure", "figure", "against", "goal")
        a_status_change(arguments.rounds)
        the_end(arguments.rounds)


if __name__ == "__main__":
    main()
