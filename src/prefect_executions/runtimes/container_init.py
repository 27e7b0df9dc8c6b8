"""The first process of a container: starts the script, hands signals on, keeps the time limit, ends what is left."""

from __future__ import annotations

from math import ceil

from prefect_executions.runtimes.interface import GRACE

OWN_FOLDER = "/ccp_run"
"""Where a container has what is ours, and none of the data."""

# The first process of a container hears no SIGTERM unless it says so; when it ends, the kernel ends all others. A wait
# that a signal interrupts answers 143 as well, and a second one for the same process 127.
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
    """Return the text of a container's first process.

    *script* is the script's path, with what redirects its output; *expired* the
    command that notes that the time limit has ended it, *last* what is done
    before the container ends.
    """
    limit = ""
    if time_limit is not None:
        limit = _LIMIT.format(seconds=ceil(time_limit), expired=expired, grace=ceil(GRACE))
    return _ENTRY.format(script=script, limit=limit, last=last)
