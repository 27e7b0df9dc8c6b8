"""The tar of a data folder: complete in both directions, and harmless whatever a script put into it."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_executions.errors import InfrastructureError
from prefect_executions.runtimes.kubernetes.transfer import TarStream, unpack, unsendable

NAMES = st.binary(min_size=1, max_size=120).filter(lambda name: not {0, 47} & set(name) and name not in {b".", b".."})


def packed(folder: Path) -> bytes:
    load = TarStream.of(folder)
    made = b"".join(load.chunks())
    assert len(made) == load.size, "the receiver gets the size first"
    return made


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(NAMES, st.binary(max_size=2000), max_size=5))
def test_files_of_any_name_and_content_arrive_unchanged(tmp_path_factory, files):
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    for name, content in files.items():
        (here / os.fsdecode(name)).write_bytes(content)
    unpack(io.BytesIO(packed(here)), there, check=fine)
    assert {os.fsencode(path.name): path.read_bytes() for path in there.iterdir()} == files


def test_our_tar_and_the_tar_command_read_each_other(tmp_path, need_program):
    here, there, back = (tmp_path / name for name in ("here", "there", "back"))
    for folder in (here / ("deep" * 40) / ("er" * 60), there, back):
        folder.mkdir(parents=True)
    (here / ("deep" * 40) / ("er" * 60) / "file").write_text("content")
    (here / "program").write_text("#!/bin/sh")
    (here / "program").chmod(0o755)
    (here / "same").hardlink_to(here / "program")
    (here / "link").symlink_to("/nowhere")
    tar = need_program("tar")
    subprocess.run([tar, "-xf", "-", "-C", there], input=packed(here), check=True)
    made = subprocess.run([tar, "-cf", "-", "-C", there, "."], check=True, capture_output=True).stdout
    (back / "old").mkdir()
    unpack(io.BytesIO(made), back, check=fine)
    assert {path.relative_to(back) for path in back.rglob("*")} == {path.relative_to(here) for path in here.rglob("*")}
    assert os.access(back / "program", os.X_OK)
    assert (back / "same").read_text() == "#!/bin/sh"
    assert (back / "link").readlink() == Path("/nowhere")


def fine() -> None:
    """Nothing is known against the tar."""


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


@pytest.mark.parametrize(
    "members",
    [
        [member("../outside")],
        [member("a/../../outside")],
        [member("out", tarfile.SYMTYPE, ".."), member("out/outside")],
        [member("out", tarfile.LNKTYPE, "../given")],
    ],
    ids=["up", "up again", "through a link", "a hard link"],
)
def test_nothing_is_written_outside_the_folder(members, tmp_path):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for entry in members:
            archive.addfile(entry, io.BytesIO())
    (tmp_path / "given").write_text("untouched")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "kept").touch()
    with pytest.raises(InfrastructureError, match="cannot be fetched"):
        unpack(io.BytesIO(made.getvalue()), tmp_path / "data", check=fine)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["data", "given", "kept"]


def test_devices_and_pipes_are_not_unpacked(tmp_path):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, kind in (("pipe", tarfile.FIFOTYPE), ("disk", tarfile.BLKTYPE), ("file", tarfile.REGTYPE)):
            archive.addfile(member(name, kind), io.BytesIO())
    unpack(io.BytesIO(made.getvalue()), tmp_path, check=fine)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_cut_tar_leaves_the_folder_unchanged(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").write_bytes(b"x" * 100_000)
    whole = packed(tmp_path / "here")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "kept").touch()

    def check():
        raise InfrastructureError("The data cannot be fetched: it was cut")

    for size in (0, 512, 700, 50_000):
        with pytest.raises(InfrastructureError, match="cannot be fetched"):
            unpack(io.BytesIO(whole[:size]), tmp_path / "data", check=check)
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["kept"]


def test_a_file_that_changes_while_it_is_sent_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 1000)
    for now in (b"y" * 10, b"y" * 2000):
        load = TarStream.of(tmp_path)
        (tmp_path / "file").write_bytes(now)
        with pytest.raises(InfrastructureError, match="has changed"):
            list(load.chunks())


def test_files_that_cannot_be_sent_are_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert list(unsendable(tmp_path)) == [tmp_path / "pipe"]
