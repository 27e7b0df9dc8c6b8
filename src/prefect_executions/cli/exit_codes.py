"""The exit codes of `executions`, and the code of each error.

====  ==========================================================================
code  means
====  ==========================================================================
0     success
1     the Method or a watched execution failed or was cancelled, a replay missed
      its grade, or a verification or audit failed
2     the request is wrong: change it before you try again (`RequestError`)
3     the object is missing, or the action is not allowed (`NotAvailableError`)
4     the world failed: try again, or call the operator (`WorldError`)
130   interrupted (Ctrl-C; `run` also by SIGTERM)
141   the reader of the output closed the pipe
====  ==========================================================================
"""

from __future__ import annotations

from prefect_executions.errors import NotAvailableError, RequestError

OK = 0
FAILED = 1
REQUEST = 2
NOT_THERE = 3
WORLD = 4
INTERRUPTED = 130
NO_READER = 141


def code_of(error: BaseException) -> int:
    """Return the exit code of *error*; an unexpected error counts as a failure of the world."""
    if isinstance(error, RequestError):
        return REQUEST
    if isinstance(error, NotAvailableError):
        return NOT_THERE
    return WORLD
