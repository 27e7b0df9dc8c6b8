"""A notebook is identified by its path and a digest that running it does not change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from prefect_executions.capture.notebook import notebook_digest


def notebook(*, output: str, count: int, source: str = "x = 1") -> bytes:
    cell = {
        "cell_type": "code",
        "source": [source],
        "metadata": {"execution": {"started": output}},
        "outputs": [{"text": output}],
        "execution_count": count,
    }
    return json.dumps({"cells": [cell], "metadata": {"widgets": {"state": output}}, "nbformat": 4}).encode()


def test_a_notebooks_digest_does_not_change_by_running_it():
    assert notebook_digest(notebook(output="a", count=1)) == notebook_digest(notebook(output="b", count=2))
    assert notebook_digest(notebook(output="a", count=1)) != notebook_digest(notebook(output="a", count=1, source="x"))
    with pytest.raises(ValueError, match="not a notebook"):
        notebook_digest(b"[]")


def test_in_a_notebook_its_path_and_the_cell_are_told(tmp_path):
    pytest.importorskip("IPython")
    (tmp_path / "my.ipynb").write_bytes(notebook(output="a", count=1))
    (tmp_path / "beside_notebook.py").write_text("x = 1\n")
    code = textwrap.dedent("""
        import json, os, sys
        from IPython.core.interactiveshell import InteractiveShell
        shell = InteractiveShell.instance()
        shell.run_cell("def count():\\n    return 1\\n", store_history=True)
        import beside_notebook
        from prefect_executions.capture.code import identify
        from prefect_executions.settings import Settings
        function = shell.user_ns["count"]
        identity, files = identify(function, settings=Settings(), environment=os.environ)
        print(identity.model_dump_json(exclude_none=True))
        print(files["code/cell.py"].decode())
        """)
    environment = os.environ | {"JPY_SESSION_NAME": str(tmp_path / "my.ipynb"), "IPYTHONDIR": str(tmp_path / "ipython")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout.splitlines()[0])
    assert told["notebook"]["path"] == str(tmp_path / "my.ipynb")
    assert told["notebook"]["sha256"] == notebook_digest(notebook(output="other", count=7))
    assert told["entrypoint"] == "cell.py:count"
    assert {file["path"] for file in told["files"]} == {"code/cell.py", "code/beside_notebook.py"}
    assert "def count():" in done.stdout
