"""What is done at the orchestrator: executions are cancelled."""

from prefect_executions.dispatch.cancelling import PATIENCE, Cancelled, cancel

__all__ = ["PATIENCE", "Cancelled", "cancel"]
