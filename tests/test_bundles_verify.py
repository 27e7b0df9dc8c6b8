"""Verification finds every change, names it, and resists hostile bundles."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundle_makers import (
    MemorySource,
    a_sealed_bundle,
    an_open_bundle,
    contents,
    copy_of,
    forge,
    forge_json,
    renew_manifest,
    renew_zip,
    zip_of,
)
from prefect_executions import documents
from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.evidence import _has_constant_or_long_integer
from prefect_executions.bundles.source import FolderSource
from prefect_executions.bundles.verify import CHECKS, Report, verify
from prefect_executions.bundles.zip_reader import Limits, ZipReader
from prefect_executions.errors import BundleError, NotFoundError
from prefect_executions.executions.record import DOCUMENTS, BundleFile
from prefect_executions.settings import ArchiveLevel
from records import (
    EXECUTION_ID,
    a_failed_record,
    a_job_status,
    a_record,
    a_request,
    a_staged_input,
    some_steps,
    with_phases,
)

OTHER_ID = "11111111-6f0c-4f2e-9a41-3d6d5d3f2e10"
PICTURE = "inputs/picture.png"
CSV = "outputs/regions.csv"


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed bundle that no test changes."""
    return a_sealed_bundle(tmp_path_factory.mktemp("sealed")).folder


@pytest.fixture
def bundle(sealed: Path, tmp_path: Path) -> Path:
    """A copy of a sealed bundle, for forgeries."""
    return copy_of(sealed, tmp_path / "bundle")


def failed(report: Report) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


def failed_by_content(report: Report) -> set[str]:
    """Return the failed checks except that of the digests in PROV and crate."""
    return failed(report) - {"told-files"}


@pytest.fixture(scope="module")
def files(sealed: Path) -> dict[str, bytes]:
    return contents(sealed)


# --- unchanged bundles


def test_a_sealed_bundle_passes_every_check(sealed: Path) -> None:
    report = verify(sealed)
    assert report.faults == report.unchecked == ()
    assert report.passed
    assert [check.name for check in report.checks] == list(CHECKS)


@pytest.mark.parametrize("top", ["", f"{EXECUTION_ID}/", "any name/"])
def test_a_zip_of_the_bundle_passes_every_check(sealed: Path, tmp_path: Path, top: str) -> None:
    assert verify(zip_of(sealed, tmp_path / "bundle.zip", top)).faults == ()


def test_a_zip_made_by_zip_passes_every_check(sealed: Path, tmp_path: Path, need_program: Callable[[str], str]) -> None:
    import subprocess  # noqa: PLC0415 - needed by this test alone

    subprocess.run([need_program("zip"), "-qr", tmp_path / "bundle.zip", sealed.name], cwd=sealed.parent, check=True)
    assert verify(tmp_path / "bundle.zip").faults == ()


def test_verifying_writes_nothing(sealed: Path) -> None:
    before = contents(sealed)
    verify(sealed)
    assert contents(sealed) == before


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing"):
        verify(tmp_path / "nothing")


@pytest.mark.parametrize("only", [("digests",), ("crate", "layout")])
def test_single_checks_can_be_selected(sealed: Path, only: tuple[str, ...]) -> None:
    assert {check.name for check in verify(sealed, only=only).checks} == set(only)


# --- changes that the manifest reveals


def test_a_flipped_bit_in_any_file_is_found(files: dict[str, bytes]) -> None:
    for path, data in files.items():
        for place in {0, len(data) // 2, len(data) - 1} if data else ():
            changed = bytearray(data)
            changed[place] ^= 1
            assert not verify(MemorySource(files | {path: bytes(changed)})).passed, f"byte {place} of {path}"


BY_DIGEST = ("manifest", "digests", "no-extra-files")


@pytest.mark.long
def test_every_flipped_byte_of_every_file_is_found(files: dict[str, bytes]) -> None:
    for path, data in files.items():
        changed = bytearray(data)
        for place in range(len(data)):
            changed[place] ^= 1 << place % 8
            assert not verify(MemorySource(files | {path: bytes(changed)}), only=BY_DIGEST).passed, (
                f"byte {place} of {path}"
            )
            changed[place] = data[place]


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_changed_byte_is_found(files: dict[str, bytes], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(path for path, content in files.items() if content)))
    place = data.draw(st.integers(0, len(files[path]) - 1))
    changed = bytearray(files[path])
    changed[place] ^= data.draw(st.integers(1, 255))
    assert not verify(MemorySource(files | {path: bytes(changed)}), only=BY_DIGEST).passed


def test_any_removed_file_is_found(files: dict[str, bytes]) -> None:
    for path in files:
        report = verify(MemorySource({other: data for other, data in files.items() if other != path}))
        assert not report.passed, path
        assert any(path in fault for fault in report.faults)


@pytest.mark.parametrize("path", ["outputs/new.csv", "inputs/new", "code/new.py", "metadata/new.json", "new"])
def test_an_added_file_is_found(files: dict[str, bytes], path: str) -> None:
    assert "no-extra-files" in failed(verify(MemorySource(files | {path: b""})))


def test_two_swapped_files_are_found(files: dict[str, bytes]) -> None:
    swapped = {CSV: files["outputs/stdout.log"], "outputs/stdout.log": files[CSV]}
    assert {"digests", "output-zip", "outputs"} <= failed(verify(MemorySource(files | swapped)))


def test_a_bundle_that_is_not_sealed_is_found(tmp_path: Path) -> None:
    assert {"layout", "manifest"} <= failed(verify(an_open_bundle(tmp_path).folder))


def test_a_link_in_a_sealed_bundle_is_reported_and_not_followed(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "same.csv").write_bytes((bundle / CSV).read_bytes())
    (bundle / CSV).unlink()
    (bundle / CSV).symlink_to(tmp_path / "same.csv")
    (bundle / "outputs/more").symlink_to("/etc")
    report = verify(bundle)
    assert {"layout", "digests", "outputs"} <= failed(report)


def test_a_pipe_in_a_bundle_does_not_block_the_reader(bundle: Path) -> None:
    os.mkfifo(bundle / "outputs/pipe")
    assert failed(verify(bundle)) == {"layout"}


def test_a_fault_names_the_file_and_both_values(bundle: Path) -> None:
    before = sha256((bundle / CSV).read_bytes()).hexdigest()
    (bundle / CSV).write_bytes(b"label,area\n1,2605\n")
    after = sha256((bundle / CSV).read_bytes()).hexdigest()
    (fault,) = next(check.faults for check in verify(bundle).checks if check.name == "digests")
    assert all(word in fault for word in (CSV, before, after))


def test_a_manifest_with_a_path_outside_is_refused(bundle: Path) -> None:
    with (bundle / "manifest-sha256.txt").open("a") as stream:
        stream.write(f"{sha256(b'').hexdigest()}  ~/../../etc/passwd\n")
    assert "manifest" in failed(verify(bundle))


# --- forgeries with a renewed manifest


def change_member(*steps: str | int, to: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for step in steps[:-1]:
            document = document[step]
        document[steps[-1]] = to

    return change


@pytest.mark.parametrize(
    ("path", "change", "check"),
    [
        ("metadata/jobStatus.json", change_member("status", to="failed"), "ogc-status"),
        ("metadata/jobStatus.json", change_member("executionStatus", to="FAILED"), "ogc-status"),
        (
            "metadata/jobStatus.json",
            lambda document: document.update(status="failed", executionStatus="FAILED"),
            "lifecycle",
        ),
        ("metadata/jobStatus.json", change_member("started", to="2026-09-22T11:00:00.000000+00:00"), "lifecycle"),
        ("metadata/jobStatus.json", change_member("finished", to="2026-09-23T12:00:00.000000+00:00"), "lifecycle"),
        (
            "metadata/jobStatus.json",
            change_member("finishedBefore", to="2026-09-23T12:00:00.000000+00:00"),
            "lifecycle",
        ),
        ("metadata/jobStatus.json", change_member("created", to="2026-09-21T12:00:00.000000+00:00"), "lifecycle"),
        ("metadata/jobStatus.json", change_member("updated", to="2026-09-23T12:00:00.000000+00:00"), "lifecycle"),
        ("metadata/jobStatus.json", change_member("attempt", to=2), "lifecycle"),
        ("metadata/jobStatus.json", change_member("reason", to="lost"), "lifecycle"),
        ("metadata/jobStatus.json", change_member("jobID", to=OTHER_ID), "same-execution"),
        ("metadata/jobStatus.json", change_member("processID", to="another"), "same-execution"),
        ("metadata/jobStatus.json", change_member("outputs", 1, "sha256", to="0" * 64), "outputs"),
        ("metadata/jobStatus.json", change_member("outputs", 1, "size", to=1), "outputs"),
        ("metadata/jobStatus.json", lambda document: document["outputs"].pop(), "outputs"),
        ("metadata/jobStatus.json", lambda document: document["history"].pop(), "lifecycle"),
        ("metadata/request.json", change_member("values", "threshold", to=0.4), "documents"),
        ("metadata/request.json", change_member("inputs", "threshold", to=0.4), "documents"),
        ("metadata/request.json", change_member("files", 0, "sha256", to="0" * 64), "inputs"),
        ("metadata/request.json", change_member("files", 0, "size", to=1), "inputs"),
        ("metadata/request.json", change_member("executionId", to=OTHER_ID), "same-execution"),
        ("metadata/request.json", change_member("methodVersion", to="9"), "same-execution"),
        ("metadata/method.json", change_member("id", to="another"), "same-execution"),
        ("metadata/method.json", change_member("code", "files", 0, "sha256", to="0" * 64), "code"),
        ("metadata/instance.json", change_member("pid", to="none"), "documents"),
        ("metadata/metrics.json", change_member("metrics", 0, "value", to="many"), "documents"),
        ("auth/jwt.json", change_member("token", to="secret"), "documents"),
        ("ro-crate-metadata.json", lambda document: document.pop("@graph"), "crate"),
    ],
)
def test_a_changed_member_of_a_document_fails_its_check(
    bundle: Path, path: str, change: Callable[[Any], None], check: str
) -> None:
    forge_json(bundle, path, change)
    report = verify(bundle)
    assert check in failed(report)
    assert {"manifest", "digests", "no-extra-files"}.isdisjoint(failed(report))


def test_an_input_value_that_is_forged_twice_in_the_request_is_found(bundle: Path) -> None:
    def change(request: Any) -> None:
        request["values"]["threshold"] = request["inputs"]["threshold"] = request["parameters"]["threshold"] = 0.4

    forge_json(bundle, "metadata/request.json", change)
    assert failed_by_content(verify(bundle)) == {"provenance", "crate"}


def test_times_that_are_forged_everywhere_in_the_job_status_are_found(bundle: Path) -> None:
    forge(bundle, "metadata/jobStatus.json", lambda text: text.replace("2026-09-22T12:00:02", "2026-09-22T12:00:01"))
    assert failed_by_content(verify(bundle)) == {"provenance", "crate"}


def test_a_status_that_is_forged_everywhere_in_the_job_status_is_found(bundle: Path) -> None:
    forge(
        bundle,
        "metadata/jobStatus.json",
        lambda text: text.replace("COMPLETED", "CANCELLED").replace("successful", "dismissed"),
    )
    assert failed_by_content(verify(bundle)) == {"provenance", "crate"}


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("metadata/request.json", change_member("parameters", to={})),
        ("metadata/request.json", change_member("values", "picture", to="another.png")),
        ("metadata/jobStatus.json", change_member("history", 1, "observer", to="settle")),
    ],
)
def test_a_member_of_a_single_document_is_protected_by_its_digest_elsewhere(
    bundle: Path, path: str, change: Callable[[Any], None]
) -> None:
    forge_json(bundle, path, change)
    assert failed(verify(bundle)) == {"told-files"}


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("metadata/instance.json", change_member("packages", "numpy", to="1.0")),
        ("metadata/method.json", change_member("code", "repository", "commit", to="0" * 40)),
        ("metadata/infrastructure.json", change_member("worker", to="another")),
        ("auth/jwt.json", change_member("claims", "sub", to="bob@example.org")),
    ],
)
def test_a_member_that_is_forged_in_its_document_differs_from_provenance(
    bundle: Path, path: str, change: Callable[[Any], None]
) -> None:
    forge_json(bundle, path, change)
    assert failed(verify(bundle)) == {"told-files", "provenance"}


def test_a_metric_that_is_forged_in_its_document_differs_from_the_crate(bundle: Path) -> None:
    forge_json(bundle, "metadata/metrics.json", change_member("metrics", 0, "value", to=25))
    assert failed(verify(bundle)) == {"told-files", "crate"}


@pytest.mark.parametrize("original", ["Alice", "vm-7"])
def test_a_value_that_is_forged_in_prov_differs_from_the_documents(bundle: Path, original: str) -> None:
    forge(bundle, "metadata/provo.xml", lambda text: text.replace(f">{original}<", ">another<"))
    assert failed(verify(bundle)) == {"told-files", "provenance"}


def test_a_source_file_that_was_removed_with_the_manifest_is_found(bundle: Path) -> None:
    removed = next(path for path in (bundle / "code").rglob("*") if path.is_file())
    removed.unlink()
    removed.parent.rmdir()
    renew_manifest(bundle)
    assert failed(verify(bundle)) == {"told-files"}


def test_a_forged_publication_date_of_the_crate_is_found(bundle: Path) -> None:
    published = re.compile(r'("datePublished": ")2026')
    forge(bundle, "ro-crate-metadata.json", lambda text: published.sub(r"\g<1>2025", text))
    assert "crate" in failed(verify(bundle))


def members_of(document: Any, *steps: str | int) -> Iterator[tuple[str | int, ...]]:
    """Yield the path to every member and entry of *document*, at any depth."""
    for step in (
        (*document,) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    ):
        yield (*steps, step)
        yield from members_of(document[step], *steps, step)


def forgeries_of(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield *document* with each member changed, with each member removed, and with a member added to each object."""
    for steps in members_of(document):
        for change in ("changed", "removed", "added to"):
            forged = json.loads(json.dumps(document))
            parent = forged
            for step in steps[:-1]:
                parent = parent[step]
            if change == "removed":
                del parent[steps[-1]]
            elif change == "added to" and isinstance(parent[steps[-1]], dict):
                parent[steps[-1]]["alternateName"] = "another"
            elif change == "changed" and isinstance(parent[steps[-1]], str):
                parent[steps[-1]] += "7"
            else:
                continue
            yield f"{change}: {'/'.join(map(str, steps))}", forged


@pytest.mark.long
def test_any_change_of_the_crate_alone_is_found(tmp_path: Path) -> None:
    failed_run = with_phases(a_failed_record(), exit_code=137)
    job_status = failed_run.job_status.model_copy(update={"steps": some_steps()})
    files = contents(a_sealed_bundle(tmp_path, dataclasses.replace(failed_run, job_status=job_status)).folder)
    crate = "ro-crate-metadata.json"
    checks = ("crate", "told-files")
    assert verify(MemorySource(files), only=checks).faults == ()
    for what, forged in forgeries_of(json.loads(files[crate])):
        files[crate] = json.dumps(forged).encode()
        assert not verify(MemorySource(files), only=checks).passed, what


@pytest.mark.parametrize(
    ("original", "forged"),
    [
        ('"name": "Alice"', '"name": "Bob"'),
        ('"contentSize": "0"', '"contentSize": "1"'),
        ('"encodingFormat": "text/csv"', '"encodingFormat": "text/html"'),
        ("with the status COMPLETED", "with the status FAILED"),
        ('{"@id": "output.zip"}, ', ""),
    ],
)
def test_a_forged_value_of_the_crate_is_reported_with_that_of_the_documents(
    bundle: Path, original: str, forged: str
) -> None:
    forge(bundle, "ro-crate-metadata.json", lambda text: text.replace(original, forged))
    report = verify(bundle)
    assert failed(report) == {"crate"}
    assert all("; the documents say " in fault for fault in report.faults)


def test_the_order_of_entities_and_references_in_the_crate_does_not_matter(bundle: Path) -> None:
    def reverse(crate: Any) -> None:
        crate["@graph"].reverse()
        root = next(entity for entity in crate["@graph"] if entity["@id"] == "./")
        root["hasPart"].reverse()

    forge_json(bundle, "ro-crate-metadata.json", reverse)
    assert verify(bundle).faults == ()


def digest_of(path: str) -> str:
    return {**{out.path: out.sha256 for out in a_record().job_status.outputs}, PICTURE: a_staged_input().sha256}[path]


def a_bundle_with_steps(workbench: Path) -> Path:
    job_status = a_record().job_status.model_copy(update={"steps": some_steps()})
    return a_sealed_bundle(workbench, a_record(job_status=job_status)).folder


@pytest.mark.parametrize("original", ["smooth-3f1", "FAILED", "12:00:05.373", "00000000-0000-0000-0000-000000000004"])
def test_a_forged_step_is_found_in_prov_and_crate(tmp_path: Path, original: str) -> None:
    forged = {"smooth-3f1": "rough-3f1", "FAILED": "CRASHED", "12:00:05.373": "12:00:05.374"}.get(
        original, original[:-1] + "7"
    )
    for path, check in PROV_AND_CRATE:
        bundle = a_bundle_with_steps(tmp_path / check)
        assert verify(bundle).passed
        forge(bundle, path, lambda text: text.replace(original, forged))
        assert failed_by_content(verify(bundle)) == {check}, path
    bundle = a_bundle_with_steps(tmp_path / "status")
    forge(bundle, "metadata/jobStatus.json", lambda text: text.replace(original, forged))
    assert {"provenance", "crate"} <= failed(verify(bundle))


FORGED_IN_PHASES = {
    "exit code": ("137", "0"),
    "start": ("12:00:04.123", "12:00:04.122"),
    "image": (f"sha256:{'b' * 64}", f"sha256:{'0' * 64}"),
    "digest of an image": ("e" * 64, "0" * 64),
    "name of an image": ("science/awk", "science/sed"),
    "task": (f"{EXECUTION_ID}.1.1", f"{EXECUTION_ID}.1.3"),
    "phase": ("undeploy", "deploy"),
}


@pytest.mark.parametrize("what", FORGED_IN_PHASES)
def test_a_forged_phase_or_image_is_found_in_prov_and_crate(tmp_path: Path, what: str) -> None:
    original, forged = FORGED_IN_PHASES[what]
    for path, check in PROV_AND_CRATE:
        bundle = a_bundle_with_phases(tmp_path / check)
        assert verify(bundle).passed
        forge(bundle, path, lambda text: text.replace(original, forged))
        assert check in failed(verify(bundle)), path
    for path in ("metadata/jobStatus.json", "metadata/instance.json"):
        bundle = a_bundle_with_phases(tmp_path / Path(path).stem)
        before = (bundle / path).read_text()
        if original in before:
            forge(bundle, path, lambda text: text.replace(original, forged))
            assert {"provenance", "crate"} <= failed(verify(bundle)), path


def a_bundle_with_phases(workbench: Path) -> Path:
    return a_sealed_bundle(workbench, with_phases(a_failed_record(), exit_code=137)).folder


def test_a_missing_or_repeated_phase_in_prov_is_found(tmp_path: Path) -> None:
    activity = re.compile(r'<prov:activity prov:id="here:phase.4">.*\n')
    for number, replacement in enumerate(("", r"\g<0>\g<0>")):
        bundle = a_bundle_with_phases(tmp_path / str(number))
        forge(bundle, "metadata/provo.xml", lambda text, replacement=replacement: activity.sub(replacement, text))
        assert "provenance" in failed(verify(bundle))


PROV_AND_CRATE = [("metadata/provo.xml", "provenance"), ("ro-crate-metadata.json", "crate")]


@pytest.mark.parametrize(("path", "check"), PROV_AND_CRATE)
@pytest.mark.parametrize(
    ("original", "forged"),
    [
        ("COMPLETED", "FAILED"),
        ("2026-09-22T12:00:02.123", "2026-09-22T12:00:03.123"),
        ("2026-09-22T12:00:08.123", "2026-09-22T12:00:09.123"),
        (digest_of(CSV), "0" * 64),
        (digest_of(PICTURE), "0" * 64),
        (EXECUTION_ID, OTHER_ID),
        ("1.2.0", "1.2.1"),
    ],
)
def test_a_forged_status_time_digest_or_id_in_prov_or_crate_is_found(
    bundle: Path, path: str, check: str, original: str, forged: str
) -> None:
    if original == "COMPLETED" and check == "crate":
        original, forged = "CompletedActionStatus", "FailedActionStatus"
    forge(bundle, path, lambda text: text.replace(original, forged))
    assert check in failed(verify(bundle))


@pytest.mark.parametrize(("path", "check"), PROV_AND_CRATE)
def test_a_forged_input_value_in_prov_or_crate_is_found(bundle: Path, path: str, check: str) -> None:
    forge(bundle, path, lambda text: text.replace("0.3<", "0.4<").replace('"0.3"', '"0.4"'))
    assert check in failed(verify(bundle))


@pytest.mark.parametrize(("path", "check"), PROV_AND_CRATE)
@pytest.mark.parametrize("text", ["", "{", "<a/>", "{}", "[]", "null", "\0", '{"@graph": 1}', "<!DOCTYPE a []><a/>"])
def test_a_damaged_prov_or_crate_is_a_fault_and_not_an_error(bundle: Path, path: str, check: str, text: str) -> None:
    forge(bundle, path, lambda _: text)
    assert check in failed(verify(bundle))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-be"])
def test_a_crate_in_another_encoding_than_utf8_is_found(bundle: Path, encoding: str) -> None:
    crate = bundle / layout.CRATE
    crate.write_bytes(crate.read_text().encode(encoding))
    renew_manifest(bundle)
    assert "crate" in failed(verify(bundle))


def test_contradictory_times_in_prov_are_found(bundle: Path) -> None:
    forge(bundle, "metadata/provo.xml", lambda text: text.replace("2026-09-22T12:00:08", "2025-09-22T12:00:08"))
    assert "provenance-times" in failed(verify(bundle))


def test_the_job_status_of_another_execution_is_found(bundle: Path) -> None:
    other = a_job_status(execution_id=OTHER_ID)
    (bundle / "metadata/jobStatus.json").write_bytes(other.to_json())
    renew_manifest(bundle)
    assert {"same-execution", "provenance", "crate"} <= failed(verify(bundle))


def test_an_output_that_was_changed_with_zip_and_manifest_is_found(bundle: Path) -> None:
    (bundle / CSV).write_bytes(b"label,area\n1,9999\n")
    renew_zip(bundle)
    renew_manifest(bundle)
    assert failed_by_content(verify(bundle)) == {"outputs"}


@pytest.mark.parametrize(
    ("change", "checks"),
    [
        (lambda path: path.unlink(), {"outputs"}),
        (lambda path: path.with_name("new").write_bytes(b""), {"outputs", "crate"}),
    ],
)
def test_an_output_that_was_added_or_removed_with_zip_and_manifest_is_found(
    bundle: Path, change: Callable[[Path], object], checks: set[str]
) -> None:
    change(bundle / CSV)
    renew_zip(bundle)
    renew_manifest(bundle)
    assert failed_by_content(verify(bundle)) == checks


def test_a_zip_with_other_outputs_than_the_folder_is_found(bundle: Path) -> None:
    original = (bundle / CSV).read_bytes()
    for forged in (b"label,area\n1,2605\n", b"longer than it was before"):
        (bundle / CSV).write_bytes(forged)
        renew_zip(bundle)
        (bundle / CSV).write_bytes(original)
        renew_manifest(bundle)
        assert failed_by_content(verify(bundle)) == {"output-zip"}


def test_a_staged_input_that_was_changed_with_the_manifest_is_found(bundle: Path) -> None:
    (bundle / PICTURE).write_bytes(b"another picture")
    renew_manifest(bundle)
    assert failed_by_content(verify(bundle)) == {"inputs"}


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        "[" * 100_000,
        '{"format": NaN}',
        "\ud83d".encode("utf-8", "surrogatepass").decode("latin-1"),
        '{"format": 3}',
        "7",
    ],
)
@pytest.mark.parametrize("path", ["metadata/jobStatus.json", "metadata/request.json"])
def test_hostile_json_is_a_fault_and_not_an_error(bundle: Path, path: str, text: str) -> None:
    forge(bundle, path, lambda _: text)
    assert "documents" in failed(verify(bundle))


@pytest.mark.parametrize("path", sorted(kind.file_name for kind in DOCUMENTS.values()))
def test_a_document_of_another_format_than_the_others_is_found(bundle: Path, path: str) -> None:
    forge(bundle, path, lambda text: text.replace('"format": 2', '"format": 1', 1))
    faults = [fault for fault in verify(bundle).faults if fault.startswith("documents: ")]
    assert any(f"{path} has format 1" in fault or "jobStatus.json has format 1" in fault for fault in faults)


def test_a_bundle_of_a_later_format_is_reported_with_its_number(bundle: Path) -> None:
    for kind in DOCUMENTS.values():
        forge(bundle, kind.file_name, lambda text: text.replace('"format": 2', '"format": 3', 1))
    assert any("format 3 is unknown; this version reads 1 or 2" in fault for fault in verify(bundle).faults)


def test_a_document_with_a_duplicate_member_is_found(bundle: Path) -> None:
    forge(bundle, "metadata/jobStatus.json", lambda text: text.replace("{", '{"status": "failed",', 1))
    assert "documents" in failed(verify(bundle))


def test_a_document_beyond_the_limit_is_not_read(bundle: Path) -> None:
    report = verify(bundle, limits=Limits(document=1000))
    assert any("limit" in fault for fault in report.faults)


def test_many_faults_of_one_check_are_counted(files: dict[str, bytes]) -> None:
    report = verify(MemorySource(files | {f"outputs/{number}": b"" for number in range(250)}), only=("no-extra-files",))
    assert len(report.faults) == 101
    assert report.faults[-1].endswith("and 150 more")


# --- legitimately absent files


@pytest.mark.parametrize(
    ("level", "omitted"),
    [(ArchiveLevel.NONE, ("inputs/", "outputs/", "output.zip")), (ArchiveLevel.OUTPUTS, ("inputs/",))],
)
def test_files_omitted_by_the_archive_level_are_reported_as_unchecked(
    tmp_path: Path, level: ArchiveLevel, omitted: tuple[str, ...]
) -> None:
    files = contents(a_sealed_bundle(tmp_path, a_record(request=a_request(archive=level))).folder)
    remaining = {path: data for path, data in files.items() if not path.startswith(omitted)}
    report = verify(MemorySource(remaining))
    assert report.faults == ()
    assert report.unchecked
    assert not verify(MemorySource(remaining | {"metadata/jobStatus.json": files["metadata/request.json"]})).passed


def test_a_part_with_one_file_must_have_all_of_them(tmp_path: Path) -> None:
    files = contents(a_sealed_bundle(tmp_path, a_record(request=a_request(archive=ArchiveLevel.NONE))).folder)
    del files[CSV]
    assert {"digests", "outputs"} <= failed(verify(MemorySource(files)))


@pytest.mark.parametrize("kept", [CSV, "inputs/picture.png"])
def test_a_part_that_the_export_omitted_has_no_file_of_it(files: dict[str, bytes], kept: str) -> None:
    omitted = ("inputs/", "outputs/", "output.zip")
    absent = dict.fromkeys(omitted, "it was exported with the level 'metadata'")
    bare = {path: data for path, data in files.items() if not path.startswith(omitted)}
    assert verify(MemorySource(bare, absent)).faults == ()
    assert verify(MemorySource(files, absent)).faults == ()
    others = [path for path in files if path.startswith(kept.partition("/")[0] + "/") and path != kept]
    assert verify(MemorySource(bare | {kept: files[kept]}, absent)).passed is not bool(others)


@pytest.mark.parametrize("omitted", [("outputs/",), ("inputs/", "outputs/", "output.zip")])
@pytest.mark.parametrize("path", [CSV, "inputs/picture.png"])
def test_the_size_of_an_absent_file_in_the_crate_is_compared_with_the_documents(
    files: dict[str, bytes], omitted: tuple[str, ...], path: str
) -> None:
    size = f'"contentSize": "{len(files[path])}"'
    before, entity, after = files[layout.CRATE].decode().partition(f'"@id": "{path}"')
    forged = {**files, layout.CRATE: (before + entity + after.replace(size, '"contentSize": "9"', 1)).encode()}
    assert forged != files
    bare = {name: data for name, data in with_manifest(forged).items() if not name.startswith(omitted)}
    assert failed(verify(MemorySource(bare, dict.fromkeys(omitted, "it was exported without")))) == {"crate"}


def with_manifest(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return *files* with a manifest of their digests."""
    listed = [
        BundleFile(path, sha256(data).hexdigest(), len(data))
        for path, data in files.items()
        if path not in layout.UNLISTED
    ]
    return {**files, layout.MANIFEST: manifest.render(listed)}


def test_outputs_that_are_in_the_zip_only_are_checked_there(files: dict[str, bytes]) -> None:
    absent = {"outputs/": "they are in output.zip"}
    remaining = {path: data for path, data in files.items() if not path.startswith("outputs/")}
    report = verify(MemorySource(remaining, absent))
    assert report.faults == report.unchecked == ()
    other = io.BytesIO(remaining["output.zip"])
    with zipfile.ZipFile(other, "a") as zipped:
        zipped.writestr("outputs/more", b"")
    assert {"digests", "output-zip", "outputs"} <= failed(
        verify(MemorySource(remaining | {"output.zip": other.getvalue()}, absent))
    )


def test_a_source_may_lack_single_files_with_a_reason(files: dict[str, bytes]) -> None:
    remaining = {path: data for path, data in files.items() if path != PICTURE}
    report = verify(MemorySource(remaining, {PICTURE: "it is larger than the limit"}))
    assert report.faults == ()
    assert any(PICTURE in sentence and "larger" in sentence for sentence in report.unchecked)


def test_a_referenced_input_is_reported_as_unchecked(tmp_path: Path) -> None:
    record = a_record(request=a_request(files=(a_staged_input(path=None),)))
    report = verify(a_sealed_bundle(tmp_path, record).folder)
    assert report.faults == ()
    assert any("s3://survey/picture.png" in sentence for sentence in report.unchecked)


def test_a_failed_execution_is_verified_like_any_other(tmp_path: Path) -> None:
    assert verify(a_sealed_bundle(tmp_path, a_failed_record()).folder).faults == ()


# --- hostile zips


@pytest.fixture
def exported(sealed: Path, tmp_path: Path) -> bytes:
    return zip_of(sealed, tmp_path / "exported.zip").read_bytes()


def verified(data: bytes, tmp_path: Path) -> Report:
    path = tmp_path / "hostile.zip"
    path.write_bytes(data)
    return verify(path)


def test_a_zip_truncated_anywhere_is_found(exported: bytes, tmp_path: Path) -> None:
    for length in (0, 1, 21, 22, 100, len(exported) // 2, len(exported) - 1):
        assert not verified(exported[:length], tmp_path).passed, length


@pytest.mark.parametrize("before", [b"MZ", b"\0" * 10_000])
def test_a_zip_after_other_data_is_refused(exported: bytes, tmp_path: Path, before: bytes) -> None:
    assert not verified(before + exported, tmp_path).passed


def test_a_zip_before_other_data_is_refused(exported: bytes, tmp_path: Path) -> None:
    assert not verified(exported + b"\0", tmp_path).passed


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_changed_byte_of_output_zip_is_never_an_error(sealed: Path, data: st.DataObject) -> None:
    files = contents(sealed)
    changed = bytearray(files["output.zip"])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    assert not verify(MemorySource(files | {"output.zip": bytes(changed)})).passed


def test_a_changed_byte_of_a_zip_leaves_its_content_unchanged_or_is_found() -> None:
    stream = io.BytesIO()
    members = {"outputs/a": b"1,2,3\n" * 100, "outputs/b": b"noise"}
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    data = stream.getvalue()
    for place in range(len(data)):
        for flip in (1, 0x80):
            changed = bytearray(data)
            changed[place] ^= flip
            try:
                content = read_all(bytes(changed))
            except BundleError:
                continue
            assert content == members, f"with byte {place} changed, the content differs"


def read_all(data: bytes, limits: Limits | None = None) -> dict[str, bytes]:
    reader = ZipReader.open(io.BytesIO(data), limits or Limits())
    return {name: b"".join(reader.blocks(entry)) for name, entry in reader.entries.items()}


@given(st.binary(max_size=200))
def test_any_bytes_are_a_zip_or_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        read_all(data)


def zip_with(*names: str, mode: int = 0o100644, content: bytes = b"x", flag: int = 0) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as zipped:
        for name in names:
            info = zipfile.ZipInfo("placeholder")
            info.filename = name
            info.external_attr = mode << 16
            info.flag_bits = flag
            zipped.writestr(info, content)
    return stream.getvalue()


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/./b", "..", "outputs/..", "a/../", "//"]
)
def test_a_name_that_leads_out_is_refused(name: str) -> None:
    with pytest.raises(BundleError, match="leads out"):
        read_all(zip_with(name))


def test_a_nul_in_a_name_is_refused() -> None:
    with pytest.raises(BundleError, match="NUL character"):
        read_all(zip_with("aXb").replace(b"aXb", b"a\0b"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/")])
def test_a_duplicate_name_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(BundleError, match="two entries have this name"):
        read_all(zip_with(*names, content=b"", mode=0))


@pytest.mark.parametrize("mode", [0o120777, 0o010644, 0o060644])
def test_links_and_special_files_are_refused(mode: int) -> None:
    with pytest.raises(BundleError, match="link or a special"):
        read_all(zip_with("a", mode=mode))


def test_a_name_in_an_old_code_page_is_refused() -> None:
    with pytest.raises(BundleError, match="UTF-8"):
        read_all(zip_with("aXb").replace(b"aXb", b"a\x84b"))


def test_an_encrypted_file_is_refused() -> None:
    data = bytearray(zip_with("a"))
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    with pytest.raises(BundleError, match="encrypted"):
        read_all(bytes(data))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_than_deflate_are_refused(method: int) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as zipped:
        zipped.writestr("a", b"x")
    with pytest.raises(BundleError, match="another method"):
        read_all(stream.getvalue())


def test_a_local_name_that_differs_from_the_directory_is_refused() -> None:
    with pytest.raises(BundleError, match="local header"):
        read_all(zip_with("outputs/a").replace(b"outputs/a", b"outputs/b", 1))


def deflated_zip(name: str, content: bytes, announced: int) -> bytes:
    """Return a zip of one file whose headers both announce *announced* bytes."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = compressor.compress(content) + compressor.flush()
    sizes = (zlib.crc32(content[:announced]), len(packed), announced, len(name), 0)
    local = struct.pack("<4sHHHHHLLLHH", b"PK\3\4", 20, 0, 8, 0, 33, *sizes) + name.encode() + packed
    central = struct.pack("<4sHHHHHHLLLHHHHHLL", b"PK\1\2", 20, 20, 0, 8, 0, 33, *sizes, 0, 0, 0, 0, 0) + name.encode()
    return local + central + struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)


@pytest.mark.parametrize("announced", [10, 999_999, 1_000_001])
def test_a_false_size_is_found_and_no_more_is_unpacked(announced: int) -> None:
    data = deflated_zip("outputs/a", b"\0" * 1_000_000, announced)
    reader = ZipReader.open(io.BytesIO(data), Limits())
    unpacked: list[bytes] = []
    with pytest.raises(BundleError, match="announces"):
        unpacked.extend(reader.blocks(reader.entries["outputs/a"]))
    assert sum(map(len, unpacked)) <= announced


def test_a_size_that_deflate_cannot_reach_is_refused_unread() -> None:
    with pytest.raises(BundleError, match="cannot have"):
        ZipReader.open(io.BytesIO(deflated_zip("a", b"\0" * 1000, 4_000_000_000)), Limits())


def test_a_bomb_is_refused_before_anything_is_unpacked() -> None:
    data = deflated_zip("a", b"\0" * 10_000_000, 10_000_000)
    with pytest.raises(BundleError, match="it expands from"):
        ZipReader.open(io.BytesIO(data), Limits(allowance=1_000_000))
    assert ZipReader.open(io.BytesIO(data), Limits(allowance=1_000_000, expansion=1200))


def test_an_output_zip_expands_to_no_more_than_the_outputs(files: dict[str, bytes]) -> None:
    bomb = deflated_zip(CSV, b"\0" * 10_000_000, 10_000_000)
    report = verify(MemorySource(files | {"output.zip": bomb}), only=("output-zip",))
    assert any("of 10000000 bytes" in fault for fault in report.faults)


def test_entries_that_overlap_are_refused() -> None:
    data = zip_with("outputs/a", "outputs/b")
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    overlapping = bytearray(data)
    struct.pack_into("<L", overlapping, second + 42, 0)
    with pytest.raises(BundleError, match=r"overlaps|next entry"):
        read_all(bytes(overlapping))


def test_too_many_entries_are_refused_before_they_are_read() -> None:
    data = zip_with(*(str(number) for number in range(20)))
    with pytest.raises(BundleError, match="20 entries"):
        ZipReader.open(io.BytesIO(data), Limits(entries=19))


def test_a_directory_that_announces_too_many_entries_takes_no_memory() -> None:
    end = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 400_000, 400_000, 1 << 60, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    last = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    with pytest.raises(BundleError):
        ZipReader.open(io.BytesIO(end + locator + last), Limits())


def test_a_streamed_zip_is_read() -> None:
    class OneWay(io.RawIOBase):
        def __init__(self) -> None:
            super().__init__()
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.data += data
            return len(data)

    stream = OneWay()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as zipped:  # type: ignore[call-overload]
        zipped.writestr("a", b"content" * 100)
        with zipped.open("b", "w", force_zip64=True) as member:
            member.write(b"more")
    assert read_all(bytes(stream.data)) == {"a": b"content" * 100, "b": b"more"}


def test_a_folder_source_lists_plain_files_only(bundle: Path) -> None:
    (bundle / "outputs/link").symlink_to("regions.csv")
    source = FolderSource(bundle)
    assert "outputs/link" not in source.files
    assert len(source.irregular) == 1


def test_a_report_can_be_written_as_json(sealed: Path) -> None:
    report = verify(sealed)
    checks = json.loads(json.dumps([{"name": check.name, "faults": check.faults} for check in report.checks]))
    assert len(checks) == len(CHECKS)


def test_a_proof_with_too_many_values_is_refused_before_it_is_parsed(sealed, tmp_path, monkeypatch):
    bundle = tmp_path / sealed.name
    shutil.copytree(sealed, bundle)
    (bundle / "metadata/inclusion.json").write_bytes(b"[" + b"[]," * 100_000 + b"[]]")
    monkeypatch.setattr(documents, "MAX_VALUES", 100_000)  # the limit itself would take 300 MB to exceed
    (check,) = verify(bundle, only=["inclusion"]).checks
    assert check.faults == ("metadata/inclusion.json: it may have more than 100000 values",)


@pytest.mark.parametrize("before", [0, 1, 1999, 2000, 2001, 3999])
def test_an_integer_that_python_refuses_is_found_wherever_it_is(before):
    assert _has_constant_or_long_integer(b" " * before + b"1" * 4000 + b" ")
    assert _has_constant_or_long_integer(b" " * before + b"[NaN]")
    assert not _has_constant_or_long_integer(b" " * before + b"1" * 1999 + b" ")
