"""Probes: each reads one kind of fact about the system, the environment or the code for the record.

Law: a fact that cannot be read is left out, with a note on the reason, and never ends a run. The sources
are programs, files and packages of others, which fail in every possible way.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

from prefect_executions.capture.secrets import redact_urls
from prefect_executions.documents import clean_text
from prefect_executions.errors import ExecutionsError

S = TypeVar("S")
T = TypeVar("T")

_LONGEST_REASON = 200

Failures = dict[str, str]
"""The facts that could not be read, each with the reason."""


class Probe(StrEnum):
    """The kinds of facts, as the note calls them."""

    HOSTNAME = "host name"
    PROCESS = "process"
    USER = "user"
    WORKING_DIRECTORY = "working directory"
    OPERATING_SYSTEM = "operating system"
    KERNEL = "kernel"
    ARCHITECTURE = "architecture"
    CPU_MODEL = "CPU model"
    CPU_COUNT = "number of CPUs"
    CPU_LIMIT = "CPU limit"
    MEMORY = "memory"
    CONTAINER = "container"
    PYTHON = "Python"
    GPUS = "GPUs"
    PACKAGES = "packages"
    ENVIRONMENT = "environment variables"
    USAGE = "resource usage"
    CODE = "code"
    REPOSITORY = "Git repository"
    METHOD_PACKAGE = "package of the Method"
    NOTEBOOK = "notebook"


def probe(fact: Probe, read: Callable[[], S], default: T, failures: Failures) -> S | T:
    """Return what *read* returns, or *default* if it fails; then *failures* gets the reason.

    Text is returned without lone surrogates, which no JSON document can hold.

    Raises:
        ExecutionsError: If *read* refuses the run on purpose.
    """
    try:
        value = read()
        return clean_text(value) if isinstance(value, str) else value  # type: ignore[return-value]  # S is str
    except ExecutionsError:
        raise
    except Exception as error:  # noqa: BLE001 - the law above
        failures[fact] = reason(error)
        return default


def reason(error: Exception) -> str:
    """Return the reason of a failed probe for a note; URLs are redacted."""
    try:
        text = clean_text(redact_urls(str(error)))
    except Exception:  # noqa: BLE001 - the exception of another package may not have a text
        text = ""
    return f"{type(error).__name__}: {text}"[:_LONGEST_REASON].rstrip(": ")


def note_on(failures: Failures) -> str | None:
    """Return the note for the history; None if every fact could be read."""
    if not failures:
        return None
    return "not recorded, because it could not be read: " + "; ".join(
        f"{fact} ({why})" for fact, why in sorted(failures.items())
    )
