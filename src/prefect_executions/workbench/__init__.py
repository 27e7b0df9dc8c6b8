"""The hall behind every door: each use case, once."""

from prefect_executions.workbench.ends import Ending
from prefect_executions.workbench.keeping import Outcome, Place, Workbench

__all__ = ["Ending", "Outcome", "Place", "Workbench"]
