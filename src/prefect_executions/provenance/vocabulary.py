"""The vocabulary of `provo.xml`: namespaces, types, and escapes for text that XML cannot hold."""

from __future__ import annotations

import re

from prefect_executions.executions.record import NAMESPACE

PROV = "http://www.w3.org/ns/prov#"
XSI = "http://www.w3.org/2001/XMLSchema-instance"
XSD = "http://www.w3.org/2001/XMLSchema"
TERMS = f"{NAMESPACE}terms#"
"""The namespace of attributes and types that PROV lacks."""

FILE = "metadata/provo.xml"

# Entity types in `TERMS`: the role of an entity in the execution.
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
"""The longest input value in characters of canonical JSON; for a longer value, only the digest is written."""

# XML 1.0, production 2 (Char), without the carriage return, which a parser turns into a line feed (section 2.11).
_NOT_XML = r"[^\t\n\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]"
_FOREIGN = re.compile(_NOT_XML)
_ESCAPE = re.compile(_NOT_XML + r"|_(?=x[0-9A-F]{4})")
_ESCAPED = re.compile(r"_x([0-9A-F]{4})_")


def as_text(text: str) -> str:
    """Return *text* escaped for XML by the convention ``_xHHHH_`` (ISO/IEC 29500-1, ST_Xstring).

    A character that XML cannot hold becomes ``_x``, four hexadecimal digits and ``_``.
    An underscore that looks like the start of an escape becomes ``_x005F_``. `from_text`
    restores any text.
    """
    return _ESCAPE.sub(lambda match: f"_x{ord(match[0]):04X}_", text)


def from_text(text: str) -> str:
    """Return the text that `as_text` escaped."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)


def as_json_text(json_text: str) -> str:
    """Return *json_text* with JSON escapes for characters that XML cannot hold; the result is still JSON."""
    return _FOREIGN.sub(lambda match: f"\\u{ord(match[0]):04x}", json_text)
