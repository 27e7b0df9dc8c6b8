"""The key ring: private keys are readable by their owner, none is overwritten, and seals are signed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from bundle_makers import a_sealed_bundle, an_open_bundle
from prefect_executions.archive.archive import open_archive
from prefect_executions.bundles import layout
from prefect_executions.cli.app import main
from prefect_executions.errors import RequestError, SettingsError
from prefect_executions.ledger.ledger import Ledger
from prefect_executions.lifecycle.status import Observer, Status
from prefect_executions.operations.verify import NAMESPACE, verify_target
from prefect_executions.settings import Settings
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.keyring import KeyRing
from prefect_executions.workbench.sealing import Ending
from prefect_executions.workbench.workbench import Workbench
from records import EXECUTION_ID, NOON, a_record
from signers import a_key, a_signed_bundle

END = Ending(Status.COMPLETED, None, NOON, Observer.HOOK)


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing(Settings(home=tmp_path / "home"))


def bench(tmp_path: Path, ring: KeyRing) -> Workbench:
    return Workbench(
        tmp_path / "bench",
        open_archive=lambda: open_archive(str(tmp_path / "archive")),
        open_ledger=lambda: Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}"),
        signing_key=ring.signing_key,
    )


def test_a_home_without_keys_signs_nothing_and_trusts_no_key(ring):
    assert ring.signing_key() is None
    assert (ring.trusted(), ring.entries()) == ({}, ())


def test_a_created_key_signs_is_trusted_and_readable_by_its_owner_only(ring):
    made = ring.create("alice@example.org")
    assert ring.private.stat().st_mode & 0o777 == 0o600
    assert ring.entries() == (made,)
    assert ring.signing_key().public.id == made.id
    assert ring.trusted()[made.id].signed(b"x", ring.signing_key().sign(b"x"))


def test_no_key_is_ever_overwritten(ring):
    made = ring.create("own")
    private = ring.private.read_bytes()
    with pytest.raises(RequestError, match="never overwritten"):
        ring.create("other")
    ring.private.unlink()
    with pytest.raises(RequestError, match="the name own is taken"):
        ring.create("own")
    assert made.path.read_bytes() == a_public_key_of(private)


def a_public_key_of(private: bytes) -> bytes:
    from prefect_executions.attestation.keys import SigningKey  # noqa: PLC0415 - one test's own

    return SigningKey.from_pem(private, "it").public.pem


def test_a_public_key_is_trusted_once_under_one_name(ring, tmp_path):
    file = tmp_path / "bob.pem"
    file.write_bytes(a_key().public.pem)
    result = ring.trust(file, "bob")
    assert (result.id, result.own) == (a_key().public.id, False)
    with pytest.raises(RequestError, match="already, as bob"):
        ring.trust(file, "bob2")
    file.write_bytes(a_key("b").public.pem)
    with pytest.raises(RequestError, match="the name bob is taken"):
        ring.trust(file, "bob")
    with pytest.raises(RequestError, match="is not a valid key name"):
        ring.trust(file, "../bob")


def test_a_name_that_could_pass_for_another_key_is_refused(ring, tmp_path):
    file = tmp_path / "key.pem"
    file.write_bytes(a_key().public.pem)
    alice = ring.trust(file, "alice")
    file.write_bytes(a_key("b").public.pem)
    for name in (alice.id, alice.id[:8], alice.id.upper(), "Alice", "own", "OWN"):
        with pytest.raises(RequestError, match=f"the name {name} "):
            ring.trust(file, name)


def test_a_signer_is_named_unambiguously(ring, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alice, mallory = a_key().public, a_key("b").public
    (ring.private.parent / "trusted").mkdir(parents=True)
    (ring.private.parent / "trusted" / f"{alice.id}.pem").write_bytes(mallory.pem)
    (ring.private.parent / "trusted" / "alice.pem").write_bytes(alice.pem)
    assert ring.policy(signers=["alice"]).signers == {alice.id}
    assert ring.policy(signers=[alice.id[:16]]).signers == {alice.id}
    with pytest.raises(RequestError, match="names 2 keys"):
        ring.policy(signers=[alice.id])
    Path("bob").write_bytes(mallory.pem)
    with pytest.raises(RequestError, match="neither the name nor the id"):
        ring.policy(signers=["bob"])
    Path("bob").rename("bob.pem")
    assert ring.policy(signers=["bob.pem"]).signers == {mallory.id}


def test_a_private_key_is_not_taken_for_a_public_one(ring, tmp_path):
    file = tmp_path / "private.pem"
    file.write_bytes(a_key().pem)
    with pytest.raises(SettingsError, match="is not a public key"):
        ring.trust(file, "bob")
    assert ring.entries() == ()


def test_a_key_named_by_the_setting_must_exist(tmp_path):
    with pytest.raises(SettingsError, match="EXECUTIONS_SIGNING_KEY"):
        KeyRing(Settings(home=tmp_path, signing_key=tmp_path / "none.pem")).signing_key()
    (tmp_path / "bad.pem").write_text("no key")
    with pytest.raises(SettingsError, match=r"bad\.pem is not a private key"):
        KeyRing(Settings(home=tmp_path, signing_key=tmp_path / "bad.pem")).signing_key()


def test_a_method_does_not_start_if_its_seal_could_not_be_signed(tmp_path):
    broken = KeyRing(Settings(home=tmp_path, signing_key=tmp_path / "none.pem"))
    with pytest.raises(SettingsError, match="EXECUTIONS_SIGNING_KEY"):
        bench(tmp_path, broken).announce(a_record())


def test_with_a_key_each_seal_is_signed_and_the_signature_is_archived(tmp_path, ring):
    ring.create("own")
    here = bench(tmp_path, ring)
    folder = an_open_bundle(here.folder).folder
    assert here.seal(EXECUTION_ID, END).archived
    kept = here.archive.read(EXECUTION_ID, layout.ATTESTATION)
    assert kept == (folder / layout.ATTESTATION).read_bytes()
    copies = list(verify_target(Catalog(here), EXECUTION_ID, signatures=ring.policy()))
    assert [one.place for one in copies] == ["workbench", "archive"]
    assert [(one.report.faults, one.report.unchecked) for one in copies] == [((), ()), ((), copies[1].report.unchecked)]
    assert not any("signature" in words for words in copies[1].report.unchecked)


def test_a_seal_that_cannot_be_signed_now_is_made_by_the_next_settle(tmp_path, ring):
    here = bench(tmp_path, ring)
    an_open_bundle(here.folder)
    ring.create("own")
    good = ring.private.read_bytes()
    ring.private.write_text("damaged")
    with pytest.raises(SettingsError):
        here.seal(EXECUTION_ID, END)
    assert here.archive.seal_of(EXECUTION_ID) is None
    ring.private.write_bytes(good)
    assert here.settle(EXECUTION_ID).archived
    assert here.archive.read(EXECUTION_ID, layout.ATTESTATION)


def test_keys_are_created_listed_and_trusted_at_the_terminal(home, tmp_path, capsys):
    assert main(["keys", "create", "--name", "alice", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    (tmp_path / "bob.pem").write_bytes(a_key().public.pem)
    assert main(["keys", "trust", str(tmp_path / "bob.pem")]) == 0
    capsys.readouterr()
    assert main(["keys", "list", "--json"]) == 0
    payload = json.loads(capsys.readouterr().out)["keys"]
    assert [(one["name"], one["own"]) for one in payload] == [("alice", True), ("bob", False)]
    assert payload[0]["id"] == made["id"]
    assert main(["keys", "create"]) == 2


def test_verify_prints_the_commands_for_a_reviewer(home, tmp_path, capsys):
    folder = a_signed_bundle(tmp_path).folder
    assert main(["verify", str(folder), "-v", "--allow-unknown-signer"]) == 0
    output = capsys.readouterr().out
    assert "openssl pkeyutl -verify -pubin -inkey SIGNER.pem -rawin" in output
    (tmp_path / "alice.pem").write_bytes(a_key().public.pem)
    main(["keys", "trust", str(tmp_path / "alice.pem")])
    assert main(["verify", str(folder), "--verbose"]) == 0
    assert f"-inkey {home}/keys/trusted/alice.pem" in capsys.readouterr().out
    (folder / layout.ATTESTATION).write_bytes(
        a_signed_bundle(tmp_path / "b", key=a_key("b")).folder.joinpath(layout.ATTESTATION).read_bytes()
    )
    assert main(["verify", str(folder)]) == 1
    assert a_key("b").public.id in capsys.readouterr().out


def test_a_manifest_signed_with_an_ssh_key_is_checked_against_the_allowed_signers(home, tmp_path, need_program, capsys):
    keygen = need_program("ssh-keygen")
    folder = a_sealed_bundle(tmp_path).folder
    for name in ("alice", "mallory"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", tmp_path / name], check=True)
    allowed = tmp_path / "allowed"
    allowed.write_text(f"alice@example.org {(tmp_path / 'alice.pub').read_text()}")
    asked = ["verify", str(folder), "--allowed-signers", str(allowed)]

    def signed_by(name: str, namespace: str) -> int:
        (folder / layout.SSH_SIGNATURE).unlink(missing_ok=True)
        words = [keygen, "-Y", "sign", "-f", tmp_path / name, "-n", namespace, folder / layout.MANIFEST]
        subprocess.run(words, check=True, capture_output=True)
        return main(asked)

    assert main(asked) == 1
    assert "manifest-sha256.txt.sig is missing" in capsys.readouterr().out
    assert signed_by("alice", NAMESPACE) == 0
    assert main(["verify", str(folder)]) == 0
    assert signed_by("alice", "git") == 1
    capsys.readouterr()
    assert signed_by("mallory", NAMESPACE) == 1
    assert "the signer of" in capsys.readouterr().out
    allowed.unlink()
    assert main(asked) == 2
    assert f"--allowed-signers {allowed}: file not found" in capsys.readouterr().err
