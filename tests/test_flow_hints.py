"""The history notes what a Method used or wrote and its record lacks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from homes import Bundles
from prefect_executions import InputFile, current_execution, method
from prefect_executions.flow.hints import is_data_file
from prefect_executions.lifecycle.history import EntryKind

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def bundles(home: Path) -> Bundles:
    return Bundles(home)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Return the working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def notes(bundles: Bundles) -> list[str]:
    return [entry.message for entry in bundles.record().job_status.history if entry.kind is EntryKind.NOTE]


@pytest.mark.long
def test_a_removed_log_is_noted(bundles):
    @method
    def removes() -> None:
        (current_execution().output("a.txt").parent / "stdout.log").unlink()

    removes()
    assert notes(bundles) == ["the Method removed its own log: outputs/stdout.log"]
    assert bundles.failed_checks() == []


@pytest.mark.long
def test_files_outside_the_outputs_are_noted_and_temporary_ones_are_not(bundles, folder):
    @method
    def writes() -> None:
        current_execution().output("a.txt").write_text("1")
        Path("results").mkdir()
        for number in range(5):
            Path(f"results/{number}.txt").write_text("1")
        for name in ("gone.tmp", ".cache"):
            Path(name).write_text("1")
        Path("gone.tmp").unlink()
        (folder.parent / "beyond.txt").write_text("1")

    Path("before.txt").write_text("1")
    writes()
    [note] = notes(bundles)
    assert note.startswith(
        "this process wrote results/0.txt, results/1.txt, results/2.txt, and 2 more outside the outputs during the run"
    )
    assert note.endswith("write to current_execution().output(NAME)")


def test_a_file_of_this_package_below_the_working_directory_is_not_noted(bundles, folder, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))

    @method
    def inner() -> None:
        Path("of-inner.txt").write_text("1")

    @method
    def outer() -> None:
        inner()

    outer()
    assert (folder / "state/prefect-executions/sealed").exists()
    messages = [entry.message for each in bundles.folders() for entry in bundles.record(each).job_status.history]
    assert [text.partition(" outside")[0] for text in messages if text and text.startswith("this process wrote")] == [
        "this process wrote of-inner.txt"
    ] * 2


def test_an_input_that_is_the_path_of_a_file_and_not_declared_is_noted(bundles, folder):
    @method
    def reads(
        text: str, path: Path, many: list[str], declared: InputFile, others: list[str], *, words: list[str]
    ) -> None:
        Path("made.csv").write_text("1")
        Path("made.csv").unlink()

    (folder / "a.csv").write_text("1")
    (folder / "empty").touch()
    reads(
        "a.csv",
        Path("a.csv"),
        ["none", "a.csv"],
        "a.csv",
        ["none", "empty", ".", "x" * 10_000],
        words=["word"] * 20 + ["a.csv"],
    )
    sentence = "the input '{}' is the path of a file that is not declared as one; annotate it as InputFile"
    assert [note.partition(", and")[0] for note in notes(bundles)] == [
        sentence.format(name) for name in ("text", "path", "many")
    ]


@pytest.mark.parametrize("text", ["", "none", ".", "a\0", "\ud800", "a.csv\n", "x" * 10_000])
def test_a_text_that_is_not_the_path_of_a_file_is_no_data(folder, text):
    # Directly, because Prefect's server refuses some of these as parameters when it keeps them in PostgreSQL.
    (folder / "a.csv").write_text("1")
    begun = time.time_ns()
    assert is_data_file("a.csv", begun)
    assert not is_data_file(text, begun)


def test_a_method_that_does_neither_has_no_note(bundles, folder):
    @method
    def writes(text: str) -> None:
        current_execution().output("a.txt").write_text(text)

    writes("some text")
    assert notes(bundles) == []
