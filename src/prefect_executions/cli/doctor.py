"""`executions doctor`: whether everything that a run needs is there, and what to do where it is not."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from prefect_executions.cli.arguments import Json
from prefect_executions.cli.examining import Finding, examine
from prefect_executions.cli.exit_codes import OK, WORLD
from prefect_executions.cli.output import say, show_json, show_table, working


def doctor(*, as_json: Json = False) -> int:
    """Check all that a run needs, and say what to do.

    Args:
        as_json: One JSON document: every finding.
    """
    found: list[Finding] = []
    for one in _examined(quiet=as_json):
        found.append(one)
        if not as_json:
            show_table((), [(one.outcome, one.subject, one.found, one.advice)])
    failed = [one for one in found if one.outcome == "fail"]
    if as_json:
        show_json({"healthy": not failed, "findings": found})
    else:
        say(f"{len(failed)} of {len(found)} checks failed" if failed else "Everything that a run needs is there.")
    return WORLD if failed else OK


def _examined(*, quiet: bool) -> Iterator[Finding]:
    with working("Examining this installation; Prefect takes some seconds", quiet=quiet or not sys.stderr.isatty()):
        found = list(examine())
    yield from found
