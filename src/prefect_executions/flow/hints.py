"""Notes on data that a Method used or wrote: what the record lacks, and names that were masked."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from prefect_executions.bundles.layout import STDERR, STDOUT, BundlePaths
from prefect_executions.capture.late_code import written_files
from prefect_executions.capture.secrets import SecretMask, mask_names
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.flow.call import Call
from prefect_executions.flow.opening import now
from prefect_executions.lifecycle.history import EntryKind, JobStatus, add_entry
from prefect_executions.lifecycle.status import Observer
from prefect_executions.methods.model import InputFile

_SHOWN = 3
_LONGEST_PATH = 4096
_MOST_TRIED = 20
"""How many texts of one input are tried as paths."""


def with_hints(job_status: JobStatus, call: Call, record: ExecutionRecord, paths: BundlePaths) -> JobStatus:
    """Return *job_status* with a note for each kind of data that the record lacks when the author's code has run."""
    earlier = {entry.message for entry in job_status.history}
    for hint in map(call.mask.mask, _hints(call, record, paths)):
        if hint not in earlier:
            call.log.info("%s", hint)
            job_status = add_entry(job_status, EntryKind.NOTE, now(), observer=Observer.HOOK, message=hint)
    return job_status


def with_masked_names(job_status: JobStatus, paths: BundlePaths, mask: SecretMask) -> JobStatus:
    """Mask the secrets in the names of outputs, and return *job_status* with a note on it."""
    renamed = mask_names(paths.outputs, mask)
    if not renamed:
        return job_status
    message = f"a secret in the names of these outputs is masked: {', '.join(renamed)}"
    return add_entry(job_status, EntryKind.NOTE, now(), observer=Observer.HOOK, message=message)


def _hints(call: Call, record: ExecutionRecord, paths: BundlePaths) -> Iterator[str]:
    if call.settings.capture_streams:
        removed = [name for name in (STDOUT, STDERR) if not os.path.lexists(paths.folder / name)]
        if removed:
            yield f"the Method removed its own log: {', '.join(removed)}"
    if call.declared.is_scripted:
        return
    if record.method.code is not None:
        written = written_files(record.method.code, call.start, since=call.begun)
        if written:
            yield (
                f"this process wrote {_listed(written)} outside the outputs during the run, so the bundle lacks "
                f"{'it' if len(written) == 1 else 'them'}; write to current_execution().output(NAME)"
            )
    for name in undeclared_files(call, record):
        yield (
            f"the input '{name}' is the path of a file that is not declared as one; "
            "annotate it as InputFile, and its content is staged and kept"
        )


def undeclared_files(call: Call, record: ExecutionRecord) -> dict[str, tuple[str, ...]]:
    """Return the inputs that are paths of existing files and are not declared as files, each with these paths."""
    found: dict[str, tuple[str, ...]] = {}
    for name, value in call.arguments.arguments.items():
        described = record.method.inputs.get(name)
        if described is None or described.is_secret or described.is_file or call.declared.is_scripted:
            continue
        values = value if isinstance(value, list | tuple) else [value]
        texts = (str(each) for each in values if isinstance(each, str | Path) and not isinstance(each, InputFile))
        paths = tuple(text for text in islice(texts, _MOST_TRIED) if is_data_file(text, call.begun))
        if paths:
            found[name] = paths
    return found


def is_data_file(text: str, begun: int) -> bool:
    """Whether *text* is the path of a file that had content when the run began, in nanoseconds of the epoch."""
    if not 0 < len(text) <= _LONGEST_PATH or "\n" in text:
        return False
    try:
        status = os.stat(text)  # noqa: PTH116 - any text
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0 and status.st_mtime_ns <= begun


def _listed(names: Sequence[str]) -> str:
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join((*names[:_SHOWN], *more))
