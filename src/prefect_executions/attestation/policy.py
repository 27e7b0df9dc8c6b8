"""The signature policy: which signatures a verification accepts, and whether a bundle must have one.

Law: every policy refuses a signature that does not fit the content. The default policy trusts
no key, so it refuses every signature: a caller that forgets its policy accepts too little, not too much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple, Self

from prefect_executions.attestation.dsse import Envelope
from prefect_executions.attestation.keys import VerifyingKey
from prefect_executions.settings import SignatureRule

_SHORT_ID = 16
"""Digits of a key id in a message to a person."""


class SignatureState(StrEnum):
    """What a verification found out about the signature of a bundle."""

    UNSIGNED = "unsigned"
    """It has no signature."""
    TRUSTED = "trusted"
    """Every signature is valid, and by a trusted key."""
    UNKNOWN = "unknown"
    """A signature is by a key that is not trusted here, so it cannot be checked."""
    INVALID = "invalid"
    """A signature is damaged, wrong, or covers other content."""


class JudgedSignature(NamedTuple):
    """One signature of an envelope: the key id that it claims, and whether it holds."""

    key_id: str
    state: SignatureState


@dataclass(frozen=True, kw_only=True)
class SignaturePolicy:
    """The accepted signers of bundles, and the rule for unsigned bundles."""

    trusted: Mapping[str, VerifyingKey] = field(default_factory=lambda: MappingProxyType({}))
    """The trusted public keys by their ids."""
    names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """The names of trusted keys by their ids."""
    signers: frozenset[str] = frozenset()
    """The ids of the keys one of which must have signed; without any, each trusted key may sign."""
    allow_unknown: bool = False
    """Whether a signature by an unknown key is accepted, although it cannot be checked."""
    unsigned: SignatureRule = SignatureRule.IGNORE

    @property
    def required(self) -> bool:
        """Whether an unsigned bundle is refused."""
        return self.unsigned is SignatureRule.REQUIRE or bool(self.signers)

    def judge(self, envelope: Envelope) -> tuple[JudgedSignature, ...]:
        """Check each signature of *envelope*."""
        signed = envelope.signed  # each access decodes it again
        return tuple(
            JudgedSignature(signature.key_id, self._state(signed, signature.key_id, signature.data))
            for signature in envelope.signatures
        )

    def name_of(self, key_id: str) -> str:
        """Return the name of a key with the beginning of its id, or the whole id of an unknown key."""
        name = self.names.get(key_id)
        return f"{name} ({key_id[:_SHORT_ID]})" if name else key_id

    def accepting_unknown(self, *, when: bool) -> Self:
        """Return this policy, which also accepts signatures of unknown keys if *when* is true."""
        return replace(self, allow_unknown=self.allow_unknown or when)

    def _state(self, signed: bytes, key_id: str, signature: bytes) -> SignatureState:
        key = self.trusted.get(key_id)
        if key is None:
            return SignatureState.UNKNOWN
        return SignatureState.TRUSTED if key.signed(signed, signature) else SignatureState.INVALID


TRUST_NOBODY = SignaturePolicy()
"""The default: no key is trusted, and an unsigned bundle is accepted."""
