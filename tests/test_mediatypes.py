"""Media types by file extension."""

from __future__ import annotations

import mimetypes

import pytest

from prefect_executions.mediatypes import SCIENTIFIC, already_compressed, media_type


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("table.csv", "text/csv"),
        ("outputs/deep/PICTURE.PNG", "image/png"),
        ("model.parquet", "application/vnd.apache.parquet"),
        ("sky.fits", "application/fits"),
        ("stdout.log", "text/plain"),
        ("data.tar.gz", "application/gzip"),
        ("no ending", "application/octet-stream"),
        (".hidden", "application/octet-stream"),
        ("data:text/html,x.csv", "text/csv"),
        ("strange.xyzzy", "application/octet-stream"),
    ],
)
def test_the_extension_gives_the_media_type(name: str, expected: str) -> None:
    assert media_type(name) == expected


def test_types_that_differ_between_python_versions_stay_as_sealed() -> None:
    assert media_type("plot.js") == "application/javascript"  # text/javascript from Python 3.12 on


def test_the_table_of_the_system_is_not_used() -> None:
    mimetypes.add_type("application/x-only-here", ".onlyhere")
    assert media_type("a.onlyhere") == "application/octet-stream"


def test_every_entry_of_the_table_is_a_lower_case_extension_and_a_media_type() -> None:
    for suffix, media in SCIENTIFIC.items():
        assert suffix == suffix.lower()
        assert suffix.startswith(".")
        family, _, name = media.partition("/")
        assert family in {"application", "audio", "chemical", "image", "text", "video"}
        assert name


@pytest.mark.parametrize("name", ["a.png", "a.gz", "a.zip", "a.mp4", "a.npz", "a.docx", "a.jpeg"])
def test_compressed_formats_are_recognised(name: str) -> None:
    assert already_compressed(media_type(name))


@pytest.mark.parametrize("name", ["a.csv", "a.npy", "a.fits", "a.log", "a"])
def test_plain_formats_are_worth_compressing(name: str) -> None:
    assert not already_compressed(media_type(name))
