"""``kill -9`` at every step of an execution, found by walking through one that nothing happens to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from faults.judging import BOTH, COMPLETED, CRASHED, FAILED, NEVER_OPENED, Truth
from faults.methods import BEGUN, DONE, FIRST, HALF
from faults.world import Death, World
from prefect_executions.tracepoints import TracePoint

FAULT = "kill -9"

OF_THE_INDEX = {
    TracePoint.SEGMENT_WRITTEN,
    TracePoint.MANIFEST_WRITTEN,
    TracePoint.SEGMENTS_LISTED,
    TracePoint.SEGMENTS_CLEARED,
}
"""Trace points of a search, which no execution reaches; `test_ledger_index_index` kills the process at each of them."""


class Case(NamedTuple):
    """One fault at one step, the execution that it struck, and the truth of it."""

    step: str
    fault: str
    execution_id: str
    truth: Truth
    untrue: tuple[str, ...] = ()
    """What was wrong before anybody settled."""
    workbench: tuple[tuple[str, str], ...] = ()


def steps_of(world: World, method: str = "writes", size: int = 1000) -> tuple[str, ...]:
    """Return the steps of an execution of *method* that nothing happens to."""
    whole = world.run(method, size=size)
    if TracePoint.CLEARED not in whole.steps:
        raise RuntimeError(f"an execution without any fault did not end well:\n{whole.log[-4000:]}")
    return whole.steps


def killed_at(world: World, step: str, *, method: str = "writes", size: int = 1000) -> Case:
    """Kill a run of *method* at *step* and return what is true of it."""
    death = world.run(method, size=size, kill=step, tag="killed")
    name = step if method == "writes" else f"{step} ({method})"
    return Case(name, FAULT, _one(death), truth_of(death.steps, method=method, size=size), tuple(_unlike(death, step)))


def truth_of(steps: Sequence[str], *, method: str = "writes", size: int = 1000) -> Truth:
    """Return what is true of a run of *method* that died after these *steps*, the last of them included."""

    def done(which: str) -> bool:
        return which in steps

    outputs = BOTH if done(DONE) else (FIRST,) if done(HALF) else ()
    if done(TracePoint.LEFT) and steps[-1] != TracePoint.LEFT:
        return Truth(
            COMPLETED if method == "writes" else FAILED, executed=True, outputs=outputs, size=size, logged=True
        )
    if not done(TracePoint.OPENED):
        return Truth(NEVER_OPENED, executed=False, partial=True)
    if not done(f"{TracePoint.FILE_KEPT}: jobStatus.json"):
        return Truth(CRASHED, executed=False, said="had not begun", partial=True)
    logged = done(BEGUN) and done(HALF)
    ended = method == "writes" and done(f"{TracePoint.FILE_KEPT}: instance.json")
    said = "had ended well before" if ended else ""
    return Truth(CRASHED, executed=True, outputs=outputs, partial=True, said=said, size=size, logged=logged)


def _one(death: Death) -> str:
    (execution_id,) = death.ids or ("",)
    return execution_id


def _unlike(death: Death, step: str) -> Iterator[str]:
    if death.code != -9 or step not in death.steps:  # another thread may have come to a step of its own meanwhile
        yield f"it was not killed there but ended with {death.code}: {death.log[-500:]}"
