"""Which archived executions still reproduce: one round of `executions reproduce` as a flow, to be run each night.

It is no Method: what it starts are replays, each with its own record and verdict.
"""

import sys
from datetime import UTC, datetime, timedelta

from prefect import State, flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.states import Failed

from prefect_executions.comparison.verdict import Grade
from prefect_executions.operations.reproduce import ReplayGoal, Reproduced, reproducible
from prefect_executions.operations.reproduce import reproduce as replay_each
from prefect_executions.prefect_api import blocks
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
) -> dict[str, str] | State[None]:
    """Replay the newest executions that completed, and fail if one of them does not reach the grade.

    Args:
        method: Those of the Method with this id; of all Methods when left out.
        days: Those of the last so many days; of all time when left out.
        most: How many are replayed.
        grade: What each must reach.
        tolerance: The relative difference up to which two numbers are the same.
        isolated: Each in a fresh environment with the recorded packages.
    """
    log, reader = get_run_logger(), Catalog(Workbench.of(Settings.read(), archive_block=blocks.archive_block))
    since = datetime.now(UTC) - timedelta(days=days) if days is not None else None
    ids = reproducible(reader, method=method, since=since, limit=most)
    done = []
    goal = ReplayGoal(grade=grade, tolerance=tolerance, isolated=isolated)
    for one in replay_each(reader, ids, goal, command=COMMAND):
        (log.info if one.reached else log.warning)("%s %s %s %s", one.id, one.method, one.grade or "none", _told(one))
        done.append(one)
    if done:
        create_table_artifact([_row(one) for one in done], key="reproduce", description=f"Wanted: {grade}")
    short = [one.id for one in done if not one.reached]
    if short:
        return Failed(message=f"{len(short)} of {len(done)} executions did not reach {grade}: {', '.join(short)}")
    return {one.id: str(one.grade) for one in done}


def _row(one: Reproduced) -> dict[str, str]:
    return {"execution": one.id, "method": one.method, "grade": one.grade or "none", "what differs": _told(one)}


def _told(one: Reproduced) -> str:
    return one.problem or "; ".join(one.differs)


if __name__ == "__main__":
    reproduce()
