"""BagIt (RFC 8493): the tag files of a bag, stand-ins for names that it cannot hold, and its verification.

A bag is a folder ``data/``, the payload, with manifests of its digests beside it.

Law: every name in a bag means the same to each reader. RFC 8493 writes a percent sign as
``%25``, which `bagit.py` neither writes nor decodes; it also ends lines at U+2028, removes
white space at the end, and treats names with the same composed form as equal. So a file
with such a name gets a stand-in, which `export.json` lists.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import sha256

from prefect_executions.bundles.layout import is_desktop_file
from prefect_executions.bundles.source import Source
from prefect_executions.errors import BundleError

BAG_DECLARATION = "bagit.txt"
BAG_PAYLOAD = "data/"

_INFO = "bag-info.txt"
_FETCH = "fetch.txt"
_SOFTWARE = "prefect-executions"
_MANIFEST = re.compile(r"(tag)?manifest-(\w+)\.txt")
_LINE = re.compile(r"([0-9A-Fa-f]+)[ \t]+\*?(.+)")
_VERSION = re.compile(r"BagIt-Version: ?([0-9]+)\.")
_BREAKS = re.compile(r"%(0[DdAa])")
_BREAKS_AND_PERCENT = re.compile(r"%(0[DdAa]|25)")
_ALGORITHMS = ("md5", "sha1", "sha256", "sha512")
_LONGEST_LINE = 16_384
"""The most characters of a line in a manifest; systems limit a path to 4096 bytes."""

_LARGEST_TAG = 64 << 20

_NOT_KEPT = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST_KEPT = 150
_DIGITS = 16


def stand_ins(paths: Iterable[str]) -> dict[str, str]:
    """Return a stand-in for each of *paths* that a bag cannot hold; its first folder stays.

    Equal sets of paths give equal stand-ins.
    """
    composed = {path: unicodedata.normalize("NFC", path) for path in paths}
    times = Counter(composed.values())
    return {
        path: _stand_in(path, composed)
        for path, form in composed.items()
        if times[form] > 1 or not _has_one_meaning(path)
    }


def _has_one_meaning(path: str) -> bool:
    categories = {unicodedata.category(character) for character in path}
    return {"Cc", "Zl", "Zp"}.isdisjoint(categories) and {"%", "\\"}.isdisjoint(path) and not path[-1].isspace()


def _stand_in(path: str, taken: Mapping[str, str]) -> str:
    top, _, rest = path.partition("/")
    digest = sha256(path.encode()).hexdigest()
    kept = _NOT_KEPT.sub("_", rest.rpartition("/")[2])[-_LONGEST_KEPT:].rstrip(".")
    short = f"{top}/renamed-{digest[:_DIGITS]}-{kept}"
    return f"{top}/renamed-{digest}-{kept}" if short in taken else short


def bag_tag_files(
    digests: Mapping[str, str], size: int, names: Sequence[str], newest: datetime | None
) -> dict[str, bytes]:
    """Return the tag files of a bag, those beside ``data/``.

    *digests* are the digests of the payload by path below ``data/``, *size* is its number of
    bytes, and *names* become the External-Identifiers. Equal payloads give equal bytes: the
    Bagging-Date is the day of *newest*, the newest end of an execution, and the software is
    named without its version.
    """
    lines = [f"{digest}  {BAG_PAYLOAD}{path}\n" for path, digest in sorted(digests.items())]
    info = [
        f"Bag-Software-Agent: {_SOFTWARE}\n",
        *([f"Bagging-Date: {newest:%Y-%m-%d}\n"] if newest else []),
        *(f"External-Identifier: {name}\n" for name in names),
        f"Payload-Oxum: {size}.{len(digests)}\n",
    ]
    tags = {
        BAG_DECLARATION: b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n",
        _INFO: "".join(info).encode(),
        "manifest-sha256.txt": "".join(lines).encode(),
    }
    tag_manifest = "".join(f"{sha256(data).hexdigest()}  {name}\n" for name, data in sorted(tags.items()))
    return tags | {"tagmanifest-sha256.txt": tag_manifest.encode()}


def extra_files(bag: Source) -> list[str]:
    """Return the files of *bag* beside its payload that BagIt itself does not define; a bag may have any."""
    own = {BAG_DECLARATION, _INFO, _FETCH}
    return [
        path
        for path in bag.files
        if not path.startswith(BAG_PAYLOAD)
        and path not in own
        and not _MANIFEST.fullmatch(path)
        and not is_desktop_file(path)
    ]


def check_bag(bag: Source) -> None:
    """Verify every file of *bag* against its manifests; desktop files that no manifest lists are ignored.

    Raises:
        BundleError: If a digest is wrong, a file is missing or unlisted, or the bag refers to files elsewhere.
    """
    if _FETCH in bag.files:
        raise BundleError(f"{_FETCH}: the bag refers to files elsewhere, which are never fetched")
    folders = (folder for folder in bag.empty_folders if folder == _FETCH or _MANIFEST.fullmatch(folder))
    if (folder := next(folders, None)) is not None:
        raise BundleError(f"{folder}: it is a folder; a bag needs a file of this name, or none")
    manifests = {path: match for path in bag.files if (match := _MANIFEST.fullmatch(path))}
    unsupported = [path for path, match in manifests.items() if match[2] not in _ALGORITHMS]
    if unsupported or not any(match[1] is None for match in manifests.values()):
        supported = ", ".join(_ALGORITHMS)
        raise BundleError(
            f"{unsupported[0] if unsupported else 'the bag'}: a bag needs a manifest, and only of {supported}"
        )
    present = {path for path in bag.files if path.startswith(BAG_PAYLOAD)}
    decodings = _decodings(_text(bag, BAG_DECLARATION))
    claims: dict[str, list[tuple[str, str, str]]] = {}
    for name, match in manifests.items():
        files = present if match[1] is None else None
        for path, digest in _listed(name, _text(bag, name), decodings, files).items():
            claims.setdefault(path, []).append((match[2], digest, name))
    for path, path_claims in claims.items():
        _check_digests(bag, path, path_claims)


def _decodings(declaration: str) -> list[Callable[[str], str]]:
    """Return the ways to decode a path in a manifest, first that of the bag's version.

    Programs differ from the standard: `bagit.py` encodes line breaks and no percent sign in
    any version, others encode nothing.
    """
    version = _VERSION.match(declaration)
    ways: list[Callable[[str], str]] = [_decoded_completely, _decoded_breaks, str]
    return ways if version and version[1].strip("0") else [_decoded_breaks, str, _decoded_completely]


def _decoded_completely(path: str) -> str:
    return _BREAKS_AND_PERCENT.sub(lambda code: chr(int(code[1], 16)), path)


def _decoded_breaks(path: str) -> str:
    return _BREAKS.sub(lambda code: chr(int(code[1], 16)), path)


def _listed(
    name: str, text: str, decodings: Sequence[Callable[[str], str]], present: set[str] | None
) -> dict[str, str]:
    """Return the digests in the manifest *name*, decoded in the way that fits the files that are *present*.

    *present* is None for a manifest of tags, which need not be complete.
    """
    lines = list(_lines(name, text))
    readings = [[(decode(path), digest) for path, digest in lines] for decode in decodings]
    fitting = (reading for reading in readings if present is not None and not _gap(dict(reading), present))
    reading = next(fitting, readings[0])
    listed = dict(reading)
    if len(listed) < len(reading):
        path = next(path for path, times in Counter(path for path, _ in reading).items() if times > 1)
        raise BundleError(f"{name} of the bag: {path!r} is listed twice")
    gap = None if present is None else _gap(listed, present)
    if gap:
        fault = "missing and listed in" if gap in listed else "not listed in"
        raise BundleError(f"{gap!r} is {fault} {name} of the bag")
    return listed


def _gap(listed: Mapping[str, str], present: set[str]) -> str | None:
    """Return the first path that is only listed or only present, except desktop files."""
    gaps = (path for path in present ^ listed.keys() if path in listed or not is_desktop_file(path))
    return min(gaps, default=None)


def _check_digests(bag: Source, path: str, claims: Sequence[tuple[str, str, str]]) -> None:
    if path not in bag.files:
        raise BundleError(f"{path!r} is missing and listed in {claims[0][2]} of the bag")
    digests = {algorithm: hashlib.new(algorithm, usedforsecurity=False) for algorithm, _, _ in claims}
    for block in bag.blocks(path):
        for digest in digests.values():
            digest.update(block)
    for algorithm, expected, name in claims:
        if digests[algorithm].hexdigest() != expected:
            raise BundleError(f"{path!r} is {digests[algorithm].hexdigest()}; {name} of the bag says {expected}")


def _text(bag: Source, path: str) -> str:
    if bag.files[path] > _LARGEST_TAG:
        raise BundleError(f"{path} has {bag.files[path]} bytes; the limit for it is {_LARGEST_TAG}")
    try:
        return b"".join(bag.blocks(path)).decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not UTF-8") from error


def _lines(manifest: str, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text.removesuffix("\n")), start=1):
        if len(line) > _LONGEST_LINE:
            raise BundleError(f"line {number} of {manifest} has {len(line)} characters; the limit is {_LONGEST_LINE}")
        match = _LINE.fullmatch(line)
        if not match:
            raise BundleError(f"line {number} of {manifest} is not 'digest path'")
        yield match[2].removeprefix("./"), match[1].lower()
