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


def test_the_executed_cells_that_the_method_needs_are_kept_and_what_they_lack_is_listed(tmp_path):
    pytest.importorskip("IPython")
    (tmp_path / "beside_notebook.py").write_text("x = 1\n")
    code = textwrap.dedent("""
        from IPython.core.interactiveshell import InteractiveShell
        shell = InteractiveShell.instance()
        cells = [
            "from beside_notebook import x",
            "%%time\\nLIMIT = 3",
            "def clean(word):\\n    return word[:LIMIT]",
            "clean('trial')",
            "class Flow:\\n    fn = with_options = None\\n    def __call__(self): return [1]\\nflow = Flow()",
            "rows = flow()",
            "files = !ls",
            "def count(words):\\n    return [clean(word) for word in words], x, rows, files, injected",
        ]
        shell.user_ns["injected"] = 1
        for cell in cells:
            shell.run_cell(cell, store_history=True).raise_error()
        from prefect_executions.capture.code import identify
        from prefect_executions.settings import Settings
        first, files = identify(shell.user_ns["count"], settings=Settings())
        shell.run_cell("count(['a'])\\nmore = 1", store_history=True)
        second, _ = identify(shell.user_ns["count"], settings=Settings())
        assert first == second
        import json
        print(json.dumps({"text": files["code/cell.py"].decode(), "code": first.model_dump(mode="json")}))
        """)
    environment = os.environ | {"IPYTHONDIR": str(tmp_path / "ipython")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    shown = json.loads(done.stdout.splitlines()[-1])
    assert "trial" not in shown["text"]
    assert "class Flow" in shown["text"]
    assert shown["text"].startswith("from beside_notebook import x\n\nLIMIT = 3\n\ndef clean(word):\n")
    assert [file["path"] for file in shown["code"]["files"]] == ["code/beside_notebook.py", "code/cell.py"]
    assert {file["path"]: file["why"] for file in shown["code"]["lacking"]} == {
        "code/cell.py:injected": "no executed cell defines it",
        "code/cell.py:rows": "it is the result of a run of 'flow', which a replay would repeat",
        "code/cell.py:files": "its cell uses a command of IPython",
    }
