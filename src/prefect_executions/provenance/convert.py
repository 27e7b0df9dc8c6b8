"""Tell `provo.xml` in another form of PROV, or as a picture, by the `prov` library."""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import TYPE_CHECKING, Literal

from prefect_executions.errors import BundleError, RequestError
from prefect_executions.provenance import vocabulary
from prefect_executions.provenance.reader import records

if TYPE_CHECKING:
    from prov.model import ProvDocument

Form = Literal["xml", "json", "n", "ttl", "svg"]

DRAWABLE = 1000
"""Graphviz takes 10 s for a picture of 1,000 records, and much longer for more."""


def convert(data: bytes, to: Form) -> bytes:
    """Return the PROV-XML document *data* as PROV-XML, PROV-JSON, PROV-N, Turtle (PROV-O) or an SVG picture.

    Raises:
        BundleError: If *data* is not a PROV-XML document or has a DTD.
        RequestError: If the form needs something that is not installed, or the picture would be too large.
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
    # The library takes 50 ms to import, and only this function needs it.
    from prov.model import ProvDocument  # noqa: PLC0415

    try:
        return ProvDocument.deserialize(BytesIO(data), format="xml")
    except Exception as error:  # the library lets errors of many kinds through
        raise BundleError(f"{vocabulary.FILE}: the prov library cannot read it: {error}") from error


def _serialized(data: bytes, form: str, **options: str) -> bytes:
    text = _document(data).serialize(None, format=form, **options)
    return (text.rstrip("\n") + "\n" if isinstance(text, str) else "").encode()


def _turtle(data: bytes) -> bytes:
    try:
        import rdflib  # noqa: F401, PLC0415 - an extra that only this form needs
    except ImportError as error:
        raise RequestError("Turtle needs rdflib: pip install 'prov[rdf]'") from error
    return _serialized(data, "rdf", rdf_format="turtle")


def _picture(data: bytes, count: int) -> bytes:
    if count > DRAWABLE:
        raise RequestError(f"A picture of {count} records is not drawn (at most {DRAWABLE}); take json, n or ttl.")
    try:
        from prov.dot import prov_to_dot  # noqa: PLC0415 - an extra that only this form needs
    except ImportError as error:
        raise RequestError("An SVG picture needs pydot: pip install 'prov[dot]', and Graphviz") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it draws a step's start, which has no trigger, and warns of that
            picture = prov_to_dot(_document(data)).create(format="svg")
    except FileNotFoundError as error:
        raise RequestError(
            "An SVG picture needs Graphviz's program dot: install the package graphviz of your system"
        ) from error
    return picture.encode() if isinstance(picture, str) else picture
