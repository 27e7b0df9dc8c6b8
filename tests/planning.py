"""Plans for containers and pods, as the tests of both runtimes make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from prefect_executions.errors import NotFoundError
from prefect_executions.runtimes.interface import Plan, Pull, RunRequest, Runtime


@contextmanager
def planning(runtime: Runtime, folder: Path) -> Iterator[Callable[..., Plan]]:
    """Give a function that makes a plan with its data in *folder*; what was started of it is discarded afterwards."""
    made: list[str] = []
    data = folder / "data"
    data.mkdir()
    data.chmod(0o777)  # any user of a container may write there

    def compiled(script: str = "true", by: Runtime = runtime, **wishes) -> Plan:  # type: ignore[no-untyped-def]
        made.append(f"test-{uuid4()}")
        told = {"id": made[-1], "execution_id": "an-execution", "data": data, "script": script}
        told |= {"image": "executions-test", "pull": Pull.NEVER}
        return by.compile(RunRequest(**(told | wishes)), folder / "plan")

    yield compiled
    for name in made:
        with suppress(NotFoundError):
            runtime.find(name).discard()
