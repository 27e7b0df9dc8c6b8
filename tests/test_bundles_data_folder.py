"""Data folders: every file that a script leaves becomes an output, except unchanged inputs."""

from __future__ import annotations

import os

import pytest

from prefect_executions.bundles.data_folder import collect_outputs, data_folder, prepare_data_folder, remove_data_folder
from prefect_executions.bundles.gather import gather
from prefect_executions.bundles.open_bundle import OpenBundle
from records import EXECUTION_ID, a_record


@pytest.fixture
def bundle(tmp_path):
    return OpenBundle.create(tmp_path / "workbench", EXECUTION_ID, a_record().to_json())


@pytest.fixture
def data(bundle, tmp_path):
    for name in ("unchanged.csv", "changed.csv"):
        (tmp_path / name).write_text(name)
    inputs = {"a/unchanged.csv": tmp_path / "unchanged.csv", "b/changed.csv": tmp_path / "changed.csv"}
    return prepare_data_folder(bundle, "1", inputs, subfolder="", mount_path="/ccp_data")


def outputs_of(bundle):
    return {
        path.relative_to(bundle.paths.outputs).as_posix(): path.read_text()
        for path in bundle.paths.outputs.rglob("*")
        if path.is_file()
    }


def test_the_data_folder_has_the_inputs_and_every_user_may_write(data):
    assert (data / "inputs/a/unchanged.csv").read_text() == "unchanged.csv"
    assert data.stat().st_mode & 0o777 == (data / "inputs/a").stat().st_mode & 0o777 == 0o777
    assert data.parent.stat().st_mode & 0o777 == 0o700, "closed to other users of this machine"


def test_every_file_but_an_unchanged_input_is_collected(bundle, data):
    (data / "folder").mkdir()
    (data / "folder/result.csv").write_text("1")
    (data / "inputs/b/changed.csv").write_text("new")
    (data / "empty").mkdir()

    assert collect_outputs(bundle) == ()
    assert outputs_of(bundle) == {"folder/result.csv": "1", "inputs/b/changed.csv": "new"}
    assert (bundle.paths.outputs / "empty").is_dir()


def test_an_unchanged_input_with_a_new_timestamp_is_not_collected(bundle, data):
    for path in (data / "inputs/a/unchanged.csv", data / "inputs/b/changed.csv"):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content if path.name == "unchanged.csv" else content[::-1])
    collect_outputs(bundle)

    assert outputs_of(bundle) == {"inputs/b/changed.csv": "vsc.degnahc"}


def test_collecting_again_replaces_files_that_were_replaced(bundle, data):
    (data / "result").write_text("1")
    collect_outputs(bundle)
    (data / "result").unlink()
    (data / "result").write_text("2")
    (data / "late").write_text("3")
    collect_outputs(bundle)
    remove_data_folder(bundle, "1")
    collect_outputs(bundle)

    assert outputs_of(bundle) == {"result": "2", "late": "3"}
    assert not data.exists()


def test_our_own_logs_are_not_replaced(bundle, data):
    bundle.paths.stdout.write_text("ours")
    (data / "stdout.log").write_text("theirs")
    collect_outputs(bundle)

    assert outputs_of(bundle) == {"stdout.log": "ours", "script-stdout.log": "theirs"}


def test_a_link_inside_becomes_its_file_and_one_that_leads_out_is_not_followed(bundle, data, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (data / "folder").mkdir()
    (data / "real").write_text("real")
    (data / "folder/near").symlink_to("../real")
    (data / "folder/seen").symlink_to("/ccp_data/real")
    (data / "out").symlink_to(tmp_path / "secret")
    gathered = gather(bundle)

    assert outputs_of(bundle) == {"real": "real", "folder/near": "real", "folder/seen": "real"}
    assert ["out" in note for note in gathered.notes] == [True]


def test_each_data_folder_has_its_own_outputs(bundle):
    for name in ("1", "2"):
        (prepare_data_folder(bundle, name, {}, subfolder=f"replica-{name}", mount_path=None) / "x").write_text(name)
    collect_outputs(bundle, "2")
    assert outputs_of(bundle) == {"replica-2/x": "2"}
    gather(bundle)  # as after a worker was killed
    assert outputs_of(bundle) == {"replica-1/x": "1", "replica-2/x": "2"}


def test_a_file_that_cannot_be_collected_is_noted_and_the_others_are_collected(bundle, data):
    (data / "x").write_text("x")
    (data / "blocked").write_text("x")
    (bundle.paths.outputs / "blocked").mkdir()
    (bundle.paths.outputs / "blocked/inside").mkdir()
    os.mkfifo(data / "pipe")
    notes = gather(bundle).notes

    assert outputs_of(bundle) == {"x": "x", "blocked": "x"}
    assert len(notes) == 1
    assert "pipe" in notes[0]
    assert data_folder(bundle, "1") == data
