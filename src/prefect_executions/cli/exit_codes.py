"""The exit codes, and which error has which.

====  ==========================================================================
code  means
====  ==========================================================================
0     done
1     the Method failed or was cancelled, one that was watched did, a replay did
      not reach its grade, or a verification or audit failed
2     the request is wrong: change it and ask again (`RequestError`)
3     it is not there, or not allowed (`NotAvailableError`)
4     the world failed: try again, or call the operator (`WorldError`)
130   interrupted (Ctrl-C)
141   the reader of our output went away
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
    """Return the exit code that tells *error*; one that nobody foresaw is the world's."""
    if isinstance(error, RequestError):
        return REQUEST
    if isinstance(error, NotAvailableError):
        return NOT_THERE
    return WORLD
