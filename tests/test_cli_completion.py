"""Completion of ids, queries and names: by the catalog, and in real shells."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benches import OTHER_ID, bench_at, kept
from marks import long_if
from prefect_executions.cli.app import main
from prefect_executions.executions.record import Metric, Metrics
from prefect_executions.workbench.catalog import Catalog
from records import EXECUTION_ID, NOON, a_method, a_request

COMMAND = Path(sys.executable).with_name("executions")


@pytest.fixture
def bench(home):
    bench = bench_at(home)
    values = {"epochs": 20, "learning rate": 0.1, "optimizer": "lion", "shuffle": True, "status": "x"}
    metrics = Metrics(params=values, metrics=(Metric(name="accuracy", value=0.5, step=0, time=NOON),))
    kept(bench, metrics=metrics)
    kept(
        bench,
        OTHER_ID,
        metrics=metrics,
        method=a_method(id="train"),
        request=a_request(execution_id=OTHER_ID, method_id="train"),
    )
    return bench


@pytest.mark.parametrize(
    ("text", "completed"),
    [
        ("metho", {"method:"}),
        ("method:", {"method:segment-coins", "method:train"}),
        ("status:completed AND method:TR", {"status:completed AND method:train"}),
        ("epo", {"epochs"}),
        ("param:", {"param:epochs", 'param:"learning rate"', "param:optimizer", "param:shuffle", "param:status"}),
        ("lear", {'"learning rate"'}),
        ("metric:acc", {"metric:accuracy"}),
        ("optimizer:l", {"optimizer:lion"}),
        ("optimizer:sgd,l", {"optimizer:sgd,lion"}),
        ("shuffle=t", {"shuffle=true"}),
        ("epochs=2", {"epochs=20"}),
        ("duration:6", {"duration:6s"}),
        ('author:"Ada L', {'author:"Ada Lovelace"'}),
        ("is:arch", {"is:archived"}),
        ("is:nothing", set()),
        ("has:metric.a", {"has:metric.accuracy"}),
        ("(((", None),
        ("x" * 100_000, set()),
    ],
)
def test_a_query_becomes_words_recorded_names_and_values(bench, text, completed):
    found = {one.text for one in Catalog(bench).suggest(text)}
    assert all(one.startswith(text[: text.rfind("(") + 1]) for one in found)
    if completed is not None:
        assert completed <= found if completed else found == completed
        assert len(found) < 10


def test_a_name_and_a_value_have_the_number_of_their_executions(bench):
    counts = {one.text: one.executions for one in Catalog(bench).suggest("method:")}
    assert counts == {"method:segment-coins": 1, "method:train": 1}
    assert {one.text: one.executions for one in Catalog(bench).suggest("epo")} == {"epochs": 2}


def completed(shell: str, home: Path, tmp_path: Path, *words: str) -> set[str]:
    """Return what a real *shell* offers for the last of *words*, which is as typed."""
    if shutil.which(shell) is None:
        pytest.skip(f"the shell {shell} is missing")
    script = tmp_path / f"script.{shell}"
    if not script.exists():
        made = subprocess.run([COMMAND, "completion", shell], capture_output=True, text=True, check=True)
        script.write_text(made.stdout)
    words = ("executions", *words)
    if shell == "bash":
        line = f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _executions"
        line += "; printf '%s\\n' \"${COMPREPLY[@]//\\\\/}\""  # without the escapes of unquoted words
        command = ["bash", "--norc", "-c", f"source {script}; {line}"]
    else:
        command = ["fish", "--no-config", "-c", f"source {script}; complete -C {shlex.quote(' '.join(words))}"]
    environment = os.environ | {
        "EXECUTIONS_HOME": str(home),
        "HOME": str(tmp_path),
        "PATH": f"{COMMAND.parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return {line.partition("\t")[0] for line in done.stdout.splitlines()} - {""}


@pytest.mark.parametrize("shell", long_if(["bash", "fish"], {"fish"}))
def test_a_shell_completes_a_query_in_quotes_ids_and_names(bench, home, tmp_path, shell):
    def told(*words: str) -> set[str]:
        return completed(shell, home, tmp_path, *words)

    assert told("search", "'method:segment-coins AND epo") & {
        "method:segment-coins AND epochs",
        "'method:segment-coins AND epochs",
    }
    assert told("remove", EXECUTION_ID[:10]) == {EXECUTION_ID}
    assert "epochs,optimizer" in told("search", "x", "--columns", "epochs,opt")
    assert "loss,metric:accuracy" in told("search", "x", "--sort", "loss,metric:acc")
    assert {"stats", "status"} & told("sta")


@pytest.mark.long
def test_without_a_ledger_there_is_no_answer_and_no_error(home, tmp_path):
    assert completed("bash", home / "nothing", tmp_path, "search", "'epo") == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_valid(shell, capsys, tmp_path):
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    if shutil.which(shell) is None:
        pytest.skip(f"the shell {shell} is missing")
    subprocess.run([shell, "-n", str(script)], check=True)


def test_another_shell_is_refused(capsys):
    assert main(["completion", "cmd"]) == 2
    assert "bash" in capsys.readouterr().err
