"""An audit finds each single change to a signed archive and names its execution: the tamper matrix."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pytest

from archives import place_on
from benches import record_of
from bundle_makers import an_open_bundle
from prefect_executions.archive.archive import Archive, open_archive
from prefect_executions.archive.objects import Removed
from prefect_executions.attestation.dsse import Envelope, sealed_envelope
from prefect_executions.attestation.policy import TRUST_NOBODY
from prefect_executions.attestation.transparency import SealEntry, checkpoint_of, inclusions
from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.verify import verify
from prefect_executions.cli.app import main
from prefect_executions.errors import ArchiveError, BundleError, RequestError
from prefect_executions.executions.record import BundleFile, ExecuteRequest, OpeningRecord
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.lifecycle.status import Observer, Status
from prefect_executions.operations.audit import AuditFinding, audit
from prefect_executions.operations.export import export
from prefect_executions.operations.imports import ImportPolicy, import_bundles
from prefect_executions.operations.replay import open_replayable
from prefect_executions.operations.verify import verify_execution
from prefect_executions.settings import Settings
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.sealing import Ending
from prefect_executions.workbench.workbench import Workbench
from records import NOON, a_job_status, a_record, a_request
from signers import a_key, trusting

IDS = tuple(f"{letter * 8}-6f0c-4f2e-9a41-3d6d5d3f2e10" for letter in "abc")
VICTIM, UNTOUCHED, OTHER = IDS


def a_bench(folder: Path, *, signs: bool = True, archive: Archive | None = None) -> Workbench:
    return Workbench(
        folder / "bench",
        open_archive=lambda: archive or open_archive(str(folder / "archive")),
        open_ledger=lambda: Ledger.open(f"sqlite:///{folder / 'ledger.db'}"),
        signing_key=lambda: a_key() if signs else None,
    )


def sealed(bench: Workbench, execution_id: str) -> None:
    status = a_job_status().model_copy(update={"job_id": execution_id})
    an_open_bundle(bench.folder, a_record(request=a_request(execution_id=execution_id), job_status=status))
    bench.seal(execution_id, Ending(Status.COMPLETED, None, NOON, Observer.HOOK))


def written_down(
    archive: Archive, number: int, ids: Sequence[str], *, until: datetime = NOON + timedelta(hours=1), key: str = "a"
) -> None:
    """Write a checkpoint, whatever the time is now."""
    before = archive.checkpoints.get(number - 1) if number > 1 else b""
    seals = [SealEntry(execution_id=one, manifest_sha256=archive.seal_of(one).manifest_sha256) for one in ids]
    previous = sha256(before).hexdigest() if before else None
    result = checkpoint_of(seals, number=number, previous=previous, until=until, key=a_key(key))
    assert archive.checkpoints.add(number, result.to_json())
    archive.put_inclusions(list(inclusions(result)))


def fill(bench: Workbench) -> None:
    """Put three signed executions and two checkpoints into the archive of *bench*."""
    for one in IDS:
        sealed(bench, one)
    written_down(bench.archive, 1, IDS[:2])
    written_down(bench.archive, 2, IDS[2:])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed archive of three executions and two checkpoints, which no test changes."""
    folder = tmp_path_factory.mktemp("made")
    fill(a_bench(folder))
    return folder / "archive"


class Place:
    """An archive in a folder, that a forger has in hand."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def of(self, execution_id: str) -> Path:
        return self.root / "executions" / execution_id

    def file(self, path: str, execution_id: str = VICTIM) -> Path:
        """Return where a small file of the bundle lies."""
        (folder,) = self.of(execution_id).glob("sealed-*")
        return folder / path

    def zip(self, execution_id: str = VICTIM) -> Path:
        seal = json.loads((self.of(execution_id) / "seal.json").read_text())
        return self.of(execution_id) / seal["data"]["output.zip"]["object"]

    def checkpoint(self, number: int) -> Path:
        return self.root / f"checkpoints/00000000/{number:012}.json"

    def archive(self) -> Archive:
        return open_archive(str(self.root))


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Place:
    return Place(Path(shutil.copytree(made, tmp_path / "archive")))


def violations(place: Place, *, deep: bool = False) -> list[AuditFinding]:
    return [one for one in audit(place.archive(), trusting(), deep=deep) if one.weight == "violation"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def edit(path: Path, change: Callable[[dict], None]) -> None:
    payload = json.loads(path.read_text())
    change(payload)
    path.write_text(json.dumps(payload, indent=2))


def make_anew(place: Place) -> None:
    """Make manifest and seal fit the small files that lie there, as a forger without the key does."""
    seal_path = place.of(VICTIM) / "seal.json"
    listed = dict(manifest.parse(place.file(layout.MANIFEST).read_bytes()))
    for path in listed:
        if place.file(path).is_file():
            listed[path] = sha256(place.file(path).read_bytes()).hexdigest()
    data = manifest.render(BundleFile(path, digest, 0) for path, digest in listed.items())
    place.file(layout.MANIFEST).write_bytes(data)
    small = [BundleFile(path, digest, 0) for path, digest in listed.items() if place.file(path).is_file()]
    small += [
        BundleFile(path, sha256(place.file(path).read_bytes()).hexdigest(), 0)
        for path in (layout.MANIFEST, layout.ATTESTATION)
        if place.file(path).is_file()
    ]
    name = f"sealed-{sha256(manifest.render(small)).hexdigest()[:16]}"
    place.file("").rename(place.of(VICTIM) / name)
    edit(seal_path, lambda told: told.update(manifestSha256=sha256(data).hexdigest(), objects=f"{name}/"))


def forged_input(place: Place) -> None:
    edit(place.file(ExecuteRequest.file_name), lambda told: told["values"].update(threshold=0.9))


def forged_input_made_anew(place: Place) -> None:
    forged_input(place)
    make_anew(place)


def forged_input_without_signature(place: Place) -> None:
    forged_input(place)
    place.file(layout.ATTESTATION).unlink()
    make_anew(place)


def forged_status(place: Place) -> None:
    edit(place.of(VICTIM) / "seal.json", lambda told: told.update(status="FAILED"))


def forged_time(place: Place) -> None:
    edit(place.of(VICTIM) / "seal.json", lambda told: told.update(finished="2020-01-01T00:00:00.000000+00:00"))


def forged_time_of_the_record(place: Place) -> None:
    late = "2026-09-22T12:00:09.123456+00:00"
    edit(place.file(JobStatus.file_name), lambda told: told.update(finished=late))
    edit(place.of(VICTIM) / "seal.json", lambda told: told.update(finished=late))
    make_anew(place)


def swapped(place: Place) -> None:
    first, second = place.file(""), place.file("", OTHER)
    aside = place.root / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def swapped_whole(place: Place) -> None:
    shutil.rmtree(place.of(VICTIM))
    shutil.copytree(place.of(OTHER), place.of(VICTIM))


def signed_by_another(place: Place) -> None:
    path = place.file(layout.ATTESTATION)
    envelope = Envelope.from_json(path.read_bytes(), "it")
    path.write_bytes(sealed_envelope(envelope.payload_type, envelope.payload, a_key("b")).to_json())
    make_anew(place)


def signature_changed(place: Place) -> None:
    path = place.file(layout.ATTESTATION)
    envelope = Envelope.from_json(path.read_bytes(), "it")
    (one,) = envelope.signatures
    path.write_bytes(envelope._replace(signatures=(one._replace(data=bytes(64)),)).to_json())


def other_id(place: Place) -> None:
    edit(place.of(VICTIM) / "seal.json", lambda told: told.update(executionId=OTHER))


def appended(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def seal_removed(place: Place) -> None:
    (place.of(VICTIM) / "seal.json").unlink()


def linked(path: Path) -> None:
    """Replace a file or folder by a link to its copy outside the archive."""
    archive = next(folder for folder in path.parents if folder.name == "archive")
    target = path.rename(archive.parent / f"outside-{path.name}")
    path.symlink_to(target)


def member_twice(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"{", b'{"format": 1,', 1))


class Change(NamedTuple):
    """A single change, and the kind of the violation that it must be found as."""

    make: Callable[[Place], object]
    kind: str
    deep: bool = False
    blamed: tuple[str, ...] = (VICTIM,)


MATRIX = {
    "a flipped byte in the manifest": Change(lambda place: flip(place.file(layout.MANIFEST)), "digest"),
    "a flipped byte in the job status": Change(lambda place: flip(place.file(JobStatus.file_name)), "digest"),
    "a flipped byte in the signature": Change(lambda place: flip(place.file(layout.ATTESTATION)), "signature"),
    "another id in the seal": Change(other_id, "damaged"),
    "a flipped byte in output.zip": Change(lambda place: flip(place.zip()), "content", deep=True),
    "a forged input": Change(forged_input, "content", deep=True),
    "a forged input, manifest made anew": Change(forged_input_made_anew, "signature"),
    "a forged input, manifest made anew, unsigned": Change(forged_input_without_signature, "replaced"),
    "a forged status": Change(forged_status, "forged"),
    "a forged time": Change(forged_time, "forged"),
    "a forged time, manifest made anew": Change(forged_time_of_the_record, "replaced"),
    "the bundles of two swapped": Change(swapped, "digest", blamed=(VICTIM, OTHER)),
    "another in its place": Change(swapped_whole, "damaged"),
    "removed": Change(lambda place: shutil.rmtree(place.of(VICTIM)), "removed"),
    "its seal removed": Change(seal_removed, "removed"),
    "the signature of another key": Change(signed_by_another, "signature"),
    "a signature that is none": Change(signature_changed, "signature"),
    "the signature taken away": Change(lambda place: place.file(layout.ATTESTATION).unlink(), "signature"),
    "a truncated zip": Change(lambda place: truncated(place.zip()), "digest"),
    "an appended zip": Change(lambda place: appended(place.zip()), "digest"),
    "the zip removed": Change(lambda place: place.zip().unlink(), "missing"),
    "a file removed": Change(lambda place: place.file(layout.PROVENANCE).unlink(), "missing"),
    "a member twice in the seal": Change(lambda place: member_twice(place.of(VICTIM) / "seal.json"), "damaged"),
    "a member twice in the inclusion proof": Change(
        lambda place: member_twice(place.of(VICTIM) / "inclusion.json"), "damaged"
    ),
    "a member twice in the job status": Change(lambda place: member_twice(place.file(JobStatus.file_name)), "damaged"),
    "a link to a document": Change(lambda place: linked(place.file("metadata/instance.json")), "link"),
    "a link to the manifest": Change(lambda place: linked(place.file(layout.MANIFEST)), "link"),
    "a link to the zip": Change(lambda place: linked(place.zip()), "link"),
    "a link to a document, found by reading": Change(
        lambda place: linked(place.file("metadata/instance.json")), "content", deep=True
    ),
    "a link to the documents": Change(lambda place: linked(place.file("metadata")), "missing"),
    "a link to the seal": Change(lambda place: linked(place.of(VICTIM) / "seal.json"), "removed"),
    "a link to all of it": Change(lambda place: linked(place.of(VICTIM)), "removed"),
    "a file put there": Change(lambda place: place.file("metadata/more.json").write_text("{}"), "added"),
}


def every_file(made: Path) -> Iterator[str]:
    folder = made / "executions" / VICTIM
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "opening.json":
            yield path.relative_to(folder).as_posix()


def test_an_untouched_signed_archive_has_no_finding_of_either_kind_shallow_or_deep(place):
    assert [*audit(place.archive(), trusting())] == []
    assert [*audit(place.archive(), trusting(), deep=True)] == []


@pytest.mark.parametrize("name", MATRIX)
def test_a_single_change_is_found_with_its_kind_and_its_execution(place, name):
    change = MATRIX[name]
    change.make(place)
    found = violations(place, deep=change.deep)
    assert {one.execution for one in found} == set(change.blamed)
    assert change.kind in {one.kind for one in found if one.execution == VICTIM}, found


def test_a_flipped_byte_in_any_file_is_found_by_a_deep_audit(place, made):
    names = list(every_file(made))
    assert len(names) > 12
    for name in names:
        path = place.of(VICTIM) / name
        before = path.read_bytes()
        if before:
            flip(path)
            assert {one.execution for one in violations(place, deep=True)} == {VICTIM}, name
            path.write_bytes(before)
    assert violations(place, deep=True) == []


@pytest.mark.parametrize("path", ["metadata/request.json", layout.PROVENANCE])
def test_a_changed_byte_of_another_document_is_found_only_by_a_deep_audit(place, path):
    flip(place.file(path))  # docs/limits.md states it
    assert violations(place) == []
    assert {one.execution for one in violations(place, deep=True)} == {VICTIM}


def test_a_checkpoint_that_is_removed_changed_or_replaced_is_found(place):
    for spoil in (
        lambda: place.checkpoint(1).unlink(),
        lambda: place.checkpoint(2).unlink(),
        lambda: flip(place.checkpoint(1)),
        lambda: edit(place.checkpoint(1), lambda told: told["seals"].pop()),
        lambda: edit(place.checkpoint(2), lambda told: told["seals"][0].update(executionId=UNTOUCHED)),
    ):
        before = {number: place.checkpoint(number).read_bytes() for number in (1, 2)}
        spoil()
        assert "checkpoint" in {one.kind for one in violations(place)}
        for number, data in before.items():
            place.checkpoint(number).write_bytes(data)
    assert violations(place) == []


def test_a_checkpoint_signed_with_an_untrusted_key_is_found(place):
    place.checkpoint(2).unlink()
    written_down(place.archive(), 2, [OTHER], key="b")
    (found,) = violations(place)
    assert a_key("b").public.id in found.what


def test_an_archive_on_s3_has_findings_only_after_tampering(need, tmp_path):
    with closing(place_on("seaweedfs", need)) as there:
        archive = open_archive(there.url, options=there.options)
        fill(a_bench(tmp_path, archive=archive))
        assert list(audit(archive, trusting(), deep=True)) == []

        keys = [one["Key"] for one in there.client.list_objects_v2(Bucket=there.bucket)["Contents"]]
        for within, end, kind, blamed in (
            (VICTIM, "metadata/request.json", "content", VICTIM),
            ("checkpoints", "000000000002.json", "checkpoint", ""),
        ):
            (key,) = [one for one in keys if within in one and one.endswith(end)]
            before = there.client.get_object(Bucket=there.bucket, Key=key)["Body"].read()
            there.client.put_object(Bucket=there.bucket, Key=key, Body=before.replace(b"1", b"2"))
            found = [one for one in audit(archive, trusting(), deep=True) if one.weight == "violation"]
            assert {(one.kind, one.execution) for one in found} == {(kind, blamed)}
            there.client.put_object(Bucket=there.bucket, Key=key, Body=before)
        assert list(audit(archive, trusting())) == []


def test_an_incomplete_archive_is_not_a_violation(tmp_path):
    bench = a_bench(tmp_path, signs=False)
    sealed(bench, VICTIM)
    bench.archive.put_opening(OTHER, OpeningRecord.of(record_of(OTHER)).to_json())
    found = list(audit(bench.archive, trusting()))
    assert {(one.weight, one.kind, one.execution) for one in found} == {
        ("incomplete", "unsigned", VICTIM),
        ("incomplete", "unsealed", OTHER),
        ("incomplete", "no-checkpoint", ""),
    }


def test_an_archive_without_any_checkpoint_is_reported_if_a_key_is_trusted(place):
    shutil.rmtree(place.root / "checkpoints")
    for proof in place.root.glob("executions/*/inclusion.json"):
        proof.unlink()
    (found,) = audit(place.archive(), trusting())
    assert (found.weight, found.kind, found.execution) == ("incomplete", "no-checkpoint", "")
    assert "were deleted" in found.what
    assert "no-checkpoint" not in {one.kind for one in audit(place.archive(), TRUST_NOBODY)}


def _remove_newest(place: Place) -> None:
    """Remove the newest checkpoint with all that it lists, as a person with write access can."""
    place.checkpoint(2).unlink()
    shutil.rmtree(place.of(OTHER))
    for mark in place.root.glob(f"sealed/*/{OTHER}-*"):
        mark.unlink()


def _replace_newest(place: Place) -> None:
    """Remove the newest checkpoint and what it lists, and sign another one with the same key."""
    _remove_newest(place)
    written_down(place.archive(), 2, IDS[:1])


@pytest.mark.parametrize("harm", [_remove_newest, _replace_newest])
def test_a_copy_of_a_checkpoint_reveals_what_the_archive_alone_does_not(place, harm):
    copy = place.checkpoint(2).read_bytes()
    assert list(audit(place.archive(), trusting(), witness=copy)) == []
    harm(place)
    assert violations(place) == []
    found = [one for one in audit(place.archive(), trusting(), witness=copy) if one.weight == "violation"]
    assert {(one.kind, one.execution) for one in found} == {("checkpoint", ""), ("removed", OTHER)}


def test_a_copy_of_a_checkpoint_may_be_older_than_the_newest(place):
    copy = place.checkpoint(1).read_bytes()
    assert list(audit(place.archive(), trusting(), witness=copy)) == []
    place.checkpoint(2).unlink()
    assert {one.kind for one in audit(place.archive(), trusting(), witness=copy)} == {"checkpoint", "no-checkpoint"}


def test_a_copy_that_is_no_checkpoint_of_a_trusted_key_is_refused(place):
    copy = place.checkpoint(2).read_bytes()
    _remove_newest(place)
    with pytest.raises(RequestError, match="cannot be read"):
        list(audit(place.archive(), trusting(), witness=b"{}"))
    with pytest.raises(RequestError, match="not trusted here"):
        list(audit(place.archive(), trusting(a_key("b")), witness=copy))
    forged = copy.replace(b'"sig": "', b'"sig": "AAAA')
    with pytest.raises(RequestError, match="cannot be used"):
        list(audit(place.archive(), trusting(), witness=forged))


def test_a_seal_without_checkpoint_and_stray_objects_are_incomplete(place, tmp_path):
    bench = a_bench(tmp_path)
    fourth = OTHER.replace("c", "d")
    sealed(bench, fourth)
    (place.of(VICTIM) / "sealed-0123456789abcdef").mkdir()
    (place.of(VICTIM) / "sealed-0123456789abcdef" / "left.json").write_text("{}")
    (place.root / "executions" / "x").write_text("")
    found = {(one.weight, one.kind, one.execution) for one in audit(place.archive(), trusting())}
    assert found == {
        ("incomplete", "no-checkpoint", fourth),
        ("incomplete", "stray", VICTIM),
        ("incomplete", "stray", ""),
    }


def test_a_removal_with_a_note_is_not_a_violation(place):
    archive = place.archive()
    digest = archive.seal_of(VICTIM).manifest_sha256
    archive.put_removal(
        Removed(execution_id=VICTIM, manifest_sha256=digest, removed=datetime.now(UTC), why="asked for")
    )
    archive.remove(VICTIM)
    (found,) = audit(archive, trusting())
    assert (found.weight, found.kind, found.execution) == ("incomplete", "removed", VICTIM)
    assert "asked for" in found.what


def _noted(place: Place, execution_id: str = VICTIM, digest: str | None = None) -> None:
    archive = place.archive()
    digest = digest or archive.seal_of(execution_id).manifest_sha256
    archive.put_removal(
        Removed(execution_id=execution_id, manifest_sha256=digest, removed=datetime.now(UTC), why="asked for")
    )


def test_a_removal_note_does_not_hide_that_another_execution_has_the_id(place):
    _noted(place)
    forged_input_without_signature(place)
    found = [one for one in audit(place.archive(), trusting()) if one.kind == "removed"]
    assert [(one.weight, one.execution) for one in found] == [("incomplete", VICTIM)]
    assert "asked for; the archive has another execution with its id" in found[0].what


def test_a_removal_note_on_another_manifest_explains_nothing(place):
    _noted(place, digest="a" * 64)
    place.archive().remove(VICTIM)
    (found,) = audit(place.archive(), trusting())
    assert (found.weight, found.kind, found.execution) == ("violation", "removed", VICTIM)
    assert f"its removal note is on another manifest, {'a' * 64}" in found.what


def test_a_removal_note_on_another_execution_explains_nothing(place):
    _noted(place, OTHER)
    (place.root / f"removed/{OTHER}.json").rename(place.root / f"removed/{VICTIM}.json")
    place.archive().remove(VICTIM)
    (found,) = audit(place.archive(), trusting())
    assert (found.weight, found.kind, found.execution) == ("violation", "removed", VICTIM)


def test_a_seal_cannot_excuse_a_document(place):
    edit(place.of(VICTIM) / "seal.json", lambda told: told.update(absent=["metadata/method.json"]))
    place.file("metadata/method.json").unlink()
    found = violations(place)
    assert [(one.kind, one.execution) for one in found] == [("forged", VICTIM)]
    assert found[0].what.startswith("'metadata/method.json' is not in the archive according to the seal")


def test_without_a_trusted_key_signatures_are_reported_as_unchecked(place):
    found = list(audit(place.archive(), TRUST_NOBODY))
    assert {one.weight for one in found} == {"incomplete"}
    assert {one.kind for one in found} == {"unknown-signer", "checkpoint"}


def test_the_audit_command_counts_findings_and_sets_its_exit_code(home, made, monkeypatch, tmp_path, capsys):
    place = Place(Path(shutil.copytree(made, tmp_path / "it")))
    monkeypatch.setenv("EXECUTIONS_ARCHIVE", str(place.root))
    (tmp_path / "alice.pem").write_bytes(a_key().public.pem)
    assert main(["keys", "trust", str(tmp_path / "alice.pem")]) == 0
    assert main(["audit"]) == 0
    assert "3 executions: 0 violations" in capsys.readouterr().out
    copy = tmp_path / "kept.json"
    copy.write_bytes(place.checkpoint(2).read_bytes())
    assert main(["audit", "--checkpoint", str(copy)]) == 0
    assert main(["audit", "--checkpoint", str(tmp_path / "none.json")]) == 2
    assert "none.json cannot be read" in capsys.readouterr().err
    shutil.rmtree(place.of(VICTIM))
    assert main(["audit", "--json"]) == 1
    payload = json.loads(capsys.readouterr().out)
    assert (payload["executions"], payload["violations"]) == (2, 1)
    assert payload["findings"][0]["execution"] == VICTIM
    assert main(["audit", "--every"]) == 1
    assert f"violation\tremoved\t{VICTIM}" in capsys.readouterr().out


def test_an_end_long_before_or_after_its_checkpoint_is_reported(place):
    for number, until in ((1, NOON - timedelta(days=9)), (2, NOON - timedelta(hours=2))):
        place.checkpoint(number).unlink()
        written_down(place.archive(), number, IDS[:2] if number == 1 else IDS[2:], until=until)
    assert {(one.kind, one.execution) for one in violations(place)} == {("time", one) for one in IDS}
    for number, until in ((1, NOON + timedelta(hours=1)), (2, NOON + timedelta(days=9))):
        place.checkpoint(number).unlink()
        written_down(place.archive(), number, IDS[:2] if number == 1 else IDS[2:], until=until)
    assert list(audit(place.archive(), trusting())) == []
    place.checkpoint(1).unlink()
    place.checkpoint(2).unlink()
    written_down(place.archive(), 1, IDS[:2], until=NOON + timedelta(days=8))
    written_down(place.archive(), 2, IDS[2:], until=NOON + timedelta(days=9))
    (found,) = audit(place.archive(), trusting())
    assert (found.weight, found.kind, found.execution) == ("incomplete", "late", OTHER)


def test_an_exported_bundle_carries_its_proof_and_is_imported_with_it(place, tmp_path):
    here = a_bench(tmp_path)
    here = Workbench(tmp_path / "none", open_archive=place.archive, open_ledger=lambda: here.ledger)
    data: list[bytes] = []
    export(Catalog(here), IDS, data.append)
    file = tmp_path / "all.zip"
    file.write_bytes(b"".join(data))
    there = a_bench(tmp_path / "there")
    policy = ImportPolicy.of(Settings(home=tmp_path), datetime.now(UTC), trusting())
    assert len(import_bundles(there, str(file), policy)) == 3
    for one in IDS:
        assert there.archive.read(one, layout.INCLUSION) == place.archive().inclusion(one)
    assert [one.kind for one in audit(there.archive, trusting(), deep=True)] == ["no-checkpoint"]


def test_the_proof_beside_the_seal_is_verified_with_the_archived_execution(place, tmp_path):
    catalog = Catalog(
        Workbench(tmp_path / "none", open_archive=place.archive, open_ledger=lambda: a_bench(tmp_path).ledger)
    )

    def faults() -> str:
        (verified,) = verify_execution(catalog, VICTIM, signatures=trusting())
        assert verified.report.proven
        return "\n".join(verified.report.faults)

    assert faults() == ""
    proof = place.of(VICTIM) / "inclusion.json"
    proof.write_bytes(place.archive().inclusion(UNTOUCHED))
    assert f"metadata/inclusion.json belongs to the execution {UNTOUCHED}" in faults()
    with pytest.raises(BundleError, match=r"inclusion\.json"), open_replayable(catalog, VICTIM, signatures=trusting()):
        pass
    proof.write_bytes(b"{}")
    assert "inclusion" in faults()


def test_a_proof_of_another_bundle_or_by_another_key_is_found(place, tmp_path):
    folder = tmp_path / "it"
    place.archive().download(VICTIM, folder)
    proofs = {one: place.archive().inclusion(one) for one in IDS}
    (folder / layout.INCLUSION).write_bytes(proofs[VICTIM])
    only = {"inclusion"}
    assert verify(folder, only=only, signatures=trusting()).faults == ()
    (by_another,) = verify(folder, only=only, signatures=trusting(a_key("b"))).faults
    assert "not trusted" in by_another
    (folder / layout.INCLUSION).write_bytes(proofs[UNTOUCHED])
    assert any(UNTOUCHED in fault for fault in verify(folder, only=only, signatures=trusting()).faults)
    edit_proof = json.loads(proofs[VICTIM])
    edit_proof["path"][0] = "0" * 64
    (folder / layout.INCLUSION).write_text(json.dumps(edit_proof))
    (wrong,) = verify(folder, only=only, signatures=trusting()).faults
    assert "does not lead" in wrong


@pytest.mark.long
def test_an_audit_reads_large_objects_one_after_the_other(place):
    for execution_id in IDS:
        for number in range(3):
            late = place.of(execution_id) / f"late/{number:016}.json"
            late.parent.mkdir(exist_ok=True)
            late.write_bytes(b" " * (20 << 20))
    tracemalloc.start()
    try:
        found = [one for one in audit(place.archive(), trusting()) if one.kind == "digest"]
        assert tracemalloc.get_traced_memory()[1] < 150 << 20
    finally:
        tracemalloc.stop()
    assert len(found) == 9


def test_an_audit_names_the_objects_that_are_too_large_to_read(place):
    for number in range(5):
        late = place.of(VICTIM) / f"late/{number:016}.json"
        late.parent.mkdir(exist_ok=True)
        late.write_bytes(b"x")
        os.truncate(late, (65 if number == 4 else 64) << 20)
    found = [one.what for one in violations(place) if "was not read" in one.what]
    assert [what.partition("'")[2][:21] for what in found] == ["late/0000000000000003", "late/0000000000000004"]


def test_a_planted_file_is_not_read_beyond_the_largest_document(place):
    provo, status = place.file("metadata/provo.xml"), place.file("metadata/jobStatus.json")
    os.truncate(provo, 257 << 20)
    os.truncate(status, 65 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match=r"provo\.xml has more than 268435456 bytes"):
            place.archive().read(VICTIM, "metadata/provo.xml")
        tracemalloc.reset_peak()
        assert {one.execution for one in violations(place, deep=True)} == {VICTIM}
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_thousands_of_planted_late_seals_are_counted_and_read_in_part(place, tmp_path):
    for number in range(150):
        late = place.of(VICTIM) / f"late/{number:016}.json"
        late.parent.mkdir(exist_ok=True)
        late.write_bytes(b" " * (1 << 20))
    assert len(place.archive().beside(VICTIM)) == 127 + 1  # and the opening record
    catalog = Catalog(a_bench(tmp_path / "reader", archive=place.archive()))
    (report,) = [one.report for one in verify_execution(catalog, VICTIM, signatures=trusting())]
    faults = report.checks[0].faults
    assert len(faults) == 101
    assert faults[-1].startswith("and 15")


def test_a_size_that_no_file_has_damages_the_seal(place):
    edit(place.of(VICTIM) / "seal.json", lambda seal: seal["data"]["output.zip"].update(size=2**63))
    assert {(one.kind, one.execution) for one in violations(place, deep=True)} == {("damaged", VICTIM)}
