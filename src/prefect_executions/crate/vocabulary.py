"""The vocabulary of the crate: contexts, profile, statuses, and the conversion between paths and ids."""

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
"""The prefix of a phase's id; its number follows."""

VALUE_LIMIT = 64 * 1024
"""The longest input value in characters of canonical JSON; for a longer value, only the digest is written."""

JSON = "application/json"
"""The encoding of a value that is not text."""

# schema.org has two statuses for an ended action, and the profile does not allow others.
ACTION_STATUS = {
    Status.COMPLETED: "http://schema.org/CompletedActionStatus",
    Status.FAILED: "http://schema.org/FailedActionStatus",
    Status.CANCELLED: "http://schema.org/FailedActionStatus",
}

# The statuses of steps by Prefect's state types; all other types count as potential.
POTENTIAL = "http://schema.org/PotentialActionStatus"
STEP_STATUS = {
    "COMPLETED": "http://schema.org/CompletedActionStatus",
    "FAILED": "http://schema.org/FailedActionStatus",
    "CRASHED": "http://schema.org/FailedActionStatus",
    "CANCELLED": "http://schema.org/FailedActionStatus",
    "RUNNING": "http://schema.org/ActiveActionStatus",
}


def phase_status(exit_code: int | None, *, ended: bool) -> str:
    """Return the status of a phase of scripts; an end without an exit code is a failure."""
    if not ended:
        return STEP_STATUS["RUNNING"]
    return STEP_STATUS["COMPLETED" if exit_code == 0 else "FAILED"]


_PLAIN = re.compile(r"[A-Za-z0-9_.~/-]*")  # RFC 3986, unreserved characters and the slash


def uri(path: str) -> str:
    """Return the id of the file at *path* in the bundle: a relative URI, percent-encoded."""
    # Almost every path needs no quoting; `quote` would take most of the time for a crate of 10,000 files.
    return path if _PLAIN.fullmatch(path) else quote(path, errors="surrogatepass")


def path(file_id: str) -> str:
    """Return the path of a file's id: the inverse of `uri`."""
    return unquote(file_id, errors="surrogatepass")
