"""How scripts are run: as processes of this machine, or in containers; one interface for all."""

from prefect_executions.runtimes.interface import Exit, Resources, Run, RunRequest, RunStatus, Runtime
from prefect_executions.runtimes.registry import open_runtime

__all__ = ["Exit", "Resources", "Run", "RunRequest", "RunStatus", "Runtime", "open_runtime"]
