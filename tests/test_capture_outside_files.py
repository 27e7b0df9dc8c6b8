"""Files that a Method opens by a path of its own choice are named, with size and digest."""

from __future__ import annotations

import os
import sys
import time
from hashlib import sha256

import pytest

from prefect_executions.capture.outside_files import HASHED, is_unchanged, outside_files


def found(*paths, apart=(), before=None, has_secret=lambda _: False):
    later = time.time_ns() + 10**9 if before is None else before
    opened = [os.path.realpath(path) for path in paths]
    return {
        file.path: (file.size, file.sha256)
        for file in outside_files(opened, apart=map(str, apart), before=later, has_secret=has_secret)
    }


def test_a_file_has_its_size_and_digest(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"a,b\n")
    assert found(tmp_path / "x.csv") == {str(tmp_path / "x.csv"): (4, sha256(b"a,b\n").hexdigest())}


def test_a_large_file_and_one_that_may_hold_credentials_have_no_digest(tmp_path):
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(HASHED + 1)
    (tmp_path / "token.txt").write_text("hunter2")
    assert found(tmp_path / "large.bin", tmp_path / "token.txt") == {
        str(tmp_path / "large.bin"): (HASHED + 1, None),
        str(tmp_path / "token.txt"): (7, None),
    }


@pytest.mark.parametrize("path", ["/etc/hostname", "/proc/cpuinfo", sys.executable, os.__file__, __file__])
def test_files_of_the_system_and_of_loaded_modules_do_not_count(path):
    assert found(path) == {}


def test_other_files_that_are_no_data_of_the_method_do_not_count(tmp_path):
    for name in ("input", "empty", "made", ".tool/cache", "folder/own"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if name == "empty" else "x")
    begun = time.time_ns() - 10**9
    for name in ("input", "empty", ".tool/cache", "folder/own"):
        os.utime(tmp_path / name, ns=(begun - 1, begun - 1))
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    names = ("input", "empty", "made", ".tool/cache", "folder/own", "missing", "link", "")
    apart = (tmp_path / "input", tmp_path / "folder")
    assert found(*(tmp_path / name for name in names), apart=apart, before=begun) == {}


def test_a_path_with_a_secret_is_left_out(tmp_path):
    (tmp_path / "hunter2.csv").write_text("x")
    assert found(tmp_path / "hunter2.csv", has_secret=lambda path: "hunter2" in path) == {}


def test_a_file_is_unchanged_only_with_its_size_and_digest(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("one")
    later = time.time_ns() + 10**9
    [file] = outside_files([str(path)], apart=(), before=later, has_secret=lambda _: False)
    assert is_unchanged(file)
    path.write_text("two")
    assert not is_unchanged(file)
    assert is_unchanged(file.model_copy(update={"sha256": None}))
    path.unlink()
    assert not is_unchanged(file)
