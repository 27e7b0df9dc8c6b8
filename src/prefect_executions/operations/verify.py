"""Verification of a target: an execution on the workbench and in the archive, a folder, a zip, or the URL of a zip.

`ssh_check` checks a signature of ``ssh-keygen -Y sign`` on the manifest against a file of allowed signers.
"""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import NamedTuple

from prefect_executions.attestation.policy import TRUST_NOBODY, SignaturePolicy
from prefect_executions.bundles.bag import BAG_DECLARATION
from prefect_executions.bundles.incoming import (
    NO_BUNDLE,
    Container,
    misnamed,
    open_container,
    read_container,
)
from prefect_executions.bundles.layout import (
    CRATE,
    DOCUMENTS,
    MANIFEST,
    OUTPUT_ZIP,
    PROVENANCE,
    SSH_SIGNATURE,
    BundleKind,
)
from prefect_executions.bundles.source import Source, hard_linked
from prefect_executions.bundles.verify import DEFAULT_LIMITS, MAX_SHOWN, Check, Report, verify
from prefect_executions.errors import ArchiveError, BundleError, NotAvailableError, RequestError
from prefect_executions.operations.download import downloaded, is_url
from prefect_executions.workbench.archived_source import ArchivedSource
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.lookup import path_of

NAMESPACE = "prefect-executions"
"""The namespace of an SSH signature (``ssh-keygen -n``); signatures for other purposes are rejected."""

SSH_CHECK = "ssh-signature"
CONTAINER = "container"
"""The check of what is around the bundles of a folder or zip: names of folders, `export.json`, other files."""

_MARKS = frozenset(
    name
    for path in (MANIFEST, BAG_DECLARATION, PROVENANCE, CRATE, OUTPUT_ZIP, *(kind.file_name for kind in DOCUMENTS))
    for name in (PurePosixPath(path).name, path.replace("/", "_"))
)
"""Names of files by which a folder can be a bundle or hold bundles, in folders or in the flat form of CCP."""

_MOST_LOOKED_AT = 20_000
_LARGEST = 1 << 26
_SECONDS = 60


def ssh_check(source: Source, allowed: Path) -> Check:
    """Check that the manifest in *source* is signed by one of the signers in the file *allowed*."""
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
    files = ["-f", str(allowed.absolute()), "-s", str(folder / SSH_SIGNATURE)]
    search = _ssh_keygen(["find-principals", *files], folder / MANIFEST)
    principals = search.stdout.split("\n")[0].strip()
    if search.returncode or not principals:
        return (f"the signer of {SSH_SIGNATURE} is not in {allowed}: {search.stderr.strip()}",)
    check = _ssh_keygen(["verify", "-I", principals.split(",")[0], "-n", NAMESPACE, *files], folder / MANIFEST)
    return (f"{SSH_SIGNATURE}: {(check.stderr or check.stdout).strip()}",) if check.returncode else ()


def _ssh_keygen(arguments: list[str], manifest: Path) -> subprocess.CompletedProcess[str]:
    with manifest.open("rb") as stdin:
        return subprocess.run(  # noqa: S603 - no shell; every argument is ours or a path
            ["ssh-keygen", "-Y", *arguments],  # noqa: S607 - the one on the user's PATH
            stdin=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )


class Verified(NamedTuple):
    """The verification report of one copy of a bundle."""

    place: str
    report: Report


def verify_target(
    catalog: Catalog, text: str, *, signatures: SignaturePolicy = TRUST_NOBODY, allowed: Path | None = None
) -> Iterator[Verified]:
    """Verify every copy of a target: all bundles of a folder, zip or URL, or an execution by its id.

    *signatures* says which signers are accepted; *allowed*, a file of allowed signers as
    ssh-keygen reads it, requires an SSH signature of each manifest as well.

    An existing path precedes an id. Both copies of an execution are verified, first
    the one on this workbench: each may be damaged alone.

    Raises:
        NotFoundError: If the target does not exist.
        RequestError: If a folder holds no bundle.
        NotAvailableError: If the execution is not sealed yet.
        ArchiveError: If the archive is unavailable; the local copy has been verified then.
    """
    trust = _Trust(signatures, allowed)
    if is_url(text):
        with downloaded(text) as file:
            yield from _verify_path(file, "download", trust)
    elif path := path_of(text):
        yield from _verify_path(path, "folder" if path.is_dir() else "zip", trust)
    else:
        yield from verify_execution(catalog, catalog.find(text), signatures=signatures, allowed=allowed)


def verify_execution(
    catalog: Catalog, execution_id: str, *, signatures: SignaturePolicy = TRUST_NOBODY, allowed: Path | None = None
) -> Iterator[Verified]:
    """Verify the sealed copies of an execution, on this workbench and in the archive.

    Raises:
        NotAvailableError: If it is not sealed yet.
        ArchiveError: If the archive is unavailable or lost its copy; the local copy has been verified then.
    """
    trust = _Trust(signatures, allowed)
    local = catalog.local_source(execution_id)
    here = _report(local, trust) if local is not None else None
    if here is not None:
        yield Verified("workbench", here)
    archived = catalog.bundle_source(execution_id)
    if archived is not None:
        yield Verified("archive", _report_with_seal(archived, trust, here))
    elif local is None:
        status = catalog.record(execution_id).status
        cure = "'executions settle --once' seals it" if status.terminal else "verify it when it has ended"
        raise NotAvailableError(f"execution {execution_id} is {status} and not sealed yet; {cure}.")
    elif catalog.storage_state(execution_id).archive == "archived":
        raise ArchiveError(
            f"{catalog.workbench.archive.store.url} has no copy of execution {execution_id}, which was archived. Mount "
            "its disk, or correct EXECUTIONS_ARCHIVE. The copy on the workbench is at "
            f"{catalog.storage_state(execution_id).folder}."
        )


class _Trust(NamedTuple):
    signatures: SignaturePolicy
    allowed: Path | None


def _verify_path(path: Path, what: str, trust: _Trust) -> Iterator[Verified]:
    """Verify each bundle of a folder or zip, with or without a bag; a damaged one is verified as one bundle."""
    if path.is_dir() and not _has_marks(path):
        raise RequestError(f"the folder {path} holds no bundle: none of its files has the name of a bundle's document")
    with ExitStack() as stack:
        try:
            source = stack.enter_context(open_container(path, DEFAULT_LIMITS))
        except BundleError as error:
            container = Check(CONTAINER, (str(error),))
            if not path.is_dir():
                yield Verified(what, Report((container,)))
                return
        else:
            try:
                found = read_container(source)
            except BundleError as error:
                yield Verified(what, Report((Check(CONTAINER, (str(error),)),)))
                return
            if found.bundles and all(bundle.kind is BundleKind.BUNDLE for bundle in found.bundles):
                yield from _verify_bundles(found, path, what, trust)
                return
            container = Check(CONTAINER, () if found.bundles else (NO_BUNDLE,))
            if not any(PurePosixPath(file).name in _MARKS for file in source.files):
                yield Verified(what, Report((container,)))
                return
    report = verify(path, signatures=trust.signatures)
    report = replace(report, checks=(container, *report.checks))
    if trust.allowed is not None:
        report = replace(
            report, checks=(*report.checks, Check(SSH_CHECK, ("the target is not a complete signed bundle",)))
        )
    yield Verified(what, report)


def _has_marks(folder: Path) -> bool:
    """Whether a file below *folder* has the name of a bundle's document, among the first files from the top."""
    waiting, seen = deque([folder]), 0
    while waiting and seen < _MOST_LOOKED_AT:
        with suppress(OSError), os.scandir(waiting.popleft()) as scan:
            for entry in scan:
                seen += 1
                if entry.name in _MARKS:
                    return True
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
    return bool(waiting)  # too many: the search for bundles decides


def _verify_bundles(found: Container, path: Path, what: str, trust: _Trust) -> Iterator[Verified]:
    container: tuple[Check, ...] = (_container_check(found, path),)
    for bundle in found.bundles:
        report = _report(bundle.source, trust)
        report = replace(report, checks=(*container, *report.checks))
        yield Verified(what if len(found.bundles) == 1 else f"{what} {bundle.path}", report)
        container = ()


def _container_check(found: Container, path: Path) -> Check:
    faults = [*found.faults(), *found.folder_faults()]
    if path.is_dir() and not found.bundles[0].path and 0 in found.ids:
        folder, execution_id = path.resolve().name, found.ids[0].id
        faults += [misnamed(folder, execution_id)] if folder != execution_id else []
    linked = sorted(hard_linked(path)) if path.is_dir() else ()
    notes = [f"{name!r} is also a file outside the folder (a hard link): a write there changes it" for name in linked]
    return Check(CONTAINER, _capped(faults), (*found.notes(), *notes))


def _report(source: Source, trust: _Trust) -> Report:
    report = verify(source, signatures=trust.signatures)
    if trust.allowed is None:
        return report
    return replace(report, checks=(*report.checks, ssh_check(source, trust.allowed)))


def _report_with_seal(source: ArchivedSource, trust: _Trust, local: Report | None) -> Report:
    """Verify the archived copy, and compare its manifest with that of the *local* copy."""
    report = _report(source, trust)
    faults = [*source.seal_faults()]
    here = local.manifest_sha256 if local else None
    if here and report.manifest_sha256 and here != report.manifest_sha256:
        faults.append(
            f"{MANIFEST} has the digest {report.manifest_sha256} in the archive and {here} on the workbench: one of "
            "the bundles was replaced. 'executions audit' compares the archive with its checkpoints"
        )
    return replace(report, checks=(Check("seal", _capped(faults)), *report.checks))


def _capped(faults: Sequence[str]) -> tuple[str, ...]:
    more = [f"and {len(faults) - MAX_SHOWN} more"] if len(faults) > MAX_SHOWN else []
    return (*faults[:MAX_SHOWN], *more)
