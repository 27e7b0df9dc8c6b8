"""Files that are still open, mapped or linked elsewhere when they are gathered."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from bundle_makers import an_open_bundle
from prefect_executions.bundles.data_folder import collect_outputs, data_folder, prepare_data_folder
from prefect_executions.bundles.gather import gather, load_gathered
from prefect_executions.bundles.open_bundle import OpenBundle

BIG = 3 << 20


@pytest.fixture
def bundle(tmp_path: Path) -> OpenBundle:
    return an_open_bundle(tmp_path / "workbench")


def assert_consistent(bundle: OpenBundle, path: str, data: bytes) -> None:
    """The file, its digest and its copy in the zip are all *data*."""
    gathered = load_gathered(bundle)
    assert gathered is not None
    digests = {file.path: (file.sha256, file.size) for file in (*gathered.files, *gathered.inputs_and_code)}
    assert (bundle.folder / path).read_bytes() == data
    assert digests[path] == (sha256(data).hexdigest(), len(data))
    if path.startswith("outputs/"):
        with zipfile.ZipFile(bundle.paths.output_zip) as zipped:
            assert zipped.read(path) == data


@pytest.mark.parametrize("size", [10, BIG], ids=["small", "big"])
def test_an_open_descriptor_writes_elsewhere(bundle, size):
    path, data = bundle.output_path("train.log"), os.urandom(size)
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        path.chmod(0o640)
        before = path.stat()
        gathered = gather(bundle)
        stream.write(b"late")
        stream.flush()

    after = path.stat()
    assert_consistent(bundle, "outputs/train.log", data)
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert gathered.notes == ("outputs/train.log was still open for writing; the record has its content at that time",)


def test_a_memory_map_writes_elsewhere_though_its_file_is_closed(bundle):
    path = bundle.output_path("map.bin")
    path.write_bytes(b"\0" * BIG)
    with path.open("r+b") as stream:
        mapped = mmap.mmap(stream.fileno(), 0)
    gather(bundle)

    mapped[:4] = b"late"
    mapped.flush()
    mapped.close()

    assert_consistent(bundle, "outputs/map.bin", b"\0" * BIG)


def test_a_child_process_writes_elsewhere(bundle):
    path = bundle.output_path("child.log")
    program = (
        "import sys; file = open(sys.argv[1], 'w'); file.write('first'); file.flush(); print(flush=True);"
        "sys.stdin.read(); file.write('late')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        gather(bundle)
        child.communicate(b"")

    assert_consistent(bundle, "outputs/child.log", b"first")


def test_a_file_that_is_only_read_is_not_copied(bundle):
    path = bundle.output_path("data.bin")
    path.write_bytes(b"data")
    inode = path.stat().st_ino
    with path.open("rb"):
        gathered = gather(bundle)

    assert path.stat().st_ino == inode
    assert gathered.notes == ()


def test_a_hard_link_elsewhere_does_not_lead_into_the_bundle(bundle, tmp_path):
    cached, path = tmp_path / "cached.bin", bundle.output_path("linked.bin")
    cached.write_bytes(b"data")
    os.link(cached, path)
    gathered = gather(bundle)

    cached.write_bytes(b"changed")

    assert_consistent(bundle, "outputs/linked.bin", b"data")
    assert gathered.notes == ()


def test_hard_links_inside_the_bundle_stay(bundle):
    path, other = bundle.output_path("a.bin"), bundle.output_path("b.bin")
    path.write_bytes(b"data")
    os.link(path, other)

    gather(bundle)

    assert path.stat().st_ino == other.stat().st_ino


def test_outputs_in_a_data_folder_are_not_copied(bundle):
    prepare_data_folder(bundle, "0", {}, subfolder="", mount_path=None)
    source = data_folder(bundle, "0") / "out.bin"
    source.write_bytes(b"data")
    collect_outputs(bundle)

    gather(bundle)

    assert (bundle.folder / "outputs/out.bin").stat().st_ino == source.stat().st_ino


def test_an_open_input_is_protected_too(bundle):
    path = bundle.folder / "inputs/table.csv"
    path.write_bytes(b"1,2")
    with path.open("r+b") as stream:
        gather(bundle)
        stream.write(b"9")
        stream.flush()

    assert_consistent(bundle, "inputs/table.csv", b"1,2")


def test_the_note_survives_a_second_gathering(bundle):
    with bundle.output_path("train.log").open("wb") as stream:
        stream.write(b"first")
        stream.flush()
        notes = gather(bundle).notes
        bundle.output_path("other.txt").write_text("new")

        assert gather(bundle).notes == notes


def test_a_second_gathering_reads_nothing_again(bundle):
    with bundle.output_path("train.log").open("wb") as stream:
        stream.write(b"first")
        stream.flush()
        first = gather(bundle)
        zipped = bundle.paths.output_zip.stat()
        stream.write(b"late")
        stream.flush()

        assert gather(bundle) == first
    assert bundle.paths.output_zip.stat().st_ino == zipped.st_ino


@pytest.mark.parametrize("saved", [b"", b"{", b"[]", b"null", b"{}", b'{"files": 3}', b"[" * 100_000])
def test_a_damaged_result_is_gathered_again(bundle, saved):
    bundle.output_path("a.txt").write_text("data")
    first = gather(bundle)
    (bundle.scratch / "gathered.json").write_bytes(saved)

    assert load_gathered(bundle) is None
    assert gather(bundle) == first


@pytest.mark.parametrize("notes", [b"", b"[", b"null", b"\x80", b"[" * 100_000])
def test_damaged_notes_do_not_prevent_gathering(bundle, notes):
    bundle.output_path("a.txt").write_text("data")
    (bundle.scratch / "notes.json").write_bytes(notes)

    assert gather(bundle).notes == ("the notes on outputs that were renamed or left out are lost",)
