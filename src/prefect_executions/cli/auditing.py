"""`executions audit`: what was changed in the archive, what is gone, and what is not complete."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prefect_executions.cli.arguments import Json, reader
from prefect_executions.cli.exit_codes import FAILED, OK
from prefect_executions.cli.output import how_many, say, show_json, show_table, working
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect_executions.operations.audit import Finding


def audit(*, deep: bool = False, every: bool = False, as_json: Json = False) -> int:
    """Look over the archive: what was changed, removed or replaced, and what is merely not complete.

    It lists the archive and reads seals, manifests, signatures and checkpoints. The exit
    code is 1 where there is a violation; what is not complete leaves it 0.

    Args:
        deep: Verify every execution as well, as 'executions verify' does; this reads all data.
        every: Show each thing that is not complete, and not only how many there are.
        as_json: One JSON document with every finding.
    """
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.operations.audit import audit as audit_archive  # noqa: PLC0415
    from prefect_executions.workbench.keyring import KeyRing  # noqa: PLC0415

    looked_at = [0]
    hall, trusted = reader(), KeyRing(Settings.read()).trusted()
    with working("Reading the archive", quiet=as_json):
        found = list(audit_archive(hall.workbench.archive, trusted, deep=deep, told=looked_at.append))
    violations = [one for one in found if one.weight == "violation"]
    if as_json:
        show_json({"executions": looked_at[-1], "violations": len(violations), "findings": found})
    else:
        _show_findings(found if every else violations, found, looked_at[-1])
    return FAILED if violations else OK


def _show_findings(shown: list[Finding], found: list[Finding], executions: int) -> None:
    head = ("weight", "kind", "execution", "what")
    show_table(head, ((one.weight, one.kind, one.execution or "-", one.what) for one in shown))
    violations = [one for one in found if one.weight == "violation"]
    about = len({one.execution for one in violations if one.execution})
    told = f"{how_many(executions, 'execution')}: {how_many(len(violations), 'violation')}"
    say(told + (f" in {how_many(about, 'execution')}" if about else ""))
    counts = Counter(one.kind for one in found if one.weight == "incomplete")
    for kind, count in sorted(counts.items()):
        say(f"not complete: {kind}: {count}")
