"""Run a scientific Method as a Prefect flow and keep one complete, verifiable record of every run.

The public names are loaded when they are first used, so that importing the
package costs nothing: Prefect alone takes seconds.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_executions.flow.context import Execution, current_execution
    from prefect_executions.flow.decorator import MethodFlow, method
    from prefect_executions.flow.descriptor import Method
    from prefect_executions.methods.model import Comparison, InputFile

__version__ = _version("prefect-executions")

_HOMES = {
    "Comparison": "prefect_executions.methods.model",
    "Execution": "prefect_executions.flow.context",
    "InputFile": "prefect_executions.methods.model",
    "Method": "prefect_executions.flow.descriptor",
    "MethodFlow": "prefect_executions.flow.decorator",
    "current_execution": "prefect_executions.flow.context",
    "method": "prefect_executions.flow.decorator",
}

__all__ = ["Comparison", "Execution", "InputFile", "Method", "MethodFlow", "current_execution", "method"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'prefect_executions' has no attribute {name!r}")
    value = getattr(_import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
