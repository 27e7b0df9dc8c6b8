"""The words of `provo.xml`: namespaces, prefixes, and text that XML cannot hold as it is."""

from __future__ import annotations

import re

from prefect_executions.executions.record import NAMESPACE

PROV = "http://www.w3.org/ns/prov#"
XSI = "http://www.w3.org/2001/XMLSchema-instance"
XSD = "http://www.w3.org/2001/XMLSchema"
TERMS = f"{NAMESPACE}terms#"
"""Our own attributes and types, where PROV has no word."""

FILE = "metadata/provo.xml"

# Entity types of our own; they say in which part of the story an entity plays.
METHOD = "Method"
SOURCE = "SourceFile"
REQUEST = "Request"
ENVIRONMENT = "Environment"
INPUT_FILE = "InputFile"
INPUT_VALUE = "InputValue"
OUTPUT = "Output"
IMAGE = "ContainerImage"
STEP = "Step"  # an activity
PHASE = "Phase"  # an activity

VALUE_LIMIT = 64 * 1024
"""A longer input value, in characters of canonical JSON, is told by its digest and read in `request.json`."""

# XML 1.0, production 2 (Char), less the carriage return, which a parser makes a line feed (section 2.11).
_NOT_XML = r"[^\t\n\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]"
_FOREIGN = re.compile(_NOT_XML)
_ESCAPE = re.compile(_NOT_XML + r"|_(?=x[0-9A-F]{4})")
_ESCAPED = re.compile(r"_x([0-9A-F]{4})_")


def as_text(text: str) -> str:
    """Return *text* as XML can hold it, by the convention ``_xHHHH_`` (ISO/IEC 29500-1, ST_Xstring).

    A character that XML has no form for becomes ``_x``, its four hexadecimal digits
    and ``_``; an underscore that would look like one becomes ``_x005F_``. `from_text`
    gives back the same text, whatever it is.
    """
    return _ESCAPE.sub(lambda found: f"_x{ord(found[0]):04X}_", text)


def from_text(text: str) -> str:
    """Return what `as_text` was given."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


def as_json_text(json_text: str) -> str:
    """Return the same JSON with what XML cannot hold in JSON's own escapes, so that it stays JSON."""
    return _FOREIGN.sub(lambda found: f"\\u{ord(found[0]):04x}", json_text)
