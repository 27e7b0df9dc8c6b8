"""Bundles on a workbench for tests: open ones, gathered ones, sealed ones, and forged ones."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.gather import gather
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.seal import seal
from prefect_executions.executions.record import BundleFile, ExecutionRecord
from prefect_executions.lifecycle.history import JobStatus
from records import a_record, contents_of


def an_open_bundle(workbench: Path, record: ExecutionRecord | None = None) -> OpenBundle:
    """Return a bundle as it lies there when the Method has ended: documents, code, input and outputs."""
    record = record or a_record()
    bundle = OpenBundle.create(workbench, record.id)
    for name, data in contents_of(record).items():
        bundle.write(name, data)
    return bundle


def finish(bundle: OpenBundle) -> OpenBundle:
    """Do all that is left: gather, say so in the job status, seal."""
    with bundle.lock():
        gathered = gather(bundle)
        told = bundle.read(JobStatus).model_copy(update={"outputs": gathered.outputs})
        bundle.write_document(told)
        seal(bundle)
    return bundle


def a_sealed_bundle(workbench: Path, record: ExecutionRecord | None = None) -> OpenBundle:
    return finish(an_open_bundle(workbench, record))


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below *folder* with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def make_manifest_anew(folder: Path) -> None:
    """Do what a forger does: make the manifest fit what lies in *folder* now."""
    files = [
        BundleFile(path, sha256(data).hexdigest(), len(data))
        for path, data in contents(folder).items()
        if path not in layout.UNLISTED
    ]
    (folder / layout.MANIFEST).write_bytes(manifest.render(files))


def make_zip_anew(folder: Path) -> None:
    """Make ``output.zip`` fit what lies under ``outputs/`` now."""
    with zipfile.ZipFile(folder / layout.OUTPUT_ZIP, "w") as zipped:
        for path, data in contents(folder / layout.OUTPUTS).items():
            zipped.writestr(f"outputs/{path}", data)


def forge(folder: Path, path: str, change: Callable[[str], str]) -> None:
    """Change the text of one file and make the manifest fit."""
    target = folder / path
    before = target.read_text()
    after = change(before)
    assert after != before, f"nothing of {path} was changed"
    target.write_text(after)
    make_manifest_anew(folder)


def forge_json(folder: Path, path: str, change: Callable[[Any], None]) -> None:
    """Change one JSON document and make the manifest fit."""

    def changed(text: str) -> str:
        told = json.loads(text)
        change(told)
        return json.dumps(told, indent=2)

    forge(folder, path, changed)


def zip_of(folder: Path, target: Path, top: str = "") -> Path:
    """Write a zip of the bundle in *folder*, with its files below *top*."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as zipped:
        for path, data in contents(folder).items():
            zipped.writestr(top + path, data)
    return target


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target, symlinks=True))
