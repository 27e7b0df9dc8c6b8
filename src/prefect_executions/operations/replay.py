"""What it takes to run an execution again: its inputs with edits, its kept files in place, and how the two are linked.

Law: a secret is never taken from a record, which knows its name at most; whoever asks says the name anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from prefect_executions.bundles.source import FolderSource, Source
from prefect_executions.errors import BundleError, NotFoundError, RequestError, SecretError
from prefect_executions.executions.record import ExecutionRecord, Relative, StagedInput
from prefect_executions.workbench.catalog import Reader

_UNKNOWN = ({"withheld"}, {"unrecorded"})


class Again(NamedTuple):
    """The request for an execution once more: its parameters, and the one that it runs again."""

    parameters: dict[str, Any]
    relative: Relative


def asked_again(record: ExecutionRecord, edits: Mapping[str, Any], files: Mapping[str, Path] | None = None) -> Again:
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
    return Again({**again, **edits}, relation)


def entrypoint_here(record: ExecutionRecord, here: Path) -> str:
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


def record_source(reader: Reader, execution_id: str) -> Source | None:
    """Return the files of an execution on this workbench, open or sealed, else in the archive; None without any."""
    folder = reader.standing(execution_id).folder
    return FolderSource(folder) if folder is not None else reader.bundle_source(execution_id)


def bring_inputs(record: ExecutionRecord, source: Source, folder: Path) -> dict[str, Path]:
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
