"""The names of bundle format 1 in one table, and which names an output may have.

The words for how bundles leave and come: in which form, how much of them, and whose they are.
"""

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
"""Every JSON document; metrics are there when the Method logged any, a verdict when the execution is a replay."""

PROVENANCE = "metadata/provo.xml"
ATTESTATION = "metadata/attestation.dsse.json"
INCLUSION = Inclusion.file_name
CRATE = "ro-crate-metadata.json"
MANIFEST = "manifest-sha256.txt"
SSH_SIGNATURE = "manifest-sha256.txt.sig"
OUTPUT_ZIP = "output.zip"
STDOUT = "outputs/stdout.log"
STDERR = "outputs/stderr.log"

AUTH, METADATA, INPUTS, CODE, OUTPUTS = "auth", "metadata", "inputs", "code", "outputs"
FOLDERS = (AUTH, METADATA, INPUTS, CODE, OUTPUTS)
OPEN_FOLDERS = (INPUTS, CODE, OUTPUTS)
"""The folders whose files have names of the user's own."""

FIXED = frozenset({document.file_name for document in DOCUMENTS}) | {
    PROVENANCE,
    ATTESTATION,
    CRATE,
    MANIFEST,
    OUTPUT_ZIP,
}
"""Every file whose name the format gives."""

ADDED = frozenset({INCLUSION, SSH_SIGNATURE})
"""What may come to a bundle after it was sealed: who else signs or witnesses it."""

UNLISTED = frozenset({MANIFEST, ATTESTATION}) | ADDED
"""The files that the manifest does not list: itself, and what signs or witnesses it."""

NAME_BYTES = 255
"""The longest name of one file on Linux and macOS, in bytes."""

_UP_OR_EMPTY = frozenset({"", ".", ".."})
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")


@dataclass(frozen=True)
class BundlePaths:
    """Where the parts of the bundle in *folder* lie."""

    folder: Path

    def of(self, name: str) -> Path:
        """Return where the file *name* of the format's table lies."""
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
    """Whether format 1 has a place for a file at *path*."""
    top, *rest = path.split("/")
    return path in FIXED or path in ADDED or (top in OPEN_FOLDERS and bool(rest) and _UP_OR_EMPTY.isdisjoint(rest))


def check_execution_id(execution_id: str) -> str:
    """Return *execution_id* if it can name a folder.

    Raises:
        NameRefusedError: If it cannot.
    """
    if not _ID.fullmatch(execution_id):
        raise NameRefusedError(
            f"{execution_id!r} cannot be an execution id: "
            "letters, digits, '.', '_' and '-' only, a letter or digit first"
        )
    return execution_id


def check_output_name(name: str) -> str:
    """Return *name* if an output may have it: a relative path with ``/`` between folders.

    Raises:
        NameRefusedError: If it may not; the message says why and what to do.
    """
    fault = _fault(name)
    if fault:
        raise NameRefusedError(f"{name!r} cannot be the name of an output: {fault}")
    return name


def output_path(bundle: BundlePaths, name: str) -> Path:
    """Return where the output *name* is to be written, with the folders above it made.

    Raises:
        NameRefusedError: If the name may not be used, leads out of the outputs
            through a link, is a folder, or lies below a file.
    """
    target = bundle.folder / OUTPUTS / check_output_name(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        inside = target.parent.resolve().is_relative_to(bundle.outputs.resolve())
    except (FileExistsError, NotADirectoryError) as error:
        raise NameRefusedError(
            f"{name!r} cannot be the name of an output: a file has the name of its folder"
        ) from error
    except OSError as error:
        raise NameRefusedError(f"{name!r} cannot be the name of an output: {error.strerror}") from error
    if not inside or target.is_symlink():
        raise NameRefusedError(f"{name!r} cannot be the name of an output: a link leads it out of the outputs")
    if target.is_dir():
        raise NameRefusedError(f"{name!r} cannot be the name of an output: there is a folder of that name")
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
        "the record of the execution's own streams has that name": f"{OUTPUTS}/{name}".casefold() in {STDOUT, STDERR},
    }
    return next((fault for fault, found in faults.items() if found), None)


class ExportFormat(StrEnum):
    """In which form bundles leave."""

    ZIP = "zip"
    """``<id>/`` with the bundle, for each."""
    BAGIT = "bagit"
    """A zipped bag, which `bagit.py` validates."""
    CRATE = "crate"
    """A zipped RO-Crate: ``ro-crate-metadata.json`` lies at its root."""


class ExportLevel(StrEnum):
    """How much of a bundle leaves."""

    FULL = "full"
    OUTPUTS = "outputs"
    """All but the staged inputs."""
    METADATA = "metadata"
    """The record and the code: no inputs and no outputs."""


class BundleKind(StrEnum):
    """Whose bundle it is."""

    BUNDLE = "bundle"
    """Ours, in the format of this house."""
    CCP = "ccp"
    """CCP's, with a folder for each part."""
    FLAT = "ccp-flat"
    """CCP's as it is downloaded: ``metadata_method.json``."""
