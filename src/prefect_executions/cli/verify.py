"""`executions verify`, `audit`, `keys`, `settle`, `ledger`: integrity of bundles and archive, signing keys, repair."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from prefect_executions.cli.arguments import (
    DEFAULT_SIGNATURES,
    Json,
    SignatureOptions,
    TimeOption,
    connect_local_server,
    open_catalog,
    open_workbench,
    parse_time,
    set_defaults,
)
from prefect_executions.cli.completion import Selected
from prefect_executions.cli.exit_codes import FAILED, OK, WORLD
from prefect_executions.cli.output import (
    format_time,
    pluralize,
    say,
    say_words,
    show_facts,
    show_json,
    status_line,
    warn,
    warn_error,
)
from prefect_executions.cli.selection import is_search, select
from prefect_executions.cli.tables import id_column, name_column, show_table, text_column
from prefect_executions.documents import read_small
from prefect_executions.errors import ArchiveError, ExecutionsError, RequestError
from prefect_executions.settings import Settings

if TYPE_CHECKING:
    from prefect_executions.attestation.policy import SignaturePolicy
    from prefect_executions.bundles.verify import Report
    from prefect_executions.operations.audit import AuditFinding
    from prefect_executions.operations.verify import Verified
    from prefect_executions.workbench.catalog import Catalog
    from prefect_executions.workbench.local_copy import Restored
    from prefect_executions.workbench.recovery import Settled

keys = App(name="keys", help="Manage the keys that sign and verify seals.")
ledger = App(name="ledger", help="Maintain the index of executions.")

_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")

SETTLE_INTERVAL = 60.0
"""Seconds between two rounds of `settle`."""


def verify(
    *targets: Selected,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"])] = False,
    signatures: SignatureOptions = DEFAULT_SIGNATURES,
    allowed_signers: Path | None = None,
    restore: bool = False,
    as_json: Json = False,
) -> int:
    """Verify bundles: digests, signature, and that their documents agree.

    For an execution, both copies are verified: on the workbench and in the
    archive.

    Args:
        targets: Ids or id prefixes, folders, zips, or the https://, http:// or s3:// addresses of zips; or one query
            such as 'started:-7d'.
        verbose: Show every check, and the commands that check the signature with openssl.
        allowed_signers: Require manifest-sha256.txt.sig by a signer in this file (see ALLOWED SIGNERS in ssh-keygen).
        restore: First replace each damaged file on the workbench by the sealed one, from output.zip or the archive.
        as_json: Print one JSON document: every check with its faults; for several targets, a list of these documents.
    """
    if not targets:
        raise RequestError("give what to verify: an id, a query, a folder, a zip or the address of a zip")
    if allowed_signers is not None and not allowed_signers.is_file():
        raise RequestError(
            f"--allowed-signers {allowed_signers}: file not found; 'man ssh-keygen' describes its format"
        )
    settings = Settings.read()
    catalog, policy = open_catalog(settings), signatures.policy(settings)
    check = _Verification(catalog, settings, policy, allowed_signers, verbose=verbose, restore=restore, as_json=as_json)
    if len(targets) == 1 and not is_search(targets[0]):
        shown = check.run(targets[0])
        if as_json:
            show_json(shown)
        return OK if shown["passed"] else FAILED
    words = select(catalog, targets).ids if any(map(is_search, targets)) else targets
    return _show_several([_verified(check, word) for word in words], as_json=as_json)


def _verified(check: _Verification, target: str) -> dict[str, Any]:
    try:
        return check.run(target)
    except ExecutionsError as error:  # it must not end the verification of the others
        if not check.as_json:
            warn_error(error)
        return {"target": target, "passed": False, "error": str(error)}


def _show_several(results: list[dict[str, Any]], *, as_json: bool) -> int:
    passed = sum(result["passed"] for result in results)
    if as_json:
        show_json({"passed": passed == len(results), "targets": results})
    else:
        say(f"{passed} of {pluralize(len(results), 'target')} verified")
    return OK if passed == len(results) else FAILED


@dataclass(frozen=True)
class _Verification:
    """How targets are verified and shown."""

    catalog: Catalog
    settings: Settings
    policy: SignaturePolicy
    allowed: Path | None
    _: KW_ONLY
    verbose: bool
    restore: bool
    as_json: bool

    def run(self, target: str) -> dict[str, Any]:
        """Verify *target*, show what fails, and return the JSON document."""
        # Start-up time of the CLI: lxml comes with it.
        from prefect_executions.operations.verify import verify_target  # noqa: PLC0415

        copies: list[Verified] = []
        restored = _restore(self.catalog, target) if self.restore else None
        if restored and not self.as_json:
            _show_restored(restored)
        for verified in verify_target(self.catalog, target, signatures=self.policy, allowed=self.allowed):
            copies.append(verified)
            self._show_copy(verified)
        if not self.as_json:
            for report, places in _grouped(copies):
                _show_verdict(report, places, self.policy)
            if self.verbose:
                _show_openssl_commands(copies[-1].report, self.settings)
        passed = all(verified.report.passed for verified in copies)
        documents = [_as_json(verified, self.policy) for verified in copies] if self.as_json else []
        shown = {"target": target, "passed": passed, "copies": documents}
        return shown | ({"restored": restored} if restored else {})

    def _show_copy(self, verified: Verified) -> None:
        if self.as_json:
            return
        if self.verbose or not verified.report.passed:
            _show_checks(verified, verbose=self.verbose)
        if not self.verbose:
            for note in _notes(verified.report):
                warn(note)


def _restore(catalog: Catalog, target: str) -> Restored:
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.bundles.open_bundle import OpenBundle  # noqa: PLC0415
    from prefect_executions.workbench.local_copy import restore_copy  # noqa: PLC0415

    bench = catalog.workbench
    return restore_copy(bench.archive, OpenBundle(bench.folder, catalog.find(target)))


def _show_restored(restored: Restored) -> None:
    for path in restored.restored:
        say(f"restored: {path}")
    for path in restored.lost:
        warn(f"not restored: {path}: neither output.zip nor the archive has it as it was sealed")
    if restored.restored:
        say(f"The changed files are in {restored.aside}")


def _as_json(verified: Verified, policy: SignaturePolicy) -> dict[str, Any]:
    report = verified.report
    checks = [
        {"name": check.name, "passed": check.passed, "faults": check.faults, "unchecked": check.unchecked}
        for check in report.checks
    ]
    return {
        "place": verified.place,
        "passed": report.passed,
        "signers": report.signers,
        "signature": report.signature,
        "signerNames": [policy.names.get(signer) for signer in report.signers],
        "subject": report.subject,
        "checks": checks,
    }


def _notes(report: Report) -> Iterator[str]:
    """Yield a sentence for each skipped file and hard link, on absent files, on unknown signers, and on a recall."""
    noted = {"container", "layout", "digests", "annotations"}
    yield from (note for check in report.checks if check.name in noted for note in check.unchecked)


def _show_checks(verified: Verified, *, verbose: bool) -> None:
    """Show every check, or only those that failed."""
    rows: list[tuple[str, str, str]] = []
    failed: dict[str, list[str]] = {}
    for check in verified.report.checks:
        for fault in check.faults:
            failed.setdefault(fault, []).append(check.name)
    people = sys.stdout.isatty()
    for check in verified.report.checks:
        for fault in check.faults:
            if not people:
                rows.append((check.name, "FAILED", fault))
            elif failed[fault][0] == check.name:  # a document that cannot be read fails several checks
                also = f" (also fails: {', '.join(failed[fault][1:])})" if len(failed[fault]) > 1 else ""
                rows.append((check.name, "FAILED", _DIGEST.sub(r"\1…", fault) + also))
        if verbose:
            rows += [(check.name, "unchecked", reason) for reason in check.unchecked]
        if verbose and check.passed and not check.unchecked:
            rows.append((check.name, _result(verified.report, check.name), ""))
    show_table(("check", "result", text_column("what")), rows, title=verified.place)


def _result(report: Report, check: str) -> str:
    """Return the result of a check that passed; nothing is ok that does not exist."""
    if check == "signature" and report.signature == "unsigned":
        return "unsigned"
    return "no proof" if check == "inclusion" and not report.proven else "ok"


def _grouped(copies: Iterable[Verified]) -> list[tuple[Report, list[str]]]:
    """Return each report with the places of all copies for which the verdict is the same."""
    groups: list[tuple[Report, list[str]]] = []
    for place, report in copies:
        last = groups[-1][0] if groups else None
        if last and last.passed and report.passed and (last.subject, last.signers) == (report.subject, report.signers):
            groups[-1][1].append(place)
        else:
            groups.append((report, [place]))
    return groups


def _show_verdict(report: Report, places: list[str], policy: SignaturePolicy) -> None:
    """Show the verdict with the id, then Method, status, time and signature, as far as the bundle has them."""
    failed = sum(not check.passed for check in report.checks)
    verdict = f"FAILED ({failed} of {len(report.checks)} checks)" if failed else "verified"
    subject = report.subject
    of = f"execution {subject.execution_id}, " if subject else ""
    say_words(f"{of}{' and '.join(places)}: {verdict}")
    what = [f"{subject.method} {subject.version}", subject.status, format_time(subject.finished)] if subject else []
    if subject or report.signature != "unsigned":
        say_words("  ".join(filter(None, [*what, _signed(report, policy)])))


def _signed(report: Report, policy: SignaturePolicy) -> str:
    signers = ", ".join(map(policy.name_of, report.signers))
    signed = {
        "unsigned": "unsigned",
        "trusted": f"signed by {signers}",
        "unknown": f"signed by the unknown key {signers}, not checked",
    }
    return signed.get(report.signature, "its signature is invalid")


def _show_openssl_commands(report: Report, settings: Settings) -> None:
    if not report.signers:
        return
    # Start-up time of the CLI, as above.
    from prefect_executions.attestation.dsse import commands  # noqa: PLC0415
    from prefect_executions.workbench.keyring import KeyRing  # noqa: PLC0415

    paths = {key.id: str(key.path) for key in KeyRing(settings).entries()}
    say("\nTo check the signature with openssl, run in the bundle's folder:")
    for line in commands(paths.get(report.signers[0], "SIGNER.pem")):
        say(f"  {line}")


def audit(
    *,
    deep: bool = False,
    every: bool = False,
    checkpoint: Path | None = None,
    signatures: SignatureOptions = DEFAULT_SIGNATURES,
    as_json: Json = False,
) -> int:
    """Audit the archive: find tampering and report what is incomplete.

    It reads seals, manifests, job statuses, signatures and checkpoints, not
    the other files. The exit code is 1 if one of these was changed, removed or
    replaced; incomplete records do not change it.

    Args:
        deep: Also verify every execution, which reads all data.
        every: List incomplete records instead of counting them.
        checkpoint: Copy of a checkpoint that was kept elsewhere; the archive must still have all that it lists.
        as_json: Print one JSON document with every finding.
    """
    # Start-up time of the CLI: archive and bundles come with it.
    from prefect_executions.operations.audit import audit as audit_archive  # noqa: PLC0415

    counts, settings = [0], Settings.read()
    policy, kept = signatures.policy(settings), _read_copy(checkpoint) if checkpoint else None
    bench = open_catalog(settings).workbench
    bench.archive_identity.check()
    with status_line("Reading the archive", quiet=as_json):
        findings = list(audit_archive(bench.archive, policy, deep=deep, witness=kept, progress=counts.append))
    violations = [finding for finding in findings if finding.weight == "violation"]
    if as_json:
        show_json({"executions": counts[-1], "violations": len(violations), "findings": findings})
    else:
        _show_findings(findings if every else violations, findings, counts[-1], signs=bool(policy.trusted))
    return FAILED if violations else OK


def _read_copy(checkpoint: Path) -> bytes:
    try:
        return read_small(checkpoint)
    except OSError as error:
        raise RequestError(f"--checkpoint {checkpoint} cannot be read: {error.strerror}") from error


def _show_findings(shown: list[AuditFinding], findings: list[AuditFinding], executions: int, *, signs: bool) -> None:
    head = ("weight", "kind", id_column("execution"), text_column("what"))
    show_table(head, ((finding.weight, finding.kind, finding.execution or "-", finding.what) for finding in shown))
    violations = [finding for finding in findings if finding.weight == "violation"]
    affected = len({finding.execution for finding in violations if finding.execution})
    summary = f"{pluralize(executions, 'execution')}: {pluralize(len(violations), 'violation')}"
    say(summary + (f" in {pluralize(affected, 'execution')}" if affected else ""))
    counts = Counter(finding.kind for finding in findings if finding.weight == "incomplete")
    for kind, count in sorted(counts.items()):
        if kind == "unsigned" and not signs:  # no defect of the archive
            say_words(f"note: {pluralize(count, 'execution')} without a signature; no key is configured here")
        else:
            say(f"incomplete: {kind}: {count}")
    for finding in findings:
        if finding.kind == "no-checkpoint" and not finding.execution:
            say(f"note: {finding.what}")


@keys.command
def create(*, name: str = "own", as_json: Json = False) -> None:
    """Create a signing key, which signs every later seal.

    Args:
        name: Name of the public key in the list of trusted keys.
        as_json: Print one JSON document.
    """
    # Start-up time of the CLI: cryptography comes with it.
    from prefect_executions.workbench.keyring import KeyRing  # noqa: PLC0415

    ring = KeyRing(Settings.read())
    key = ring.create(name)
    if as_json:
        show_json({"id": key.id, "private": ring.private, "public": key.path})
        return
    show_facts([("key", key.id), ("private", str(ring.private)), ("public", str(key.path))])
    say_words("Keep the private file secret, and send the public file to those who verify your signatures.")
    say(f"They run: executions keys trust {key.path.name} --name YOU")


@keys.command(name="list")
def list_keys(*, as_json: Json = False) -> None:
    """List the trusted keys.

    Args:
        as_json: Print one JSON document.
    """
    # Start-up time of the CLI, as above.
    from prefect_executions.workbench.keyring import KeyRing  # noqa: PLC0415

    trusted = KeyRing(Settings.read()).entries()
    if as_json:
        show_json({"keys": trusted})
        return
    show_table(
        (name_column("name"), "key", "own", text_column("file")),
        ((key.name, key.id, "own" if key.own else "", key.path) for key in trusted),
    )
    if not trusted:
        say("No key is trusted. Next: executions keys create, or executions keys trust FILE")


@keys.command
def trust(file: Path, /, *, name: str | None = None, as_json: Json = False) -> None:
    """Trust signatures by a public key.

    Args:
        file: Public key in PEM format, from 'executions keys create' or 'openssl pkey -pubout'.
        name: Name of the key (default: the name of the file).
        as_json: Print one JSON document.
    """
    # Start-up time of the CLI, as above.
    from prefect_executions.workbench.keyring import KeyRing  # noqa: PLC0415

    key = KeyRing(Settings.read()).trust(file, name or file.stem)
    if as_json:
        show_json({"key": key})
    else:
        say(f"Trusted {key.name}: {key.id}")


def settle(*, once: bool = False, since: TimeOption = None, accept_archive: bool = False, as_json: Json = False) -> int:
    """Seal executions that ended without a seal, and archive sealed ones.

    It compares Prefect, the archive and the workbench, and leaves running
    executions alone. Before the first round it removes old, incomplete uploads
    from the archive.

    Args:
        once: Run one round; without --once, one every minute until interrupted.
        since: In the first round, also check executions that ended after this time: a date, a time, or 7d, 12h ago.
        accept_archive: Use the archive although it is not the one that this workbench used before.
        as_json: Print one JSON document for each round.
    """
    set_defaults()
    # Start-up time of the CLI: Prefect, archive and bundles come with it.
    from prefect_executions.settle.loop import settle as settle_round  # noqa: PLC0415
    from prefect_executions.workbench.recovery import sweep_uploads  # noqa: PLC0415

    settings = Settings.read()
    connect_local_server(settings)
    bench = open_workbench(settings, with_events=True)
    if accept_archive:
        bench.archive_identity.accept()
    after = parse_time(since, datetime.now(UTC)) if since else None
    with suppress(ArchiveError):  # an unavailable archive is reported below, for each execution that waits for it
        swept = sweep_uploads(bench, datetime.now(UTC))
        if swept and not as_json:
            say(f"Removed {pluralize(swept, 'incomplete upload')} from the archive.")
    while True:
        results = _show_settled(settle_round(bench, settings, since=after), as_json=as_json, always=once)
        if once:
            return WORLD if any(entry.result in {"pending", "failed"} for entry in results) else OK
        after = None
        time.sleep(SETTLE_INTERVAL)


def _show_settled(settled: Iterable[Settled], *, as_json: bool, always: bool) -> list[Settled]:
    results = list(settled)
    if as_json:
        show_json({"settled": results})
    else:
        show_table(
            (id_column(), "result", "status", text_column("why")),
            ((entry.id, entry.result, entry.status or "", entry.message or "") for entry in results),
        )
        if always and not results:
            say("Nothing to settle.")
    return results


@ledger.command
def rebuild(*, as_json: Json = False) -> int:
    """Rebuild the ledger from the archive and the workbench.

    Damaged executions are listed; the exit code is 4 if there are any.

    Args:
        as_json: Print one JSON document.
    """
    # Start-up time of the CLI, as above.
    from prefect_executions.workbench.index import rebuild_ledger  # noqa: PLC0415

    catalog = open_catalog()
    with status_line("Reading the archive", quiet=as_json):
        count, problems = rebuild_ledger(catalog.workbench)
    if as_json:
        show_json({"executions": count} | ({"problems": problems} if problems else {}))
    else:
        show_table((id_column("execution"), text_column("problem")), problems, title="damaged")
        say(f"The ledger has {pluralize(count, 'execution')}. Next: executions {'audit' if problems else 'list'}")
    return WORLD if problems else OK
