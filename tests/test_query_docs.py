"""docs/search.md: each query in it is read, and means what the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from prefect_executions.query.canonical import canonical
from prefect_executions.query.cql2 import parse_cql2
from prefect_executions.query.match import Facts, MetricFacts, matches
from prefect_executions.query.parser import parse

PAGE = (Path(__file__).parents[1] / "docs" / "search.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```query\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def section(title: str) -> str:
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """Return the cells of the tables of a section, without their heads."""
    lines = [line for line in section(title).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if "`" in row[0] + row[-1]]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("query", [line for block in BLOCKS for line in block.splitlines()])
def test_a_query_of_the_page_is_read(query):
    assert parse(canonical(parse(query))) == parse(query)


@pytest.mark.parametrize("query", [query for row in rows("Terms") for query in code(row[1])])
def test_a_term_of_the_page_is_read(query):
    assert parse(canonical(parse(query))) == parse(query)


@pytest.mark.parametrize("row", rows("Missing values"), ids=lambda row: row[0])
def test_a_missing_value_is_as_the_page_says(row):
    example = json.loads(re.findall(r"```json\n(.*?)```", section("Missing values"), re.DOTALL)[0])
    numbers = {name: float(value) for name, value in example["metrics"].items()}
    metrics = {name: MetricFacts(last=one, first=one, min=one, max=one) for name, one in numbers.items()}
    fields = {name: tuple(values) for name, values in example["fields"].items()}
    facts = Facts(fields=fields, params=example["params"], metrics=metrics)
    assert matches(parse(code(row[0])[0]), facts) is {"yes": True, "no": False}[row[1]]


@pytest.mark.parametrize("row", rows("Canonical text"), ids=lambda row: row[0])
def test_a_canonical_text_is_as_the_page_says(row):
    assert canonical(parse(code(row[0])[0])) == code(row[1])[0]


@pytest.mark.parametrize("row", rows("CQL2"), ids=lambda row: row[0])
def test_a_filter_in_cql2_is_as_the_page_says(row):
    assert canonical(parse_cql2(code(row[0])[0])) == canonical(parse(code(row[1])[0]))


def test_the_page_has_examples_of_everything():
    assert len(BLOCKS) > 5
    assert all(
        len(rows(title)) > 3 for title in ("Terms", "Missing values", "Canonical text", "CQL2", "Fields", "Flags")
    )
