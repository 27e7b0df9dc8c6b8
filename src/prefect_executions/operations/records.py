"""The small files of a sealed execution in the archive, held against its seal and the list of its objects."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import BinaryIO

from prefect_executions.archive.objects import INCLUSION, Seal
from prefect_executions.attestation.transparency import Inclusion
from prefect_executions.bundles import layout, manifest
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import BundleFile
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.workbench.archiving import is_bulk

_BESIDE = (layout.ATTESTATION, layout.INCLUSION, layout.SSH_SIGNATURE)
_READ = (layout.MANIFEST, JobStatus.file_name, *_BESIDE)
_LARGEST = 64 << 20

Fault = tuple[str, str]
"""Of which kind a fault is, and a sentence."""


class SealedRecord:
    """A sealed execution as an audit sees it: a source for the verification of its signature, too.

    *objects* are the sizes of all that lies there, by name; *found* the content of those that `wanted` names.
    """

    oddities: tuple[str, ...] = ()
    absent: Mapping[str, str] = {}

    def __init__(self, seal: Seal, objects: Mapping[str, int], found: Mapping[str, bytes]) -> None:
        self.seal, self.objects = seal, objects
        self._data = {path: found[seal.object_of(path)] for path in _READ if seal.object_of(path) in found}
        self._proof = found.get(INCLUSION)
        self.files: Mapping[str, int] = {path: len(data) for path, data in self._data.items()}

    @staticmethod
    def wanted(seal: Seal, objects: Mapping[str, int]) -> Iterator[str]:
        """Yield the names of the objects that are to be read."""
        for path in _READ:
            if 0 <= objects.get(seal.object_of(path), -1) <= _LARGEST:
                yield seal.object_of(path)
        if 0 <= objects.get(INCLUSION, -1) <= _LARGEST:
            yield INCLUSION

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield a file's content."""
        yield self._data[path]

    def open(self, path: str) -> BinaryIO:
        """Open a file."""
        return io.BytesIO(self._data[path])

    def proof(self) -> Inclusion | None:
        """Return the proof that its seal is in a checkpoint, where there is one.

        Raises:
            BundleError: If it is damaged, or is that of another seal.
        """
        if self._proof is None:
            return None
        told = Inclusion.from_json(self._proof)
        sealed = (self.seal.execution_id, self.seal.manifest_sha256)
        if not told.holds or (told.seal.execution_id, told.seal.manifest_sha256) != sealed:
            raise BundleError(
                f"{INCLUSION} does not lead from this seal to the root of checkpoint {told.told().number}"
            )
        return told

    def faults(self) -> Iterator[Fault]:
        """Tell where seal, manifest, job status and objects do not fit each other."""
        data = self._data.get(layout.MANIFEST)
        if data is None:
            yield "missing", f"{layout.MANIFEST} is missing"
            return
        found = sha256(data).hexdigest()
        if found != self.seal.manifest_sha256:
            yield "digest", f"{layout.MANIFEST} is {found}; the seal says {self.seal.manifest_sha256}"
        try:
            listed = manifest.parse(data)
        except BundleError as error:
            yield "damaged", str(error)
            return
        yield from self._object_faults(listed)
        yield from self._status_faults(listed)
        if found == self.seal.manifest_sha256:
            yield from self._name_faults(listed, found)

    def _object_faults(self, listed: Mapping[str, str]) -> Iterator[Fault]:
        seal = self.seal
        zipped = layout.OUTPUT_ZIP in seal.data
        for path in listed:
            if path in seal.absent or (zipped and path.startswith(f"{layout.OUTPUTS}/")):
                continue
            if seal.object_of(path) not in self.objects:
                yield "missing", f"{path!r} is missing: there is no {seal.object_of(path)}"
        for path, data in seal.data.items():
            if listed.get(path) != data.sha256:
                yield "digest", f"{path!r} is {data.sha256} in the seal; the manifest says {listed.get(path)}"
            size = self.objects.get(data.object)
            if size not in {None, data.size}:
                yield "digest", f"{path!r} has {size} bytes; the seal says {data.size}"
        for name in self.objects:
            path = seal.path_of(name)
            if name.startswith(seal.objects) and path not in listed and path not in layout.UNLISTED:
                yield "added", f"{path!r} is there and the manifest does not list it"

    def _status_faults(self, listed: Mapping[str, str]) -> Iterator[Fault]:
        data = self._data.get(JobStatus.file_name)
        if data is None:
            return
        found = sha256(data).hexdigest()
        if found != listed.get(JobStatus.file_name):
            told = listed.get(JobStatus.file_name)
            yield "digest", f"{JobStatus.file_name!r} is {found}; the manifest says {told}"
        try:
            status = JobStatus.from_json(data)
        except BundleError as error:
            yield "damaged", str(error)
            return
        pairs: Mapping[str, tuple[object, object]] = {
            "execution": (status.job_id, self.seal.execution_id),
            "status": (status.execution_status, self.seal.status),
            "end": (status.finished, self.seal.finished),
        }
        for what, (said, sealed) in pairs.items():
            if said != sealed:
                yield "forged", f"the {what} is {sealed} in the seal; {JobStatus.file_name} says {said}"

    def _name_faults(self, listed: Mapping[str, str], found: str) -> Iterator[Fault]:
        """The folder is named by all small files in it, so a signature that is taken away or put there is seen."""
        files = [BundleFile(path, digest, 0) for path, digest in listed.items() if not is_bulk(path)]
        files.append(BundleFile(layout.MANIFEST, found, 0))
        beside = [path for path in _BESIDE if path in self._data]
        files += [BundleFile(path, sha256(self._data[path]).hexdigest(), 0) for path in beside]
        name = f"sealed-{sha256(manifest.render(files)).hexdigest()[:16]}/"
        if name != self.seal.objects:
            what = ", ".join(beside) or "no signature"
            yield "signature", f"what signs it is not what it was sealed with: {what} is there"
