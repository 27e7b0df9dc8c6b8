"""The bundle format: the names of its files and folders, the rules for output names, and the export formats."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from prefect_executions.attestation.transparency import Inclusion
from prefect_executions.comparison.verdict import Verdict
from prefect_executions.documents import Document
from prefect_executions.errors import NameRefusedError
from prefect_executions.executions import record

REQUIRED: tuple[type[Document], ...] = tuple(record.REQUIRED.values())
"""The documents that every bundle has."""

DOCUMENTS: tuple[type[Document], ...] = (*record.DOCUMENTS.values(), Verdict)
"""Every JSON document: metrics exist if the Method logged any, a verdict if the execution is a replay."""

PROVENANCE = "metadata/provo.xml"
ATTESTATION = "metadata/attestation.dsse.json"
INCLUSION = Inclusion.file_name
ANNOTATIONS = "metadata/annotations.json"
CRATE = "ro-crate-metadata.json"
MANIFEST = "manifest-sha256.txt"
SSH_SIGNATURE = "manifest-sha256.txt.sig"
OUTPUT_ZIP = "output.zip"
STDOUT = "outputs/stdout.log"
STDERR = "outputs/stderr.log"

AUTH, METADATA, INPUTS, CODE, OUTPUTS = "auth", "metadata", "inputs", "code", "outputs"
PLANS = "plan"
"""The folder below ``code/`` with one plan for each run of scripts."""
FOLDERS = (AUTH, METADATA, INPUTS, CODE, OUTPUTS)
OPEN_FOLDERS = (INPUTS, CODE, OUTPUTS)
"""The folders whose file names the user chooses."""

FIXED = frozenset({document.file_name for document in DOCUMENTS}) | {
    PROVENANCE,
    ATTESTATION,
    CRATE,
    MANIFEST,
    OUTPUT_ZIP,
}
"""Every file whose name the format defines."""

ADDED = frozenset({INCLUSION, ANNOTATIONS, SSH_SIGNATURE})
"""Files that may be added after sealing: another signature, the proof of inclusion in a checkpoint, and annotations."""

UNLISTED = frozenset({MANIFEST, ATTESTATION}) | ADDED
"""The files that the manifest does not list: itself, its signatures, the proof of inclusion, and annotations."""

NAME_BYTES = 255
"""The longest file name on Linux and macOS, in bytes."""

_DESKTOP_FOLDER = "__MACOSX"
_DESKTOP_NAMES = frozenset({".ds_store", "thumbs.db", "desktop.ini"})

_UP_OR_EMPTY = frozenset({"", ".", ".."})
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")


@dataclass(frozen=True)
class BundlePaths:
    """The paths of the files and folders of the bundle in *folder*."""

    folder: Path

    def of(self, name: str) -> Path:
        """Return the path of *name*, a name that the format defines."""
        return self.folder / name

    @property
    def outputs(self) -> Path:
        return self.folder / OUTPUTS

    @property
    def inputs(self) -> Path:
        return self.folder / INPUTS

    @property
    def code(self) -> Path:
        return self.folder / CODE

    @property
    def stdout(self) -> Path:
        return self.folder / STDOUT

    @property
    def stderr(self) -> Path:
        return self.folder / STDERR

    @property
    def output_zip(self) -> Path:
        return self.folder / OUTPUT_ZIP

    @property
    def manifest(self) -> Path:
        return self.folder / MANIFEST


def is_bundle_path(path: str) -> bool:
    """Whether the format allows a file at *path*."""
    return path in FIXED or path in ADDED or is_open_path(path)


def is_open_path(path: str) -> bool:
    """Whether *path* is below one of the folders whose file names the user chooses."""
    top, *rest = path.split("/")
    return top in OPEN_FOLDERS and bool(rest) and _UP_OR_EMPTY.isdisjoint(rest)


def is_desktop_file(path: str) -> bool:
    """Whether *path* has a name that file managers add on their own: of macOS, of Windows, or AppleDouble (``._x``)."""
    folders, _, name = path.rpartition("/")
    if name.casefold() in _DESKTOP_NAMES or name.startswith("._"):
        return True
    return _DESKTOP_FOLDER in folders and _DESKTOP_FOLDER in folders.split("/")


def is_execution_id(name: str) -> bool:
    """Whether *name* is a valid folder name of an execution."""
    return _ID.fullmatch(name) is not None


def check_execution_id(execution_id: str) -> str:
    """Return *execution_id* if it is a valid folder name.

    Raises:
        NameRefusedError: If it is not.
    """
    if not is_execution_id(execution_id):
        raise NameRefusedError(
            f"{execution_id!r} is not a valid execution id: "
            "use only letters, digits, '.', '_' and '-', beginning with a letter or digit"
        )
    return execution_id


def check_output_name(name: str) -> str:
    """Return *name* if it is a valid output name: a relative path with ``/`` between folders.

    Raises:
        NameRefusedError: If it is not; the message gives the reason and the fix.
    """
    fault = _fault(name)
    if fault:
        raise NameRefusedError(f"{name!r} is not a valid output name: {fault}")
    return name


def output_path(bundle: BundlePaths, name: str) -> Path:
    """Return the path for the output *name*, after creating its parent folders.

    Raises:
        NameRefusedError: If the name is invalid, leads out of the outputs
            through a link, is a folder, or has a file as its parent.
    """
    target = bundle.folder / OUTPUTS / check_output_name(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        inside = target.parent.resolve().is_relative_to(bundle.outputs.resolve())
    except (FileExistsError, NotADirectoryError) as error:
        raise NameRefusedError(f"{name!r} is not a valid output name: its parent folder exists as a file") from error
    except OSError as error:
        raise NameRefusedError(f"{name!r} is not a valid output name: {error.strerror}") from error
    if not inside or target.is_symlink():
        raise NameRefusedError(f"{name!r} is not a valid output name: a link leads out of the outputs")
    if target.is_dir():
        raise NameRefusedError(f"{name!r} is not a valid output name: a folder has this name")
    return target


def _fault(name: str) -> str | None:
    categories = {unicodedata.category(character) for character in name}
    parts = name.split("/")
    faults = {
        "it is empty": not name,
        "it is absolute; give a name below outputs/": name.startswith("/"),
        "it has a backslash; use / between folders": "\\" in name,
        "it has a control character": "Cc" in categories,
        "it is not Unicode text": "Cs" in categories,
        "it has an empty, '.' or '..' part": not _UP_OR_EMPTY.isdisjoint(parts),
        f"a part of it is longer than {NAME_BYTES} bytes": any(
            len(part.encode(errors="replace")) > NAME_BYTES for part in parts
        ),
        "the execution's own stdout or stderr log has this name": f"{OUTPUTS}/{name}".casefold() in {STDOUT, STDERR},
    }
    return next((fault for fault, present in faults.items() if present), None)


class ExportFormat(StrEnum):
    """The file format of an export."""

    ZIP = "zip"
    """A zip with a folder ``<id>/`` for each bundle."""
    BAGIT = "bagit"
    """A zipped bag, which `bagit.py` validates."""
    CRATE = "crate"
    """A zipped RO-Crate, with ``ro-crate-metadata.json`` at its root."""


class ExportLevel(StrEnum):
    """How much of a bundle an export contains."""

    FULL = "full"
    OUTPUTS = "outputs"
    """Everything but the staged inputs."""
    METADATA = "metadata"
    """The record and the code, without inputs and outputs."""


class BundleKind(StrEnum):
    """The system that wrote a bundle, and its layout."""

    BUNDLE = "bundle"
    """Our own bundle format."""
    CCP = "ccp"
    """An export of CCP with a folder for each part."""
    FLAT = "ccp-flat"
    """An export of CCP as it is downloaded, with names such as ``metadata_method.json``."""
