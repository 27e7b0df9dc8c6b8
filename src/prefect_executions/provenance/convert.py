"""Conversion of `provo.xml` to other forms of PROV and to a picture, with the `prov` library."""

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
        import rdflib  # noqa: F401, PLC0415 - an optional package for this form only
    except ImportError as error:
        raise RequestError("Turtle needs rdflib: pip install 'prov[rdf]'") from error
    return _serialized(data, "rdf", rdf_format="turtle")


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
