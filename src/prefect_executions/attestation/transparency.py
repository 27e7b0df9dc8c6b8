"""Checkpoints: signed lists of seals in a chain, with Merkle inclusion proofs (RFC 6962, section 2.1).

Only the short head is signed: number, time, the root of the Merkle tree over the seals, and
the digest of the previous checkpoint. The seals are stored beside the head. The head and a few
hashes are enough to prove that a seal is in a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from typing import ClassVar

from pydantic import Field

from prefect_executions.attestation.dsse import Envelope, sealed_envelope
from prefect_executions.attestation.keys import SigningKey
from prefect_executions.documents import ArchiveDocument, Part, Time
from prefect_executions.errors import BundleError


def leaf(data: bytes) -> bytes:
    """Return the leaf hash of an entry."""
    return sha256(b"\x00" + data).digest()


class Tree:
    """The Merkle tree over at least one leaf."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        # Pair from the left and keep an odd last node: this gives the tree that RFC 6962 splits from the top.
        self._levels = [list(leaves)]
        while len(self._levels[-1]) > 1:
            level = self._levels[-1]
            parents = [_node(*level[index : index + 2]) for index in range(0, len(level) - 1, 2)]
            self._levels.append(parents + level[len(level) - len(level) % 2 :])

    @property
    def root(self) -> bytes:
        return self._levels[-1][0]

    def path(self, index: int) -> list[bytes]:
        """Return the audit path from the leaf *index* to the root (RFC 6962, section 2.1.1)."""
        hashes = []
        for level in self._levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                hashes.append(level[sibling])
            index //= 2
        return hashes


def proves_inclusion(root: bytes, of: bytes, index: int, size: int, path: Sequence[bytes]) -> bool:
    """Whether *path* proves that the leaf *of* is entry *index* of *size* under *root* (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    position, last = index, size - 1
    for sibling in path:
        if last == 0:
            return False
        if position % 2 or position == last:
            of = _node(sibling, of)
            while position % 2 == 0 and position:
                position, last = position // 2, last // 2
        else:
            of = _node(of, sibling)
        position, last = position // 2, last // 2
    return last == 0 and of == root


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


HEAD_TYPE = "application/vnd.prefect-executions.checkpoint+json"

_DIGEST = r"^[0-9a-f]{64}$"


class SealEntry(Part):
    """A seal, identified by execution id and manifest digest."""

    execution_id: str
    manifest_sha256: str = Field(pattern=_DIGEST)

    @property
    def leaf(self) -> bytes:
        """The leaf hash of this seal."""
        return leaf(f"{self.execution_id} {self.manifest_sha256}".encode())


class EnvelopeSignature(Part):
    """A signature in a DSSE envelope."""

    keyid: str
    sig: str


class EmbeddedEnvelope(Part):
    """A DSSE envelope inside a document."""

    payload_type: str
    payload: str
    signatures: tuple[EnvelopeSignature, ...]

    @property
    def envelope(self) -> Envelope:
        """The parsed envelope.

        Raises:
            BundleError: If it is not a DSSE envelope.
        """
        return Envelope.from_json(self.model_dump_json(by_alias=True).encode(), "the head of a checkpoint")


class CheckpointHead(ArchiveDocument):
    """The signed part of a checkpoint."""

    file_name: ClassVar[str] = "checkpoint-head.json"

    number: int = Field(ge=1)
    previous: str | None = Field(default=None, pattern=_DIGEST)
    """The SHA-256 of the previous checkpoint's bytes."""
    until: Time
    """When the checkpoint was made, by the store's clock."""
    size: int = Field(ge=1)
    root: str = Field(pattern=_DIGEST)


class Checkpoint(ArchiveDocument):
    """The seals made since the previous checkpoint."""

    file_name: ClassVar[str] = "checkpoint.json"

    head: EmbeddedEnvelope
    seals: tuple[SealEntry, ...]

    def parsed_head(self) -> CheckpointHead:
        """Return the head; trust it only after its signature is verified.

        Raises:
            BundleError: If it is not the head of a checkpoint.
        """
        return _head_in(self.head)

    def faults(self) -> Iterator[str]:
        """Yield a sentence for each contradiction between the seals and the head."""
        head = self.parsed_head()
        if head.size != len(self.seals):
            yield f"it has {len(self.seals)} seals, but its head records {head.size}"
        root = Tree([seal.leaf for seal in self.seals]).root.hex() if self.seals else "nothing"
        if root != head.root:
            yield f"the root of its seals is {root}, but its head records {head.root}"


class Inclusion(ArchiveDocument):
    """The proof that a seal is in a checkpoint; stored beside the seal in the archive and in exported bundles."""

    file_name: ClassVar[str] = "metadata/inclusion.json"

    seal: SealEntry
    index: int = Field(ge=0)
    path: tuple[str, ...]
    head: EmbeddedEnvelope

    def parsed_head(self) -> CheckpointHead:
        """Return the head of the checkpoint; trust it only after its signature is verified.

        Raises:
            BundleError: If it is not the head of a checkpoint.
        """
        return _head_in(self.head)

    @property
    def holds(self) -> bool:
        """Whether the path proves that the seal is under the head's root."""
        head = self.parsed_head()
        try:
            path = [bytes.fromhex(text) for text in self.path]
        except ValueError:
            return False
        return proves_inclusion(bytes.fromhex(head.root), self.seal.leaf, self.index, head.size, path)


def checkpoint_of(
    seals: Sequence[SealEntry], *, number: int, previous: str | None, until: datetime, key: SigningKey
) -> Checkpoint:
    """Return the checkpoint *number* over *seals*, signed with *key*; *previous* is the digest of the previous one."""
    root = Tree([seal.leaf for seal in seals]).root.hex()
    head = CheckpointHead(number=number, previous=previous, until=until, size=len(seals), root=root)
    envelope = json.loads(sealed_envelope(HEAD_TYPE, head.to_json(), key).to_json())
    return Checkpoint(head=EmbeddedEnvelope(**envelope), seals=tuple(seals))


def inclusions(checkpoint: Checkpoint) -> Iterator[Inclusion]:
    """Yield the proof of each seal of *checkpoint*."""
    tree = Tree([seal.leaf for seal in checkpoint.seals])
    for index, seal in enumerate(checkpoint.seals):
        path = tuple(node.hex() for node in tree.path(index))
        yield Inclusion(seal=seal, index=index, path=path, head=checkpoint.head)


def _head_in(signed: EmbeddedEnvelope) -> CheckpointHead:
    envelope = signed.envelope
    if envelope.payload_type != HEAD_TYPE:
        raise BundleError(f"the head of a checkpoint must be of type {HEAD_TYPE}, not {envelope.payload_type}")
    return CheckpointHead.from_json(envelope.payload)
