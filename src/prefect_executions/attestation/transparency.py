"""Checkpoints: who seals wrote down, signed, which seals there are, and each checkpoint names the one before.

What is signed is short, the head: number, time, the root of the Merkle tree over the
seals, and the digest of the checkpoint before. The seals stand beside it. So one
seal can be proved to be in it with a few hashes and the head alone.

Merkle trees as RFC 6962 (section 2.1) hashes them: one digest for a list, a short proof for each of its entries.
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
from prefect_executions.documents import Document, Part, Time
from prefect_executions.errors import BundleError


def leaf(data: bytes) -> bytes:
    """Return the hash of one entry of the list."""
    return sha256(b"\x00" + data).digest()


class Tree:
    """The tree over a list of leaves, which has at least one."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        # Pairs from the left, an odd last one as it is: the same tree as RFC 6962 splits from the top.
        self._levels = [list(leaves)]
        while len(self._levels[-1]) > 1:
            level = self._levels[-1]
            above = [_node(*level[at : at + 2]) for at in range(0, len(level) - 1, 2)]
            self._levels.append(above + level[len(level) - len(level) % 2 :])

    @property
    def root(self) -> bytes:
        return self._levels[-1][0]

    def path(self, index: int) -> list[bytes]:
        """Return the hashes that lead from the leaf *index* to the root (RFC 6962, section 2.1.1)."""
        found = []
        for level in self._levels[:-1]:
            beside = index ^ 1
            if beside < len(level):
                found.append(level[beside])
            index //= 2
        return found


def leads_to(root: bytes, of: bytes, index: int, size: int, path: Sequence[bytes]) -> bool:
    """Whether *path* proves that the leaf *of* is entry *index* of *size* under *root* (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    here, last = index, size - 1
    for beside in path:
        if last == 0:
            return False
        if here % 2 or here == last:
            of = _node(beside, of)
            while here % 2 == 0 and here:
                here, last = here // 2, last // 2
        else:
            of = _node(of, beside)
        here, last = here // 2, last // 2
    return last == 0 and of == root


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


HEAD_TYPE = "application/vnd.prefect-executions.checkpoint+json"

_DIGEST = r"^[0-9a-f]{64}$"


class SealEntry(Part):
    """One seal, by the digest of its manifest."""

    execution_id: str
    manifest_sha256: str = Field(pattern=_DIGEST)

    @property
    def leaf(self) -> bytes:
        """Its leaf in the tree."""
        return leaf(f"{self.execution_id} {self.manifest_sha256}".encode())


class SignatureTold(Part):
    """One signature as DSSE has it."""

    keyid: str
    sig: str


class Signed(Part):
    """A DSSE envelope as a part of a document."""

    payload_type: str
    payload: str
    signatures: tuple[SignatureTold, ...]

    @property
    def envelope(self) -> Envelope:
        """What it holds.

        Raises:
            BundleError: If it is no envelope.
        """
        return Envelope.from_json(self.model_dump_json(by_alias=True).encode(), "the head of a checkpoint")


class CheckpointHead(Document):
    """What is signed of a checkpoint."""

    file_name: ClassVar[str] = "checkpoint-head.json"

    number: int = Field(ge=1)
    previous: str | None = Field(default=None, pattern=_DIGEST)
    """The SHA-256 of the checkpoint before, as it is kept."""
    until: Time
    """When it was made, by the store's clock."""
    size: int = Field(ge=1)
    root: str = Field(pattern=_DIGEST)


class Checkpoint(Document):
    """The seals that were made since the checkpoint before."""

    file_name: ClassVar[str] = "checkpoint.json"

    head: Signed
    seals: tuple[SealEntry, ...]

    def told(self) -> CheckpointHead:
        """Return what its head says, which is to be believed only when its signature is right.

        Raises:
            BundleError: If it is no head of a checkpoint.
        """
        return _head_in(self.head)

    def faults(self) -> Iterator[str]:
        """Tell, one sentence each, where the seals are not those that the head speaks of."""
        head = self.told()
        if head.size != len(self.seals):
            yield f"it has {len(self.seals)} seals; its head says {head.size}"
        root = Tree([one.leaf for one in self.seals]).root.hex() if self.seals else "nothing"
        if root != head.root:
            yield f"the root of its seals is {root}; its head says {head.root}"


class Inclusion(Document):
    """The proof that a seal is in a checkpoint; it lies beside the seal in the archive, and in an exported bundle."""

    file_name: ClassVar[str] = "metadata/inclusion.json"

    seal: SealEntry
    index: int = Field(ge=0)
    path: tuple[str, ...]
    head: Signed

    def told(self) -> CheckpointHead:
        """Return what the checkpoint's head says, which is to be believed only when its signature is right.

        Raises:
            BundleError: If it is no head of a checkpoint.
        """
        return _head_in(self.head)

    @property
    def holds(self) -> bool:
        """Whether the path leads from the seal to the root in the head."""
        head = self.told()
        try:
            path = [bytes.fromhex(one) for one in self.path]
        except ValueError:
            return False
        return leads_to(bytes.fromhex(head.root), self.seal.leaf, self.index, head.size, path)


def checkpoint_of(
    seals: Sequence[SealEntry], *, number: int, previous: str | None, until: datetime, key: SigningKey
) -> Checkpoint:
    """Return the checkpoint *number* over *seals*, signed with *key*; *previous* is the digest of the one before."""
    root = Tree([one.leaf for one in seals]).root.hex()
    head = CheckpointHead(number=number, previous=previous, until=until, size=len(seals), root=root)
    told = json.loads(sealed_envelope(HEAD_TYPE, head.to_json(), key).to_json())
    return Checkpoint(head=Signed(**told), seals=tuple(seals))


def inclusions(checkpoint: Checkpoint) -> Iterator[Inclusion]:
    """Yield the proof of each seal of *checkpoint*."""
    tree = Tree([one.leaf for one in checkpoint.seals])
    for index, seal in enumerate(checkpoint.seals):
        path = tuple(one.hex() for one in tree.path(index))
        yield Inclusion(seal=seal, index=index, path=path, head=checkpoint.head)


def _head_in(signed: Signed) -> CheckpointHead:
    envelope = signed.envelope
    if envelope.payload_type != HEAD_TYPE:
        raise BundleError(f"the head of a checkpoint is {HEAD_TYPE}, and not {envelope.payload_type}")
    return CheckpointHead.from_json(envelope.payload)
