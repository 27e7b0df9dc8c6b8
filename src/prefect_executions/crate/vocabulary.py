"""The words of the crate: contexts, profile, and how a path becomes an id."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, unquote

from prefect_executions.lifecycle.status import Status

FILE = "ro-crate-metadata.json"

Entity = dict[str, Any]

CONTEXT = ("https://w3id.org/ro/crate/1.1/context", "https://w3id.org/ro/terms/workflow-run/context")
CRATE = "https://w3id.org/ro/crate/1.1"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"

PHASE = "#phase."
"""How the id of a phase of scripts begins; its number follows."""

VALUE_LIMIT = 64 * 1024
"""A longer input value, in characters of canonical JSON, is told by its digest and read in `request.json`."""

JSON = "application/json"
"""The encoding of a value that is not told as its own text."""

# schema.org has two statuses for what has ended, and the profile takes no third.
ACTION_STATUS = {
    Status.COMPLETED: "http://schema.org/CompletedActionStatus",
    Status.FAILED: "http://schema.org/FailedActionStatus",
    Status.CANCELLED: "http://schema.org/FailedActionStatus",
}

# The same for steps, by Prefect's types; one that has not ended may have no more than begun.
POTENTIAL = "http://schema.org/PotentialActionStatus"
STEP_STATUS = {
    "COMPLETED": "http://schema.org/CompletedActionStatus",
    "FAILED": "http://schema.org/FailedActionStatus",
    "CRASHED": "http://schema.org/FailedActionStatus",
    "CANCELLED": "http://schema.org/FailedActionStatus",
    "RUNNING": "http://schema.org/ActiveActionStatus",
}


def phase_status(exit_code: int | None, *, ended: bool) -> str:
    """Return the status of a phase of scripts; an end that says no exit code was no good one."""
    if not ended:
        return STEP_STATUS["RUNNING"]
    return STEP_STATUS["COMPLETED" if exit_code == 0 else "FAILED"]


_PLAIN = re.compile(r"[A-Za-z0-9_.~/-]*")  # RFC 3986, unreserved characters and the slash


def uri(path: str) -> str:
    """Return a path of the bundle as the id of its file: a relative URI, percent-encoded."""
    # Almost every path is its own URI; `quote` would take most of the time of a crate of 10,000 files.
    return path if _PLAIN.fullmatch(path) else quote(path, errors="surrogatepass")


def path(file_id: str) -> str:
    """Return the path that `uri` was given."""
    return unquote(file_id, errors="surrogatepass")
