"""What the archive has of an execution whose Workbench is out of reach: its opening record, and data sent early."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

from prefect_executions.archive.archive import Archive
from prefect_executions.archive.objects import folder_of
from prefect_executions.bundles import layout
from prefect_executions.bundles.zip_reader import OWN, ZipReader
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import ExecutionRecord, OpeningRecord, kept_files

_DATA = "data/"


class Recovered(NamedTuple):
    """A record as it was opened, with the Method's code; `outputs` is the key of an output.zip that was sent early."""

    record: ExecutionRecord
    code: dict[str, bytes]
    inputs: dict[str, str]
    outputs: str | None


def recover(archive: Archive, execution_id: str) -> Recovered | None:
    """Return what the archive has of an execution that was never sealed, or None where it was not announced.

    Raises:
        ArchiveError: If the archive cannot be asked.
        BundleError: If its opening record is damaged.
    """
    data = archive.opening(execution_id)
    if data is None:
        return None
    opening = OpeningRecord.from_json(data)
    record = opening.record()
    found = {one.key.rpartition("/")[2]: one for one in archive.store.list(folder_of(execution_id) + _DATA)}
    staged = {file.sha256 for file in record.request.files}
    kept = {file.path: file.sha256 for file in record.request.files if file.path and file.sha256 in found}
    record = replace(record, request=kept_files(record.request, kept))
    zips = sorted((one for digest, one in found.items() if digest not in staged), key=lambda one: str(one.modified))
    code = {path: text.encode() for path, text in opening.code.items()}
    return Recovered(record, code, kept, zips[-1].key if zips else None)


def restore(archive: Archive, recovered: Recovered, folder: Path) -> None:
    """Bring what was sent early into the *folder* that is about to become a bundle.

    Raises:
        ArchiveError: If the archive cannot be asked.
        BundleError: If what lies there is damaged.
        OSError: If the disk cannot be written.
    """
    data = folder_of(recovered.record.id) + _DATA
    for path, digest in recovered.inputs.items():
        _fetch(archive, data + digest, folder / path)
    if recovered.outputs is not None:
        zipped = folder / layout.OUTPUT_ZIP
        _fetch(archive, recovered.outputs, zipped)
        with zipped.open("rb") as stream:
            _unpack(stream, folder)
        zipped.unlink()


def _fetch(archive: Archive, key: str, to: Path) -> None:
    found = archive.store.head(key)
    if found is not None:
        to.parent.mkdir(parents=True, exist_ok=True)
        archive.store.download(key, to, found.size, key.rpartition("/")[2])


def _unpack(stream: BinaryIO, folder: Path) -> None:
    reader = ZipReader.open(stream, OWN)
    for entry in reader.entries.values():
        if not entry.name.startswith(f"{layout.OUTPUTS}/"):
            raise BundleError(f"{layout.OUTPUT_ZIP} of {folder.name} holds {entry.name!r}, which is no output")
        place = folder / entry.name
        if entry.is_folder:
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("wb") as file:
            for block in reader.blocks(entry):
                file.write(block)
