"""The init process of a container: run the script, forward signals, enforce the time limit, end child processes."""

from __future__ import annotations

from math import ceil

from prefect_executions.runtimes.interface import GRACE

OWN_FOLDER = "/ccp_run"
"""The folder of a container for our own files, apart from the data."""

# The first process of a container ignores SIGTERM unless it handles it; when it ends, the kernel kills all others. A
# `wait` that a signal interrupts also returns 143, and a second one for the same process 127. This text is part of
# plans in bundles, so its bytes do not change.
_ENTRY = """\
trap 'heard=1; kill -TERM -1' TERM
/bin/sh {script} &
main=$!
{limit}wait "$main"
code=$?
while [ "$code" = 143 ] && [ "$heard" ]; do
  heard=
  wait "$main"
  again=$?
  [ "$again" = 127 ] || code=$again
done
{last}exit "$code"
"""
_LIMIT = "(sleep {seconds}; {expired}; kill -TERM -1; sleep {grace}; kill -KILL -1) &\n"


def entry_script(script: str, *, time_limit: float | None, expired: str, last: str = "") -> str:
    """Return the shell text of a container's init process.

    *script* is the script's path, with redirections of its output. *expired* is the
    command that records that the time limit ended it, *last* what runs before the
    container ends.
    """
    limit = ""
    if time_limit is not None:
        limit = _LIMIT.format(seconds=ceil(time_limit), expired=expired, grace=ceil(GRACE))
    return _ENTRY.format(script=script, limit=limit, last=last)
