"""Whose code a bundle has: sealed on this machine, signed by a trusted key, or foreign.

Law: nothing that the bundle says of itself makes its code trusted. Only this user's own files decide: a
seal on the workbench, a seal in the archive without an import mark, the list of what this user sealed
here in any home, or a signature by a trusted key.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256

from prefect_executions.attestation.policy import SignatureState
from prefect_executions.bundles.layout import check_execution_id
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.verify import Report
from prefect_executions.errors import ExecutionsError, ForeignCodeError
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.workbench.catalog import Catalog


@dataclass(frozen=True, kw_only=True)
class ForeignCode:
    """Code that no trusted key signed, from another machine; all of it but `signers` is what the bundle claims."""

    execution_id: str
    method: str
    entrypoint: str
    files: int
    repository: str
    agent: str
    host: str
    signers: tuple[str, ...]
    """The key ids of signatures that cannot be checked; without any, the bundle is not signed."""

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """Names and values, for a person who decides whether to run the code."""
        signed = f"by the unknown key {', '.join(self.signers)}, not checked" if self.signers else "no"
        return (
            ("execution", self.execution_id),
            ("method", self.method),
            ("code", f"{self.entrypoint} ({self.files} source {'file' if self.files == 1 else 'files'})"),
            ("repository", self.repository),
            ("requester", self.agent),
            ("host", self.host),
            ("signed", signed),
        )


Approve = Callable[[ForeignCode], bool]
"""Decides whether foreign code may run."""


def refuse(code: ForeignCode) -> bool:  # noqa: ARG001 - it is an `Approve`
    """Approve nothing."""
    return False


def check_code(catalog: Catalog, record: ExecutionRecord, report: Report, approve: Approve) -> None:
    """Let *approve* decide whether the code of a verified bundle may run, unless it is trusted.

    Raises:
        ForeignCodeError: If *approve* refuses.
    """
    if report.signature is SignatureState.TRUSTED or _sealed_here(catalog, record.id, report.manifest_sha256):
        return
    foreign = _foreign(record, report)
    if not approve(foreign):
        signed = "signed by an unknown key" if foreign.signers else "not signed"
        raise ForeignCodeError(
            f"nothing was run: the code of execution {record.id} was sealed elsewhere and is {signed}. "
            "Read its code, then run it with --yes, or trust its signer: executions keys trust FILE"
        )


def _sealed_here(catalog: Catalog, execution_id: str, manifest_sha256: str | None) -> bool:
    """Whether this user sealed the bundle with this manifest here, or the archive has it without an import mark."""
    if manifest_sha256 is None or catalog.workbench.local_seals.has(manifest_sha256):
        return manifest_sha256 is not None
    with suppress(ExecutionsError, OSError):  # in doubt it is foreign
        bundle = OpenBundle(catalog.workbench.folder, check_execution_id(execution_id))
        if bundle.sealed and sha256(bundle.paths.manifest.read_bytes()).hexdigest() == manifest_sha256:
            return True
        archive = catalog.workbench.archive
        seal = archive.seal_of(execution_id)
        if seal is not None and seal.manifest_sha256 == manifest_sha256:
            return archive.imported(execution_id) is None
    return False


def _foreign(record: ExecutionRecord, report: Report) -> ForeignCode:
    code = record.method.code
    repository = code.repository if code else None
    parts = (repository.remote, repository.commit) if repository else ()
    return ForeignCode(
        execution_id=record.id,
        method=f"{record.method.id} {record.method.version}",
        entrypoint=(code.entrypoint if code else None) or "unknown",
        files=len(code.files) if code else 0,
        repository=" ".join(filter(None, parts)),
        agent=record.agent.name or "",
        host=record.instance.hostname or "",
        signers=report.signers,
    )
