"""Gathering, sanitizing and sealing, also after a kill at any step."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle_makers import a_sealed_bundle, an_open_bundle, contents, finish
from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.gather import Gathered, gather, load_gathered
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.seal import seal
from prefect_executions.bundles.verify import verify
from prefect_executions.bundles.zip_writer import ZipWriter
from prefect_executions.documents import FORMAT
from prefect_executions.errors import BundleError, SealedError
from prefect_executions.executions.record import BundleFile
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.lifecycle.status import Status
from records import (
    EXECUTION_ID,
    OUTPUTS,
    a_cancelled_record,
    a_failed_record,
    a_job_status,
    a_never_started_record,
    a_record,
    a_verdict,
)

FORK = multiprocessing.get_context("fork")
NOBODY = 65534


@pytest.fixture
def bundle(tmp_path: Path) -> OpenBundle:
    return an_open_bundle(tmp_path / "workbench")


def put(bundle: OpenBundle, name: str, data: bytes) -> Path:
    path = bundle.folder / "outputs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def zipped(bundle: OpenBundle) -> zipfile.ZipFile:
    return zipfile.ZipFile(bundle.paths.output_zip)


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)  # noqa: S311 - any bytes that do not shrink


def checked_by_sha256sum(folder: Path, need_program: Callable[[str], str]) -> None:
    result = subprocess.run(
        [need_program("sha256sum"), "--check", "--strict", "--quiet", "manifest-sha256.txt"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# --- gathering


def test_every_output_has_its_digest_size_and_media_type(bundle: OpenBundle) -> None:
    outputs = {file.path: (file.sha256, file.size, file.media_type) for file in gather(bundle).outputs}
    assert outputs == {
        path: (sha256(data).hexdigest(), len(data), media)
        for (path, data), media in zip(
            sorted(OUTPUTS.items()), ("image/tiff", "text/csv", "text/plain", "text/plain"), strict=True
        )
    }


def test_the_zip_contains_the_outputs_and_its_digest_is_recorded(bundle: OpenBundle) -> None:
    put(bundle, "big.bin", noise(3_000_000))
    put(bundle, "big.csv", b"1,2,3\n" * 700_000)
    gathered = gather(bundle)
    data = bundle.paths.output_zip.read_bytes()
    assert gathered.output_zip == BundleFile("output.zip", sha256(data).hexdigest(), len(data))
    with zipped(bundle) as output_zip:
        assert output_zip.testzip() is None
        assert {name: output_zip.read(name) for name in output_zip.namelist()} == {
            f"outputs/{path}": content for path, content in contents(bundle.folder / "outputs").items()
        }
        assert output_zip.namelist() == sorted(output_zip.namelist())


def test_other_zip_readers_accept_the_zip(
    bundle: OpenBundle, tmp_path: Path, need_program: Callable[[str], str]
) -> None:
    put(bundle, "big.bin", noise(3_000_000))
    put(bundle, "größe/日本.csv", b"1,2,3\n" * 700_000)
    (bundle.folder / "outputs/empty").mkdir()
    gather(bundle)
    archive = str(bundle.paths.output_zip)
    subprocess.run([need_program("unzip"), "-tq", archive], check=True, capture_output=True)
    listing = subprocess.run([need_program("zipinfo"), archive], check=True, capture_output=True, text=True).stdout
    assert all("80-Jan-01 00:00" in line for line in listing.splitlines()[2:-1])
    subprocess.run([need_program("unzip"), "-q", archive, "-d", tmp_path / "out"], check=True)
    assert contents(tmp_path / "out/outputs") == contents(bundle.folder / "outputs")
    assert (tmp_path / "out/outputs/empty").is_dir()


@pytest.mark.parametrize(
    ("name", "data", "method"),
    [
        ("table.csv", b"1,2,3\n" * 10_000, zipfile.ZIP_DEFLATED),
        ("long.csv", b"1,2,3\n" * 500_000, zipfile.ZIP_DEFLATED),
        ("small.csv", b"1,2,3\n" * 100, zipfile.ZIP_STORED),
        ("picture.png", b"1,2,3\n" * 10_000, zipfile.ZIP_STORED),
        ("noise.dat", noise(100_000), zipfile.ZIP_STORED),
        ("noise.fits", b"SIMPLE  = T" * 500 + noise(3_000_000), zipfile.ZIP_STORED),
    ],
)
def test_only_files_that_shrink_are_deflated(bundle: OpenBundle, name: str, data: bytes, method: int) -> None:
    put(bundle, name, data)
    gather(bundle)
    with zipped(bundle) as output_zip:
        assert output_zip.getinfo(f"outputs/{name}").compress_type == method
        assert output_zip.read(f"outputs/{name}") == data


def test_equal_outputs_give_equal_zips_whatever_their_times_and_modes(tmp_path: Path) -> None:
    names = ["b", "a/c", "a.csv", "ä", "Z"]
    zips = []
    for order, age, mode in ((names, 0, 0o644), (names[::-1], 10**9, 0o755)):
        bundle = OpenBundle.create(tmp_path / str(age), EXECUTION_ID)
        for name in order:
            path = put(bundle, name, name.encode() * 50_000)
            path.chmod(mode)
            os.utime(path, (age, age))
        gather(bundle)
        zips.append(bundle.paths.output_zip.read_bytes())
    assert zips[0] == zips[1]


def test_an_empty_folder_is_in_the_zip(bundle: OpenBundle) -> None:
    (bundle.folder / "outputs/deep/empty").mkdir(parents=True)
    gather(bundle)
    with zipped(bundle) as output_zip:
        assert output_zip.getinfo("outputs/deep/empty/").is_dir()


def test_without_outputs_the_zip_has_the_empty_folder(tmp_path: Path) -> None:
    bundle = OpenBundle.create(tmp_path, EXECUTION_ID)
    assert gather(bundle).outputs == ()
    with zipped(bundle) as output_zip:
        assert output_zip.namelist() == ["outputs/"]


def test_gathering_again_reads_nothing_and_returns_the_saved_result(bundle: OpenBundle) -> None:
    first = gather(bundle)
    before = bundle.paths.output_zip.stat()
    assert gather(bundle) == first
    assert load_gathered(bundle) == first
    assert os.path.samestat(bundle.paths.output_zip.stat(), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda outputs: (outputs / "regions.csv").write_bytes(b"other"),
        lambda outputs: os.truncate(outputs / "stdout.log", 3),
        lambda outputs: (outputs / "new.csv").write_bytes(b""),
        lambda outputs: (outputs / "regions.csv").unlink(),
        lambda outputs: (outputs / "empty").mkdir(),
        lambda outputs: (outputs.parent / "output.zip").unlink(),
        lambda outputs: (outputs.parent / "output.zip").write_bytes(b"no zip"),
        lambda outputs: (outputs.parent / "inputs/picture.png").write_bytes(b"other"),
    ],
)
def test_after_a_change_everything_is_gathered_again(bundle: OpenBundle, change: Callable[[Path], object]) -> None:
    gather(bundle)
    change(bundle.folder / "outputs")
    gathered = gather(bundle)
    assert {file.path for file in gathered.outputs} == {
        f"outputs/{path}" for path in contents(bundle.folder / "outputs")
    }
    for file in (*gathered.files, *gathered.inputs_and_code, gathered.output_zip):
        assert sha256((bundle.folder / file.path).read_bytes()).hexdigest() == file.sha256


def test_aborted_gathering_leaves_nothing_and_can_be_repeated(bundle: OpenBundle) -> None:
    put(bundle, "big.bin", noise(5_000_000))
    answers = iter([False] * 4 + [True] * 100)
    with pytest.raises(BundleError, match="aborted"):
        gather(bundle, stop=lambda: next(answers))
    assert not bundle.paths.output_zip.exists()
    assert not list(bundle.scratch.glob("*.new"))
    assert len(gather(bundle).files) == len(OUTPUTS) + 1


def test_a_full_disk_while_gathering_leaves_the_outputs_and_no_partial_zip(bundle: OpenBundle) -> None:
    put(bundle, "big.bin", noise(5_000_000))
    before = contents(bundle.folder)

    def gather_on_a_full_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            gather(bundle)
        except BundleError as error:
            os._exit(0 if "free some space" in str(error) else 2)
        os._exit(1)

    process = FORK.Process(target=gather_on_a_full_disk)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert contents(bundle.folder) == before
    gather(bundle)


def test_a_staged_input_that_the_method_changed_is_noted(bundle: OpenBundle) -> None:
    (bundle.folder / "inputs/picture.png").write_bytes(b"another picture")
    assert any("inputs/picture.png was changed" in note for note in gather(bundle).notes)


# --- links, special files and strange names


def test_a_link_to_another_output_becomes_that_output(bundle: OpenBundle) -> None:
    (bundle.folder / "outputs/latest.csv").symlink_to("regions.csv")
    gathered = gather(bundle)
    by_path = {file.path: file.sha256 for file in gathered.files}
    assert by_path["outputs/latest.csv"] == by_path["outputs/regions.csv"]
    assert gathered.notes == ()
    assert not (bundle.folder / "outputs/latest.csv").is_symlink()


@pytest.mark.parametrize("target", ["/etc/passwd", "../metadata/request.json", "nowhere", "circle", "maps", "/etc"])
def test_any_other_link_is_noted_and_not_followed(bundle: OpenBundle, target: str) -> None:
    (bundle.folder / "outputs/circle").symlink_to(target)
    gathered = gather(bundle)
    assert {file.path for file in gathered.files} == set(OUTPUTS)
    (note,) = gathered.notes
    assert "outputs/circle" in note
    assert target in note
    assert verify(finish(bundle).folder).passed


def test_pipes_and_sockets_are_noted_and_left_out(bundle: OpenBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(bundle.folder / "outputs/pipe")
    monkeypatch.chdir(bundle.folder / "outputs")  # a socket's path has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        gathered = gather(bundle)
    assert len(gathered.notes) == 2
    assert {file.path for file in gathered.files} == set(OUTPUTS)
    assert gather(bundle) == gathered
    assert verify(finish(bundle).folder).passed


def test_a_name_that_is_not_utf8_is_escaped_and_noted(bundle: OpenBundle) -> None:
    outputs = os.fsencode(bundle.folder / "outputs")
    os.mkdir(outputs + b"/f\xff")  # noqa: PTH102 - a Path holds text
    for name in (b"/f\xff/\xe4.csv", b"/\xe4.csv", b"/%E4.csv"):
        with open(outputs + name, "wb") as stream:  # noqa: PTH123 - a Path holds text
            stream.write(name)
    gathered = gather(bundle)
    assert {file.path for file in gathered.files} - set(OUTPUTS) == {
        "outputs/f%FF/%E4.csv",
        "outputs/%E4.csv",
        "outputs/%E4.csv.2",
    }
    assert len(gathered.notes) == 3
    assert verify(finish(bundle).folder).passed


def test_notes_remain_when_more_outputs_are_written_later(bundle: OpenBundle) -> None:
    (bundle.folder / "outputs/link").symlink_to("/etc/passwd")
    first = gather(bundle)
    put(bundle, "more", b"")
    assert gather(bundle).notes == first.notes != ()


def test_a_file_outside_of_the_open_folders_is_noted(bundle: OpenBundle) -> None:
    (bundle.folder / "stray.txt").write_bytes(b"")
    assert gather(bundle).notes == ("stray.txt is not part of the bundle format and is not in the manifest",)


@pytest.fixture
def of_nobody() -> Iterator[Path]:
    """A folder that any user can reach and write, because root can read everything."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def as_nobody(work: Callable[[], Gathered]) -> tuple[str, ...]:
    """Do *work* as a user without privileges and return the paths it gathered and the notes it made."""
    ours, theirs = FORK.Pipe(duplex=False)

    def child() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        gathered = work()
        theirs.send((*(file.path for file in gathered.files), *gathered.notes))

    process = FORK.Process(target=child)
    process.start()
    theirs.close()
    try:
        result: tuple[str, ...] = ours.recv()
    finally:
        process.join()
    return result


def test_a_file_without_read_permission_of_its_owner_is_read(of_nobody: Path) -> None:
    def work() -> Gathered:
        bundle = OpenBundle.create(of_nobody / "workbench", EXECUTION_ID)
        put(bundle, "closed", b"data").chmod(0)
        put(bundle, "folder/inside", b"data")
        (bundle.folder / "outputs/folder").chmod(0)
        return gather(bundle)

    assert as_nobody(work) == ("outputs/closed", "outputs/folder/inside")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file that its owner cannot open")
def test_an_unreadable_file_is_noted_and_the_others_are_gathered(of_nobody: Path) -> None:
    bundle = OpenBundle.create(of_nobody / "workbench", EXECUTION_ID)
    put(bundle, "readable", b"data")
    put(bundle, "secret", b"data").chmod(0o600)
    for path in (of_nobody, *of_nobody.rglob("*")):
        if path.name != "secret":
            os.chown(path, NOBODY, NOBODY)
    path, note = as_nobody(lambda: gather(bundle))
    assert path == "outputs/readable"
    assert note.startswith("outputs/secret cannot be read and is left out: ")


# --- sealing


@pytest.mark.parametrize(
    "record",
    [a_record(), a_failed_record(), a_cancelled_record(), a_never_started_record()],
    ids=["completed", "failed", "cancelled", "never started"],
)
def test_a_bundle_of_any_final_status_is_sealed_and_passes_sha256sum(
    tmp_path: Path, record: object, need_program: Callable[[str], str]
) -> None:
    bundle = a_sealed_bundle(tmp_path, record)  # type: ignore[arg-type]
    assert bundle.sealed
    checked_by_sha256sum(bundle.folder, need_program)
    report = verify(bundle.folder)
    assert report.faults == ()


def test_the_manifest_lists_every_file_but_itself(tmp_path: Path) -> None:
    bundle = a_sealed_bundle(tmp_path)
    files = contents(bundle.folder)
    listed = manifest.parse(files.pop("manifest-sha256.txt"))
    assert listed == {path: sha256(data).hexdigest() for path, data in files.items()}


def test_sealing_again_changes_nothing(tmp_path: Path) -> None:
    bundle = a_sealed_bundle(tmp_path)
    before = contents(bundle.folder)
    first, second = seal(bundle), seal(bundle)
    assert first == second
    assert first.sha256 == sha256(before["manifest-sha256.txt"]).hexdigest()
    gather(bundle)
    assert contents(bundle.folder) == before


def test_equal_documents_are_sealed_to_equal_bytes_anywhere_at_any_time(tmp_path: Path) -> None:
    first = contents(a_sealed_bundle(tmp_path / "here").folder)
    time.sleep(0.01)
    assert contents(a_sealed_bundle(tmp_path / "there").folder) == first


def test_the_verdict_on_a_replay_is_sealed_with_the_rest(bundle: OpenBundle) -> None:
    gathered = gather(bundle)
    bundle.write_document(bundle.read(JobStatus).model_copy(update={"outputs": gathered.outputs}))
    bundle.write_document(a_verdict())
    sealed = seal(bundle)
    assert a_verdict().file_name in manifest.parse(sealed.manifest)
    assert verify(bundle.folder).faults == ()


def test_a_bundle_that_an_older_version_began_is_sealed_in_the_current_format(bundle: OpenBundle) -> None:
    gathered = gather(bundle)
    bundle.write_document(bundle.read(JobStatus).model_copy(update={"outputs": gathered.outputs}))
    bundle.write_document(a_verdict())
    names = [kind.file_name for kind in layout.DOCUMENTS]
    current = {name: (bundle.folder / name).read_bytes() for name in names}
    for name in names[::2]:
        bundle.write(name, current[name].replace(b'"format": 2', b'"format": 1', 1))
    assert {bundle.read(kind).format for kind in layout.DOCUMENTS} == {1, FORMAT}

    sealed = seal(bundle)

    assert sealed.record.format == FORMAT
    assert {name: (bundle.folder / name).read_bytes() for name in names} == current
    assert verify(bundle.folder).faults == ()


def test_sealing_does_not_read_the_outputs(bundle: OpenBundle) -> None:
    gathered = gather(bundle)
    bundle.write_document(bundle.read(JobStatus).model_copy(update={"outputs": gathered.outputs}))
    shutil.rmtree(bundle.folder / "outputs")
    seal(bundle)
    assert bundle.sealed


def test_a_bundle_that_is_not_ready_is_not_sealed(tmp_path: Path) -> None:
    bundle = an_open_bundle(tmp_path)
    with pytest.raises(BundleError, match="not gathered"):
        seal(bundle)
    gathered = gather(bundle)
    final = bundle.read(JobStatus).model_copy(update={"outputs": gathered.outputs})
    for wrong, why in (
        (a_job_status(Status.EXECUTING, outputs=gathered.outputs), "is EXECUTING"),
        (final.model_copy(update={"outputs": ()}), "other outputs"),
        (a_job_status(execution_id=EXECUTION_ID + ".2", outputs=gathered.outputs), "belongs to"),
    ):
        bundle.write_document(wrong)
        with pytest.raises(BundleError, match=why):
            seal(bundle)
    assert not bundle.sealed
    bundle.write_document(final)
    seal(bundle)


def test_a_sealed_bundle_whose_scratch_is_gone_is_not_gathered_again(tmp_path: Path) -> None:
    bundle = a_sealed_bundle(tmp_path)
    shutil.rmtree(bundle.scratch)
    with pytest.raises(SealedError):
        gather(bundle)


def test_strange_names_pass_sha256sum_and_every_check(bundle: OpenBundle, need_program: Callable[[str], str]) -> None:
    for name in ("new\nline", "back\\slash", "car\rriage", "\\n", "tab\there", "日本 語", "-rf", "*", "%41", "<&>\"'"):
        put(bundle, name, name.encode())
    finish(bundle)
    checked_by_sha256sum(bundle.folder, need_program)
    assert verify(bundle.folder).faults == ()


PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(st.dictionaries(PATHS, st.binary(max_size=4)))
def test_a_manifest_is_read_back_as_it_was_written(files: dict[str, bytes]) -> None:
    listed = [BundleFile(path, sha256(data).hexdigest(), len(data)) for path, data in files.items()]
    assert manifest.parse(manifest.render(listed)) == {file.path: file.sha256 for file in listed}
    assert manifest.render(reversed(listed)) == manifest.render(listed)


@given(st.binary())
def test_bytes_that_are_not_a_manifest_are_refused_and_never_misread(data: bytes) -> None:
    try:
        listed = manifest.parse(data)
    except BundleError:
        return
    assert manifest.render(BundleFile(path, digest, 0) for path, digest in listed.items()) == data


# --- killed processes


def dies_at(event: int, work: Callable[[], object]) -> bool:
    """Do *work* in a child that kills itself at its *event*-th open, rename, link or removal; True if it did."""

    def child() -> None:
        left = event

        def hook(name: str, _arguments: object) -> None:
            nonlocal left
            if name in {"open", "os.rename", "os.remove", "os.link", "os.chmod", "os.mkdir"}:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()
        os._exit(0)

    process = FORK.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode in {0, -signal.SIGKILL}
    return process.exitcode != 0


def troubled(workbench: Path) -> OpenBundle:
    bundle = an_open_bundle(workbench)
    (bundle.folder / "outputs/inner").symlink_to("regions.csv")
    (bundle.folder / "outputs/outer").symlink_to("/etc/passwd")
    os.mkfifo(bundle.folder / "outputs/pipe")
    put(bundle, "big.csv", b"1,2,3\n" * 400_000)
    return bundle


@pytest.mark.long
def test_a_kill_at_any_step_of_sealing_changes_no_byte_of_the_result(tmp_path: Path) -> None:
    undisturbed = finish(troubled(tmp_path / "undisturbed"))
    expected = contents(undisturbed.folder)
    notes = gather(undisturbed).notes
    event, died = 0, True
    while died:
        event += 1
        bundle = troubled(tmp_path / str(event))
        died = dies_at(event, lambda bundle=bundle: finish(bundle))
        files = contents(bundle.folder)
        assert not [path for path in files if path.endswith(".new")]
        if "manifest-sha256.txt" in files:
            assert files == expected
        else:
            finish(bundle)
        assert contents(bundle.folder) == expected, f"after a death at event {event}"
        assert gather(bundle).notes == notes
        shutil.rmtree(tmp_path / str(event))
    assert event > 40


# --- size


@pytest.mark.long
def test_ten_thousand_small_files_are_sealed_and_verified(tmp_path: Path, need_program: Callable[[str], str]) -> None:
    bundle = an_open_bundle(tmp_path)
    for number in range(10_000):
        path = bundle.folder / f"outputs/{number % 100}/{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"%d\n" % number)
    finish(bundle)
    checked_by_sha256sum(bundle.folder, need_program)
    assert verify(bundle.folder).faults == ()
    with zipped(bundle) as output_zip:
        assert len(output_zip.namelist()) == 10_000 + len(OUTPUTS)


@pytest.mark.long
def test_other_readers_read_a_zip_of_more_than_65535_files(tmp_path: Path) -> None:
    bundle = OpenBundle.create(tmp_path, EXECUTION_ID)
    for number in range(65_540):
        (bundle.folder / f"outputs/{number}").mkdir()
    gather(bundle)
    with zipped(bundle) as output_zip:
        assert len(output_zip.namelist()) == 65_540


BEYOND = (1 << 32) + 12_345


@pytest.mark.long
def test_an_entry_beyond_4_gib_has_64_bit_sizes_and_the_next_entry_is_found(tmp_path: Path) -> None:
    zeros = bytes(1 << 20)

    def blocks() -> Iterator[bytes]:
        yield from (zeros for _ in range(BEYOND >> 20))
        yield bytes(BEYOND % len(zeros))

    with (tmp_path / "large.zip").open("wb") as file:

        def write(data: bytes) -> None:
            if data == zeros:
                file.seek(len(data), os.SEEK_CUR)  # a hole, to save disk space
            else:
                file.write(data)

        writer = ZipWriter(write)
        writer.add_stream("a.gz", blocks(), BEYOND, deflate=False)
        writer.add_bytes("b.csv", b"after it", deflate=False)
        assert writer.close() == file.tell()
    with zipfile.ZipFile(tmp_path / "large.zip") as output_zip:
        assert [entry.file_size for entry in output_zip.infolist()] == [BEYOND, 8]
        assert output_zip.getinfo("b.csv").header_offset > 1 << 32
        assert output_zip.read("b.csv") == b"after it"
        with output_zip.open("a.gz") as large:
            assert large.read(1 << 20) == zeros


@pytest.fixture
def large_folder(need: Callable[[str, str], str]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=need("EXECUTIONS_TEST_ROOM", "a folder with 5 GB of free space")) as folder:
        yield Path(folder)


def test_a_file_beyond_4_gib_has_64_bit_sizes_and_the_next_file_is_found(large_folder: Path) -> None:
    bundle = OpenBundle.create(large_folder, EXECUTION_ID)
    size = BEYOND
    with (bundle.folder / "outputs/a.gz").open("wb") as sparse:
        sparse.truncate(size)
    put(bundle, "b.csv", b"after it")
    gathered = gather(bundle)
    try:
        assert [file.size for file in gathered.files] == [size, 8]
        with zipped(bundle) as output_zip:
            assert output_zip.getinfo("outputs/a.gz").file_size == size
            assert output_zip.getinfo("outputs/b.csv").header_offset > 1 << 32
            assert output_zip.read("outputs/b.csv") == b"after it"
    finally:
        bundle.discard()


PEAK = textwrap.dedent(
    """
    import resource, sys
    from pathlib import Path
    from prefect_executions.bundles.gather import gather
    from prefect_executions.bundles.open_bundle import OpenBundle

    gather(OpenBundle.load(Path(sys.argv[1]), sys.argv[2]))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
)


def peak_memory(workbench: Path, megabytes: int) -> int:
    """Return the peak memory, in MiB, of a process that gathers a file of *megabytes*."""
    bundle = OpenBundle.create(workbench, EXECUTION_ID)
    with (bundle.folder / "outputs/data.gz").open("wb") as sparse:
        sparse.truncate(megabytes << 20)
    command = [sys.executable, "-c", PEAK, str(workbench), bundle.id]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    bundle.discard()
    return int(result.stdout) // 1024


@pytest.mark.long
def test_memory_does_not_grow_with_a_file(tmp_path: Path) -> None:
    assert peak_memory(tmp_path / "large", 1000) - peak_memory(tmp_path / "small", 10) < 20
