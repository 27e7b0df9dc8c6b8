"""The comparison of a PROV-XML document with the one that the writer makes of a record, statement by statement.

Law: `provo.xml` is a function of the record, the files and the bundle format. The order of
statements, and of the attributes of one, has no meaning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

from prefect_executions.executions.record import NAMESPACE, BundleFile, ExecutionRecord
from prefect_executions.provenance import vocabulary
from prefect_executions.provenance.reader import elements, fault
from prefect_executions.provenance.writer import write

if TYPE_CHECKING:
    from lxml.etree import _Element

_SHOWN = 200
_MOST = 1000
"""The most differing statements of one document that are compared in detail."""

_SIZE = f"{{{vocabulary.TERMS}}}byteCount"
_LOCATION = f"{{{vocabulary.PROV}}}location"
_TYPE = f"{{{vocabulary.XSI}}}type"
_PLACES = {f"{{{vocabulary.XSI}}}schemaLocation", f"{{{vocabulary.XSI}}}noNamespaceSchemaLocation"}
"""Attributes that say where a schema is, which programs add and which have no meaning."""
_ID = f"{{{vocabulary.PROV}}}id"
_QNAME = f"{vocabulary.XSD}QName"
_SHORT = {vocabulary.PROV: "prov:", vocabulary.TERMS: "exe:", vocabulary.XSD: "xsd:", NAMESPACE: "px:"}


class _Attribute(NamedTuple):
    """An attribute of a statement: its name, its other XML attributes (type, reference), and its text."""

    name: str
    marks: tuple[tuple[str, str], ...]
    text: str

    @property
    def value(self) -> str:
        return " ".join(filter(None, (self.text, *(mark for name, mark in self.marks if name != _TYPE))))


class _Statement(NamedTuple):
    """A statement of PROV, with names resolved to URIs, so that prefixes do not matter."""

    kind: str
    id: str
    attributes: tuple[_Attribute, ...]

    @property
    def digest(self) -> bytes:
        return sha256(repr(self).encode("utf-8", "surrogatepass")).digest()

    @property
    def key(self) -> tuple[str, ...]:
        """What identifies the statement: its id, or else the statements that it refers to."""
        ends = (attribute.value for attribute in self.attributes if not attribute.text)
        return (self.kind, self.id) if self.id else (self.kind, *ends)

    @property
    def name(self) -> str:
        return f"the {' '.join(_short(part).removeprefix('prov:') for part in self.key)}"[:_SHOWN]


def differences(
    data: bytes, record: ExecutionRecord, files: Sequence[BundleFile], unmeasured: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Yield one sentence for each difference of the PROV-XML *data* from that of *record* and *files*.

    *files* are the files that the writer was given. Sizes at the paths *unmeasured* are unknown and not compared.

    Raises:
        BundleError: If *data* is not a PROV-XML document.
    """
    stream = BytesIO()
    write(record, files, stream)
    built = stream.getvalue()
    if data == built:
        return
    theirs, ours = (Counter(statement.digest for statement in _statements(part, unmeasured)) for part in (data, built))
    surplus, missing = theirs - ours, ours - theirs
    yield from _described(_chosen(data, unmeasured, surplus), _chosen(built, unmeasured, missing))


def _chosen(data: bytes, unmeasured: frozenset[str], digests: Counter[bytes]) -> dict[tuple[str, ...], _Statement]:
    chosen: dict[tuple[str, ...], _Statement] = {}
    for statement in _statements(data, unmeasured) if digests else ():
        if statement.digest in digests and len(chosen) < _MOST:
            chosen[statement.key] = statement
    return chosen


def _described(
    theirs: Mapping[tuple[str, ...], _Statement], ours: Mapping[tuple[str, ...], _Statement]
) -> Iterator[str]:
    for key, statement in theirs.items():
        if key in ours:
            yield from _attribute_differences(statement, ours[key])
        else:
            yield f"{vocabulary.FILE}: it has {statement.name}; the documents do not"
    for key, statement in ours.items():
        if key not in theirs:
            yield f"{vocabulary.FILE}: it lacks {statement.name}, which the documents have"


def _attribute_differences(actual: _Statement, expected: _Statement) -> Iterator[str]:
    theirs, ours = Counter(actual.attributes), Counter(expected.attributes)
    if theirs == ours:
        yield f"{vocabulary.FILE}: it has {actual.name} more often or less often than the documents"
    for name in sorted({attribute.name for attribute in (theirs - ours) + (ours - theirs)}):
        values = (_values(attributes, name) for attributes in (theirs - ours, ours - theirs))
        yield "{}: {} of {} is {}; the documents say {}".format(vocabulary.FILE, _short(name), actual.name, *values)


def _values(attributes: Iterable[_Attribute], name: str) -> str:
    values = sorted(_short(attribute.value) for attribute in attributes if attribute.name == name)
    return ", ".join(value[:_SHOWN] or "empty" for value in values) or "absent"


def _statements(data: bytes, unmeasured: frozenset[str]) -> Iterator[_Statement]:
    root: _Element | None = None
    for element, namespaces in elements(data):
        if root is None and (root := element.getparent()) is not None:
            yield _document(root)
        statement = _statement(element, namespaces)
        if any(attribute.name == _LOCATION and attribute.text in unmeasured for attribute in statement.attributes):
            sized = tuple(attribute for attribute in statement.attributes if attribute.name != _SIZE)
            statement = statement._replace(attributes=sized)
        yield statement


def _document(root: _Element) -> _Statement:
    """Return the attributes of the document's element, such as the language of all its texts, as a statement."""
    attributes = (_Attribute(name, (), value) for name, value in _xml_attributes(root) if name not in _PLACES)
    return _Statement(root.tag, "", tuple(sorted(attributes)))


def _statement(element: _Element, namespaces: Mapping[str, str]) -> _Statement:
    attributes = [_Attribute(name, (), value) for name, value in _xml_attributes(element) if name != _ID]
    texts = (element.text, *(child.tail for child in element))
    attributes += [_Attribute("text", (), text.strip()) for text in texts if text and text.strip()]
    attributes += [_attribute(child, namespaces) for child in element]
    name = _resolved(element.get(_ID, ""), namespaces)
    return _Statement(element.tag, name, tuple(sorted(attributes)))


def _attribute(element: _Element, namespaces: Mapping[str, str]) -> _Attribute:
    if len(element):
        raise fault(f"{_short(element.tag)} has an element inside")
    marks = tuple(sorted((name, _resolved(value, namespaces)) for name, value in _xml_attributes(element)))
    text = element.text or ""
    return _Attribute(element.tag, marks, _resolved(text, namespaces) if (_TYPE, _QNAME) in marks else text)


def _xml_attributes(element: _Element) -> Iterator[tuple[str, str]]:
    return ((str(name), str(value)) for name, value in element.attrib.items())


def _resolved(qname: str, namespaces: Mapping[str, str]) -> str:
    prefix, _, local = qname.strip().rpartition(":")
    return f"{namespaces[prefix]}{local}" if prefix in namespaces else qname


def _short(name: str) -> str:
    """Return a URI, or a tag as lxml writes it (``{uri}local``), with the prefix that the writer uses for it."""
    for uri, prefix in _SHORT.items():
        for start in (f"{{{uri}}}", uri):
            if name.startswith(start):
                return prefix + name.removeprefix(start)
    return name
