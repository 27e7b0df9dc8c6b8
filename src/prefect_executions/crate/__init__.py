"""Tell an execution as a Workflow Run RO-Crate (Process Run Crate 0.5 on RO-Crate 1.1), and read it back.

Law: the crate says what the JSON documents say. Where the profile wants what
nobody stated (a licence, an organisation), it says that nobody stated it.
"""

from prefect_executions.crate.building import build
from prefect_executions.crate.collecting import collect
from prefect_executions.crate.holding import differences
from prefect_executions.crate.reading import read

__all__ = ["build", "collect", "differences", "read"]
