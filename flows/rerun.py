"""Run an execution again from the Prefect UI, with the same inputs or with overrides.

The flow itself is not a Method. The run that it starts has its own record, linked to the original execution.
"""

from typing import Any

from prefect import flow, get_run_logger

from prefect_executions.capture.host import this_user
from prefect_executions.dispatch import submit as submission
from prefect_executions.prefect_api import blocks
from prefect_executions.settings import Settings
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.workbench import Workbench


@flow(name="rerun", log_prints=False)
def rerun(execution: str, inputs: dict[str, Any] | None = None, pool: str | None = None) -> str:
    """Run an execution again through a deployment of its Method, and return the id of the new execution.

    Args:
        execution: The id of the execution, or an unambiguous prefix.
        inputs: Inputs to override. Name every secret input again.
        pool: The work pool of the deployment to use, instead of the original one.
    """
    settings = Settings.read()
    reader = Catalog(Workbench.of(settings, archive_block=blocks.archive_block))
    by = settings.agent or this_user()
    submitted = submission.submit_again(reader, reader.find(execution), inputs, by=by, pool=pool)
    get_run_logger().info("%s runs %s again: %s", submitted.id, execution, submitted.link or submitted.deployment)
    return submitted.id


if __name__ == "__main__":
    rerun.serve(name="rerun")
