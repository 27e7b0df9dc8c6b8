"""What Prefect says and is told: state histories, workers, secrets, blocks, events, progress.

The only room below the flow that knows Prefect. It gives our own values and
hides Prefect's clients; it decides nothing.
"""

from prefect_executions.engine.asking import created_by, deployment, flow_run, history, infrastructure, seen
from prefect_executions.engine.blocks import archive_block, check_secret, secret
from prefect_executions.engine.client import client, configured_api, greet
from prefect_executions.engine.lives import lives, states, told_by_prefect
from prefect_executions.engine.telling import METHOD_RESOURCE, RESOURCE, Progress, show_progress, tell

__all__ = [
    "METHOD_RESOURCE",
    "RESOURCE",
    "Progress",
    "archive_block",
    "check_secret",
    "client",
    "configured_api",
    "created_by",
    "deployment",
    "flow_run",
    "greet",
    "history",
    "infrastructure",
    "lives",
    "secret",
    "seen",
    "show_progress",
    "states",
    "tell",
    "told_by_prefect",
]
