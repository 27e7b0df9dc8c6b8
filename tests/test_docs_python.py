"""docs/python.md: each block runs, and each value is the one that its comment says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from benches import bench_at, kept
from prefect_executions import open_catalog
from prefect_executions.errors import NotFoundError
from prefect_executions.executions.record import Metric, Metrics
from prefect_executions.lifecycle.status import Reason, Status
from prefect_executions.query.parser import parse
from prefect_executions.workbench.workbench import Workbench
from records import NOON, a_job_status, a_method, a_request, a_staged_input

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
TRAININGS = (
    ("a0000000-0000-4000-8000-000000000001", 5, "lion", (0.5, 0.6, 0.7), b'{"weights": [0]}'),
    ("a0000000-0000-4000-8000-000000000002", 20, "adam", (0.5, 0.8, 0.95), b'{"weights": [1, 2]}'),
    ("a0000000-0000-4000-8000-000000000003", 40, "adam", (0.5, 0.9, 0.97), b'{"weights": [1, 2]}'),
    ("a0000000-0000-4000-8000-000000000004", 10, "lion", (0.5, 0.7, 0.75), b'{"weights": [3]}'),
)
FAILED = "a0000000-0000-4000-8000-000000000005"
EVALUATION = "e0000000-0000-4000-8000-000000000001"


def a_run(bench: Workbench, execution_id: str, number: int, **changes: Any) -> None:
    end = changes.pop("end", Status.COMPLETED)
    outputs = {"outputs/stdout.log": b"epoch 1\n"} | changes.pop("outputs", {})
    method, request = changes.pop("method", "train-digits"), changes.pop("request")
    status = a_job_status(
        end,
        execution_id=execution_id,
        method_id=method,
        begins=NOON + timedelta(minutes=number),
        reason=Reason.ERROR if end is Status.FAILED else None,
    )
    kept(
        bench,
        execution_id,
        job_status=status,
        method=a_method(id=method),
        request=a_request(execution_id=execution_id, method_id=method, relatives=(), **request),
        outputs=outputs,
        **changes,
    )


@pytest.fixture
def namespace(home) -> Iterator[dict[str, Any]]:
    bench = bench_at(home)
    for number, (execution_id, epochs, optimizer, accuracies, model) in enumerate(TRAININGS):
        points = (Metric(name="accuracy", value=value, step=step, time=NOON) for step, value in enumerate(accuracies))
        values = {"epochs": epochs, "optimizer": optimizer}
        a_run(
            bench,
            execution_id,
            number,
            outputs={"outputs/model.json": model},
            metrics=Metrics(params=values, metrics=tuple(points)),
            request={"values": values, "files": ()},
        )
    values = {"epochs": 15, "optimizer": "lion"}
    metrics = Metrics(params=values)
    a_run(bench, FAILED, 7, end=Status.FAILED, metrics=metrics, request={"values": values, "files": ()})
    model = a_staged_input("model", TRAININGS[2][4], path=None, name="model.json", origin="s3://models/model.json")
    used = {"values": {"model": "s3://models/model.json"}, "files": (model,)}
    a_run(bench, EVALUATION, 9, method="evaluate-digits", metrics=Metrics(), request=used)
    namespace: dict[str, Any] = {}
    yield namespace
    if "catalog" in namespace:
        namespace["catalog"].close()


def run(block: str, namespace: dict[str, Any]) -> int:
    """Run *block*, compare each expression with the comment on its last line, and return how many it compared."""
    lines, compared = block.splitlines(), 0
    for node in ast.walk(tree := ast.parse(block)):
        for index, statement in enumerate(body := getattr(node, "body", [])):
            comment = (
                re.search(r"  # (.+)$", lines[statement.end_lineno - 1]) if isinstance(statement, ast.Expr) else None
            )
            if comment:
                told = ast.parse(f"told({ast.unparse(statement)}, {comment[1]!r})").body[0]
                body[index] = ast.copy_location(told, statement)
                compared += 1

    def told(value: object, text: str) -> None:
        assert repr(value) == text

    code = compile(ast.fix_missing_locations(tree), "docs/python.md", "exec")
    exec(code, namespace | {"told": told}, namespace)  # noqa: S102  our own page
    return compared


def test_the_page_is_true_from_its_first_block_to_its_last(namespace):
    compared = [run(block, namespace) for block in BLOCKS]
    assert len(BLOCKS) > 8
    assert sum(compared) > 30
    assert all(compared)


@pytest.mark.parametrize("query", re.findall(r'catalog\.search\("([^"]+)"', PAGE))
def test_each_query_of_the_page_is_read(query):
    if "faild" not in query:
        parse(query.replace("…", "1f3c"))


def test_a_home_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(NotFoundError, match="home folder"):
        open_catalog(tmp_path / "nothing")


def test_an_archived_file_is_read_after_the_workbench_has_lost_it(namespace, home, tmp_path):
    bench, (execution_id, *_, content) = bench_at(home), TRAININGS[0]
    with closing(open_catalog(home)) as catalog:
        local = catalog.get(execution_id).outputs["model.json"].path()
        assert local == bench.folder / execution_id / "outputs" / "model.json"
        local.unlink()
        model = catalog.get(execution_id).outputs["model.json"]
        assert model.read_bytes() == content
        fetched = model.path()
        assert (fetched.read_bytes(), fetched.is_relative_to(catalog.scratch)) == (content, True)
        assert model.path(tmp_path / "copies").read_bytes() == content
        referenced = catalog.get(EVALUATION).inputs["model"]
        with pytest.raises(NotFoundError, match="s3://models/model"):
            referenced.read_text()
    assert not fetched.exists()
