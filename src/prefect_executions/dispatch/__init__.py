"""What is done at the orchestrator: Methods are deployed, requests submitted, executions cancelled."""

from prefect_executions.dispatch.cancelling import PATIENCE, Cancelled, cancel
from prefect_executions.dispatch.deploying import Deployed, Wanted, deploy
from prefect_executions.dispatch.repeating import submit_again
from prefect_executions.dispatch.submitting import Ended, Request, Submitted, submit, wait

__all__ = [
    "PATIENCE",
    "Cancelled",
    "Deployed",
    "Ended",
    "Request",
    "Submitted",
    "Wanted",
    "cancel",
    "deploy",
    "submit",
    "submit_again",
    "wait",
]
