"""Ed25519 keys (RFC 8032) as values, read from PEM and identified by the digest of the public key.

Law: a signature depends only on the key and the data, so signing twice gives identical bytes.
"""

from __future__ import annotations

from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

from prefect_executions.errors import SettingsError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SEED = 32
"""The number of random bytes from which a key is derived."""


class VerifyingKey:
    """A public key."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key

    @classmethod
    def from_pem(cls, pem: bytes, name: str) -> VerifyingKey:
        """Read a public key as ``openssl pkey -pubout`` writes it; *name* is its origin, for error messages.

        Raises:
            SettingsError: If *pem* is not a public key, or not an Ed25519 key.
        """
        # Importing cryptography takes 70 ms, more on a cold disk; a run without a key does not need it.
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

        try:
            key = load_pem_public_key(pem)
        except ValueError as error:
            raise SettingsError(f"{name} is not a public key in PEM: {error}") from error
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise SettingsError(f"{name} is not an Ed25519 key; no other kind is supported")
        return cls(key)

    @cached_property
    def pem(self) -> bytes:
        """The key in PEM."""
        from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415 - as above

        return self._key.public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)

    @cached_property
    def id(self) -> str:
        """The SHA-256 of the key in DER: ``openssl pkey -pubin -in KEY -outform DER | sha256sum``."""
        from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415 - as above

        return sha256(self._key.public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo)).hexdigest()

    def signed(self, data: bytes, signature: bytes) -> bool:
        """Whether *signature* is a valid signature of *data* with this key."""
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - as above

        try:
            self._key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """A private key; only `pem` reveals it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = VerifyingKey(key.public_key())

    @classmethod
    def of_seed(cls, seed: bytes) -> SigningKey:
        """Derive a key from `SEED` random bytes."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - as above

        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def from_pem(cls, pem: bytes, name: str) -> SigningKey:
        """Read a private key in PKCS#8 without a password; *name* is its origin, for error messages.

        Raises:
            SettingsError: If *pem* is not a private key, has a password, or is not an Ed25519 key. The message
                never contains the key.
        """
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415 - as above
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError):
            raise SettingsError(
                f"{name} is not a private key in PEM without a password; 'executions keys create' creates one"
            ) from None
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise SettingsError(f"{name} is not an Ed25519 key; 'executions keys create' creates one")
        return cls(key)

    @property
    def pem(self) -> bytes:
        """The key in PEM (PKCS#8), for a file that only its owner can read."""
        from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415 - as above

        return self._key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())

    def sign(self, data: bytes) -> bytes:
        """Return the signature of *data*, 64 bytes."""
        return self._key.sign(data)
