"""A signature that does not hold is refused wherever a bundle is verified, before anything runs or is recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benches import bench_at
from bundle_makers import an_open_bundle, copy_of, forge_json, zip_of
from prefect_executions.attestation.dsse import Envelope, Signature, sealed_envelope
from prefect_executions.attestation.keys import SigningKey
from prefect_executions.attestation.policy import TRUST_NOBODY, SignaturePolicy, SignatureState
from prefect_executions.bundles import layout
from prefect_executions.bundles.verify import verify
from prefect_executions.errors import BundleError, ForeignCodeError, ImportRefusedError, RequestError
from prefect_executions.operations.audit import audit
from prefect_executions.operations.imports import ImportPolicy, import_bundles
from prefect_executions.operations.replay import open_replayable
from prefect_executions.operations.share import check_signature
from prefect_executions.operations.verify import verify_target
from prefect_executions.settings import Settings, SignatureRule
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.keyring import KeyRing
from records import EXECUTION_ID, a_job_status, a_record, a_request
from signers import a_key, a_signed_bundle

OTHER_ID = "11111111-6f0c-4f2e-9a41-3d6d5d3f2e10"
ALICE, MALLORY = a_key("a"), a_key("m")
TRUSTED = SignaturePolicy(trusted={ALICE.public.id: ALICE.public}, names={ALICE.public.id: "alice"})
REQUIRED = SignaturePolicy(trusted=TRUSTED.trusted, unsigned=SignatureRule.REQUIRE)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that Alice signed and no test changes."""
    return a_signed_bundle(tmp_path_factory.mktemp("signed"), key=ALICE).folder


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another execution that Alice signed."""
    status = a_job_status().model_copy(update={"job_id": OTHER_ID})
    record = a_record(request=a_request(execution_id=OTHER_ID), job_status=status)
    return a_signed_bundle(tmp_path_factory.mktemp("another"), record, ALICE).folder


# --- the forgeries


def _write(bundle: Path, change: Callable[[Envelope], Envelope]) -> None:
    path = bundle / layout.ATTESTATION
    path.write_bytes(change(Envelope.from_json(path.read_bytes(), layout.ATTESTATION)).to_json())


def _with_signature(data: Callable[[bytes], bytes], key: SigningKey | None = None) -> Callable[[Path, Path], None]:
    def forge(bundle: Path, _: Path) -> None:
        def change(envelope: Envelope) -> Envelope:
            (signature,) = envelope.signatures
            key_id = key.public.id if key else signature.key_id
            return envelope._replace(signatures=(Signature(key_id, data(signature.data)),))

        _write(bundle, change)

    return forge


def _signed_again(bundle: Path, _: Path) -> None:
    _write(bundle, lambda envelope: sealed_envelope(envelope.payload_type, envelope.payload, MALLORY))


def _swapped(bundle: Path, another: Path) -> None:
    (bundle / layout.ATTESTATION).write_bytes((another / layout.ATTESTATION).read_bytes())


def _another_manifest(bundle: Path, _: Path) -> None:
    """Leave Alice's signature beside a manifest that was made again for other inputs."""
    forge_json(bundle, "auth/jwt.json", lambda agent: agent["claims"].update(note="forged"))


def _added(bundle: Path, _: Path) -> None:
    """Add a second signature, by an unknown key, to Alice's."""

    def change(envelope: Envelope) -> Envelope:
        return envelope._replace(
            signatures=(*envelope.signatures, Signature(MALLORY.public.id, MALLORY.sign(envelope.signed)))
        )

    _write(bundle, change)


FORGERIES: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "a wrong signature": (_with_signature(lambda data: bytes([data[0] ^ 1]) + data[1:]), "is invalid for this content"),
    "a zeroed signature": (_with_signature(lambda data: bytes(len(data))), "is invalid for this content"),
    "an empty signature": (_with_signature(lambda _: b""), "is invalid for this content"),
    "a zeroed signature of an unknown key": (
        _with_signature(lambda data: bytes(len(data)), MALLORY),
        "which is not trusted here",
    ),
    "an unknown signer": (_signed_again, "which is not trusted here"),
    "an unknown signer beside a trusted one": (_added, "which is not trusted here"),
    "the attestation of another bundle": (_swapped, "was signed as"),
    "a valid signature over another manifest": (_another_manifest, "was signed as"),
}


# --- the operations


def _verify(bundle: Path, home: Path, policy: SignaturePolicy) -> str:
    (verified,) = verify_target(Catalog(bench_at(home)), str(bundle), signatures=policy)
    return "\n".join(verified.report.faults)


def _import(bundle: Path, home: Path, policy: SignaturePolicy) -> str:
    bench = bench_at(home)
    terms = ImportPolicy.of(Settings(home=home), datetime.now(UTC), policy)
    try:
        import_bundles(bench, str(zip_of(bundle, home.parent / "bundle.zip")), terms)
    except ImportRefusedError as error:
        assert bench.archive.seal_of(EXECUTION_ID) is None
        assert not list(bench.ledger.list(limit=1).rows)
        return str(error)
    assert bench.archive.seal_of(EXECUTION_ID) is not None
    return ""


def _replay(bundle: Path, home: Path, policy: SignaturePolicy) -> str:
    zipped = zip_of(bundle, home.parent / "bundle.zip")
    try:
        with open_replayable(Catalog(bench_at(home)), str(zipped), signatures=policy, approve=lambda _: True):
            return ""
    except (BundleError, ForeignCodeError) as error:
        return str(error)


@contextmanager
def _archived(bundle: Path, home: Path) -> Iterator[Catalog]:
    """Archive a bundle as it is, as a person with write access to the archive can."""
    bench = bench_at(home)
    bench.folder.mkdir(parents=True)
    copy_of(bundle, bench.folder / EXECUTION_ID)
    bench.settle(EXECUTION_ID)
    yield Catalog(bench)


def _audit(bundle: Path, home: Path, policy: SignaturePolicy) -> str:
    with _archived(bundle, home) as catalog:
        findings = audit(catalog.workbench.archive, policy)
        return "\n".join(finding.what for finding in findings if finding.kind == "signature")


def _share(bundle: Path, home: Path, policy: SignaturePolicy, output: str | None = None) -> str:
    with _archived(bundle, home) as catalog:
        copy = zip_of(bundle, home.parent / "copy.zip") if output is None else bundle / "outputs" / output
        try:
            check_signature(catalog, EXECUTION_ID, copy, output, policy)
        except BundleError as error:
            return str(error)
        return ""


def _share_output(bundle: Path, home: Path, policy: SignaturePolicy) -> str:
    return _share(bundle, home, policy, "regions.csv")


OPERATIONS = {
    "verify": _verify,
    "import": _import,
    "replay": _replay,
    "audit": _audit,
    "share": _share,
    "share one output": _share_output,
}
everywhere = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=list(OPERATIONS))


@everywhere
@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_signature_that_does_not_hold_is_refused(signed, another, tmp_path, operation, forgery):
    bundle, (forge, message) = copy_of(signed, tmp_path / "forged" / EXECUTION_ID), FORGERIES[forgery]
    forge(bundle, another)
    assert message in operation(bundle, tmp_path / "home", TRUSTED)


@everywhere
def test_a_valid_signature_of_a_trusted_key_is_accepted(signed, tmp_path, operation):
    assert operation(signed, tmp_path / "home", TRUSTED) == ""


@everywhere
def test_a_missing_signature_is_refused_if_one_is_required(signed, tmp_path, operation):
    bundle = copy_of(signed, tmp_path / "forged" / EXECUTION_ID)
    (bundle / layout.ATTESTATION).unlink()
    assert operation(bundle, tmp_path / "accepting", TRUSTED) == ""
    (tmp_path / "bundle.zip").unlink(missing_ok=True)
    assert "a signature is required" in operation(bundle, tmp_path / "home", REQUIRED)


@everywhere
def test_an_unknown_signer_is_accepted_if_that_is_requested(signed, tmp_path, operation):
    policy = SignaturePolicy(allow_unknown=True, unsigned=SignatureRule.REQUIRE)
    assert operation(signed, tmp_path / "home", policy) == ""


@everywhere
def test_a_signer_that_was_named_must_have_signed(signed, tmp_path, operation):
    keys = {key.public.id: key.public for key in (ALICE, MALLORY)}
    policy = SignaturePolicy(trusted=keys, signers=frozenset({MALLORY.public.id}))
    assert "has no valid signature of" in operation(signed, tmp_path / "home", policy)


def test_the_default_policy_accepts_no_signature(signed):
    report = verify(signed)
    assert (report.passed, report.signature) == (False, SignatureState.UNKNOWN)
    assert TRUST_NOBODY.trusted == {}


def test_even_the_most_lenient_policy_refuses_a_signature_over_other_content(signed, another, tmp_path):
    bundle = copy_of(signed, tmp_path / "forged" / EXECUTION_ID)
    _swapped(bundle, another)
    report = verify(bundle, signatures=SignaturePolicy(allow_unknown=True))
    assert any("was signed as" in fault for fault in report.faults)


def test_a_report_says_who_signed_and_what_it_is_about(signed, tmp_path):
    report = verify(signed, signatures=TRUSTED)
    assert (report.signature, report.signers) == (SignatureState.TRUSTED, (ALICE.public.id,))
    assert report.subject
    assert (report.subject.execution_id, report.subject.method) == (EXECUTION_ID, "segment-coins")
    assert verify(an_open_bundle(tmp_path).folder).signature is SignatureState.UNSIGNED


# --- the key ring's policy


def test_the_policy_of_a_home_trusts_its_own_key_and_those_in_its_folder(tmp_path):
    ring = KeyRing(Settings(home=tmp_path / "home"))
    own = ring.create("alice")
    (tmp_path / "bob.pem").write_bytes(MALLORY.public.pem)
    bob = ring.trust(tmp_path / "bob.pem", "bob")
    assert ring.policy().names == {own.id: "alice", bob.id: "bob"}
    own.path.unlink()
    assert ring.policy().names == {own.id: "own", bob.id: "bob"}


@pytest.mark.parametrize("by", ["name", "id", "short id", "file"])
def test_a_signer_is_named_by_name_id_or_file(tmp_path, by):
    ring = KeyRing(Settings(home=tmp_path / "home"))
    file = tmp_path / "mallory.pem"
    file.write_bytes(MALLORY.public.pem)
    if by != "file":
        ring.trust(file, "mallory")
    text = {"name": "mallory", "id": MALLORY.public.id, "short id": MALLORY.public.id[:8], "file": str(file)}[by]
    policy = ring.policy(signers=[text])
    assert policy.signers == {MALLORY.public.id}
    assert MALLORY.public.id in policy.trusted


@pytest.mark.parametrize("text", ["nobody", MALLORY.public.id, MALLORY.public.id[:7], "no.pem"])
def test_a_signer_whose_key_is_not_here_cannot_be_named(tmp_path, text):
    with pytest.raises(RequestError, match=f"--signer {text} is neither"):
        KeyRing(Settings(home=tmp_path)).policy(signers=[text])


def test_the_rule_for_unsigned_bundles_comes_from_the_settings_unless_a_signature_is_required(tmp_path):
    ring = KeyRing(Settings(home=tmp_path, signatures=SignatureRule.IGNORE))
    assert ring.policy().unsigned is SignatureRule.IGNORE
    assert ring.policy(require=True).required
