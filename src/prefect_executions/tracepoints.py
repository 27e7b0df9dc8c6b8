"""Trace points: the named steps of an execution, each raised as an audit event of the interpreter (PEP 578).

Law: a trace point changes nothing and waits for nothing, with or without an audit hook.

Fault injection uses them: `tests/faults/` goes through `TracePoint` and kills a
process at each step.
"""

from __future__ import annotations

import sys
from enum import StrEnum

EVENT = "prefect_executions.milestone"
"""The name of the audit event; its arguments are those of `trace_point`."""


class TracePoint(StrEnum):
    """The steps that an execution has just completed, in their order.

    The group about single files and objects occurs many times in an execution; the
    event's detail says which file or object it was. The last group is about the files of
    the column index; its subject is their folder.
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

    SEGMENT_WRITTEN = "column index: segment written"
    MANIFEST_WRITTEN = "column index: manifest written aside"
    SEGMENTS_LISTED = "column index: manifest in place"
    SEGMENTS_CLEARED = "column index: old segments removed"


def trace_point(point: TracePoint, subject: str, detail: str = "") -> None:
    """Raise the audit event `EVENT`: *subject* has just completed the step *point*.

    *subject* is the execution's id; in an object store it is the object's key.
    Without an audit hook the call takes about 0.1 µs.
    """
    sys.audit(EVENT, point, subject, detail)
