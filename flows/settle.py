"""Seal executions that ended without a seal: a round of `executions settle` as a flow, each minute and on a crash.

The flow is not a Method and leaves no record.
"""

from collections import Counter
from datetime import UTC, datetime, timedelta

from prefect import flow, get_run_logger

from prefect_executions.prefect_api import blocks
from prefect_executions.prefect_api import events as prefect_events
from prefect_executions.settings import Settings
from prefect_executions.settle.loop import settle as settle_round
from prefect_executions.workbench.workbench import Workbench


@flow(name="settle", log_prints=False)
def settle(days: float | None = None) -> dict[str, int]:
    """Seal ended executions, archive and index sealed ones, and return the number of executions for each result.

    Args:
        days: Check everything that ended in the last so many days, instead of only since the last round.
    """
    settings, log = Settings.read(), get_run_logger()
    workbench = Workbench.of(settings, archive_block=blocks.archive_block, deliver_events=prefect_events.TerminalEvents)
    since = datetime.now(UTC) - timedelta(days=days) if days is not None else None
    results: Counter[str] = Counter()
    for settled in settle_round(workbench, settings, since=since):
        results[settled.result] += 1
        if settled.result != "open":
            log.info("%s %s %s %s", settled.id, settled.result, settled.status or "", settled.message or "")
    return dict(results)


if __name__ == "__main__":
    settle()
