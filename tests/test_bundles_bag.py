"""A bag is read by bagit.py, bdbag and us, whatever names a Method gives its outputs."""

from __future__ import annotations

import io
import json
import os
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from benches import OTHER_ID, bench_at, kept
from bundle_makers import contents, copy_of
from prefect_executions.bundles.bag import stand_ins
from prefect_executions.bundles.layout import ExportFormat, ExportLevel
from prefect_executions.bundles.zip_reader import Limits
from prefect_executions.errors import ImportRefusedError
from prefect_executions.operations.export import export
from prefect_executions.operations.imports import ImportPolicy, import_bundles
from prefect_executions.operations.verify import verify_target
from prefect_executions.settings import ImportNames
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.workbench import Workbench
from records import EXECUTION_ID, OUTPUTS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # both warn of their own use of old functions
    import bagit
    from bdbag import bdbagit

NOW = datetime(2026, 10, 1, 8, 30, tzinfo=UTC)
ANY = ImportPolicy(Limits(entries=1000, allowance=100 << 20, expansion=0), ImportNames.ANY, NOW)
PORTABLE = ANY._replace(names=ImportNames.PORTABLE)

ODD = (
    *("50%.csv", "a%0Ab", "a%0D%0D%0Ab", "a%25b", "a%b", "%", "%2525"),
    *("x ", "x\u00a0", "\u3000", " ", "in a folder /x", "x\u2028y", "x\u2029y", "x\u0085y", "x\x1cy", "x\x0by"),
    *(
        "\n",
        "a\nb",
        "a\rb",
        "a\r\nb",
        "\tx",
        "a\\b",
        "\\",
        "~x",
        "*x",
        "#x",
        "-x",
        "'\"",
        "\ufeffx",
        "emoji-\U0001f9ea",
    ),
    *("é", "e\u0301", "fold\u00e9/x", "folde\u0301/x", "\u212b", "\u00c5", "A\u030a"),
    *("z" * 255, "ü" * 127, f"{'d' * 200}/{'e' * 200}/{'f' * 200}", "renamed-0-x"),
)


def bench_with(home: Path, names: Iterable[str]) -> tuple[Workbench, dict[str, bytes]]:
    """Return a workbench whose execution has outputs of these names, as far as the file system has them."""
    outputs = {f"outputs/{name}": name.encode() for name in names}
    folders = {path[:end] for path in outputs for end, letter in enumerate(path) if letter == "/"}
    outputs = {path: data for path, data in outputs.items() if path not in folders}
    bench = bench_at(home)
    kept(bench, outputs={**OUTPUTS, **outputs})
    return bench, outputs


def bag_of(
    bench: Workbench,
    target: Path,
    *ids: str,
    level: ExportLevel = ExportLevel.FULL,
    form: ExportFormat = ExportFormat.BAGIT,
) -> tuple[Path, Path]:
    """Return an exported zip, and the folder of the unpacked bag."""
    target.mkdir(parents=True)
    out = io.BytesIO()
    export(Catalog(bench), ids or (EXECUTION_ID,), out.write, form=form, level=level)
    (target / "x.zip").write_bytes(out.getvalue())
    with zipfile.ZipFile(io.BytesIO(out.getvalue())) as zipped:
        zipped.extractall(target / "bag")
    (bag,) = (target / "bag").iterdir()
    return target / "x.zip", bag


def validate(bag: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bagit.Bag(str(bag)).validate()
        bdbagit.BDBag(str(bag)).validate()


def faults(bench: Workbench, target: Path) -> list[str]:
    return [fault for verified in verify_target(Catalog(bench), str(target)) for fault in verified.report.faults]


def archived(bench: Workbench, paths: Iterable[str]) -> Mapping[str, bytes]:
    catalog = Catalog(bench)
    with catalog.bundle_source(EXECUTION_ID).open("output.zip") as stream, zipfile.ZipFile(stream) as zipped:
        return {path: zipped.read(path) for path in paths}


def check_round_trip(home: Path, names: Iterable[str]) -> None:
    bench, outputs = bench_with(home / "theirs", names)
    zipped, bag = bag_of(bench, home / "exported")
    validate(bag)
    for number, target in enumerate((zipped, bag)):
        assert faults(bench, target) == []
        ours = bench_at(home / f"ours-{number}")
        assert [taken.id for taken in import_bundles(ours, str(target), ANY)] == [EXECUTION_ID]
        assert archived(ours, outputs) == outputs


def test_a_bag_holds_every_odd_name(tmp_path: Path) -> None:
    check_round_trip(tmp_path, ODD)


@pytest.mark.parametrize("name", ["50%.csv", "x ", "x\u2028y", "a\nb"])
def test_a_bag_holds_a_single_odd_name(tmp_path: Path, name: str) -> None:
    check_round_trip(tmp_path, [name])


_PART = st.text(
    st.sampled_from("aé%0AD25 \u2028\u00a0\n\r\t\\~*\u0301\u212b") | st.characters(exclude_categories=["Cs"]),
    min_size=1,
    max_size=30,
).filter(lambda part: "/" not in part and "\0" not in part and part not in {".", ".."} and len(part.encode()) <= 255)
_NAME = st.lists(_PART, min_size=1, max_size=3).map("/".join)


@pytest.mark.long
@given(st.lists(_NAME.filter(lambda name: not name.casefold().startswith("std")), min_size=1, max_size=8, unique=True))
@example(["e\u0301", "é"])
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_a_bag_holds_any_names(tmp_path: Path, names: list[str]) -> None:
    check_round_trip(tmp_path / os.urandom(4).hex(), names)


def test_a_name_that_is_not_text_is_in_a_bag_as_the_record_has_it(tmp_path: Path) -> None:
    bench = bench_at(tmp_path / "theirs")
    kept(bench, outputs={**OUTPUTS, os.fsdecode(b"outputs/a\xff.csv"): b"x"})
    zipped, bag = bag_of(bench, tmp_path / "x")
    validate(bag)
    assert faults(bench, zipped) == []
    assert (
        "outputs/a%FF.csv" in json.loads((bag / "data/export.json").read_bytes())["executions"][0]["renamed"].values()
    )


def test_an_odd_name_does_not_concern_the_other_executions(tmp_path: Path) -> None:
    bench, _ = bench_with(tmp_path / "theirs", ["50%.csv"])
    kept(bench, OTHER_ID)
    zipped, bag = bag_of(bench, tmp_path / "x", EXECUTION_ID, OTHER_ID)
    validate(bag)
    assert faults(bench, zipped) == faults(bench, bag) == []
    assert contents(bag / "data" / OTHER_ID) == contents(bench.folder / OTHER_ID)


def test_a_renamed_file_is_listed_with_its_path(tmp_path: Path) -> None:
    bench, _ = bench_with(tmp_path / "theirs", ["50%.csv"])
    _, bag = bag_of(bench, tmp_path / "x")
    (exported,) = json.loads((bag / "data/export.json").read_bytes())["executions"]
    ((stored, path),) = exported["renamed"].items()
    assert path == "outputs/50%.csv"
    assert stored.startswith("outputs/renamed-")
    assert stored.endswith("-50_.csv")
    assert (bag / "data" / EXECUTION_ID / stored).read_bytes() == b"50%.csv"


def test_a_stand_in_is_the_same_for_the_same_name() -> None:
    first = stand_ins(["outputs/a%", "outputs/b"])
    assert first == {"outputs/a%": first["outputs/a%"]}
    assert stand_ins([*first.values(), "outputs/a%"])["outputs/a%"] not in first.values()


@pytest.mark.parametrize("level", ExportLevel)
@pytest.mark.parametrize("ids", [pytest.param((EXECUTION_ID,), marks=pytest.mark.long), (EXECUTION_ID, OTHER_ID)])
@pytest.mark.parametrize("form", [ExportFormat.BAGIT, pytest.param(ExportFormat.ZIP, marks=pytest.mark.long)])
def test_an_export_of_any_level_verifies_and_is_imported(
    tmp_path: Path, form: ExportFormat, ids: tuple[str, ...], level: ExportLevel
) -> None:
    bench = bench_at(tmp_path / "theirs")
    for execution_id in ids:
        kept(bench, execution_id)
    out = io.BytesIO()
    export(Catalog(bench), ids, out.write, form=form, level=level)
    (tmp_path / "x.zip").write_bytes(out.getvalue())
    assert faults(bench, tmp_path / "x.zip") == []
    assert len(import_bundles(bench_at(tmp_path / "ours"), str(tmp_path / "x.zip"), PORTABLE)) == len(ids)


def test_a_bag_of_an_earlier_version_with_its_list_in_the_bundle_is_read(tmp_path: Path) -> None:
    bench = bench_at(tmp_path / "theirs")
    kept(bench)
    _, new = bag_of(bench, tmp_path / "x", level=ExportLevel.METADATA)
    bag = tmp_path / "old"
    copy_of(new / "data" / EXECUTION_ID, bag / "data")
    (bag / "data/export.json").write_bytes((new / "data/export.json").read_bytes())
    (bag / "bagit.txt").write_text("BagIt-Version: 0.97\nTag-File-Character-Encoding: UTF-8\n")
    lines = [
        f"{sha256(data).hexdigest()}  {path}\n" for path, data in contents(bag).items() if path.startswith("data/")
    ]
    (bag / "manifest-sha256.txt").write_text("".join(lines))
    assert faults(bench, bag) == []
    assert len(import_bundles(bench_at(tmp_path / "ours"), str(bag), PORTABLE)) == 1


def test_a_bag_says_which_software_made_it_and_when_the_newest_execution_ended(tmp_path: Path) -> None:
    bench = bench_at(tmp_path / "theirs")
    kept(bench)
    _, bag = bag_of(bench, tmp_path / "x")
    assert (bag / "bagit.txt").read_text() == "BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"
    payload = contents(bag / "data")
    assert (bag / "bag-info.txt").read_text().splitlines() == [
        "Bag-Software-Agent: prefect-executions",
        "Bagging-Date: 2026-09-22",
        f"External-Identifier: {EXECUTION_ID}",
        f"Payload-Oxum: {sum(map(len, payload.values()))}.{len(payload)}",
    ]


@pytest.mark.parametrize("version", ["0.97", "1.0"])
@pytest.mark.parametrize("percent", ["%", "%25"])
def test_a_bag_by_another_program_may_encode_a_percent_sign_or_not(tmp_path: Path, version: str, percent: str) -> None:
    bench, outputs = bench_with(tmp_path / "theirs", ["50%.csv", "50%25.csv"])
    bag = tmp_path / "bag"
    copy_of(bench.folder / EXECUTION_ID, bag / "data" / EXECUTION_ID)
    (bag / "bagit.txt").write_text(f"BagIt-Version: {version}\nTag-File-Character-Encoding: UTF-8\n")
    payload = {path: data for path, data in contents(bag).items() if path.startswith("data/")}
    lines = [f"{sha256(data).hexdigest()}  {path.replace('%', percent)}\n" for path, data in payload.items()]
    (bag / "manifest-sha256.txt").write_text("".join(lines))
    assert faults(bench, bag) == []
    ours = bench_at(tmp_path / "ours")
    import_bundles(ours, str(bag), PORTABLE)
    assert archived(ours, outputs) == outputs


def test_a_bag_with_an_endless_version_or_path_is_read_or_refused(tmp_path: Path) -> None:
    bench = bench_at(tmp_path / "theirs")
    kept(bench)
    _, bag = bag_of(bench, tmp_path / "x")
    renew_bag(bag)
    (bag / "bagit.txt").write_text(f"BagIt-Version: {'9' * 9000}.0\nTag-File-Character-Encoding: UTF-8\n")
    assert faults(bench, bag) == []
    with (bag / "manifest-sha256.txt").open("a") as manifest:
        manifest.write(f"{'0' * 64}  data/{'x' * 9_000_000}\n")
    with pytest.raises(ImportRefusedError, match="the limit is 16384") as refused:
        import_bundles(bench_at(tmp_path / "ours"), str(bag), PORTABLE)
    assert len(str(refused.value)) < 1000


def renew_bag(bag: Path) -> None:
    """Rewrite the manifest of the payload, as a forger does."""
    payload = {path: data for path, data in contents(bag).items() if path.startswith("data/")}
    lines = [f"{sha256(data).hexdigest()}  {path}\n" for path, data in payload.items()]
    (bag / "manifest-sha256.txt").write_text("".join(lines))
    (bag / "tagmanifest-sha256.txt").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("renamed", "words"),
    [
        ({"outputs/regions.csv": "../../evil"}, "not allowed"),
        ({"outputs/regions.csv": "outputs/../../evil"}, "not allowed"),
        ({"outputs/regions.csv": "/etc/evil"}, "not allowed"),
        ({"outputs/regions.csv": "metadata/method.json"}, "not allowed"),
        ({"outputs/regions.csv": "outputs/stdout.log"}, "not allowed"),
        ({"outputs/regions.csv": "outputs/x", "outputs/stdout.log": "outputs/x"}, "the same path"),
        ({"outputs/none": "outputs/x"}, "missing"),
        ({"outputs/regions.csv": "outputs/x"}, "not in the manifest"),
        ({"outputs/regions.csv": "outputs/CON"}, "not in the manifest|device"),
    ],
)
def test_a_hostile_list_of_renamed_files_is_refused(tmp_path: Path, renamed: dict[str, str], words: str) -> None:
    bench = bench_at(tmp_path / "theirs")
    kept(bench)
    kept(bench, OTHER_ID)
    _, bag = bag_of(bench, tmp_path / "x", EXECUTION_ID, OTHER_ID)
    listed = json.loads((bag / "data/export.json").read_bytes())
    next(one for one in listed["executions"] if one["id"] == EXECUTION_ID)["renamed"] = renamed
    (bag / "data/export.json").write_text(json.dumps(listed))
    renew_bag(bag)
    with pytest.raises(ImportRefusedError, match=words):
        import_bundles(bench_at(tmp_path / "ours"), str(bag), ANY)
    assert faults(bench, bag)


def test_the_original_name_of_a_renamed_file_must_be_portable_too(tmp_path: Path) -> None:
    bench, _ = bench_with(tmp_path / "theirs", ["x "])
    zipped, _ = bag_of(bench, tmp_path / "x")
    with pytest.raises(ImportRefusedError, match="space or dot"):
        import_bundles(bench_at(tmp_path / "ours"), str(zipped), PORTABLE)


def test_files_of_a_bag_beside_its_payload_are_named_and_ignored(tmp_path: Path) -> None:
    bench = bench_at(tmp_path / "theirs")
    kept(bench)
    _, bag = bag_of(bench, tmp_path / "x")
    copy_of(bag / "data", bag / "more" / OTHER_ID)  # a second bundle, which no manifest of the bag lists
    (bag / "Thumbs.db").write_bytes(b"x")
    notes: list[str] = []
    imported = import_bundles(bench_at(tmp_path / "ours"), str(bag), ANY, note=notes.append)
    assert [one.id for one in imported] == [EXECUTION_ID]
    (note,) = notes
    assert f"more/{OTHER_ID}/" in note
    assert " more: not in the payload data/ of the bag" in note
    reports = [verified.report for verified in verify_target(Catalog(bench), str(bag))]
    assert all(report.passed for report in reports)
    assert note in {sentence for report in reports for check in report.checks for sentence in check.unchecked}


def test_a_payload_file_of_no_manifest_is_refused_before_it_is_read(tmp_path: Path) -> None:
    bench = bench_at(tmp_path / "theirs")
    kept(bench)
    _, bag = bag_of(bench, tmp_path / "x")
    (bag / "data/outputs/evil").write_bytes(b"x")
    renew_bag(bag)
    os.truncate(bag / "data/outputs/evil", 1 << 42)  # reading these zeros would take an hour
    with pytest.raises(ImportRefusedError, match=r"evil' is present and not in the manifest"):
        import_bundles(bench_at(tmp_path / "ours"), str(bag), ANY._replace(limits=Limits(allowance=1 << 43)))
    assert any("evil" in fault for fault in faults(bench, bag))
