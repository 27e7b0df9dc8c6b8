"""Replay an execution from its bundle alone: its code and inputs put in place, and the verdict on what comes out.

Law: what is missing is reported by name before anything runs; the verdict is written before the new bundle is sealed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from prefect_executions.bundles import layout
from prefect_executions.bundles.forms import Kind
from prefect_executions.bundles.gather import load_gathered
from prefect_executions.bundles.incoming import arrivals, open_whole
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.portable_names import check_names
from prefect_executions.bundles.source import Source
from prefect_executions.bundles.verify import DEFAULT_LIMITS, verify
from prefect_executions.bundles.zip_reader import ZipReader
from prefect_executions.capture.staging import stage
from prefect_executions.comparison.verdict import Verdict, judge
from prefect_executions.errors import BundleError, NotAvailableError, RequestError
from prefect_executions.executions.record import ExecutionRecord, StagedInput, record_from
from prefect_executions.lifecycle.status import Status
from prefect_executions.operations.agreeing import agreements
from prefect_executions.operations.images import ExactImage, exact_image
from prefect_executions.operations.replay import Again, asked_again, bring_inputs
from prefect_executions.workbench.catalog import Reader
from prefect_executions.workbench.lookup import path_of


@dataclass(frozen=True, kw_only=True)
class Replay:
    """An execution that can run again from its bundle: what is asked for, and where its code lies now."""

    record: ExecutionRecord
    source: Source
    manifest_sha256: str
    again: Again
    entrypoint: str
    paths: tuple[str, ...]
    """The folders that its modules are imported from."""
    image: ExactImage | None = None
    """The image that its scripts ran in, at hand."""

    def verdict(self, bundle: OpenBundle, *, tolerance: float, well: bool) -> Verdict:
        """Write the verdict into *bundle*, whose outputs are gathered and which is not sealed, and return it.

        Raises:
            BundleError: If nothing was gathered, or the disk cannot be written.
        """
        gathered = load_gathered(bundle)
        if gathered is None:
            raise BundleError(f"the bundle {bundle.id} has no outputs gathered, so there is nothing to judge")
        verdict = judge(
            self.record,
            bundle.record(),
            agreements(
                self.record.job_status.outputs,
                gathered.files,
                (partial(_content, self.source), lambda path: (bundle.folder / path).read_bytes()),
                declared=self.record.method.comparisons,
                tolerance=tolerance,
            ),
            status=Status.COMPLETED if well else Status.FAILED,
            tolerance=tolerance,
            manifest_sha256=self.manifest_sha256,
        )
        bundle.write_document(verdict)
        return verdict


@contextmanager
def replayable(reader: Reader, target: str) -> Iterator[tuple[ExecutionRecord, Source]]:
    """Open what *target* names, a folder or zip with one bundle or the id of a sealed execution, and verify it.

    Raises:
        NotFoundError: If there is no such thing.
        RequestError: If it holds several bundles, or none of ours.
        NotAvailableError: If the execution is not sealed yet.
        BundleError: If the bundle is damaged.
    """
    if path := path_of(target):
        with open_whole(path, DEFAULT_LIMITS) as whole:
            found = arrivals(whole)
            if len(found) != 1 or found[0].kind is not Kind.BUNDLE:
                raise RequestError(f"{target} holds {len(found)} bundles; a replay is of one, of this package's own")
            yield _verified(found[0].source, target), found[0].source
        return
    execution_id = reader.find(target)
    source = reader.local_source(execution_id) or reader.bundle_source(execution_id)
    if source is None:
        raise NotAvailableError(f"execution {execution_id} is not sealed yet; replay it when it is")
    yield _verified(source, target), source


@contextmanager
def replay_of(
    record: ExecutionRecord, source: Source, edits: Mapping[str, Any], *, runtime: str = "process"
) -> Iterator[Replay]:
    """Put the code and inputs of *record* into a folder of their own, for as long as the context lasts.

    *runtime* is what the operator chose for scripts.

    Raises:
        NotAvailableError: If something is missing; the message names all of it.
        BundleError: If an input or a source is not what was recorded.
    """
    with TemporaryDirectory(prefix="executions-replay-") as name:
        folder, missing = Path(name), list(_missing_code(record, source))
        check_names(path for path in source.files if path.startswith((f"{layout.CODE}/", f"{layout.INPUTS}/")))
        files = bring_inputs(record, source, folder)
        places = {**files}
        for number, file in enumerate(record.request.files):
            if file.path not in files and file.input.partition(".")[0] not in edits:
                missing += _by_reference(file, folder / f"far-{number}")
        try:
            again = asked_again(record, edits, places)
        except RequestError as error:
            missing.append(str(error))
        try:
            image = exact_image(record, runtime, folder / "runtime")
        except NotAvailableError as error:
            missing.append(str(error))
        if missing:
            told = "\n  ".join(missing)
            raise NotAvailableError(f"execution {record.id} cannot be replayed; nothing was run:\n  {told}")
        _bring_code(source, folder)
        yield Replay(
            record=record,
            source=source,
            manifest_sha256=sha256(b"".join(source.blocks(layout.MANIFEST))).hexdigest(),
            again=again,
            entrypoint=f"{folder / layout.CODE}/{_entry(record)}",
            paths=tuple(dict.fromkeys(str(folder / root) for root in _roots(record))),
            image=image,
        )


def requirements_of(record: ExecutionRecord) -> tuple[str, ...]:
    """Return each recorded package in its exact version, but this one."""
    return tuple(
        f"{name}=={version}" for name, version in record.instance.packages.items() if name != "prefect-executions"
    )


def _verified(source: Source, target: str) -> ExecutionRecord:
    report = verify(source)
    if report.faults:
        raise BundleError(f"{target} is not what was recorded: {report.faults[0]}. 'executions verify' tells all")
    return record_from({path: b"".join(source.blocks(path)) for path in source.files if path in layout.FIXED_DOCUMENTS})


def _entry(record: ExecutionRecord) -> str:
    return (record.method.code.entrypoint if record.method.code else None) or ""


def _missing_code(record: ExecutionRecord, source: Source) -> Iterator[str]:
    entry = _entry(record).partition(":")[0]
    files = record.method.code.files if record.method.code else ()
    if not entry or f"{layout.CODE}/{entry}" not in source.files:
        yield f"code: the bundle does not keep the file of the Method, {entry or 'which had none'}"
    for file in files:
        if file.path not in source.files and file.path != f"{layout.CODE}/{entry}":
            yield f"code: the bundle does not keep {file.path}"


def _by_reference(file: StagedInput, folder: Path) -> Iterator[str]:
    """Tell why an input that the bundle does not keep cannot be had from where it came from."""
    try:
        (found,) = stage({file.input: file.origin}, folder)
    except (RequestError, BundleError) as error:
        yield f"input '{file.input}' is kept by reference only: {error}"
        return
    if found.sha256 != file.sha256:
        yield f"input '{file.input}' is kept by reference only, and {file.origin} is another file now"


def _bring_code(source: Source, folder: Path) -> None:
    for path in source.files:
        if path.startswith(f"{layout.CODE}/"):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"".join(source.blocks(path)))


def _roots(record: ExecutionRecord) -> Iterator[str]:
    """The folders from which the recorded modules were imported, by their names."""
    for file in record.method.code.files if record.method.code else ():
        parts = PurePosixPath(file.path).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        names = tuple((file.module or "").split("."))
        if parts[-len(names) :] == names:
            yield "/".join(parts[: -len(names)])


def _content(source: Source, path: str) -> bytes:
    if path in source.files:
        return b"".join(source.blocks(path))
    if layout.OUTPUT_ZIP not in source.files:
        raise BundleError("other bytes than recorded, and the bundle does not keep the recorded ones")
    with source.open(layout.OUTPUT_ZIP) as stream:
        zipped = ZipReader.open(stream, DEFAULT_LIMITS)
        if path not in zipped.entries:
            raise BundleError(f"{layout.OUTPUT_ZIP} does not hold it")
        return b"".join(zipped.blocks(zipped.entries[path]))
