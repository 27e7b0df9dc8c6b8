"""A bag (BagIt, RFC 8493): a folder ``data/`` and beside it the digests of all that lies in it.

Written in version 0.97, which is what `bagit.py` writes and reads in full: of 1.0 it
does not decode ``%25``, so a name with a percent sign would have two spellings.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256

from prefect_executions.bundles.source import Source, SourcePart
from prefect_executions.errors import BundleError, NameRefusedError

DECLARATION = "bagit.txt"
PAYLOAD = "data/"

_INFO = "bag-info.txt"
_FETCH = "fetch.txt"
_MANIFEST = re.compile(r"(tag)?manifest-(\w+)\.txt")
_LINE = re.compile(r"([0-9A-Fa-f]+)[ \t]+\*?(.+)")
_CODED = re.compile(r"%(0[DdAa]|25)")
_MISTAKEN = re.compile(r"%0[DdAa]")
_ALGORITHMS = ("md5", "sha1", "sha256", "sha512")
_LARGEST_TAG = 64 << 20


def tag_files(digests: Mapping[str, str], size: int, names: Sequence[str]) -> dict[str, bytes]:
    """Return the files beside ``data/``.

    *digests* are those of the payload by path below ``data/``, *size* its bytes, and
    *names* say outside of the bag what it holds. The same payload gives the same bytes.

    Raises:
        NameRefusedError: If BagIt has no way to write one of the paths.
    """
    lines = [f"{digest}  {_coded(PAYLOAD + path)}\n" for path, digest in sorted(digests.items())]
    told = [f"External-Identifier: {name}\n" for name in names]
    tags = {
        DECLARATION: b"BagIt-Version: 0.97\nTag-File-Character-Encoding: UTF-8\n",
        _INFO: "".join([*told, f"Payload-Oxum: {size}.{len(digests)}\n"]).encode(),
        "manifest-sha256.txt": "".join(lines).encode(),
    }
    listed = "".join(f"{sha256(data).hexdigest()}  {name}\n" for name, data in sorted(tags.items()))
    return tags | {"tagmanifest-sha256.txt": listed.encode()}


def payload(bag: Source) -> SourcePart:
    """Return the payload of *bag* when every file in it has the digests that its manifests say.

    Raises:
        BundleError: If a digest is wrong, a file is missing or listed nowhere, or something is to be fetched.
    """
    if _FETCH in bag.files:
        raise BundleError(f"{_FETCH}: the bag wants files from elsewhere to be fetched; nothing is")
    manifests = {path: found for path in bag.files if (found := _MANIFEST.fullmatch(path))}
    unknown = [path for path, found in manifests.items() if found[2] not in _ALGORITHMS]
    if unknown or not any(found[1] is None for found in manifests.values()):
        known = ", ".join(_ALGORITHMS)
        raise BundleError(
            f"{unknown[0] if unknown else 'the bag'}: there must be a manifest of {known}, and of no other"
        )
    listed = {path: dict(_listed(path, _text(bag, path))) for path in manifests}
    wanted: dict[str, list[tuple[str, str, str]]] = {}
    for manifest, digests in listed.items():
        for path, digest in digests.items():
            wanted.setdefault(path, []).append((manifests[manifest][2], digest, manifest))
    _check_complete(bag, {path: set(digests) for path, digests in listed.items() if manifests[path][1] is None})
    for path, told in wanted.items():
        _check(bag, path, told)
    return SourcePart(bag, PAYLOAD)


def _check_complete(bag: Source, listed: Mapping[str, set[str]]) -> None:
    there = {path for path in bag.files if path.startswith(PAYLOAD)}
    for manifest, paths in listed.items():
        for path in sorted(there ^ paths):
            fault = "not listed in" if path in there else "missing and listed in"
            raise BundleError(f"{path!r} is {fault} {manifest} of the bag")


def _check(bag: Source, path: str, told: Sequence[tuple[str, str, str]]) -> None:
    if path not in bag.files:
        raise BundleError(f"{path!r} is missing and listed in {told[0][2]} of the bag")
    digests = {name: hashlib.new(name, usedforsecurity=False) for name, _, _ in told}
    for block in bag.blocks(path):
        for digest in digests.values():
            digest.update(block)
    for name, expected, manifest in told:
        if digests[name].hexdigest() != expected:
            raise BundleError(f"{path!r} is {digests[name].hexdigest()}; {manifest} of the bag says {expected}")


def _text(bag: Source, path: str) -> str:
    if bag.files[path] > _LARGEST_TAG:
        raise BundleError(f"{path} has {bag.files[path]} bytes; the limit for it is {_LARGEST_TAG}")
    try:
        return b"".join(bag.blocks(path)).decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not UTF-8") from error


def _listed(manifest: str, text: str) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text.removesuffix("\n")), start=1):
        found = _LINE.fullmatch(line)
        if not found:
            raise BundleError(f"line {number} of {manifest} is not 'digest path'")
        path = _CODED.sub(lambda coded: chr(int(coded[1], 16)), found[2].removeprefix("./"))
        if path in seen:
            raise BundleError(f"line {number} of {manifest}: {path!r} is there twice")
        seen.add(path)
        yield path, found[1].lower()


def _coded(path: str) -> str:
    if _MISTAKEN.search(path):
        raise NameRefusedError(f"{path!r} cannot be told by BagIt, which takes its %0A or %0D for a line break")
    return path.replace("\r", "%0D").replace("\n", "%0A")
