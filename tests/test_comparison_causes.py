"""Factors are tried one at a time, then in pairs, until one set gives the outputs of the second execution."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_executions.capture.code import recorded_file
from prefect_executions.comparison.causes import Effect, Factor, FactorKind, factors_of, find_cause
from prefect_executions.executions.record import PackageOrigin, Python
from prefect_executions.methods.model import InputDescription
from records import a_code_identity, a_method, a_record, a_request, a_staged_input, an_infrastructure, an_instance

FIRST, SECOND, OTHER, NONE, UNAVAILABLE = Effect


def named(*names: str) -> list[Factor]:
    return [Factor(FactorKind.INPUT, name, 1, 2) for name in names]


def found(names: str, limit: int = 100, **effects: Effect) -> tuple[str, Effect, int, list[str]]:
    """Return the cause among factors named by letters, where the sets in *effects* do not give the first outputs."""
    tried = []

    def attempt(factors: tuple[Factor, ...]) -> Effect:
        tried.append("".join(factor.name for factor in factors))
        return effects.get(tried[-1], FIRST)

    cause = find_cause(named(*names), attempt, limit=limit)
    return "".join(factor.name for factor in cause.factors), cause.effect, cause.untried, tried


def test_the_first_factor_that_gives_the_second_outputs_ends_the_search():
    assert found("abc", b=SECOND, c=SECOND) == ("b", SECOND, 0, ["a", "b"])


def test_pairs_are_tried_after_all_single_factors():
    assert found("abc", ac=SECOND) == ("ac", SECOND, 0, ["a", "b", "c", "ab", "ac"])


def test_pairs_of_factors_that_change_the_outputs_come_first():
    assert found("abcd", b=OTHER, d=OTHER, bd=SECOND) == ("bd", SECOND, 0, ["a", "b", "c", "d", "bd"])


def test_a_single_factor_that_gives_other_outputs_is_smaller_than_a_pair_that_does():
    cause, effect, untried, tried = found("abc", c=OTHER, ab=OTHER)
    assert (cause, effect, untried, len(tried)) == ("c", OTHER, 0, 6)


def test_a_pair_is_reported_if_only_it_changes_the_outputs():
    assert found("ab", ab=OTHER) == ("ab", OTHER, 0, ["a", "b", "ab"])


def test_nothing_is_reported_if_no_set_changes_the_outputs():
    assert found("ab") == ("", FIRST, 0, ["a", "b", "ab"])
    assert found("") == ("", FIRST, 0, [])


@pytest.mark.parametrize(("limit", "untried"), [(1, 5), (3, 3), (5, 1), (6, 0)])
def test_the_limit_counts_experiments_and_the_rest_is_reported(limit, untried):
    _, effect, left, tried = found("abc", limit)
    assert (effect, left, len(tried)) == (FIRST, untried, limit)


def test_a_factor_that_cannot_be_set_is_not_tried_in_pairs():
    assert found("abc", a=UNAVAILABLE, bc=SECOND) == ("bc", SECOND, 0, ["a", "b", "c", "bc"])


def test_a_method_that_does_not_start_with_a_factor_may_start_with_two():
    assert found("ab", a=NONE, ab=SECOND) == ("ab", SECOND, 0, ["a", "b", "ab"])


def factors(**after: Any) -> list[tuple[str, str]]:
    return [(factor.kind.value, factor.name) for factor in factors_of(a_record(), a_record(**after))]


def test_equal_records_have_no_factors():
    assert factors() == []


def test_factors_have_an_order_of_kinds():
    code = a_code_identity(b"other\n")
    instance = an_instance(
        packages={"numpy": "2.3.2", "prefect": "3.8.8"},
        environment={"TZ": "Asia/Tokyo"},
        python=Python(version="3.12.1", implementation="CPython"),
        kernel="6.2.0",
    )
    request = a_request(values={"picture": "s3://survey/picture.png", "threshold": 0.5, "labels": []})
    assert factors(method=a_method(code=code), instance=instance, request=request) == [
        ("input", "threshold"),
        ("code", "flows/coins.py"),
        ("variable", "TZ"),
        ("package", "numpy"),
        ("Python", "python"),
        ("infrastructure", "kernel"),
    ]


def test_a_file_is_compared_by_digest_and_belongs_to_its_input():
    assert factors(request=a_request(files=(a_staged_input(origin="/elsewhere/picture.png"),))) == []
    changed = a_staged_input().model_copy(update={"sha256": "0" * 64})
    assert factors(request=a_request(files=(changed,))) == [("input", "picture")]
    both = [
        a_record(
            method=a_method(inputs={"options": InputDescription(json_schema={"type": "object"})}),
            request=a_request(values={"options": {"scene": "x"}}, files=(file,)),
        )
        for file in (a_staged_input("options.scene"), changed.model_copy(update={"input": "options.scene"}))
    ]
    assert [factor.name for factor in factors_of(*both)] == ["options"]


def test_an_input_that_one_version_lacks_belongs_to_the_code():
    method = a_method(inputs={"picture": a_method().inputs["picture"]}, code=a_code_identity(b"other\n"))
    request = a_request(values={"picture": "s3://survey/picture.png"})
    assert factors(method=method, request=request) == [("code", "flows/coins.py")]


def test_a_data_file_of_the_code_is_code():
    code = a_code_identity().model_copy(update={"data_files": (recorded_file("code/flows/table.csv", b"x", ""),)})
    assert factors(method=a_method(code=code)) == [("code", "flows/table.csv")]


def test_another_commit_with_the_same_files_is_not_a_factor():
    code = a_code_identity()
    repository = code.repository.model_copy(update={"commit": "0" * 40})
    assert factors(method=a_method(code=code.model_copy(update={"repository": repository}))) == []


def test_code_is_named_by_its_commits_or_by_digests_if_the_commit_is_the_same():
    code = a_code_identity(b"other\n")
    [factor] = factors_of(a_record(), a_record(method=a_method(code=code)))
    assert (factor.before, factor.after) == (a_code_identity().sha256, code.sha256)
    committed = code.repository.model_copy(update={"commit": "0" * 40})
    method = a_method(code=code.model_copy(update={"repository": committed}))
    [factor] = factors_of(a_record(), a_record(method=method))
    assert (factor.before, factor.after) == (code.repository.commit, "0" * 40)


def test_an_editable_package_is_code_and_not_a_package():
    origins = {"numpy": PackageOrigin(url="file:///home/ada/numpy", editable=True)}
    instance = an_instance(packages={"numpy": "2.4.0", "prefect": "3.8.8"}, package_origins=origins)
    assert factors(instance=instance) == []


def test_another_host_is_infrastructure():
    assert factors(instance=an_instance(hostname="vm-8")) == [("infrastructure", "host")]
    assert factors(infrastructure=an_infrastructure(prefect_version="3.9.0")) == []
