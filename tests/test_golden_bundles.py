"""Golden bundles: a bundle of every format version ever written can still be read and verified.

The zips under tests/bundles/ are never regenerated: a failure means that the code has
broken a promise, not that a file is out of date.
"""

from __future__ import annotations

import subprocess
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from prefect_executions.bundles.verify import verify
from prefect_executions.executions.record import ExecutionRecord
from prefect_executions.lifecycle.status import Status

BUNDLES = Path(__file__).parent / "bundles"
GOLDEN = {
    "format-1.zip": "c34289b11b7d26e305d0b7e83e077400d68d96ed9831c9a9492188777d84af59",
    "format-1-cancelled.zip": "cfcbf381c43c3636210e5cf179a39fc7ab119c5471927481755b5f45a469e17b",
    "format-1-failed.zip": "a735f329fb9bcbf23930e1378239cb7127c0848fce15891af1aca815fe015821",
    "format-1-never-started.zip": "af986422dab60f360d5ff90a9eae7178c475b1145a30689c88eab7200e577cf4",
}
ENDED = {
    "format-1.zip": Status.COMPLETED,
    "format-1-cancelled.zip": Status.CANCELLED,
    "format-1-failed.zip": Status.FAILED,
    "format-1-never-started.zip": Status.CANCELLED,
}


def _record(name: str) -> ExecutionRecord:
    with zipfile.ZipFile(BUNDLES / name) as bundle:
        top = bundle.namelist()[0].split("/")[0]
        files = {path.removeprefix(f"{top}/"): bundle.read(path) for path in bundle.namelist()}
    record = ExecutionRecord.from_json(files)
    assert record.id == top
    return record


def test_every_golden_bundle_is_listed_and_unchanged():
    assert {path.name: sha256(path.read_bytes()).hexdigest() for path in BUNDLES.glob("*.zip")} == GOLDEN


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_bundle_verifies(name):
    report = verify(BUNDLES / name)

    assert report.faults == ()
    assert report.unchecked == ()


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_bundle_is_read(name):
    record = _record(name)

    assert record.status is ENDED[name]


def test_golden_bundles_contain_every_part_of_a_record():
    records = {name: _record(name) for name in GOLDEN}

    assert records["format-1.zip"].request.files
    assert records["format-1.zip"].metrics
    assert records["format-1-failed.zip"].instance.runs
    assert records["format-1-failed.zip"].job_status.steps
    assert records["format-1-never-started.zip"].started is None


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_bundle_is_checked_without_this_package(name, tmp_path):
    with zipfile.ZipFile(BUNDLES / name) as bundle:
        bundle.extractall(tmp_path)
    (folder,) = tmp_path.iterdir()

    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "manifest-sha256.txt"], cwd=folder, check=True)
