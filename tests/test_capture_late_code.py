"""Modules that are loaded while a Method runs are in the record of each run that used them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import pytest

from prefect_executions.capture.code import CodeCache, identify
from prefect_executions.capture.late_code import late_modules, run_start
from prefect_executions.settings import Settings


class Runs:
    """Runs of one Method outside Git, in one cache."""

    def __init__(self, function) -> None:
        self.function, self.cache = function, CodeCache()

    def begin(self):
        identity, _ = identify(self.function, settings=Settings(), cache=self.cache)
        return identity, run_start(self.function, cache=self.cache)

    def end(self, run):
        return late_modules(*run, cache=self.cache)


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Runs:
    """A Method in a folder of its own; `inside_…` is a late module of this folder, `outside_…` one of another."""
    name = sha256(str(tmp_path).encode()).hexdigest()[:12]
    for path, text in {
        f"project/meth_{name}.py": "def m():\n    pass\n",
        f"project/inside_{name}.py": f"import deep_{name}\n",
        f"project/deep_{name}.py": "",
        f"library/outside_{name}.py": "",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    for folder in ("project", "library"):
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    runs = Runs(importlib.import_module(f"meth_{name}").m)
    runs.name = name
    yield runs
    for kind in ("meth", "inside", "deep", "outside"):
        sys.modules.pop(f"{kind}_{name}", None)


def paths(identity) -> list[str]:
    return [file.path for file in identity.files]


def test_each_of_two_concurrent_runs_has_the_modules_that_either_loaded(runs):
    first, second = runs.begin(), runs.begin()
    importlib.import_module(f"inside_{runs.name}")
    ended, kept = runs.end(first)
    third = runs.begin()
    ended_later, kept_later = runs.end(second)
    expected = [f"code/{kind}_{runs.name}.py" for kind in ("deep", "inside", "meth")]
    assert paths(ended) == paths(ended_later) == paths(third[0]) == expected
    assert ended.sha256 == ended_later.sha256 == third[0].sha256
    assert sorted(kept) == sorted(kept_later) == expected[:2]


def test_a_run_has_the_module_that_a_concurrent_one_loaded_before_it_began(runs):
    first = runs.begin()
    importlib.import_module(f"outside_{runs.name}")
    second = runs.begin()
    for run in (second, first):
        ended, kept = runs.end(run)
        outside = f"code/_outside/library/outside_{runs.name}.py"
        assert paths(ended) == [outside, f"code/meth_{runs.name}.py"]
        assert list(kept) == [outside]


def test_a_second_attempt_keeps_what_the_first_loaded_and_adds_its_own(runs):
    identity, _ = runs.begin()
    before = run_start(runs.function, cache=runs.cache)
    importlib.import_module(f"inside_{runs.name}")
    first, _ = runs.end((identity, before))
    again = run_start(runs.function, cache=runs.cache)
    importlib.import_module(f"outside_{runs.name}")
    second, kept = runs.end((first, again))
    assert set(paths(second)) > set(paths(first))
    assert list(kept) == [f"code/_outside/library/outside_{runs.name}.py"]


def test_an_execution_that_another_process_began_has_the_late_modules_of_this_process(runs):
    identity, start = runs.begin()
    begun_elsewhere = identity.model_copy(update={"sha256": "0" * 64})
    importlib.import_module(f"inside_{runs.name}")
    ended, kept = runs.end((begun_elsewhere, start))
    assert paths(ended) == [f"code/{kind}_{runs.name}.py" for kind in ("deep", "inside", "meth")]
    assert sorted(kept) == paths(ended)[:2]


def test_of_many_codes_the_oldest_is_forgotten(runs):
    identity, start = runs.begin()
    observed = runs.cache.observed[*start.source.place, identity.sha256]
    for number in range(1000):
        runs.cache.note(replace(start.source, module=f"m{number}"), "0" * 64, observed)
    assert len(runs.cache.observed) == 256
    assert ("m999", *start.source.place[1:], "0" * 64) in runs.cache.observed
    assert (*start.source.place, identity.sha256) not in runs.cache.observed


def test_a_module_loaded_between_two_runs_does_not_belong_to_the_second(runs):
    run = runs.begin()
    runs.end(run)
    del run
    importlib.import_module(f"outside_{runs.name}")
    assert paths(runs.end(runs.begin())[0]) == [f"code/meth_{runs.name}.py"]


def test_the_record_says_that_names_of_data_files_were_not_noted(tmp_path):
    (tmp_path / "meth.py").write_text("def m():\n    pass\n")
    program = """
import time
from prefect_executions.capture import opened_files
from prefect_executions.capture.code import identify
from prefect_executions.capture.late_code import opened_data, run_start, with_data
from prefect_executions.settings import Settings
import meth
opened_files.watch()
identity, _ = identify(meth.m, settings=Settings())
for number in range(2 * opened_files.MOST_NOTED + 1):
    try:
        open(f"{number}.txt").close()
    except OSError:
        pass
data = opened_data(identity, run_start(meth.m), before=time.time_ns(), apart=(), secret=lambda *_: False)
print(with_data(identity, data)[0].lacking)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "path='code/', why='more than 20000 files were opened;" in done.stdout
