"""Bundles on a workbench for tests: open, gathered, sealed, and forged."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.gather import gather
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.seal import seal
from prefect_executions.capture.packages import requirements_of
from prefect_executions.comparison.verdict import Verdict
from prefect_executions.executions.record import BundleFile, ExecutionRecord
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.methods.model import DIFF as DIFF_PATH
from prefect_executions.methods.model import REQUIREMENTS
from records import DIFF, a_record, contents_of


class MemorySource:
    """A bundle in memory, to be changed byte by byte."""

    irregular: tuple[str, ...] = ()
    empty_folders: tuple[str, ...] = ()

    def __init__(self, files: Mapping[str, bytes], absent: Mapping[str, str] | None = None) -> None:
        self._content = files
        self.absent = absent or {}
        self.files = {path: len(data) for path, data in files.items()}

    def blocks(self, path: str) -> Iterator[bytes]:
        yield self._content[path]

    def open(self, path: str) -> BinaryIO:
        return io.BytesIO(self._content[path])


def an_open_bundle(workbench: Path, record: ExecutionRecord | None = None) -> OpenBundle:
    """Return a bundle as it is when the Method has ended: with documents, code, input and outputs."""
    record = record or a_record()
    bundle = OpenBundle.create(workbench, record.id)
    for name, data in contents_of(record).items():
        bundle.write(name, data)
    return bundle


def finish(bundle: OpenBundle) -> OpenBundle:
    """Gather the outputs, list them in the job status, and seal."""
    with bundle.lock():
        gathered = gather(bundle)
        bundle.write_document(bundle.read(JobStatus).model_copy(update={"outputs": gathered.outputs}))
        seal(bundle)
    return bundle


def a_sealed_bundle(workbench: Path, record: ExecutionRecord | None = None) -> OpenBundle:
    return finish(an_open_bundle(workbench, record))


def a_complete_bundle(workbench: Path, record: ExecutionRecord, verdict: Verdict | None = None) -> OpenBundle:
    """Return a sealed bundle with every file that the format allows for *record* and *verdict*."""
    bundle = an_open_bundle(workbench, record)
    repository = record.method.code.repository if record.method.code else None
    if record.instance.packages:
        bundle.write(REQUIREMENTS, requirements_of(record.instance.packages))
    if repository and repository.diff_kept:
        bundle.write(DIFF_PATH, DIFF)
    if verdict:
        bundle.write_document(verdict)
    return finish(bundle)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below *folder* with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def renew_manifest(folder: Path) -> None:
    """Rewrite the manifest for the current files of *folder*, as a forger does."""
    files = [
        BundleFile(path, sha256(data).hexdigest(), len(data))
        for path, data in contents(folder).items()
        if path not in layout.UNLISTED
    ]
    (folder / layout.MANIFEST).write_bytes(manifest.render(files))


def renew_zip(folder: Path) -> None:
    """Rewrite ``output.zip`` for the current files of ``outputs/``."""
    with zipfile.ZipFile(folder / layout.OUTPUT_ZIP, "w") as zipped:
        for path, data in contents(folder / layout.OUTPUTS).items():
            zipped.writestr(f"outputs/{path}", data)


def forge(folder: Path, path: str, change: Callable[[str], str]) -> None:
    """Change the text of one file and rewrite the manifest."""
    target = folder / path
    before = target.read_text()
    after = change(before)
    assert after != before, f"{path} was not changed"
    target.write_text(after)
    renew_manifest(folder)


def forge_json(folder: Path, path: str, change: Callable[[Any], None]) -> None:
    """Change one JSON document and rewrite the manifest."""

    def changed(text: str) -> str:
        document = json.loads(text)
        change(document)
        return json.dumps(document, indent=2)

    forge(folder, path, changed)


def zip_of(folder: Path, target: Path, top: str = "") -> Path:
    """Write a zip of the bundle in *folder*, with its files below *top*."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as zipped:
        for path, data in contents(folder).items():
            zipped.writestr(top + path, data)
    return target


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target, symlinks=True))
