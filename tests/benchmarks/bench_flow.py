"""What recording adds to a flow run, and what it costs by itself.

Run it with a Prefect server: ``PREFECT_API_URL=… python tests/benchmarks/bench_flow.py``;
without one it starts Prefect's embedded server, with a database of its own. What
it writes goes where temporary files go (TMPDIR).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from places import quiet_place

from prefect_executions.cli.arguments import set_defaults


def seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def row(measure: str, figure: str, against: str, goal: str) -> None:
    print(f"| {measure} | {figure} | {against} | {goal} |")


def added_to_a_flow_run(pairs: int) -> None:
    """Median of interleaved pairs: the same function as a bare flow and as a Method, one small output.

    The call returns when the bundle is sealed; archive, ledger and events follow beside
    what comes next. Both are told, and no run of a pair is timed while they go on.
    """
    from prefect import flow  # noqa: PLC0415 - after the environment is set
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings  # noqa: PLC0415 - the same

    from prefect_executions import background, current_execution, method  # noqa: PLC0415 - the same

    scratch = Path(os.environ["EXECUTIONS_HOME"]) / "bare.txt"

    @flow
    def bare(number: int) -> int:
        scratch.write_text(str(number))
        return number

    @method(version="1.0.0")
    def kept(number: int) -> int:
        current_execution().output("number.txt").write_text(str(number))
        return number

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        for number in range(5):
            bare(number), kept(number), background.drain()
        times = [(seconds(lambda: bare(1)), seconds(lambda: kept(1)), seconds(background.drain)) for _ in range(pairs)]
    base = statistics.median(without for without, _, _ in times)
    added = statistics.median(kept - without for without, kept, _ in times)
    whole = statistics.median(kept + rest - without for without, kept, rest in times)
    against = f"bare flow {base * 1000:.1f} ms"
    row("wall time added to a flow run", f"{added * 1000:.1f} ms, {added / base:.2f} x", against, "<= 15 ms")
    row("the same until it is archived, indexed and told", f"{whole * 1000:.1f} ms, {whole / base:.2f} x", against, "-")


def recording_alone(rounds: int) -> None:
    """Open, advance, gather, seal, archive to a folder, ledger row: no Prefect anywhere."""
    from datetime import UTC, datetime  # noqa: PLC0415 - beside its one use
    from uuid import uuid4  # noqa: PLC0415 - the same

    from prefect_executions.archive.archive import Archive  # noqa: PLC0415 - timed apart from its import
    from prefect_executions.ledger.ledger import Ledger  # noqa: PLC0415 - the same
    from prefect_executions.lifecycle.history import advance, new_job_status  # noqa: PLC0415 - the same
    from prefect_executions.lifecycle.status import Observer, Status  # noqa: PLC0415 - the same
    from prefect_executions.objectstore.open import open_store  # noqa: PLC0415 - timed apart from its import
    from prefect_executions.workbench.sealing import Ending  # noqa: PLC0415 - the same
    from prefect_executions.workbench.workbench import Workbench  # noqa: PLC0415 - the same
    from records import a_job_status, a_record, a_request  # noqa: PLC0415 - from tests/

    home = Path(os.environ["EXECUTIONS_HOME"])
    workbench = Workbench(
        home / "alone",
        open_archive=lambda: Archive(open_store((home / "alone-archive").as_uri())),
        open_ledger=lambda: Ledger.open(f"sqlite:///{home / 'alone.db'}"),
    )

    def once() -> None:
        execution_id, now = str(uuid4()), datetime.now(UTC)
        status = new_job_status(execution_id, "segment-coins", status=Status.CREATED, at=now, observer=Observer.PREFECT)
        record = a_record(
            job_status=advance(status, Status.STARTED, now, observer=Observer.PREFECT),
            request=a_request(execution_id=execution_id, files=(), values={"threshold": 0.3}, relatives=()),
            metrics=None,
        )
        bundle = workbench.begin(record, {})
        bundle.write_document(advance(record.job_status, Status.EXECUTING, now, observer=Observer.HOOK))
        bundle.output_path("number.txt").write_text("1")
        workbench.gather(bundle, record.request.archive)
        workbench.seal(execution_id, Ending(Status.COMPLETED, None, now, Observer.HOOK))

    assert a_job_status
    for _ in range(5):
        once()
    figure = statistics.median(seconds(once) for _ in range(rounds))
    row("the recording itself without Prefect", f"{figure * 1000:.1f} ms", "-", "<= 10 ms")


def importing(rounds: int) -> None:
    """Fresh interpreters, interleaved."""
    import subprocess  # noqa: PLC0415 - beside its one use

    def fresh(statement: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-c", statement], check=True))

    pairs = [(fresh("import prefect"), fresh("import prefect_executions")) for _ in range(rounds)]
    whole = [(fresh("from prefect import flow"), fresh("from prefect_executions import method")) for _ in range(rounds)]
    for measure, times in (("import prefect_executions", pairs), ("from prefect_executions import method", whole)):
        base, ours = (statistics.median(column) for column in zip(*times, strict=True))
        row(measure, f"{ours / base:.2f} x ({ours:.2f} s)", f"prefect {base:.2f} s", "<= 1.1 x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100)
    arguments = parser.parse_args()
    with quiet_place() as place:
        os.environ["EXECUTIONS_HOME"] = str(place.folder)
        os.environ["PREFECT_HOME"] = str(place.folder / "prefect")
        os.environ.setdefault("PREFECT_LOGGING_COLORS", "false")
        set_defaults()
        row("measure", "figure", "against", "goal")
        row("the making of an empty file where it is measured", f"{place.making:.3f} ms", "-", "-")
        recording_alone(arguments.pairs)
        added_to_a_flow_run(arguments.pairs)
        importing(5)


if __name__ == "__main__":
    main()
