"""Packs an open bundle into a zip, so that a suspended run can resume on another machine.

The zip has the documents, code and outputs. Inputs are staged again, and `output.zip`,
PROV and crate are written at the end. Links, pipes and files whose name is not UTF-8
are left out, because they mean nothing on another machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from prefect_executions.bundles import layout
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.sanitize import list_files
from prefect_executions.bundles.zip_reader import Limits, ZipReader
from prefect_executions.bundles.zip_writer import ZipWriter
from prefect_executions.errors import BundleError

_BLOCK = 1 << 20
_DOCUMENTS = frozenset(document.file_name for document in layout.DOCUMENTS)


def pack(bundle: OpenBundle) -> Path:
    """Write the documents, code and outputs of *bundle* as a zip into its scratch folder and return the zip's path.

    Call it under the bundle's lock, when nothing writes outputs any more.

    Raises:
        BundleError: If a file cannot be read or the disk is full.
    """
    target = bundle.scratch / "suspended.zip"
    try:
        with target.open("wb") as file:
            writer = ZipWriter(file.write)
            for path in _packed_paths(bundle):
                size = (bundle.folder / path).stat().st_size
                writer.add_stream(path, _blocks(bundle.folder / path), size, deflate=True)
            writer.close()
    except OSError as error:
        target.unlink(missing_ok=True)
        raise BundleError(f"the open bundle {bundle.id} cannot be packed: {error}; free some space") from error
    return target


def unpack(stream: BinaryIO, workbench: Path, execution_id: str) -> OpenBundle:
    """Create the open bundle from the zip that `pack` wrote, on *workbench*, in one atomic step.

    The zip is hostile input: a file that does not belong in an open bundle is refused.

    Raises:
        BundleError: If it is damaged, belongs to another execution or to one that has ended, or if the bundle
            exists already.
    """
    try:
        reader = ZipReader.open(stream, Limits())
    except BundleError as error:
        raise BundleError(f"the suspended bundle of {execution_id} cannot be read: {error}") from error
    refused = [name for name in reader.entries if not _is_allowed(name)]
    if refused:
        raise BundleError(f"the suspended bundle of {execution_id} contains {refused[0]!r}, which is not allowed in it")
    limit = Limits().document
    documents = [entry for name, entry in reader.entries.items() if not _is_output(name)]
    if any(entry.size > limit for entry in documents):
        raise BundleError(f"the suspended bundle of {execution_id} has a document of more than {limit} bytes")

    def fill(folder: Path) -> None:
        for name, entry in reader.entries.items():
            if _is_output(name):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with (folder / name).open("xb") as file:
                    file.writelines(reader.blocks(entry))

    files = {entry.name: b"".join(reader.blocks(entry)) for entry in documents}
    bundle = OpenBundle.create(workbench, execution_id, files, fill=fill)
    record = bundle.record()
    if record.id != execution_id or record.status.terminal:
        bundle.discard()
        fault = f"belongs to {record.id}" if record.id != execution_id else f"is {record.status}, so it was forged"
        raise BundleError(f"the suspended bundle of {execution_id} {fault}")
    return bundle


def _packed_paths(bundle: OpenBundle) -> Iterator[str]:
    yield from sorted(name for name in _DOCUMENTS if (bundle.folder / name).is_file())
    for top in (layout.CODE, layout.OUTPUTS):
        yield from list_files(str(bundle.folder), top).files


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(lambda: file.read(_BLOCK), b"")


def _is_output(name: str) -> bool:
    return name.startswith(f"{layout.OUTPUTS}/")


def _is_allowed(name: str) -> bool:
    return name in _DOCUMENTS or (
        layout.is_bundle_path(name) and name.startswith((f"{layout.CODE}/", f"{layout.OUTPUTS}/"))
    )
