"""A link reads a shared copy until it expires or is revoked, and never exposes a secret."""

from __future__ import annotations

import io
import json
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.error import HTTPError

import pytest

from archives import KEY, SECRET, Place, place_on
from benches import OTHER_ID, bench_at, kept, record_of
from bundle_makers import copy_of
from prefect_executions.archive.shares import Share, read_shares
from prefect_executions.attestation.policy import SignatureState
from prefect_executions.bundles.layout import ExportLevel
from prefect_executions.capture.secrets import reveals, secrets_around
from prefect_executions.cli.app import main
from prefect_executions.errors import (
    BundleError,
    NotAvailableError,
    NotFoundError,
    RequestError,
    SecretError,
)
from prefect_executions.operations.export import export
from prefect_executions.operations.imports import ImportPolicy, import_bundles
from prefect_executions.operations.share import Shared, revoke, share, sweep
from prefect_executions.settings import Settings
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.workbench import Workbench
from records import EXECUTION_ID, OUTPUTS, a_request
from signers import a_key, a_signed_bundle, trusting

THIRD_ID = "0b1e5a52-0000-4f2e-9a41-3d6d5d3f2e12"
NOW = datetime(2026, 10, 1, tzinfo=UTC)
WEEK = timedelta(days=7)
KEYS = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
    "PATH": "/usr/bin:/bin",
    "SHORT_TOKEN": "1234",
}


@pytest.fixture
def s3(need: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    found = place_on("seaweedfs", need)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", found.endpoint)
    yield found
    found.close()


@pytest.fixture
def bench(s3: Place, tmp_path: Any) -> Workbench:
    settings = Settings(home=tmp_path, archive=s3.url)
    found = Workbench.of(settings, archive_block=lambda name: (name, {}))
    kept(found)
    return found


def shared(bench: Workbench, **told: Any) -> Shared:
    asked = {"now": NOW, "expires": WEEK, "environment": KEYS} | told
    return share(Catalog(bench), EXECUTION_ID, **asked)


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url) as reply:  # noqa: S310 - the test's own server
        return bytes(reply.read())


def refused(url: str) -> int:
    with pytest.raises(HTTPError) as found:
        fetched(url)
    found.value.close()
    return found.value.code


def test_a_link_reads_the_exported_bundle(bench):
    result = shared(bench)
    out = io.BytesIO()
    export(Catalog(bench), [EXECUTION_ID], out.write)
    assert fetched(result.url) == out.getvalue()
    assert (result.share.expires, result.share.size) == (NOW + WEEK, len(out.getvalue()))


def test_a_link_reads_one_output(bench):
    result = shared(bench, output="regions.csv")
    assert fetched(result.url) == OUTPUTS["outputs/regions.csv"]
    assert "/regions.csv?" in result.url
    with pytest.raises(NotFoundError):
        shared(bench, output="none.csv")


@pytest.mark.parametrize("output", [None, "regions.csv"])
def test_only_a_bundle_whose_signature_holds_is_shared(bench, tmp_path, output):
    for execution_id, key in ((OTHER_ID, a_key()), (THIRD_ID, a_key("b"))):
        signed = a_signed_bundle(tmp_path / "signed", record_of(execution_id), key).folder
        copy_of(signed, bench.folder / execution_id)
        assert bench.settle(execution_id).archived
    options = {"now": NOW, "expires": WEEK, "environment": KEYS, "output": output, "signatures": trusting()}
    with pytest.raises(BundleError, match=r"nothing is shared: signature: .* is not trusted here"):
        share(Catalog(bench), THIRD_ID, **options)
    assert not list(bench.archive.store.list("shared/"))
    assert share(Catalog(bench), OTHER_ID, **options).signature is SignatureState.TRUSTED
    assert share(Catalog(bench), EXECUTION_ID, **options).signature is SignatureState.UNSIGNED


def test_shares_are_listed_and_a_revoked_link_stops_working(bench):
    first, second = shared(bench), shared(bench, level=ExportLevel.METADATA)
    store = bench.archive.store
    assert {one.id for one in read_shares(store).shares} == {first.share.id, second.share.id}
    revoke(store, first.share.id)
    assert refused(first.url) == 404
    assert len(zipfile.ZipFile(io.BytesIO(fetched(second.url))).namelist()) > 5
    assert [one.id for one in read_shares(store).shares] == [second.share.id]
    with pytest.raises(NotFoundError, match="shares list"):
        revoke(store, first.share.id)


def test_the_copies_of_links_that_expired_are_removed(bench):
    result = shared(bench, expires=timedelta(hours=1))
    assert sweep(bench.archive.store, NOW) == 0
    assert sweep(bench.archive.store, result.share.expires) == 1
    assert not list(bench.archive.store.list("shared/"))


def test_the_note_of_a_share_cannot_end_another_share(bench):
    result, store = shared(bench), bench.archive.store
    ended = result.share.model_copy(update={"expires": NOW})
    store.put_many({"shared/0000/share.json": ended.to_json()})
    assert sweep(store, NOW + timedelta(hours=1)) == 0
    (sentence,) = read_shares(store).damaged
    assert f"share 0000 is damaged: it is the note of share {result.share.id}" in sentence
    assert fetched(result.url)


@pytest.mark.parametrize("damage", [b"", b"{", b'{"format": 2}', b"\xff"])
def test_a_damaged_note_hides_no_other_share_and_can_be_revoked(home, capsys, damage):
    """The archive is a folder, where the notes are the same."""
    store = bench_at(home).archive.store
    for share_id, expires in (("aaaa", NOW), ("cccc", datetime.now(UTC) + WEEK)):
        note = Share(
            id=share_id, execution_id=EXECUTION_ID, what="full", file="x.zip", size=1, created=NOW, expires=expires
        )
        store.put_many({f"shared/{share_id}/share.json": note.to_json(), f"shared/{share_id}/x.zip": b"x"})
    store.put_many({"shared/bbbb/share.json": damage, "shared/bbbb/x.zip": b"x"})
    assert main(["shares", "list", "--json"]) == 0
    shown = capsys.readouterr()
    assert [share["id"] for share in json.loads(shown.out)["shares"]] == ["cccc"]
    assert "The note of share bbbb is damaged" in shown.err
    assert "Next: executions shares revoke bbbb" in shown.err
    assert main(["shares", "revoke", "bbbb"]) == 0
    assert sorted(info.key for info in store.list("shared/")) == ["shared/cccc/share.json", "shared/cccc/x.zip"]
    for unknown in ("bbbb", "", "..", "../executions", "cccc/x.zip"):
        with pytest.raises(NotFoundError):
            revoke(store, unknown)
    assert sorted(info.key for info in store.list("shared/")) == ["shared/cccc/share.json", "shared/cccc/x.zip"]


def test_neither_the_url_nor_a_key_is_stored(bench, s3):
    result = shared(bench)
    keys = [one["Key"] for one in s3.client.list_objects_v2(Bucket=s3.bucket)["Contents"] if "/shared/" in one["Key"]]
    note = next(key for key in keys if key.endswith("share.json"))
    kept_bytes = s3.client.get_object(Bucket=s3.bucket, Key=note)["Body"].read()
    assert b"Signature" not in kept_bytes
    assert result.url.encode() not in kept_bytes


def test_the_command_gives_the_link_and_ends_it(bench, s3, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EXECUTIONS_HOME", str(tmp_path))
    monkeypatch.setenv("EXECUTIONS_ARCHIVE", s3.url)
    assert main(["share", EXECUTION_ID, "--expires", "1h", "--json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    assert fetched(payload["url"])[:2] == b"PK"
    assert main(["shares", "list"]) == 0
    assert payload["id"] in capsys.readouterr().out
    assert main(["shares", "revoke", payload["id"]]) == 0
    assert refused(payload["url"]) == 404


def test_each_result_of_a_query_gets_its_link(bench, s3, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EXECUTIONS_HOME", str(tmp_path))
    monkeypatch.setenv("EXECUTIONS_ARCHIVE", s3.url)
    kept(bench, OTHER_ID)
    assert main(["share", "method:segment-coins status:completed", "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("2 executions match ")
    payload = json.loads(shown.out)
    assert {one["executionId"] for one in payload["shares"]} == {EXECUTION_ID, OTHER_ID}
    assert [fetched(one["url"])[:2] for one in payload["shares"]] == [b"PK", b"PK"]
    assert main(["share", "method:segment-coins", "--limit", "1", "--output", "regions.csv", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["shares"]
    assert fetched(one["url"]) == OUTPUTS["outputs/regions.csv"]


# --- without a server -------------------------------------------------------------


def test_a_folder_has_no_links_and_nothing_is_copied(tmp_path):
    bench = bench_at(tmp_path)
    kept(bench)
    with pytest.raises(NotAvailableError, match="only an archive on S3"):
        shared(bench)
    assert not list(bench.archive.store.list("shared/"))


@pytest.mark.parametrize("expires", [timedelta(days=8), timedelta(0), timedelta(days=-1)])
def test_an_invalid_lifetime_of_a_link_is_refused(tmp_path, expires):
    bench = bench_at(tmp_path)
    kept(bench)
    with pytest.raises(RequestError, match="up to 7 days"):
        shared(bench, expires=expires)


class Linked:
    """A folder's store with addresses, which a folder has not."""

    def __init__(self, bench: Workbench) -> None:
        self._store = bench.archive.store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def presign(self, key: str, seconds: int) -> str:
        return f"https://example.org/{key}?{seconds}"


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"outputs/config.txt": KEYS["AWS_SECRET_ACCESS_KEY"].encode()}, r"outputs/config\.txt"),
        ({"outputs/log.txt": b"x " * 1_500_000 + b"AKIA" + b"ABCDEFGH12345678 "}, r"outputs/log\.txt"),
        ({"outputs/id_rsa": b"-----BEGIN RSA PRIVATE KEY-----\nMII"}, r"outputs/id_rsa"),
    ],
)
def test_what_looks_like_a_secret_is_not_shared(tmp_path, outputs, words):
    bench = bench_at(tmp_path)
    kept(bench, outputs={**OUTPUTS, **outputs})
    bench.archive.store = Linked(bench)
    with pytest.raises(SecretError, match=words) as found:
        shared(bench)
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in str(found.value)
    assert not list(bench.archive.store.list("shared/"))
    assert shared(bench, level=ExportLevel.METADATA).url
    assert shared(bench, output="regions.csv").url


def test_the_secret_that_an_execution_was_given_is_not_shared(tmp_path):
    bench = bench_at(tmp_path)
    request = a_request(values={"picture": "s3://survey/picture.png", "pin": {"secret": "env:PIN"}})
    kept(bench, request=request, outputs={**OUTPUTS, "outputs/x.txt": b"the pin is 4711-0815"})
    bench.archive.store = Linked(bench)
    with pytest.raises(SecretError, match=r"outputs/x\.txt"):
        shared(bench, environment={"PIN": "4711-0815"})
    assert shared(bench, environment={"PIN": "another"}).share.what == "full"


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        ([b"nothing to see", b" here"], False),
        ([b"Basic knowledge of a task-oriented-language-model"], False),
        ([b"ghp_0123456789abcdef", b"ghijABCDEFGHIJ0123"], True),
        ([b"a" * 5000 + b"eyJhbGciOiJ", b"IUzI1NiJ9.eyJzdWIi.c2ln"], True),
        ([b"wJalrXUtnFEMIK7", b"MDENGbPxRfiCYEXAMPLEKEY"], True),
        ([b"1234"], False),
    ],
)
def test_a_secret_across_two_blocks_is_found(pieces, found):
    assert reveals(iter(pieces), secrets_around(KEYS)) is found


def test_an_export_from_an_s3_archive_is_imported_into_another(bench, s3, tmp_path):
    out = io.BytesIO()
    export(Catalog(bench), [EXECUTION_ID], out.write)
    (tmp_path / "x.zip").write_bytes(out.getvalue())
    settings = Settings(home=tmp_path / "other", archive=f"{s3.url}/other")
    other = Workbench.of(settings, archive_block=lambda name: (name, {}))
    (taken,) = import_bundles(other, str(tmp_path / "x.zip"), ImportPolicy.of(settings, NOW))
    assert (taken.result, other.archive.imported(EXECUTION_ID).imported) == ("imported", NOW)
    again = io.BytesIO()
    export(Catalog(other), [EXECUTION_ID], again.write)
    assert again.getvalue() == out.getvalue()
