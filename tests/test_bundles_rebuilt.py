"""A document with the bytes of its writer is read without parsing, with the result of its reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pytest

from bundle_makers import a_complete_bundle, contents
from golden_bundles import BUNDLES
from prefect_executions.bundles import layout, manifest, rebuilt
from prefect_executions.bundles.source import open_source
from prefect_executions.bundles.verify import verify
from prefect_executions.bundles.zip_reader import Limits
from prefect_executions.crate import reader as crate_reader
from prefect_executions.crate import writer as crate_writer
from prefect_executions.executions.record import DOCUMENTS, BundleFile, ExecutionRecord, Relative
from prefect_executions.executions.summary import summary_of
from prefect_executions.lifecycle.history import EntryKind
from prefect_executions.provenance import reader as prov_reader
from prefect_executions.provenance import writer as prov_writer
from prefect_executions.provenance.times import time_faults
from records import a_full_record, a_never_started_record, a_record, a_request, some_steps

FORMAT_2 = sorted(path.name for path in BUNDLES.glob("format-2*.zip"))


def record_in(files: dict[str, bytes]) -> ExecutionRecord:
    names = [kind.file_name for kind in DOCUMENTS.values() if kind.file_name in files]
    return ExecutionRecord.from_json({name: files[name] for name in names})


def listed_in(files: dict[str, bytes]) -> list[BundleFile]:
    listed = manifest.parse(files[layout.MANIFEST])
    return [BundleFile(path, digest, len(files[path])) for path, digest in listed.items()]


def golden(name: str) -> dict[str, bytes]:
    with open_source(BUNDLES / name, Limits()) as source:
        return {path: b"".join(source.blocks(path)) for path in source.files}


def check_both(files: dict[str, bytes]) -> None:
    record, listed = record_in(files), listed_in(files)
    provenance, crate = files[layout.PROVENANCE], files[layout.CRATE]
    assert rebuilt.provenance(provenance, record, summary_of(record), listed) == prov_reader.read(provenance)
    assert rebuilt.crate(crate, record, summary_of(record), listed) == crate_reader.read(crate)
    assert rebuilt.times_in_order(record)
    assert list(time_faults(provenance)) == []


@pytest.mark.parametrize("name", FORMAT_2)
def test_a_golden_bundle_gives_what_the_readers_give(name):
    check_both(golden(name))


@pytest.mark.parametrize(
    "record", [a_record(), a_full_record(), a_never_started_record()], ids=["plain", "full", "none"]
)
def test_a_sealed_bundle_gives_what_the_readers_give(tmp_path, record):
    check_both(contents(a_complete_bundle(tmp_path, record).folder))


def test_a_bundle_of_the_first_format_is_left_to_the_readers():
    files = golden("format-1.zip")
    record, listed = record_in(files), listed_in(files)
    assert rebuilt.provenance(files[layout.PROVENANCE], record, summary_of(record), listed) is None
    assert rebuilt.crate(files[layout.CRATE], record, summary_of(record), listed) is None


def provenance_of(record: ExecutionRecord, files: list[BundleFile]) -> bytes:
    stream = BytesIO()
    prov_writer.write(record, files, stream)
    return stream.getvalue()


def test_names_with_any_characters_give_what_the_readers_give():
    values = {"a\x01_x0041_ \r\n\t<&>\"'": "\ud800 \U0001f600", "": [1e300, {"n": None}], "long": "x" * 70_000}
    record = replace(a_full_record(), request=a_request(files=(), values=values))
    data = provenance_of(record, [])
    assert rebuilt.provenance(data, record, summary_of(record), []) == prov_reader.read(data)


def test_other_bytes_are_left_to_the_readers(tmp_path):
    files = contents(a_complete_bundle(tmp_path, a_record()).folder)
    record, listed = record_in(files), listed_in(files)
    assert rebuilt.provenance(files[layout.PROVENANCE] + b"\n", record, summary_of(record), listed) is None
    assert rebuilt.crate(files[layout.CRATE] + b"\n", record, summary_of(record), listed) is None
    without_method = [file for file in listed if file.path != "metadata/method.json"]
    assert rebuilt.provenance(files[layout.PROVENANCE], record, summary_of(record), without_method) is None
    assert rebuilt.crate(files[layout.CRATE], record, summary_of(record), listed[1:]) is None


def with_status(record: ExecutionRecord, **changes: object) -> ExecutionRecord:
    return replace(record, job_status=record.job_status.model_copy(update=changes))


def with_sources(record: ExecutionRecord, *sources: object) -> ExecutionRecord:
    code = record.method.code.model_copy(update={"files": sources})
    return replace(record, method=record.method.model_copy(update={"code": code}))


def _twice_in_history(record: ExecutionRecord) -> ExecutionRecord:
    return with_status(record, history=(record.job_status.history[0], *record.job_status.history))


def _long_exit_code(record: ExecutionRecord) -> ExecutionRecord:
    ended = next(entry for entry in record.job_status.history if entry.kind is EntryKind.PHASE_ENDED)
    history = [
        entry.model_copy(update={"exit_code": 10**18}) if entry is ended else entry
        for entry in record.job_status.history
    ]
    return with_status(record, history=tuple(history))


def _bad_digest(record: ExecutionRecord) -> ExecutionRecord:
    return with_sources(record, record.method.code.files[0].model_copy(update={"sha256": "none"}))


REFUSED: dict[str, Callable[[ExecutionRecord], ExecutionRecord]] = {
    "an output twice": lambda record: with_status(record, outputs=record.job_status.outputs[:1] * 2),
    "a step twice": lambda record: with_status(record, steps=some_steps()[:1] * 2),
    "a source twice": lambda record: with_sources(record, *record.method.code.files[:1] * 2),
    "a status twice": _twice_in_history,
    "a digest that is none": _bad_digest,
    "an exit code with 19 digits": _long_exit_code,
}
"""Records that the reader of PROV refuses in the form in which the writer writes them."""


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_what_a_reader_refuses_is_left_to_it(change):
    record = change(a_full_record())
    data = provenance_of(record, [])
    with pytest.raises(Exception, match=r"provo\.xml"):
        prov_reader.read(data)
    assert rebuilt.provenance(data, record, summary_of(record), []) is None
    assert rebuilt.crate(crate_writer.build(record, []), record, summary_of(record), []) is None


def test_an_abbreviated_id_is_left_to_the_readers():
    relatives = (Relative(execution_id="an id", relation="parent"),)
    record = replace(a_record(), request=a_request(relatives=relatives))
    assert rebuilt.provenance(provenance_of(record, []), record, summary_of(record), []) is None


def test_a_digest_that_differs_from_the_manifest_is_left_to_the_readers():
    record = a_record()
    files = [BundleFile(record.job_status.outputs[0].path, sha256(b"other").hexdigest(), 5)]
    assert rebuilt.provenance(provenance_of(record, files), record, summary_of(record), files) is None


def test_a_large_document_is_left_to_the_readers():
    record = replace(a_record(), request=a_request(files=(), values={"text": "x" * 60_000}))
    many = {f"text {number}": "x" * 60_000 for number in range(18)}
    assert rebuilt.provenance(provenance_of(record, []), record, summary_of(record), []) is not None
    record = replace(a_record(), request=a_request(files=(), values=many))
    assert len(provenance_of(record, [])) > rebuilt.LARGEST
    assert rebuilt.provenance(provenance_of(record, []), record, summary_of(record), []) is None


def test_an_end_before_its_start_is_reported(tmp_path):
    record = a_full_record()
    step = some_steps()[0]
    steps = (step.model_copy(update={"finished": step.started - timedelta(hours=1)}),)
    folder: Path = a_complete_bundle(tmp_path, with_status(record, steps=steps)).folder
    assert not rebuilt.times_in_order(record_in(contents(folder)))
    faults = [fault for check in verify(folder).checks if check.name == "provenance-times" for fault in check.faults]
    assert len(faults) == 1
    assert "ended at" in faults[0]
