"""The reader of a crate, as hostile input, and its comparison with the record and files, entity by entity.

Law: a crate is a function of record and files. `verify` builds the crate of a sealed
bundle again, so a change to the text that `build` writes must keep old bundles valid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from prefect_executions.crate import vocabulary
from prefect_executions.crate.vocabulary import Entity, uri
from prefect_executions.crate.writer import build
from prefect_executions.documents import canonical_json, in_utc, strict_json
from prefect_executions.errors import BundleError
from prefect_executions.executions.record import BundleFile, ExecutionRecord, run_name, value_digest
from prefect_executions.executions.summary import (
    Image,
    PhaseSummary,
    ReadSummary,
    RecordSummary,
    StepSummary,
    in_milliseconds,
)

SIZE_LIMIT = 256 * 1024**2
"""The largest crate document, in bytes; with 100,000 outputs it has 27 MB."""


def read(data: bytes) -> ReadSummary:
    """Return the summary in `ro-crate-metadata.json`, and its digests of the bundle's files.

    Raises:
        BundleError: If *data* is not JSON, has a duplicate member, or does not describe
            exactly one complete execution.
    """
    if len(data) > SIZE_LIMIT:
        _refuse(f"it has {len(data)} bytes; the limit is {SIZE_LIMIT}")
    entities = entities_of(strict_json(data, vocabulary.FILE))
    action = _action(entities)
    instrument = _one(action, "instrument", entities)
    execution_id = _text(action, "identifier")
    if action["@id"] != f"#{run_name(execution_id)}":
        _refuse(f"the id of the action {action['@id']} does not match its execution {execution_id}")
    published = _time(entities.get("./", {}), "datePublished")
    if "endTime" in action and published != _time(action, "endTime"):
        _refuse(f"datePublished is {published}, not the end of the execution")
    summary = RecordSummary(
        execution_id=execution_id,
        method=f"{_text(instrument, 'identifier')} {_text(instrument, 'version')}",
        status=_status(action, entities),
        started=_time(action, "startTime"),
        finished=_time(action, "endTime"),
        inputs=frozenset(_inputs(action, entities)),
        outputs=frozenset(_outputs(action, entities)),
        steps=frozenset(_steps(entities)),
        phases=frozenset(_phases(entities)),
    )
    return ReadSummary(summary, tuple(_files(entities)))


def entities_of(document: Any) -> dict[str, Entity]:
    """Return the entities of a crate's *document*, by id.

    Raises:
        BundleError: If the document has no graph, or an entity has no unique id.
    """
    graph = document.get("@graph") if isinstance(document, dict) else None
    if not isinstance(graph, list):
        _refuse("it has no @graph")
    entities: dict[str, Entity] = {}
    for entity in graph:
        name = entity.get("@id") if isinstance(entity, dict) else None
        if not isinstance(name, str) or name in entities:
            _refuse(f"an entity has no unique @id: {str(name)[:80]}")
        entities[name] = entity
    return entities


def _action(entities: Mapping[str, Entity]) -> Entity:
    actions = [entity for entity in entities.values() if entity.get("@type") == "CreateAction"]
    if len(actions) != 1:
        _refuse(f"it has {len(actions)} actions; there must be one")
    mentioned = [entity["@id"] for entity in _all(entities.get("./", {}), "mentions", entities)]
    steps = [entity["@id"] for entity in entities.values() if entity.get("@type") == "Action"]
    if mentioned != [actions[0]["@id"], *steps]:
        _refuse("its root does not mention the action and its steps")
    return actions[0]


def _status(action: Entity, entities: Mapping[str, Entity]) -> str:
    status = _text(_one(action, "additionalProperty", entities), "value")
    terms = {known.value: term for known, term in vocabulary.ACTION_STATUS.items()}
    if action.get("actionStatus") != terms.get(status):
        _refuse(f"the action has actionStatus {action.get('actionStatus')} and status {status}")
    return status


def _inputs(action: Entity, entities: Mapping[str, Entity]) -> Iterator[tuple[str, str]]:
    for entity in _all(action, "object", entities):
        if entity.get("@type") == "PropertyValue":
            yield _text(entity, "name"), _value_digest(entity)
        else:
            for parameter in _all(entity, "exampleOfWork", entities):
                yield _text(parameter, "name"), _digest(entity)


def _outputs(action: Entity, entities: Mapping[str, Entity]) -> Iterator[tuple[str, str]]:
    for entity in _all(action, "result", entities):
        if entity.get("@type") != "PropertyValue":
            inside = entity.get("@type") == "File"
            yield vocabulary.path(entity["@id"]) if inside else _text(entity, "identifier"), _digest(entity)


def _files(entities: Mapping[str, Entity]) -> Iterator[tuple[str, str]]:
    for name, entity in entities.items():
        if entity.get("@type") == "File":
            yield vocabulary.path(name), _digest(entity)


def _steps(entities: Mapping[str, Entity]) -> Iterator[StepSummary]:
    for name, entity in entities.items():
        if entity.get("@type") == "Action" and not name.startswith(vocabulary.PHASE):
            state = _text(_one(entity, "additionalProperty", entities), "value")
            if entity.get("actionStatus") != vocabulary.STEP_STATUS.get(state, vocabulary.POTENTIAL):
                _refuse(f"the step {entity['@id']} has actionStatus {entity.get('actionStatus')} and state {state}")
            yield StepSummary(
                id=_text(entity, "identifier"),
                name=_text(entity, "name"),
                state=state,
                started=_time(entity, "startTime"),
                finished=_time(entity, "endTime"),
            )


def _phases(entities: Mapping[str, Entity]) -> Iterator[PhaseSummary]:
    for name, entity in entities.items():
        if entity.get("@type") != "Action" or not name.startswith(vocabulary.PHASE):
            continue
        number, code = _number(name.removeprefix(vocabulary.PHASE), name), None
        if "additionalProperty" in entity:
            code = _number(_text(_one(entity, "additionalProperty", entities), "value"), name)
        if entity.get("actionStatus") != vocabulary.phase_status(code, ended="endTime" in entity):
            _refuse(f"the phase {name} has actionStatus {entity.get('actionStatus')} and exit code {code}")
        yield PhaseSummary(
            number=number,
            phase=_text(entity, "name"),
            task=_text(entity, "identifier"),
            started=_time(entity, "startTime"),
            ended=_time(entity, "endTime"),
            exit_code=code,
            image=_image(_one(entity, "containerImage", entities)) if "containerImage" in entity else None,
        )


def _image(entity: Entity) -> Image:
    keys = ("registry", "name", "identifier", "sha256")
    return Image(*(_text(entity, key) if key in entity else None for key in keys))


def _number(text: str, name: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        _refuse(f"the phase {name} has '{text[:40]}' instead of an integer")
    return int(text)


def _value_digest(entity: Entity) -> str:
    if "sha256" in entity:
        return _digest(entity)
    text = _text(entity, "value")
    if entity.get("encodingFormat") == vocabulary.JSON:
        return value_digest(strict_json(text, f"{vocabulary.FILE}: {entity['@id']}"))
    return value_digest(text)


def _digest(entity: Entity) -> str:
    digest = _text(entity, "sha256")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        _refuse(f"sha256 of the entity {entity['@id']} is '{digest[:80]}', not a digest")
    return digest


def _one(entity: Entity, key: str, entities: Mapping[str, Entity]) -> Entity:
    referenced = _all(entity, key, entities)
    if len(referenced) != 1:
        _refuse(f"the entity {entity['@id']} has {len(referenced)} references as {key}; there must be one")
    return referenced[0]


def _all(entity: Entity, key: str, entities: Mapping[str, Entity]) -> list[Entity]:
    value = entity.get(key, [])
    refs = value if isinstance(value, list) else [value]
    names = [ref.get("@id") if isinstance(ref, dict) else None for ref in refs]
    for name in names:
        if not isinstance(name, str) or name not in entities:
            _refuse(f"{key} of {entity.get('@id')} refers to {str(name)[:80]}, which is missing")
    return [entities[name] for name in names if isinstance(name, str)]


def _text(entity: Entity, key: str) -> str:
    value = entity.get(key)
    if not isinstance(value, str):
        _refuse(f"{key} of the entity {entity['@id']} is not text")
    return value


def _time(entity: Entity, key: str) -> datetime | None:
    if key not in entity:
        return None
    text = _text(entity, key)
    try:
        return in_milliseconds(in_utc(datetime.fromisoformat(text)))
    except (ValueError, OverflowError) as error:
        raise BundleError(f"{vocabulary.FILE}: '{text[:40]}' is not a valid {key}: {error}") from error


def _refuse(message: str) -> NoReturn:
    raise BundleError(f"{vocabulary.FILE}: {message}")


_SHOWN = 200


def differences(
    data: bytes, record: ExecutionRecord, files: Sequence[BundleFile], unmeasured: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Yield one sentence for each member of the crate *data* that differs from a crate of *record* and *files*.

    *files* are the files that `build` was given. Sizes at the paths *unmeasured* are
    unknown and not compared. The order of entities and of references does not matter.

    Raises:
        BundleError: If *data* is not the document of a crate.
    """
    built = build(record, files)
    if data == built:
        return
    actual, expected = strict_json(data, vocabulary.FILE), strict_json(built, vocabulary.FILE, bounded=False)
    theirs, ours = entities_of(actual), entities_of(expected)
    for path in unmeasured:
        theirs.get(uri(path), {}).pop("contentSize", None)
        ours[uri(path)].pop("contentSize", None)
    yield from _member_differences(_without_graph(actual), _without_graph(expected), "the document")
    for name in theirs.keys() - ours.keys():
        yield f"{vocabulary.FILE}: it has {name[:_SHOWN]}; the documents do not"
    for name, entity in ours.items():
        if name in theirs:
            yield from _member_differences(theirs[name], entity, name)
        else:
            yield f"{vocabulary.FILE}: it lacks {name}, which the documents have"


def _without_graph(document: Entity) -> Entity:
    return {key: value for key, value in document.items() if key != "@graph"}


def _member_differences(actual: Entity, expected: Entity, name: str) -> Iterator[str]:
    for key in actual | expected:
        if _unordered(actual.get(key)) != _unordered(expected.get(key)):
            yield (
                f"{vocabulary.FILE}: {key[:_SHOWN]} of {name} is {_shown(actual.get(key))}; "
                f"the documents say {_shown(expected.get(key))}"
            )


def _unordered(value: Any) -> Any:
    return sorted(map(canonical_json, value)) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return "absent" if value is None else json.dumps(value, ensure_ascii=False)[:_SHOWN]
