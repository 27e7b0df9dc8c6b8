"""The hall behind every door: each use case, once."""

from prefect_executions.workbench.keeping import Ending, Outcome, Place, Workbench

__all__ = ["Ending", "Outcome", "Place", "Workbench"]
