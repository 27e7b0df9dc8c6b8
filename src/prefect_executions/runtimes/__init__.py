"""How scripts are run: as processes of this machine, or in containers; one interface for all."""

from prefect_executions.runtimes.opening import open_runtime
from prefect_executions.runtimes.plans import DATA, Network, Plan, Pull, Resources, RunRequest, SharedClaim, Wish
from prefect_executions.runtimes.process import ProcessRuntime
from prefect_executions.runtimes.runs import STREAMS, Exit, LogPiece, Run, RunStatus, Runtime, Seen, StreamName

__all__ = [
    "DATA",
    "STREAMS",
    "Exit",
    "LogPiece",
    "Network",
    "Plan",
    "ProcessRuntime",
    "Pull",
    "Resources",
    "Run",
    "RunRequest",
    "RunStatus",
    "Runtime",
    "Seen",
    "SharedClaim",
    "StreamName",
    "Wish",
    "open_runtime",
]
