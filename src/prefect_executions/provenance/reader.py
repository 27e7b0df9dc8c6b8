"""The reader of `provo.xml`: PROV-XML as hostile input, parsed record by record, and its summary.

Law: any DTD is refused; nothing is fetched; memory does not grow with the document.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from prefect_executions.documents import in_utc, strict_json
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import NAMESPACE, run_name, value_digest
from prefect_executions.executions.summary import (
    Image,
    PhaseSummary,
    ReadSummary,
    RecordSummary,
    StepSummary,
    in_milliseconds,
)
from prefect_executions.provenance import vocabulary

if TYPE_CHECKING:
    from lxml.etree import _Element

SIZE_LIMIT = 256 * 1024**2
"""The largest `provo.xml`, in bytes; with 100,000 outputs it has 58 MB."""

RECORD_LIMIT = 16 * 1024**2
"""The most bytes between two records; libxml2 limits one text to 10 MB."""

STATEMENT_LIMIT = 500_000
"""The most records of a document, each of which takes 4 µs; 100,000 outputs have 200,000."""

ELEMENT_LIMIT = 100_000
"""The most elements between two records, counted by ``<``; each takes at least 200 bytes of memory."""

ATTRIBUTE_LIMIT = 1000
"""The most attributes of an element; libxml2 takes quadratic time for them."""

_LONG_TAG = re.compile(rb"<(?![!?/])[^<]{%d,}" % (4 * ATTRIBUTE_LIMIT))  # an attribute has at least 4 bytes
_NAME = re.compile(rb"<[^\s/>]+")
_ATTRIBUTE = re.compile(rb"""\s*[^\s=<>"'/]+\s*=\s*(?:"[^"]*"|'[^']*')""")
_ENCODING = re.compile(rb"""<\?xml\s[^>]*?\sencoding\s*=\s*["']([^"']*)["']""")
_EBCDIC = b"\x4c\x6f\xa7\x94"  # "<?xm"; libxml2 recognises it
_ENCODINGS = frozenset({b"utf-8", b"utf8", b"us-ascii", b"ascii"})

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
    """One record of the document: its kind, id, references, types and other attributes."""

    kind: str
    id: str
    refs: Mapping[str, str]
    types: frozenset[str]
    texts: Mapping[str, str]

    def text(self, name: str) -> str:
        """Return a required attribute."""
        if name not in self.texts:
            raise fault(f"the {self.kind} {self.id} has no {name}")
        return self.texts[name]

    def number(self, name: str) -> int | None:
        """Return an integer; None if the record does not have it."""
        text = self.texts.get(name)
        if text is not None and not _NUMBER.fullmatch(text):
            raise fault(f"{name} of the {self.kind} {self.id} is '{text[:40]}', not an integer")
        return None if text is None else int(text)

    def time(self, name: str) -> datetime | None:
        """Return a time in UTC; None if the record does not have it."""
        text = self.texts.get(name)
        if text is None:
            return None
        try:
            return in_utc(datetime.fromisoformat(text.strip()))
        except (ValueError, OverflowError) as error:
            raise fault(f"{name} of the {self.kind} {self.id} is '{text[:40]}': {error}") from error


def records(data: bytes) -> Iterator[Record]:
    """Yield the top-level records of a PROV-XML document.

    Raises:
        BundleError: If *data* is not a PROV-XML document, has a DTD, or is too large.
    """
    return (_record(element, namespaces) for element, namespaces in elements(data, _KINDS))


def elements(data: bytes, kinds: Iterable[str] | None = None) -> Iterator[tuple[_Element, Mapping[str, str]]]:
    """Yield the top-level elements of a PROV-XML document, with the namespaces by their prefixes.

    *kinds* selects elements by their names in the namespace of PROV. An element is valid until the next is yielded.

    Raises:
        BundleError: If *data* is not a PROV-XML document, has a DTD, or is too large.
    """
    # Importing lxml takes 20 ms, and only readers of PROV need it.
    from lxml import etree  # noqa: PLC0415

    if len(data) > SIZE_LIMIT:
        raise fault(f"it has {len(data)} bytes; the limit is {SIZE_LIMIT}")
    _check_bytes(data)
    source = _LimitedSource(data)
    parts = etree.iterparse(
        cast("Any", source),
        events=("start-ns", "start", "end"),
        tag=None if kinds is None else [f"{{{vocabulary.PROV}}}{kind}" for kind in (*kinds, "document")],
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        remove_comments=True,
        remove_pis=True,
        huge_tree=False,
    )
    try:
        yield from _elements(parts, source)
    except etree.XMLSyntaxError as error:
        raise fault(f"invalid XML: {error}") from error


def _check_bytes(data: bytes) -> None:
    """Refuse what takes libxml2 too long, or would hide tags from the limits below, before it is parsed."""
    text = data.removeprefix(BOM_UTF8)
    declared = _ENCODING.match(text)
    if text.startswith((BOM_UTF16_LE, BOM_UTF16_BE, _EBCDIC)) or b"\0" in text[:4]:
        raise fault("it is not in UTF-8")
    if declared and declared[1].lower() not in _ENCODINGS:
        raise fault(f"it is in {declared[1].decode('latin-1')[:40]}, not in UTF-8")
    if _has_doctype(text):
        raise fault("it has a DTD, which is not allowed")
    for tag in _LONG_TAG.finditer(text):
        name = _NAME.match(text, tag.start())
        at, attributes = name.end() if name else tag.start(), 0
        while attribute := _ATTRIBUTE.match(text, at, tag.end()):
            at, attributes = attribute.end(), attributes + 1
            if attributes > ATTRIBUTE_LIMIT:
                raise fault(f"an element has more than {ATTRIBUTE_LIMIT} attributes")


def _has_doctype(text: bytes) -> bool:
    """Return whether a DTD precedes the first element."""
    at = 0
    while (at := text.find(b"<", at)) >= 0:
        end = {b"<?": b"?>", b"<!--": b"-->"}.get(text[at : at + 4 if text.startswith(b"<!--", at) else at + 2])
        if end is None:
            return text.startswith(b"<!", at)
        at = text.find(end, at + len(end))
        if at < 0:
            return False
    return False


class _LimitedSource:
    """The document as a stream, with limits on the bytes and elements between two complete records."""

    def __init__(self, data: bytes) -> None:
        self._stream = BytesIO(data)
        self._bytes = self._elements = 0

    def read(self, size: int) -> bytes:
        piece = self._stream.read(size)
        self._bytes += len(piece)
        self._elements += piece.count(b"<")
        if self._bytes > RECORD_LIMIT or self._elements > ELEMENT_LIMIT:
            raise fault("a record is too large, or too much lies between records")
        return piece

    def reset(self) -> None:
        self._bytes = self._elements = 0


def _elements(parts: Any, source: _LimitedSource) -> Iterator[tuple[_Element, Mapping[str, str]]]:
    namespaces: dict[str, str] = {}
    root: _Element | None = None
    count = 0
    for event, part in parts:
        if event == "start-ns":
            _declare(namespaces, *part)
        elif event == "start":
            if root is None:
                root = part
                _check_document(root)
        elif root is not None and part is root:
            _check_text_before(root[-1] if len(root) else None, root)
        elif part.getparent() is root and root is not None:
            count += 1
            if count > STATEMENT_LIMIT:
                raise fault(f"it has more than {STATEMENT_LIMIT} records")
            _check_text_before(part.getprevious(), root)
            yield part, namespaces
            _free(part)
            source.reset()
    if root is None:
        raise fault("it is not a PROV document")


def _declare(namespaces: dict[str, str], prefix: str, uri: str) -> None:
    # Ids are compared with their prefixes, so each prefix must have one namespace.
    if namespaces.setdefault(prefix, uri) != uri:
        raise fault(f"the prefix '{prefix}' has two namespaces")


def _check_document(root: _Element) -> None:
    if root.getroottree().docinfo.internalDTD is not None:
        raise fault("it has a DTD, which is not allowed")
    if root.tag != f"{{{vocabulary.PROV}}}document" or root.getparent() is not None:
        raise fault("it is not a PROV document")


def _check_text_before(previous: _Element | None, root: _Element) -> None:
    """Refuse text between two records, which no reader of PROV shows."""
    text = root.text if previous is None else previous.tail
    if text and text.strip():
        raise fault(f"it has the text '{text.strip()[:40]}' outside of a record")


def _free(element: _Element) -> None:
    # The tail stays for `_check_text_before`; the type information lacks the parameter.
    element.clear(keep_tail=True)  # type: ignore[call-arg]
    parent = element.getparent()
    while parent is not None and element.getprevious() is not None:
        del parent[0]


def _record(element: _Element, namespaces: Mapping[str, str]) -> Record:
    refs: dict[str, str] = {}
    types: set[str] = set()
    texts: dict[str, str] = {}
    seen: set[str] = set()
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
        elif tag in seen and tag != "prov:label":
            raise fault(f"the {kind} {name} has {tag} twice")
        elif ref is not None:
            refs[tag] = _resolve(ref, namespaces)
        else:
            texts[tag] = text
        seen.add(tag)
    return Record(kind, name, refs, frozenset(types), texts)


def _short_tag(tag: str) -> str:
    uri, _, local = tag.removeprefix("{").rpartition("}")
    return _PREFIXES.get(uri, f"{{{uri}}}") + local


def _resolve(qname: str, namespaces: Mapping[str, str]) -> str:
    prefix, _, local = qname.strip().rpartition(":")
    uri = namespaces.get(prefix, prefix)
    return _PREFIXES.get(uri, uri) + local


def fault(message: str) -> BundleError:
    """Return the error for a fault in `provo.xml`."""
    return BundleError(f"{vocabulary.FILE}: {message}")


def read(data: bytes, observe: Callable[[Record], object] = lambda _: None) -> ReadSummary:
    """Return the summary in `provo.xml`, and its digests of the bundle's files.

    *observe* is called with each record, for a second reader of the same document.

    Raises:
        BundleError: If *data* is not XML, has a DTD, or does not describe exactly one complete execution.
    """
    collected = _Collected()
    for record in records(data):
        observe(record)
        collected.add(record)
    return ReadSummary(collected.summary(), tuple(collected.files()))


@dataclass
class _Collected:
    """The records of a document, sorted by kind."""

    runs: list[Record] = field(default_factory=list)
    steps: dict[str, Record] = field(default_factory=dict)
    phases: dict[str, Record] = field(default_factory=dict)
    started: set[tuple[str, str]] = field(default_factory=set)
    entities: dict[str, Record] = field(default_factory=dict)
    plans: set[tuple[str, str]] = field(default_factory=set)
    used: list[tuple[str, str, str]] = field(default_factory=list)
    generated: list[tuple[str, str]] = field(default_factory=list)

    def add(self, record: Record) -> None:
        refs = record.refs
        match record.kind:
            case "activity" if "exe:status" in record.texts:
                self.runs.append(record)
            case "activity" if f"exe:{vocabulary.STEP}" in record.types:
                _add_unique(record, self.steps)
            case "activity" if f"exe:{vocabulary.PHASE}" in record.types:
                _add_unique(record, self.phases)
            case "wasStartedBy":
                self.started.add((refs.get("prov:activity", ""), refs.get("prov:starter", "")))
            case "entity":
                _add_unique(record, self.entities)
            case "wasAssociatedWith" if "prov:plan" in refs:
                self.plans.add((refs.get("prov:activity", ""), refs["prov:plan"]))
            case "used":
                role = vocabulary.from_text(record.texts.get("prov:role", ""))
                self.used.append((refs.get("prov:activity", ""), refs.get("prov:entity", ""), role))
            case "wasGeneratedBy":
                self.generated.append((refs.get("prov:entity", ""), refs.get("prov:activity", "")))

    def summary(self) -> RecordSummary:
        if len(self.runs) != 1:
            raise fault(f"it has {len(self.runs)} executions with a status; there must be one")
        run = self.runs[0]
        execution_id = vocabulary.from_text(run.text("exe:executionId"))
        if run.id != f"px:{run_name(execution_id)}":
            raise fault(f"the name of the activity {run.id} does not match its execution {execution_id}")
        return RecordSummary(
            execution_id=execution_id,
            method=self._method(run.id),
            status=vocabulary.from_text(run.text("exe:status")),
            started=in_milliseconds(run.time("prov:startTime")),
            finished=in_milliseconds(run.time("prov:endTime")),
            inputs=frozenset(self._inputs(run.id)),
            outputs=frozenset(self._outputs(run.id)),
            steps=frozenset(self._steps(run.id)),
            phases=frozenset(self._phases(run.id)),
        )

    def files(self) -> Iterator[tuple[str, str]]:
        for entity in self.entities.values():
            if entity.types & _FILES and "exe:sha256" in entity.texts:
                yield vocabulary.from_text(entity.text("prov:location")), _digest(entity)

    def _steps(self, run: str) -> Iterator[StepSummary]:
        for name, step in self.steps.items():
            if (name, run) not in self.started:
                raise fault(f"the step {name} was not started by the execution")
            yield StepSummary(
                id=vocabulary.from_text(step.text("exe:taskRunId")),
                name=vocabulary.from_text(step.text("prov:label")),
                state=vocabulary.from_text(step.text("exe:state")),
                started=in_milliseconds(step.time("prov:startTime")),
                finished=in_milliseconds(step.time("prov:endTime")),
            )

    def _phases(self, run: str) -> Iterator[PhaseSummary]:
        images = {name: _image(entity) for name, entity in self.entities.items() if _IMAGE in entity.types}
        used: dict[str, Image] = {}
        for activity, name, _ in self.used:
            if name in images and (activity not in self.phases or activity in used):
                raise fault(f"the image {name} is used by {activity}, which is not a phase or has another image")
            if name in images:
                used[activity] = images[name]
        for name, phase in self.phases.items():
            number = _PHASE.fullmatch(name)
            if number is None or (name, run) not in self.started:
                raise fault(f"the phase {name} has no number or was not started by the execution")
            yield PhaseSummary(
                number=int(number[1]),
                phase=vocabulary.from_text(phase.text("prov:label")),
                task=vocabulary.from_text(phase.text("exe:task")),
                started=in_milliseconds(phase.time("prov:startTime")),
                ended=in_milliseconds(phase.time("prov:endTime")),
                exit_code=phase.number("exe:exitCode"),
                image=used.get(name),
            )

    def _method(self, run: str) -> str:
        plans = {plan for activity, plan in self.plans if activity == run}
        if len(plans) != 1:
            raise fault(f"the execution has {len(plans)} Methods; there must be one")
        method = self._entity(plans.pop())
        return f"{vocabulary.from_text(method.text('exe:methodId'))} {vocabulary.from_text(method.text('exe:version'))}"

    def _inputs(self, run: str) -> Iterator[tuple[str, str]]:
        used: set[str] = set()
        for activity, name, role in self.used:
            entity = self._entity(name)
            if activity != run or not entity.types & {f"exe:{vocabulary.INPUT_FILE}", f"exe:{vocabulary.INPUT_VALUE}"}:
                continue
            used.add(name)
            yield role, _digest(entity)
        self._check_all(used, "used", vocabulary.INPUT_FILE, vocabulary.INPUT_VALUE)

    def _outputs(self, run: str) -> Iterator[tuple[str, str]]:
        generated: set[str] = set()
        for name, activity in self.generated:
            entity = self._entity(name)
            if activity != run or f"exe:{vocabulary.OUTPUT}" not in entity.types:
                continue
            if name in generated:
                raise fault(f"the entity {name} is generated twice")
            generated.add(name)
            yield vocabulary.from_text(entity.text("prov:location")), _digest(entity)
        self._check_all(generated, "generated", vocabulary.OUTPUT)

    def _entity(self, name: str) -> Record:
        if name not in self.entities:
            raise fault(f"the entity {name or '(without a name)'} is missing")
        return self.entities[name]

    def _check_all(self, names: set[str], how: Literal["used", "generated"], *types: str) -> None:
        checked = {f"exe:{kind}" for kind in types}
        for name, entity in self.entities.items():
            if entity.types & checked and name not in names:
                raise fault(f"the entity {name} is not {how} by the execution")


def _add_unique(record: Record, records_by_id: dict[str, Record]) -> None:
    if record.id in records_by_id:
        raise fault(f"the {record.kind} {record.id} occurs twice")
    records_by_id[record.id] = record


_IMAGE = f"exe:{vocabulary.IMAGE}"
_FILES = frozenset(
    f"exe:{kind}" for kind in (vocabulary.METHOD, vocabulary.SOURCE, vocabulary.REQUEST, vocabulary.ENVIRONMENT)
)
_PHASE = re.compile(r".*/phase\.([0-9]{1,9})")


def _image(entity: Record) -> Image:
    texts = {name: vocabulary.from_text(text) for name, text in entity.texts.items()}
    digest = texts.get("exe:imageDigest")
    return Image(
        registry=texts.get("exe:registry"),
        name=texts.get("exe:image"),
        id=texts.get("exe:imageId"),
        sha256=digest and digest.removeprefix("sha256:"),
    )


def _digest(entity: Record) -> str:
    if "prov:value" in entity.texts:
        return value_digest(strict_json(entity.texts["prov:value"], f"{vocabulary.FILE}: {entity.id}"))
    digest = entity.text("exe:sha256")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise fault(f"exe:sha256 of the entity {entity.id} is '{digest[:80]}', not a digest")
    return digest
