"""Runtimes: scripts as processes of this machine, in Docker containers or in Kubernetes pods, behind one interface."""

from prefect_executions.runtimes.interface import Exit, Resources, Run, RunRequest, RunStatus, Runtime
from prefect_executions.runtimes.registry import open_runtime

__all__ = ["Exit", "Resources", "Run", "RunRequest", "RunStatus", "Runtime", "open_runtime"]
