"""Ed25519 keys (RFC 8032) as values: made of PEM text, told by the digest of what is public of them.

Law: a signature depends on the key and the data alone, so signing twice gives the
same bytes.
"""

from __future__ import annotations

from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

from prefect_executions.errors import SettingsError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SEED = 32
"""The bytes of chance that a key is made of."""


class VerifyingKey:
    """What is public of a key."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key

    @classmethod
    def from_pem(cls, pem: bytes, name: str) -> VerifyingKey:
        """Read a public key as ``openssl pkey -pubout`` writes it; *name* says in the message where it is from.

        Raises:
            SettingsError: If it is none, or not of Ed25519.
        """
        # cryptography takes 70 ms to import and more on a cold disk; a run without a key must not pay for it.
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

        try:
            key = load_pem_public_key(pem)
        except ValueError as error:
            raise SettingsError(f"{name} is no public key in PEM: {error}") from error
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise SettingsError(f"{name} is a key of another kind; only Ed25519 is used here")
        return cls(key)

    @cached_property
    def pem(self) -> bytes:
        """The key as other tools read it."""
        from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415 - as above

        return self._key.public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)

    @cached_property
    def id(self) -> str:
        """The SHA-256 of the key in DER: ``openssl pkey -pubin -in KEY -outform DER | sha256sum``."""
        from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415 - as above

        return sha256(self._key.public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo)).hexdigest()

    def signed(self, data: bytes, signature: bytes) -> bool:
        """Whether *signature* is this key's, of *data*."""
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - as above

        try:
            self._key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """A whole key; it never shows what is private of it but in `pem`."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = VerifyingKey(key.public_key())

    @classmethod
    def of_seed(cls, seed: bytes) -> SigningKey:
        """Return the key that `SEED` bytes of chance make."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - as above

        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def from_pem(cls, pem: bytes, name: str) -> SigningKey:
        """Read a private key in PKCS#8 without a password; *name* says in the message where it is from.

        Raises:
            SettingsError: If it is none, has a password, or is not of Ed25519. The message never holds what was read.
        """
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415 - as above
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError):
            raise SettingsError(
                f"{name} is no private key in PEM without a password; 'executions keys create' makes one"
            ) from None
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise SettingsError(f"{name} is a key of another kind; 'executions keys create' makes one of Ed25519")
        return cls(key)

    @property
    def pem(self) -> bytes:
        """The key as it is kept in a file that nobody else may read."""
        from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415 - as above

        return self._key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())

    def sign(self, data: bytes) -> bytes:
        """Return the signature of *data*, 64 bytes."""
        return self._key.sign(data)
