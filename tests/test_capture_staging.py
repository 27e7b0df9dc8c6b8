"""Inputs: copied whole or not at all, from anywhere, with what identifies them and without what opens them."""

from __future__ import annotations

import base64
import os
import threading
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_executions.capture.staging import BLOCK, safe_name, stage
from prefect_executions.errors import BundleError, InputError

CONTENT = b"id,value\n1,2\n" * 1000


class _Web(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.server.seen.append(self.headers.get("Authorization"))
        self.answer(body=True)

    def answer(self, *, body: bool):
        path = self.path.partition("?")[0]
        if path in {"/missing.csv", "/busy.csv"}:
            self.send_error(404 if path == "/missing.csv" else 503)
            return
        wanted = "Basic " + base64.b64encode(b"ada:pa55word").decode()
        if path == "/private.csv" and self.headers.get("Authorization") != wanted:
            self.send_error(401)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.send_header("ETag", '"v1"')
        self.end_headers()
        if body:
            self.wfile.write(CONTENT[:100] if path == "/broken.csv" else CONTENT)
            if path == "/broken.csv":
                self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Web) as server:
        server.seen = []
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_local_file_is_copied_with_digest_size_and_media_type(tmp_path):
    origin = tmp_path / "my table.csv"
    origin.write_bytes(CONTENT)
    (one,) = stage({"table": str(origin)}, tmp_path / "inputs")
    origin.write_bytes(b"changed later")
    assert one.path == tmp_path / "inputs" / "table" / "my table.csv"
    assert one.path.read_bytes() == CONTENT
    assert (one.input, one.name, one.size) == ("table", "my table.csv", len(CONTENT))
    assert one.sha256 == sha256(CONTENT).hexdigest()
    assert one.media_type == "text/csv"
    assert one.origin == origin.as_uri()
    assert one.etag is None


def test_file_urls_are_local_files_quoted_or_not(tmp_path):
    origin = tmp_path / "a b%20c.csv"
    origin.write_bytes(CONTENT)
    quoted, plain = stage({"table": [origin.as_uri(), f"file://{origin}"]}, tmp_path / "inputs")
    assert quoted.sha256 == plain.sha256
    assert quoted.origin == plain.origin == origin.as_uri()


def test_progress_is_told_for_each_block(tmp_path):
    origin = tmp_path / "large"
    origin.write_bytes(b"x" * (BLOCK + 1))
    told = []
    stage({"large": str(origin)}, tmp_path / "inputs", progress=lambda *told_: told.append(told_))
    assert [done for _, done, _ in told] == [BLOCK, BLOCK + 1]
    (tmp_path / "empty").touch()
    stage({"empty": str(tmp_path / "empty")}, tmp_path / "inputs", progress=lambda *told_: told.append(told_))
    assert told[-1] == ("empty", 0, 0)


def test_files_of_one_name_in_one_input_are_kept_apart(tmp_path):
    places = []
    for number, name in enumerate(["table.csv", "table.csv", "TABLE.csv"]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).write_text(str(number))
        places.append(str(tmp_path / str(number) / name))
    staged = stage({"tables": places}, tmp_path / "inputs")
    assert [one.path.read_text() for one in staged] == ["0", "1", "2"]
    assert files_below(tmp_path / "inputs") == ["tables/TABLE-3.csv", "tables/table-2.csv", "tables/table.csv"]


def test_inputs_whose_names_are_hostile_stay_inside_and_apart(tmp_path):
    origin = tmp_path / "x"
    origin.write_text("x")
    names = ["../../up", "..", "/etc", "a/b", "a_b", "a\x00b", "n" * 300, ""]
    staged = stage(dict.fromkeys(names, str(origin)), tmp_path / "inputs")
    folders = {one.path.parent for one in staged}
    assert len(folders) == len(names)
    assert {folder.parent for folder in folders} == {tmp_path / "inputs"}


@given(st.text())
def test_a_safe_name_is_one_that_every_file_system_takes(name):
    safe = safe_name(name)
    assert safe not in {"", ".", ".."}
    assert not set(safe) & set('/\\\0<>:"|?*')
    assert 0 < len(safe.encode()) <= 200
    assert safe_name(safe) == safe


def test_a_long_name_keeps_its_ending():
    assert safe_name("é" * 300 + ".fits").endswith("é.fits")


@pytest.mark.parametrize("place", ["missing.csv", "folder", "pipe", "unreadable\0", ""])
def test_what_is_no_readable_file_is_refused_by_name(tmp_path, place):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="Input 'table'"):
        stage({"table": str(tmp_path / place) if place else ""}, tmp_path / "inputs")
    assert not (tmp_path / "inputs").exists()


def test_a_folder_is_refused_with_what_to_give_instead(tmp_path):
    with pytest.raises(InputError, match="is a folder; give a file, such as an archive"):
        stage({"table": str(tmp_path)}, tmp_path / "inputs")


def test_a_device_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a regular file"):
        stage({"table": "/dev/zero"}, tmp_path / "inputs")


def test_a_name_that_is_no_utf8_can_be_staged_and_told(tmp_path):
    origin = os.fsencode(tmp_path) + b"/\xff.csv"
    Path(os.fsdecode(origin)).write_bytes(b"x")
    (one,) = stage({"table": os.fsdecode(origin)}, tmp_path / "inputs")
    assert one.path.name == "_.csv"
    one.name.encode()
    one.origin.encode()


def test_a_copy_that_cannot_be_written_is_the_worlds_fault(tmp_path):
    (tmp_path / "x").write_text("x")
    (tmp_path / "inputs").write_text("in the way")
    with pytest.raises(BundleError, match="cannot be written"):
        stage({"table": str(tmp_path / "x")}, tmp_path / "inputs")


def test_http_is_downloaded_with_etag_and_name(tmp_path, web):
    told = []
    url = f"http://127.0.0.1:{web.server_port}/my%20table.csv?page=2"
    (one,) = stage({"table": url}, tmp_path, progress=lambda *told_: told.append(told_))
    assert one.path.read_bytes() == CONTENT
    assert (one.name, one.etag, one.origin) == ("my table.csv", "v1", url)
    assert told[-1] == ("table", len(CONTENT), len(CONTENT))


def test_credentials_of_a_url_are_used_and_told_nowhere(tmp_path, web):
    url = f"http://ada:pa55word@127.0.0.1:{web.server_port}/private.csv?token=t0ken&page=1"
    (one,) = stage({"table": url}, tmp_path)
    assert web.seen[-1] == "Basic " + base64.b64encode(b"ada:pa55word").decode()
    assert one.origin == f"http://127.0.0.1:{web.server_port}/private.csv?page=1"
    assert "pa55word" not in repr(one)
    assert "t0ken" not in repr(one)


@pytest.mark.parametrize("path", ["missing.csv", "private.csv", "broken.csv"])
def test_a_download_that_fails_leaves_nothing_and_tells_no_credentials(tmp_path, web, path):
    url = f"http://eve:pa55word@127.0.0.1:{web.server_port}/{path}?token=t0ken"
    with pytest.raises(InputError, match="Input 'table'") as caught:
        stage({"table": url}, tmp_path)
    error: BaseException | None = caught.value
    assert "pa55word" not in str(error)
    assert "t0ken" not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing.csv", "there is no such file"),
        ("busy.csv", "the server answers 503 Service Unavailable"),
        ("private.csv", "the server answers 401 Unauthorized"),
    ],
)
def test_what_the_server_answers_is_told(tmp_path, web, path, reason):
    url = f"http://127.0.0.1:{web.server_port}/{path}"
    with pytest.raises(InputError, match=rf"{path} cannot be read: {reason}\. Nothing was computed"):
        stage({"table": url}, tmp_path)


@pytest.mark.parametrize(
    ("url", "reason"), [("http://127.0.0.1:1/x", "Cannot connect to host 127.0.0.1:1"), ("http://[x/y", "Invalid IPv6")]
)
def test_a_server_that_is_not_there_is_not_a_missing_file(tmp_path, url, reason):
    with pytest.raises(InputError, match=reason):
        stage({"table": url}, tmp_path)


@pytest.mark.parametrize("url", ["nosuch://host/file", "http://127.0.0.1:1/x", "s3://"])
def test_a_url_that_leads_nowhere_is_refused(tmp_path, url):
    with pytest.raises(InputError, match="Input 'table'"):
        stage({"table": url}, tmp_path)


def test_memory_and_chained_urls_are_staged(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe("/folder/a.fits", CONTENT)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("inner/b.csv", CONTENT)
    memory, inner = stage(
        {"a": "memory://folder/a.fits", "b": f"zip://inner/b.csv::file://{tmp_path}/z.zip"}, tmp_path / "inputs"
    )
    assert memory.sha256 == inner.sha256 == sha256(CONTENT).hexdigest()
    assert (memory.name, memory.media_type) == ("a.fits", "application/fits")
    assert inner.name == "b.csv"
    with pytest.raises(InputError, match="is a folder"):
        stage({"a": "memory://folder"}, tmp_path / "inputs")
