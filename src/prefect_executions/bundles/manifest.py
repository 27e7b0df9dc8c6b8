"""The manifest: every file of a bundle with its SHA-256, as GNU ``sha256sum`` writes and checks it.

Law: a list of files has exactly one serialization (sorted by path, lower-case hex, two
spaces). A manifest in any other form was not written by us and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from prefect_executions.errors import BundleError
from prefect_executions.executions.record import BundleFile

_LINE = re.compile(r"(\\?)([0-9a-f]{64})  (.+)", re.DOTALL)
_ESCAPED = re.compile(r"\\(.?)", re.DOTALL)

# GNU coreutils, "sha2 utilities": a line whose name contains one of these characters
# begins with a backslash and escapes it.
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
_PLAIN = {"\\": "\\", "n": "\n", "r": "\r"}


def render(files: Iterable[BundleFile]) -> bytes:
    """Return the manifest of *files*; the order of *files* does not matter."""
    return "".join(_line(file.path, file.sha256) for file in sorted(files)).encode()


def parse(data: bytes) -> Mapping[str, str]:
    """Return the digest of each path in the manifest *data*.

    Raises:
        BundleError: If it is not a manifest in exactly the form that `render` writes.
    """
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise BundleError(f"the manifest is not UTF-8 at byte {error.start}") from error
    if lines.pop():
        raise BundleError("the manifest does not end with a line break")
    digests: dict[str, str] = {}
    last = ""
    for number, line in enumerate(lines, start=1):
        path, digest = _read(line, number)
        if path <= last:
            raise BundleError(f"line {number} of the manifest: {path!r} is out of order or listed twice")
        digests[path] = digest
        last = path
    return digests


def _line(path: str, digest: str) -> str:
    if "\\" in path or "\n" in path or "\r" in path:
        return "\\" + digest + "  " + "".join(_ESCAPES.get(letter, letter) for letter in path) + "\n"
    return f"{digest}  {path}\n"


def _read(line: str, number: int) -> tuple[str, str]:
    match = _LINE.fullmatch(line)
    if not match:
        raise BundleError(f"line {number} of the manifest is not 'digest  path'")
    escaped, digest, text = match.groups()
    path = _ESCAPED.sub(lambda escape: _PLAIN.get(escape[1], ""), text) if escaped else text
    if _line(path, digest) != line + "\n":
        raise BundleError(f"line {number} of the manifest is not written as sha256sum writes it")
    return path, digest
