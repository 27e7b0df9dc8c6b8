"""README's first screen is true: its Method runs, and what comes out is what it shows."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from prefect_executions.bundles.verify import verify

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_first_block_is_a_method_that_runs_and_leaves_the_tree_that_is_shown(tmp_path, home, prefect_server):
    block = re.search(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert block
    file = tmp_path / "readme.py"
    file.write_text(block[1], encoding="utf-8")
    spec = spec_from_file_location("readme", file)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be")

    assert module.count_words(text) == 6

    (folder,) = (entry for entry in (home / "workbench").iterdir() if not entry.name.startswith("."))
    assert (folder / "outputs" / "counts.csv").read_text().splitlines()[:3] == ["word,count", "to,2", "be,2"]
    assert verify(folder).faults == ()
    shown = re.search(r"^<execution id>/\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert shown
    told = {name.rstrip("/").split("/")[-1] for name in re.findall(r"[├└]── (\S+)", shown[1])}
    there = {path.name for path in folder.rglob("*") if path.parent in {folder, folder / "metadata", folder / "auth"}}
    assert told - {"auth"} == there - {"auth"}
