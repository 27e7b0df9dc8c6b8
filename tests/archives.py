"""What the tests of the archive share: real S3 servers, buckets of their own, and small bundles."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import boto3
from botocore.config import Config

from prefect_executions.archive.archive import Content
from prefect_executions.bundles.layout import MANIFEST
from prefect_executions.bundles.manifest import render
from prefect_executions.executions.record import BundleFile
from prefect_executions.lifecycle.status import Status

SERVERS = {
    "seaweedfs": ("EXECUTIONS_TEST_S3", "SeaweedFS (.ci/services/seaweedfs.sh)"),
    "ceph": ("EXECUTIONS_TEST_CEPH", "Ceph's object gateway (.ci/services/ceph.sh)"),
}
KEY = os.environ.get("EXECUTIONS_TEST_S3_KEY", "testkey")
SECRET = os.environ.get("EXECUTIONS_TEST_S3_SECRET", "testsecret")


class Place(NamedTuple):
    """A bucket of the test's own on a real server, and a client that is not ours to look into it with."""

    endpoint: str
    bucket: str
    client: Any

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/some/prefix"

    @property
    def options(self) -> dict[str, Any]:
        return self.options_at(self.endpoint)

    def options_at(self, endpoint: str, **more: Any) -> dict[str, Any]:
        return {"key": KEY, "secret": SECRET, "endpoint_url": endpoint, **more}

    def unfinished(self) -> list[str]:
        """Return the ids of the uploads that somebody began and nobody ended."""
        return [one["UploadId"] for one in self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])]

    def close(self) -> None:
        """Remove the bucket and all in it."""
        for one in self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", []):
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=one["Key"], UploadId=one["UploadId"])
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket):
            for one in page.get("Contents", []):
                self.client.delete_object(Bucket=self.bucket, Key=one["Key"])
        self.client.delete_bucket(Bucket=self.bucket)
        self.client.close()


def place(endpoint: str) -> Place:
    """Make a fresh bucket at *endpoint*."""
    settings = Config(signature_version="s3v4", s3={"addressing_style": "path"}, retries={"max_attempts": 1})
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
        config=settings,
    )
    bucket = f"test-{secrets.token_hex(6)}"
    client.create_bucket(Bucket=bucket)
    return Place(endpoint, bucket, client)


def place_on(server: str, need: Callable[[str, str], str]) -> Place:
    return place(need(*SERVERS[server]))


def written(path: Path, size: int) -> str:
    """Write *size* random bytes to *path* and return their SHA-256."""
    digest = sha256()
    with path.open("wb") as file:
        for start in range(0, size, 1024**2):
            piece = os.urandom(min(1024**2, size - start))
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def content(
    folder: Path,
    files: dict[str, bytes],
    data: dict[str, bytes] | None = None,
    *,
    absent: dict[str, bytes] | None = None,
) -> Content:
    """Write a bundle of these files and its manifest into *folder*."""
    everything = {**files, **(data or {}), **(absent or {})}
    described = {path: BundleFile(path, sha256(body).hexdigest(), len(body)) for path, body in everything.items()}
    manifest = render(described.values())
    for path, body in {**everything, MANIFEST: manifest}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(body)
    return Content(
        folder=folder,
        files=[*(described[path] for path in files), BundleFile(MANIFEST, sha256(manifest).hexdigest(), len(manifest))],
        data=[described[path] for path in data or {}],
        absent=sorted(absent or {}),
        status=Status.COMPLETED,
        finished=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        at=datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC),
    )
