"""The archive: its layout, the race for the seal, and verified reading."""

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


OUTPUTS = {"outputs/a.txt": b"a", "outputs/deep/b.bin": os.urandom(1_200_000)}  # too large to be sent with the seal


def bundle(folder: Path, words: bytes = b"{}") -> Content:
    files = {"metadata/method.json": words, "auth/jwt.json": b"{}", "code/method %20 é\\\n.py": b"print()"}
    made = content(folder, files, {"output.zip": zipped(OUTPUTS)})
    for path, body in OUTPUTS.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(body)
    return made


def keep(archive: Archive, made: Content) -> None:
    for file in made.data:
        archive.put_data(ID, made.folder / file.path, file.sha256)


def names(archive: Archive) -> set[str]:
    return {found.key.removeprefix(FOLDER) for found in archive.store.list("executions/")}


def test_before_the_seal_only_the_opening_record_is_readable(archive: Archive, tmp_path: Path) -> None:
    assert archive.opening(ID) is None
    archive.put_opening(ID, b"opened")
    keep(archive, bundle(tmp_path / "bundle"))
    assert archive.opening(ID) == b"opened"
    archive.put_opening(ID, b"")  # what a power cut in the first moment leaves
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


def test_a_downloaded_bundle_equals_the_archived_bundle(archive: Archive, tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle")
    keep(archive, made)
    archive.seal(ID, made)
    assert archive.download(ID, tmp_path / "back").execution_id == ID
    downloaded = {
        path.relative_to(tmp_path / "back").as_posix() for path in (tmp_path / "back").rglob("*") if path.is_file()
    }
    assert downloaded == {file.path for file in (*made.files, *made.data)}
    for path in downloaded:
        assert (tmp_path / "back" / path).read_bytes() == (made.folder / path).read_bytes()


def test_data_already_stored_is_not_sent_again(archive: Archive, tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle")
    [zip_file] = made.data
    assert archive.put_data(ID, made.folder / "output.zip", zip_file.sha256)
    assert not archive.put_data(ID, made.folder / "output.zip", zip_file.sha256)
    archive.store.put(f"{FOLDER}data/{zip_file.sha256}", b"half")
    assert archive.put_data(ID, made.folder / "output.zip", zip_file.sha256)


def test_sealing_twice_changes_nothing(archive: Archive, tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle")
    keep(archive, made)
    first = archive.seal(ID, made)
    before = names(archive)
    assert archive.seal(ID, made) == first
    assert names(archive) == before


def test_the_loser_of_the_seal_deletes_its_objects(archive: Archive, tmp_path: Path) -> None:
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


def test_a_race_of_sealers_leaves_one_bundle_and_no_other_objects(archive: Archive, tmp_path: Path) -> None:
    made = [bundle(tmp_path / str(number), b'{"sealer": %d}' % number) for number in range(6)]
    barrier = threading.Barrier(len(made))
    archive.put_opening(ID, b"opened")

    def seal(content: Content) -> bool:
        barrier.wait()
        keep(archive, content)
        return archive.seal(ID, content).ours

    with ThreadPoolExecutor(len(made)) as pool:
        ours = list(pool.map(seal, made))
    assert ours.count(True) == 1
    assert archive.read(ID, "metadata/method.json") == b'{"sealer": %d}' % ours.index(True)
    archive.download(ID, tmp_path / "back")
    winner = archive.bundle(ID).seal
    assert {name for name in names(archive) if not winner.names(name)} == {"seal.json", "opening.json"}


def test_a_different_attestation_makes_different_content(archive: Archive, tmp_path: Path) -> None:
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


def test_sealing_without_stored_data_is_refused(archive: Archive, tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle")
    with pytest.raises(ArchiveError, match=r"output\.zip\) is missing"):
        archive.seal(ID, made)
    archive.store.put(f"{FOLDER}data/{made.data[0].sha256}", b"short")
    with pytest.raises(ArchiveError, match="has 5 bytes"):
        archive.seal(ID, made)
    assert archive.seal_of(ID) is None


def test_small_data_is_sent_with_the_seal_and_deleted_with_a_loser(archive: Archive, tmp_path: Path) -> None:
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


def test_small_data_that_changed_after_the_manifest_is_not_archived(tmp_path: Path) -> None:
    archive = open_archive(str(tmp_path / "archive"))
    made = content(tmp_path / "bundle", {"metadata/method.json": b"{}"}, {"output.zip": b"zip"})
    (made.folder / "output.zip").write_bytes(b"zap")
    with pytest.raises(BundleError, match=r"output\.zip has changed"):
        archive.seal(ID, made)
    assert archive.seal_of(ID) is None


def test_the_seal_names_the_files_that_the_archive_level_leaves_out(archive: Archive, tmp_path: Path) -> None:
    made = content(
        tmp_path / "bundle", {"metadata/method.json": b"{}"}, absent={"output.zip": b"zip", "outputs/a": b"a"}
    )
    archive.seal(ID, made)
    assert archive.bundle(ID).seal.absent == ("output.zip", "outputs/a")
    with pytest.raises(NotFoundError, match="left it out"):
        archive.read(ID, "output.zip")
    archive.download(ID, tmp_path / "back")
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == [MANIFEST, "metadata"]


def test_remove_deletes_all_objects_of_an_execution(archive: Archive, tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle")
    archive.put_opening(ID, b"opened")
    keep(archive, made)
    archive.seal(ID, made)
    archive.remove(ID)
    assert names(archive) == set()
    archive.remove(ID)


def test_a_sweep_deletes_orphans_and_nothing_that_is_pending(archive: Archive, tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle")
    archive.put_opening(ID, b"opened")
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
    # An interrupted removal leaves neither record nor seal, and so does an import in progress.
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
        archive.put_data(ID, tmp_path / "none", "0" * 64)
    assert archive.seal_of(ID) is None


@pytest.fixture
def sealed(tmp_path: Path) -> tuple[Path, Archive]:
    """The folder of one sealed execution in an archive on disk, and the archive."""
    archive = open_archive(str(tmp_path / "archive"))
    made = bundle(tmp_path / "bundle")
    keep(archive, made)
    archive.seal(ID, made)
    return tmp_path / "archive" / FOLDER, archive


def test_a_flipped_bit_in_any_file_is_detected(sealed: tuple[Path, Archive], tmp_path: Path) -> None:
    folder, archive = sealed
    for path in sorted(found for found in folder.rglob("*") if found.is_file() and found.name != "seal.json"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ArchiveError, match=ID):
            archive.download(ID, tmp_path / "back")
        path.write_bytes(whole)
    archive.download(ID, tmp_path / "back")


def test_a_damaged_or_foreign_seal_is_refused(sealed: tuple[Path, Archive]) -> None:
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


def test_missing_and_planted_files_are_refused(sealed: tuple[Path, Archive], tmp_path: Path) -> None:
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
        archive.put_data(ID, folder / file.path, file.sha256)
    archive.seal(ID, made)
    with pytest.raises(ArchiveError, match="leads out"):
        archive.download(ID, tmp_path / "x" / "back")
    assert not (tmp_path / "x" / "escaped").exists()


@pytest.mark.parametrize("wrong", ["", "..", "a/b", "../../etc", "a b", ".hidden"])
def test_an_invalid_id_is_refused(tmp_path: Path, wrong: str) -> None:
    archive = open_archive(str(tmp_path))
    for use in (lambda: archive.opening(wrong), lambda: archive.seal_of(wrong), lambda: archive.remove(wrong)):
        with pytest.raises(NameRefusedError):
            use()


@given(path=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_every_path_maps_to_one_object_name_and_back(path: str) -> None:
    seal = Seal(execution_id=ID, manifest_sha256="0" * 64, objects="sealed-0123456789abcdef/", status=Status.FAILED)
    name = seal.object_of(path)
    assert seal.path_of(name) == path
    assert not any(character in name for character in "\\\n\r\0")


@given(
    size=st.integers(1, 400_000),
    reads=st.lists(st.tuples(st.integers(0, 400_000), st.integers(0, 300_000)), max_size=8),
)
def test_a_file_read_by_ranges_equals_the_file(size: int, reads: list[tuple[int, int]]) -> None:
    from prefect_executions.seekable import open_ranges  # noqa: PLC0415 - one test needs it

    body = (bytes(range(251)) * (size // 251 + 1))[:size]
    with open_ranges(lambda start, end: body[start:end], size) as opened, io.BytesIO(body) as plain:
        for position, length in reads:
            opened.seek(position)
            plain.seek(position)
            assert opened.read(length) == plain.read(length)
        opened.seek(0)
        assert opened.read() == body


def test_a_folder_that_is_no_id_is_not_an_execution(tmp_path: Path) -> None:
    archive = open_archive(str(tmp_path))
    archive.put_opening(ID, b"{}")
    for name in (b"a b", b"-rf", b"\xff\xfe", b"x" * 255):
        os.makedirs(os.path.join(os.fsencode(tmp_path), b"executions", name))  # noqa: PTH103, PTH118 - not UTF-8
    assert set(archive.ids()) - {"x" * 255} == {ID}
    archive.sweep(datetime.now(UTC))


@pytest.mark.long
def test_a_huge_document_is_refused_unread_and_hides_no_other(tmp_path: Path) -> None:
    archive, other = open_archive(str(tmp_path / "archive")), "other"
    made = bundle(tmp_path / "made")
    keep(archive, made)
    archive.seal(ID, made)
    for name in (
        f"executions/{other}/seal.json",
        f"{FOLDER}opening.json",
        f"{FOLDER}imported.json",
        f"removed/{ID}.json",
    ):
        path = tmp_path / "archive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            stream.truncate(1 << 40)
    assert set(archive.seals_of([ID, other])) == {ID}
    with pytest.raises(ArchiveError, match=r"seal.json: it has more than 67108864 bytes"):
        archive.seal_of(other)
    for read in (archive.imported, archive.removed):
        with pytest.raises(ArchiveError, match="it has more than 67108864 bytes"):
            read(ID)
    assert max(map(len, archive.beside(ID).values())) == (64 << 20) + 1


@pytest.mark.parametrize("harm", ["encrypted", "method"])
def test_a_zip_that_cannot_be_read_is_damaged(archive: Archive, tmp_path: Path, harm: str) -> None:
    made = bundle(tmp_path / "made")
    data = bytearray((made.folder / "output.zip").read_bytes())
    at = -1
    while (at := data.find(b"PK\1\2", at + 1)) >= 0:
        data[at + 8] |= harm == "encrypted"
        data[at + 10] = 14 if harm == "method" else data[at + 10]
    keep(archive, made)
    archive.seal(ID, made)
    archive.store.put(FOLDER + f"data/{next(file.sha256 for file in made.data)}", bytes(data))
    with pytest.raises(ArchiveError, match=r"output\.zip of .* is damaged: "):
        archive.open_output(ID, "outputs/a.txt").read()
