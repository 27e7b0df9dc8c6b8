"""An execution runs again with its inputs or edited ones, linked to the original, its secrets named again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate

from benches import bench_at, kept
from flows.rerun import rerun
from prefect_executions.cli.app import main
from prefect_executions.cli.arguments import open_catalog
from prefect_executions.dispatch.submit import submit_again
from prefect_executions.errors import BundleError, NotAvailableError, NotFoundError, RequestError, SecretError
from prefect_executions.executions.record import Deployment, Relative, relatives_from_tags
from prefect_executions.executions.values import recorded_form
from prefect_executions.methods.model import InputDescription, InputFile
from prefect_executions.operations.imports import ImportPolicy, import_bundles
from prefect_executions.operations.replay import (
    check_origins,
    copy_inputs,
    find_entrypoint,
    record_source,
    rerun_request,
)
from prefect_executions.settings import Settings
from prefect_executions.workbench.catalog import Catalog
from records import EXECUTION_ID, PICTURE, a_method, a_record, a_request, a_staged_input, an_instance

METHOD = '''
from prefect_executions import InputFile, current_execution, method


@method(version="1.0.0")
def shout(text: InputFile, times: int = 2) -> None:
    """Write a text in capital letters."""
    current_execution().output("shouted.txt").write_text(text.read_text().upper() * times)
'''


def test_unchanged_inputs_are_an_exact_rerun_and_changed_inputs_an_edited_one():
    exact = rerun_request(a_record(), {})
    assert exact.parameters == {"picture": "s3://survey/picture.png", "threshold": 0.3, "labels": ["a", "ä"]}
    assert exact.relative == Relative(execution_id=EXECUTION_ID, relation="rerun-of")
    assert rerun_request(a_record(), {"threshold": 0.3}).relative.relation == "rerun-of"
    edited = rerun_request(a_record(), {"threshold": 0.4})
    assert edited.relative.relation == "edited-rerun-of"
    assert edited.parameters["threshold"] == 0.4
    assert rerun_request(a_record(), {"new": None}).relative.relation == "edited-rerun-of"


@given(
    st.sampled_from(["rerun-of", "edited-rerun-of"]), st.from_regex(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}", fullmatch=True)
)
def test_the_tag_of_a_rerun_names_the_original_execution(relation, execution_id):
    relative = Relative(execution_id=execution_id, relation=relation)
    assert relatives_from_tags(["survey", relative.tag, "rerun-of:", "a rerun-of:b"]) == (relative,)


def test_everything_that_a_rerun_lacks_is_named_at_once():
    method = a_method(
        inputs={
            "token": InputDescription(json_schema={"type": "string", "format": "secret"}),
            "url": InputDescription(json_schema={"type": "string"}),
        }
    )
    values = {"token": {"secret": "survey-token"}, "url": "https://example.org/"}
    record = a_record(method=method, request=a_request(values=values, files=(), rerun={"url": "caller"}))
    with pytest.raises(SecretError) as raised:
        rerun_request(record, {})
    assert "-p token=BLOCK" in str(raised.value)
    assert "the record cannot supply the value of url; give it: -p url=…" in str(raised.value)
    assert rerun_request(record, {"token": "env:T", "url": "x"}).parameters == {"token": "env:T", "url": "x"}


def test_a_secret_must_be_named_again_and_never_comes_from_the_record():
    method = a_method(inputs={"token": InputDescription(json_schema={"type": "string", "format": "secret"})})
    record = a_record(method=method, request=a_request(values={"token": {"secret": "survey-token"}}, files=()))
    with pytest.raises(SecretError, match=r"token .then 'survey-token'.*-p token=BLOCK"):
        rerun_request(record, {})
    again = rerun_request(record, {"token": "env:TOKEN"})
    assert again.parameters == {"token": "env:TOKEN"}
    assert again.relative.relation == "rerun-of"


@pytest.mark.parametrize("value", [{"withheld": True}, {"unrecorded": "a.B"}, [1, {"deep": {"withheld": True}}]])
def test_an_input_missing_in_the_record_must_be_given(value):
    record = a_record(request=a_request(values={"model": value}, files=()))
    with pytest.raises(RequestError, match="-p model="):
        rerun_request(record, {})
    assert rerun_request(record, {"model": 1}).parameters == {"model": 1}


def test_a_value_that_json_lacks_is_restored():
    values = {"size": (1, 2.0), "rate": math.inf, "raw": b"\xff", "by": {1: {"a"}}}
    recorded = {name: recorded_form(value) for name, value in values.items()}
    record = a_record(request=a_request(values=recorded, parameters={}, files=()))
    exact = rerun_request(record, {})
    assert (exact.parameters, exact.relative.relation) == (values, "rerun-of")
    assert rerun_request(record, {"size": (1, 2.0)}).relative.relation == "rerun-of"
    assert rerun_request(record, {"size": [1, 2.0]}).relative.relation == "edited-rerun-of"
    notation = rerun_request(record, {"size": recorded["size"], "rate": recorded["rate"]})
    assert (notation.parameters, notation.relative.relation) == (values, "rerun-of")


def test_equal_numbers_of_another_type_are_an_edit():
    record = a_record(request=a_request(values={"n": 1}, parameters={}, files=()))
    for value in (True, 1.0):
        assert rerun_request(record, {"n": value}).relative.relation == "edited-rerun-of"


def test_a_deployment_is_asked_for_a_value_that_json_lacks():
    record = a_record(request=a_request(values={"size": recorded_form((1, 2)), "n": 1}, parameters={}, files=()))
    with pytest.raises(RequestError, match=r"JSON cannot hold the value of size \(\(1, 2\)\).*-p size=.*--method"):
        rerun_request(record, {}, as_json=True)
    assert rerun_request(record, {"size": [1]}, as_json=True).parameters == {"size": [1], "n": 1}


def test_an_input_that_the_record_cannot_supply_is_asked_for_by_name_and_type():
    frame = {"unrecorded": "numpy.ndarray", "dtype": "float64", "shape": [2, 3], "sha256": "c0ffee"}
    values = {"frame": frame, "mode": {"python": "survey.Mode", "value": "fast"}, "url": "https://example.org", "n": 1}
    rerun = {"frame": "caller", "mode": "caller", "url": "caller", "n": "default"}
    record = a_record(request=a_request(values=values, parameters={}, files=(), rerun=rerun))
    with pytest.raises(RequestError) as raised:
        rerun_request(record, {})
    assert "frame (a numpy.ndarray of shape (2, 3), sha256 c0ffee), mode (a survey.Mode), url" in str(raised.value)
    assert "-p frame=… -p mode=… -p url=…" in str(raised.value)
    assert rerun_request(record, {"frame": 1, "mode": 2, "url": "x"}).parameters == {"frame": 1, "mode": 2, "url": "x"}


def test_files_inside_values_that_json_lacks_are_replaced_by_their_copies():
    files = [
        a_staged_input("scenes", path="inputs/scenes/a", origin="a"),
        a_staged_input("by.1", path="inputs/by.1/b", origin="b"),
    ]
    values = {"scenes": (InputFile("a"), 1), "by": {1: InputFile("b")}}
    recorded = {name: recorded_form(value) for name, value in values.items()}
    record = a_record(request=a_request(values=recorded, parameters={}, files=files))
    copies = {"inputs/scenes/a": Path("/copy/a"), "inputs/by.1/b": Path("/copy/b")}
    parameters = rerun_request(record, {}, copies).parameters
    assert parameters == {"scenes": ("/copy/a", 1), "by": {1: "/copy/b"}}
    assert isinstance(parameters["scenes"][0], InputFile)


def test_omitted_and_bound_inputs_are_not_requested():
    bound = InputDescription(json_schema={"type": "string", "readOnly": True})
    request = a_request(values={"left": None, "given": None, "bound": "x"}, parameters={"given": None}, files=())
    record = a_record(method=a_method(inputs={"bound": bound}), request=request)
    assert rerun_request(record, {}).parameters == {"given": None}


def test_files_at_any_depth_of_the_inputs_are_replaced_by_their_copies():
    files = [
        a_staged_input("scenes", path="inputs/scenes/a", origin="a"),
        a_staged_input("scenes", path=None, origin="https://far/b"),
        a_staged_input("options.mask", path="inputs/options.mask/m", origin="m"),
    ]
    values = {"scenes": ["a", "https://far/b"], "options": {"mask": "m", "name": "a"}}
    record = a_record(request=a_request(values=values, files=files))
    here = {"inputs/scenes/a": Path("/copy/a"), "inputs/options.mask/m": Path("/copy/m")}
    assert rerun_request(record, {}, here).parameters == {
        "scenes": ["/copy/a", "https://far/b"],
        "options": {"mask": "/copy/m", "name": "a"},
    }


@pytest.mark.parametrize("where", ["workbench", "archive"])
def test_input_files_of_the_bundle_are_copied_and_checked(home, tmp_path, where):
    bench = bench_at(home)
    bundle = kept(bench)
    if where == "archive":
        bundle.discard()
    catalog = Catalog(bench)
    source = record_source(catalog, EXECUTION_ID)
    brought = copy_inputs(catalog.record(EXECUTION_ID), source, tmp_path)
    assert {path: place.read_bytes() for path, place in brought.items()} == {"inputs/picture.png": PICTURE}


def test_an_input_that_was_changed_here_is_read_from_the_archive_and_refused_if_changed_there_too(home, tmp_path):
    bench = bench_at(home)
    (kept(bench).folder / "inputs/picture.png").write_bytes(b"forged")
    files = copy_inputs(
        Catalog(bench).record(EXECUTION_ID), record_source(Catalog(bench), EXECUTION_ID), tmp_path / "first"
    )
    assert [Path(path).read_bytes() for path in files.values()] == [PICTURE]
    archived = next((home / "archive").rglob(sha256(PICTURE).hexdigest()))
    archived.chmod(0o600)
    archived.write_bytes(b"forged")
    with pytest.raises(BundleError, match=r"inputs/picture.png cannot be read from the archive: .* 6 of the 23 bytes"):
        copy_inputs(
            Catalog(bench).record(EXECUTION_ID), record_source(Catalog(bench), EXECUTION_ID), tmp_path / "second"
        )


def test_the_method_is_searched_here_and_in_its_working_directory(tmp_path):
    with pytest.raises(NotFoundError, match=r"--method .*executions replay"):
        find_entrypoint(a_record(), tmp_path)
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "coins.py").touch()
    assert find_entrypoint(a_record(), tmp_path) == f"{tmp_path}/flows/coins.py:segment"


@pytest.mark.parametrize("entrypoint", ["../outside.py:f", "{folder}/outside.py:f", "link.py:f", "outside.py:f"])
def test_the_record_of_an_imported_execution_chooses_no_file_outside_the_folder(tmp_path, entrypoint):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "outside.py").touch()
    (folder / "link.py").symlink_to(tmp_path / "outside.py")
    code = a_method().code.model_copy(update={"entrypoint": entrypoint.format(folder=tmp_path)})
    record = a_record(method=a_method(code=code), instance=an_instance(working_directory=str(tmp_path)))
    assert find_entrypoint(record, folder)
    with pytest.raises(NotFoundError, match="cannot find Method"):
        find_entrypoint(record, folder, imported=True)


@pytest.mark.parametrize("kept_by_reference", [True, False])
def test_an_input_of_an_imported_execution_is_read_only_with_its_recorded_content(tmp_path, kept_by_reference):
    private = tmp_path / "private.txt"
    private.write_text("mine")
    changes = {"path": None} if kept_by_reference else {}
    file = a_staged_input(origin=private.as_uri(), **changes)
    record = a_record(request=a_request(files=(file,)))
    copies = {} if kept_by_reference else {file.path: tmp_path / "copy"}
    check_origins(record, copies, {"picture": "other.png"}, tmp_path / "named")
    if not kept_by_reference:
        check_origins(record, copies, {}, tmp_path / "copied")
        return
    with pytest.raises(NotAvailableError, match=r"input 'picture' is kept by reference only, and .* has changed"):
        check_origins(record, copies, {}, tmp_path / "changed")
    private.write_bytes(PICTURE)
    check_origins(record, copies, {}, tmp_path / "equal")


def test_the_files_of_an_imported_execution_are_named_again_for_a_deployment(home, tmp_path):
    there = bench_at(tmp_path / "there")
    kept(there)
    here = bench_at(home)
    import_bundles(here, str(there.folder / EXECUTION_ID), ImportPolicy.of(Settings(home=home), datetime.now(UTC)))
    with pytest.raises(RequestError, match="was imported, so its input files must be named again: -p picture=FILE"):
        submit_again(Catalog(here), EXECUTION_ID, by="test")


# --- with Prefect ----------------------------------------------------------------


@pytest.fixture
def beside(tmp_path, monkeypatch, prefect_server) -> None:
    """Be in the folder of shout.py, with a Prefect server."""
    (tmp_path / "shout.py").write_text(METHOD)
    (tmp_path / "text.txt").write_text("hello ")
    monkeypatch.chdir(tmp_path)


@pytest.mark.long
@pytest.mark.usefixtures("beside")
def test_a_rerun_here_and_its_original_link_to_each_other(told, home, tmp_path):
    first = told("run", "shout.py:shout", "-p", "text=text.txt")["id"]
    (tmp_path / "text.txt").unlink()  # the bundle keeps it
    exact = told("rerun", first)["id"]
    edited = told("rerun", first[:8], "-p", "times=1")["id"]
    assert {first, exact, edited} == {row.id for row in bench_at(home).ledger.list().rows}
    assert told("show", exact)["request"]["relatives"] == [{"executionId": first, "relation": "rerun-of"}]
    assert {(one["id"], one["relation"]) for one in told("show", first)["namedBy"]} == {
        (exact, "rerun-of"),
        (edited, "edited-rerun-of"),
    }
    assert b"wasInformedBy" in open_catalog().read(edited, "metadata/provo.xml")
    for one in (exact, edited):
        told("verify", one)  # fails with another exit code
    differing = {(one["part"], one["name"]) for one in told("diff", first, edited)["differences"]}
    assert ("inputs", "times") in differing
    assert ("outputs", "outputs/shouted.txt") in differing
    assert ("inputs", "text") not in differing


@pytest.mark.usefixtures("beside")
def test_the_results_of_a_query_run_again(told, home):
    first = told("run", "shout.py:shout", "-p", "text=text.txt", "-p", "times=3", "--tag", "again")["id"]
    assert main(["rerun", "tag:again status:completed", "-p", "times=1"]) == 0
    catalog = Catalog(bench_at(home))
    (again,) = catalog.search(f"reruns:{first}").ids
    assert catalog.record(again).request.relatives == (Relative(execution_id=first, relation="edited-rerun-of"),)
    assert catalog.get(again).outputs["shouted.txt"].read_text() == "HELLO "


@pytest.fixture
def pool(prefect_server: str) -> Iterator[str]:
    client: SyncPrefectClient = get_client(sync_client=True)
    name = f"process-{uuid4().hex[:8]}"
    client.create_work_pool(WorkPoolCreate(name=name, type="process"))
    yield name
    for deployment in client.read_deployments():
        if deployment.work_pool_name == name:
            for run in client.read_flow_runs():
                if run.deployment_id == deployment.id:
                    client.delete_flow_run(run.id)
            client.delete_deployment(deployment.id)


@pytest.mark.usefixtures("beside")
def test_an_execution_runs_again_through_its_deployment(told, pool, home):
    deployed = told("deploy", "shout.py:shout", "--pool", pool)
    method = a_method(id="shout", inputs={}, code=None)
    values = {"text": "text.txt", "times": 2}
    deployment = Deployment(id=UUID(deployed["id"]), name=deployed["name"].partition("/")[2])
    kept(bench_at(home), method=method, request=a_request(values=values, files=(), deployment=deployment))
    client = get_client(sync_client=True)
    exact, edited = rerun(EXECUTION_ID[:8]), told("rerun", EXECUTION_ID, "-p", "times=9", "--pool", pool)["id"]
    found = [client.read_flow_run(UUID(one)) for one in (exact, edited)]
    assert [one.parameters for one in found] == [values, values | {"times": 9}]
    assert [relatives_from_tags(one.tags)[0].relation for one in found] == ["rerun-of", "edited-rerun-of"]
    assert {one.deployment_id for one in found} == {deployment.id}
