"""One contract for every store: a folder, memory, SeaweedFS and Ceph."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from errno import EROFS
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archives import SERVERS, Place, place_on, written
from prefect_executions.capture.processes import mark
from prefect_executions.errors import ArchiveError, NameRefusedError, NotAvailableError, NotFoundError, SettingsError
from prefect_executions.objectstore.interface import (
    Durability,
    Store,
    check_key,
    honours_create_if_absent,
)
from prefect_executions.objectstore.local import FolderStore
from prefect_executions.objectstore.open import open_store
from prefect_executions.objectstore.s3 import PART, part_size

Need = Callable[[str, str], str]


class Opened(NamedTuple):
    store: Store
    url: str
    options: dict[str, Any]


@pytest.fixture(params=["folder", "memory", *SERVERS])
def opened(request: pytest.FixtureRequest, tmp_path: Path, need: Need) -> Iterator[Opened]:
    """A store of each kind, empty."""
    place: Place | None = None
    if request.param in SERVERS:
        place = place_on(request.param, need)
        url, options = place.url, place.options
    else:
        url = {"folder": (tmp_path / "archive").as_uri(), "memory": f"memory://{tmp_path}"}[request.param]
        options = {}
    yield Opened(open_store(url, options=options, timeout=timedelta(seconds=60)), url, options)
    if place:
        place.close()


@pytest.fixture
def store(opened: Opened) -> Store:
    return opened.store


@pytest.fixture(params=list(SERVERS))
def s3(request: pytest.FixtureRequest, need: Need) -> Iterator[Place]:
    place = place_on(request.param, need)
    yield place
    place.close()


def test_put_objects_are_read_back(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "some.file"
    file.write_bytes(b"from a file")
    store.put("a/b/c.json", b"{}")
    store.put("a/file", file)
    store.put("a/empty", b"")
    assert (store.get("a/b/c.json"), store.get("a/file"), store.get("a/empty")) == (b"{}", b"from a file", b"")


def test_the_last_put_wins(store: Store) -> None:
    store.put("a", b"first, and longer")
    store.put("a", b"second")
    assert store.get("a") == b"second"


def test_put_many_and_get_many_round_trip(store: Store) -> None:
    objects: dict[str, bytes | Path] = {f"many/{number}/x": b"%d" % number for number in range(40)}
    store.put_many(objects)
    assert store.get_many([*objects, "many/none"]) == objects
    assert store.get_many([*objects, "many/none"], limit=0) == {key: data[:1] for key, data in objects.items()}
    assert store.get_many([*objects], limit=10**6) == objects


def test_a_missing_object_is_not_found(store: Store, tmp_path: Path) -> None:
    assert store.head("nothing/here") is None
    for read in (
        lambda: store.get("nothing/here"),
        lambda: store.get_range("nothing/here", 0, 5),
        lambda: store.download("nothing/here", tmp_path / "to", 5, "0" * 64),
    ):
        with pytest.raises(NotFoundError, match="nothing/here"):
            read()
    assert not list(tmp_path.glob("to*"))


def test_a_head_has_the_size_and_a_time_in_utc(store: Store) -> None:
    store.put("a/b", b"12345")
    head = store.head("a/b")
    assert head is not None
    assert (head.key, head.size) == ("a/b", 5)
    assert head.modified is not None
    assert head.modified.utcoffset() == timedelta(0)


@pytest.mark.parametrize(("start", "end"), [(0, 4), (3, 7), (9, 10), (8, 99), (10, 12), (50, 60), (4, 4)])
def test_a_range_is_cut_like_a_python_slice(store: Store, start: int, end: int) -> None:
    store.put("digits", b"0123456789")
    assert store.get_range("digits", start, end) == b"0123456789"[start:end]


def test_a_listing_has_all_objects_below_a_prefix_and_no_others(store: Store) -> None:
    store.put_many(dict.fromkeys(("one/a", "one/b/c", "one.2/a", "onetwo/a", "other"), b"x"))
    assert sorted(info.key for info in store.list("one/")) == ["one/a", "one/b/c"]
    assert sorted(info.key for info in store.list("")) == ["one.2/a", "one/a", "one/b/c", "onetwo/a", "other"]
    assert list(store.list("none/")) == []
    assert {info.size for info in store.list("")} == {1}


def test_children_are_the_folders_right_below(store: Store) -> None:
    store.put_many({f"root/{name}/deep/object": b"x" for name in ("b", "a", "a.2", "c")})
    store.put("root/no-folder", b"x")
    # Their order is the store's own: Ceph has "a.2" before "a", SeaweedFS after it.
    assert sorted(store.list_children("root/")) == ["a", "a.2", "b", "c"]
    assert list(store.list_children("")) == ["root"]
    assert list(store.list_children("nothing/")) == []


def test_deleting_a_missing_object_is_ignored(store: Store) -> None:
    store.put_many({"a/b": b"x", "a/c": b"y"})
    store.delete("a/b", "a/none")
    store.delete("a/b")
    assert [info.key for info in store.list("")] == ["a/c"]
    store.delete()


def test_keys_with_unusual_characters_are_distinct(store: Store) -> None:
    keys = ["é ü/日本.txt", "a b+c%20d", "a b c", "x&y=z?q#f", "~tilde", "'quote'", '"double"', "[1]*"]
    store.put_many({f"odd/{key}": key.encode() for key in keys})
    assert store.get_many(f"odd/{key}" for key in keys) == {f"odd/{key}": key.encode() for key in keys}
    assert sorted(info.key for info in store.list("odd/")) == sorted(f"odd/{key}" for key in keys)


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\0b", "a/.~b", "a\\b", "a\nb", "\ud800"]
)
def test_a_key_that_some_store_cannot_hold_is_refused(store: Store, key: str) -> None:
    for use in (
        lambda: store.put(key, b""),
        lambda: store.get(key),
        lambda: store.delete(key),
        lambda: store.head(key),
    ):
        with pytest.raises(NameRefusedError):
            use()


def test_only_the_first_of_two_creates(store: Store) -> None:
    assert store.put_if_absent("seal", b"first")
    assert not store.put_if_absent("seal", b"second")
    assert store.get("seal") == b"first"
    assert honours_create_if_absent(store)


def test_put_if_absent_after_other_objects_creates_once(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"z")
    named = {"one/a": b"x", "one/deep/b": b"", "two/c": tmp_path / "file"}
    store.put_many(named, durability=Durability.WITH_SEAL)
    assert store.put_if_absent("one/seal", b"first", after=named)
    assert not store.put_if_absent("one/seal", b"second", after=named)
    assert store.get_many([*named, "one/seal"]) == {
        "one/a": b"x",
        "one/deep/b": b"",
        "two/c": b"z",
        "one/seal": b"first",
    }


def test_sixteen_threads_race_and_one_creates(store: Store) -> None:
    barrier = threading.Barrier(16)

    def create(number: int) -> bool:
        barrier.wait()
        return store.put_if_absent("seal", b"%d" % number)

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(create, range(16)))
    assert won.count(True) == 1
    assert store.get("seal") == b"%d" % won.index(True)


RACER = """
import json, sys, time
from datetime import timedelta
from prefect_executions.objectstore.open import open_store
url, options, start, number = sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
store = open_store(url, options=options, timeout=timedelta(seconds=60))
store.head("warm")
time.sleep(max(0.0, start - time.time()))
print(store.put_if_absent("seal", number.encode()))
"""


@pytest.mark.parametrize("opened", ["folder", *SERVERS], indirect=True)
@pytest.mark.long
def test_processes_race_and_one_creates(opened: Opened) -> None:
    import json  # noqa: PLC0415 - the script above has its own

    start = str(time.time() + 8)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, opened.url, json.dumps(opened.options), start, str(number)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]
    results = [racer.communicate(timeout=120)[0].strip() for racer in racers]
    assert sorted(results) == ["False"] * 5 + ["True"]
    assert opened.store.get("seal") == str(results.index("True")).encode()


def test_a_download_equals_the_source(store: Store, tmp_path: Path) -> None:
    source, to = tmp_path / "source", tmp_path / "deep" / "to"
    digest = written(source, 20 * 1024**2 + 7)
    store.put("big", source)
    store.download("big", to, 20 * 1024**2 + 7, digest)
    assert to.read_bytes() == source.read_bytes()
    assert [path.name for path in to.parent.iterdir()] == ["to"]


def test_a_download_of_an_empty_object_is_an_empty_file(store: Store, tmp_path: Path) -> None:
    store.put("empty", b"")
    store.download("empty", tmp_path / "to", 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    assert (tmp_path / "to").read_bytes() == b""


@pytest.mark.parametrize(("size", "digest"), [(4, "0" * 64), (6, "0" * 64), (5, "0" * 64)])
def test_a_download_with_wrong_size_or_digest_leaves_no_file(
    store: Store, tmp_path: Path, size: int, digest: str
) -> None:
    store.put("a", b"12345")
    (tmp_path / "to").mkdir()
    with pytest.raises(ArchiveError, match="/a"):
        store.download("a", tmp_path / "to" / "file", size, digest)
    assert not list((tmp_path / "to").iterdir())


def test_a_store_works_inside_a_running_event_loop(store: Store) -> None:
    async def flow() -> bytes:
        store.put("from/async", b"yes")
        return await asyncio.to_thread(store.get, "from/async")

    assert asyncio.run(flow()) == b"yes"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("opened", ["folder", *SERVERS], indirect=True)
def test_a_store_works_in_a_forked_process(store: Store) -> None:
    store.put("before", b"1")
    child = os.fork()
    if child == 0:
        ok = False
        try:
            ok = store.get("before") == b"1" and store.put_if_absent("after", b"2")
        finally:
            os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.get("after") == b"2"


def test_a_store_without_presigned_urls_refuses_to_presign(tmp_path: Path) -> None:
    for url in (tmp_path.as_uri(), f"memory://{tmp_path}"):
        with pytest.raises(NotAvailableError, match="only an archive on S3"):
            open_store(url).presign("a", 60)


def test_a_presigned_url_reads_until_it_expires(s3: Place) -> None:
    store = open_store(s3.url, options=s3.options)
    store.put("a b/ü", b"shared")
    with urllib.request.urlopen(store.presign("a b/ü", 60)) as reply:  # noqa: S310 - the test's own server
        assert reply.read() == b"shared"
    short = store.presign("a b/ü", 1)
    time.sleep(2.5)
    with pytest.raises(urllib.error.HTTPError) as refused, urllib.request.urlopen(short):  # noqa: S310 - the same
        pass
    refused.value.close()
    assert refused.value.code == 403


def test_a_file_over_100_mb_is_uploaded_in_parts_and_read_back(s3: Place, tmp_path: Path) -> None:
    store = open_store(s3.url, options=s3.options)
    size = 110 * 10**6 + 13
    digest = written(tmp_path / "big", size)
    store.put("big", tmp_path / "big")
    parts = s3.client.head_object(Bucket=s3.bucket, Key="some/prefix/big", PartNumber=1).get("PartsCount")
    expected = -(-size // PART)
    assert parts in (None, expected)  # SeaweedFS does not tell
    assert s3.client.head_object(Bucket=s3.bucket, Key="some/prefix/big")["ETag"].endswith(f'-{expected}"')
    store.download("big", tmp_path / "back", size, digest)
    assert store.get_range("big", size - 5, size + 5) == (tmp_path / "big").read_bytes()[-5:]
    assert s3.unfinished() == []


def test_stale_uploads_are_aborted_and_recent_uploads_stay(s3: Place) -> None:
    store = open_store(s3.url, options=s3.options)
    for key in ("some/prefix/one", "some/prefix/two", "elsewhere/three"):
        s3.client.create_multipart_upload(Bucket=s3.bucket, Key=key)
    assert store.abort_stale(datetime.now(UTC) - timedelta(hours=1)) == 0
    assert len(s3.unfinished()) == 3
    assert store.abort_stale(datetime.now(UTC) + timedelta(minutes=5)) == 2
    assert len(s3.unfinished()) == 1


def test_a_listing_goes_on_after_a_thousand_objects(s3: Place) -> None:
    store = open_store(s3.url, options=s3.options)
    store.put_many({f"n/{number:04}/x": b"" for number in range(1100)})
    assert len(list(store.list("n/"))) == 1100
    assert sorted(store.list_children("n/")) == [f"{number:04}" for number in range(1100)]


def test_temporary_files_in_a_folder_are_not_objects_and_are_removed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "archive"))
    store.put("a/b", b"x")
    (tmp_path / "archive" / "a" / ".~0123").write_bytes(b"half")
    assert [info.key for info in store.list("")] == ["a/b"]
    assert store.abort_stale(datetime.now(UTC) - timedelta(hours=1)) == 0
    assert store.abort_stale(datetime.now(UTC) + timedelta(hours=1)) == 1
    assert [path.name for path in (tmp_path / "archive" / "a").iterdir()] == ["b"]


def test_temporary_files_of_a_killed_writer_are_removed_at_once(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    store = open_store(str(archive))
    store.put("a/b", b"x")
    killed = "open_store(sys.argv[1]).put_many({'a/c': b'half', 'a/d': Path('/nowhere')})"
    listen = "sys.addaudithook(lambda event, told: event == EVENT and os.kill(os.getpid(), 9))"
    lines = (
        "import os, sys",
        "from pathlib import Path",
        "from prefect_executions.objectstore.open import open_store",
        "from prefect_executions.tracepoints import EVENT",
        listen,
        killed,
    )
    writer = subprocess.run([sys.executable, "-c", "\n".join(lines), str(archive)], check=False)
    assert writer.returncode == -9
    assert len(list(archive.rglob(".~*"))) == 1
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    assert store.abort_stale(long_ago) == 1
    (archive / "a" / f".~{mark()}.0123").write_bytes(b"of a writer that lives")
    assert store.abort_stale(long_ago) == 0


def test_a_folder_that_cannot_be_written_is_an_archive_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = open_store(str(tmp_path / "file"))
    with pytest.raises(ArchiveError, match="file"):
        store.put("a/b", b"x")


def test_a_missing_file_cannot_be_put(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="none cannot be archived: there is no such file"):
        store.put("a/b", tmp_path / "none")
    assert store.head("a/b") is None


def test_deleting_the_last_object_of_a_folder_removes_the_folder(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "archive"))
    store.put("executions/one/seal.json", b"x")
    store.delete("executions/one/seal.json")
    assert list(store.list_children("executions/")) == []
    assert not (tmp_path / "archive" / "executions").exists()


@pytest.mark.parametrize("key", ["wrong", "testkey"])
def test_wrong_credentials_fail_at_once_and_are_not_shown(s3: Place, key: str) -> None:
    hidden = "a-secret-that-nobody-may-read"
    options = s3.options_at(s3.endpoint, key=key, secret=hidden) if key else {}
    store = open_store(s3.url, options=options, timeout=timedelta(seconds=60))
    began = time.monotonic()
    with pytest.raises(ArchiveError, match=r"s3://.*put_object of some/prefix/a") as failed:
        store.put("a", b"x")
    assert time.monotonic() - began < 30
    assert hidden not in _full_traceback(failed.value)


@pytest.mark.parametrize("s3", ["ceph"], indirect=True)  # SeaweedFS makes a bucket when it is first written to
def test_a_missing_bucket_fails_at_once(s3: Place) -> None:
    store = open_store("s3://no-such-bucket-here", options=s3.options)
    with pytest.raises(ArchiveError, match="NoSuchBucket"):
        store.put("a", b"x")
    with pytest.raises(ArchiveError, match="NoSuchBucket"):
        store.get("a")


def test_errors_do_not_contain_the_password_of_a_url() -> None:
    options = {"key": "k", "secret": "s", "endpoint_url": "http://someone:hunter2@127.0.0.1:9"}
    store = open_store("s3://user:pass@bucket/prefix", options=options, timeout=timedelta(seconds=1))
    with pytest.raises(ArchiveError) as failed:
        store.put("a", b"x")
    assert "hunter2" not in _full_traceback(failed.value)
    assert store.url == "s3://bucket/prefix"


def test_an_unsuitable_url_is_refused_with_the_reason() -> None:
    for url, reason in (
        ("s3://", "names no bucket"),
        ("no-such-protocol://a", "cannot be used"),
        ("http://host/path", "create-if-absent"),
    ):
        with pytest.raises(SettingsError, match=reason):
            open_store(url)


def test_the_archive_is_imported_without_the_clients_of_object_stores(tmp_path: Path) -> None:
    script = (
        "import sys; from prefect_executions.objectstore.open import open_store;"
        f"open_store({str(tmp_path)!r}).put('a', b'x');"
        "print([name for name in ('fsspec', 's3fs', 'botocore', 'aiohttp') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@given(size=st.integers(0, 5 * 1024**4))
def test_parts_are_within_what_s3_allows(size: int) -> None:
    part = part_size(size)
    assert PART <= part <= 5 * 1024**3
    assert -(-size // part) <= 10_000


@given(key=st.text(min_size=1))
def test_a_key_is_either_refused_or_stays_below_its_folder(key: str) -> None:
    try:
        check_key(key)
    except NameRefusedError:
        return
    assert Path("/root", key).is_relative_to("/root")
    assert ".." not in Path(key).parts


def _full_traceback(error: BaseException) -> str:
    import traceback  # noqa: PLC0415 - one test's need

    return "".join(traceback.format_exception(error))


def test_a_link_in_a_folder_is_not_an_object(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_bytes(b"secret")
    store = open_store((tmp_path / "archive").as_uri())
    store.put("a/real", b"x")
    (tmp_path / "archive/a/link").symlink_to(tmp_path / "secret")
    (tmp_path / "archive/b").symlink_to(tmp_path / "folder")
    for key in ("a/link", "b/file"):
        assert store.head(key) is None
        assert store.get_many([key]) == {}
        with pytest.raises(NotFoundError, match="it is a link"):
            store.get(key)
        with pytest.raises(NotFoundError, match="it is a link"):
            store.get_range(key, 0, 3)
        with pytest.raises(NotFoundError, match="it is a link"):
            store.download(key, tmp_path / "to", 6, "0" * 64)
    assert {info.key: info.is_link for info in store.list("")} == {"a/link": True, "a/real": False, "b": True}


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: socket.socket(socket.AF_UNIX).bind(str(path))])
def test_a_pipe_a_socket_and_a_folder_are_not_objects(tmp_path, monkeypatch, make):
    store = open_store((tmp_path / "archive").as_uri())
    store.put("a/real", b"x")
    monkeypatch.chdir(tmp_path / "archive/a")  # the path of a socket has at most 108 bytes
    make(Path("other"))
    assert store.head("a/other") is None
    assert store.get_many(["a/other", "a/real"]) == {"a/real": b"x"}
    for read in (store.get, lambda key: store.get_range(key, 0, 3)):
        with pytest.raises(NotFoundError, match="no object"):
            read("a/other")
    links = {info.key: info.is_link for info in store.list("")}
    assert links == {"a/real": False} | ({} if Path("other").is_dir() else {"a/other": True})


def test_an_archive_may_lie_behind_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "archive").symlink_to(tmp_path / "real")
    store = open_store((tmp_path / "archive").as_uri())
    store.put("a/b", b"x")
    assert store.get("a/b") == b"x"


def test_a_read_only_archive_is_named_as_such(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    with pytest.raises(ArchiveError, match=r"The archive file://\S+ is read-only\. Mount"), store._translated("clock"):
        raise OSError(EROFS, "Read-only file system")
