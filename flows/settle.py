"""Seal what has ended, whatever died: one round of `executions settle` as a flow, to be run each minute and on a crash.

It is no Method: it keeps no record of itself.
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
    """Seal what has ended, and archive and index what is sealed; say how many executions had which result.

    Args:
        days: Look again at all that ended in so many days, instead of what ended since the last round.
    """
    settings, log = Settings.read(), get_run_logger()
    workbench = Workbench.of(settings, archive_block=blocks.archive_block, tell=prefect_events.TerminalEvents)
    since = datetime.now(UTC) - timedelta(days=days) if days is not None else None
    results: Counter[str] = Counter()
    for one in settle_round(workbench, settings, since=since):
        results[one.result] += 1
        if one.result != "open":
            log.info("%s %s %s %s", one.id, one.result, one.status or "", one.message or "")
    return dict(results)


if __name__ == "__main__":
    settle()
