"""Archive one big file to S3, beside boto3's transfer manager and obstore, on the same server in the same run.

usage: bench_archive.py [--megabytes 1024] [--rounds 3] [--large 10240]      EXECUTIONS_TEST_S3 names the server

Each upload runs in a process of its own, whose peak of memory is then its own;
the clients take turns, so that a slow minute of the machine meets all of them.
At last a file of *large* MiB, a hole, is archived alone, for its memory; 0 leaves it out.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

MEBIBYTE = 1024**2
KEY = os.environ.get("EXECUTIONS_TEST_S3_KEY", "testkey")
SECRET = os.environ.get("EXECUTIONS_TEST_S3_SECRET", "testsecret")


def ours(endpoint: str, bucket: str) -> Callable[[str, Path], None]:
    from prefect_executions.objectstore.open import open_store  # noqa: PLC0415 - each process loads the client that it measures

    options = {"key": KEY, "secret": SECRET, "endpoint_url": endpoint}
    return open_store(f"s3://{bucket}", options=options, timeout=timedelta(minutes=30)).put


def archive(endpoint: str, bucket: str) -> Callable[[str, Path], None]:
    from prefect_executions.archive.archive import Archive  # noqa: PLC0415 - the same
    from prefect_executions.objectstore.open import open_store  # noqa: PLC0415 - the same

    options = {"key": KEY, "secret": SECRET, "endpoint_url": endpoint}
    kept = Archive(open_store(f"s3://{bucket}", options=options, timeout=timedelta(hours=1)))

    def put(name: str, path: Path) -> None:
        kept.put_data(name, path, "0" * 64)

    return put


def boto3(endpoint: str, bucket: str) -> Callable[[str, Path], None]:
    client = _client(endpoint)

    def put(key: str, path: Path) -> None:
        client.upload_file(str(path), bucket, key)

    return put


def obstore(endpoint: str, bucket: str) -> Callable[[str, Path], None]:
    from obstore.store import S3Store  # noqa: PLC0415 - each process loads the client that it measures

    store = S3Store(
        bucket,
        endpoint=endpoint,
        access_key_id=KEY,
        secret_access_key=SECRET,
        region="us-east-1",
        client_options={"allow_http": True, "timeout": "600s"},
        virtual_hosted_style_request=False,
    )

    def put(key: str, path: Path) -> None:
        store.put(key, path)

    return put


CLIENTS = {"ours": ours, "boto3": boto3, "obstore": obstore}
WAYS = {**CLIENTS, "archive": archive}


def upload(client: str, endpoint: str, bucket: str, path: Path) -> dict[str, float]:
    """Put a small object and then *path*; return the seconds of the big one and the memory it added, in MiB."""
    put = WAYS[client](endpoint, bucket)
    small = path.with_suffix(".small")
    put("warm", small)
    before = _peak()
    began = time.perf_counter()
    put("big", path)
    return {"seconds": time.perf_counter() - began, "memory": (_peak() - before) / MEBIBYTE}


def main() -> None:
    """Print one row for each client: rate, ratio to boto3, memory added."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=int, default=10 * 1024)
    parser.add_argument("--endpoint", default=os.environ.get("EXECUTIONS_TEST_S3", ""))
    parser.add_argument("--one", nargs=3, metavar=("CLIENT", "BUCKET", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.endpoint:
        parser.exit(0, "archive to S3: left out, EXECUTIONS_TEST_S3 is not set\n")
    if given.one:
        client, bucket, file = given.one
        print(json.dumps(upload(client, given.endpoint, bucket, Path(file))))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "big")
        with path.open("wb") as file:
            for _ in range(given.megabytes if given.rounds else 0):
                file.write(os.urandom(MEBIBYTE))
        path.with_suffix(".small").write_bytes(b"warm")
        if given.rounds:
            _print(given.megabytes, _measure(given.endpoint, path, given.rounds))
        if given.large:
            with path.open("wb") as file:
                file.truncate(given.large * MEBIBYTE)
            _print_large(given.large, _measure_large(given.endpoint, path))


def _measure(endpoint: str, path: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in CLIENTS}
    with _bucket(endpoint) as (s3, bucket):
        for turn in range(rounds):
            names = [*CLIENTS][turn % 3 :] + [*CLIENTS][: turn % 3]
            for name in names:
                measured[name].append(_alone(name, endpoint, bucket, path))
                _empty(s3, bucket)
    return measured


def _measure_large(endpoint: str, path: Path) -> dict[str, float]:
    with _bucket(endpoint) as (_, bucket):
        return _alone("archive", endpoint, bucket, path)


def _alone(name: str, endpoint: str, bucket: str, path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--endpoint", endpoint, "--one", name, bucket, str(path)]
    told: dict[str, float] = json.loads(subprocess.check_output(command))
    return told


@contextmanager
def _bucket(endpoint: str) -> Iterator[tuple[Any, str]]:
    s3, bucket = _client(endpoint), f"bench-{secrets.token_hex(4)}"
    s3.create_bucket(Bucket=bucket)
    try:
        yield s3, bucket
    finally:
        _empty(s3, bucket)
        s3.delete_bucket(Bucket=bucket)
        s3.close()


def _empty(s3: Any, bucket: str) -> None:
    for found in s3.list_objects_v2(Bucket=bucket).get("Contents", []):
        s3.delete_object(Bucket=bucket, Key=found["Key"])


def _print(megabytes: int, measured: dict[str, list[dict[str, float]]]) -> None:
    seconds = {name: statistics.median(one["seconds"] for one in runs) for name, runs in measured.items()}
    print(f"| archive of {megabytes} MiB to S3 | MiB/s | x boto3 | extra memory, MiB |")
    print("|---|---|---|---|")
    for name, runs in measured.items():
        memory = max(one["memory"] for one in runs)
        rate, ratio = megabytes / seconds[name], seconds["boto3"] / seconds[name]
        print(f"| {name} | {rate:.0f} | {ratio:.2f} | {memory:.0f} |")


def _print_large(megabytes: int, told: dict[str, float]) -> None:
    print("| memory | measured | to reach |")
    print("|---|---|---|")
    print(f"| added by archiving {megabytes} MiB to S3 | {told['memory']:.0f} MiB | <= 200 MiB |")


def _client(endpoint: str) -> Any:
    import boto3 as library  # noqa: PLC0415 - the process that measures another client must not load it
    from botocore.config import Config  # noqa: PLC0415 - the same

    settings = Config(signature_version="s3v4", s3={"addressing_style": "path"})
    keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    return library.client("s3", endpoint_url=endpoint, config=settings, **keys)


def _peak() -> int:
    """Return the most memory that this process ever had, in bytes; ru_maxrss would hold its parent's too."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
