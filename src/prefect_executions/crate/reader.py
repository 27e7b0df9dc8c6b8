"""Read what the crate tells of its execution, as hostile input.

Hold a crate against the record and the files that it was built of, entity by entity and word by word.

Law: a crate is a function of record and files. What `build` says in another way some
day is another way for bundles that are sealed already, too; they must still pass.
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
from prefect_executions.documents import canonical, in_utc, strict_json
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
"""A larger crate document is refused; one of 100,000 outputs has 27 MB."""


def read(data: bytes) -> ReadSummary:
    """Return what `ro-crate-metadata.json` tells of its execution and the bundle's files.

    Raises:
        BundleError: If *data* is not JSON, says a member twice, or does not tell one whole execution.
    """
    if len(data) > SIZE_LIMIT:
        _refuse(f"it has {len(data)} bytes; more than {SIZE_LIMIT} are not read")
    entities = entities_of(strict_json(data, vocabulary.FILE))
    action = _action(entities)
    instrument = _one(action, "instrument", entities)
    execution_id = _text(action, "identifier")
    if action["@id"] != f"#{run_name(execution_id)}":
        _refuse(f"the action {action['@id']} is not named after its execution {execution_id}")
    published = _time(entities.get("./", {}), "datePublished")
    if "endTime" in action and published != _time(action, "endTime"):
        _refuse(f"it was published at {published}, which is not when the execution ended")
    account = RecordSummary(
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
    return ReadSummary(account, frozenset(_files(entities)))


def entities_of(document: Any) -> dict[str, Entity]:
    """Return what a crate's *document* tells of, by its id.

    Raises:
        BundleError: If it has no graph, or an entity in it no id of its own.
    """
    graph = document.get("@graph") if isinstance(document, dict) else None
    if not isinstance(graph, list):
        _refuse("it has no @graph")
    entities: dict[str, Entity] = {}
    for entity in graph:
        name = entity.get("@id") if isinstance(entity, dict) else None
        if not isinstance(name, str) or name in entities:
            _refuse(f"an entity has no @id of its own: {str(name)[:80]}")
        entities[name] = entity
    return entities


def _action(entities: Mapping[str, Entity]) -> Entity:
    actions = [entity for entity in entities.values() if entity.get("@type") == "CreateAction"]
    if len(actions) != 1:
        _refuse(f"it tells {len(actions)} actions; there must be one")
    mentioned = [entity["@id"] for entity in _all(entities.get("./", {}), "mentions", entities)]
    steps = [entity["@id"] for entity in entities.values() if entity.get("@type") == "Action"]
    if mentioned != [actions[0]["@id"], *steps]:
        _refuse("its root does not mention the action and its steps")
    return actions[0]


def _status(action: Entity, entities: Mapping[str, Entity]) -> str:
    status = _text(_one(action, "additionalProperty", entities), "value")
    if action.get("actionStatus") != {told.value: said for told, said in vocabulary.ACTION_STATUS.items()}.get(status):
        _refuse(f"the action says {action.get('actionStatus')} and {status}")
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
                _refuse(f"the step {entity['@id']} says {entity.get('actionStatus')} and {state}")
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
            _refuse(f"the phase {name} says {entity.get('actionStatus')} and the exit code {code}")
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
    told = {key: _text(entity, key) if key in entity else None for key in ("registry", "name", "identifier", "sha256")}
    return Image(told["registry"], told["name"], told["identifier"], told["sha256"])


def _number(text: str, name: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        _refuse(f"the phase {name} has '{text[:40]}' where a number is wanted")
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
        _refuse(f"the entity {entity['@id']} has '{digest[:80]}' as sha256")
    return digest


def _one(entity: Entity, key: str, entities: Mapping[str, Entity]) -> Entity:
    found = _all(entity, key, entities)
    if len(found) != 1:
        _refuse(f"the entity {entity['@id']} says {len(found)} times {key}; once is wanted")
    return found[0]


def _all(entity: Entity, key: str, entities: Mapping[str, Entity]) -> list[Entity]:
    told = entity.get(key, [])
    refs = told if isinstance(told, list) else [told]
    names = [ref.get("@id") if isinstance(ref, dict) else None for ref in refs]
    for name in names:
        if not isinstance(name, str) or name not in entities:
            _refuse(f"{key} of {entity.get('@id')} refers to {str(name)[:80]}, which is not told")
    return [entities[name] for name in names if isinstance(name, str)]


def _text(entity: Entity, key: str) -> str:
    value = entity.get(key)
    if not isinstance(value, str):
        _refuse(f"the entity {entity['@id']} has no text as {key}")
    return value


def _time(entity: Entity, key: str) -> datetime | None:
    if key not in entity:
        return None
    text = _text(entity, key)
    try:
        return in_milliseconds(in_utc(datetime.fromisoformat(text)))
    except (ValueError, OverflowError) as error:
        raise BundleError(f"{vocabulary.FILE}: '{text[:40]}' is not a {key}: {error}") from error


def _refuse(message: str) -> NoReturn:
    raise BundleError(f"{vocabulary.FILE}: {message}")


_SHOWN = 200


def differences(
    data: bytes, record: ExecutionRecord, files: Sequence[BundleFile], unmeasured: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Yield one sentence for each word in which the crate *data* differs from what *record* and *files* say.

    *files* are those that `build` was given. The sizes of those at the paths *unmeasured*
    are not known, and not looked at. The order of entities and of references says nothing.

    Raises:
        BundleError: If *data* is not the document of a crate.
    """
    built = build(record, files)
    if data == built:
        return
    told, said = strict_json(data, vocabulary.FILE), strict_json(built, vocabulary.FILE, bounded=False)
    there, ours = entities_of(told), entities_of(said)
    for path in unmeasured:
        there.get(uri(path), {}).pop("contentSize", None)
        ours[uri(path)].pop("contentSize", None)
    yield from _members(_without_graph(told), _without_graph(said), "the document")
    for name in there.keys() - ours.keys():
        yield f"{vocabulary.FILE}: it tells of {name[:_SHOWN]}; the documents do not"
    for name, entity in ours.items():
        if name in there:
            yield from _members(there[name], entity, name)
        else:
            yield f"{vocabulary.FILE}: it does not tell of {name}; the documents do"


def _without_graph(document: Entity) -> Entity:
    return {key: value for key, value in document.items() if key != "@graph"}


def _members(told: Entity, said: Entity, name: str) -> Iterator[str]:
    for key in told | said:
        if _unordered(told.get(key)) != _unordered(said.get(key)):
            yield (
                f"{vocabulary.FILE}: {key[:_SHOWN]} of {name} is {_words(told.get(key))}; "
                f"the documents say {_words(said.get(key))}"
            )


def _unordered(value: Any) -> Any:
    return sorted(map(canonical, value)) if isinstance(value, list) else value


def _words(value: Any) -> str:
    return "absent" if value is None else json.dumps(value, ensure_ascii=False)[:_SHOWN]
