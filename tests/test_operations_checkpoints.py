"""Checkpoints contain every seal once, in a tamper-evident chain, with an inclusion proof for each."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archives import content, place_on
from prefect_executions.archive.archive import Archive, open_archive
from prefect_executions.archive.objects import Seal
from prefect_executions.attestation.transparency import (
    Checkpoint,
    Inclusion,
    SealEntry,
    Tree,
    checkpoint_of,
    inclusions,
    leaf,
    proves_inclusion,
)
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.objectstore.open import open_store
from prefect_executions.operations.checkpoints import read_seal_history, write_checkpoints
from prefect_executions.workbench.workbench import Workbench
from signers import a_key, trusting

NOW = datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return a_bench(tmp_path)


def a_bench(tmp_path: Path, *, signs: bool = True, archive: Archive | None = None) -> Workbench:
    return Workbench(
        tmp_path / "bench",
        open_archive=lambda: archive or open_archive(str(tmp_path / "archive")),
        open_ledger=lambda: Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}"),
        signing_key=lambda: a_key() if signs else None,
    )


def seal(bench: Workbench, execution_id: str, *, at: datetime | None = None) -> str:
    made = content(bench.folder / execution_id, {"metadata/method.json": execution_id.encode()})
    return bench.archive.seal(execution_id, made._replace(at=at or datetime.now(UTC))).seal.manifest_sha256


def told(archive: Archive, number: int) -> Checkpoint:
    return Checkpoint.from_json(archive.checkpoints.get(number))


def test_the_empty_and_the_one_byte_leaf_have_the_hashes_of_the_reference_vectors():
    # The test vectors of Certificate Transparency (google/certificate-transparency, merkletree).
    assert leaf(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    leaves = [bytes.fromhex(one) for one in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")]
    leaves.append(bytes.fromhex("606162636465666768696a6b6c6d6e6f"))
    roots = {
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    }
    for size, root in roots.items():
        assert Tree([leaf(one) for one in leaves[:size]]).root.hex() == root


@given(st.integers(1, 70), st.data())
def test_each_entry_of_a_tree_and_no_other_has_a_proof(size, data):
    leaves = [leaf(str(number).encode()) for number in range(size)]
    tree = Tree(leaves)
    index = data.draw(st.integers(0, size - 1))
    path = tree.path(index)
    assert proves_inclusion(tree.root, leaves[index], index, size, path)
    assert not proves_inclusion(tree.root, leaf(b"another"), index, size, path)
    assert not proves_inclusion(tree.root, leaves[index], index + 1, size, path)
    assert not proves_inclusion(tree.root, leaves[index], index, size, [*path, leaves[0]])
    if path:
        assert not proves_inclusion(tree.root, leaves[index], index, size, path[:-1])


def test_every_proof_of_a_checkpoint_holds_and_a_changed_one_does_not():
    seals = [SealEntry(execution_id=f"e{number}", manifest_sha256=f"{number:064x}") for number in range(11)]
    made = checkpoint_of(seals, number=1, previous=None, until=NOW, key=a_key())
    assert list(made.faults()) == []
    for proof in inclusions(made):
        assert Inclusion.from_json(proof.to_json()).holds
        assert not proof.model_copy(update={"index": proof.index + 1}).holds
        assert not proof.model_copy(update={"path": ("no hex",)}).holds


def test_each_seal_is_in_one_checkpoint_and_the_checkpoints_form_a_chain(bench):
    first = {one: seal(bench, one) for one in ("one", "two", "three")}
    assert write_checkpoints(bench) == 3
    assert write_checkpoints(bench) == 0
    second = seal(bench, "four")
    assert write_checkpoints(bench) == 1
    archive = bench.archive
    assert archive.checkpoints.numbers() == [1, 2]
    assert {one.execution_id: one.manifest_sha256 for one in told(archive, 1).seals} == first
    assert [one.manifest_sha256 for one in told(archive, 2).seals] == [second]
    assert told(archive, 2).parsed_head().previous == sha256(archive.checkpoints.get(1)).hexdigest()
    seen, faults = read_seal_history(archive, trusting())
    assert (faults, seen.sealed.keys()) == ([], {"one", "two", "three", "four"})


def test_each_seal_in_a_checkpoint_has_an_inclusion_proof(bench):
    seal(bench, "one")
    seal(bench, "two")
    write_checkpoints(bench)
    proof = Inclusion.from_json(bench.archive.inclusion("two"))
    assert proof.holds
    assert proof.seal.execution_id == "two"
    assert bench.archive.inclusion("other") is None
    assert bench.archive.sweep(datetime.now(UTC) + timedelta(days=1)).objects == 0


def test_without_a_signing_key_no_checkpoint_is_written(tmp_path):
    bench = a_bench(tmp_path, signs=False)
    seal(bench, "one")
    assert write_checkpoints(bench) == 0
    assert bench.archive.checkpoints.last() == 0


def test_a_mark_without_a_seal_is_not_in_a_checkpoint(bench):
    seal(bench, "one")
    bench.archive.marks.close("ghost", "0" * 64, datetime.now(UTC))
    bench.archive.marks.close("one", "0" * 64, datetime.now(UTC))
    assert write_checkpoints(bench) == 1


def test_a_late_mark_is_found_with_an_earlier_since(bench):
    seal(bench, "one")
    write_checkpoints(bench)
    seal(bench, "late", at=datetime.now(UTC) - timedelta(days=3))
    assert write_checkpoints(bench) == 0
    assert write_checkpoints(bench, since=datetime.now(UTC) - timedelta(days=4)) == 1
    assert write_checkpoints(bench, since=datetime.now(UTC) - timedelta(days=4)) == 0
    assert write_checkpoints(bench, since=datetime.now(UTC) + timedelta(days=400)) == 0


def test_one_of_two_racing_writers_of_a_checkpoint_wins(bench):
    assert bench.archive.checkpoints.add(1, b"first")
    assert not bench.archive.checkpoints.add(1, b"second")
    assert bench.archive.checkpoints.get(1) == b"first"


class Overtaken(Archive):
    """An archive in which somebody else writes a checkpoint just after the seals for the next one were read."""

    other: Workbench | None = None

    def seals_of(self, ids: Iterable[str]) -> dict[str, Seal]:
        found = super().seals_of(ids)
        if self.other is not None:
            other, self.other = self.other, None
            assert write_checkpoints(other) == len(found)
        return found


def test_the_losing_writer_writes_no_seal_twice(bench, tmp_path):
    archive = Overtaken(open_store(str(tmp_path / "archive")))
    seal(bench, "one")
    archive.other = bench

    assert write_checkpoints(a_bench(tmp_path, archive=archive)) == 0
    assert archive.checkpoints.numbers() == [1]


def test_concurrent_writers_on_s3_write_each_seal_once(need, tmp_path):
    with closing(place_on("seaweedfs", need)) as place:
        benches = [
            a_bench(tmp_path / name, archive=open_archive(place.url, options=place.options))
            for name in ("here", "there")
        ]
        first, archive = {one: seal(benches[0], one) for one in ("one", "two", "three")}, benches[1].archive
        with ThreadPoolExecutor() as threads:
            list(threads.map(write_checkpoints, benches))
        seal(benches[1], "four")

        assert [write_checkpoints(bench) for bench in benches] == [1, 0]
        assert {one.execution_id: one.manifest_sha256 for one in told(archive, 1).seals} == first
        assert [one.execution_id for one in told(archive, 2).seals] == ["four"]
        seen, faults = read_seal_history(archive, trusting())
        assert (faults, seen.sealed.keys()) == ([], {*first, "four"})
        assert Inclusion.from_json(archive.inclusion("two")).holds
        assert not archive.checkpoints.add(2, b"another")


def test_numbers_go_on_beyond_a_thousand(bench):
    for number in (999, 1000, 1001):
        bench.archive.checkpoints.add(number, b"")
    assert bench.archive.checkpoints.last() == 1001
    assert bench.archive.checkpoints.numbers() == [999, 1000, 1001]
