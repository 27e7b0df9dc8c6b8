"""``kill -9`` of `executions settle` at each of its own steps, while it seals what was killed in user code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from faults.judging import CRASHED, Truth
from faults.kills import Case
from faults.methods import FIRST, HALF
from faults.world import World

FAULT = "kill -9 of settle"
SETTLE = ("settle", "--once", "--json")

_TRUTH = Truth(
    CRASHED, executed=True, outputs=(FIRST,), partial=True, logged=True, said="ended in the Method's own code"
)


def settle_steps(world: World) -> tuple[str, ...]:
    """Return the steps of a settle that seals one execution."""
    world.run(kill=HALF)
    return world.executions(*SETTLE).steps


def killed_settles(world: World, steps: Iterable[str]) -> Iterator[Case]:
    """Kill a settle at each of *steps*; what it leaves the next one finds."""
    for step in steps:
        (execution_id,) = world.run(kill=HALF, tag="settle").ids
        settle = world.executions(*SETTLE, kill=step)
        untrue = () if settle.code == -9 else (f"settle was not killed there but ended with {settle.code}",)
        yield Case(f"settle: {step}", FAULT, execution_id, _TRUTH, untrue)
