"""`executions verify`, `settle`, `ledger rebuild`: whether a record is whole, and making it so.

`executions audit`: what was changed in the archive, what is gone, and what is not complete.

`executions keys`: the key that seals are signed with, and those of the people whose signature is believed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from prefect_executions.cli.arguments import Json, TimeOption, open_catalog, open_workbench, parse_time, set_defaults
from prefect_executions.cli.exit_codes import FAILED, OK, WORLD
from prefect_executions.cli.output import pluralize, say, show_json, show_table, status_line
from prefect_executions.errors import ArchiveError, RequestError
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect_executions.operations.verify import Verified
    from prefect_executions.workbench.keyring import KeyRing
    from prefect_executions.workbench.recovery import Settled


from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_executions.operations.audit import AuditFinding


from prefect_executions.cli.output import show_facts

ledger = App(name="ledger", help="The index of executions.")

SETTLE_INTERVAL = 60.0
"""Seconds between two rounds of `settle`."""


def verify(target: str, /, *, allowed_signers: Path | None = None, as_json: Json = False) -> int:
    """Verify a bundle: its digests, and that its documents tell one story.

    Of an execution both copies are verified: that on the workbench and that in
    the archive.

    Args:
        target: An execution's id or its beginning, a folder, a zip, or the https://, http:// or s3:// address of a zip.
        allowed_signers: A file as ssh-keygen reads it: manifest-sha256.txt.sig must be of somebody in it.
        as_json: One JSON document: every check with its faults.
    """
    # Start-up time of the CLI: lxml comes with it.
    from prefect_executions.operations.verify import Trust, verify_target  # noqa: PLC0415
    from prefect_executions.workbench.keyring import KeyRing  # noqa: PLC0415

    if allowed_signers is not None and not allowed_signers.is_file():
        raise RequestError(
            f"--allowed-signers {allowed_signers}: there is no such file; see 'man ssh-keygen' for its form"
        )
    told, passed = [], True
    ring = KeyRing(Settings.read())
    for one in verify_target(open_catalog(), target, Trust(ring.trusted(), allowed_signers)):
        passed = passed and one.report.passed
        if as_json:
            told.append(_as_json(one))
        else:
            _show_verified(one)
            _show_how_to_check(one, ring)
    if as_json:
        show_json({"target": target, "passed": passed, "copies": told})
    return OK if passed else FAILED


def settle(*, once: bool = False, since: TimeOption = None, as_json: Json = False) -> int:
    """Seal what has ended, whatever died: compare Prefect, the archive and this workbench.

    What lives is left alone. What has ended is sealed with its reason; what is
    sealed is archived and indexed. Before the first round, what uploads that died
    long ago left in the archive is removed.

    Args:
        once: One round, and then end; else a round every minute until it is interrupted.
        since: In the first round, look again at all that ended after this time: a date, a time, or 7d, 12h ago.
        as_json: One JSON document for each round.
    """
    set_defaults()
    # Start-up time of the CLI: Prefect, archive and bundles come with it.
    from prefect_executions.settle.loop import settle as settle_round  # noqa: PLC0415
    from prefect_executions.workbench.recovery import sweep_uploads  # noqa: PLC0415

    settings = Settings.read()
    bench = open_workbench(settings, telling=True)
    after = parse_time(since, datetime.now(UTC)) if since else None
    with suppress(ArchiveError):  # an archive that is away is told below, for each execution that waits for it
        swept = sweep_uploads(bench, datetime.now(UTC))
        if swept and not as_json:
            say(f"Removed what {swept} broken-off uploads had left in the archive.")
    while True:
        settled = _show_settled(settle_round(bench, settings, since=after), as_json=as_json, always=once)
        if once:
            return WORLD if any(one.result in {"pending", "failed"} for one in settled) else OK
        after = None
        time.sleep(SETTLE_INTERVAL)


@ledger.command
def rebuild(*, as_json: Json = False) -> None:
    """Make the ledger anew from the archive and this workbench.

    Args:
        as_json: One JSON document.
    """
    catalog = open_catalog()
    with status_line("Reading the archive", quiet=as_json):
        count = catalog.workbench.rebuild_ledger()
    if as_json:
        show_json({"executions": count})
    else:
        say(f"The ledger has {pluralize(count, 'execution')}. Next: executions list")


def _as_json(one: Verified) -> dict[str, Any]:
    checks = [
        {"name": check.name, "passed": check.passed, "faults": check.faults, "unchecked": check.unchecked}
        for check in one.report.checks
    ]
    return {"place": one.place, "passed": one.report.passed, "signers": one.report.signers, "checks": checks}


def _show_verified(one: Verified) -> None:
    rows: list[tuple[str, str, str]] = []
    for check in one.report.checks:
        rows += [(check.name, "FAILED", fault) for fault in check.faults]
        rows += [(check.name, "unchecked", words) for words in check.unchecked]
        if check.passed and not check.unchecked:
            rows.append((check.name, "ok", ""))
    show_table(("check", "result", "what"), rows, title=one.place)
    failed = sum(not check.passed for check in one.report.checks)
    verdict = f"{failed} of {len(one.report.checks)} checks failed" if failed else "verified"
    say(f"{one.place}: {verdict}")


def _show_how_to_check(one: Verified, ring: KeyRing) -> None:
    if not one.report.signers:
        return
    # Start-up time of the CLI, as above.
    from prefect_executions.attestation.dsse import commands  # noqa: PLC0415

    named = {key.id: str(key.path) for key in ring.entries()}
    say("\nThe signature, checked in the bundle's folder by openssl, without this package:")
    for line in commands(named.get(one.report.signers[0], "SIGNER.pem")):
        say(f"  {line}")


def _show_settled(settled: Iterable[Settled], *, as_json: bool, always: bool) -> list[Settled]:
    told = list(settled)
    if as_json:
        show_json({"settled": told})
    else:
        show_table(
            ("id", "result", "status", "why"),
            ((one.id, one.result, one.status or "", one.message or "") for one in told),
        )
        if always and not told:
            say("Nothing is left to do.")
    return told


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
    catalog, trusted = open_catalog(), KeyRing(Settings.read()).trusted()
    with status_line("Reading the archive", quiet=as_json):
        found = list(audit_archive(catalog.workbench.archive, trusted, deep=deep, progress=looked_at.append))
    violations = [one for one in found if one.weight == "violation"]
    if as_json:
        show_json({"executions": looked_at[-1], "violations": len(violations), "findings": found})
    else:
        _show_findings(found if every else violations, found, looked_at[-1])
    return FAILED if violations else OK


def _show_findings(shown: list[AuditFinding], found: list[AuditFinding], executions: int) -> None:
    head = ("weight", "kind", "execution", "what")
    show_table(head, ((one.weight, one.kind, one.execution or "-", one.what) for one in shown))
    violations = [one for one in found if one.weight == "violation"]
    about = len({one.execution for one in violations if one.execution})
    told = f"{pluralize(executions, 'execution')}: {pluralize(len(violations), 'violation')}"
    say(told + (f" in {pluralize(about, 'execution')}" if about else ""))
    counts = Counter(one.kind for one in found if one.weight == "incomplete")
    for kind, count in sorted(counts.items()):
        say(f"not complete: {kind}: {count}")


keys = App(name="keys", help="The keys that seals are signed with and checked against.")


@keys.command
def create(*, name: str = "own", as_json: Json = False) -> None:
    """Make a signing key; from now on each seal is signed with it.

    Args:
        name: The name under which its public half is trusted here.
        as_json: One JSON document.
    """
    # Start-up time of the CLI: cryptography comes with it.
    from prefect_executions.workbench.keyring import KeyRing  # noqa: PLC0415

    ring = KeyRing(Settings.read())
    made = ring.create(name)
    if as_json:
        show_json({"id": made.id, "private": ring.private, "public": made.path})
        return
    show_facts([("key", made.id), ("private", str(ring.private)), ("public", str(made.path))])
    say("Keep the private file to yourself; give the public one to those who check what you sign.")
    say(f"Next, for them: executions keys trust {made.path.name} --name YOU")


@keys.command(name="list")
def list_keys(*, as_json: Json = False) -> None:
    """List the keys whose signatures are believed here.

    Args:
        as_json: One JSON document.
    """
    # Start-up time of the CLI, as above.
    from prefect_executions.workbench.keyring import KeyRing  # noqa: PLC0415

    found = KeyRing(Settings.read()).entries()
    if as_json:
        show_json({"keys": found})
        return
    show_table(
        ("name", "key", "own", "file"), ((one.name, one.id, "own" if one.own else "", one.path) for one in found)
    )
    if not found:
        say("No key is trusted here. Next: executions keys create, or executions keys trust FILE")


@keys.command
def trust(file: Path, /, *, name: str | None = None, as_json: Json = False) -> None:
    """Believe what is signed with a public key.

    Args:
        file: The public key in PEM, as 'executions keys create' and 'openssl pkey -pubout' write it.
        name: The name to remember it by; without one that of the file.
        as_json: One JSON document.
    """
    # Start-up time of the CLI, as above.
    from prefect_executions.workbench.keyring import KeyRing  # noqa: PLC0415

    told = KeyRing(Settings.read()).trust(file, name or file.stem)
    if as_json:
        show_json({"key": told})
    else:
        say(f"{told.name} is trusted from now on: {told.id}")
