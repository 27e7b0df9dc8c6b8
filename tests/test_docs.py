"""The documents tell the truth: what the code has is told, what is told the code has.

Parts of docs/ are written from the code. When one is stale its test fails;
``RENEW_DOCS=1 python -m pytest tests/test_docs.py`` writes them anew.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import SecretStr
from pydantic_core import PydanticUndefined

import prefect_executions
from prefect_executions import documents, errors, events, settings
from prefect_executions.archive.objects import ArchivedData, Seal
from prefect_executions.attestation import dsse
from prefect_executions.bundles import layout
from prefect_executions.bundles.verify import CHECKS
from prefect_executions.comparison.verdict import Verdict
from prefect_executions.documents import Document
from prefect_executions.executions.record import (
    Agent,
    ExecuteRequest,
    ExecutionRecord,
    Infrastructure,
    Instance,
    Metrics,
)
from prefect_executions.lifecycle.history import JobStatus
from prefect_executions.lifecycle.status import AS_OGC, FOLLOWS, FROM_PREFECT, Status
from prefect_executions.methods.model import METHOD_TYPES, Method
from prefect_executions.query.fields import FIELDS, FLAGS, KINDS, OPERATORS, has_order
from prefect_executions.query.parser import parse
from prefect_executions.query.tree import Operator
from prefect_executions.runtimes.interface import Capability
from prefect_executions.runtimes.registry import RUNTIMES
from records import EXECUTION_ID, NOON, a_record, a_verdict, digest, some_events
from source_tree import SourceTree

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = (README, ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md")))
BLOCK = re.compile(r"<!-- from the code: (?P<name>\S+) -->\n(?P<text>.*?)<!-- end -->", re.DOTALL)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
OF_TESTS = "EXECUTIONS_TEST_"


def table(*rows: tuple[str, ...]) -> str:
    """Return a Markdown table whose first row is its head."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    cells.insert(1, ["---"] * len(rows[0]))
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _settings() -> str:
    rows = [("variable", "default", "meaning")]
    for name, field in settings.Settings.model_fields.items():
        rows.append((f"`EXECUTIONS_{name.upper()}`", _default(field.default), field.description or ""))
    return table(*rows)


def _default(value: Any) -> str:
    if value is None or value is PydanticUndefined or value in {"", ()} or isinstance(value, SecretStr):
        return ""
    if hasattr(value, "total_seconds"):
        return f"`{value.total_seconds():.0f}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _errors() -> str:
    told = inspect.getdoc(errors) or ""
    tree = inspect.cleandoc(told.partition("::")[2])
    return f"```text\n{tree}\n```\n"


def _lifecycle() -> str:
    rows = [("status", "may be followed by", "OGC", "Prefect's state types")]
    for status in Status:
        after = [f"`{other}`" for other in Status if other in FOLLOWS[status]]
        types = [f"`{type_}`" for type_, told in FROM_PREFECT.items() if told is status]
        rows.append((f"`{status}`", ", ".join(after) or "-", f"`{AS_OGC[status]}`", ", ".join(types) or "-"))
    return table(*rows)


def _method_types() -> str:
    return ", ".join(f"`{term}`" for term in METHOD_TYPES) + ".\n"


def _example(file_name: str) -> str:
    record = a_record()
    documents = (*record.documents().values(), a_verdict())
    document = next(document for document in documents if document and document.file_name == file_name)
    return f"```json\n{document.to_json().decode()}```\n"


def _seal() -> str:
    seal = Seal(
        execution_id=EXECUTION_ID,
        manifest_sha256=digest(b"the manifest"),
        objects=f"sealed-{digest(b'all files')[:16]}/",
        data={"output.zip": ArchivedData(object=f"data/{digest(b'a zip')}", size=7_340_032)},
        absent=("inputs/picture.png",),
        status=Status.COMPLETED,
        finished=NOON,
    )
    return f"```json\n{seal.to_json().decode()}```\n"


def _events() -> str:
    rows = [("event", "emitted when", "labels of the resource", "members of the payload")]
    for name in events.EventName:
        told = next(event.as_json() for event in some_events() if event.name is name)
        labels = sorted(label for label in told["resource"] if not label.startswith("prefect.resource."))
        cells = [", ".join(f"`{one}`" for one in some) for some in (labels, sorted(told["payload"]))]
        rows.append((f"`{name}`", events.WHEN[name], *cells))
    return table(*rows)


def _runtimes() -> str:
    kinds = [entry.load() for entry in RUNTIMES.values()]
    rows = [("part of a request", *(f"`{kind.name}`" for kind in kinds))]
    rows += [(wish.value, *(kind.capabilities.get(wish, "**refused**") for kind in kinds)) for wish in Capability]
    return table(*rows)


def _checks() -> str:
    rows = [(f"`{name}`", (inspect.getdoc(check) or "").removesuffix(".")) for name, check in CHECKS.items()]
    return table(("check", "passes when"), *rows)


def _review() -> str:
    return "".join(["```sh\n", *(f"{line}\n" for line in dsse.commands("SIGNER.pem")), "```\n"])


def _search_fields() -> str:
    rows = [("field", "other names", "values", "example", "meaning")]
    for field in FIELDS:
        aliases = ", ".join(f"`{alias}`" for alias in field.aliases)
        rows.append((f"`{field.name}`", aliases, field.kind.value, f"`{field.example}`", field.description))
    return table(*rows)


def _search_kinds() -> str:
    rows = [("values", "operators", "comparison")]
    for kind, meaning in KINDS.items():
        operators = " ".join(f"`{one.value}`" for one in Operator if one in OPERATORS[kind])
        rows.append((kind.value, f"{operators}{' `TO`' if has_order(kind) else ''}", meaning))
    return table(*rows)


def _search_flags() -> str:
    return table(("flag", "meaning"), *((f"`is:{flag}`", meaning) for flag, meaning in FLAGS.items()))


def _search_error() -> str:
    with pytest.raises(errors.QueryError) as caught:
        parse("method:mnist AND is:archivd")
    return f"```text\n{caught.value}\n```\n"


def _commands() -> str:
    rows = [("command", "what it does")]
    rows += [(f"`executions {name}`", help_text.partition("\n")[0]) for name, help_text in commands().items()]
    return table(*rows)


@cache
def commands() -> Mapping[str, str]:
    """Return every command of the command line, with what it says of itself; none before there is a `cli`."""
    if find_spec("prefect_executions.cli") is None:
        return {}
    return dict(_commands_below(importlib.import_module("prefect_executions.cli.app").app, ""))


def _commands_below(app: Any, above: str) -> Iterator[tuple[str, str]]:
    for name in app:
        if name.startswith("-"):
            continue
        below = dict(_commands_below(app[name], f"{above}{name} "))
        if below:
            yield from below.items()
        else:
            yield f"{above}{name}", (app[name].help or "").strip()


BLOCKS: Mapping[str, Callable[[], str]] = {
    "settings": _settings,
    "errors": _errors,
    "lifecycle": _lifecycle,
    "method-types": _method_types,
    "commands": _commands,
    "events": _events,
    "runtimes": _runtimes,
    "search-fields": _search_fields,
    "search-kinds": _search_kinds,
    "search-flags": _search_flags,
    "search-error": _search_error,
    "review": _review,
    "checks": _checks,
    Seal.file_name: _seal,
    **{
        document.file_name: (lambda name=document.file_name: _example(name))
        for document in (
            *(Method, ExecuteRequest, Infrastructure, Instance),
            *(JobStatus, Metrics, Agent, Verdict),
        )
    },
}


@cache
def every_document() -> tuple[type[Document], ...]:
    """Return each JSON document that any package writes."""
    found = [
        getattr(importlib.import_module(module.name), kind.name)
        for module in SourceTree(ROOT / "src" / "prefect_executions").modules.values()
        for kind in module.classes()
        if any(ast.unparse(base) in {"Document", "ArchiveDocument"} for base in kind.bases)
        if kind.name != "ArchiveDocument"
    ]
    return tuple(sorted(found, key=lambda kind: kind.file_name))


def schema_of(document: type[Document]) -> dict[str, Any]:
    schema = document.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$comment": document.file_name} | schema


def schema_path(document: type[Document]) -> Path:
    return DOCS / "schemas" / f"{Path(document.file_name).stem}.schema.json"


def _blocks() -> list[tuple[Path, str, str]]:
    return [
        (page, found["name"], found["text"])
        for page in sorted(DOCS.glob("*.md"))
        for found in BLOCK.finditer(page.read_text(encoding="utf-8"))
    ]


@pytest.fixture(scope="module", autouse=True)
def renewed() -> None:
    """Write what is made from the code, when RENEW_DOCS says so."""
    if not os.environ.get("RENEW_DOCS"):
        return
    for page in DOCS.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        renewed = BLOCK.sub(
            lambda found: f"<!-- from the code: {found['name']} -->\n{BLOCKS[found['name']]()}<!-- end -->", text
        )
        page.write_text(renewed, encoding="utf-8")
    for document in every_document():
        schema_path(document).write_text(_as_text(schema_of(document)), encoding="utf-8")


def _as_text(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("name", BLOCKS)
def test_what_docs_take_from_the_code_is_what_the_code_says(name):
    told = [text for _, block, text in _blocks() if block == name]
    assert told, f"no page of docs/ has the block '{name}'"
    assert set(told) == {BLOCKS[name]()}, "stale: RENEW_DOCS=1 python -m pytest tests/test_docs.py"


def test_every_block_of_the_docs_has_a_source():
    assert not {name for _, name, _ in _blocks()} - BLOCKS.keys()


def test_the_json_schemas_are_those_of_the_models():
    made = {schema_path(document): _as_text(schema_of(document)) for document in every_document()}
    kept = {path: path.read_text(encoding="utf-8") for path in (DOCS / "schemas").iterdir()}
    assert kept == made, "stale: RENEW_DOCS=1 python -m pytest tests/test_docs.py"


def test_the_examples_of_the_docs_satisfy_the_published_schemas():
    kinds = {kind.file_name: kind for kind in every_document()}
    checked = 0
    for _, name, text in _blocks():
        if name in kinds:
            example = FENCE.search(text)
            assert example
            schema = json.loads(schema_path(kinds[name]).read_text(encoding="utf-8"))
            Draft202012Validator.check_schema(schema)
            Draft202012Validator(schema).validate(json.loads(example[2]))
            kinds[name].from_json(example[2].encode())
            checked += 1
    assert checked == len({*ExecutionRecord.__dataclass_fields__, "seal", "verdict"})


def test_every_file_of_a_bundle_is_told_in_the_format_page():
    page = (DOCS / "bundle-format.md").read_text(encoding="utf-8")
    names = {kind.file_name for kind in every_document()} | layout.FIXED | {layout.STDOUT, layout.STDERR}
    assert not {name for name in names if Path(name).name not in page}


def test_the_format_page_tells_the_number_that_documents_carry():
    page = (DOCS / "bundle-format.md").read_text(encoding="utf-8")
    assert re.search(rf"^### Format {documents.FORMAT}\b", page, re.MULTILINE)


def test_every_error_is_drawn_in_the_tree_and_told_on_its_page():
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    public = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}
    prose = BLOCK.sub("", page)
    assert not {name for name in public if f"`{name}`" not in prose}
    assert not {name for name in public if name not in (errors.__doc__ or "")}
    assert not set(re.findall(r"`(\w+Error)`", page)) - public


def test_the_changes_of_a_version_can_be_scanned():
    unreleased = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("## Unreleased")[2].partition("\n## ")[0]
    assert unreleased.count("\n- ") <= 60


def test_every_setting_that_is_told_anywhere_exists():
    known = {f"EXECUTIONS_{name.upper()}" for name in settings.Settings.model_fields}
    sources = sorted((ROOT / "src").rglob("*.py"))
    for page in (*PAGES, *sources):
        told = set(re.findall(r"\bEXECUTIONS_[A-Z][A-Z_]*[A-Z]\b", page.read_text(encoding="utf-8")))
        unknown = {name for name in told if not name.startswith(OF_TESTS)} - known
        assert not unknown, f"{page.relative_to(ROOT)}: {unknown}"


def test_every_command_that_is_told_anywhere_exists():
    if not commands():
        pytest.skip("the module prefect_executions.cli is missing")
    words = {tuple(name.split()) for name in commands()}
    for page in PAGES:
        for told in re.findall(r"(?:^|[`$/ ])executions ((?:[a-z]+ ?)+)", _code_of(page), re.MULTILINE):
            said = tuple(told.split())
            assert said[:1] in words or said[:2] in words, f"{page.relative_to(ROOT)}: executions {told}"


def test_python_in_readme_and_docs_compiles():
    compiled = 0
    for page in PAGES:
        for language, code in FENCE.findall(page.read_text(encoding="utf-8")):
            if language == "python":
                ast.parse(code, page.name)
                compiled += 1
    assert compiled


def test_links_between_the_documents_lead_somewhere():
    for page in PAGES:
        prose = FENCE.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), f"{page.relative_to(ROOT)}: {target}"
            assert not anchor or anchor in _anchors(there), f"{page.relative_to(ROOT)}: {target}"


def test_every_page_is_reached_from_the_index():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert not [page.name for page in DOCS.glob("*.md") if page.name != "README.md" and f"({page.name})" not in index]


def test_architecture_draws_every_package():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    packages = {module.name for module in pkgutil.iter_modules(prefect_executions.__path__)} - {"__main__"}
    assert not {package for package in packages if not re.search(rf"\b{package}\b", page)}


def test_the_files_that_architecture_names_exist():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:src|tests|docs|deployments)/[\w./-]+)`", page)
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_ci_calls_the_two_commands_of_the_readme_as_they_stand_there():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    consoles = [code for language, code in FENCE.findall(README.read_text(encoding="utf-8")) if language == "console"]
    told = [line.removeprefix("$ ") for code in consoles for line in code.splitlines() if "venv" in line]
    by_pip = [line for line in told if not line.startswith("uv ")]
    assert len(by_pip) == len(told) - len(by_pip) == 2
    assert not [line for line in told if line not in script]


def _code_of(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    return "\n".join([*(code for _, code in FENCE.findall(text)), *re.findall(r"`[^`\n]+`", FENCE.sub("", text))])


def _anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}
