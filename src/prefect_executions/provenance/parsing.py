"""Read PROV-XML as hostile input, one record after the other.

Law: a DTD is refused, whatever it holds; nothing is fetched; memory does not
grow with the document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from prefect_executions.documents import in_utc
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import NAMESPACE
from prefect_executions.provenance import vocabulary

if TYPE_CHECKING:
    from lxml.etree import _Element

SIZE_LIMIT = 256 * 1024**2
"""A larger `provo.xml` is refused; one of 100,000 outputs has 58 MB."""

RECORD_LIMIT = 16 * 1024**2
"""Bytes between two records, at most: a text in XML has 10 MB here at most (libxml2)."""

ELEMENT_LIMIT = 100_000
"""Elements between two records, counted by ``<``: one takes 200 bytes of memory, whatever is in it."""

_PREFIXES = {vocabulary.PROV: "prov:", vocabulary.TERMS: "exe:", NAMESPACE: "px:"}

_NUMBER = re.compile(r"-?[0-9]{1,18}")

_KINDS = (
    "activity",
    "entity",
    "agent",
    "used",
    "wasGeneratedBy",
    "wasAssociatedWith",
    "wasDerivedFrom",
    "wasStartedBy",
    "wasEndedBy",
)


class Record(NamedTuple):
    """One record of the document: its kind, its id, what it refers to, its types and its other attributes."""

    kind: str
    id: str
    refs: Mapping[str, str]
    types: frozenset[str]
    texts: Mapping[str, str]

    def text(self, name: str) -> str:
        """Return an attribute that must be there."""
        if name not in self.texts:
            raise fault(f"the {self.kind} {self.id} says no {name}")
        return self.texts[name]

    def number(self, name: str) -> int | None:
        """Return a whole number, or None where the record says none."""
        text = self.texts.get(name)
        if text is not None and not _NUMBER.fullmatch(text):
            raise fault(f"the {self.kind} {self.id} has '{text[:40]}' as {name}, which is no number")
        return None if text is None else int(text)

    def time(self, name: str) -> datetime | None:
        """Return a time in UTC, or None where the record says none."""
        text = self.texts.get(name)
        if text is None:
            return None
        try:
            return in_utc(datetime.fromisoformat(text.strip()))
        except (ValueError, OverflowError) as error:
            raise fault(f"the {self.kind} {self.id} has '{text[:40]}' as {name}: {error}") from error


def records(data: bytes) -> Iterator[Record]:
    """Return the records at the top of a PROV-XML document, one after the other.

    Raises:
        BundleError: If *data* is not a PROV-XML document, has a DTD, or is too large.
    """
    # lxml takes 20 ms to import, and only those who read PROV need it.
    from lxml import etree  # noqa: PLC0415

    if len(data) > SIZE_LIMIT:
        raise fault(f"it has {len(data)} bytes; more than {SIZE_LIMIT} are not read")
    tags = [f"{{{vocabulary.PROV}}}{kind}" for kind in (*_KINDS, "document")]
    source = _Metered(data)
    parts = etree.iterparse(
        cast("Any", source),
        events=("start-ns", "start", "end"),
        tag=tags,
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        remove_comments=True,
        remove_pis=True,
        huge_tree=False,
    )
    try:
        yield from _records(parts, source)
    except etree.XMLSyntaxError as error:
        raise fault(f"it is no XML: {error}") from error


class _Metered:
    """The document, in pieces, of which not many come before a record is whole and forgotten."""

    def __init__(self, data: bytes) -> None:
        self._stream = BytesIO(data)
        self._bytes = self._elements = 0

    def read(self, size: int) -> bytes:
        piece = self._stream.read(size)
        self._bytes += len(piece)
        self._elements += piece.count(b"<")
        if self._bytes > RECORD_LIMIT or self._elements > ELEMENT_LIMIT:
            raise fault("it holds too much that is no record, or a record is too large")
        return piece

    def begin_again(self) -> None:
        self._bytes = self._elements = 0


def _records(parts: Any, source: _Metered) -> Iterator[Record]:
    namespaces: dict[str, str] = {}
    root: _Element | None = None
    for event, part in parts:
        if event == "start-ns":
            _declare(namespaces, *part)
        elif event == "start":
            if root is None:
                root = part
                _check_document(root)
        elif part.getparent() is root and root is not None:
            yield _record(part, namespaces)
            _forget(part)
            source.begin_again()
    if root is None:
        raise fault("it is no PROV document")


def _declare(namespaces: dict[str, str], prefix: str, uri: str) -> None:
    # Ids are compared by their prefixes, so a prefix must mean one thing everywhere.
    if namespaces.setdefault(prefix, uri) != uri:
        raise fault(f"the prefix '{prefix}' stands for two namespaces")


def _check_document(root: _Element) -> None:
    if root.getroottree().docinfo.internalDTD is not None:
        raise fault("it has a DTD, which is never read")
    if root.tag != f"{{{vocabulary.PROV}}}document" or root.getparent() is not None:
        raise fault("it is no PROV document")


def _forget(element: _Element) -> None:
    element.clear()
    parent = element.getparent()
    while parent is not None and element.getprevious() is not None:
        del parent[0]


def _record(element: _Element, namespaces: Mapping[str, str]) -> Record:
    refs: dict[str, str] = {}
    types: set[str] = set()
    texts: dict[str, str] = {}
    told: set[str] = set()
    kind = element.tag.rpartition("}")[2]
    name = _resolve(element.get(f"{{{vocabulary.PROV}}}id", ""), namespaces)
    for child in element:
        ref = child.get(f"{{{vocabulary.PROV}}}ref")
        tag = _short_tag(child.tag)
        text = child.text or ""
        if len(child):
            raise fault(f"the {kind} {name} has an element inside {tag}")
        if tag == "prov:type":
            types.add(_resolve(text, namespaces))
        elif tag in told and tag != "prov:label":
            raise fault(f"the {kind} {name} says {tag} twice")
        elif ref is not None:
            refs[tag] = _resolve(ref, namespaces)
        else:
            texts[tag] = text
        told.add(tag)
    return Record(kind, name, refs, frozenset(types), texts)


def _short_tag(tag: str) -> str:
    uri, _, local = tag.removeprefix("{").rpartition("}")
    return _PREFIXES.get(uri, f"{{{uri}}}") + local


def _resolve(qname: str, namespaces: Mapping[str, str]) -> str:
    prefix, _, local = qname.strip().rpartition(":")
    uri = namespaces.get(prefix, prefix)
    return _PREFIXES.get(uri, uri) + local


def fault(message: str) -> BundleError:
    """Return the error that says what is wrong in `provo.xml`."""
    return BundleError(f"{vocabulary.FILE}: {message}")
