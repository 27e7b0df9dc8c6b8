"""The model of a Method: its OGC description, its files, its secrets."""

import json
import pickle
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel, Field, SecretStr, TypeAdapter

from prefect_executions.descriptors.schema import inputs_of
from prefect_executions.errors import InputError, MethodError
from prefect_executions.methods.model import Comparison, InputFile, Method, check_type, comparison_of
from prefect_executions.methods.secrets import is_secret_reference, secret_inputs


class Kind(Enum):
    FAST = "fast"
    GOOD = "good"


class Options(BaseModel):
    level: int = Field(3, ge=1, lt=10, description="how strong")
    default: Literal["x"] = "x"
    scene: InputFile | None = None
    inner: "Options | None" = None


def a_function(  # noqa: PLR0917 - one parameter of each kind
    text: InputFile,
    options: Options,
    token: SecretStr,
    many: list[InputFile] = [],  # noqa: B006 - the shape that users write
    kind: Kind = Kind.FAST,
    ratio: Annotated[float, Field(gt=0)] = 0.5,
) -> None:
    """Do it.

    Args:
        text: the text to read
    """


def schema_of(function):
    return parameter_schema(function).model_dump()


def test_inputs_are_in_the_order_of_the_function():
    assert list(inputs_of(schema_of(a_function))) == ["text", "options", "token", "many", "kind", "ratio"]


def test_an_input_with_a_default_is_optional():
    inputs = inputs_of(schema_of(a_function))

    assert (inputs["text"].min_occurs, inputs["kind"].min_occurs) == (1, 0)
    assert inputs["kind"].json_schema["default"] == "fast"


def test_the_docstring_describes_the_input():
    assert inputs_of(schema_of(a_function))["text"].description == "the text to read"


def test_files_are_recognized_alone_optional_and_in_lists():
    inputs = inputs_of(schema_of(a_function))

    assert [name for name, described in inputs.items() if described.is_file] == ["text", "many"]


def test_enums_are_choices():
    assert inputs_of(schema_of(a_function))["kind"].json_schema["enum"] == ["fast", "good"]


def test_nested_models_are_written_out_and_recursion_ends():
    options = inputs_of(schema_of(a_function))["options"].json_schema

    assert "$ref" not in str(options)
    assert set(options["properties"]) == {"level", "default", "scene", "inner"}
    assert options["properties"]["level"] == {
        "type": "integer",
        "default": 3,
        "description": "how strong",
        "title": "Level",
        "minimum": 1,
        "maximum": 10,
        "exclusiveMaximum": True,
    }
    assert options["properties"]["inner"]["nullable"] is True


def test_a_password_is_a_secret_without_being_declared():
    assert secret_inputs(schema_of(a_function), frozenset(), "m") == {"token"}


def test_a_secret_that_is_not_a_parameter_is_named():
    with pytest.raises(MethodError, match="secrets has names that are not parameters of the function: tokn"):
        secret_inputs(schema_of(a_function), frozenset({"tokn"}), "m")


def test_a_secret_inside_a_model_is_refused():
    class Login(BaseModel):
        password: SecretStr

    def function(login: Login) -> None: ...

    with pytest.raises(MethodError, match="inside a nested model"):
        secret_inputs(schema_of(function), frozenset(), "m")


@pytest.mark.parametrize("name", ["my-token", "env:MY_TOKEN", "a1"])
def test_references_to_secrets_are_recognized(name):
    assert is_secret_reference(name)


@pytest.mark.parametrize("value", ["Hunter2!", "env:", "env:1X", "with space", "", "a\n", 3, None])
def test_other_values_are_not_references_to_secrets(value):
    assert not is_secret_reference(value)


def test_an_unknown_type_lists_the_known_ones():
    with pytest.raises(MethodError, match=r"'Cooking' is not a known type.*Training.*EXECUTIONS_METHOD_TYPES"):
        check_type("Cooking", ())


def test_the_operator_adds_types():
    assert check_type("Cooking", ("Cooking",)) == "Cooking"


def test_an_unknown_member_of_a_descriptor_is_preserved():
    data = Method(id="m", version="1", title="M").to_json().replace(b'"title": "M"', b'"title": "M", "ccpx": {"a": 1}')

    assert b'"ccpx"' in Method.from_json(data).to_json()


def test_a_comparison_is_declared_for_an_output_by_its_name_or_by_a_pattern():
    exact, loose, first = Comparison(by="bytes"), Comparison(tolerance=0.1), Comparison(volatile=("*",))
    declared = {"plots/*": first, "*.csv": loose, "plots/area.csv": exact}
    found = [comparison_of(f"outputs/{name}", declared) for name in ("plots/area.csv", "plots/b.csv", "c.csv", "d.txt")]
    assert found == [exact, first, loose, None]
    assert comparison_of("outputs/c.csv", None) is None


def test_comparisons_are_in_the_descriptor_only_if_declared():
    described = Method(id="a", version="1", comparisons={"a.csv": Comparison(tolerance=1e-6, volatile=("seconds",))})
    comparison = {"tolerance": 1e-6, "absoluteTolerance": 0.0, "volatile": ["seconds"]}
    assert json.loads(described.to_json())["comparisons"] == {"a.csv": comparison}
    assert Method.from_json(described.to_json()) == described
    assert "comparisons" not in json.loads(Method(id="a", version="1").to_json())


def test_an_input_file_is_the_path_for_every_library(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    file = InputFile(tmp_path / "a.txt", origin="s3://bucket/a.txt")

    with open(file) as stream:  # noqa: PTH123 - what a library does
        assert stream.read() == "hello"
    assert (file.read_text(), file.read_bytes(), Path(file).name) == ("hello", b"hello", "a.txt")
    assert file.origin == "s3://bucket/a.txt"


def test_an_input_file_keeps_its_origin_when_it_travels():
    file = InputFile("/x/a.txt", origin="s3://bucket/a.txt")

    assert pickle.loads(pickle.dumps(file)).origin == "s3://bucket/a.txt"  # noqa: S301 - our own bytes
    assert TypeAdapter(InputFile).validate_python(file).origin == "s3://bucket/a.txt"
    assert TypeAdapter(InputFile).dump_json(file) == b'"/x/a.txt"'


def test_a_url_that_is_not_staged_has_no_path():
    with pytest.raises(InputError, match=r"https://example\.org/a is not staged"):
        _ = InputFile("https://example.org/a?sig=secret").path


def test_a_number_is_not_a_file():
    with pytest.raises(ValueError, match="a path or a URL"):
        TypeAdapter(InputFile).validate_python(3)
