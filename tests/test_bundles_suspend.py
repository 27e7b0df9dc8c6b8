"""A suspended bundle as a zip: unpacking restores it, and refuses hostile zips."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.suspend import pack, unpack
from prefect_executions.errors import BundleError
from prefect_executions.lifecycle.status import Status
from records import a_job_status, a_record

RECORD = a_record(job_status=a_job_status(Status.EXECUTING))
ID = RECORD.id


@pytest.fixture
def bundle(tmp_path: Path) -> OpenBundle:
    bundle = OpenBundle.create(tmp_path / "here", ID, {**RECORD.to_json(), "code/flows/coins.py": b"print()\n"})
    bundle.output_path("many/a file.txt").write_text("a" * 3_000_000)
    bundle.output_path("empty").write_bytes(b"")
    return bundle


def packed_files(bundle: OpenBundle) -> dict[str, bytes]:
    return {
        path.relative_to(bundle.folder).as_posix(): path.read_bytes()
        for path in bundle.folder.rglob("*")
        if path.is_file() and path.relative_to(bundle.folder).parts[0] != "inputs"
    }


def test_an_unpacked_bundle_equals_the_packed_bundle(bundle, tmp_path):
    packed = pack(bundle)
    with packed.open("rb") as stream:
        unpacked = unpack(stream, tmp_path / "there", ID)

    assert packed_files(unpacked) == packed_files(bundle)
    assert (unpacked.folder / "auth").stat().st_mode & 0o077 == 0
    assert packed.stat().st_size < 100_000


def test_links_and_pipes_are_not_packed(bundle, tmp_path):
    os.mkfifo(bundle.output_path("pipe"))
    (bundle.paths.outputs / "link").symlink_to("/etc/passwd")
    with pack(bundle).open("rb") as stream:
        unpacked = unpack(stream, tmp_path / "there", ID)

    assert {path.name for path in unpacked.paths.outputs.rglob("*")} == {"many", "a file.txt", "empty"}


def test_a_bundle_of_an_execution_that_has_ended_is_not_unpacked(bundle, tmp_path):
    bundle.write_document(a_record().job_status)
    with pack(bundle).open("rb") as stream, pytest.raises(BundleError, match="is COMPLETED, so it was forged"):
        unpack(stream, tmp_path / "there", ID)
    assert not (tmp_path / "there" / ID).exists()


def with_more(bundle: OpenBundle, name: str) -> io.BytesIO:
    packed = io.BytesIO(pack(bundle).read_bytes())
    with zipfile.ZipFile(packed, "a") as file:
        file.writestr(name, "more")
    return packed


def test_an_allowed_name_is_accepted(bundle, tmp_path):
    unpacked = unpack(with_more(bundle, "outputs/more.txt"), tmp_path / "there", ID)

    assert (unpacked.paths.outputs / "more.txt").read_text() == "more"


@pytest.mark.parametrize(
    "name", ["../out.txt", "/out.txt", "outputs/../../out.txt", "manifest-sha256.txt", "output.zip", "inputs/x", "x"]
)
def test_a_name_that_is_not_allowed_is_refused(bundle, tmp_path, name):
    with pytest.raises(BundleError):
        unpack(with_more(bundle, name), tmp_path / "there", ID)
    assert not (tmp_path / "there" / ID).exists()
    assert list(tmp_path.rglob("out.txt")) == []


def test_another_executions_bundle_is_refused(bundle, tmp_path):
    with pack(bundle).open("rb") as stream, pytest.raises(BundleError, match=f"belongs to {ID}"):
        unpack(stream, tmp_path / "there", "other")
    assert not (tmp_path / "there" / "other").exists()


@pytest.mark.parametrize("length", [0, 10, 5000])
def test_a_truncated_zip_leaves_nothing(bundle, tmp_path, length):
    with pytest.raises(BundleError):
        unpack(io.BytesIO(pack(bundle).read_bytes()[:length]), tmp_path / "there", ID)
    assert not (tmp_path / "there" / ID).exists()
