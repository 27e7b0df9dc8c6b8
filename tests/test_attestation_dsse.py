"""A signed seal says who sealed what: in the forms that other tools know, the same bytes each time."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle_makers import a_sealed_bundle, an_open_bundle, copy_of, finish, forge_json, renew_manifest, zip_of
from prefect_executions.attestation.dsse import PAYLOAD_TYPE, Envelope, commands, pae, sealed_envelope
from prefect_executions.attestation.keys import SigningKey, VerifyingKey
from prefect_executions.attestation.policy import SignaturePolicy, SignatureState
from prefect_executions.bundles import layout, manifest
from prefect_executions.bundles.seal import seal
from prefect_executions.bundles.verify import verify
from prefect_executions.errors import BundleError, SettingsError
from prefect_executions.executions.record import ExecutionRecord
from records import EXECUTION_ID, a_job_status, a_record, a_request
from signers import a_key, a_signed_bundle, trusting

OTHER_ID = "11111111-6f0c-4f2e-9a41-3d6d5d3f2e10"
ATTESTATION = layout.ATTESTATION


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed bundle that no test changes."""
    return a_signed_bundle(tmp_path_factory.mktemp("signed")).folder


@pytest.fixture
def bundle(signed: Path, tmp_path: Path) -> Path:
    """A signed bundle to be forged."""
    return copy_of(signed, tmp_path / "bundle")


def another_record() -> ExecutionRecord:
    told = a_job_status().model_copy(update={"job_id": OTHER_ID})
    return a_record(request=a_request(execution_id=OTHER_ID), job_status=told)


def faults(folder: Path, *keys: SigningKey) -> list[str]:
    report = verify(folder, only={"signature"}, signatures=trusting(*keys))
    return [fault for check in report.checks for fault in check.faults]


def test_the_pre_authentication_encoding_is_that_of_the_dsse_protocol():
    # The example of secure-systems-lab/dsse, protocol.md.
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_key_made_of_a_known_seed_signs_as_rfc_8032_says():
    # RFC 8032, section 7.1, TEST 1.
    key = SigningKey.of_seed(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert key.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )


@given(st.text(), st.binary())
def test_an_envelope_is_read_as_it_was_written(kind, payload):
    kind = kind.encode("ascii", "ignore").decode().replace('"', "").replace("\\", "")
    kind = "".join(letter for letter in kind if letter.isprintable())
    made = sealed_envelope(kind, payload, a_key())
    assert Envelope.from_json(made.to_json(), "it") == made
    assert a_key().public.signed(made.signed, made.signatures[0].data)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"payloadType": "a", "payload": "!", "signatures": [{}]}'])
def test_what_is_no_envelope_is_refused_by_name(text):
    with pytest.raises(BundleError, match="attestation"):
        Envelope.from_json(text.encode(), "attestation")


@pytest.mark.parametrize("steps", [(), ("signatures", 0)])
def test_a_member_that_no_signature_covers_is_refused(bundle, steps):
    envelope = json.loads((bundle / ATTESTATION).read_text())
    part = envelope
    for step in steps:
        part = part[step]
    part["more"] = "text"
    (bundle / ATTESTATION).write_text(json.dumps(envelope))
    assert faults(bundle) == [f"{ATTESTATION}: a DSSE envelope has no member 'more'"]


def test_a_signature_that_is_there_twice_is_refused(bundle):
    path = bundle / layout.ATTESTATION
    envelope = json.loads(path.read_text())
    envelope["signatures"] *= 2
    path.write_text(json.dumps(envelope))
    (fault,) = verify(bundle, signatures=trusting()).faults
    assert fault.endswith("has two signatures of the same key")


@pytest.mark.parametrize("key_id", ["", "alice", "A" * 64, "a" * 63, "alice (0123456789abcdef), and valid"])
def test_a_key_id_that_is_no_digest_is_refused(bundle, key_id):
    path = bundle / layout.ATTESTATION
    path.write_text(path.read_text().replace(a_key().public.id, key_id))
    report = verify(bundle, signatures=SignaturePolicy(allow_unknown=True))
    assert report.signature is SignatureState.INVALID
    assert any("is not a SHA-256 in lower-case hex" in fault for fault in report.faults)


def test_base64_with_a_second_text_for_the_same_bytes_is_refused(bundle):
    text = (bundle / ATTESTATION).read_text()
    assert '=="' in text  # 64 bytes leave four unused bits
    place = text.index('=="') - 1
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = letters[letters.index(text[place]) ^ 1]
    (bundle / ATTESTATION).write_text(text[:place] + other + text[place + 1 :])
    assert faults(bundle) == [f"{ATTESTATION}: invalid base64: it is not in its canonical form"]


@pytest.mark.parametrize(
    ("value", "signed"),
    [
        (2**53 - 1, 2**53 - 1),
        (2**53, "9007199254740992"),
        (-(2**53) - 1, "-9007199254740993"),
        (10**400, "1" + "0" * 400),
        (1.5e308, 1.5e308),
        (True, True),
    ],
)
def test_a_number_that_other_libraries_cannot_read_exactly_is_signed_as_text(tmp_path, value, signed):
    request = a_request(values={"nested": {"deep": [value]}})
    folder = a_signed_bundle(tmp_path, a_record(request=request)).folder
    payload = json.loads(Envelope.from_json((folder / ATTESTATION).read_bytes(), ATTESTATION).payload)
    inputs = payload["predicate"]["buildDefinition"]["externalParameters"]["inputs"]
    assert inputs["nested"]["value"] == {"deep": [signed]}
    assert faults(folder) == []


def test_a_key_that_is_read_from_its_pem_is_the_same_key():
    key = a_key()
    assert SigningKey.from_pem(key.pem, "it").sign(b"x") == key.sign(b"x")
    assert VerifyingKey.from_pem(key.public.pem, "it").id == key.public.id
    assert not a_key("b").public.signed(b"x", key.sign(b"x"))


@pytest.mark.parametrize("read", [SigningKey.from_pem, VerifyingKey.from_pem])
def test_what_is_no_key_is_refused_by_the_name_of_its_file(read):
    with pytest.raises(SettingsError, match=r"there\.pem"):
        read(b"-----BEGIN nothing-----", "there.pem")


def test_the_statement_has_the_manifest_and_all_its_files_as_subjects_and_tells_the_run(signed):
    told = json.loads(Envelope.from_json((signed / ATTESTATION).read_bytes(), ATTESTATION).payload)
    listed = manifest.parse((signed / layout.MANIFEST).read_bytes())
    subjects = {one["name"]: one["digest"]["sha256"] for one in told["subject"]}
    assert subjects.pop(layout.MANIFEST) == sha256((signed / layout.MANIFEST).read_bytes()).hexdigest()
    assert subjects == dict(listed)
    assert (told["_type"], told["predicateType"]) == (
        "https://in-toto.io/Statement/v1",
        "https://slsa.dev/provenance/v1",
    )
    build, run = told["predicate"]["buildDefinition"], told["predicate"]["runDetails"]
    assert build["externalParameters"]["method"] == {"id": "segment-coins", "version": "1.2.0"}
    assert {one["name"]: next(iter(one["digest"])) for one in build["resolvedDependencies"]} == {
        "inputs/picture.png": "sha256",
        "code/flows/coins.py": "sha256",
        "repository": "gitCommit",
    }
    assert run["metadata"]["invocationId"] == EXECUTION_ID
    assert run["metadata"]["finishedOn"] == "2026-09-22T12:00:08.123456+00:00"
    assert run["builder"]["id"]


def test_sealing_twice_with_one_key_gives_the_same_signature(tmp_path):
    made = [(a_signed_bundle(tmp_path / place).folder / ATTESTATION).read_bytes() for place in ("one", "two")]
    assert made[0] == made[1]


def test_a_sealed_bundle_keeps_the_signature_that_it_has_or_has_not(tmp_path):
    signed = a_signed_bundle(tmp_path / "signed")
    assert seal(signed, a_key("b")).attestation == (signed.folder / ATTESTATION).read_bytes()
    bare = a_sealed_bundle(tmp_path / "bare")
    assert seal(bare, a_key()).attestation is None
    assert not (bare.folder / ATTESTATION).exists()


def test_the_signature_of_a_sealing_that_was_cut_short_does_not_stay_when_nobody_signs(tmp_path):
    bundle = an_open_bundle(tmp_path)
    bundle.write(ATTESTATION, b"{}")
    finish(bundle)
    assert not (bundle.folder / ATTESTATION).exists()


def test_a_signed_bundle_verifies_as_folder_and_zip_with_and_without_trust(signed, tmp_path):
    for place in (signed, zip_of(signed, tmp_path / "it.zip")):
        report = verify(place, signatures=trusting())
        assert (report.faults, report.unchecked) == ((), ())
        assert report.signers == (a_key().public.id,)
        assert not verify(place).passed
        lenient = verify(place, signatures=SignaturePolicy(allow_unknown=True))
        assert lenient.passed
        assert "cannot be checked" in lenient.unchecked[-1]


def test_an_unsigned_bundle_is_told_where_keys_are_trusted(tmp_path):
    folder = a_sealed_bundle(tmp_path).folder
    report = verify(folder, signatures=trusting())
    assert report.passed
    assert report.unchecked == ("signature: the bundle is not signed",)
    assert verify(folder).unchecked == ()


def test_the_signature_of_an_unknown_key_is_told_by_its_id(signed):
    (fault,) = faults(signed, a_key("b"))
    assert a_key().public.id in fault
    assert "not trusted" in fault


def test_a_forger_who_makes_the_manifest_anew_is_found_by_the_subjects(bundle):
    forge_json(bundle, "metadata/request.json", lambda told: told["values"].update(threshold=0.4))
    told = faults(bundle)
    assert any("'metadata/request.json' was signed as" in fault for fault in told)
    assert any("'manifest-sha256.txt' was signed as" in fault for fault in told)


def test_a_file_that_is_taken_away_or_added_with_its_line_of_the_manifest_is_named(bundle):
    (bundle / "outputs" / "regions.csv").unlink()
    (bundle / "outputs" / "more.csv").write_text("1")
    renew_manifest(bundle)
    told = "\n".join(faults(bundle))
    assert "'outputs/regions.csv' was signed as" in told
    assert "'outputs/more.csv' was signed as absent" in told


def test_a_changed_payload_is_found(bundle):
    envelope = Envelope.from_json((bundle / ATTESTATION).read_bytes(), ATTESTATION)
    changed = envelope._replace(payload=envelope.payload.replace(b"1.2.0", b"9.9.9"))
    (bundle / ATTESTATION).write_bytes(changed.to_json())
    assert any("is invalid for this content" in fault for fault in faults(bundle))


def test_the_attestation_of_another_execution_is_found(bundle, tmp_path):
    other = a_signed_bundle(tmp_path, another_record()).folder
    (bundle / ATTESTATION).write_bytes((other / ATTESTATION).read_bytes())
    told = faults(bundle)
    assert f"the execution was signed as {OTHER_ID}; metadata/jobStatus.json says {EXECUTION_ID}" in told


@pytest.mark.parametrize(
    ("steps", "value", "fault"),
    [
        (("buildDefinition", "externalParameters", "inputs"), {}, "buildDefinition/externalParameters/inputs"),
        (
            ("buildDefinition", "externalParameters", "method", "version"),
            "9",
            "buildDefinition/externalParameters/method",
        ),
        (("buildDefinition", "resolvedDependencies"), [], "buildDefinition/resolvedDependencies"),
        (("runDetails", "builder", "id"), "https://example.org/", "runDetails/builder/id"),
        (("runDetails", "byproducts"), [], "runDetails/byproducts"),
    ],
)
def test_a_signed_statement_that_contradicts_the_documents_is_found(bundle, steps, value, fault):
    """The key is trusted, or accepted unchecked: what it signed is compared all the same."""
    path = bundle / ATTESTATION
    statement = json.loads(Envelope.from_json(path.read_bytes(), ATTESTATION).payload)
    part = statement["predicate"]
    for step in steps[:-1]:
        part = part[step]
    part[steps[-1]] = value
    path.write_bytes(sealed_envelope(PAYLOAD_TYPE, json.dumps(statement).encode(), a_key()).to_json())
    (found,) = faults(bundle)
    assert found.startswith(f"{fault} was signed as ")


def test_a_signed_statement_has_no_more_members(bundle):
    path = bundle / ATTESTATION
    statement = json.loads(Envelope.from_json(path.read_bytes(), ATTESTATION).payload) | {"more": 1}
    path.write_bytes(sealed_envelope(PAYLOAD_TYPE, json.dumps(statement).encode(), a_key()).to_json())
    assert faults(bundle) == ["the signed statement has the member 'more', which the documents do not give"]


def test_an_envelope_around_something_else_is_no_seal(bundle):
    other = sealed_envelope("text/plain", b"hello", a_key())
    (bundle / ATTESTATION).write_bytes(other.to_json())
    assert faults(bundle) == [f"{ATTESTATION} has the type text/plain instead of {PAYLOAD_TYPE}"]


def test_stock_openssl_finds_the_signature_right_and_a_changed_one_wrong(bundle, tmp_path, need_program):
    need_program("openssl")
    key = tmp_path / "the signer.pem"
    key.write_bytes(a_key().public.pem)
    script = "set -e\n" + "\n".join(commands(str(key)))

    def review() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", "-c", script], cwd=bundle, capture_output=True, text=True, check=False)

    told = review()
    assert told.returncode == 0, told.stderr
    assert "Signature Verified Successfully" in told.stdout
    key.write_bytes(a_key("b").public.pem)
    assert review().returncode != 0
    key.write_bytes(a_key().public.pem)
    (bundle / "outputs" / "regions.csv").write_text("forged")
    assert review().returncode != 0
    renew_manifest(bundle)
    assert review().returncode != 0


def test_the_id_of_a_key_is_what_openssl_and_sha256sum_say(tmp_path, need_program):
    key = tmp_path / "key.pem"
    key.write_bytes(a_key().public.pem)
    der = subprocess.run(
        [need_program("openssl"), "pkey", "-pubin", "-in", key, "-outform", "DER"], capture_output=True, check=True
    ).stdout
    assert sha256(der).hexdigest() == a_key().public.id


def test_who_has_no_key_does_not_pay_for_cryptography():
    told = "import sys, prefect_executions.cli.app, prefect_executions.workbench.keyring as k; "
    told += "import prefect_executions.settings as s; "
    told += "k.KeyRing(s.Settings(home='/nowhere')).signing_key(); print('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_members_of_an_envelope_are_plain_json_and_base64(signed):
    told = json.loads((signed / ATTESTATION).read_text())
    assert told["payloadType"] == "application/vnd.in-toto+json"
    assert json.loads(base64.b64decode(told["payload"]))["predicateType"] == "https://slsa.dev/provenance/v1"
    assert len(base64.b64decode(told["signatures"][0]["sig"])) == 64


def test_an_envelope_that_takes_too_long_or_has_no_message_is_refused():
    signatures = [{"keyid": f"{number:064x}", "sig": "AA=="} for number in range(101)]
    envelope = {"payloadType": PAYLOAD_TYPE, "payload": "AA==", "signatures": signatures[:100]}
    assert len(Envelope.from_json(json.dumps(envelope).encode(), "x").signatures) == 100
    for change, words in (
        ({"signatures": signatures}, "x has 101 signatures; the limit is 100"),
        ({"payloadType": "t" * 257}, "payloadType must .* at most 256 characters"),
        ({"payloadType": "\ud800"}, "payloadType must be printable"),
    ):
        with pytest.raises(BundleError, match=words):
            Envelope.from_json(json.dumps(envelope | change).encode(), "x")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"])
def test_an_envelope_in_another_encoding_is_refused(signed, encoding):
    data = (signed / ATTESTATION).read_text().encode(encoding)
    with pytest.raises(BundleError, match="does not begin with a brace"):
        Envelope.from_json(data, ATTESTATION)
