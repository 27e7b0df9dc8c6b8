"""The name and the experiment of a submitted execution, as labels of its flow run in Prefect.

The machine that submits a run may have no access to its archive, so the worker reads these labels and
adds them to the execution.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from prefect_executions.errors import RequestError
from prefect_executions.executions.annotations import AnnotationKind, LabelChange

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

_KEYS = {AnnotationKind.NAME: "prefect-executions.name", AnnotationKind.EXPERIMENT: "prefect-executions.experiment"}


def run_labels(changes: Iterable[LabelChange]) -> dict[str, str]:
    """Return *changes*, a name or an experiment, as labels of a flow run."""
    return {_KEYS[kind]: text for kind, text in changes}


def changes_in(run: FlowRun) -> tuple[LabelChange, ...]:
    """Return the name and the experiment that the labels of *run* give to its execution; invalid ones are ignored."""
    found = []
    for kind, key in _KEYS.items():
        with suppress(RequestError):  # another program may have written the label
            if key in run.labels:
                found.append(LabelChange.of(kind, str(run.labels[key])))
    return tuple(found)
