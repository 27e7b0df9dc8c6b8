"""One round of settling: compare Prefect, the archive and this workbench, and seal what has ended.

Law: a round may be killed and run again, and several may run at once: whoever
seals first wins, and the others read his seal. It works from a watermark in the
archive, so that its cost is that of what happened lately.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, ParamSpec

from prefect_executions.archive.marks import LONG_AGO, SKEW
from prefect_executions.errors import ArchiveError, ExecutionsError, LedgerError, OrchestratorError
from prefect_executions.executions.ids import ExecutionId
from prefect_executions.lifecycle.history import ObservedState
from prefect_executions.operations.checkpoints import write_checkpoints
from prefect_executions.prefect_api import events as prefect_events
from prefect_executions.prefect_api import flow_runs
from prefect_executions.prefect_api import queries as prefect_queries
from prefect_executions.settings import Settings
from prefect_executions.settle.decide import Decision, Judgement, judge
from prefect_executions.settle.observe import Snapshot, flow_run_of, observe, take_snapshot
from prefect_executions.settle.seal import seal, seal_unstarted
from prefect_executions.workbench.heartbeat import PERIOD
from prefect_executions.workbench.recovery import Settled, settle_all
from prefect_executions.workbench.workbench import Outcome, Workbench

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun

P = ParamSpec("P")

OVERLAP = timedelta(minutes=2)
"""How far behind the watermark a round looks again: end times are by Prefect's clock, whose servers may be several."""

SECOND_LOOK = 1.5 * PERIOD
"""Seconds after which an execution that seems dead is looked at again, before it is declared so."""

_AT_ONCE = 2.0
"""The same where its process is known to be gone: its supervisor tells the exit code within a second."""

_TO_THE_SECOND = timedelta(seconds=2)
"""How exactly the clocks of Prefect and of the store are compared: both tell seconds, at two moments."""


def settle(
    workbench: Workbench,
    settings: Settings,
    *,
    since: datetime | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[Settled]:
    """Go one round: yield what became of each execution that is not all done; one that fails hinders no other.

    *since* looks again at all that ended after that time, instead of after the watermark.
    """
    unfinished = []
    for told in settle_all(workbench):
        if told.result == "open":
            unfinished.append(told.id)
        else:
            yield told
    try:
        yield from _Round(workbench, settings, pause).go(unfinished, since)
    except (ArchiveError, LedgerError, OrchestratorError) as error:
        yield from (Settled(execution_id, "open", str(error)) for execution_id in unfinished)
        yield Settled("", "failed", str(error))
    else:
        yield from _checkpointed(workbench, since)
    finally:
        prefect_events.flush_events()


def _checkpointed(workbench: Workbench, since: datetime | None) -> Iterator[Settled]:
    try:
        write_checkpoints(workbench, since=since)
    except ExecutionsError as error:
        yield Settled("", "failed", f"no checkpoint was written: {error}")


class _Round:
    def __init__(self, workbench: Workbench, settings: Settings, pause: Callable[[float], None]) -> None:
        self.workbench = workbench
        self.settings = settings
        self.pause = pause
        self.unfinished: list[str] = []
        self.waiting: list[datetime] = []
        """When those ended that had to be left, so that the watermark does not pass them."""

    def go(self, unfinished: list[str], since: datetime | None) -> Iterator[Settled]:
        self.unfinished = unfinished
        marks = self.workbench.archive.marks
        known = take_snapshot(self.workbench, unfinished)
        mark = marks.settled_until()
        since = since or (mark - OVERLAP if mark else LONG_AGO)
        prefect_queries.mark_flows({run.flow_id for run in known.runs.values()})
        flows = sorted(prefect_queries.method_flows(mark and mark - SKEW))
        yield from self._announced(known)
        sealed = {one.id: one.at + known.ahead for one in marks.sealed_since(since - SKEW)}
        yield from self._unannounced(known, flows, since, sealed)
        yield from self._index(sealed.keys())
        marks.settle_until(min([*self.waiting, known.now]))

    def _announced(self, known: Snapshot) -> Iterator[Settled]:
        doubtful = []
        for execution_id in known.ids:
            if execution_id not in known.here and self._sealed_when(execution_id):
                continue
            run = known.runs.get(flow_run_of(execution_id))
            state = flow_runs.observed_state(run.state) if run and run.state else None
            told, judgement = self._judge(known, execution_id, state)
            if judgement is not None and judgement.act in {Decision.END, Decision.SEAL}:
                doubtful.append((execution_id, judgement))
            elif told is not None:
                yield told
        yield from self._second_look(known, doubtful)

    def _second_look(self, known: Snapshot, doubtful: list[tuple[str, Judgement]]) -> Iterator[Settled]:
        ends = [one for one, judgement in doubtful if judgement.act is Decision.END]
        if ends:
            gone = all(known.silences.get(one) is None or self._gone(known, one) for one in ends)
            self.pause(_AT_ONCE if gone else SECOND_LOOK)
            known = take_snapshot(self.workbench, self.unfinished)
        for execution_id, _ in doubtful:
            yield from self._act(known, execution_id)

    def _gone(self, known: Snapshot, execution_id: str) -> bool:
        return observe(self.workbench, known, execution_id, None).alive is False

    def _act(self, known: Snapshot, execution_id: str) -> Iterator[Settled]:
        def act() -> Outcome | None:
            run_id = flow_run_of(execution_id)
            states = flow_runs.generation_history(execution_id) if run_id in known.runs else ()
            judgement = judge(observe(self.workbench, known, execution_id, states[-1] if states else None))
            if judgement.end is None or judgement.act not in {Decision.END, Decision.SEAL}:
                return None
            if judgement.act is Decision.END:
                prefect_queries.force_terminal(run_id, judgement.why, cancelled=judgement.cancelled)
                states = flow_runs.generation_history(execution_id)
            level = self.settings.archive_level
            return seal(self.workbench, known, execution_id, states, judgement, archive=level)

        told = _guarded(execution_id, act)
        if told is not None:
            yield told

    def _judge(
        self, known: Snapshot, execution_id: str, state: ObservedState | None
    ) -> tuple[Settled | None, Judgement | None]:
        try:
            judgement = judge(observe(self.workbench, known, execution_id, state))
        except ExecutionsError as error:
            if state is not None and state.state.is_terminal:
                self.waiting.append(state.time)
            return Settled(execution_id, "failed", str(error)), None
        if judgement.act is Decision.LEAVE:
            if state is not None and state.state.is_terminal:
                self.waiting.append(state.time)
            return Settled(execution_id, "open", judgement.why), judgement
        if judgement.act is Decision.REPORT:
            return Settled(execution_id, "report", judgement.why), judgement
        return None, judgement

    def _unannounced(
        self, known: Snapshot, flows: list[UUID], since: datetime, sealed: Mapping[str, datetime]
    ) -> Iterator[Settled]:
        """Runs of Methods that ended, or are under way, and of which the archive knows nothing."""
        looked_at: set[UUID] = set()
        for run in (
            *prefect_queries.ended_since(flows, since),
            *prefect_queries.open_runs(flows),
            *prefect_queries.open_runs(flows, late=True),
        ):
            if run.state is None or run.id in looked_at:
                continue
            looked_at.add(run.id)
            for execution_id in self._unsealed_generations(run, flow_runs.observed_state(run.state), sealed):
                if execution_id not in known.silences and execution_id not in known.here:
                    yield from self._one_unannounced(known, run, execution_id)

    def _unsealed_generations(self, run: FlowRun, last: ObservedState, sealed: Mapping[str, datetime]) -> Iterator[str]:
        """The executions of a run that have no seal; whoever dies amid them leaves the first, which the next sees."""
        first = str(run.id)
        when = sealed.get(first) or self._sealed_when(first)
        if when is not None and last.time <= when + _TO_THE_SECOND:
            return
        if when is None and not last.state.is_terminal:
            yield first
            return
        for generation in range(len(flow_runs.generations(flow_runs.state_history(run.id))), 1, -1):
            execution_id = str(ExecutionId(first, generation))
            if execution_id not in sealed and self._sealed_when(execution_id) is None:
                yield execution_id
        if when is None:
            yield first

    def _one_unannounced(self, known: Snapshot, run: FlowRun, execution_id: str) -> Iterator[Settled]:
        known = known._replace(runs={**known.runs, run.id: run})
        told, judgement = self._judge(known, execution_id, flow_runs.observed_state(run.state) if run.state else None)
        if judgement is None or judgement.act in {Decision.LEAVE, Decision.REPORT}:
            if told is not None and told.result != "open":
                yield told
            return

        if run.run_count and prefect_events.has_events(execution_id):
            yield Settled(execution_id, "report", "it is kept in another archive, whose settle it is left to")
            return

        def act() -> Outcome | None:
            ended = judgement
            if ended.act is Decision.END:
                prefect_queries.force_terminal(run.id, ended.why, cancelled=ended.cancelled)
            states = flow_runs.generation_history(execution_id)
            if states and run.state and states[-1].state.id != run.state.id and ended.act is Decision.SEAL:
                ended = judge(observe(self.workbench, known, execution_id, states[-1]))  # an earlier generation
            level = self.settings.archive_level
            return seal_unstarted(self.workbench, run, execution_id, states=states, judgement=ended, archive=level)

        done = _guarded(execution_id, act)
        if done is not None:
            if done.result == "failed" and run.end_time:
                self.waiting.append(run.end_time)
            yield done

    def _index(self, sealed: Collection[str]) -> Iterator[Settled]:
        """Take into the ledger what others sealed, who may not reach it."""
        for execution_id in sorted(self.workbench.ledger.unarchived(sealed)):
            if self.workbench.archive.removed(execution_id) and not self.workbench.archive.seal_of(execution_id):
                continue  # its mark is left
            told = _guarded(execution_id, self.workbench.index, execution_id)
            if told is not None:
                yield told

    def _sealed_when(self, execution_id: str) -> datetime | None:
        """When it ended, if it has a seal, or when it was removed; marks that were left or lost are put right."""
        found = self.workbench.archive.seal_of(execution_id)
        if found is None:
            gone = self.workbench.archive.removed(execution_id)
            return gone.removed if gone else None
        ended = found.finished or LONG_AGO
        self.workbench.archive.marks.close(execution_id, found.manifest_sha256, ended)
        return ended


def _guarded(execution_id: str, work: Callable[P, Outcome | None], *args: P.args, **kwargs: P.kwargs) -> Settled | None:
    try:
        outcome = work(*args, **kwargs)
    except ExecutionsError as error:
        return Settled(execution_id, "failed", str(error))
    return None if outcome is None else Settled.of(execution_id, outcome)
