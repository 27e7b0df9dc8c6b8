"""Runs one Method for each source of facts that fails, in a process of its own; prints what came of each.

``python broken_probes.py FOLDER ROW…``: FOLDER is a Git repository with the Method in ``m.py``. A row is a function
of the standard library as the code calls it, ``socket.gethostname``, with the name of an exception.
"""

from __future__ import annotations

import builtins
import gc
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FAULTS: dict[str, Callable[[], Exception]] = {
    "OSError": lambda: OSError(5, "injected"),
    "ValueError": lambda: UnicodeDecodeError("utf-8", b"Jos\xe9", 3, 4, "injected"),
    "RuntimeError": lambda: RuntimeError("injected"),
}

PACKAGE = "prefect_executions."
PROBES = (f"{PACKAGE}capture.", f"{PACKAGE}flow.opening")
"""The modules whose calls fail; the rest of the process goes on as before."""


@contextmanager
def failing(source: str, fault: str) -> Iterator[list[str]]:
    """Let the function *source* fail when a probe calls it; yield the list of the modules that called it."""
    owner_name, _, name = source.rpartition(".")
    owner: Any = Path if owner_name == "Path" else importlib.import_module(owner_name) if owner_name else builtins
    real, hits = getattr(owner, name), list[str]()

    def broken(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith(PROBES) and not caller.endswith((".streams", ".logfiles", ".staging", ".stdio_router")):
            hits.append(caller)
            error = FAULTS[fault]()
            raise error
        return real(*args, **kwargs)

    setattr(owner, name, broken)
    try:
        yield hits
    finally:
        setattr(owner, name, real)


def forget() -> None:
    """Empty every cache of the package, so that each fact is read again."""
    from prefect_executions.capture import code, host, processes  # noqa: PLC0415 - imports Prefect's settings

    for module in [module for name, module in sys.modules.items() if name.startswith(f"{PACKAGE}capture")]:
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()
    for thing in gc.get_objects():
        if isinstance(thing, code.CodeCache):
            thing.identities.clear()
            thing.reads.clear()
    for packages in (host._PROCESS, code.PROCESS.packages):
        packages.__init__()
    processes._own.clear()
    processes._marks.clear()


def run(method: Any, source: str, fault: str) -> dict[str, Any]:
    from prefect.states import State  # noqa: PLC0415 - its import takes seconds

    from prefect_executions import background  # noqa: PLC0415 - as above
    from prefect_executions.bundles.verify import verify  # noqa: PLC0415 - as above
    from prefect_executions.executions.record import ExecutionRecord  # noqa: PLC0415 - as above
    from prefect_executions.settings import Settings  # noqa: PLC0415 - as above

    forget()
    workbench = Settings.read().workbench_folder
    before = {entry.name for entry in workbench.iterdir()} if workbench.exists() else set()
    with failing(source, fault) as hits:
        state: State[Any] = method(return_state=True)
        background.drain()
    found = {entry.name for entry in workbench.iterdir()} - before - {".open", ".archives"}
    if len(found) != 1:
        return {"hits": len(hits), "error": f"{len(found)} bundles; {state.name}: {state.message}"}
    folder = workbench / found.pop()
    documents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("*/*.json")}
    record = ExecutionRecord.from_json({name: data for name, data in documents.items() if name[:4] in {"meta", "auth"}})
    notes = [entry.message for entry in record.job_status.history if entry.kind == "note"]
    faults = [str(each) for each in verify(folder).faults]
    return {"hits": len(hits), "status": record.status, "notes": notes, "faults": faults, "state": state.name}


def main(folder: str, *rows: str) -> None:
    sys.path.insert(0, folder)
    method = importlib.import_module("m").m
    told = {row: run(method, *row.split(" ")) for row in rows}
    Path(folder, "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
