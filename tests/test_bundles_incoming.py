"""What is around the bundles of a folder or zip is checked: names of folders, `export.json`, other files."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benches import OTHER_ID, bench_at, kept
from bundle_makers import contents, copy_of, renew_manifest
from hostile_zips import LINK, Member, a_zip, members_of
from prefect_executions.bundles.incoming import find_bundles
from prefect_executions.bundles.layout import ExportFormat
from prefect_executions.bundles.source import FolderSource, ZipSource
from prefect_executions.bundles.verify import MAX_SHOWN, verify
from prefect_executions.bundles.zip_reader import Limits
from prefect_executions.cli.app import main
from prefect_executions.errors import BundleError, ImportRefusedError, RequestError
from prefect_executions.operations import verify as operations_verify
from prefect_executions.operations.export import export
from prefect_executions.operations.imports import ImportPolicy, import_bundles
from prefect_executions.operations.verify import verify_target
from prefect_executions.settings import ImportNames
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.workbench import Workbench
from records import EXECUTION_ID, OUTPUTS

NOW = datetime(2026, 10, 1, 8, 30, tzinfo=UTC)
TERMS = ImportPolicy(Limits(entries=1000, allowance=100 << 20, expansion=0), ImportNames.PORTABLE, NOW)
IDS = sorted([EXECUTION_ID, OTHER_ID])


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """Return the workbench that the bundles come from; no test changes it."""
    bench = bench_at(tmp_path_factory.mktemp("theirs"))
    kept(bench)
    kept(bench, OTHER_ID)
    return bench


def files_of(bench: Workbench, *ids: str, form: ExportFormat = ExportFormat.ZIP) -> dict[str, bytes]:
    """Return the files of an export by their names."""
    out = io.BytesIO()
    export(Catalog(bench), ids, out.write, form=form)
    with zipfile.ZipFile(out) as zipped:
        return {name: zipped.read(name) for name in zipped.namelist() if not name.endswith("/")}


def zipped(files: Mapping[str, bytes], target: Path) -> Path:
    target.write_bytes(a_zip(members_of(files)))
    return target


def laid_out(files: Mapping[str, bytes], folder: Path) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def verified(bench: Workbench, target: Path) -> tuple[list[str], list[str]]:
    """Return the faults and the other sentences on every bundle of *target*."""
    reports = [copy.report for copy in verify_target(Catalog(bench), str(target))]
    return [line for one in reports for line in one.faults], [line for one in reports for line in one.unchecked]


def imported(home: Path, target: Path) -> tuple[list[str], list[str]]:
    """Return the ids of the imported executions, and the notes."""
    notes: list[str] = []
    results = import_bundles(bench_at(home / "ours"), str(target), TERMS, note=notes.append)
    return [result.id for result in results], notes


# --- names of folders


@pytest.mark.parametrize("name", ["x.zip", f"{OTHER_ID}.zip", "no ending"])
def test_the_name_of_a_zip_is_free(theirs, tmp_path, name):
    target = zipped(files_of(theirs, EXECUTION_ID), tmp_path / name)
    assert verified(theirs, target) == ([], [])


@pytest.mark.parametrize("name", [OTHER_ID, "renamed", EXECUTION_ID.upper(), f"{EXECUTION_ID}.2"])
def test_a_folder_in_a_zip_has_the_name_of_its_execution(theirs, tmp_path, name):
    files = {path.replace(EXECUTION_ID, name, 1): data for path, data in files_of(theirs, EXECUTION_ID).items()}
    (fault,), _ = verified(theirs, zipped(files, tmp_path / "x.zip"))
    assert fault == f"container: the folder {name!r} holds execution {EXECUTION_ID}: rename it to {EXECUTION_ID}"


def test_a_renamed_folder_fails_and_the_message_gives_its_name(theirs, tmp_path, capsys, home):
    folder = copy_of(theirs.folder / EXECUTION_ID, tmp_path / "my results")
    assert verified(theirs, folder)[0] == [
        f"container: the folder 'my results' holds execution {EXECUTION_ID}: rename it to {EXECUTION_ID}"
    ]
    assert main(["verify", str(folder)]) == 1
    assert f"rename it to {EXECUTION_ID}" in " ".join(capsys.readouterr().out.split())
    folder.rename(tmp_path / EXECUTION_ID)
    assert verified(theirs, tmp_path / EXECUTION_ID) == ([], [])


def test_the_folders_of_two_executions_must_not_be_swapped(theirs, tmp_path):
    swap = dict(zip(IDS, reversed(IDS), strict=True))
    for one in IDS:
        copy_of(theirs.folder / one, tmp_path / "x" / swap[one])
    faults, _ = verified(theirs, tmp_path / "x")
    assert sorted(faults) == [
        f"container: the folder {swap[one]!r} holds execution {one}: rename it to {one}" for one in reversed(IDS)
    ]


def test_the_folders_above_a_bundle_may_have_any_name(theirs, tmp_path):
    files = {f"any/name/{path}": data for path, data in files_of(theirs, *IDS).items()}
    assert verified(theirs, zipped(files, tmp_path / "x.zip")) == ([], [])
    assert imported(tmp_path, tmp_path / "x.zip") == (IDS, [])


@pytest.mark.parametrize("form", [ExportFormat.CRATE, ExportFormat.BAGIT])
def test_a_bundle_at_the_root_of_a_crate_or_bag_needs_no_folder(theirs, tmp_path, form):
    assert verified(theirs, zipped(files_of(theirs, EXECUTION_ID, form=form), tmp_path / "x.zip")) == ([], [])


# --- twice, and export.json


def test_the_same_execution_twice_is_found(theirs, tmp_path):
    for above in ("a", "b"):
        copy_of(theirs.folder / EXECUTION_ID, tmp_path / "x" / above / EXECUTION_ID)
    faults, _ = verified(theirs, tmp_path / "x")
    assert faults == [
        f"container: execution {EXECUTION_ID} is in it twice, at 'a/{EXECUTION_ID}/' and 'b/{EXECUTION_ID}/'"
    ]
    with pytest.raises(ImportRefusedError, match="is in it twice"):
        imported(tmp_path, tmp_path / "x")


def listed(payload: dict) -> dict[str, dict]:
    return {one["id"]: one for one in payload["executions"]}


LISTS: Mapping[str, tuple[Callable[[dict], object], str]] = {
    "another digest": (lambda doc: listed(doc)[OTHER_ID].update(manifestSha256="0" * 64), r"export\.json says 000"),
    "a digest of another": (
        lambda doc: listed(doc)[OTHER_ID].update(manifestSha256=listed(doc)[EXECUTION_ID]["manifestSha256"]),
        r"export\.json says",
    ),
    "one more": (
        lambda doc: doc["executions"].append({"id": "gone", "manifestSha256": "0" * 64}),
        "lists execution gone, which is missing",
    ),
    "one less": (lambda doc: doc["executions"].pop(), "does not list execution"),
    "none": (lambda doc: doc["executions"].clear(), "does not list execution"),
    "one twice": (lambda doc: doc["executions"].append(doc["executions"][0]), "twice"),
    "another level": (lambda doc: doc.update(level="much"), "level"),
    "an unknown member": (lambda doc: doc.update(more=1), "more"),
}


@pytest.mark.parametrize("fault", LISTS)
@pytest.mark.parametrize("as_folder", [False, True])
def test_a_list_that_differs_from_the_bundles_is_found(theirs, tmp_path, fault, *, as_folder):
    change, words = LISTS[fault]
    files = files_of(theirs, *IDS)
    document = json.loads(files["export.json"])
    change(document)
    files["export.json"] = json.dumps(document).encode()
    target = laid_out(files, tmp_path / "x") if as_folder else zipped(files, tmp_path / "x.zip")
    assert any(line.startswith("container: ") for line in verified(theirs, target)[0])
    with pytest.raises(ImportRefusedError, match=words):
        imported(tmp_path, target)


def test_many_faults_of_a_list_are_counted(theirs, tmp_path):
    files = files_of(theirs, *IDS)
    document = json.loads(files["export.json"])
    document["executions"] += [{"id": f"x{number}", "manifestSha256": "0" * 64} for number in range(1000)]
    files["export.json"] = json.dumps(document).encode()
    faults, _ = verified(theirs, zipped(files, tmp_path / "x.zip"))
    assert faults[MAX_SHOWN:] == ["container: and 900 more"]


def test_an_execution_that_was_removed_from_an_export_is_missed(theirs, tmp_path):
    files = {path: data for path, data in files_of(theirs, *IDS).items() if not path.startswith(OTHER_ID)}
    faults, _ = verified(theirs, zipped(files, tmp_path / "x.zip"))
    assert faults == [f"container: export.json lists execution {OTHER_ID}, which is missing"]


@pytest.mark.parametrize("path", ["export.json", "ro-crate-metadata.json"])
def test_a_member_that_a_document_beside_the_bundles_has_twice_is_found(theirs, tmp_path, path):
    files = files_of(theirs, *IDS, form=ExportFormat.CRATE)
    files[path] = files[path].replace(b"{", b'{"level": "full", "level": "full",', 1)
    faults, _ = verified(theirs, zipped(files, tmp_path / "x.zip"))
    assert any("'level' twice" in fault for fault in faults)
    with pytest.raises(ImportRefusedError, match="'level' twice"):
        imported(tmp_path, tmp_path / "x.zip")


def test_a_second_list_is_refused(theirs, tmp_path):
    files = {f"x/{path}": data for path, data in files_of(theirs, *IDS).items()}
    files["export.json"] = files["x/export.json"]
    with pytest.raises(ImportRefusedError, match=r"second export\.json"):
        imported(tmp_path, zipped(files, tmp_path / "x.zip"))


# --- desktop files

DESKTOP = {
    "__MACOSX/._{id}": b"x",
    "__MACOSX/{id}/._manifest-sha256.txt": b"x",
    "__MACOSX/{id}/metadata/manifest-sha256.txt": b"x",
    ".DS_Store": b"x",
    "{id}/.DS_Store": b"x",
    "{id}/outputs/.DS_Store": b"x",
    "{id}/Thumbs.db": b"x",
    "{id}/outputs/Desktop.ini": b"x",
    "{id}/code/._coins.py": b"x",
}


@pytest.mark.parametrize("as_folder", [False, True])
@pytest.mark.parametrize("form", [ExportFormat.ZIP, ExportFormat.BAGIT])
def test_files_of_file_managers_are_skipped_with_a_note(theirs, tmp_path, form, *, as_folder):
    files = files_of(theirs, *IDS, form=form)
    top = "executions/data/" if form is ExportFormat.BAGIT else ""
    added = {path.format(id=EXECUTION_ID) for path in DESKTOP}
    added = {path if path.startswith(("__", ".DS")) else top + path for path in added}
    files |= dict.fromkeys(added, b"x")
    target = laid_out(files, tmp_path / "x") if as_folder else zipped(files, tmp_path / "x.zip")
    faults, notes = verified(theirs, target)
    assert faults == []
    assert {note.split("'")[1] for note in notes} == added
    ids, notes = imported(tmp_path, target)
    assert ids == IDS
    assert {note.split("'")[1] for note in notes} == added
    ours = bench_at(tmp_path / "ours")
    assert contents_of_archive(ours) == contents_of_archive(theirs)


def contents_of_archive(bench: Workbench) -> set[str]:
    return set(Catalog(bench).bundle_source(EXECUTION_ID).files)


def test_the_note_is_shown_by_verify(theirs, tmp_path, home, capsys):
    target = zipped({**files_of(theirs, EXECUTION_ID), ".DS_Store": b"x"}, tmp_path / "x.zip")
    assert main(["verify", str(target)]) == 0
    assert "'.DS_Store' was skipped" in capsys.readouterr().err


def test_the_note_is_shown_by_import(theirs, tmp_path, home, capsys):
    target = zipped({**files_of(theirs, EXECUTION_ID), ".DS_Store": b"x"}, tmp_path / "x.zip")
    assert main(["import", str(target)]) == 0
    assert "'.DS_Store' was skipped" in capsys.readouterr().err


def test_an_output_with_the_name_of_such_a_file_is_part_of_the_bundle(tmp_path):
    bench = bench_at(tmp_path / "theirs")
    kept(bench, outputs={**OUTPUTS, "outputs/.DS_Store": b"1", "outputs/__MACOSX/x": b"2", "outputs/._y": b"3"})
    target = zipped(files_of(bench, EXECUTION_ID), tmp_path / "x.zip")
    assert verified(bench, target) == ([], [])
    files = files_of(bench, EXECUTION_ID)
    files[f"{EXECUTION_ID}/outputs/.DS_Store"] = b"another"
    assert verified(bench, zipped(files, tmp_path / "y.zip"))[0]
    del files[f"{EXECUTION_ID}/outputs/.DS_Store"]
    assert verified(bench, zipped(files, tmp_path / "z.zip"))[0]


def test_a_file_manager_may_visit_a_sealed_bundle(theirs, tmp_path):
    folder = copy_of(theirs.folder / EXECUTION_ID, tmp_path / EXECUTION_ID)
    (folder / "outputs/.DS_Store").write_bytes(b"x")
    report = verify(folder)
    assert report.faults == ()
    assert len(report.unchecked) == 1


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (Member(b"__MACOSX/../../evil"), "leads out"),
        (Member(b"../__MACOSX/evil"), "leads out"),
        (Member(b"__MACOSX/evil", mode=LINK, data=b"/etc/passwd"), "link"),
        (Member(b".DS_Store", mode=LINK, data=b"/etc/passwd"), "link"),
        (Member(b"__MACOSX/evil", data=bytes(200 << 20), method=8), "expands"),
        (Member(b"__MACOSX\\..\\evil"), "backslash"),
        (Member(b"__MACOSX/CON"), "device"),
        (Member(b"__MACOSX/x", flags=0x801), "encrypted"),
        (Member(b"__MACOSX/x", checksum=1, local=(2, 1, 1)), "another checksum"),
        (Member(f"{EXECUTION_ID}/__MACOSY/x".encode()), "not allowed|not in the manifest"),
        (Member(f"{EXECUTION_ID}/.DS_Store/x".encode()), "not allowed|not in the manifest"),
    ],
)
def test_a_hostile_desktop_file_is_refused(theirs, tmp_path, member, words):
    (tmp_path / "x.zip").write_bytes(a_zip([*members_of(files_of(theirs, EXECUTION_ID)), member]))
    with pytest.raises(ImportRefusedError, match=words):
        imported(tmp_path, tmp_path / "x.zip")


# --- other files and folders


def test_a_file_of_no_bundle_is_named(theirs, tmp_path):
    files = {**files_of(theirs, *IDS), "evil.txt": b"x"}
    faults, _ = verified(theirs, zipped(files, tmp_path / "x.zip"))
    assert faults[0] == "container: 'evil.txt' belongs to no bundle"


@pytest.mark.parametrize(
    "folder", ["evil", f"{EXECUTION_ID}/evil", f"{EXECUTION_ID}/outputs/evil", f"{EXECUTION_ID}/code/a/b"]
)
@pytest.mark.parametrize("as_folder", [False, True])
def test_an_empty_folder_is_found(theirs, tmp_path, folder, *, as_folder):
    files = files_of(theirs, *IDS)
    if as_folder:
        (laid_out(files, tmp_path / "x") / folder).mkdir(parents=True)
        target = tmp_path / "x"
    else:
        target = tmp_path / "x.zip"
        target.write_bytes(a_zip([*members_of(files), Member(f"{folder}/".encode(), b"", mode=0o040755)]))
    (fault,), _ = verified(theirs, target)
    assert "is an empty folder" in fault
    assert folder.removeprefix(f"{EXECUTION_ID}/") in fault


def test_empty_folders_of_the_outputs_and_of_the_format_belong_to_a_bundle(tmp_path):
    bench = bench_at(tmp_path / "theirs")
    bundle = kept(bench, outputs={**OUTPUTS, "outputs/nothing/here/x": b""})
    folder = copy_of(bundle.folder, tmp_path / "a" / EXECUTION_ID)
    shutil.rmtree(folder / "outputs/nothing")
    (folder / "outputs/empty").mkdir()
    assert any("'outputs/empty' is an empty folder" in fault for fault in verified(bench, folder)[0])


def test_a_hard_link_to_a_file_outside_is_noted(theirs, tmp_path):
    folder = copy_of(theirs.folder / EXECUTION_ID, tmp_path / EXECUTION_ID)
    os.link(folder / "outputs/regions.csv", tmp_path / "outside.csv")
    faults, (note,) = verified(theirs, folder)
    assert faults == []
    assert "'outputs/regions.csv' is also a file outside the folder" in note
    (tmp_path / "outside.csv").unlink()
    assert verified(theirs, folder) == ([], [])


def test_a_source_lists_its_empty_folders(tmp_path):
    for folder in ("a/b", "c", "d/e"):
        (tmp_path / "x" / folder).mkdir(parents=True)
    (tmp_path / "x/d/f").write_bytes(b"")
    assert FolderSource(tmp_path / "x").empty_folders == ("a/b", "c", "d/e")
    shutil.make_archive(str(tmp_path / "y"), "zip", tmp_path / "x")
    assert ZipSource(io.BytesIO((tmp_path / "y.zip").read_bytes()), Limits(), top="").empty_folders == (
        "a/b",
        "c",
        "d/e",
    )


def test_a_file_that_the_manifest_does_not_list_is_not_read(theirs, tmp_path):
    folder = copy_of(theirs.folder / EXECUTION_ID, tmp_path / EXECUTION_ID)
    for path in ("outputs/evil", "evil"):
        (folder / path).write_bytes(b"")
        os.truncate(folder / path, 1 << 42)  # reading these zeros would take an hour
    faults, _ = verified(theirs, folder)
    assert "no-extra-files: 'outputs/evil' is present and not in the manifest" in faults
    with pytest.raises(ImportRefusedError, match="evil"):
        imported(tmp_path, folder)


def test_an_unlisted_file_of_the_output_zip_is_not_read(theirs, tmp_path):
    folder = copy_of(theirs.folder / EXECUTION_ID, tmp_path / EXECUTION_ID)
    with zipfile.ZipFile(folder / "output.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path, data in contents(folder / "outputs").items():
            file.writestr(f"outputs/{path}", data)
        file.writestr("outputs/evil", b"x")
    whole = (folder / "output.zip").read_bytes()
    at = whole.index(b"outputs/evil") + len(b"outputs/evil")
    (folder / "output.zip").write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])  # damaged, if it is read
    renew_manifest(folder)
    output_zip = [fault for fault in verified(theirs, folder)[0] if fault.startswith("output-zip: ")]
    assert output_zip == ["output-zip: 'outputs/evil' is in output.zip and not in the bundle"]


def test_a_bundle_without_a_manifest_is_reported_once_for_each_check(theirs, tmp_path):
    folder = copy_of(theirs.folder / EXECUTION_ID, tmp_path / EXECUTION_ID)
    (folder / "manifest-sha256.txt").unlink()
    report = verify(folder)
    assert not report.passed
    assert len(report.faults) <= len(report.checks)


def test_a_folder_without_a_bundle_is_reported(theirs, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/y").write_bytes(b"")
    with pytest.raises(BundleError, match="contains no bundle"):
        find_bundles(FolderSource(tmp_path / "x"))
    with pytest.raises(RequestError, match="holds no bundle"):
        verified(theirs, tmp_path / "x")


def test_a_folder_with_very_many_entries_above_its_bundles_is_verified(theirs, tmp_path, monkeypatch):
    monkeypatch.setattr(operations_verify, "_MOST_LOOKED_AT", 3)  # instead of 20,000
    shutil.copytree(theirs.folder / IDS[0], tmp_path / "x" / IDS[0])
    for name in ("a", "b", "c"):
        (tmp_path / "x" / name).mkdir()
    faults, _ = verified(theirs, tmp_path / "x")
    assert faults == [f"container: '{name}' is an empty folder that belongs to no bundle" for name in ("a", "b", "c")]


def test_a_crate_beside_the_bundles_that_does_not_fit_them_is_noted(theirs, tmp_path, home):
    files = files_of(theirs, *IDS, form=ExportFormat.CRATE)
    assert verified(theirs, zipped(files, tmp_path / "honest.zip")) == ([], [])
    path = "ro-crate-metadata.json"
    forged = zipped(files | {path: files[path].replace(b'"2 executions"', b'"3 executions"')}, tmp_path / "forged.zip")
    (note,) = verified(theirs, forged)[1]
    note = note.removeprefix("container: ")
    assert note.startswith("'ro-crate-metadata.json' beside the bundles was not checked")
    assert imported(home, forged) == (IDS, [note])
