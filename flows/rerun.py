"""Run an execution again from the Prefect UI: its id, and the inputs that are to be others.

It is no Method: what it starts keeps its own record, linked to the execution that it runs again.
"""

from typing import Any

from prefect import flow, get_run_logger

from prefect_executions.dispatch import submit as submission
from prefect_executions.prefect_api import blocks
from prefect_executions.settings import Settings
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.workbench import Workbench


@flow(name="rerun", log_prints=False)
def rerun(execution: str, inputs: dict[str, Any] | None = None, pool: str | None = None) -> str:
    """Start an execution again through a deployment of its Method, and return the new one's id.

    Args:
        execution: The id of the execution, or its beginning.
        inputs: Inputs that are to be others; a secret is named anew here.
        pool: A work pool on which the Method is deployed, in place of the one it ran on.
    """
    reader = Catalog(Workbench.of(Settings.read(), archive_block=blocks.archive_block))
    submitted = submission.submit_again(reader, reader.find(execution), inputs, pool=pool)
    get_run_logger().info("%s runs %s again: %s", submitted.id, execution, submitted.link or submitted.deployment)
    return submitted.id


if __name__ == "__main__":
    rerun.serve(name="rerun")
