"""Seal what was judged to have ended, from the bundle here or from what the archive and Prefect know."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.capture.processes import end_carriers
from prefect_executions.errors import NotFoundError, SecretError
from prefect_executions.executions.record import Instance
from prefect_executions.lifecycle.following import follow
from prefect_executions.lifecycle.history import Seen
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.prefect_api import cancelling
from prefect_executions.prefect_api import finish as prefect_finish
from prefect_executions.settings import ArchiveLevel
from prefect_executions.settle.decide import Judgement
from prefect_executions.settle.observe import Known, flow_run_of
from prefect_executions.settle.unstarted import unstarted_record
from prefect_executions.workbench.leftovers import end_runs
from prefect_executions.workbench.recovering import recover, restore
from prefect_executions.workbench.recovery import bring_back
from prefect_executions.workbench.sealing import Ending
from prefect_executions.workbench.workbench import Outcome, Workbench

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


def seal(
    workbench: Workbench,
    known: Known,
    execution_id: str,
    states: Sequence[Seen],
    judgement: Judgement,
    *,
    archive: ArchiveLevel,
) -> Outcome:
    """Seal an execution whose record was opened, as *judgement* says it ended; *states* are Prefect's of this life.

    Where the record was lost, it is made of what Prefect knows, for the level *archive*.

    Raises:
        NotFoundError: If neither this workbench nor the archive has its record, nor Prefect the run.
        BundleError: If it cannot be sealed now.
        ArchiveError: If the archive cannot be asked.
    """
    end, run = _end(judgement, states), known.runs.get(flow_run_of(execution_id))
    if execution_id in known.here:
        if end.status is Status.CANCELLED or end.reason in {Reason.CRASHED, Reason.LOST}:
            bundle = OpenBundle.load(known.here[execution_id].folder, execution_id)
            end_carriers(execution_id, instance=bundle.read(Instance))
        return known.here[execution_id].seal(
            execution_id, end, states=states, first=lambda bundle: (*end_runs(bundle), *_make_up(bundle, run))
        )
    suspended = bring_back(workbench, execution_id)
    if suspended is not None:
        suspended.mark_stand_in()
        return workbench.seal(execution_id, end, states=states)
    recovered = recover(workbench.archive, execution_id)
    if recovered is None and run is not None and states:
        return seal_unstarted(workbench, run, execution_id, states=states, judgement=judgement, archive=archive)
    if recovered is None:
        raise NotFoundError(f"the archive has no opening record of {execution_id}, and neither has this workbench")
    return workbench.stand_in(
        replace(recovered.record, job_status=follow(recovered.record.job_status, states)),
        recovered.code,
        end,
        fill=partial(restore, workbench.archive, recovered),
        has_outputs=recovered.outputs is not None,
    )


def seal_unstarted(
    workbench: Workbench,
    run: FlowRun,
    execution_id: str,
    *,
    states: Sequence[Seen],
    judgement: Judgement,
    archive: ArchiveLevel,
) -> Outcome:
    """Seal a life of a run of which nothing was ever recorded, from what Prefect knows; *states* are of that life.

    Raises:
        BundleError: If it cannot be sealed now.
        ArchiveError: If the archive cannot be asked.
    """
    record = unstarted_record(run, execution_id, states, archive)
    return workbench.stand_in(record, {}, _end(judgement, states))


def _end(judgement: Judgement, states: Sequence[Seen]) -> Ending:
    """The end as judged, with the time and the state that Prefect has for it now."""
    assert judgement.end is not None  # noqa: S101 - only such a judgement is acted on
    last = states[-1] if states else None
    if last is None or last.state.type not in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}:
        return judgement.end
    end = judgement.end._replace(at=last.time, prefect_state=last.state)
    asked = cancelling.asked_to_cancel(states) if end.reason is Reason.CRASHED else None
    if asked is None:
        return end
    # Who is killed because somebody asked for it was cancelled, whatever its supervisor calls it.
    return end._replace(status=Status.CANCELLED, reason=None, message=asked.message or end.message)


def _make_up(bundle: OpenBundle, run: FlowRun | None) -> tuple[str, ...]:
    """Do what the process could not do at its end; where a secret cannot be told any more the logs are not kept."""
    try:
        prefect_finish.make_up(bundle, run.parameters if run else {}, os.environ)
    except SecretError as error:
        aside = bundle.withhold_logs()
        return (f"the logs may hold a secret that cannot be told any more ({error}); they lie in {aside}",)
    return ()
