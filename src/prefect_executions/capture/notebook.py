"""The notebook that code is run from: where it lies, and its digest without the cells' outputs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from prefect_executions.documents import canonical
from prefect_executions.methods.model import Notebook

# Jupyter Server sets it for a kernel; it is a path only when the session is a notebook's.
SESSION_VARIABLE = "JPY_SESSION_NAME"
# VS Code sets it in the notebook's own names.
VSCODE_NAME = "__vsc_ipynb_file__"


def observe_notebook(environment: Mapping[str, str]) -> Notebook | None:
    """Return the notebook around the caller, where its path can be observed and its file be read."""
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


def notebook_digest(data: bytes) -> str:
    """Return the SHA-256 of a notebook's canonical JSON, without what running it changes.

    Left out are outputs, execution counts and times, and the state of widgets.

    Raises:
        ValueError: If *data* is no notebook.
    """
    told = json.loads(data)
    if not isinstance(told, dict) or not isinstance(told.get("cells"), list):
        raise ValueError("this is no notebook of format 4")  # noqa: TRY004 - wrong content, not a wrong type
    cells = [_stripped(cell) for cell in told["cells"]]
    metadata = {key: value for key, value in told.get("metadata", {}).items() if key != "widgets"}
    return sha256(canonical({**told, "cells": cells, "metadata": metadata})).hexdigest()


def _stripped(cell: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in cell.items() if key not in {"outputs", "execution_count"}}
    metadata = {
        key: value for key, value in cell.get("metadata", {}).items() if key not in {"execution", "ExecuteTime"}
    }
    return {**kept, "metadata": metadata}


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    get_ipython = getattr(ipython, "get_ipython", None)
    return get_ipython() if get_ipython else None
