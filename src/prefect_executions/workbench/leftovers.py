"""What still runs of an execution whose own process is gone: the scripts of a descriptor Method outlive it."""

from __future__ import annotations

import json
from collections.abc import Iterator

from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.errors import ExecutionsError, NotFoundError

PLANS = "plan"
"""The folder below ``code/`` that has a plan for each run of scripts."""

_GRACE = 1.0


def end_runs(bundle: OpenBundle) -> tuple[str, ...]:
    """End the runs of scripts of *bundle* that nobody waits for any more, remove them, and return a note on each."""
    plans = sorted((bundle.paths.code / PLANS).glob("*/plan.json"))
    return tuple(note for path in plans for note in _end(bundle, *_named(path.read_bytes())))


def _named(plan: bytes) -> tuple[str, str]:
    told = json.loads(plan)
    return str(told["runtime"]), str(told["request"]["id"])


def _end(bundle: OpenBundle, name: str, run_id: str) -> Iterator[str]:
    # Few executions have scripts, and the runtimes take long to import.
    from prefect_executions.runtimes.registry import open_runtime  # noqa: PLC0415

    try:
        runtime = open_runtime(name, state=bundle.scratch / "runs")
        try:
            run = runtime.find(run_id)
            end = run.cancel(_GRACE)
            run.discard()
            code = "" if end.code is None else f" with exit code {end.code}"
            yield f"nobody waited any more for the scripts of {run_id}: {end.status}{code}"
        finally:
            runtime.close()
    except NotFoundError:
        return
    except (ExecutionsError, TimeoutError) as error:
        yield f"the scripts of {run_id} may still run, on {name}: {error}"
