"""What it takes to run an execution again: its inputs with edits, its kept files in place, and how the two are linked.

Law: a secret is never taken from a record, which knows its name at most; whoever asks says the name anew.

Replay an execution from its bundle alone: its code and inputs put in place, and the verdict on what comes out.

Law: what is missing is reported by name before anything runs; the verdict is written before the new bundle is sealed.

The very image that an execution's scripts ran in, for a replay of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from prefect_executions.bundles import layout
from prefect_executions.bundles.gather import load_gathered
from prefect_executions.bundles.incoming import find_bundles, open_container
from prefect_executions.bundles.layout import BundleKind
from prefect_executions.bundles.open_bundle import OpenBundle
from prefect_executions.bundles.portable_names import check_names
from prefect_executions.bundles.source import FolderSource, Source, record_of
from prefect_executions.bundles.verify import DEFAULT_LIMITS, verify
from prefect_executions.bundles.zip_reader import ZipReader
from prefect_executions.capture.staging import stage
from prefect_executions.comparison.verdict import Verdict, judge
from prefect_executions.errors import (
    BundleError,
    ExecutionsError,
    NotAvailableError,
    NotFoundError,
    RequestError,
    SecretError,
)
from prefect_executions.executions.record import ExecutionRecord, Relative, ScriptRun, StagedInput
from prefect_executions.lifecycle.status import Status
from prefect_executions.operations.compare import compare_outputs
from prefect_executions.runtimes.registry import image_runtime, open_runtime
from prefect_executions.workbench.catalog import Catalog
from prefect_executions.workbench.lookup import path_of

_UNKNOWN = ({"withheld"}, {"unrecorded"})


class RerunRequest(NamedTuple):
    """The request for an execution once more: its parameters, and the one that it runs again."""

    parameters: dict[str, Any]
    relative: Relative


def rerun_request(
    record: ExecutionRecord, edits: Mapping[str, Any], files: Mapping[str, Path] | None = None
) -> RerunRequest:
    """Return the request of *record* once more, with the inputs in *edits* in place of its own.

    *files* tells where copies of its input files lie, by their paths in the bundle; the others are told
    by where they came from.

    Raises:
        SecretError: If it had a secret input that *edits* does not name.
        RequestError: If the record does not know an input that *edits* does not give.
    """
    kept = {name: value for name, value in _asked(record).items() if name not in edits}
    _check_secrets(record, kept)
    _check_known(kept)
    waiting: dict[str, Iterator[str]] = {}
    for name in dict.fromkeys(file.input for file in record.request.files):
        waiting[name] = iter([_place(file, files or {}) for file in record.request.files if file.input == name])
    again = {name: _placed(name, value, waiting) for name, value in kept.items()}
    own = record.request.values
    secrets = record.method.secrets
    edited = any(name not in own or own[name] != value for name, value in edits.items() if name not in secrets)
    relation = Relative(execution_id=record.id, relation="edited-rerun-of" if edited else "rerun-of")
    return RerunRequest({**again, **edits}, relation)


def find_entrypoint(record: ExecutionRecord, here: Path) -> str:
    """Return where the Method of *record* is now: below *here*, or where its process was working then.

    Raises:
        NotFoundError: If it is in neither place; the message says what else can be done.
    """
    told = record.method.code.entrypoint if record.method.code else None
    path, _, name = (told or "").partition(":")
    places = [here, *([Path(record.instance.working_directory)] if record.instance.working_directory else [])]
    for place in places if path else []:
        if (place / path).is_file():
            found = str(place / path)
            return f"{found}:{name}" if name else found
    looked = " nor in ".join(f"'{place}'" for place in places)
    raise NotFoundError(
        f"Method '{record.method.id}' is neither in {looked} as {told or 'what has no file'}. Say where it is: "
        f"--method path.py:function; or 'executions replay {record.id}' runs the code that the record keeps."
    )


def record_source(reader: Catalog, execution_id: str) -> Source | None:
    """Return the files of an execution on this workbench, open or sealed, else in the archive; None without any."""
    folder = reader.storage_state(execution_id).folder
    return FolderSource(folder) if folder is not None else reader.bundle_source(execution_id)


def copy_inputs(record: ExecutionRecord, source: Source, folder: Path) -> dict[str, Path]:
    """Copy the input files that *source* keeps into *folder*, and return where each lies by its path in the bundle.

    Raises:
        BundleError: If one is not what was recorded.
    """
    brought: dict[str, Path] = {}
    for file in record.request.files:
        if file.path is not None and file.path in source.files:
            brought[file.path] = folder / file.path
            _copy(source, file.path, folder / file.path, file.sha256)
    return brought


def _copy(source: Source, path: str, target: Path, expected: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = sha256()
    with target.open("xb") as file:
        for block in source.blocks(path):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != expected:
        raise BundleError(f"{path} is {digest.hexdigest()} and was recorded as {expected}, so nothing was run")


def _asked(record: ExecutionRecord) -> dict[str, Any]:
    """What can be asked for: neither what the author bound, nor what was left out and so is told as null."""
    described, sent = record.method.inputs, record.request.parameters
    return {
        name: value
        for name, value in record.request.values.items()
        if (value is not None or name in sent) and not (name in described and described[name].is_bound)
    }


def _check_secrets(record: ExecutionRecord, kept: Mapping[str, Any]) -> None:
    asked = sorted(name for name in record.method.secrets & kept.keys() if kept[name] is not None)
    if asked:
        told = ", ".join(f"{name}{_known_as(kept[name])}" for name in asked)
        say = " ".join(f"-p {name}=BLOCK" for name in asked)
        raise SecretError(
            f"execution {record.id} had the secret {told}; a record holds none. "
            f"Name it anew: {say}, where BLOCK is a Prefect Secret block or env:NAME."
        )


def _known_as(value: Any) -> str:
    name = value.get("secret") if isinstance(value, dict) else None
    return f" (then '{name}')" if name else ""


def _check_known(kept: Mapping[str, Any]) -> None:
    unknown = sorted(name for name, value in kept.items() if _has_unknown(value))
    if unknown:
        say = " ".join(f"-p {name}=…" for name in unknown)
        raise RequestError(f"the record does not hold the whole of the input {', '.join(unknown)}; give it: {say}")


def _has_unknown(value: Any) -> bool:
    if isinstance(value, dict):
        return value.keys() in _UNKNOWN or any(map(_has_unknown, value.values()))
    return isinstance(value, list) and any(map(_has_unknown, value))


def _place(file: StagedInput, files: Mapping[str, Path]) -> str:
    return str(files[file.path]) if file.path is not None and file.path in files else file.origin


def _placed(name: str, value: Any, waiting: Mapping[str, Iterator[str]]) -> Any:
    """Return *value* with each file in it told by its place; a file in a model has a name like ``options.scene``."""
    if isinstance(value, str) and name in waiting:
        return next(waiting[name], value)
    if isinstance(value, list):
        return [_placed(name, part, waiting) for part in value]
    if isinstance(value, dict):
        return {key: _placed(f"{name}.{key}", part, waiting) for key, part in value.items()}
    return value


# A bundle may say anything; what is no digest could name another image.
_ID = re.compile(r"sha256:[0-9a-f]{64}")
_DIGEST = re.compile(r"[a-z0-9][\w.:/-]*@sha256:[0-9a-f]{64}")


class ExactImage(NamedTuple):
    """An image by a digest, and the runtime that is to run scripts in it."""

    runtime: str
    name: str


def exact_image(record: ExecutionRecord, runtime: str, state: Path) -> ExactImage | None:
    """Return the image of the last scripts that *record* tells; None where they ran in no container.

    The operator's *runtime* is kept if it runs images. *state* is a folder for it.

    Raises:
        NotAvailableError: If it is not to be had; the message names it.
    """
    run = next((one for one in reversed(record.instance.runs or ()) if one.image or one.image_digest), None)
    if run is None:
        return None
    chosen = image_runtime(runtime)
    try:
        opened = open_runtime(chosen, state=state)
        try:
            name = opened.ensure_image(_matching(_ID, run.image), _matching(_DIGEST, run.image_digest))
        finally:
            opened.close()
    except ExecutionsError as error:
        raise NotAvailableError(f"image: {_named(run)} is not to be had: {error}") from error
    if name is None:
        raise NotAvailableError(f"image: the runtime '{chosen}' has not got {_named(run)}, and no registry gives it")
    return ExactImage(chosen, name)


def _matching(form: re.Pattern[str], told: str | None) -> str | None:
    return told if told and form.fullmatch(told) else None


def _named(run: ScriptRun) -> str:
    told = ", ".join(filter(None, (run.image_digest, run.image)))
    return f"{run.image_name or 'the image'} ({told})"


@dataclass(frozen=True, kw_only=True)
class Replay:
    """An execution that can run again from its bundle: what is asked for, and where its code lies now."""

    record: ExecutionRecord
    source: Source
    manifest_sha256: str
    again: RerunRequest
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
            compare_outputs(
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
def open_replayable(reader: Catalog, target: str) -> Iterator[tuple[ExecutionRecord, Source]]:
    """Open what *target* names, a folder or zip with one bundle or the id of a sealed execution, and verify it.

    Raises:
        NotFoundError: If there is no such thing.
        RequestError: If it holds several bundles, or none of ours.
        NotAvailableError: If the execution is not sealed yet.
        BundleError: If the bundle is damaged.
    """
    if path := path_of(target):
        with open_container(path, DEFAULT_LIMITS) as whole:
            found = find_bundles(whole)
            if len(found) != 1 or found[0].kind is not BundleKind.BUNDLE:
                raise RequestError(f"{target} holds {len(found)} bundles; a replay is of one, of this package's own")
            yield _verified(found[0].source, target), found[0].source
        return
    execution_id = reader.find(target)
    source = reader.local_source(execution_id) or reader.bundle_source(execution_id)
    if source is None:
        raise NotAvailableError(f"execution {execution_id} is not sealed yet; replay it when it is")
    yield _verified(source, target), source


@contextmanager
def prepare_replay(
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
        files = copy_inputs(record, source, folder)
        places = {**files}
        for number, file in enumerate(record.request.files):
            if file.path not in files and file.input.partition(".")[0] not in edits:
                missing += _by_reference(file, folder / f"far-{number}")
        try:
            again = rerun_request(record, edits, places)
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
    return record_of(source)


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
