"""Conversion of `provo.xml` to other forms of PROV and to a picture, with the `prov` library."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Literal

from prefect_executions.errors import BundleError, RequestError
from prefect_executions.provenance import vocabulary
from prefect_executions.provenance.reader import records

if TYPE_CHECKING:
    from prov.model import ProvDocument
    from rdflib import Graph
    from rdflib.graph import _TripleType as _Triple

Form = Literal["xml", "json", "n", "ttl", "svg"]

DRAWABLE = 1000
"""The most records in a picture: Graphviz takes 10 s for 1,000 records, and much longer for more."""


def convert(data: bytes, to: Form) -> bytes:
    """Return the PROV-XML document *data* as PROV-XML, PROV-JSON, PROV-N, Turtle (PROV-O) or an SVG picture.

    Raises:
        BundleError: If *data* is not a PROV-XML document or has a DTD.
        RequestError: If a package for the form is not installed, or the picture would be too large.
    """
    count = sum(1 for _ in records(data))
    match to:
        case "xml":
            return data
        case "json":
            return _serialized(data, "json")
        case "n":
            return _serialized(data, "provn")
        case "ttl":
            return _turtle(data)
        case "svg":
            return _picture(data, count)


def _document(data: bytes) -> ProvDocument:
    # Importing the library takes 50 ms, and only this function needs it.
    from prov.model import ProvDocument  # noqa: PLC0415

    try:
        return ProvDocument.deserialize(BytesIO(data), format="xml")
    except Exception as error:  # the library raises errors of many types
        raise BundleError(f"{vocabulary.FILE}: the prov library cannot read it: {error}") from error


def _serialized(data: bytes, form: str, **options: str) -> bytes:
    text = _document(data).serialize(None, format=form, **options)
    return (text.rstrip("\n") + "\n" if isinstance(text, str) else "").encode()


def _turtle(data: bytes) -> bytes:
    try:
        from prov.serializers.provrdf import ProvRDFSerializer  # noqa: PLC0415 - needs an optional package
    except ImportError as error:
        raise RequestError("Turtle needs rdflib: pip install 'prov[rdf]'") from error
    document = _document(data)
    graph = ProvRDFSerializer(document).encode_container(document)
    for triple in list(_unqualified(graph)):
        graph.add(triple)
    return graph.serialize(format="turtle", encoding="utf-8").rstrip(b"\n") + b"\n"


_UNQUALIFIED = (
    ("qualifiedUsage", "entity", "used"),
    ("qualifiedGeneration", "activity", "wasGeneratedBy"),
    ("qualifiedAssociation", "agent", "wasAssociatedWith"),
    ("qualifiedDelegation", "agent", "actedOnBehalfOf"),
    ("qualifiedDerivation", "entity", "wasDerivedFrom"),
    ("qualifiedCommunication", "activity", "wasInformedBy"),
    ("qualifiedStart", "entity", "wasStartedBy"),
    # PROV-O has no property for the activity that started another: the range of wasStartedBy is an entity.
    ("qualifiedStart", "hadActivity", "wasInfluencedBy"),
)
"""Properties with a qualified influence, the property of that influence that refers to the influencer, and the
unqualified property (PROV-O, section 3.3, tables 2 and 3)."""


def _unqualified(graph: Graph) -> Iterator[_Triple]:
    """Yield the unqualified triples for *graph*: the prov library leaves them out of a relation with a role."""
    from rdflib import PROV  # noqa: PLC0415 - an optional package for this form only

    for qualified, influencer, plain in _UNQUALIFIED:
        for subject, influence in graph.subject_objects(PROV[qualified]):
            for other in graph.objects(influence, PROV[influencer]):
                yield subject, PROV[plain], other


def _picture(data: bytes, count: int) -> bytes:
    if count > DRAWABLE:
        raise RequestError(f"A picture can show at most {DRAWABLE} records, not {count}; use json, n or ttl.")
    try:
        from prov.dot import prov_to_dot  # noqa: PLC0415 - an optional package for this form only
    except ImportError as error:
        raise RequestError("An SVG picture needs pydot: pip install 'prov[dot]', and Graphviz") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that the start of a step has no trigger
            picture = prov_to_dot(_document(data)).create(format="svg")
    except FileNotFoundError as error:
        raise RequestError(
            "An SVG picture needs Graphviz's program dot: install your system's package graphviz"
        ) from error
    return picture.encode() if isinstance(picture, str) else picture
