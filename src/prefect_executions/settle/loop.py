"""A round of settling: compare Prefect, the archive and this workbench, and seal what has ended.

Law: a round is idempotent, and rounds may race. The first seal wins; the losers
read it. A round starts at a watermark in the archive, so its cost is that of
recent executions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, ParamSpec

from prefect_executions.archive.marks import LONG_AGO, SKEW
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.errors import ArchiveError, ExecutionsError, LedgerError, OrchestratorError
from prefect_executions.executions.ids import ExecutionId
from prefect_executions.lifecycle.history import JobStatus, ObservedState
from prefect_executions.operations.checkpoints import write_checkpoints
from prefect_executions.prefect_api import events as prefect_events
from prefect_executions.prefect_api import flow_runs
from prefect_executions.prefect_api import queries as prefect_queries
from prefect_executions.settings import Settings
from prefect_executions.settle.decide import Death, Decision, Judgement, judge
from prefect_executions.settle.observe import Snapshot, flow_run_of, observe, take_snapshot
from prefect_executions.settle.seal import seal, seal_unstarted
from prefect_executions.workbench.heartbeat import PERIOD
from prefect_executions.workbench.recovery import Settled, restore_changed, settle_all
from prefect_executions.workbench.workbench import Outcome, Workbench

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun

P = ParamSpec("P")

OVERLAP = timedelta(minutes=2)
"""How far behind the watermark a round starts: end times come from Prefect's clock, which may be several servers'."""

SECOND_LOOK = 1.5 * PERIOD
"""Seconds after which an execution that seems dead is observed again, before it is declared dead."""

_SECOND_LOOK_IF_GONE = 2.0
"""Seconds instead of `SECOND_LOOK` if the process is gone: its supervisor reports the exit code within a second."""

_CLOCK_PRECISION = timedelta(seconds=2)
"""How exactly the clocks of Prefect and of the store compare: both have whole seconds, read at two moments."""


def settle(
    workbench: Workbench,
    settings: Settings,
    *,
    since: datetime | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[Settled]:
    """Run one round; yield the result of each execution that was not complete. A failed one does not stop the round.

    *since* replaces the watermark: everything that ended after it is compared again.
    """
    yield from restore_changed(workbench, datetime.now(UTC))  # before a changed file could be archived
    unfinished = []
    for result in settle_all(workbench):
        if result.result == "open":
            unfinished.append(result.id)
        else:
            yield result
    try:
        yield from _Round(workbench, settings, unfinished, pause).run(since)
    except (ArchiveError, LedgerError, OrchestratorError) as error:
        yield from (Settled(execution_id, "open", str(error)) for execution_id in unfinished)
        yield Settled("", "failed", str(error))
    else:
        yield from _write_checkpoints(workbench, since)
    finally:
        prefect_events.flush_events()


def settle_dead(
    workbench: Workbench, settings: Settings, execution_ids: Sequence[str], death: Death
) -> Iterator[Settled]:
    """Seal executions of this workbench whose process has just died; yield the result of each.

    Raises:
        ArchiveError: If the archive is unavailable.
        OrchestratorError: If Prefect's API is unavailable.
    """
    unfinished = []
    for execution_id in execution_ids:
        if OpenBundle.load(workbench.folder, execution_id).read(JobStatus).execution_status.terminal:
            yield from _result_of(execution_id, workbench.settle, execution_id)
        else:
            unfinished.append(execution_id)
    if unfinished:
        snapshot = take_snapshot(workbench, unfinished)
        work = _Round(workbench, settings, unfinished, time.sleep)
        for execution_id in unfinished:
            yield from _result_of(execution_id, work.seal_announced, snapshot, execution_id, death)
    prefect_events.flush_events()


def _write_checkpoints(workbench: Workbench, since: datetime | None) -> Iterator[Settled]:
    try:
        write_checkpoints(workbench, since=since)
    except ExecutionsError as error:
        yield Settled("", "failed", f"no checkpoint was written: {error}")


class _Round:
    def __init__(
        self, workbench: Workbench, settings: Settings, unfinished: Sequence[str], pause: Callable[[float], None]
    ) -> None:
        self.workbench = workbench
        self.settings = settings
        self.unfinished = unfinished
        self.pause = pause
        self.postponed: list[datetime] = []
        """End times of executions that were left, so that the watermark does not pass them."""

    def run(self, since: datetime | None) -> Iterator[Settled]:
        self.workbench.archive_identity.claim()
        marks = self.workbench.archive.marks
        snapshot = take_snapshot(self.workbench, self.unfinished)
        watermark = marks.settled_until()
        since = since or (watermark - OVERLAP if watermark else LONG_AGO)
        prefect_queries.mark_flows({run.flow_id for run in snapshot.runs.values()})
        flows = sorted(prefect_queries.method_flows(watermark and watermark - SKEW))
        yield from self._announced(snapshot)
        sealed = {mark.id: mark.at + snapshot.clock_offset for mark in marks.sealed_since(since - SKEW)}
        yield from self._unannounced(snapshot, flows, since, sealed)
        yield from self._index(sealed.keys())
        marks.settle_until(min([*self.postponed, snapshot.now]))

    def _announced(self, snapshot: Snapshot) -> Iterator[Settled]:
        """Settle the executions that have a bundle on this machine or an open mark in the archive."""
        ended = []
        for execution_id in snapshot.ids:
            try:
                if execution_id not in snapshot.reachable and self._end_in_archive(execution_id):
                    continue
            except ArchiveError as error:
                yield Settled(execution_id, "failed", str(error))
                continue
            run = snapshot.runs.get(flow_run_of(execution_id))
            state = flow_runs.observed_state(run.state) if run and run.state else None
            result, judgement = self._judge(snapshot, execution_id, state)
            if judgement is not None and judgement.decision in {Decision.END, Decision.SEAL}:
                ended.append((execution_id, judgement))
            elif result is not None:
                yield result
        yield from self._second_look(snapshot, ended)

    def _second_look(self, snapshot: Snapshot, ended: list[tuple[str, Judgement]]) -> Iterator[Settled]:
        dead = [execution_id for execution_id, judgement in ended if judgement.decision is Decision.END]
        if dead:
            gone = all(snapshot.silences.get(each) is None or self._is_gone(snapshot, each) for each in dead)
            self.pause(_SECOND_LOOK_IF_GONE if gone else SECOND_LOOK)
            snapshot = take_snapshot(self.workbench, self.unfinished)
        for execution_id, _ in ended:
            yield from _result_of(execution_id, self.seal_announced, snapshot, execution_id)

    def _is_gone(self, snapshot: Snapshot, execution_id: str) -> bool:
        with suppress(ExecutionsError):  # its record is damaged meanwhile; sealing it reports that
            return observe(self.workbench, snapshot, execution_id, None).alive is False
        return False

    def seal_announced(self, snapshot: Snapshot, execution_id: str, death: Death | None = None) -> Outcome | None:
        """Seal an execution of *snapshot* if it has ended; *death* is that of its process, if it was observed."""
        run_id = flow_run_of(execution_id)
        states = flow_runs.generation_history(execution_id) if run_id in snapshot.runs else ()
        observation = observe(self.workbench, snapshot, execution_id, states[-1] if states else None)
        judgement = judge(observation._replace(death=death))
        if judgement.end is None or judgement.decision not in {Decision.END, Decision.SEAL}:
            return None
        if judgement.decision is Decision.END:
            prefect_queries.force_terminal(run_id, judgement.why, cancelled=judgement.cancelled)
            states = flow_runs.generation_history(execution_id)
        return seal(self.workbench, snapshot, execution_id, states, judgement, settings=self.settings)

    def _judge(
        self, snapshot: Snapshot, execution_id: str, state: ObservedState | None
    ) -> tuple[Settled | None, Judgement | None]:
        try:
            judgement = judge(observe(self.workbench, snapshot, execution_id, state))
        except ExecutionsError as error:
            self._postpone(state)
            return Settled(execution_id, "failed", str(error)), None
        if judgement.decision is Decision.LEAVE:
            self._postpone(state)
            return Settled(execution_id, "open", judgement.why), judgement
        if judgement.decision is Decision.REPORT:
            return Settled(execution_id, "report", judgement.why), judgement
        return None, judgement

    def _postpone(self, state: ObservedState | None) -> None:
        if state is not None and state.state.is_terminal:
            self.postponed.append(state.time)

    def _unannounced(
        self, snapshot: Snapshot, flows: list[UUID], since: datetime, sealed: Mapping[str, datetime]
    ) -> Iterator[Settled]:
        """Settle the runs of Methods that are active or have ended, but left nothing in the archive."""
        seen: set[UUID] = set()
        for run in (
            *prefect_queries.ended_since(flows, since),
            *prefect_queries.open_runs(flows),
            *prefect_queries.open_runs(flows, late=True),
        ):
            if run.state is None or run.id in seen:
                continue
            seen.add(run.id)
            try:
                unsealed = [*self._unsealed_generations(run, flow_runs.observed_state(run.state), sealed)]
            except ArchiveError as error:
                yield Settled(str(run.id), "failed", str(error))
                continue
            for execution_id in unsealed:
                if execution_id not in snapshot.silences and execution_id not in snapshot.reachable:
                    yield from self._settle_unannounced(snapshot, run, execution_id)

    def _unsealed_generations(self, run: FlowRun, last: ObservedState, sealed: Mapping[str, datetime]) -> Iterator[str]:
        """Yield the executions of *run* without a seal, the first generation last, which the next round sees."""
        first = str(run.id)
        ended = sealed.get(first) or self._end_in_archive(first)
        if ended is not None and last.time <= ended + _CLOCK_PRECISION:
            return
        if ended is None and not last.state.is_terminal:
            yield first
            return
        for generation in range(len(flow_runs.generations(flow_runs.state_history(run.id))), 1, -1):
            execution_id = str(ExecutionId(first, generation))
            if execution_id not in sealed and self._end_in_archive(execution_id) is None:
                yield execution_id
        if ended is None:
            yield first

    def _settle_unannounced(self, snapshot: Snapshot, run: FlowRun, execution_id: str) -> Iterator[Settled]:
        snapshot = snapshot._replace(runs={**snapshot.runs, run.id: run})
        state = flow_runs.observed_state(run.state) if run.state else None
        result, judgement = self._judge(snapshot, execution_id, state)
        if judgement is None or judgement.decision in {Decision.LEAVE, Decision.REPORT}:
            if result is not None and result.result != "open":
                yield result
            return
        if run.run_count and prefect_events.has_events(execution_id):
            yield Settled(execution_id, "report", "its record is in another archive; run settle there")
            return
        for result in _result_of(execution_id, self._seal_unannounced, snapshot, run, execution_id, judgement):
            if result.result == "failed" and run.end_time:
                self.postponed.append(run.end_time)
            yield result

    def _seal_unannounced(self, snapshot: Snapshot, run: FlowRun, execution_id: str, judgement: Judgement) -> Outcome:
        if judgement.decision is Decision.END:
            prefect_queries.force_terminal(run.id, judgement.why, cancelled=judgement.cancelled)
        states = flow_runs.generation_history(execution_id)
        if states and run.state and states[-1].state.id != run.state.id and judgement.decision is Decision.SEAL:
            judgement = judge(observe(self.workbench, snapshot, execution_id, states[-1]))  # an earlier generation
        return seal_unstarted(
            self.workbench, run, execution_id, states=states, judgement=judgement, settings=self.settings
        )

    def _index(self, sealed: Collection[str]) -> Iterator[Settled]:
        """Index the executions that other machines sealed, which may not reach the ledger."""
        for execution_id in sorted(self.workbench.ledger.unarchived(sealed)):
            yield from _result_of(execution_id, self._index_unless_removed, execution_id)

    def _index_unless_removed(self, execution_id: str) -> Outcome | None:
        archive = self.workbench.archive
        if archive.seal_of(execution_id) is None and archive.removed(execution_id):
            return None  # its mark is left
        return self.workbench.index(execution_id)

    def _end_in_archive(self, execution_id: str) -> datetime | None:
        """Return when a sealed execution ended or a removed one was removed; repair marks that are stale or lost."""
        record = self.workbench.archive.seal_of(execution_id)
        if record is None:
            removal = self.workbench.archive.removed(execution_id)
            return removal.removed if removal else None
        ended = record.finished or LONG_AGO
        self.workbench.archive.marks.close(execution_id, record.manifest_sha256, ended)
        return ended


def _result_of(
    execution_id: str, work: Callable[P, Outcome | None], *args: P.args, **kwargs: P.kwargs
) -> Iterator[Settled]:
    try:
        outcome = work(*args, **kwargs)
    except ExecutionsError as error:
        yield Settled(execution_id, "failed", str(error))
    else:
        if outcome is not None:
            yield Settled.of(execution_id, outcome)
