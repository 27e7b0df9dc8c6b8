"""What is signed, and how: DSSE envelopes, in-toto statements with SLSA provenance, Merkle trees, Ed25519 keys."""

from prefect_executions.attestation.envelopes import Envelope, pae, sealed_envelope
from prefect_executions.attestation.keys import SigningKey, VerifyingKey
from prefect_executions.attestation.statements import PAYLOAD_TYPE, Statement, statement_of

__all__ = [
    "PAYLOAD_TYPE",
    "Envelope",
    "SigningKey",
    "Statement",
    "VerifyingKey",
    "pae",
    "sealed_envelope",
    "statement_of",
]
