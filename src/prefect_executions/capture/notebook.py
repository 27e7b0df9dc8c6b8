"""Identifies the notebook of the running kernel by its path and a digest of its source."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from prefect_executions.capture.cells import Slice, slice_of
from prefect_executions.documents import canonical_json
from prefect_executions.methods.model import Notebook

# Jupyter Server sets this variable for a kernel; it is a path only if the session belongs to a notebook.
SESSION_VARIABLE = "JPY_SESSION_NAME"
# VS Code sets this name in the notebook's namespace.
VSCODE_NAME = "__vsc_ipynb_file__"


def observe_notebook(environment: Mapping[str, str]) -> Notebook | None:
    """Return the notebook of the caller, if its path is known and its file is readable."""
    shell = _shell()
    if shell is None:
        return None
    for candidate in (getattr(shell, "user_ns", {}).get(VSCODE_NAME), environment.get(SESSION_VARIABLE)):
        if not isinstance(candidate, str) or not candidate.endswith(".ipynb"):
            continue
        try:
            digest = notebook_digest(Path(candidate).read_bytes())
        except (OSError, ValueError):
            continue
        return Notebook(path=candidate, sha256=digest)
    return None


def needed_cells(name: str, cell: str) -> Slice | None:
    """Return the executed statements that the function *name*, defined in the text *cell*, needs; None without cells.

    A cell that runs without a place in IPython's history is unknown.
    """
    shell = _shell()
    names = getattr(shell, "user_ns", {})
    cells = names.get("In")  # as IPython ran them: magics are calls
    if not isinstance(cells, Sequence):
        return None
    hidden = getattr(shell, "user_ns_hidden", {})
    known = {key for key, value in names.items() if hidden.get(key, hidden) is not value}
    texts = tuple(text for text in cells if isinstance(text, str))
    return slice_of(texts, name, cell, known=known, is_run=lambda key: _begins_run(names.get(key)))


def _begins_run(value: object) -> bool:
    """Whether *value* is a flow or task of Prefect, which this layer does not import."""
    return not isinstance(value, type) and hasattr(value, "fn") and hasattr(value, "with_options")


def notebook_digest(data: bytes) -> str:
    """Return the SHA-256 of a notebook's canonical JSON, without the parts that change when it runs.

    Excluded are outputs, execution counts and times, and the state of widgets.

    Raises:
        ValueError: If *data* is not a notebook.
    """
    notebook = json.loads(data)
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise ValueError("not a notebook of format 4")  # noqa: TRY004 - wrong content, not a wrong type
    cells = [_stripped(cell) for cell in notebook["cells"]]
    metadata = {key: value for key, value in notebook.get("metadata", {}).items() if key != "widgets"}
    return sha256(canonical_json({**notebook, "cells": cells, "metadata": metadata})).hexdigest()


def _stripped(cell: dict[str, Any]) -> dict[str, Any]:
    source = {key: value for key, value in cell.items() if key not in {"outputs", "execution_count"}}
    metadata = {
        key: value for key, value in cell.get("metadata", {}).items() if key not in {"execution", "ExecuteTime"}
    }
    return {**source, "metadata": metadata}


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    get_ipython = getattr(ipython, "get_ipython", None)
    return get_ipython() if get_ipython else None
