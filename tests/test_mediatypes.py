"""Media types by name."""

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
def test_a_name_says_its_media_type(name: str, expected: str) -> None:
    assert media_type(name) == expected


def test_what_pythons_tell_differently_is_told_as_it_was_sealed() -> None:
    assert media_type("plot.js") == "application/javascript"  # text/javascript from Python 3.12 on


def test_the_systems_own_table_is_not_asked() -> None:
    mimetypes.add_type("application/x-only-here", ".onlyhere")
    assert media_type("a.onlyhere") == "application/octet-stream"


def test_every_type_of_the_table_is_a_media_type_of_a_lower_case_ending() -> None:
    for suffix, media in SCIENTIFIC.items():
        assert suffix == suffix.lower()
        assert suffix.startswith(".")
        family, _, name = media.partition("/")
        assert family in {"application", "audio", "chemical", "image", "text", "video"}
        assert name


@pytest.mark.parametrize("name", ["a.png", "a.gz", "a.zip", "a.mp4", "a.npz", "a.docx", "a.jpeg"])
def test_compressed_formats_are_known_as_such(name: str) -> None:
    assert already_compressed(media_type(name))


@pytest.mark.parametrize("name", ["a.csv", "a.npy", "a.fits", "a.log", "a"])
def test_plain_formats_are_worth_compressing(name: str) -> None:
    assert not already_compressed(media_type(name))
