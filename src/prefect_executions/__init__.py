"""Run scientific Methods as Prefect flows and keep one complete, verifiable record of every run.

The public names load on first use: importing Prefect takes seconds.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_executions.flow.context import Execution, current_execution
    from prefect_executions.flow.decorator import MethodFlow, method
    from prefect_executions.flow.descriptor import DescriptorMethod as Method
    from prefect_executions.methods.model import Comparison, InputFile
    from prefect_executions.workbench.entry import open_catalog

__version__ = _version("prefect-executions")

_HOMES = {
    "Comparison": ("prefect_executions.methods.model", "Comparison"),
    "Execution": ("prefect_executions.flow.context", "Execution"),
    "InputFile": ("prefect_executions.methods.model", "InputFile"),
    "Method": ("prefect_executions.flow.descriptor", "DescriptorMethod"),
    "MethodFlow": ("prefect_executions.flow.decorator", "MethodFlow"),
    "current_execution": ("prefect_executions.flow.context", "current_execution"),
    "method": ("prefect_executions.flow.decorator", "method"),
    "open_catalog": ("prefect_executions.workbench.entry", "open_catalog"),
}

__all__ = [
    "Comparison",
    "Execution",
    "InputFile",
    "Method",
    "MethodFlow",
    "current_execution",
    "method",
    "open_catalog",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'prefect_executions' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(_import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
