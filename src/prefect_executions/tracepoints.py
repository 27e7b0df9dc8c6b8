"""The steps of an execution in one list, in their order, and the word that one of them was just reached.

Law: a milestone changes nothing and is never waited for. It is told to whoever
listens to the interpreter's audit events (PEP 578), and nobody has to.

So fault tests can stop a process exactly there: `tests/faults/` walks this list.
"""

from __future__ import annotations

import sys
from enum import StrEnum

EVENT = "prefect_executions.milestone"
"""The audit event; its arguments are those of `reach`."""


class TracePoint(StrEnum):
    """What was just done, from the first folder to the last one that is removed.

    Those of single files and objects come again and again, told apart by their detail.
    """

    FOLDER_BEGUN = "open: folder begun"
    FOLDER_FILLED = "open: file written"
    OPENED = "open: folder in place"
    STAGED = "inputs staged"
    ANNOUNCED = "opening record archived"
    EXECUTING = "before user code"
    RETURNED = "after user code"
    LOGS_CLOSED = "logs closed"
    FILE_READ = "gather: file read"
    ZIP_WRITTEN = "gather: zip written aside"
    ZIP_KEPT = "gather: zip in place"
    DATA_SENT = "upload: data object"
    LEFT = "the run's own part done"
    FINAL_STATUS = "seal: final jobStatus.json"
    MANIFEST_READY = "seal: all on the disk"
    MANIFEST_KEPT = "seal: manifest in place"
    FILES_SENT = "upload: small objects"
    SEALED = "upload: seal object"
    MARKED = "upload: marks"
    INDEXED = "ledger row"
    SET_ASIDE = "set aside, another sealed first"
    CLEARED = "scratch removed"

    FILE_WRITTEN = "file written aside"
    FILE_KEPT = "file in place"
    OBJECT_WRITTEN = "object written aside"
    OBJECT_KEPT = "object in place"
    OBJECT_REMOVED = "object removed"
    PART_SENT = "part of an object sent"


def trace_point(milestone: TracePoint, of: str, detail: str = "") -> None:
    """Say that *milestone* was just reached by *of*: an execution's id, or in a store the key of an object.

    Where nobody listens it costs about a tenth of a microsecond.
    """
    sys.audit(EVENT, milestone, of, detail)
