"""Rerun and replay: run an execution again, from its record with edited inputs, or from its bundle alone.

- A rerun uses the code on this machine: `rerun_request`, `find_entrypoint`, `copy_inputs`.
- A replay takes code, inputs and image from the bundle and compares the outputs: `open_replayable`,
  `prepare_replay`, `exact_image`, `Replay.verdict`.

Law: a secret never comes from a record, which contains at most its name; the caller
names it again. Everything that is missing is reported by name before anything runs.
The verdict is written before the new bundle is sealed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from prefect_executions.attestation.policy import TRUST_NOBODY, SignaturePolicy
from prefect_executions.bundles import layout
from prefect_executions.bundles.gather import load_gathered
from prefect_executions.bundles.incoming import find_bundles, open_container
from prefect_executions.bundles.layout import BundleKind
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.portable_names import check_names
from prefect_executions.bundles.source import FolderSource, Source, VerifiedSource, record_of
from prefect_executions.bundles.verify import DEFAULT_LIMITS, verify
from prefect_executions.bundles.zip_reader import ZipReader
from prefect_executions.capture.staging import stage
from prefect_executions.comparison.results import Runs
from prefect_executions.comparison.verdict import Verdict, judge
from prefect_executions.errors import (
    BundleError,
    ExecutionsError,
    ForeignCodeError,
    InputError,
    NotAvailableError,
    NotFoundError,
    RequestError,
    SecretError,
)
from prefect_executions.executions.record import ExecutionRecord, Relative, RerunSource, ScriptRun, StagedInput
from prefect_executions.executions.value_types import is_marker, restore
from prefect_executions.executions.values import has_marker, recorded_form, same_form, text_of
from prefect_executions.lifecycle.status import Status
from prefect_executions.operations.code_origin import Approve, check_code, refuse
from prefect_executions.operations.compare import compare_outputs, declared_by_both, run_of
from prefect_executions.operations.recorded_code import CODE_LACKS, copy_code, entrypoint_of, missing_code
from prefect_executions.runtimes.registry import image_runtime, open_runtime
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.lookup import path_of

# Bundles are untrusted: a name without a digest could be another image.
_IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}")
_IMAGE_DIGEST = re.compile(r"[a-z0-9][\w.:/-]*@sha256:[0-9a-f]{64}")


class RerunRequest(NamedTuple):
    """The parameters of a rerun, and its relation to the original execution."""

    parameters: dict[str, Any]
    relative: Relative


def rerun_request(
    record: ExecutionRecord,
    edits: Mapping[str, Any],
    files: Mapping[str, Path] | None = None,
    *,
    as_json: bool = False,
) -> RerunRequest:
    """Return the request to run *record* again, with *edits* overriding its inputs.

    *files* gives the copies of input files by their paths in the bundle; other files are
    requested from their origin. Set *as_json* if the request goes through Prefect's API,
    which passes on only what JSON has.

    Raises:
        SecretError: If *edits* lacks a secret input.
        RequestError: If *edits* lacks an input that the record does not contain.
    """
    if not as_json:  # an edit may have the notation of the record
        edits = {name: restore(value) if has_marker(value) else value for name, value in edits.items()}
    inputs = {name: value for name, value in _requestable(record).items() if name not in edits}
    rerun = record.request.rerun or {}
    secret = _missing_secrets(record, inputs)
    inputs = {name: value for name, value in inputs.items() if rerun.get(name) != "default"}
    unknown = _missing_values(
        {name: inputs[name] for name in inputs.keys() - record.method.secrets}, rerun, as_json=as_json
    )
    if faults := [*secret, *unknown]:
        raise (SecretError if secret else RequestError)("\n  ".join(faults))
    locations: dict[str, Iterator[str]] = {}
    for name in dict.fromkeys(file.input for file in record.request.files):
        locations[name] = iter([_location(file, files or {}) for file in record.request.files if file.input == name])
    inputs = {name: restore(_with_locations(name, value, locations)) for name, value in inputs.items()}
    values, secrets = record.request.values, record.method.secrets
    edited = any(
        name not in values or not same_form(values[name], recorded_form(value))
        for name, value in edits.items()
        if name not in secrets
    )
    relation = Relative(execution_id=record.id, relation="edited-rerun-of" if edited else "rerun-of")
    return RerunRequest({**inputs, **edits}, relation)


def find_entrypoint(record: ExecutionRecord, folder: Path, *, imported: bool = False) -> str:
    """Return the entrypoint of the Method of *record* below *folder*, or below the working directory of its process.

    The record of an *imported* execution comes from elsewhere, so it does not choose a
    file outside *folder*.

    Raises:
        NotFoundError: If the file is in neither folder; the message says what else to do.
    """
    entrypoint = entrypoint_of(record)
    file, _, function = entrypoint.partition(":")
    working_directory = None if imported else record.instance.working_directory
    folders = [folder, *([Path(working_directory)] if working_directory else [])]
    for path in [parent / file for parent in folders] if file else []:
        if path.is_file() and not (imported and not path.resolve().is_relative_to(folder.resolve())):
            return f"{path}:{function}" if function else str(path)
    searched = " or ".join(f"'{parent}'" for parent in folders)
    raise NotFoundError(
        f"cannot find Method '{record.method.id}' ({entrypoint or 'without a file'}) in {searched}. Name it with "
        f"--method path.py:function, or run the recorded code with 'executions replay {record.id}'."
    )


def record_source(catalog: Catalog, execution_id: str) -> Source | None:
    """Return the files of an execution from this workbench, else from the archive; None if neither has them."""
    state = catalog.storage_state(execution_id)
    if state.folder is not None and not state.sealed:
        return FolderSource(state.folder)
    return catalog.intact_source(execution_id)


def copy_inputs(record: ExecutionRecord, source: Source, folder: Path) -> dict[str, Path]:
    """Copy the input files in *source* into *folder*, and return the copies by their paths in the bundle.

    Raises:
        BundleError: If a file differs from its record.
    """
    copies: dict[str, Path] = {}
    for file in record.request.files:
        if file.path is not None and file.path in source.files:
            copies[file.path] = folder / file.path
            _copy(source, file.path, folder / file.path, file.sha256)
    return copies


def _copy(source: Source, path: str, target: Path, expected: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = sha256()
    with target.open("xb") as file:
        for block in source.blocks(path):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != expected:
        raise BundleError(f"{path} is {digest.hexdigest()} and was recorded as {expected}, so nothing was run")


def _requestable(record: ExecutionRecord) -> dict[str, Any]:
    """The inputs of a new request: without those that the author bound, and those that were omitted (null)."""
    described, sent = record.method.inputs, record.request.parameters
    return {
        name: value
        for name, value in record.request.values.items()
        if (value is not None or name in sent) and not (name in described and described[name].is_bound)
    }


def _missing_secrets(record: ExecutionRecord, inputs: Mapping[str, Any]) -> list[str]:
    missing = sorted(name for name in record.method.secrets & inputs.keys() if inputs[name] is not None)
    if not missing:
        return []
    names = ", ".join(f"{name}{_old_reference(inputs[name])}" for name in missing)
    options = " ".join(f"-p {name}=BLOCK" for name in missing)
    why = f"execution {record.id} had the secret {names}; a record never contains a secret."
    return [f"{why} Name it again: {options}, where BLOCK is a Prefect Secret block or env:NAME."]


def _old_reference(value: Any) -> str:
    name = value.get("secret") if isinstance(value, dict) else None
    return f" (then '{name}')" if name else ""


def _missing_values(inputs: Mapping[str, Any], rerun: Mapping[str, RerunSource], *, as_json: bool) -> Iterator[str]:
    unknown = sorted(name for name, value in inputs.items() if name in rerun or _cannot_restore(value))
    if unknown:
        listed = ", ".join(f"{name}{_recorded_as(inputs[name])}" for name in unknown)
        options = " ".join(f"-p {name}=…" for name in unknown)
        yield (
            f"the record cannot supply the value of {listed}; give it: {options}, or call the Method in Python with it"
        )
    python = sorted(name for name, value in inputs.items() if as_json and has_marker(value))
    if python:
        listed = ", ".join(f"{name} ({text_of(inputs[name])})" for name in python)
        options = " ".join(f"-p {name}=…" for name in python)
        yield (
            f"JSON cannot hold the value of {listed}, so a deployment cannot receive it; give another value: "
            f"{options}, or run the Method here: --method path.py:function"
        )


def _cannot_restore(value: Any) -> bool:
    try:
        restore(value)
    except InputError:
        return True
    return False


def _recorded_as(value: Any) -> str:
    """Return the type that the record has instead of a value, with its shape and digest."""
    facts = value if isinstance(value, dict) and is_marker(value) else {}
    kind = facts.get("unrecorded") or facts.get("python")
    if kind is None:
        return ""
    shape = f" of shape {tuple(facts['shape'])}" if isinstance(facts.get("shape"), list) else ""
    digest = f", sha256 {facts['sha256']}" if "sha256" in facts else ""
    return f" (a {kind}{shape}{digest})"


def _location(file: StagedInput, files: Mapping[str, Path]) -> str:
    return str(files[file.path]) if file.path is not None and file.path in files else file.origin


def _with_locations(name: str, value: Any, locations: Mapping[str, Iterator[str]]) -> Any:
    """Replace each file in *value* by its location; a file inside a model has a name like ``options.scene``."""
    if isinstance(value, str) and name in locations:
        return next(locations[name], value)
    if isinstance(value, list):
        return [_with_locations(name, part, locations) for part in value]
    if isinstance(value, dict) and is_marker(value):
        return _marker_with_locations(name, value, locations)
    if isinstance(value, dict):
        return {key: _with_locations(f"{name}.{key}", part, locations) for key, part in value.items()}
    return value


def _marker_with_locations(name: str, marker: Mapping[str, Any], locations: Mapping[str, Iterator[str]]) -> Any:
    if marker.get("python") == "dict":
        pairs = [(key, _with_locations(f"{name}.{restore(key)}", part, locations)) for key, part in marker["value"]]
        return {**marker, "value": [list(pair) for pair in pairs]}
    if "value" not in marker:
        return marker
    return {**marker, "value": _with_locations(name, marker["value"], locations)}


class ExactImage(NamedTuple):
    """An image by its digest, and the runtime that runs scripts in it."""

    runtime: str
    name: str


def exact_image(record: ExecutionRecord, runtime: str, state: Path) -> ExactImage | None:
    """Return the image in which the last scripts of *record* ran, pulled if necessary; None without a container.

    The configured *runtime* is used if it runs images. *state* is a folder for its state.

    Raises:
        NotAvailableError: If the image is unavailable; the message names it.
    """
    runs = reversed(record.instance.runs or ())
    run = next((run for run in runs if run.image or run.image_digest), None)
    if run is None:
        return None
    chosen = image_runtime(runtime)
    try:
        opened = open_runtime(chosen, state=state)
        try:
            name = opened.ensure_image(
                _if_matching(_IMAGE_ID, run.image), _if_matching(_IMAGE_DIGEST, run.image_digest)
            )
        finally:
            opened.close()
    except ExecutionsError as error:
        raise NotAvailableError(f"image: {_image_text(run)} is unavailable: {error}") from error
    if name is None:
        raise NotAvailableError(f"image: {_image_text(run)} is neither in the runtime '{chosen}' nor in a registry")
    return ExactImage(chosen, name)


def _if_matching(pattern: re.Pattern[str], text: str | None) -> str | None:
    return text if text and pattern.fullmatch(text) else None


def _image_text(run: ScriptRun) -> str:
    digests = ", ".join(filter(None, (run.image_digest, run.image)))
    return f"{run.image_name or 'the image'} ({digests})"


@dataclass(frozen=True, kw_only=True)
class Replay:
    """An execution that is ready to run again from its bundle: its request, and the copies of its code and image."""

    record: ExecutionRecord
    source: Source
    manifest_sha256: str
    request: RerunRequest
    entrypoint: str
    folder: Path
    """The copy of the folder ``code/``."""
    paths: tuple[str, ...]
    """The folders in it from which its modules are imported."""
    packages: tuple[str, ...] = ()
    """The folder in it with packages that came from the other machine's disk; installed packages come first."""
    image: ExactImage | None = None
    """The image in which its scripts ran."""

    def verdict(self, bundle: OpenBundle, *, tolerance: float, well: bool) -> Verdict:
        """Compare the gathered outputs of the unsealed *bundle*, write the verdict into it and return it.

        Raises:
            BundleError: If the outputs are not gathered, or the disk cannot be written.
        """
        gathered = load_gathered(bundle)
        if gathered is None:
            raise BundleError(f"the outputs of bundle {bundle.id} are not gathered, so they cannot be compared")
        after, written = bundle.record(), self.record.job_status.outputs
        recorded = partial(_content, self.source, {output.path: output.sha256 for output in written})
        verdict = judge(
            self.record,
            after,
            compare_outputs(
                written,
                gathered.files,
                (recorded, lambda path: (bundle.folder / path).read_bytes()),
                declared=declared_by_both(self.record, after),
                runs=Runs(run_of(self.record), run_of(after)),
                tolerance=tolerance,
            ),
            status=Status.COMPLETED if well else Status.FAILED,
            tolerance=tolerance,
            manifest_sha256=self.manifest_sha256,
        )
        bundle.write_document(verdict)
        return verdict


@contextmanager
def open_replayable(
    catalog: Catalog,
    target: str,
    *,
    signatures: SignaturePolicy = TRUST_NOBODY,
    approve: Approve = refuse,
    manifest_sha256: str | None = None,
) -> Iterator[tuple[ExecutionRecord, Source]]:
    """Open and verify the bundle to replay: a folder or zip with one bundle, or the id of a sealed execution.

    *signatures* says which signers are accepted. *approve* decides on code that was sealed
    on another machine and is not signed by a trusted key. With *manifest_sha256* only the bundle whose
    manifest has this digest is opened. A file that is changed after the verification cannot be read.

    Raises:
        NotFoundError: If *target* does not exist.
        RequestError: If it contains several bundles, or none in the format of this package.
        NotAvailableError: If the execution is not sealed yet.
        BundleError: If the bundle is damaged, or its signature is wrong or not accepted.
        ForeignCodeError: If *approve* refuses, or the only fault is an unknown signer.
    """

    def checked(source: Source) -> tuple[ExecutionRecord, Source]:
        report = verify(source, signatures=signatures)
        if not report.passed:
            refused = ForeignCodeError if report.only_signer_unknown else BundleError
            raise refused(f"{target} is not replayed: {report.summary}")
        if manifest_sha256 not in {None, report.manifest_sha256}:
            found = f"its manifest has the digest {report.manifest_sha256}, not {manifest_sha256}"
            raise BundleError(f"{target} is not replayed: {found}")
        verified = VerifiedSource(source, report.manifest_sha256)
        record = record_of(verified)
        check_code(catalog, record, report, approve)
        return record, verified

    if path := path_of(target):
        with open_container(path, DEFAULT_LIMITS) as container:
            bundles = find_bundles(container)
            if len(bundles) != 1 or bundles[0].kind is not BundleKind.BUNDLE:
                raise RequestError(f"{target} contains {len(bundles)} bundles; a replay needs one, of this package")
            yield checked(bundles[0].source)
        return
    execution_id = catalog.find(target)
    source = catalog.intact_source(execution_id)
    if source is None:
        raise NotAvailableError(f"execution {execution_id} is not sealed yet; replay it when it is")
    yield checked(source)


@contextmanager
def prepare_replay(
    record: ExecutionRecord,
    source: Source,
    edits: Mapping[str, Any],
    *,
    runtime: str = "process",
    allow_missing: bool = False,
) -> Iterator[Replay]:
    """Copy the code and inputs of *record* from *source* into a folder that is removed when the context ends.

    *edits* override its inputs; *runtime* is the operator's choice for scripts. With *allow_missing* only
    the file of the Method must be in the bundle.

    Raises:
        NotAvailableError: If something is missing; the message lists all of it.
        BundleError: If an input or a source file differs from its record.
    """
    with TemporaryDirectory(prefix="executions-replay-") as name:
        folder, missing = Path(name), list(missing_code(record, source, edits, main_only=allow_missing))
        check_names(path for path in source.files if path.startswith((f"{layout.CODE}/", f"{layout.INPUTS}/")))
        files = copy_inputs(record, source, folder)
        missing += changed_origins(record, files, edits, folder)
        try:
            request = rerun_request(record, edits, files)
        except RequestError as error:
            missing.append(str(error))
        try:
            image = exact_image(record, runtime, folder / "runtime")
        except NotAvailableError as error:
            missing.append(str(error))
        if missing:
            lines = "\n  ".join(missing)
            hint = "" if allow_missing else _hint(missing)
            raise NotAvailableError(f"execution {record.id} cannot be replayed; nothing was run:\n  {lines}{hint}")
        code = copy_code(record, source, folder)
        yield Replay(
            record=record,
            source=source,
            manifest_sha256=sha256(b"".join(source.blocks(layout.MANIFEST))).hexdigest(),
            request=request,
            entrypoint=code.entrypoint,
            folder=folder / layout.CODE,
            paths=code.paths,
            packages=code.packages,
            image=image,
        )


def _hint(missing: Sequence[str]) -> str:
    lacks_files = all(sentence.startswith(CODE_LACKS) for sentence in missing)
    return "\n--allow-missing runs it without these files" if lacks_files else ""


def check_origins(record: ExecutionRecord, files: Mapping[str, Path], edits: Mapping[str, Any], folder: Path) -> None:
    """Check that each input without a copy in *files* has its recorded content at its origin; *folder* is for copies.

    The record of an imported execution could name any file of this machine as an origin.

    Raises:
        NotAvailableError: If one has other content, or is gone; the message lists all of them.
    """
    if changed := list(changed_origins(record, files, edits, folder)):
        lines = "\n  ".join(changed)
        raise NotAvailableError(
            f"execution {record.id} was imported, and nothing was run:\n  {lines}\nName the file: -p NAME=FILE"
        )


def changed_origins(
    record: ExecutionRecord, files: Mapping[str, Path], edits: Mapping[str, Any], folder: Path
) -> Iterator[str]:
    """Yield a sentence for each input that `check_origins` refuses."""
    for number, file in enumerate(record.request.files):
        if file.path not in files and file.input.partition(".")[0] not in edits:
            yield from _check_origin(file, folder / f"origin-{number}")


def _check_origin(file: StagedInput, folder: Path) -> Iterator[str]:
    """Check that an input that is not in the bundle is still available and unchanged at its origin."""
    try:
        (staged,) = stage({file.input: file.origin}, folder)
    except (RequestError, BundleError) as error:
        yield f"input '{file.input}' is kept by reference only: {error}"
        return
    if staged.sha256 != file.sha256:
        yield f"input '{file.input}' is kept by reference only, and {file.origin} has changed"


def _content(source: Source, digests: Mapping[str, str], path: str) -> bytes:
    if path in source.files:
        return b"".join(source.blocks(path))
    if layout.OUTPUT_ZIP not in source.files:
        raise BundleError("its bytes differ from the record, and the bundle lacks the recorded ones")
    with source.open(layout.OUTPUT_ZIP) as stream:
        zipped = ZipReader.open(stream, DEFAULT_LIMITS)
        if path not in zipped.entries:
            raise BundleError(f"{layout.OUTPUT_ZIP} does not contain it")
        data = b"".join(zipped.blocks(zipped.entries[path]))
    if sha256(data).hexdigest() != digests[path]:
        raise BundleError(f"{layout.OUTPUT_ZIP} was changed after the bundle was verified")
    return data
