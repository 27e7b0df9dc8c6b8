"""The lifecycle of an execution: its statuses, its history, and how Prefect's states become both.

Law: a status never goes back; what comes after a terminal status is kept as a
note and changes nothing.
"""

from prefect_executions.lifecycle.following import follow
from prefect_executions.lifecycle.history import (
    CLOCK_SKEW,
    Happening,
    JobStatus,
    OutputFile,
    PrefectState,
    Seen,
    StatusEntry,
    Step,
    advance,
    begin,
    faults,
    remark,
)
from prefect_executions.lifecycle.statuses import (
    AS_OGC,
    FOLLOWS,
    FROM_PREFECT,
    Observer,
    OgcStatus,
    Reason,
    Status,
    ending,
)

__all__ = [
    "AS_OGC",
    "CLOCK_SKEW",
    "FOLLOWS",
    "FROM_PREFECT",
    "Happening",
    "JobStatus",
    "Observer",
    "OgcStatus",
    "OutputFile",
    "PrefectState",
    "Reason",
    "Seen",
    "Status",
    "StatusEntry",
    "Step",
    "advance",
    "begin",
    "ending",
    "faults",
    "follow",
    "remark",
]
