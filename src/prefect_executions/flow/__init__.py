"""Inside the run: a Method as a Prefect flow, what runs around its code, and the hooks that seal it."""

from prefect_executions.flow.current import Execution, current_execution
from prefect_executions.flow.declaring import MethodFlow, method
from prefect_executions.flow.entrypoints import load_deployable, load_method, run_method

__all__ = [
    "Execution",
    "MethodFlow",
    "current_execution",
    "load_deployable",
    "load_method",
    "method",
    "run_method",
]
