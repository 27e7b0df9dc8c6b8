"""What this machine trusts: the key ring of a home, and the list of what its user sealed here.

::

    keys/
    ├── signing.pem        private key, readable by its owner only
    └── trusted/NAME.pem   public keys, including the one of signing.pem

Law: a key is never overwritten. EXECUTIONS_SIGNING_KEY moves the private key, and
``trusted/`` is always in its folder.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from prefect_executions.attestation.keys import SEED, SigningKey, VerifyingKey
from prefect_executions.attestation.policy import SignaturePolicy
from prefect_executions.documents import read_small
from prefect_executions.errors import RequestError, SettingsError
from prefect_executions.settings import Settings, SignatureRule

log = logging.getLogger(__name__)

_SHORTEST_ID = 8
"""The fewest digits of a key id that identify a key on the command line."""

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._@-]{0,63}")
_LIKE_AN_ID = re.compile(rf"[0-9A-Fa-f]{{{_SHORTEST_ID},}}")
_OWN = "own"
"""The name of the key that belongs to this home's private key, unless it was created with another."""


class TrustedKey(NamedTuple):
    """A public key whose signatures are accepted; `own` marks the key that belongs to this home's private key."""

    name: str
    id: str
    path: Path
    own: bool


class _NamedKey(NamedTuple):
    name: str
    key: VerifyingKey


class KeyRing:
    """The keys in the folder that *settings* name."""

    def __init__(self, settings: Settings) -> None:
        self.private = settings.signing_key_file
        self._required = settings.signing_key is not None
        self._unsigned = settings.signatures
        self._folder = self.private.parent / "trusted"

    def signing_key(self) -> SigningKey | None:
        """Return the private key that signs seals, or None if there is none.

        Raises:
            SettingsError: If it cannot be read, or EXECUTIONS_SIGNING_KEY names a missing file.
        """
        try:
            pem = read_small(self.private)
        except FileNotFoundError:
            if self._required:
                raise SettingsError(
                    f"EXECUTIONS_SIGNING_KEY: {self.private} does not exist; 'executions keys create' creates it"
                ) from None
            return None
        except OSError as error:
            raise SettingsError(f"The signing key {self.private} cannot be read: {error.strerror}") from error
        return SigningKey.from_pem(pem, str(self.private))

    def trusted(self) -> Mapping[str, VerifyingKey]:
        """Return the trusted public keys by their ids.

        Raises:
            SettingsError: If a key cannot be read.
        """
        keys = (self._read(path) for path in self._files())
        return {key.id: key for key in keys}

    def policy(
        self, *, signers: Iterable[str] = (), allow_unknown: bool = False, require: bool = False
    ) -> SignaturePolicy:
        """Return the signature policy of this home, which trusts the keys of `trusted` and its own key.

        *signers* restricts the signers to these keys: the name or the id of a trusted key,
        or a file with a public key, which is then trusted as well. *require* refuses
        unsigned bundles whatever the settings say.

        Raises:
            RequestError: If a signer is none of these.
            SettingsError: If a key cannot be read.
        """
        keys = [_NamedKey(path.stem, self._read(path)) for path in self._files()]
        with suppress(SettingsError):  # a key that cannot be read signs nothing; `announce` reports it
            own = self.signing_key() if self.private.exists() else None
            keys += [_NamedKey(_OWN, own.public)] if own else []
        accepted = [_signer(text, keys) for text in signers]
        return SignaturePolicy(
            trusted={named.key.id: named.key for named in (*keys, *accepted)},
            names={named.key.id: named.name for named in reversed((*keys, *accepted))},
            signers=frozenset(named.key.id for named in accepted),
            allow_unknown=allow_unknown,
            unsigned=SignatureRule.REQUIRE if require else self._unsigned,
        )

    def entries(self) -> tuple[TrustedKey, ...]:
        """Return the trusted keys with their names and files, sorted by name.

        Raises:
            SettingsError: If a key cannot be read.
        """
        signing = self.signing_key() if self.private.exists() else None
        own = signing.public.id if signing else None
        ids = ((path, self._read(path).id) for path in self._files())
        return tuple(TrustedKey(path.stem, key_id, path, own == key_id) for path, key_id in ids)

    def create(self, name: str) -> TrustedKey:
        """Create the private key that signs seals from now on, and trust its public key as *name*.

        Raises:
            RequestError: If there is a key already, or *name* is taken or invalid.
        """
        target = self._trusted_path(name)
        key = SigningKey.of_seed(secrets.token_bytes(SEED))
        _write_new(self.private, key.pem, mode=0o600)
        _write_new(target, key.public.pem, mode=0o644)
        return TrustedKey(name, key.public.id, target, own=True)

    def trust(self, file: Path, name: str) -> TrustedKey:
        """Accept signatures of the public key in *file* from now on, and call it *name*.

        Raises:
            RequestError: If *file* is not a public key, the key is trusted already, or *name* is taken or invalid.
        """
        try:
            key = VerifyingKey.from_pem(read_small(file), str(file))
        except OSError as error:
            raise RequestError(f"{file} cannot be read: {error.strerror}") from error
        known = next((entry.name for entry in self.entries() if entry.id == key.id), None)
        if known:
            raise RequestError(f"the key {key.id} is trusted already, as {known}")
        if name.lower() == _OWN:
            raise RequestError(f"the name {name} is for the key of this home; give another --name")
        target = self._trusted_path(name)
        _write_new(target, key.pem, mode=0o644)
        return TrustedKey(name, key.id, target, own=False)

    def _trusted_path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise RequestError(f"{name!r} is not a valid key name; use letters, digits, '.', '_', '@' and '-'")
        if _LIKE_AN_ID.fullmatch(name):  # it would be taken for the id of another key
            raise RequestError(f"the name {name} looks like the id of a key; give another --name")
        taken = next((path for path in self._files() if path.stem.lower() == name.lower()), None)
        if taken:
            raise RequestError(f"the name {name} is taken by {taken}; give another --name")
        return self._folder / f"{name}.pem"

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.pem"))

    def _read(self, path: Path) -> VerifyingKey:
        try:
            return VerifyingKey.from_pem(read_small(path), str(path))
        except OSError as error:
            raise SettingsError(f"The trusted key {path} cannot be read: {error.strerror}") from error


def _signer(text: str, keys: Iterable[_NamedKey]) -> _NamedKey:
    """Return the key that *text* names: the name or the id of one of *keys*, or a file with a public key."""
    named = [entry for entry in keys if entry.name == text]
    by_id = [entry for entry in keys if len(text) >= _SHORTEST_ID and entry.key.id.startswith(text)]
    matches = {entry.key.id: entry for entry in (*named, *by_id)}
    if len(matches) == 1:
        return next(iter(matches.values()))
    if matches:
        raise RequestError(f"--signer {text} names {len(matches)} keys: {', '.join(matches)}; give one of these ids")
    path = Path(text).expanduser()
    try:
        # A bare word is a name: the folder of an unpacked bundle may have a file of that name.
        if (len(path.parts) > 1 or path.suffix == ".pem") and path.is_file():
            return _NamedKey(path.stem, VerifyingKey.from_pem(read_small(path), text))
    except OSError as error:
        raise RequestError(f"--signer {text} cannot be read: {error.strerror}") from error
    raise RequestError(
        f"--signer {text} is neither the name nor the id of a trusted key, nor a file with a public key (FILE.pem). "
        "'executions keys list' shows the trusted keys"
    )


def _write_new(path: Path, data: bytes, *, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise RequestError(f"the key {path} exists and is never overwritten; move it away first") from None
    except OSError as error:
        raise SettingsError(f"The key {path} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


class LocalSeals:
    """The list of bundles that this user sealed on this machine, in a file outside of every home.

    It has the SHA-256 digest of each manifest, one a line; without a *file* the list is always empty. A replay
    does not ask before it runs their code, whichever home it uses. Only the sealing of a run adds to the list;
    nothing in a bundle does, and an import does not.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def add(self, manifest_sha256: str) -> None:
        """Append a digest; a failure is logged, because the seal does not depend on it."""
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, f"{manifest_sha256}\n".encode())  # one short write: lines never mix
            finally:
                os.close(descriptor)
        except OSError as error:
            log.debug("cannot add to the list of local seals: %s", error)

    def has(self, manifest_sha256: str) -> bool:
        """Whether the digest is on the list; False if others can write the list, or it is unreadable."""
        if self._file is None:
            return False
        with suppress(OSError), self._file.open("rb") as lines:
            status = os.fstat(lines.fileno())
            private = status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            return private and f"{manifest_sha256}\n".encode() in lines
        return False
