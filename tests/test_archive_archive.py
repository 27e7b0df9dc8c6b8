"""What lies where in the archive, who wins, and what is read back."""

from __future__ import annotations

import io
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archives import SERVERS, content, place_on
from prefect_executions.archive.archive import Archive, Content, open_archive
from prefect_executions.archive.objects import Seal
from prefect_executions.bundles.layout import ATTESTATION, MANIFEST
from prefect_executions.errors import ArchiveError, BundleError, NameRefusedError, NotFoundError
from prefect_executions.executions.record import BundleFile
from prefect_executions.lifecycle.status import Status

ID = "0b1e5a52-6f0e-4c1e-9d55-0a1b2c3d4e5f"
FOLDER = f"executions/{ID}/"
LATER = datetime.now(UTC) + timedelta(days=1)
EARLIER = datetime.now(UTC) - timedelta(days=1)


@pytest.fixture(params=["folder", "memory", *SERVERS])
def archive(request: pytest.FixtureRequest, tmp_path: Path, need: Callable[[str, str], str]) -> Iterator[Archive]:
    if request.param in SERVERS:
        place = place_on(request.param, need)
        yield open_archive(place.url, options=place.options)
        place.close()
    else:
        yield open_archive({"folder": str(tmp_path / "archive"), "memory": f"memory://{tmp_path}"}[request.param])


def zipped(members: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for name, body in members.items():
            file.writestr(name, body)
    return target.getvalue()


OUTPUTS = {"outputs/a.txt": b"a", "outputs/deep/b.bin": os.urandom(1_200_000)}  # too much to go along with the seal


def bundle(folder: Path, words: bytes = b"{}") -> Content:
    files = {"metadata/method.json": words, "auth/jwt.json": b"{}", "code/method %20 é\\\n.py": b"print()"}
    made = content(folder, files, {"output.zip": zipped(OUTPUTS)})
    for path, body in OUTPUTS.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(body)
    return made


def keep(archive: Archive, made: Content) -> None:
    for file in made.data:
        archive.keep_data(ID, made.folder / file.path, file.sha256)


def names(archive: Archive) -> set[str]:
    return {found.key.removeprefix(FOLDER) for found in archive.store.list("executions/")}


def test_an_opening_record_is_all_there_is_before_the_seal(archive: Archive, tmp_path: Path) -> None:
    assert archive.opening(ID) is None
    archive.open_record(ID, b"opened")
    keep(archive, bundle(tmp_path / "bundle"))
    assert archive.opening(ID) == b"opened"
    archive.open_record(ID, b"")  # what a power cut in the first moment leaves
    assert archive.opening(ID) is None
    assert archive.seal_of(ID) is None
    with pytest.raises(NotFoundError, match=ID):
        archive.read(ID, "metadata/method.json")
    assert list(archive.ids()) == [ID]


def test_a_sealed_bundle_is_read_file_by_file(archive: Archive, tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle")
    keep(archive, made)
    sealing = archive.seal(ID, made)
    assert sealing.ours
    assert archive.seal_of(ID) == sealing.seal
    assert sealing.seal.status is Status.COMPLETED
    for file in (*made.files, *made.data):
        assert archive.read(ID, file.path) == (made.folder / file.path).read_bytes()
    with archive.open_file(ID, "metadata/method.json") as opened:
        assert opened.read() == b"{}"
    with pytest.raises(NotFoundError, match=r"none\.json"):
        archive.read(ID, "metadata/none.json")
    read = archive.bundle(ID).read_many(["metadata/method.json", "metadata/metrics.json"])
    assert read == {"metadata/method.json": b"{}"}


def test_one_output_is_read_out_of_the_zip(archive: Archive, tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle")
    keep(archive, made)
    archive.seal(ID, made)
    for member, body in OUTPUTS.items():
        with archive.open_output(ID, member) as opened:
            assert opened.read() == body
    with pytest.raises(NotFoundError, match=r"outputs/none"):
        archive.open_output(ID, "outputs/none")


def test_a_whole_bundle_comes_down_as_it_went_up(archive: Archive, tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle")
    keep(archive, made)
    archive.seal(ID, made)
    assert archive.download(ID, tmp_path / "back").execution_id == ID
    came = {path.relative_to(tmp_path / "back").as_posix() for path in (tmp_path / "back").rglob("*") if path.is_file()}
    assert came == {file.path for file in (*made.files, *made.data)}
    for path in came:
        assert (tmp_path / "back" / path).read_bytes() == (made.folder / path).read_bytes()


def test_data_that_are_there_are_not_sent_again(archive: Archive, tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle")
    [zip_file] = made.data
    assert archive.keep_data(ID, made.folder / "output.zip", zip_file.sha256)
    assert not archive.keep_data(ID, made.folder / "output.zip", zip_file.sha256)
    archive.store.put(f"{FOLDER}data/{zip_file.sha256}", b"half")
    assert archive.keep_data(ID, made.folder / "output.zip", zip_file.sha256)


def test_sealing_twice_changes_nothing(archive: Archive, tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle")
    keep(archive, made)
    first = archive.seal(ID, made)
    before = names(archive)
    assert archive.seal(ID, made) == first
    assert names(archive) == before


def test_the_second_content_loses_and_takes_its_objects_away(archive: Archive, tmp_path: Path) -> None:
    one, two = bundle(tmp_path / "one", b'{"by": "hook"}'), bundle(tmp_path / "two", b'{"by": "settle"}')
    (two.folder / "inputs").mkdir()
    (two.folder / "inputs" / "extra").write_bytes(b"only here")
    two = two._replace(data=[*two.data, BundleFile("inputs/extra", sha256(b"only here").hexdigest(), 9)])
    keep(archive, one)
    keep(archive, two)
    won = archive.seal(ID, one)
    lost = archive.seal(ID, two)
    assert (won.ours, lost.ours) == (True, False)
    assert lost.seal == won.seal
    assert archive.read(ID, "metadata/method.json") == b'{"by": "hook"}'
    assert {name for name in names(archive) if not won.seal.names(name)} == {"seal.json"}


def test_racing_sealers_leave_one_bundle_and_nothing_else(archive: Archive, tmp_path: Path) -> None:
    made = [bundle(tmp_path / str(number), b'{"sealer": %d}' % number) for number in range(6)]
    barrier = threading.Barrier(len(made))
    archive.open_record(ID, b"opened")

    def seal(one: Content) -> bool:
        barrier.wait()
        keep(archive, one)
        return archive.seal(ID, one).ours

    with ThreadPoolExecutor(len(made)) as pool:
        ours = list(pool.map(seal, made))
    assert ours.count(True) == 1
    assert archive.read(ID, "metadata/method.json") == b'{"sealer": %d}' % ours.index(True)
    archive.download(ID, tmp_path / "back")
    seal_there = archive.bundle(ID).seal
    assert {name for name in names(archive) if not seal_there.names(name)} == {"seal.json", "opening.json"}


def test_the_same_manifest_with_another_attestation_is_another_content(archive: Archive, tmp_path: Path) -> None:
    def signed(name: str) -> Content:
        made = bundle(tmp_path / name)
        (made.folder / ATTESTATION).write_bytes(name.encode())
        digest = sha256(name.encode()).hexdigest()
        return made._replace(files=[*made.files, BundleFile(ATTESTATION, digest, len(name))])

    first, second = signed("first"), signed("second")
    keep(archive, first)
    archive.seal(ID, first)
    assert not archive.seal(ID, second).ours
    assert archive.read(ID, ATTESTATION) == b"first"


def test_nothing_is_sealed_without_its_data(archive: Archive, tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle")
    with pytest.raises(ArchiveError, match=r"output\.zip .* is not there"):
        archive.seal(ID, made)
    archive.store.put(f"{FOLDER}data/{made.data[0].sha256}", b"short")
    with pytest.raises(ArchiveError, match="has 5 bytes"):
        archive.seal(ID, made)
    assert archive.seal_of(ID) is None


def test_little_data_goes_along_with_the_seal_and_goes_with_a_loser(archive: Archive, tmp_path: Path) -> None:
    one, two = (
        content(tmp_path / name, {"metadata/method.json": b"{}"}, {"output.zip": name.encode(), "inputs/a": b"same"})
        for name in ("one", "two")
    )
    assert archive.seal(ID, one).ours
    before = names(archive)
    assert not archive.seal(ID, two).ours
    assert names(archive) == before
    archive.download(ID, tmp_path / "back")
    assert (tmp_path / "back" / "output.zip").read_bytes() == b"one"
    assert (tmp_path / "back" / "inputs" / "a").read_bytes() == b"same"


def test_little_data_that_changed_after_the_manifest_is_not_archived(tmp_path: Path) -> None:
    archive = open_archive(str(tmp_path / "archive"))
    made = content(tmp_path / "bundle", {"metadata/method.json": b"{}"}, {"output.zip": b"zip"})
    (made.folder / "output.zip").write_bytes(b"zap")
    with pytest.raises(BundleError, match=r"output\.zip has changed"):
        archive.seal(ID, made)
    assert archive.seal_of(ID) is None


def test_what_the_archive_level_leaves_out_is_named_in_the_seal(archive: Archive, tmp_path: Path) -> None:
    made = content(
        tmp_path / "bundle", {"metadata/method.json": b"{}"}, absent={"output.zip": b"zip", "outputs/a": b"a"}
    )
    archive.seal(ID, made)
    assert archive.bundle(ID).seal.absent == ("output.zip", "outputs/a")
    with pytest.raises(NotFoundError, match="left it out"):
        archive.read(ID, "output.zip")
    archive.download(ID, tmp_path / "back")
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == [MANIFEST, "metadata"]


def test_an_execution_is_removed_whole(archive: Archive, tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle")
    archive.open_record(ID, b"opened")
    keep(archive, made)
    archive.seal(ID, made)
    archive.remove(ID)
    assert names(archive) == set()
    archive.remove(ID)


def test_a_sweep_takes_what_no_seal_names_and_nothing_that_is_pending(archive: Archive, tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle")
    archive.open_record(ID, b"opened")
    keep(archive, made)
    pending = names(archive)
    assert archive.sweep(LATER) == (0, 0)
    assert names(archive) == pending
    archive.seal(ID, made)
    sealed = names(archive)
    archive.store.put_many(
        {f"{FOLDER}sealed-0123456789abcdef/metadata/method.json": b"x", f"{FOLDER}data/{'0' * 64}": b"x"}
    )
    assert archive.sweep(EARLIER) == (0, 2)
    assert names(archive) == sealed
    # What a removal that was broken off leaves: neither record nor seal. It may also be an import under way.
    archive.store.delete(f"{FOLDER}opening.json", f"{FOLDER}seal.json")
    assert archive.sweep(EARLIER) == (0, 0)
    assert archive.sweep(LATER).objects == len(sealed) - 2
    assert names(archive) == set()


def test_a_file_that_changed_after_the_manifest_is_not_archived(tmp_path: Path) -> None:
    archive = open_archive(str(tmp_path / "archive"))
    made = bundle(tmp_path / "bundle")
    keep(archive, made)
    (made.folder / "metadata/method.json").write_bytes(b"[]")
    with pytest.raises(BundleError, match=r"method\.json has changed"):
        archive.seal(ID, made)
    (made.folder / "metadata/method.json").unlink()
    with pytest.raises(BundleError, match=r"method\.json cannot be read"):
        archive.seal(ID, made)
    with pytest.raises(BundleError, match="without its manifest"):
        archive.seal(ID, made._replace(files=[]))
    with pytest.raises(BundleError, match="gone"):
        archive.keep_data(ID, tmp_path / "none", "0" * 64)
    assert archive.seal_of(ID) is None


@pytest.fixture
def sealed(tmp_path: Path) -> tuple[Path, Archive]:
    """The folder of one sealed execution in an archive on disk, and the archive."""
    archive = open_archive(str(tmp_path / "archive"))
    made = bundle(tmp_path / "bundle")
    keep(archive, made)
    archive.seal(ID, made)
    return tmp_path / "archive" / FOLDER, archive


def test_one_flipped_bit_anywhere_is_found(sealed: tuple[Path, Archive], tmp_path: Path) -> None:
    folder, archive = sealed
    for path in sorted(found for found in folder.rglob("*") if found.is_file() and found.name != "seal.json"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ArchiveError, match=ID):
            archive.download(ID, tmp_path / "back")
        path.write_bytes(whole)
    archive.download(ID, tmp_path / "back")


def test_a_damaged_or_strange_seal_is_told(sealed: tuple[Path, Archive]) -> None:
    folder, archive = sealed
    whole = (folder / "seal.json").read_bytes()
    for damaged, words in (
        (b"{", "is damaged"),
        (whole.replace(ID.encode(), b"another"), "is that of another"),
        (whole.replace(b"data/", b"../../"), "is damaged"),
        (whole.replace(b"sealed-", b"../else"), "is damaged"),
    ):
        (folder / "seal.json").write_bytes(damaged)
        with pytest.raises(ArchiveError, match=words):
            archive.bundle(ID)


def test_missing_planted_and_escaping_files_are_told(sealed: tuple[Path, Archive], tmp_path: Path) -> None:
    folder, archive = sealed
    objects = folder / archive.bundle(ID).seal.objects
    (objects / "metadata" / "planted.json").write_bytes(b"{}")
    with pytest.raises(ArchiveError, match=r"should not have metadata/planted\.json"):
        archive.download(ID, tmp_path / "back")
    with pytest.raises(ArchiveError, match="not in the manifest"):
        archive.read(ID, "metadata/planted.json")
    (objects / "metadata" / "planted.json").unlink()
    (objects / "auth" / "jwt.json").unlink()
    with pytest.raises(ArchiveError, match=r"lacks auth/jwt\.json"):
        archive.download(ID, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    archive = open_archive(str(tmp_path / "archive"))
    folder = tmp_path / "a" / "b"
    made = content(folder, {"metadata/method.json": b"{}"}, {"../escaped": b"out"})
    for file in made.data:
        archive.keep_data(ID, folder / file.path, file.sha256)
    archive.seal(ID, made)
    with pytest.raises(ArchiveError, match="leads out"):
        archive.download(ID, tmp_path / "x" / "back")
    assert not (tmp_path / "x" / "escaped").exists()


@pytest.mark.parametrize("wrong", ["", "..", "a/b", "../../etc", "a b", ".hidden"])
def test_what_is_no_id_is_refused(tmp_path: Path, wrong: str) -> None:
    archive = open_archive(str(tmp_path))
    for use in (lambda: archive.opening(wrong), lambda: archive.seal_of(wrong), lambda: archive.remove(wrong)):
        with pytest.raises(NameRefusedError):
            use()


@given(path=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_every_path_of_a_bundle_has_one_object_and_comes_back_from_it(path: str) -> None:
    seal = Seal(execution_id=ID, manifest_sha256="0" * 64, objects="sealed-0123456789abcdef/", status=Status.FAILED)
    name = seal.object_of(path)
    assert seal.path_of(name) == path
    assert not any(character in name for character in "\\\n\r\0")


@given(
    size=st.integers(1, 400_000),
    reads=st.lists(st.tuples(st.integers(0, 400_000), st.integers(0, 300_000)), max_size=8),
)
def test_a_file_over_ranges_reads_as_the_file_itself(size: int, reads: list[tuple[int, int]]) -> None:
    from prefect_executions.seekable import open_ranges  # noqa: PLC0415 - not part of the room's public face

    body = (bytes(range(251)) * (size // 251 + 1))[:size]
    with open_ranges(lambda start, end: body[start:end], size) as opened, io.BytesIO(body) as plain:
        for position, length in reads:
            opened.seek(position)
            plain.seek(position)
            assert opened.read(length) == plain.read(length)
        opened.seek(0)
        assert opened.read() == body
