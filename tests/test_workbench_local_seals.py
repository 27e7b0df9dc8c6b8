"""The list of local seals: what this user sealed on this machine, and nothing else."""

from __future__ import annotations

import stat

import pytest

from prefect_executions.settings import Settings
from prefect_executions.workbench.keyring import LocalSeals

DIGEST, OTHER = "a" * 64, "b" * 64


def test_a_digest_that_was_added_is_on_the_list_which_only_the_user_can_read(tmp_path):
    file = tmp_path / "state" / "sealed"
    LocalSeals(file).add(OTHER)
    LocalSeals(file).add(DIGEST)
    assert LocalSeals(file).has(DIGEST)
    assert not LocalSeals(file).has(DIGEST[:-1])
    assert not LocalSeals(file).has("c" * 64)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_list_that_others_can_write_is_ignored(tmp_path, mode):
    seals = LocalSeals(tmp_path / "sealed")
    seals.add(DIGEST)
    (tmp_path / "sealed").chmod(mode)
    assert not seals.has(DIGEST)


def test_without_a_file_or_with_an_unusable_one_the_list_is_empty(tmp_path):
    (tmp_path / "file").write_text("")
    for seals in (LocalSeals(None), LocalSeals(tmp_path / "file" / "sealed"), LocalSeals(tmp_path)):
        seals.add(DIGEST)
        assert not seals.has(DIGEST)


def test_the_list_is_in_the_user_s_state_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Settings.read().local_seals_file == tmp_path / "prefect-executions" / "sealed"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # the XDG specification: ignored
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings.read().local_seals_file == tmp_path / ".local/state/prefect-executions/sealed"
