"""The zip reader accepts what common programs write, and nothing in which two programs see different files."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from bundle_makers import a_sealed_bundle, contents
from hostile_zips import Member, a_zip, streamed
from prefect_executions.bundles.source import ZipSource
from prefect_executions.bundles.verify import verify
from prefect_executions.bundles.zip_reader import Limits
from prefect_executions.errors import BundleError

# Made of one tree by the programs in their names, to a file or to a pipe: bsdtar of libarchive 3.6.2, also with a tar
# as input; Info-ZIP 3.0; 7-Zip 26.02; and ZipOutputStream of Java 17, with entries for folders.
MADE = sorted(Path(__file__).parent.glob("data/zips/*.zip"))
TREE = {"a.txt": b"hello\n", "outputs/empty": b"", "outputs/ä/é.txt": b"hi\n", "zero.bin": bytes(3000)}


def read(data: bytes) -> dict[str, bytes]:
    source = ZipSource(io.BytesIO(data), Limits())
    return {path: b"".join(source.blocks(path)) for path in source.files}


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.stem)
def test_a_zip_by_a_common_program_is_read(path: Path) -> None:
    assert read(path.read_bytes()) == TREE


def _run(*command: str | Path, folder: Path, to: Path | None = None) -> None:
    """Run *command* in *folder*; its standard output is a pipe whose bytes go to *to*."""
    done = subprocess.run([str(word) for word in command], cwd=folder, check=True, capture_output=True)
    if to is not None:
        to.write_bytes(done.stdout)


PROGRAMS: Mapping[str, tuple[str, Callable[[str, Path, str, Path], None]]] = {
    "bsdtar": ("bsdtar", lambda run, folder, top, to: _run(run, "-a", "-cf", to, top, folder=folder)),
    "bsdtar to a pipe": (
        "bsdtar",
        lambda run, folder, top, to: _run(run, "--format", "zip", "-cf", "-", top, folder=folder, to=to),
    ),
    "bsdtar without compression": (
        "bsdtar",
        lambda run, folder, top, to: _run(
            run, "--format", "zip", "--options", "zip:compression=store", "-cf", to, top, folder=folder
        ),
    ),
    "bsdtar with 64-bit sizes": (
        "bsdtar",
        lambda run, folder, top, to: _run(
            run, "--format", "zip", "--options", "zip:zip64", "-cf", to, top, folder=folder
        ),
    ),
    "Info-ZIP": ("zip", lambda run, folder, top, to: _run(run, "-qr", to, top, folder=folder)),
    "Info-ZIP to a pipe": ("zip", lambda run, folder, top, to: _run(run, "-qr", "-", top, folder=folder, to=to)),
    "Info-ZIP with 64-bit sizes": ("zip", lambda run, folder, top, to: _run(run, "-qrfz", to, top, folder=folder)),
    "7-Zip": ("7zz", lambda run, folder, top, to: _run(run, "a", "-bd", to, top, folder=folder)),
    "7-Zip to a pipe": (
        "7zz",
        lambda run, folder, top, to: _run(run, "a", "-bd", "-tzip", "-so", "x", top, folder=folder, to=to),
    ),
    "Python": (sys.executable, lambda run, folder, top, to: _run(run, "-m", "zipfile", "-c", to, top, folder=folder)),
    "git archive": (
        "git",
        lambda run, folder, top, to: (
            _run(run, "init", "-q", folder=folder),
            _run(run, "add", "-f", top, folder=folder),
            _run(run, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x", folder=folder),
            _run(run, "archive", "-o", to, "HEAD", folder=folder),
        )[-1],
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_bundle_that_a_common_program_zips_again_verifies(
    name: str, tmp_path: Path, need_program: Callable[[str], str]
) -> None:
    program, make = PROGRAMS[name]
    path = need_program(program)
    folder = a_sealed_bundle(tmp_path / "tree").folder
    for hidden in folder.parent.glob(".*"):
        shutil.rmtree(hidden)
    make(path, folder.parent, folder.name, tmp_path / "x.zip")
    assert verify(tmp_path / "x.zip").faults == ()
    assert read((tmp_path / "x.zip").read_bytes()) == contents(folder)


MEMBERS = [Member(b"top/a", b"hello"), Member("top/ä".encode(), b"x" * 5000, method=8), Member(b"top/empty", b"")]
PLAIN = {"a": b"hello", "ä": b"x" * 5000, "empty": b""}


@pytest.mark.parametrize("size_known", [False, True])
@pytest.mark.parametrize("signature", [b"", b"PK\7\x08"])
def test_sizes_may_follow_the_data(signature: bytes, *, size_known: bool) -> None:
    members = [streamed(member, size_known=size_known, signature=signature) for member in MEMBERS]
    assert read(a_zip(members)) == PLAIN


def test_64_bit_sizes_may_follow_the_data_if_the_local_header_announces_them() -> None:
    """As Info-ZIP writes a file of unknown size."""
    full, zeros = 0xFFFFFFFF, b"\1\0\x10\0" + bytes(16)
    members = [replace(streamed(one, wide=True), local=(0, full, full), local_extra=zeros) for one in MEMBERS]
    assert read(a_zip(members)) == PLAIN


def test_a_name_may_be_utf8_without_the_flag() -> None:
    assert read(a_zip([replace(member, flags=0) for member in MEMBERS])) == PLAIN


@pytest.mark.parametrize(
    "comment", [b"4b825dc642cb6eb9a060e54bf8d69288fbee4904", b"x" * 65535, "ä\n".encode(), bytes(9)]
)
def test_a_zip_may_have_a_comment(comment: bytes) -> None:
    assert read(a_zip(MEMBERS, comment=comment)) == PLAIN


def padded(data: bytes, to: int) -> bytes:
    return data + bytes(-len(data) % to)


@pytest.mark.parametrize("block", [512, 10240])
@pytest.mark.parametrize("comment", [b"", b"x"])
def test_zeros_may_fill_the_last_block(comment: bytes, block: int) -> None:
    assert read(padded(a_zip(MEMBERS, comment=comment), block)) == PLAIN
    with pytest.raises(BundleError, match="data after its end"):
        read(padded(a_zip(MEMBERS, comment=comment), block) + bytes(1))


def test_a_large_zip_that_python_streams_is_read() -> None:
    """With zip64 in both headers."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    out = Pipe()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in PLAIN.items():
            with zipped.open(f"top/{name}", "w", force_zip64=True) as file:
                file.write(data)
    assert read(out.getvalue()) == PLAIN


@pytest.mark.parametrize(
    "data",
    [
        a_zip([replace(MEMBERS[0], flags=0x801)]),
        a_zip(MEMBERS, before=b"#!/bin/sh\n"),
        a_zip(MEMBERS) + b"x",
        a_zip([Member("ä".encode("cp437"), flags=0)]),
        b"\x1f\x8b\x08 a tar",
    ],
)
def test_a_refused_form_is_answered_with_what_is_accepted(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"accepted are a zip .* and the unpacked folder"):
        read(data)


def test_a_zip_that_leads_out_is_not_recommended_for_unpacking() -> None:
    with pytest.raises(BundleError) as refused:
        read(a_zip([Member(b"../evil")]))
    assert "unpacked" not in str(refused.value)


@pytest.mark.parametrize(
    "path", [*MADE[:2], *(pytest.param(path, marks=pytest.mark.long) for path in MADE[2:])], ids=lambda path: path.stem
)
def test_a_changed_byte_is_refused_or_has_no_effect(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    for place in range(min(len(whole), 2000)):
        for bit in (0, 3, 7):
            whole[place] ^= 1 << bit
            with suppress(BundleError):
                assert read(bytes(whole)) == TREE, place
            whole[place] ^= 1 << bit
