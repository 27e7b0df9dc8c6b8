"""An export is one zip: deterministic, checked while it is copied, and readable by other tools."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from rocrate.rocrate import ROCrate

from benches import OTHER_ID, begun, bench_at, kept, record_of
from bundle_makers import contents, copy_of
from crates import issues_in, warm_cache
from prefect_executions.archive.objects import folder_of
from prefect_executions.bundles.layout import ExportFormat, ExportLevel
from prefect_executions.bundles.verify import verify
from prefect_executions.cli.app import main
from prefect_executions.errors import BundleError, NotAvailableError, RequestError
from prefect_executions.executions.record import Metric, Metrics
from prefect_executions.lifecycle.status import Status
from prefect_executions.operations.export import export, matching_ids
from prefect_executions.operations.imports import ImportPolicy, import_bundles
from prefect_executions.query.filter import EVERYTHING, Filter
from prefect_executions.settings import ArchiveLevel, Settings
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.workbench import Workbench
from records import EXECUTION_ID, NOON, OUTPUTS, a_request

BIG = os.urandom(9 << 20)
ODD = {"outputs/ä ö/ü.txt": b"x" * 5000, "outputs/empty": b"", "outputs/big.bin": BIG}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """Return a workbench with two archived executions that no test changes."""
    found = bench_at(tmp_path_factory.mktemp("home"))
    kept(found, outputs={**OUTPUTS, **ODD})
    kept(found, OTHER_ID)
    return found


def exported(
    bench: Workbench, *ids: str, form: ExportFormat = ExportFormat.ZIP, level: ExportLevel = ExportLevel.FULL
) -> bytes:
    out = io.BytesIO()
    done = export(Catalog(bench), ids or (EXECUTION_ID,), out.write, form=form, level=level)
    assert done.size == len(out.getvalue())
    return out.getvalue()


def unpacked(data: bytes, folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(data)) as zipped:
        assert zipped.testzip() is None
        zipped.extractall(folder)
    return folder


def test_an_exported_bundle_is_the_bundle(bench, tmp_path):
    folder = unpacked(exported(bench), tmp_path) / EXECUTION_ID
    assert contents(folder) == contents(bench.folder / EXECUTION_ID)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "manifest-sha256.txt"], cwd=folder, check=True)


def test_an_exported_zip_verifies_as_it_is(bench, tmp_path):
    (tmp_path / "one.zip").write_bytes(exported(bench))
    report = verify(tmp_path / "one.zip")
    assert report.faults == report.unchecked == ()


@pytest.mark.parametrize("form", ExportFormat)
def test_the_same_executions_give_the_same_bytes_in_any_order(bench, form):
    first = exported(bench, EXECUTION_ID, OTHER_ID, form=form)
    assert first == exported(bench, OTHER_ID, EXECUTION_ID, OTHER_ID, form=form)


def test_an_export_from_the_workbench_has_the_same_bytes_as_from_the_archive(bench, tmp_path):
    elsewhere = bench_at(tmp_path)
    elsewhere.folder.symlink_to(bench.folder)
    assert elsewhere.archive.seal_of(EXECUTION_ID) is None
    assert exported(elsewhere) == exported(bench)


def test_signatures_leave_with_the_bundle_and_come_back(bench, tmp_path):
    folder = copy_of(bench.folder / OTHER_ID, tmp_path / "ours/workbench" / OTHER_ID)
    (folder / "manifest-sha256.txt.sig").write_text("somebody's")
    ours = bench_at(tmp_path / "ours")
    (tmp_path / "x.zip").write_bytes(exported(ours, OTHER_ID))
    theirs = bench_at(tmp_path / "theirs")
    import_bundles(theirs, str(tmp_path / "x.zip"), ImportPolicy.of(Settings(), NOON))
    assert theirs.archive.read(OTHER_ID, "manifest-sha256.txt.sig") == b"somebody's"
    assert exported(theirs, OTHER_ID) == (tmp_path / "x.zip").read_bytes()


def test_empty_folders_of_the_outputs_are_kept(tmp_path):
    bench = bench_at(tmp_path / "home")
    bundle = begun(bench, record_of())
    (bundle.folder / "outputs/nothing/here").mkdir(parents=True)
    bench.settle(EXECUTION_ID)
    assert (unpacked(exported(bench), tmp_path) / EXECUTION_ID / "outputs/nothing/here").is_dir()


def test_a_zip_of_several_executions_has_one_folder_each_and_a_list(bench, tmp_path):
    folder = unpacked(exported(bench, EXECUTION_ID, OTHER_ID), tmp_path)
    payload = json.loads((folder / "export.json").read_bytes())
    assert [one["id"] for one in payload["executions"]] == sorted([EXECUTION_ID, OTHER_ID])
    for one in (EXECUTION_ID, OTHER_ID):
        assert contents(folder / one) == contents(bench.folder / one)


@pytest.mark.parametrize(
    ("level", "absent"),
    [(ExportLevel.OUTPUTS, ("inputs/",)), (ExportLevel.METADATA, ("inputs/", "outputs/", "output.zip"))],
)
def test_a_lower_level_leaves_data_out_and_says_so(bench, tmp_path, level, absent):
    folder = unpacked(exported(bench, level=level), tmp_path)
    whole = contents(bench.folder / EXECUTION_ID)
    left = {path: data for path, data in whole.items() if not path.startswith(absent)}
    assert contents(folder / EXECUTION_ID) == left
    assert json.loads((folder / "export.json").read_bytes())["level"] == level


def test_data_left_out_by_the_archive_level_is_not_a_fault(tmp_path):
    bench = bench_at(tmp_path)
    kept(bench, request=a_request(archive=ArchiveLevel.NONE))
    names = zipfile.ZipFile(io.BytesIO(exported(bench))).namelist()
    assert not [name for name in names if "/outputs/" in name or name.endswith("output.zip")]


def validated(*bags: Path) -> subprocess.CompletedProcess[str]:
    asked = [sys.executable, "-W", "ignore", "-m", "bagit", "--validate", *map(str, bags)]
    return subprocess.run(asked, capture_output=True, text=True, check=False)


def test_every_bag_is_valid_to_bagit(bench, tmp_path):
    bags = []
    for ids in ((EXECUTION_ID,), (EXECUTION_ID, OTHER_ID)):
        for level in ExportLevel:
            (bag,) = unpacked(
                exported(bench, *ids, form=ExportFormat.BAGIT, level=level), tmp_path / str(len(bags))
            ).iterdir()
            assert len(list(bag.rglob("method.json"))) == len(ids)
            bags.append(bag)
    found = validated(*bags)
    assert found.returncode == 0, found.stderr
    (bags[-1] / "data/more").write_bytes(b"x")
    assert validated(*bags).returncode == 1


def test_a_name_that_bagit_cannot_write_is_replaced_and_listed(tmp_path):
    bench = bench_at(tmp_path / "home")
    kept(bench, outputs={**OUTPUTS, "outputs/50%0Aoff": b"x"})
    (bag,) = unpacked(exported(bench, form=ExportFormat.BAGIT), tmp_path / "bag").iterdir()
    assert validated(bag).returncode == 0
    (listed,) = json.loads((bag / "data/export.json").read_bytes())["executions"]
    assert list(listed["renamed"].values()) == ["outputs/50%0Aoff"]


@pytest.mark.long
def test_an_exported_crate_passes_the_validator(bench, tmp_path):
    crate = unpacked(exported(bench, form=ExportFormat.CRATE), tmp_path / "crate")
    assert issues_in(crate, warm_cache(tmp_path)) == []


def test_the_rocrate_library_reads_an_exported_crate(bench, tmp_path):
    (tmp_path / "crate.zip").write_bytes(exported(bench, form=ExportFormat.CRATE))
    assert ROCrate(tmp_path / "crate.zip").mainEntity is None
    assert ROCrate(tmp_path / "crate.zip").root_dataset["identifier"] == EXECUTION_ID


def test_the_rocrate_library_reads_each_of_several_crates(bench, tmp_path):
    folder = unpacked(exported(bench, EXECUTION_ID, OTHER_ID, form=ExportFormat.CRATE), tmp_path)
    parts = {part.id for part in ROCrate(folder).root_dataset["hasPart"]}
    assert parts >= {f"{EXECUTION_ID}/", f"{OTHER_ID}/"}
    assert ROCrate(folder / OTHER_ID).root_dataset["identifier"] == OTHER_ID


def test_a_crate_without_its_files_is_refused(bench):
    with pytest.raises(RequestError, match="--level metadata"):
        exported(bench, form=ExportFormat.CRATE, level=ExportLevel.METADATA)


@pytest.mark.parametrize("what", ["sealed", "data"])
def test_a_damaged_bundle_is_not_exported(tmp_path, what):
    bench = bench_at(tmp_path)
    kept(bench, outputs={**OUTPUTS, "outputs/big.bin": BIG})
    folder = tmp_path / "archive" / folder_of(EXECUTION_ID)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and what in path.relative_to(folder).parts[0]:
            changed = bytearray(path.read_bytes())
            changed[len(changed) // 2] ^= 1
            path.write_bytes(changed)
    with pytest.raises(Exception, match=r"damaged|sealed as|differs from the sealed") as found:
        exported(bench)
    assert EXECUTION_ID in str(found.value)


def test_a_file_missing_in_the_archive_is_named(tmp_path):
    bench = bench_at(tmp_path)
    kept(bench)
    (gone,) = (tmp_path / "archive" / folder_of(EXECUTION_ID)).rglob("instance.json")
    gone.unlink()
    with pytest.raises(BundleError, match=r"metadata/instance\.json is missing"):
        exported(bench)


def test_an_open_execution_is_not_exported(tmp_path):
    bench = bench_at(tmp_path)
    begun(bench, record_of(end=Status.EXECUTING))
    bench.leases.release(EXECUTION_ID)
    with pytest.raises(NotAvailableError, match="export it when it has ended"):
        exported(bench)


@pytest.mark.long
def test_memory_does_not_grow_with_a_bundle(tmp_path):
    bench = bench_at(tmp_path)
    kept(bench, outputs={**OUTPUTS, "outputs/large.bin": BIG * 8})
    tracemalloc.start()
    try:
        done = export(Catalog(bench), [EXECUTION_ID], lambda _: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert done.size > 2 * 8 * len(BIG)
    assert peak < 4 * len(BIG)


def test_matching_ids_yields_only_sealed_executions(bench):
    assert sorted(matching_ids(Catalog(bench), EVERYTHING)) == sorted([EXECUTION_ID, OTHER_ID])
    assert not list(matching_ids(Catalog(bench), Filter(status=(Status.FAILED,))))
    assert len(list(matching_ids(Catalog(bench), Filter(method="segment-coins")))) == 2


@pytest.fixture
def told(capfd) -> Callable[..., str]:
    def run(*arguments: str, code: int = 0) -> str:
        found = main(arguments)
        shown = capfd.readouterr()
        assert found == code, shown.err
        return shown.err if code else shown.out

    return run


def test_the_command_writes_the_file_and_says_what_is_in_it(home, tmp_path, told, monkeypatch):
    bench = bench_at(home)
    kept(bench)
    monkeypatch.chdir(tmp_path)
    assert "1 execution," in told("export", EXECUTION_ID[:6])
    assert (tmp_path / f"{EXECUTION_ID}.zip").read_bytes() == exported(bench)
    shown = json.loads(told("export", "--status", "COMPLETED", "-o", "all.zip", "--format", "bagit", "--json"))
    assert shown == {"executions": [EXECUTION_ID], "size": (tmp_path / "all.zip").stat().st_size, "file": "all.zip"}
    assert re.search(
        "give either execution ids, or filters", told("export", EXECUTION_ID, "--status", "FAILED", code=2)
    )
    assert "no execution is to be exported" in told("export", "--status", "FAILED", code=2)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [f"{EXECUTION_ID}.zip", "all.zip"]


def test_what_shrinks_is_deflated_and_what_does_not_is_stored(tmp_path):
    bench = bench_at(tmp_path / "home")
    metrics = Metrics(metrics=tuple(Metric(name="loss", value=n / 7, step=n, time=NOON) for n in range(2000)))
    kept(bench, outputs={"outputs/big.bin": BIG}, metrics=metrics)
    data = exported(bench)
    assert exported(bench) == data
    with zipfile.ZipFile(io.BytesIO(data)) as zipped:
        listed = {entry.filename.partition("/")[2]: entry for entry in zipped.infolist()}
    for path in (Metrics.file_name, "ro-crate-metadata.json", "metadata/provo.xml"):
        assert listed[path].compress_type == zipfile.ZIP_DEFLATED
        assert listed[path].compress_size < listed[path].file_size / 2
    for path in ("output.zip", "outputs/big.bin"):
        assert listed[path].compress_type == zipfile.ZIP_STORED
    (tmp_path / "one.zip").write_bytes(data)
    assert main(["verify", str(tmp_path / "one.zip")]) == 0
