"""An open bundle as one zip, so that a suspended run can go on with it on another machine.

What is staged anew (inputs) and what is made at the end (`output.zip`, PROV, crate)
stays behind. What is no plain file with a UTF-8 name does, too: a link or a pipe
means nothing elsewhere.
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
    """Write the documents, code and outputs of *bundle* as a zip into its scratch folder and return where it is.

    It must be called under the bundle's lock, when nobody writes outputs any more.

    Raises:
        BundleError: If a file cannot be read or the disk is full.
    """
    there = bundle.scratch / "suspended.zip"
    try:
        with there.open("wb") as file:
            writer = ZipWriter(file.write)
            for path in _carried(bundle):
                size = (bundle.folder / path).stat().st_size
                writer.add_stream(path, _blocks(bundle.folder / path), size, deflate=True)
            writer.close()
    except OSError as error:
        there.unlink(missing_ok=True)
        raise BundleError(f"the open bundle {bundle.id} cannot be packed: {error}; free some space") from error
    return there


def unpack(stream: BinaryIO, workbench: Path, execution_id: str) -> OpenBundle:
    """Make the open bundle that `pack` packed, on *workbench*; all of it is there at once or nothing is.

    The zip is hostile input: what has no place in an open bundle is refused.

    Raises:
        BundleError: If it is damaged, or is not that execution's; or if the bundle is there already.
    """
    try:
        reader = ZipReader.open(stream, Limits())
    except BundleError as error:
        raise BundleError(f"the suspended bundle of {execution_id} cannot be read: {error}") from error
    strange = [name for name in reader.entries if not _has_place(name)]
    if strange:
        raise BundleError(f"the suspended bundle of {execution_id} holds {strange[0]!r}, which has no place there")
    limit = Limits().document
    whole = [entry for name, entry in reader.entries.items() if not _is_output(name)]
    if any(entry.size > limit for entry in whole):
        raise BundleError(f"the suspended bundle of {execution_id} has a document of more than {limit} bytes")

    def fill(folder: Path) -> None:
        for name, entry in reader.entries.items():
            if _is_output(name):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with (folder / name).open("xb") as file:
                    file.writelines(reader.blocks(entry))

    documents = {entry.name: b"".join(reader.blocks(entry)) for entry in whole}
    bundle = OpenBundle.create(workbench, execution_id, documents, fill=fill)
    found = bundle.record().id
    if found != execution_id:
        bundle.discard()
        raise BundleError(f"the suspended bundle of {execution_id} is that of {found}")
    return bundle


def _carried(bundle: OpenBundle) -> Iterator[str]:
    yield from sorted(name for name in _DOCUMENTS if (bundle.folder / name).is_file())
    for top in (layout.CODE, layout.OUTPUTS):
        yield from list_files(str(bundle.folder), top).files


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(lambda: file.read(_BLOCK), b"")


def _is_output(name: str) -> bool:
    return name.startswith(f"{layout.OUTPUTS}/")


def _has_place(name: str) -> bool:
    return name in _DOCUMENTS or (
        layout.is_bundle_path(name) and name.startswith((f"{layout.CODE}/", f"{layout.OUTPUTS}/"))
    )
