"""After the fact: every execution that Prefect accepted gets its one seal, whatever died."""

from prefect_executions.settle.rounds import settle
from prefect_executions.workbench.settling import Settled

__all__ = ["Settled", "settle"]
