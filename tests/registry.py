"""A registry with one image, over plain HTTP on loopback: what a Docker engine asks when it pulls, and no more."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SCHEMA = "application/vnd.docker.distribution.manifest.v2+json"


def _digest(content: bytes) -> str:
    return f"sha256:{sha256(content).hexdigest()}"


def _layer() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        member = tarfile.TarInfo("hello")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"world"))
    return made.getvalue()


def _contents() -> tuple[bytes, dict[str, bytes]]:
    layer = _layer()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        "history": [{"created": "2026-01-01T00:00:00Z"}],
    }
    written = json.dumps(config).encode()
    told = {
        "schemaVersion": 2,
        "mediaType": SCHEMA,
        "config": _described("application/vnd.docker.container.image.v1+json", written),
        "layers": [_described("application/vnd.docker.image.rootfs.diff.tar.gzip", layer)],
    }
    return json.dumps(told).encode(), {_digest(written): written, _digest(layer): layer}


def _described(kind: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "size": len(content), "digest": _digest(content)}


@contextmanager
def serving(repository: str) -> Iterator[tuple[str, str]]:
    """Serve one image as *repository* with the tag ``1``; yield the registry's address and the image's digest."""
    manifest, blobs = _contents()
    digest = _digest(manifest)

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/v2/":
                self.tell(b"{}", "application/json")
            elif self.path in {f"/v2/{repository}/manifests/{name}" for name in ("1", digest)}:
                self.tell(manifest, SCHEMA)
            elif self.path.startswith(f"/v2/{repository}/blobs/") and self.path.rpartition("/")[2] in blobs:
                self.tell(blobs[self.path.rpartition("/")[2]], "application/octet-stream")
            else:
                self.tell(b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}', "application/json", 404)

        def do_HEAD(self) -> None:
            self.do_GET()

        def tell(self, content: bytes, kind: str, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Docker-Content-Digest", _digest(content))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", digest
        finally:
            server.shutdown()
            thread.join()
