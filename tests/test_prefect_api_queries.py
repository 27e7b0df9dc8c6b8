"""Recognition of a Method's deployment by the mark that every way to deploy sends."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel, Field

from prefect_executions import InputFile, method
from prefect_executions.methods.secrets import MARK
from prefect_executions.prefect_api.queries import is_method


class Shade(Enum):
    LIGHT = "light"
    DARK = "dark"


class Size(BaseModel):
    width: int = 1


def enum(shade: Shade = Shade.LIGHT, most: int = 2): ...


def model(size: Size, most: int = 2): ...


def file(picture: InputFile): ...


def bare(anything): ...


def described(most: Annotated[int, Field(ge=3, json_schema_extra={"unit": "px"})] = 4): ...


def optional(*, shades: list[Shade] | None = None): ...


def nothing(): ...


@pytest.mark.parametrize("function", [enum, model, file, bare, described, optional, nothing])
def test_a_deployment_of_a_method_carries_its_mark(function):
    flow = method(version="3")(function)
    sent = parameter_schema(flow).model_dump_for_openapi()  # as `prefect deploy`, `.deploy()` and `.serve()` do
    assert is_method(sent, flow.description)
    assert flow.with_options(name="other").description == flow.description
    assert MARK not in str(flow.method.model_dump())
    assert MARK not in (flow.method.description or "")


def test_the_mark_changes_nothing_else_in_the_form():
    def plain(shade: Shade = Shade.LIGHT, size: Size | None = None): ...

    schema = parameter_schema(method(version="3")(plain)).model_dump()
    assert schema["properties"]["shade"].pop(MARK) == "3"
    assert schema == parameter_schema(plain).model_dump()


@pytest.mark.parametrize("schema", [None, {}, {"properties": {"x": {"type": "string"}}}])
def test_another_flow_is_not_a_method(schema):
    assert not is_method(schema, "It counts words.")
