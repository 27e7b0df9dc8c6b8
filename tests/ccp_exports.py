"""Exports of CCP for tests, in its layouts."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

CCP_ID = "3a7c0f5e-9a41-4f2e-8a41-0d6d5d3f2e10"
TOKEN = (
    "eyJhbGciOiJub25lIn0."
    + base64.urlsafe_b64encode(
        json.dumps(
            {"sub": "u-17", "preferred_username": "alice", "iss": "https://login.example.org", "x": "y"}
        ).encode()
    )
    .decode()
    .rstrip("=")
    + ".c2ln"
)
SECRET = "s3cr3t-value-of-alice"

METHOD: Mapping[str, Any] = {
    "id": "6a9f2d9e-0d2c-4c43-8b0b-5d0e4a0b9b11",
    "title": "Hello",
    "version": "1.0.0",
    "keywords": ["demo"],
    "inputs": {
        "ccpimage": {"id": "ccpimage", "title": "Runtime", "schema": {"type": "string", "format": "url"}},
        "name": {"id": "name", "title": "Name", "schema": {"type": "string"}},
        "password": {"id": "password", "title": "Password", "schema": {"type": "string", "format": "secret"}},
    },
    "outputs": {"hello": {"id": "hello", "schema": {"type": "string", "contentMediaType": "text/plain"}}},
    "additionalParameters": {"parameters": [{"name": "execute-script", "value": ["echo {{name}}"]}]},
    "links": [{"rel": "compatibleWith", "title": "docker", "href": "infrastructures/1"}],
}
JOB_STATUS: Mapping[str, Any] = {
    "jobID": CCP_ID,
    "status": "successful",
    "message": "Runtime removed",
    "created": "2024-04-12T10:20:30.123Z",
    "started": "2024-04-12T10:20:30.123Z",
    "updated": "2024-04-12T10:21:02.5Z",
    "links": [{"href": f"https://registry/executions/{CCP_ID}", "rel": "prov"}],
}
PROV = f"""<?xml version="1.0"?>
<prov:document xmlns:prov="http://www.w3.org/ns/prov#" xmlns:d4s="http://d4science.org/#" xmlns:ex="http://example.org/">
  <prov:activity prov:id="ex:execution-{CCP_ID}">
    <prov:startTime>2024-04-12T10:20:31+00:00</prov:startTime>
    <prov:endTime>2024-04-12T10:21:00+00:00</prov:endTime>
    <d4s:status>successful</d4s:status>
  </prov:activity>
</prov:document>
"""


def tree(**changes: bytes | None) -> dict[str, bytes]:
    """Return the files of an export with folders; *changes* are by file name without folder and ending."""
    files = {
        "auth/jwt.json": json.dumps({"access_token": TOKEN}).encode(),
        "metadata/method.json": json.dumps(METHOD).encode(),
        "metadata/request.json": json.dumps(
            {"inputs": {"ccpimage": "bash", "name": "world", "password": SECRET}, "response": "raw"}
        ).encode(),
        "metadata/infrastructure.json": json.dumps({"id": "infra-1", "type": "docker", "name": "lab"}).encode(),
        "metadata/instance.json": json.dumps({"id": "c0ffee", "image": "bash"}).encode(),
        "metadata/jobStatus.json": json.dumps(JOB_STATUS).encode(),
        "metadata/provo.xml": PROV.encode(),
        "outputs/hello.txt": b"hello world\n",
        f"outputs/stdout.{CCP_ID}.txt": f"hello\npassword {SECRET}\n".encode(),
        f"outputs/stderr.{CCP_ID}.txt": b"",
        "outputs/ccpenv": b"ccprefreshtoken=" + TOKEN.encode(),
        "outputs/ccp-entrypoint.sh": f"echo world; login {SECRET}\n".encode(),
        "output.zip": b"whatever",
    }
    names = {path.rpartition("/")[2].partition(".")[0]: path for path in files}
    for name, data in changes.items():
        files[names[name]] = data if data is not None else b""
        if data is None:
            del files[names[name]]
    return files


def flat(**changes: bytes | None) -> dict[str, bytes]:
    """Return the same as it is downloaded: one folder, flat names."""
    return {path.replace("/", "_"): data for path, data in tree(**changes).items() if path != "output.zip"}
