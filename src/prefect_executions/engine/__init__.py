"""What Prefect says and is told: state histories, workers, secrets, blocks, events, progress.

The only room below the flow that knows Prefect. It gives our own values and
hides Prefect's clients; it decides nothing.
"""

from prefect_executions.engine.asking import (
    caller,
    created_by,
    deployment,
    flow_run,
    history,
    infrastructure,
    placed,
    seen,
    shares_its_worker,
)
from prefect_executions.engine.blocks import archive_block, check_secret, secret
from prefect_executions.engine.cancelling import Answer, asked_to_cancel, cancel, set_cancelled
from prefect_executions.engine.client import answering, client, configured_api, greet, too_large
from prefect_executions.engine.closing import make_up
from prefect_executions.engine.listening import Connection, listen
from prefect_executions.engine.lives import catch_up, lives, states, told_by_prefect
from prefect_executions.engine.recognising import TAG, is_method, mark_flows, method_flows
from prefect_executions.engine.requests import request_of
from prefect_executions.engine.scanning import (
    ended_since,
    has_workers,
    open_runs,
    put_to_end,
    runs_of,
    server_time,
    worker_silence,
)
from prefect_executions.engine.steps import steps
from prefect_executions.engine.telling import (
    EndTelling,
    Progress,
    finish_telling,
    show_progress,
    tell,
    tell_changes,
    was_told,
)

__all__ = [
    "TAG",
    "Answer",
    "Connection",
    "EndTelling",
    "Progress",
    "answering",
    "archive_block",
    "asked_to_cancel",
    "caller",
    "cancel",
    "catch_up",
    "check_secret",
    "client",
    "configured_api",
    "created_by",
    "deployment",
    "ended_since",
    "finish_telling",
    "flow_run",
    "greet",
    "has_workers",
    "history",
    "infrastructure",
    "is_method",
    "listen",
    "lives",
    "make_up",
    "mark_flows",
    "method_flows",
    "open_runs",
    "placed",
    "put_to_end",
    "request_of",
    "runs_of",
    "secret",
    "seen",
    "server_time",
    "set_cancelled",
    "shares_its_worker",
    "show_progress",
    "states",
    "steps",
    "tell",
    "tell_changes",
    "told_by_prefect",
    "too_large",
    "was_told",
    "worker_silence",
]
