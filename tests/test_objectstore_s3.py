"""What happens to the archive when the network or the server fails, on a real server behind a harmful proxy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from archives import SERVERS, Place, content, place_on, written
from faultproxy import FaultProxy
from prefect_executions.archive.archive import Archive
from prefect_executions.errors import ArchiveError
from prefect_executions.objectstore.interface import Store
from prefect_executions.objectstore.open import open_store
from prefect_executions.objectstore.s3 import PART

ID = "0b1e5a52-6f0e-4c1e-9d55-0a1b2c3d4e5f"
PARTS = 5
SIZE = (PARTS - 1) * PART + 12345


class Harmed(NamedTuple):
    """A store behind the proxy, the same place without it, and the proxy."""

    store: Store
    place: Place
    proxy: FaultProxy

    def impatient(self, seconds: float) -> Store:
        return open_store(
            self.place.url, options=self.place.options_at(self.proxy.url), timeout=timedelta(seconds=seconds)
        )


@pytest.fixture(params=list(SERVERS))
def harmed(request: pytest.FixtureRequest, need: Callable[[str, str], str]) -> Iterator[Harmed]:
    place = place_on(request.param, need)
    with FaultProxy(place.endpoint) as proxy:
        options = place.options_at(proxy.url)
        yield Harmed(open_store(place.url, options=options, timeout=timedelta(seconds=60)), place, proxy)
    place.close()


@pytest.fixture
def big(tmp_path: Path) -> tuple[Path, str]:
    """A file of five parts and its digest."""
    return tmp_path / "big", written(tmp_path / "big", SIZE)


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError"), (429, "TooManyRequests")])
def test_requests_to_a_busy_server_are_retried(harmed: Harmed, status: int, code: str) -> None:
    put = harmed.proxy.harm(method="PUT", status=status, code=code, times=3)
    get = harmed.proxy.harm(method="GET", status=status, code=code, times=3)
    harmed.store.put("a", b"x")
    assert harmed.store.get("a") == b"x"
    assert (put.struck, get.struck) == (3, 3)


def test_some_refusals_do_not_stop_a_large_file(harmed: Harmed, big: tuple[Path, str], tmp_path: Path) -> None:
    put = harmed.proxy.harm(method="PUT", status=503, every=3)
    get = harmed.proxy.harm(method="GET", path="big", cut_reply=100_000, every=3)
    harmed.store.put("big", big[0])
    harmed.store.download("big", tmp_path / "back", SIZE, big[1])
    assert put.struck >= 2
    assert get.struck >= 2
    assert harmed.place.unfinished() == []


def test_a_permanently_busy_server_fails_within_the_time_limit(harmed: Harmed) -> None:
    busy = harmed.proxy.harm(status=503)
    began = time.monotonic()
    with pytest.raises(ArchiveError, match=r"put_object of some/prefix/a (failed|not done).* 3 s.*SlowDown"):
        harmed.impatient(3).put("a", b"x")
    assert time.monotonic() - began < 10
    assert 3 <= busy.struck < 20


def test_a_silent_server_fails_within_the_time_limit(harmed: Harmed) -> None:
    harmed.proxy.harm(silent=True)
    began = time.monotonic()
    with pytest.raises(ArchiveError, match=r"put_object of some/prefix/a not done within 2 s"):
        harmed.impatient(2).put_if_absent("a", b"x")
    assert time.monotonic() - began < 8


def test_a_permanent_refusal_is_not_retried(harmed: Harmed) -> None:
    refused = harmed.proxy.harm(method="PUT", status=403, code="AccessDenied")
    with pytest.raises(ArchiveError, match="AccessDenied"):
        harmed.store.put("a", b"x")
    assert refused.struck == 1


def test_an_interrupted_upload_is_retried(harmed: Harmed) -> None:
    cut = harmed.proxy.harm(method="PUT", cut_request=1000, times=2)
    harmed.store.put("a", b"x" * 500_000)
    assert cut.struck == 2
    assert harmed.store.get("a") == b"x" * 500_000


def test_an_interrupted_read_is_retried(harmed: Harmed) -> None:
    harmed.store.put("a", b"0123456789" * 50_000)
    cut = harmed.proxy.harm(method="GET", cut_reply=1000, times=2)
    assert harmed.store.get("a") == b"0123456789" * 50_000
    assert cut.struck == 2


def test_a_download_that_keeps_failing_leaves_no_file(harmed: Harmed, tmp_path: Path) -> None:
    harmed.store.put("a", b"x" * 500_000)
    harmed.proxy.harm(method="GET", cut_reply=1000)
    (tmp_path / "to").mkdir()
    with pytest.raises(ArchiveError, match="some/prefix/a"):
        harmed.impatient(2).download("a", tmp_path / "to" / "file", 500_000, "0" * 64)
    assert not list((tmp_path / "to").iterdir())


def test_a_bit_flipped_in_transit_is_detected(harmed: Harmed, tmp_path: Path) -> None:
    archive = Archive(harmed.store)
    made = content(tmp_path / "bundle", {"metadata/method.json": b'{"id": "m"}'}, {"output.zip": os.urandom(300_000)})
    [zip_file] = made.data
    archive.put_data(ID, made.folder / "output.zip", zip_file.sha256)
    archive.seal(ID, made)
    for path, flip in (("data/", 250_000), ("method.json", 3), ("manifest", 3)):
        flipped = harmed.proxy.harm(method="GET", path=path, flip=flip)
        with pytest.raises(ArchiveError, match=r"damaged|differs from the sealed manifest|Checksum"):
            Archive(harmed.impatient(3)).download(ID, tmp_path / "back")
        assert flipped.struck
        harmed.proxy.heal()
    archive.download(ID, tmp_path / "back")


def test_a_create_whose_reply_was_lost_is_recognised_as_ours(harmed: Harmed) -> None:
    lost = harmed.proxy.harm(method="PUT", lost_reply=True, times=1)
    assert harmed.store.put_if_absent("seal", b"ours")
    assert lost.struck == 1
    assert harmed.store.get("seal") == b"ours"


def test_a_retried_create_loses_to_another_writer(harmed: Harmed) -> None:
    harmed.proxy.harm(method="PUT", status=503, times=1)
    other = threading.Timer(
        0.02,
        harmed.place.client.put_object,
        kwargs={"Bucket": harmed.place.bucket, "Key": "some/prefix/seal", "Body": b"ours"},
    )
    other.start()
    # Even with the same bytes it is not ours.
    won = harmed.store.put_if_absent("seal", b"ours")
    other.join()
    assert not won


def test_a_large_file_whose_completion_reply_was_lost_is_stored(
    harmed: Harmed, big: tuple[Path, str], tmp_path: Path
) -> None:
    lost = harmed.proxy.harm(method="POST", path="uploadId", lost_reply=True, times=1)
    harmed.store.put("big", big[0])
    assert lost.struck == 1
    assert harmed.proxy.counted("PUT", "partNumber") == PARTS
    harmed.store.download("big", tmp_path / "back", SIZE, big[1])
    assert harmed.place.unfinished() == []


def test_an_upload_aborted_by_another_process_starts_again(harmed: Harmed, big: tuple[Path, str]) -> None:
    slow = harmed.proxy.harm(method="PUT", path="partNumber=5", delay=1.5, times=1)

    def sweep() -> None:
        while not slow.struck:
            time.sleep(0.05)
        for upload_id in harmed.place.unfinished():
            harmed.place.client.abort_multipart_upload(
                Bucket=harmed.place.bucket, Key="some/prefix/big", UploadId=upload_id
            )

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    harmed.store.put("big", big[0])
    sweeper.join()
    head = harmed.store.head("big")
    assert head
    assert head.size == SIZE


UPLOADER = """
import json, sys
from pathlib import Path
from prefect_executions.objectstore.open import open_store
open_store(sys.argv[1], options=json.loads(sys.argv[2])).put("big", Path(sys.argv[3]))
"""


def test_a_killed_upload_resumes_with_the_missing_parts(harmed: Harmed, big: tuple[Path, str], tmp_path: Path) -> None:
    # The last part never arrives, so the process is still at it when it is killed.
    stuck = harmed.proxy.harm(method="PUT", path=f"partNumber={PARTS}", silent=True)
    options = json.dumps(harmed.place.options_at(harmed.proxy.url))
    uploader = subprocess.Popen([sys.executable, "-c", UPLOADER, harmed.place.url, options, str(big[0])])
    _wait(lambda: stuck.struck and _finished_parts(harmed.place) == PARTS - 1)
    uploader.send_signal(signal.SIGKILL)
    uploader.wait()
    harmed.proxy.heal()
    assert harmed.store.head("big") is None
    assert len(harmed.place.unfinished()) == 1

    harmed.proxy.requests.clear()
    harmed.store.put("big", big[0])
    assert harmed.proxy.counted("PUT", "partNumber") == 1
    harmed.store.download("big", tmp_path / "back", SIZE, big[1])
    assert harmed.place.unfinished() == []


def test_a_part_with_different_content_is_not_reused(harmed: Harmed, big: tuple[Path, str], tmp_path: Path) -> None:
    client, bucket = harmed.place.client, harmed.place.bucket
    begun = client.create_multipart_upload(Bucket=bucket, Key="some/prefix/big")["UploadId"]
    client.upload_part(Bucket=bucket, Key="some/prefix/big", UploadId=begun, PartNumber=1, Body=os.urandom(PART))
    client.upload_part(Bucket=bucket, Key="some/prefix/big", UploadId=begun, PartNumber=2, Body=b"short")
    harmed.store.put("big", big[0])
    assert harmed.proxy.counted("PUT", "partNumber") == PARTS
    harmed.store.download("big", tmp_path / "back", SIZE, big[1])


def test_an_upload_continues_after_a_server_outage(harmed: Harmed, big: tuple[Path, str], tmp_path: Path) -> None:
    def interrupt() -> None:
        _wait(lambda: harmed.proxy.counted("PUT", "partNumber") >= 2)
        harmed.proxy.go_away()
        time.sleep(2)
        harmed.proxy.come_back()

    operator = threading.Thread(target=interrupt)
    operator.start()
    harmed.store.put("big", big[0])
    operator.join()
    harmed.store.download("big", tmp_path / "back", SIZE, big[1])
    assert harmed.place.unfinished() == []


def test_an_unreachable_server_fails_and_works_again_later(harmed: Harmed) -> None:
    store = harmed.impatient(1)
    harmed.proxy.go_away()
    with pytest.raises(ArchiveError, match="put_object of some/prefix/a"):
        store.put("a", b"x")
    harmed.proxy.come_back()
    _wait(lambda: _puts(store, b"x"))  # a busy server needs more than a second
    assert harmed.store.get("a") == b"x"


def _puts(store: Store, data: bytes) -> bool:
    try:
        store.put("a", data)
    except ArchiveError:
        return False
    return True


def test_a_caller_that_is_interrupted_leaves_nothing_running(harmed: Harmed) -> None:
    silent = harmed.proxy.harm(method="PUT", silent=True)
    timer = threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGINT])
    threading.Thread(target=lambda: (_wait(lambda: silent.struck), timer.start())).start()
    with pytest.raises(KeyboardInterrupt):
        harmed.store.put("a", b"x")
    harmed.proxy.heal()
    before = len(harmed.proxy.requests)
    time.sleep(1)
    assert len(harmed.proxy.requests) == before


def _finished_parts(place: Place) -> int:
    [upload_id] = place.unfinished()
    listed = place.client.list_parts(Bucket=place.bucket, Key="some/prefix/big", UploadId=upload_id)
    return len(listed.get("Parts", []))


def _wait(until: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not until():
        assert time.monotonic() < end, "it did not happen within a minute"
        time.sleep(0.05)
