"""Hostile input is refused by name: it leaves nothing behind, writes nothing outside, and exceeds no limit."""

from __future__ import annotations

import io
import json
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benches import bench_at
from bundle_makers import a_sealed_bundle, an_open_bundle, contents, copy_of, finish, forge, renew_manifest, zip_of
from ccp_exports import tree
from hostile_zips import CORPUS, TOP, Member, a_zip, members_of
from marks import long_if
from prefect_executions.bundles.portable_names import check_names
from prefect_executions.bundles.source import ZipSource
from prefect_executions.bundles.zip_reader import Limits
from prefect_executions.errors import BundleError, ImportRefusedError, NotFoundError
from prefect_executions.operations.imports import ImportPolicy, import_bundles
from prefect_executions.settings import ImportNames
from prefect_executions.workbench.workbench import Workbench
from records import EXECUTION_ID

NOW = datetime(2026, 10, 1, 8, 30, tzinfo=UTC)
TERMS = ImportPolicy(Limits(entries=1000, allowance=20 << 20, expansion=0), ImportNames.PORTABLE, NOW)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_sealed_bundle(tmp_path_factory.mktemp("sealed")).folder


@pytest.fixture(scope="module")
def members(sealed: Path) -> list[Member]:
    return members_of({TOP + path: data for path, data in contents(sealed).items()})


@pytest.fixture
def ours(tmp_path: Path) -> Workbench:
    return bench_at(tmp_path / "ours")


def leftovers(bench: Workbench) -> list[str]:
    """Return what lies in a home to which nothing was imported; the ledger's own files and one empty folder may."""
    home = bench.folder.parent
    there = [path.relative_to(home).as_posix() for path in home.rglob("*") if not path.name.startswith("ledger.db")]
    return [path for path in there if path not in {"workbench", "workbench/.open"}]


def refused(bench: Workbench, target: Path, words: str) -> None:
    around = sorted(path for path in bench.folder.parent.parent.iterdir())
    with pytest.raises(ImportRefusedError, match=words) as found:
        import_bundles(bench, str(target), TERMS)
    assert target.name in str(found.value)
    assert leftovers(bench) == []
    assert sorted(path for path in bench.folder.parent.parent.iterdir()) in (
        around,
        sorted([*around, bench.folder.parent]),
    )


def test_the_unmodified_bundle_is_imported(members, ours, tmp_path):
    (tmp_path / "x.zip").write_bytes(a_zip(members))
    assert import_bundles(ours, str(tmp_path / "x.zip"), TERMS)[0].id == EXECUTION_ID


@pytest.mark.parametrize("fault", CORPUS)
def test_a_hostile_zip_is_refused_and_the_entry_is_named(members, ours, tmp_path, fault):
    make, words = CORPUS[fault]
    (tmp_path / "x.zip").write_bytes(make(members))
    refused(ours, tmp_path / "x.zip", words)


def test_names_that_are_not_portable_are_imported_if_configured(ours, tmp_path):
    bundle = an_open_bundle(tmp_path)
    (bundle.folder / "outputs/A.csv").write_bytes(b"1")
    (bundle.folder / "outputs/a.csv").write_bytes(b"2")
    finish(bundle)
    refused(ours, bundle.folder, r"a\.csv'.*same file")
    assert import_bundles(ours, str(bundle.folder), TERMS._replace(names=ImportNames.ANY))[0].result == "imported"


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_a_link_or_pipe_in_a_folder_is_refused(sealed, ours, tmp_path, kind):
    folder = copy_of(sealed, tmp_path / "bundle")
    (tmp_path / "secret").write_text("x")
    if kind == "pipe":
        os.mkfifo(folder / "outputs/evil")
    else:
        (folder / "outputs/evil").symlink_to(tmp_path / "secret" if kind == "link" else "/etc")
    refused(ours, folder, r"outputs/evil' is a link or a special file")


def test_a_zip_that_is_cut_at_any_byte_of_its_directory_is_refused(members, ours, tmp_path):
    whole = a_zip(members)
    (begin,) = struct.unpack("<L", whole[-6:-2])
    for end in range(begin - 40, len(whole)):
        with pytest.raises(BundleError):
            ZipSource(io.BytesIO(whole[:end]), TERMS.limits)
        if end % 50 == 0:
            (tmp_path / "x.zip").write_bytes(whole[:end])
            with pytest.raises(ImportRefusedError):
                import_bundles(ours, str(tmp_path / "x.zip"), TERMS)
    assert leftovers(ours) == []


@given(st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_a_changed_byte_in_a_zip_is_refused_or_has_no_effect(members, tmp_path, data):
    """Flip, cut out, repeat or put in bytes anywhere; what comes in all the same is the bundle itself."""
    whole = bytearray(a_zip(members))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(whole) - 1) | st.integers(max(0, len(whole) - 1500), len(whole) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "repeat", "insert"])):
            case "flip":
                whole[place] ^= data.draw(st.integers(1, 255))
            case "cut":
                del whole[place : place + data.draw(st.integers(1, 64))]
            case "repeat":
                whole[place:place] = whole[place : place + data.draw(st.integers(1, 64))]
            case "insert":
                whole[place:place] = data.draw(st.binary(min_size=1, max_size=8))
    bench = bench_at(tmp_path / f"home-{os.urandom(4).hex()}")
    (tmp_path / "x.zip").write_bytes(whole)
    try:
        (taken,) = import_bundles(bench, str(tmp_path / "x.zip"), TERMS)
    except ImportRefusedError:
        assert leftovers(bench) == []
    else:
        assert bench.archive.bundle(taken.id).seal.manifest_sha256 == taken.manifest_sha256
        assert bench.archived_record(EXECUTION_ID).id == EXECUTION_ID


@given(st.binary(max_size=300))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused(tmp_path, data):
    bench = bench_at(tmp_path / "home")
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(ImportRefusedError):
        import_bundles(bench, str(tmp_path / "x.zip"), TERMS)


DEEP = "[" * 200_000
DOCUMENTS: dict[str, tuple[str, Callable[[str], str], str]] = {
    "JSON that nests deep": ("metadata/instance.json", lambda text: DEEP, r"nested too deeply"),
    "JSON with a huge number": (
        "metadata/metrics.json",
        lambda text: text.replace('"value": 24', f'"value": {"9" * 5000}'),
        r"metrics\.json",
    ),
    "JSON with too many values": ("ro-crate-metadata.json", lambda text: f"[{'0,' * 3_000_001}0]", r"3000000 values"),
    "JSON with too many members": (
        "metadata/jobStatus.json",
        lambda text: json.dumps(dict.fromkeys(range(200_001), 0)),
        r"the limit is 200000",
    ),
    "a member twice": (
        "metadata/jobStatus.json",
        lambda text: text.replace("{", '{"jobID": "x",', 1),
        r"jobStatus\.json.*twice",
    ),
    "XML that unfolds": (
        "metadata/provo.xml",
        lambda text: '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]><a>&c;</a>',
        r"DTD|not a PROV",
    ),
    "XML that fetches": (
        "metadata/provo.xml",
        lambda text: '<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
        r"DTD|not a PROV",
    ),
    "XML of very many elements": (
        "metadata/provo.xml",
        lambda text: f'<prov:document xmlns:prov="http://www.w3.org/ns/prov#">{"<a/>" * 110_000}</prov:document>',
        r"too much lies between records",
    ),
    "XML with a record of very many elements": (
        "metadata/provo.xml",
        lambda text: text.replace("</prov:entity>", "<a/>" * 110_000 + "</prov:entity>", 1),
        r"a record is too large",
    ),
    "XML of very many records": (
        "metadata/provo.xml",
        lambda text: text.replace("</prov:document>", "<prov:used/>" * 500_001 + "</prov:document>"),
        r"it has more than 500000 records",
    ),
    "a manifest that lists a very long name": (
        "manifest-sha256.txt",
        lambda text: text + f"{'0' * 64}  outputs/{'a' * 100_000}\n",
        r"manifest: .*aaa … aaa",
    ),
    "a crate that nests deep": ("ro-crate-metadata.json", lambda text: DEEP, r"nested too deeply"),
    "a manifest that leads out": (
        "manifest-sha256.txt",
        lambda text: text + f"{'0' * 64}  ~/../../evil\n",
        r"evil",
    ),
}


@pytest.mark.parametrize("fault", long_if(DOCUMENTS, {"XML of very many records"}))
def test_a_hostile_document_is_refused_by_name(sealed, ours, tmp_path, fault):
    path, change, words = DOCUMENTS[fault]
    folder = copy_of(sealed, tmp_path / "bundle")
    if path == "manifest-sha256.txt":
        (folder / path).write_text(change((folder / path).read_text()))
    else:
        forge(folder, path, change)
    refused(ours, zip_of(folder, tmp_path / "x.zip"), words)


def test_a_zip_in_the_zip_that_unfolds_further_is_refused(sealed, ours, tmp_path):
    folder = copy_of(sealed, tmp_path / "bundle")
    with zipfile.ZipFile(folder / "output.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("outputs/regions.csv", bytes(15 << 20))
    renew_manifest(folder)
    tracemalloc.start()
    try:
        refused(ours, zip_of(folder, tmp_path / "x.zip"), r"output\.zip")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_hostile_names_in_the_output_zip_of_ccp_are_refused(ours, tmp_path):
    files = {path: data for path, data in tree().items() if not path.startswith("outputs/")}
    for name in ("../evil", "CON", "outputs/../../evil"):
        inner = a_zip([Member(name.encode())])
        (tmp_path / "x.zip").write_bytes(a_zip(members_of({**files, "output.zip": inner})))
        refused(ours, tmp_path / "x.zip", "leads out|device")


def test_bags_in_bags_are_refused(ours, tmp_path):
    folder = tmp_path / "bag"
    inner = folder
    for _ in range(3):
        (inner / "data").mkdir(parents=True)
        (inner / "bagit.txt").write_text("BagIt-Version: 0.97\nTag-File-Character-Encoding: UTF-8\n")
        inner = inner / "data"
    for bag in (folder / "data/data", folder / "data", folder):
        listed = [path for path in sorted((bag / "data").rglob("*")) if path.is_file()]
        lines = [f"{sha256(one.read_bytes()).hexdigest()}  {one.relative_to(bag)}\n" for one in listed]
        (bag / "manifest-sha256.txt").write_text("".join(lines) or f"{'0' * 64}  data/x\n")
    refused(ours, folder, "bag")


def test_a_folder_is_imported_within_the_limits_of_a_zip(sealed, ours, tmp_path):
    many, large = copy_of(sealed, tmp_path / "many"), copy_of(sealed, tmp_path / "large")
    for number in range(1000):
        (many / f"outputs/{number}").touch()
    refused(ours, many, r"it has more than 1000 files")
    with (large / "outputs/regions.csv").open("r+b") as sparse:
        sparse.truncate(50 << 30)
    refused(ours, large, r"it has 536\d+ bytes, most of them in 'outputs/regions\.csv'; the limit is 20971520")


@pytest.mark.parametrize("names", ImportNames)
def test_a_name_in_a_folder_that_is_not_utf8_is_refused(sealed, ours, tmp_path, names):
    folder = copy_of(sealed, tmp_path / "bundle")
    (folder / "outputs" / os.fsdecode(b"caf\xe9")).touch()
    with pytest.raises(ImportRefusedError, match=r"outputs/caf.udce9'"):
        import_bundles(ours, str(folder), TERMS._replace(names=names))
    assert leftovers(ours) == []


def test_a_pipe_is_refused_before_it_is_opened(ours, tmp_path):
    os.mkfifo(tmp_path / "x.zip")
    with pytest.raises(NotFoundError, match=r"x\.zip is neither a file nor a folder"):
        import_bundles(ours, str(tmp_path / "x.zip"), TERMS)


def test_a_folder_named_like_a_file_of_the_bag_is_refused(sealed, ours, tmp_path):
    for name in ("manifest-md5.txt", "fetch.txt"):
        bag = tmp_path / name.partition(".")[0]
        copy_of(sealed, bag / "data" / EXECUTION_ID)
        (bag / "bagit.txt").write_text("BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n")
        listed = {path: data for path, data in contents(bag).items() if path.startswith("data/")}
        lines = (f"{sha256(data).hexdigest()}  {path}\n" for path, data in listed.items())
        (bag / "manifest-sha256.txt").write_text("".join(lines))
        (bag / name).mkdir()
        refused(ours, bag, rf"{name}: it is a folder")


def test_names_of_deep_folders_are_compared_with_all_others():
    deep = "d/" * 200
    check_names([f"{deep}{number}/x" for number in range(2000)])
    for names in (["a/b/c", "a/B/d"], [f"{deep}a", f"{deep}A"], ["a/b", "b/c", "A/d"], ["a/x", "a/x/y/z"]):
        with pytest.raises(BundleError, match="same"):
            check_names(names)
    for name in ("a/CON", "con/a", "a/Lpt1.txt/b", "nul", f"a/{'é' * 128}", "a./b", "a /b", "a/b."):
        with pytest.raises(BundleError, match=r"device|longer|space or dot"):
            check_names([name])
    check_names(["a/CONSOLE", "icon", "a/CO", f"a/{'é' * 127}", "a/.b"])


@pytest.mark.parametrize("name", ["metadata/request.json", "metadata/method.json"])
def test_an_empty_document_of_ccp_is_refused(ours, tmp_path, name):
    (tmp_path / "x.zip").write_bytes(a_zip(members_of({**tree(), name: b""})))
    refused(ours, tmp_path / "x.zip", rf"{name}: invalid JSON")
