"""The Methods of the fault tests: what they write is known before, so that what is lost can be told."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from prefect_executions import InputFile, current_execution, method
from prefect_executions.tracepoints import EVENT

FIRST, LAST = "outputs/first.txt", "outputs/folder/last.bin"
SAID = "said before the end"
PARTS = 4
BEGUN, HALF, DONE = "user code: begun", "user code: first output", "user code: all outputs"


def content_of(output: str, size: int) -> bytes:
    """What the Methods write to *output*: bytes that do not shrink, always the same."""
    return random.Random(output).randbytes(size)  # noqa: S311 - the same bytes each time, on purpose


@method(version="1", title="Write")
def writes(text: InputFile, size: int = 1000) -> int:
    """Write two outputs of *size* bytes."""
    return _write(text, size)


@method(version="1", title="Write and fail")
def fails(text: InputFile, size: int = 1000) -> None:
    """Write two outputs and raise."""
    _write(text, size)
    raise LookupError("no such star")


def _write(text: InputFile, size: int) -> int:
    execution = current_execution()
    _say(BEGUN)
    print(SAID, flush=True)
    _to(FIRST, size)
    execution.log_metrics({"letters": len(text.read_text())})
    _say(HALF)
    _to(LAST, size)
    _say(DONE)
    return size


def _to(output: str, size: int) -> None:
    place = Path(current_execution().output(output.removeprefix("outputs/")))
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(content_of(output, size))


def _say(step: str) -> None:
    sys.audit(EVENT, step, "", "")


@method(version="1", title="Write slowly, with a journal")
def journals(journal: str, seconds: float) -> None:
    """Write parts one after the other; the file *journal*/<id>, outside of all records, tells what really happened."""
    execution = current_execution()
    with (Path(journal) / execution.id).open("a", buffering=1) as told:
        told.write("begun\n")
        for number in range(PARTS):
            name = f"part-{number}.bin"
            execution.output(name).write_bytes(content_of(f"outputs/{name}", 1000))
            told.write(f"outputs/{name}\n")
            time.sleep(seconds / PARTS)
        told.write("done\n")
