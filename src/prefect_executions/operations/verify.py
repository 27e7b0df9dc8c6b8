"""Verify what somebody names: an execution where it is kept, a folder, a zip, or the address of a zip.

A manifest that somebody signed with ``ssh-keygen -Y sign``, checked against a file of allowed signers.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from prefect_executions.attestation.keys import VerifyingKey
from prefect_executions.bundles.incoming import find_bundles, open_container
from prefect_executions.bundles.layout import MANIFEST, SSH_SIGNATURE, BundleKind
from prefect_executions.bundles.source import Source
from prefect_executions.bundles.verify import DEFAULT_LIMITS, NO_KEYS, Check, Report, verify
from prefect_executions.errors import BundleError, NotAvailableError
from prefect_executions.operations.download import downloaded, is_url
from prefect_executions.workbench.catalog import ArchivedSource, Catalog
from prefect_executions.workbench.lookup import path_of

NAMESPACE = "prefect-executions"
"""What such a signature is for; one that was made for something else does not count."""

SSH_CHECK = "ssh-signature"
_LARGEST = 1 << 26
_SECONDS = 60


def ssh_check(source: Source, allowed: Path) -> Check:
    """Return whether the manifest in *source* is signed by one of those in the file *allowed*."""
    try:
        missing = [path for path in (MANIFEST, SSH_SIGNATURE) if not 0 < source.files.get(path, 0) <= _LARGEST]
        if missing:
            return Check(SSH_CHECK, (f"{missing[0]} is missing",))
        with TemporaryDirectory(prefix="signed-") as folder:
            for path in (MANIFEST, SSH_SIGNATURE):
                Path(folder, path).write_bytes(b"".join(source.blocks(path)))
            return Check(SSH_CHECK, _faults(Path(folder), allowed))
    except (BundleError, OSError, subprocess.TimeoutExpired) as error:
        return Check(SSH_CHECK, (f"{SSH_SIGNATURE} cannot be checked: {error}",))


def _faults(folder: Path, allowed: Path) -> tuple[str, ...]:
    asked = ["-f", str(allowed.absolute()), "-s", str(folder / SSH_SIGNATURE)]
    found = _ssh_keygen(["find-principals", *asked], folder / MANIFEST)
    principals = found.stdout.split("\n")[0].strip()
    if found.returncode or not principals:
        return (f"{SSH_SIGNATURE} is of nobody whom {allowed} allows: {found.stderr.strip()}",)
    told = _ssh_keygen(["verify", "-I", principals.split(",")[0], "-n", NAMESPACE, *asked], folder / MANIFEST)
    return (f"{SSH_SIGNATURE}: {(told.stderr or told.stdout).strip()}",) if told.returncode else ()


def _ssh_keygen(words: list[str], manifest: Path) -> subprocess.CompletedProcess[str]:
    with manifest.open("rb") as stdin:
        return subprocess.run(  # noqa: S603 - no shell, and every word is ours or a path
            ["ssh-keygen", "-Y", *words],  # noqa: S607 - the user's own
            stdin=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )


class Trust(NamedTuple):
    """Whose signatures are believed: the keys, by their ids, and a file of allowed signers as ssh-keygen reads it."""

    keys: Mapping[str, VerifyingKey] = NO_KEYS
    allowed: Path | None = None


NO_TRUST = Trust()


class Verified(NamedTuple):
    """One copy of a bundle, and what its verification found."""

    place: str
    report: Report


def verify_target(reader: Catalog, text: str, trust: Trust = NO_TRUST) -> Iterator[Verified]:
    """Verify every copy of what *text* names: a folder, a zip or a URL with bundles, or an execution by its id.

    A path that exists is meant before an id. Of an execution both copies are
    verified, that on this workbench first: either may be damaged alone.

    Raises:
        NotFoundError: If there is no such thing.
        NotAvailableError: If the execution is not sealed yet.
        ArchiveError: If the archive cannot be asked; the copy here was verified before.
    """
    if is_url(text):
        with downloaded(text) as path:
            yield from _verify_place(path, "download", trust)
    elif place := path_of(text):
        yield from _verify_place(place, "folder" if place.is_dir() else "zip", trust)
    else:
        yield from verify_execution(reader, reader.find(text), trust)


def verify_execution(reader: Catalog, execution_id: str, trust: Trust = NO_TRUST) -> Iterator[Verified]:
    """Verify the sealed copies of an execution, on this workbench and in the archive.

    Raises:
        NotAvailableError: If it is not sealed yet.
        ArchiveError: If the archive cannot be asked; the copy here was verified before.
    """
    local = reader.local_source(execution_id)
    if local is not None:
        yield Verified("workbench", _judged(local, trust))
    archived = reader.bundle_source(execution_id)
    if archived is not None:
        yield Verified("archive", _with_seal(archived, trust))
    elif local is None:
        status = reader.record(execution_id).status
        cure = "'executions settle --once' seals it" if status.terminal else "verify it when it has ended"
        raise NotAvailableError(f"execution {execution_id} is {status} and not sealed yet; {cure}.")


def _verify_place(path: Path, what: str, trust: Trust) -> Iterator[Verified]:
    """Verify each bundle of a folder or zip, in a bag or not; what is no whole export is verified as one bundle."""
    with suppress(BundleError), open_container(path, DEFAULT_LIMITS) as whole:
        found = find_bundles(whole)
        if all(one.kind is BundleKind.BUNDLE for one in found):
            for one in found:
                report = _judged(one.source, trust)
                yield Verified(what if len(found) == 1 else f"{what} {one.path}", report)
            return
    report = verify(path, trusted=trust.keys)
    if trust.allowed is not None:
        report = replace(report, checks=(*report.checks, Check(SSH_CHECK, ("it is no whole bundle that was signed",))))
    yield Verified(what, report)


def _judged(source: Source, trust: Trust) -> Report:
    report = verify(source, trusted=trust.keys)
    if trust.allowed is None:
        return report
    return replace(report, checks=(*report.checks, ssh_check(source, trust.allowed)))


def _with_seal(source: ArchivedSource, trust: Trust) -> Report:
    report = _judged(source, trust)
    return replace(report, checks=(Check("seal", tuple(source.seal_faults())), *report.checks))
