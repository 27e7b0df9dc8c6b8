"""The objects beside a sealed bundle in the archive: its opening record, its import record and its late seals.

The manifest lists none of them. `faults_beside` compares them with the seal and with each other;
`documents_beside` reads them one by one, so that a damaged object hides no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import NamedTuple, TypeVar

from prefect_executions.archive.marks import SKEW
from prefect_executions.archive.objects import IMPORTED, INCLUSION, LATE, OPENING, SEAL, SUSPENDED, Imported, Seal
from prefect_executions.bundles.annotations import ANNOTATION_NAME, FOLDER
from prefect_executions.documents import Document, strict_json
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import OpeningRecord
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.workbench.sealing import LateSeal

D = TypeVar("D", bound=Document)

_LATE_NAME = re.compile(rf"{LATE}([0-9a-f]{{16}})\.json")

Fault = tuple[str, str]
"""The kind of a fault, and a sentence."""


class Beside(NamedTuple):
    """The readable objects beside a seal, and one fault for each that is damaged."""

    opening: OpeningRecord | None = None
    imported: Imported | None = None
    late: tuple[LateSeal, ...] = ()
    faults: tuple[Fault, ...] = ()


def is_beside(name: str) -> bool:
    """Whether an object with this *name*, relative to its execution, may lie beside a seal."""
    return name in {OPENING, IMPORTED} or bool(_LATE_NAME.fullmatch(name) or ANNOTATION_NAME.fullmatch(name))


def belongs(name: str, seal: Seal) -> bool:
    """Whether an object with this *name*, relative to its execution, may exist if *seal* does."""
    beside = {SEAL, OPENING, IMPORTED, INCLUSION, SUSPENDED}
    return name in beside or name.startswith((LATE, FOLDER)) or seal.names(name)


def documents_beside(execution_id: str, objects: Mapping[str, bytes]) -> Beside:
    """Read the objects beside a seal, by their names below the folder of the execution."""
    faults: list[Fault] = []

    def read(name: str, kind: type[D]) -> D | None:
        data = objects.get(name)
        if data is None or (name == OPENING and not data):  # an opening record may be empty after a power cut
            return None
        try:
            strict_json(data, name)
            return kind.from_json(data)
        except BundleError as error:
            faults.append(("damaged", f"{name!r} is damaged: {error}"))
            return None

    opening, imported = read(OPENING, OpeningRecord), read(IMPORTED, Imported)
    late = [(name, read(name, LateSeal)) for name in sorted(objects) if _LATE_NAME.fullmatch(name)]
    ids = {name: seal.execution_id for name, seal in late if seal is not None}
    if opening is not None:
        ids[OPENING] = opening.job_status.job_id
    if imported is not None:
        ids[IMPORTED] = imported.execution_id
    foreign = {name: other for name, other in ids.items() if other != execution_id}
    faults += [("forged", f"{name!r} is of execution {other}") for name, other in foreign.items()]
    return Beside(
        opening if OPENING not in foreign else None,
        imported if IMPORTED not in foreign else None,
        tuple(seal for name, seal in late if seal is not None and name not in foreign),
        tuple(faults),
    )


def faults_beside(seal: Seal, objects: Mapping[str, bytes], job_status: JobStatus | None) -> Iterator[Fault]:
    """Yield the faults of the objects beside *seal*; *job_status* is the sealed one, if it can be read."""
    beside = documents_beside(seal.execution_id, objects)
    yield from beside.faults
    yield from _late_faults(seal, objects, beside.late)
    opening, imported = beside.opening, beside.imported
    if opening is not None and job_status is not None and opening.method.id != job_status.process_id:
        yield "forged", f"the Method is {job_status.process_id}; {OPENING} says {opening.method.id}"
    if imported is None:
        return
    if OPENING in objects:
        yield "forged", f"{IMPORTED} says that it was imported, but {OPENING} says that it began here"
    if imported.manifest_sha256 != seal.manifest_sha256:
        yield (
            "forged",
            f"the manifest is {seal.manifest_sha256} in the seal; {IMPORTED} says {imported.manifest_sha256}",
        )
    if seal.finished and imported.imported < seal.finished - SKEW:
        yield "forged", f"it was imported at {imported.imported}, before its end at {seal.finished}"


def _late_faults(seal: Seal, objects: Mapping[str, bytes], late: Iterable[LateSeal]) -> Iterator[Fault]:
    for name, data in sorted(objects.items()):
        match = _LATE_NAME.fullmatch(name)
        if match and match[1] != sha256(data).hexdigest()[:16]:
            yield "digest", f"{name!r} is not named by its digest"
    for late_seal in late:
        if late_seal.manifest_sha256 == seal.manifest_sha256:
            yield "forged", f"a late seal names the manifest that was sealed, {seal.manifest_sha256}"
