"""The file names of format 1, and valid output names."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_executions.bundles import layout
from prefect_executions.bundles.layout import BundlePaths, check_execution_id, check_output_name, output_path
from prefect_executions.errors import NameRefusedError


@pytest.fixture
def bundle(tmp_path: Path) -> BundlePaths:
    (tmp_path / "bundle" / "outputs").mkdir(parents=True)
    return BundlePaths(tmp_path / "bundle")


def test_the_format_has_exactly_these_names() -> None:
    assert {
        "auth/jwt.json",
        "metadata/method.json",
        "metadata/request.json",
        "metadata/infrastructure.json",
        "metadata/instance.json",
        "metadata/jobStatus.json",
        "metadata/metrics.json",
        "metadata/verdict.json",
        "metadata/attestation.dsse.json",
        "metadata/provo.xml",
        "output.zip",
        "ro-crate-metadata.json",
        "manifest-sha256.txt",
    } == layout.FIXED
    assert {"metadata/inclusion.json", "metadata/annotations.json", "manifest-sha256.txt.sig"} == layout.ADDED
    assert set(layout.FOLDERS) == {"auth", "metadata", "inputs", "code", "outputs"}


@pytest.mark.parametrize("path", ["outputs/a", "inputs/a/b", "code/x.py", "metadata/jobStatus.json", "output.zip"])
def test_the_format_allows(path: str) -> None:
    assert layout.is_bundle_path(path)


@pytest.mark.parametrize(
    "path", ["outputs", "outputs/", "outputs/../x", "a", "metadata/x.json", "auth/token", "inputs//a", "/outputs/a"]
)
def test_the_format_does_not_allow(path: str) -> None:
    assert not layout.is_bundle_path(path)


def test_the_folder_of_an_output_path_is_created(bundle: BundlePaths) -> None:
    path = output_path(bundle, "maps/deep/labels.tif")
    path.write_bytes(b"labels")
    assert path == bundle.outputs / "maps" / "deep" / "labels.tif"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("/etc/passwd", "absolute"),
        ("../outside", "part"),
        ("a/../../b", "part"),
        ("a//b", "part"),
        ("a/", "part"),
        (".", "part"),
        ("a\\b", "backslash"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("a\x7fb", "control"),
        ("a\udcffb", "Unicode"),
        ("stdout.log", "stdout or stderr log"),
        ("stderr.log", "stdout or stderr log"),
        ("STDOUT.log", "stdout or stderr log"),
        ("ä" * 128, "255"),
        ("x" * 256, "255"),
    ],
)
def test_an_invalid_output_name_is_refused_with_the_reason(bundle: BundlePaths, name: str, why: str) -> None:
    with pytest.raises(NameRefusedError, match=why):
        output_path(bundle, name)


@pytest.mark.parametrize("name", ["deep/stdout.log", "ä" * 127, "x" * 255, "a b", "-", "..a", "日本語/ß.csv", "a:b"])
def test_a_strange_but_harmless_name_is_accepted(bundle: BundlePaths, name: str) -> None:
    output_path(bundle, name).write_bytes(b"")


@given(st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_accepted_name_stays_below_the_outputs(bundle: BundlePaths, name: str) -> None:
    try:
        check_output_name(name)
    except NameRefusedError:
        return
    assert (bundle.outputs / name).resolve().is_relative_to(bundle.outputs.resolve())
    name.encode()


def test_a_link_that_leads_out_of_the_outputs_is_refused(bundle: BundlePaths, tmp_path: Path) -> None:
    (bundle.outputs / "elsewhere").symlink_to(tmp_path)
    (bundle.outputs / "file").symlink_to(tmp_path / "file")
    for name in ("elsewhere/a", "file"):
        with pytest.raises(NameRefusedError, match="link"):
            output_path(bundle, name)


def test_a_name_below_a_file_or_of_a_folder_is_refused(bundle: BundlePaths) -> None:
    output_path(bundle, "folder/file").write_bytes(b"")
    for name in ("folder/file/below", "folder"):
        with pytest.raises(NameRefusedError, match=r"exists as a file|a folder has this name"):
            output_path(bundle, name)


def test_a_path_that_is_too_long_for_the_system_is_refused(bundle: BundlePaths) -> None:
    with pytest.raises(NameRefusedError, match="too long"):
        output_path(bundle, "/".join(["x" * 200] * 40))


@pytest.mark.parametrize("name", ["", ".", "..", "../x", ".open", "a/b", "a\0", "x" * 200, "ä"])
def test_an_id_that_is_not_a_valid_folder_name_is_refused(name: str) -> None:
    with pytest.raises(NameRefusedError):
        check_execution_id(name)


def test_the_id_of_a_second_generation_is_a_valid_folder_name() -> None:
    assert check_execution_id("0b1e5a52-6f0c-4f2e-9a41-3d6d5d3f2e10.2")
