"""Signing keys for tests, and bundles that are signed with them."""

from __future__ import annotations

from pathlib import Path

from bundle_makers import an_open_bundle
from prefect_executions.attestation.keys import SigningKey
from prefect_executions.attestation.policy import SignaturePolicy
from prefect_executions.bundles.gather import gather
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.seal import seal
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.settings import SignatureRule


def a_key(letter: str = "a") -> SigningKey:
    """Return a key that is the same each time."""
    return SigningKey.of_seed(letter.encode() * 32)


def a_signed_bundle(
    workbench: Path, record: ExecutionRecord | None = None, key: SigningKey | None = None
) -> OpenBundle:
    bundle = an_open_bundle(workbench, record)
    with bundle.lock():
        told = bundle.read(JobStatus).model_copy(update={"outputs": gather(bundle).outputs})
        bundle.write_document(told)
        seal(bundle, key or a_key())
    return bundle


def trusting(*keys: SigningKey) -> SignaturePolicy:
    """Return the policy that trusts these keys, and notes unsigned bundles."""
    trusted = {key.public.id: key.public for key in keys or (a_key(),)}
    return SignaturePolicy(trusted=trusted, unsigned=SignatureRule.NOTE)
