"""The envelope around what is signed: DSSE v1 (secure-systems-lab/dsse), read strictly, written in one form.

Each member stands on a line of its own, so that a reviewer gets at it with `sed`.
"""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

from prefect_executions.attestation.keys import SigningKey
from prefect_executions.documents import strict_json
from prefect_executions.errors import BundleError


class Signature(NamedTuple):
    """One signature, and the id of the key that it claims to be of."""

    key_id: str
    data: bytes


class Envelope(NamedTuple):
    """What is signed, of which type, and by whom."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    @property
    def signed(self) -> bytes:
        """The bytes that a signature is of."""
        return pae(self.payload_type, self.payload)

    def to_json(self) -> bytes:
        """Return the envelope's bytes; the same envelope gives the same bytes."""
        told = ",\n".join(_told(one) for one in self.signatures)
        return (
            f'{{\n  "payloadType": "{self.payload_type}",\n  "payload": "{_coded(self.payload)}",\n'
            f'  "signatures": [\n{told}\n  ]\n}}\n'
        ).encode()

    @classmethod
    def from_json(cls, data: bytes, name: str) -> Envelope:
        """Read an envelope; *name* says in the message which file it is.

        Raises:
            BundleError: If it is none.
        """
        match strict_json(data, name):
            case {"payloadType": str(kind), "payload": str(payload), "signatures": [_, *_] as told}:
                return cls(kind, _decoded(payload, name), tuple(_signature(one, name) for one in told))
            case _:
                raise BundleError(f"{name} is no DSSE envelope: payloadType, payload and signatures are what it has")


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return what DSSE signs: the type and the payload, each after its length, so that no two mean the same bytes."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sealed_envelope(payload_type: str, payload: bytes, key: SigningKey) -> Envelope:
    """Return *payload* signed with *key*."""
    return Envelope(payload_type, payload, (Signature(key.public.id, key.sign(pae(payload_type, payload))),))


def _told(signature: Signature) -> str:
    return f'    {{\n      "keyid": "{signature.key_id}",\n      "sig": "{_coded(signature.data)}"\n    }}'


def _signature(told: object, name: str) -> Signature:
    match told:
        case {"sig": str(data), "keyid": str(key_id)}:
            return Signature(key_id, _decoded(data, name))
        case _:
            raise BundleError(f"{name}: a signature has sig and keyid")


def _coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BundleError(f"{name}: this is no base64: {error}") from error
