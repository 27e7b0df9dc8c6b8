"""Undeclared secrets: in a default, in a URL argument, in the name of an output."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from prefect.flows import load_flow_from_entrypoint

from homes import Bundles, holding
from prefect_executions import current_execution, method

pytestmark = pytest.mark.usefixtures("prefect_server")

PLANTED = "-".join(["plAnted", "s3cret", "b83e20"])  # noqa: FLY002 - the record keeps this file, too
KEY = "ghp_" + "A1b2C3d4E5" * 3

CARELESS = """
from pydantic import BaseModel

from prefect_executions import current_execution, method


class Source(BaseModel):
    link: str = "https://bob:{planted}@example.org/model"


@method(version="1")
def careless(url: str = "https://carol:{planted}@example.org/d.csv?x=1", source: Source = Source(), key: str = "{key}"):
    current_execution().output("a.txt").write_text("a")
    print(url, source.link, key)
    raise RuntimeError(f"no answer from {{url}} with {{key}}")
"""


@pytest.fixture
def bundles(home: Path) -> Bundles:
    return Bundles(home)


def notes(bundles: Bundles) -> list[str]:
    return [entry.message or "" for entry in bundles.record().job_status.history if entry.kind == "note"]


def careless(folder: Path) -> Any:
    """A Method in a repository, with credentials in its defaults and in an uncommitted file."""
    folder.mkdir()
    git = ["git", "-C", str(folder), "-c", "user.name=ada", "-c", "user.email=ada@example.org"]
    (folder / "careless.py").write_text("# nothing yet\n")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    (folder / "careless.py").write_text(CARELESS.format(planted=PLANTED, key=KEY))
    return load_flow_from_entrypoint(f"{folder / 'careless.py'}:careless")


def test_credentials_in_defaults_are_in_no_file_of_the_record(bundles, home, tmp_path):
    with pytest.raises(RuntimeError):
        careless(tmp_path / "project")()
    record = bundles.record()

    assert holding(home, PLANTED.encode()) == []
    assert holding(home, KEY.encode()) == []
    assert record.method.inputs["url"].json_schema["default"] == "https://example.org/d.csv?x=1"
    assert "default" not in record.method.inputs["key"].json_schema
    assert record.request.values["key"] == {"withheld": True}
    assert bundles.failed_checks() == []


def test_a_source_file_with_a_password_is_recorded_by_digest_with_a_note(bundles, tmp_path):
    with pytest.raises(RuntimeError):
        careless(tmp_path / "project")()
    code = bundles.record().method.code

    assert [file.path for file in code.files] == ["code/careless.py"]
    assert (code.repository.dirty, code.repository.diff_kept) == (True, False)
    assert not (bundles.one() / "code/careless.py").exists()
    assert not (bundles.one() / "code/uncommitted.diff").exists()
    assert (bundles.one() / "code/requirements.txt").exists()
    warning, withheld = notes(bundles)
    assert "the record has only the digest of code/careless.py" in warning
    assert withheld == "withheld, because the name looks secret or the value contains a secret: key"


@method(version="1")
def fetches(url: str) -> None:
    """Fetch."""
    print("asking", url, "with", url.partition("@")[0].rpartition(":")[2])


@pytest.mark.long
def test_the_password_in_a_url_that_is_not_an_input_file_is_masked_in_the_logs(bundles, home):
    fetches(f"postgresql://ada:{PLANTED}@db.example.org/stars")

    assert holding(home, PLANTED.encode()) == []
    assert (bundles.one() / "outputs/stdout.log").read_text() == "asking ******** with ********\n"


@method(version="1", secrets=["token"])
def names_by_secret(token: str) -> None:
    """Write."""
    execution = current_execution()
    execution.output(f"of-{token}.txt").write_text("1")
    (execution.output("plots/a.txt").parent / f"{token}.txt").write_text("2")


def test_a_secret_in_the_name_of_an_output_is_masked_and_the_output_is_kept(bundles, home, monkeypatch):
    monkeypatch.setenv("THE_TOKEN", PLANTED)
    names_by_secret("env:THE_TOKEN")

    assert holding(home, PLANTED.encode()) == []
    assert [path for path in home.rglob("*") if PLANTED in str(path)] == []
    named = {one.path for one in bundles.record().job_status.outputs}
    assert {"outputs/of-________.txt", "outputs/plots/________.txt"} <= named
    assert notes(bundles) == ["a secret in the names of these outputs is masked: of-________.txt, plots/________.txt"]
    assert bundles.failed_checks() == []
