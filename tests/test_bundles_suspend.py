"""A suspended bundle as a zip: it comes back as it was, and what is hostile comes nowhere."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.suspend import pack, unpack
from prefect_executions.errors import BundleError
from records import a_record

RECORD = a_record()
ID = RECORD.id


@pytest.fixture
def bundle(tmp_path: Path) -> OpenBundle:
    made = OpenBundle.create(tmp_path / "here", ID, {**RECORD.to_json(), "code/flows/coins.py": b"print()\n"})
    made.output_path("many/a file.txt").write_text("a" * 3_000_000)
    made.output_path("empty").write_bytes(b"")
    return made


def carried(bundle: OpenBundle) -> dict[str, bytes]:
    return {
        path.relative_to(bundle.folder).as_posix(): path.read_bytes()
        for path in bundle.folder.rglob("*")
        if path.is_file() and path.relative_to(bundle.folder).parts[0] != "inputs"
    }


def test_it_comes_back_as_it_was(bundle, tmp_path):
    packed = pack(bundle)
    with packed.open("rb") as stream:
        back = unpack(stream, tmp_path / "there", ID)

    assert carried(back) == carried(bundle)
    assert (back.folder / "auth").stat().st_mode & 0o077 == 0
    assert packed.stat().st_size < 100_000


def test_links_and_pipes_stay_behind(bundle, tmp_path):
    os.mkfifo(bundle.output_path("pipe"))
    (bundle.paths.outputs / "link").symlink_to("/etc/passwd")
    with pack(bundle).open("rb") as stream:
        back = unpack(stream, tmp_path / "there", ID)

    assert {path.name for path in back.paths.outputs.rglob("*")} == {"many", "a file.txt", "empty"}


def with_more(bundle: OpenBundle, name: str) -> io.BytesIO:
    packed = io.BytesIO(pack(bundle).read_bytes())
    with zipfile.ZipFile(packed, "a") as file:
        file.writestr(name, "more")
    return packed


def test_a_name_that_has_a_place_is_taken(bundle, tmp_path):
    back = unpack(with_more(bundle, "outputs/more.txt"), tmp_path / "there", ID)

    assert (back.paths.outputs / "more.txt").read_text() == "more"


@pytest.mark.parametrize(
    "name", ["../out.txt", "/out.txt", "outputs/../../out.txt", "manifest-sha256.txt", "output.zip", "inputs/x", "x"]
)
def test_what_has_no_place_there_is_refused(bundle, tmp_path, name):
    with pytest.raises(BundleError):
        unpack(with_more(bundle, name), tmp_path / "there", ID)
    assert not (tmp_path / "there" / ID).exists()
    assert list(tmp_path.rglob("out.txt")) == []


def test_another_executions_bundle_is_refused(bundle, tmp_path):
    with pack(bundle).open("rb") as stream, pytest.raises(BundleError, match=f"belongs to {ID}"):
        unpack(stream, tmp_path / "there", "other")
    assert not (tmp_path / "there" / "other").exists()


@pytest.mark.parametrize("cut", [0, 10, 5000])
def test_a_zip_that_is_cut_leaves_nothing(bundle, tmp_path, cut):
    with pytest.raises(BundleError):
        unpack(io.BytesIO(pack(bundle).read_bytes()[:cut]), tmp_path / "there", ID)
    assert not (tmp_path / "there" / ID).exists()
