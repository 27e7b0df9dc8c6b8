"""Check which archived executions still reproduce: `executions reproduce` as a flow, for a nightly schedule.

The flow itself is not a Method. Each replay that it starts has its own record and verdict.
"""

import sys
from datetime import UTC, datetime, timedelta

from prefect import State, flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.states import Failed

from prefect_executions.comparison.verdict import Grade, ReplayGoal
from prefect_executions.operations.reproduce import Reproduced, reproducible
from prefect_executions.operations.reproduce import reproduce as replay_each
from prefect_executions.prefect_api import blocks
from prefect_executions.query.filter import Filter
from prefect_executions.settings import Settings
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.workbench import Workbench

COMMAND = (sys.executable, "-m", "prefect_executions.cli")


@flow(name="reproduce", log_prints=False)
def reproduce(
    *,
    method: str | None = None,
    days: float | None = None,
    most: int = 20,
    grade: Grade = Grade.REPRODUCE,
    tolerance: float = 0.0,
    isolated: bool = False,
    yes: bool = False,
) -> dict[str, str] | State[None]:
    """Replay the newest completed executions, and fail if any of them misses the grade.

    Args:
        method: Only executions of the Method with this id.
        days: Only executions of the last so many days.
        most: The largest number of executions to replay.
        grade: The grade that each execution must reach.
        tolerance: The relative difference up to which two numbers are equal.
        isolated: Run each replay in a fresh environment with the recorded packages.
        yes: Also run code that was sealed on another machine and is not signed by a trusted key.
    """
    log, reader = get_run_logger(), Catalog(Workbench.of(Settings.read(), archive_block=blocks.archive_block))
    since = datetime.now(UTC) - timedelta(days=days) if days is not None else None
    ids = reproducible(reader, Filter(method=method, since=since), limit=most)
    results = []
    goal = ReplayGoal(grade=grade, tolerance=tolerance, isolated=isolated)
    for result in replay_each(reader, ids, goal, command=COMMAND, more=["--yes"] if yes else []):
        report = log.info if result.reached else log.warning
        report("%s %s %s %s", result.id, result.method, result.grade or "none", _differences(result))
        results.append(result)
    if results:
        create_table_artifact([_row(result) for result in results], key="reproduce", description=f"Required: {grade}")
    missed = [result.id for result in results if not result.reached]
    if missed:
        return Failed(message=f"{len(missed)} of {len(results)} executions did not reach {grade}: {', '.join(missed)}")
    return {result.id: str(result.grade) for result in results}


def _row(result: Reproduced) -> dict[str, str]:
    differences = _differences(result)
    grade = result.grade or "none"
    return {"execution": result.id, "method": result.method, "grade": grade, "what differs": differences}


def _differences(result: Reproduced) -> str:
    return result.problem or "; ".join(result.differs)


if __name__ == "__main__":
    reproduce()
