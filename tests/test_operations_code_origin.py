"""Code runs without a question if this home sealed it or trusts its signer; what a bundle claims does not count."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import zipfile
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest

from benches import begun, bench_at, kept, record_of
from bundle_makers import a_sealed_bundle, forge_json, renew_manifest, zip_of
from prefect_executions.attestation.policy import TRUST_NOBODY, SignaturePolicy
from prefect_executions.cli.app import main
from prefect_executions.cli.exit_codes import WORLD
from prefect_executions.cli.replay import isolated_command
from prefect_executions.comparison.verdict import ReplayGoal
from prefect_executions.errors import BundleError, ForeignCodeError
from prefect_executions.lifecycle.status import Observer, Reason, Status
from prefect_executions.operations.code_origin import ForeignCode
from prefect_executions.operations.export import export
from prefect_executions.operations.imports import ImportPolicy, import_bundles
from prefect_executions.operations.replay import open_replayable, prepare_replay
from prefect_executions.settings import Settings
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.recovery import recover, restore
from prefect_executions.workbench.sealing import Ending
from prefect_executions.workbench.workbench import Workbench
from records import EXECUTION_ID, a_code_identity, a_job_status, a_method, an_instance
from signers import a_key, a_signed_bundle

COMMAND = str(Path(sys.executable).with_name("executions"))


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    """Another machine, which sealed the execution: another home, and another state folder of the user."""
    here = os.environ.get("XDG_STATE_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "there" / "state"))
    bench = bench_at(tmp_path / "there")
    kept(bench)
    monkeypatch.setenv("XDG_STATE_HOME", here or str(tmp_path / "here" / "state"))
    return bench


def test_code_that_this_user_sealed_in_another_home_is_not_asked_about(home, tmp_path):
    other = bench_at(tmp_path / "other")
    kept(other)
    zipped = zip_of(other.folder / EXECUTION_ID, tmp_path / "other.zip", f"{EXECUTION_ID}/")
    assert asked(bench_at(home), zipped) == []
    imported = bench_at(tmp_path / "imported")
    import_bundles(imported, str(zipped), ImportPolicy.of(Settings(home=home), datetime.now(UTC)))
    assert asked(imported, EXECUTION_ID) == []


@pytest.fixture
def foreign(there: Workbench, tmp_path: Path) -> Path:
    return zip_of(there.folder / EXECUTION_ID, tmp_path / "foreign.zip", f"{EXECUTION_ID}/")


def asked(bench: Workbench, target: Path | str, policy: SignaturePolicy = TRUST_NOBODY) -> list[ForeignCode]:
    """Open a bundle for a replay, and return the code that had to be approved."""
    codes: list[ForeignCode] = []

    def approve(code: ForeignCode) -> bool:
        codes.append(code)
        return True

    with open_replayable(Catalog(bench), str(target), signatures=policy, approve=approve):
        return codes


def test_foreign_code_is_described_and_runs_only_if_approved(home, foreign):
    (code,) = asked(bench_at(home), foreign)
    facts = dict(code.facts)
    assert (facts["execution"], facts["method"]) == (EXECUTION_ID, "segment-coins 1.2.0")
    assert facts["code"] == "flows/coins.py:segment (1 source file)"
    assert facts["signed"] == "no"
    with (
        pytest.raises(ForeignCodeError, match="sealed elsewhere and is not signed"),
        open_replayable(Catalog(bench_at(home)), str(foreign)),
    ):
        pass


def test_code_that_settle_sealed_from_the_archive_alone_is_foreign_to_another_archive(home, tmp_path):
    there = bench_at(tmp_path / "there")
    begun(there, record_of(EXECUTION_ID, job_status=a_job_status(Status.EXECUTING)))
    here = bench_at(tmp_path / "here", archive=there)
    found = recover(here.archive, EXECUTION_ID)
    assert found is not None
    lost = Ending(Status.FAILED, Reason.LOST, datetime(2031, 1, 1, tzinfo=UTC), Observer.SETTLE)
    here.stand_in(found.record, found.code, lost, fill=partial(restore, here.archive, found))
    with (tmp_path / "lost.zip").open("wb") as file:
        export(Catalog(here), [EXECUTION_ID], file.write)
    assert len(asked(bench_at(home), tmp_path / "lost.zip")) == 1


def test_code_that_this_workbench_sealed_is_not_asked_about_by_id_folder_or_zip(there, foreign):
    for target in (EXECUTION_ID, there.folder / EXECUTION_ID, foreign):
        assert asked(there, target) == []


def test_code_in_this_archive_is_not_asked_about_without_the_workbench(there, foreign, tmp_path):
    bench = bench_at(tmp_path / "second", archive=there)
    for target in (EXECUTION_ID, foreign):
        assert asked(bench, target) == []


def test_an_imported_execution_is_foreign_by_id_and_as_a_zip(home, foreign):
    bench = bench_at(home)
    import_bundles(bench, str(foreign), ImportPolicy.of(Settings(home=home), datetime.now(UTC)))
    for target in (EXECUTION_ID, foreign):
        assert len(asked(bench, target)) == 1


def test_code_that_a_trusted_key_signed_is_not_asked_about(home, tmp_path):
    bundle = a_signed_bundle(tmp_path).folder
    trusted = SignaturePolicy(trusted={a_key().public.id: a_key().public})
    assert asked(bench_at(home), bundle, trusted) == []
    with pytest.raises(ForeignCodeError, match="which is not trusted here"):
        asked(bench_at(home), bundle)
    (code,) = asked(bench_at(home), bundle, SignaturePolicy(allow_unknown=True))
    assert code.signers == (a_key().public.id,)


def test_a_bundle_that_claims_to_be_of_this_machine_is_foreign(home, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "there" / "state"))
    here = an_instance(hostname=os.uname().nodename, working_directory=str(home / "workbench"))
    bench = bench_at(tmp_path / "there")
    kept(bench, instance=here)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert len(asked(bench_at(home), bench.folder / EXECUTION_ID)) == 1


def test_a_forged_bundle_with_the_id_of_an_execution_of_this_machine_is_foreign(there, tmp_path):
    forged = a_sealed_bundle(tmp_path / "forged", record_of(instance=an_instance(hostname="elsewhere"))).folder
    assert forged.name == EXECUTION_ID
    assert len(asked(there, forged)) == 1


# --- at the terminal


def test_without_a_terminal_foreign_code_needs_yes(home, foreign, capsys):
    assert main(["replay", str(foreign)]) == 3
    shown = capsys.readouterr().err
    assert "no trusted key signed it" in shown
    assert "flows/coins.py:segment" in shown
    assert "nothing was run" in shown
    assert not (home / "workbench").exists()


def on_a_terminal(arguments: list[str], home: Path, answer: str) -> str:
    """Return what the command shows on a pseudo-terminal, where a person gives an answer."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"EXECUTIONS_HOME": str(home), "TERM": "xterm"}
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen([COMMAND, *arguments], env=environment, close_fds=True, **streams) as process:
        os.close(theirs)
        os.write(ours, answer.encode())
        shown = b""
        with suppress(OSError):  # Linux: the other end is closed
            while block := os.read(ours, 65536):
                shown += block
        process.wait(120)
    os.close(ours)
    return shown.decode()


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        ("n", "nothing was run: the code of execution"),
        pytest.param("y", "module 'no_such_module' is missing", marks=pytest.mark.long),
    ],
)
def test_on_a_terminal_a_person_decides(home, tmp_path, monkeypatch, answer, result):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "there" / "state"))
    source, bench = b"import no_such_module\n", bench_at(tmp_path / "there")
    bundle = begun(bench, record_of(method=a_method(code=a_code_identity(source))))
    bundle.write("code/flows/coins.py", source)
    bench.leases.release(EXECUTION_ID)
    bench.settle(EXECUTION_ID)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    shown = on_a_terminal(["replay", str(bundle.folder)], home, f"{answer}\n")
    assert "Run it with your permissions? [y/N]" in shown
    assert result in shown


@pytest.mark.parametrize("renewed", [False, True], ids=["one file", "the whole bundle"])
def test_code_that_is_replaced_while_its_approval_is_awaited_does_not_run(home, foreign, tmp_path, renewed):
    folder = unpacked(foreign, tmp_path)

    def approve(code: ForeignCode) -> bool:
        (folder / "code/flows/coins.py").write_text("raise SystemExit('foreign')\n")
        if renewed:
            renew_manifest(folder)
        return True

    with (
        open_replayable(Catalog(bench_at(home)), str(folder), approve=approve) as (record, source),
        pytest.raises(BundleError, match=r"code/flows/coins\.py was changed after the bundle was verified"),
        prepare_replay(record, source, {}),
    ):
        pass


def test_only_the_bundle_with_the_named_manifest_is_replayed(home, foreign, tmp_path):
    folder = unpacked(foreign, tmp_path)
    catalog, digest = Catalog(bench_at(home)), sha256((folder / "manifest-sha256.txt").read_bytes()).hexdigest()
    with open_replayable(catalog, str(folder), approve=lambda _: True, manifest_sha256=digest):
        pass
    forge_json(folder, "auth/jwt.json", lambda agent: agent["claims"].update(aud="other"))
    with (
        pytest.raises(BundleError, match="is not replayed"),
        open_replayable(catalog, str(folder), approve=lambda _: True, manifest_sha256=digest),
    ):
        pass


def test_an_isolated_replay_runs_only_what_was_verified_and_approved(home, foreign, tmp_path, capsys):
    command = isolated_command(Path(sys.executable), "0" * 64, str(foreign), ReplayGoal(), ["--yes"])
    assert command[1:5] == ["-m", "prefect_executions.cli", "replay", str(foreign)]
    assert main(command[3:]) == WORLD
    assert f"not {'0' * 64}" in capsys.readouterr().err


def unpacked(zipped: Path, tmp_path: Path) -> Path:
    with zipfile.ZipFile(zipped) as archive:
        archive.extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked" / EXECUTION_ID
