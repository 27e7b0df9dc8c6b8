"""The keys of this home: the one that seals are signed with, and those of the people whose signature is believed.

::

    keys/
    ├── signing.pem        private, readable by its owner only
    └── trusted/NAME.pem   public keys, one's own among them

Law: no key is ever overwritten. With EXECUTIONS_SIGNING_KEY the private key lies
where that says, and ``trusted/`` beside it.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from prefect_executions.attestation.keys import SEED, SigningKey, VerifyingKey
from prefect_executions.errors import RequestError, SettingsError
from prefect_executions.settings import Settings

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._@-]{0,63}")


class Trusted(NamedTuple):
    """A public key whose signatures are believed; `own` is that of this home."""

    name: str
    id: str
    path: Path
    own: bool


class KeyRing:
    """The keys that lie where *settings* say."""

    def __init__(self, settings: Settings) -> None:
        self.private = settings.signing_key_file
        self._demanded = settings.signing_key is not None
        self._folder = self.private.parent / "trusted"

    def signing_key(self) -> SigningKey | None:
        """Return the key that seals are signed with; None where none is configured.

        Raises:
            SettingsError: If it cannot be read, or EXECUTIONS_SIGNING_KEY names a file that is not there.
        """
        try:
            pem = self.private.read_bytes()
        except FileNotFoundError:
            if self._demanded:
                raise SettingsError(
                    f"EXECUTIONS_SIGNING_KEY: there is no file {self.private}; 'executions keys create' makes it"
                ) from None
            return None
        except OSError as error:
            raise SettingsError(f"The signing key {self.private} cannot be read: {error.strerror}") from error
        return SigningKey.from_pem(pem, str(self.private))

    def trusted(self) -> Mapping[str, VerifyingKey]:
        """Return the public keys whose signatures are believed, by their ids.

        Raises:
            SettingsError: If one cannot be read.
        """
        keys = (self._read(path) for path in self._files())
        return {key.id: key for key in keys}

    def people(self) -> tuple[Trusted, ...]:
        """Return the trusted keys by name.

        Raises:
            SettingsError: If one cannot be read.
        """
        signing = self.signing_key() if self.private.exists() else None
        own = signing.public.id if signing else None
        found = ((path, self._read(path).id) for path in self._files())
        return tuple(Trusted(path.stem, key_id, path, own == key_id) for path, key_id in found)

    def create(self, name: str) -> Trusted:
        """Make a key, sign with it from now on, and trust it under *name*.

        Raises:
            RequestError: If there is a key already, or the name is taken or cannot be one.
        """
        target = self._place(name)
        key = SigningKey.of_seed(secrets.token_bytes(SEED))
        _write_new(self.private, key.pem, mode=0o600)
        _write_new(target, key.public.pem, mode=0o644)
        return Trusted(name, key.public.id, target, own=True)

    def trust(self, file: Path, name: str) -> Trusted:
        """Believe from now on what is signed with the public key in *file*, under *name*.

        Raises:
            RequestError: If the file is no such key, the key is trusted already, or the name is taken or cannot be one.
        """
        try:
            key = VerifyingKey.from_pem(file.read_bytes(), str(file))
        except OSError as error:
            raise RequestError(f"{file} cannot be read: {error.strerror}") from error
        known = next((one.name for one in self.people() if one.id == key.id), None)
        if known:
            raise RequestError(f"the key {key.id} is trusted already, as {known}")
        target = self._place(name)
        _write_new(target, key.pem, mode=0o644)
        return Trusted(name, key.id, target, own=False)

    def _place(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise RequestError(f"{name!r} cannot be the name of a key: letters, digits, '.', '_', '@' and '-' only")
        target = self._folder / f"{name}.pem"
        if target.exists():
            raise RequestError(f"a key is trusted as {name} already, {target}; give another --name")
        return target

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.pem"))

    def _read(self, path: Path) -> VerifyingKey:
        try:
            return VerifyingKey.from_pem(path.read_bytes(), str(path))
        except OSError as error:
            raise SettingsError(f"The trusted key {path} cannot be read: {error.strerror}") from error


def _write_new(path: Path, data: bytes, *, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise RequestError(f"there is a key already, {path}; it is never overwritten: move it away first") from None
    except OSError as error:
        raise SettingsError(f"The key {path} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
