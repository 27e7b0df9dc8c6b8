"""The very image that an execution's scripts ran in, for a replay of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from prefect_executions.errors import ExecutionsError, NotAvailableError
from prefect_executions.executions.record import ExecutionRecord, ScriptRun
from prefect_executions.runtimes.registry import open_runtime

# A bundle may say anything; what is no digest could name another image.
_ID = re.compile(r"sha256:[0-9a-f]{64}")
_DIGEST = re.compile(r"[a-z0-9][\w.:/-]*@sha256:[0-9a-f]{64}")


class ExactImage(NamedTuple):
    """An image by a digest, and the runtime that is to run scripts in it."""

    runtime: str
    name: str


def exact_image(record: ExecutionRecord, runtime: str, state: Path) -> ExactImage | None:
    """Return the image of the last scripts that *record* tells; None where they ran in no container.

    The operator's *runtime* is kept where it runs containers, else it is Docker. *state* is a folder for it.

    Raises:
        NotAvailableError: If it is not to be had; the message names it.
    """
    run = next((one for one in reversed(record.instance.runs or ()) if one.image or one.image_digest), None)
    if run is None:
        return None
    chosen = "docker" if runtime == "process" else runtime
    try:
        opened = open_runtime(chosen, state=state)
        try:
            name = opened.at_hand(_matching(_ID, run.image), _matching(_DIGEST, run.image_digest))
        finally:
            opened.close()
    except ExecutionsError as error:
        raise NotAvailableError(f"image: {_named(run)} is not to be had: {error}") from error
    if name is None:
        raise NotAvailableError(f"image: the runtime '{chosen}' has not got {_named(run)}, and no registry gives it")
    return ExactImage(chosen, name)


def _matching(form: re.Pattern[str], told: str | None) -> str | None:
    return told if told and form.fullmatch(told) else None


def _named(run: ScriptRun) -> str:
    told = ", ".join(filter(None, (run.image_digest, run.image)))
    return f"{run.image_name or 'the image'} ({told})"
