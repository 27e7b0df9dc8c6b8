"""Outputs are compared by bytes, then by their kind; drift is told in words and the verdict follows from all of it."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from math import inf, nan

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prefect_executions.comparison import json_values, tables
from prefect_executions.comparison.numbers import relative_difference
from prefect_executions.comparison.outputs import compare_output
from prefect_executions.comparison.results import Runs, RunSpan
from prefect_executions.comparison.verdict import GRADES, Agreement, Grade, OutputVerdict, Verdict, judge
from prefect_executions.executions.record import ScriptRun
from prefect_executions.lifecycle.status import Status
from prefect_executions.mediatypes import media_type
from prefect_executions.methods.model import Comparison
from records import a_method, a_record, a_request, an_instance

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | st.text(max_size=5),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=3), part, max_size=3),
    max_leaves=8,
)


RUNS = Runs(
    RunSpan(datetime(2026, 9, 22, 11, tzinfo=UTC), datetime(2026, 9, 22, 13, tzinfo=UTC)),
    RunSpan(datetime(2026, 9, 23, 11, tzinfo=UTC)),
)


def told(name, before, after, tolerance=0.0, /, **declared):
    before, after = (data.encode() if isinstance(data, str) else data for data in (before, after))
    path, comparison = f"outputs/{name}", Comparison(**declared) if declared else None
    return compare_output(path, media_type(path), before, after, tolerance=tolerance, declared=comparison, runs=RUNS)


def table(areas):
    return "label,area\r\n" + "".join(f"{number},{area!r}\r\n" for number, area in enumerate(areas))


def test_drift_of_a_table_is_told_in_words():
    areas = [float(number + 1) for number in range(92)]
    drifted = [area * (1 + 2e-7) if number in {3, 50, 91} else area for number, area in enumerate(areas)]
    found = told("table.csv", table(areas), table(drifted))
    assert found.agreement is Agreement.DIFFERS
    assert found.words == ("column area differs in 3 of 92 rows, largest relative difference 2e-07",)
    within = told("table.csv", table(areas), table(drifted), 1e-6)
    assert (within.agreement, within.by) == (Agreement.EQUAL, "table")


@given(st.lists(NUMBERS, min_size=1, max_size=8), st.floats(0, 1e-3))
def test_a_table_agrees_with_itself_written_in_another_way(numbers, tolerance):
    other = "label;area\n".replace(";", ",") + "".join(
        f"{number},{value:.17e}\n" for number, value in enumerate(numbers)
    )
    assert told("t.csv", table(numbers), other, tolerance).agreement.agrees


@given(NUMBERS, NUMBERS)
def test_a_relative_difference_is_the_same_from_both_sides(one, other):
    found = relative_difference(one, other)
    assert found == relative_difference(other, one)
    assert 0 <= found <= 2
    assert (found == 0) is (one == other) or abs(one - other) < 1e-300 or found < 1e-15


def test_what_is_no_number_is_not_near_to_one():
    assert relative_difference(nan, nan) == 0
    assert relative_difference(nan, 1) == relative_difference(inf, -inf) == relative_difference(inf, 1e308) == inf


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("a,b\n1,2\n", "a,b\n1,2\n3,4\n", "it had 1 rows and has 2"),
        ("1,2\n", "1,2,3\n", "it had 2 columns and has 3"),
        ("a,b\n1,x\n", "a,b\n1,y\n", "column b differs in 1 of 1 rows"),
        ("a,b\n1,2\n", "a,c\n1,2\n", "column 2 differs in 1 of 2 rows"),
    ],
)
def test_a_table_of_another_shape_or_with_other_words_differs(before, after, words):
    found = told("t.csv", before, after, 0.5)
    assert (found.agreement, found.words) == (Agreement.DIFFERS, (words,))


@given(JSON)
def test_json_agrees_with_itself_in_another_form(value):
    found = told("a.json", json.dumps(value), json.dumps(value, indent=3, sort_keys=True) + "\n")
    assert (found.agreement, found.by) == (Agreement.EQUAL, "JSON")


@given(JSON, JSON)
def test_json_that_is_another_value_differs_and_says_where(one, other):
    found = told("a.json", json.dumps(one), json.dumps(other) + " ")
    if json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True):
        assert found.agreement is Agreement.EQUAL
    assert found.words


def test_json_tells_its_drift_by_places():
    before, after = {"a": [1, {"b": 1.0}], "gone": 0, "yes": True}, {"a": [1, {"b": 1.1}], "new": 0, "yes": 1}
    found = told("a.json", json.dumps(before), json.dumps(after), 0.01)
    assert found.words == ("/a/1/b was 1.0 and is 1.1", "/gone is gone", "/yes was true and is 1", "/new is new")


def test_much_drift_is_counted():
    found = told("a.json", json.dumps(list(range(9))), json.dumps(list(range(1, 10))))
    assert len(found.words) == 6
    assert found.words[-1] == "and 4 members more"


def test_times_in_an_output_are_named_and_not_ignored():
    before, after = "made 2026-09-22T12:00:00Z\nx\n", "made 2026-09-23T13:10:01.5+02:00\nx\n"
    found = told("a.txt", before, after)
    assert (found.agreement, found.words) == (Agreement.VOLATILE, ("only times differ, in 1 of 2 lines",))
    found = told("a.json", '{"at": "2026-09-22T12:00:00Z"}', '{"at": "2026-09-23T12:00:00Z"}')
    assert found.agreement is Agreement.VOLATILE
    assert "/at was" in found.words[0]
    assert told("a.txt", before, after.replace("x", "y")).agreement is Agreement.DIFFERS


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.csv"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("2024-05-01T00:00:00Z", "2024-05-02T00:00:00Z"),  # both long before
        ("2026-09-22T12:00:00Z", "2026-09-21T12:00:00Z"),  # before the second run
        ("2026-09-28T12:00:00Z", "2026-09-23T12:00:00Z"),  # after the first run
        ("2026-09-22T12:00:00Z", "2026-09-33T12:00:00Z"),  # not a time
        ("2026-09-22T12:00:00Z", "<time>"),
        ("2026-09-22T12:00:00Z", "2026-09-23T12:00:00Z2026-09-23T12:00:00Z"),
        ("2026-09-22T12:00:00Z", ""),
    ],
)
def test_a_time_that_is_not_one_of_the_run_is_a_value(name, before, after):
    form = '{{"at": "{}"}}' if name.endswith("json") else "at\n{}\n"
    assert told(name, form.format(before), form.format(after)).agreement is Agreement.DIFFERS


def test_a_log_is_told_and_not_judged():
    found = told("stdout.log", "took 1 s\n", "took 2 s\n")
    assert found.agreement is Agreement.VOLATILE
    assert found.words == (
        "a log, which contains times and is not judged",
        "1 of 1 lines differ, the first is line 1: it was 'took 1 s' and is 'took 2 s'",
    )
    assert told("stdout.log", b"\xff", b"\xfe").agreement is Agreement.VOLATILE


@pytest.mark.parametrize(("asked", "declared"), [(0.0, 1e-6), (1e-6, 0.0), (1e-9, 1e-6), (1e-6, 1e-9)])
def test_the_larger_of_the_declared_and_the_asked_tolerance_counts(asked, declared):
    found = told("t.csv", table([1.0]), table([1 + 2e-7]), asked, tolerance=declared)
    assert (found.agreement, found.words) == (Agreement.EQUAL, ("written in another way, or within 1e-06",))
    assert told("t.csv", table([1.0]), table([1 + 2e-6]), asked, tolerance=declared).agreement is Agreement.DIFFERS


@pytest.mark.parametrize(("name", "form"), [("t.csv", "x\n{}\n"), ("t.json", '{{"x": {}}}')])
def test_numbers_near_to_0_are_the_same_within_an_absolute_difference(name, form):
    before, after = form.format("1e-17"), form.format("-3e-17")
    assert told(name, before, after, tolerance=0.1).agreement is Agreement.DIFFERS
    assert told(name, before, after, absolute_tolerance=1e-12).agreement is Agreement.EQUAL
    assert told(name, before, after, absolute_tolerance=1e-17).agreement is Agreement.DIFFERS


def test_an_output_is_compared_as_what_the_method_declares():
    before, after = "a,b\n1,2\n", "a,b\n1.0,2\n"
    assert told("t.dat", before, after).agreement is Agreement.DIFFERS
    assert told("t.dat", before, after, by="table").agreement is Agreement.EQUAL
    strict = told("t.csv", before, after, by="bytes")
    assert (strict.agreement, strict.by, strict.declared) == (Agreement.DIFFERS, "bytes", Comparison(by="bytes"))


def test_what_differs_in_every_run_is_told_and_not_judged_and_the_rest_is():
    before, after = "area,seconds\n1,0.5\n", "area,seconds\n1,0.7\n"
    found = told("t.csv", before, after, volatile=("sec*",))
    words = "column seconds differs in 1 of 1 rows, largest relative difference 0.29 (volatile)"
    assert (found.agreement, found.words) == (Agreement.VOLATILE, (words,))
    found = told("t.csv", before, after.replace("1,", "2,"), volatile=("sec*",))
    assert found.agreement is Agreement.DIFFERS
    assert [one.split()[1] for one in found.words] == ["area", "seconds"]
    before, after = '{"a": 1, "run": {"host": "x", "n": [1]}}', '{"a": 1, "run": {"host": "y", "n": [1, 2], "z": 0}}'
    found = told("a.json", before, after, volatile=("run",))
    assert (found.agreement, len(found.words)) == (Agreement.VOLATILE, 3)
    assert told("a.json", before, after.replace("1,", "3,", 1), volatile=("run",)).agreement is Agreement.DIFFERS


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.bin", "a.txt"])
def test_a_whole_output_may_be_declared_to_differ_in_every_run(name):
    found = told(name, b"\xff1", b"\xff2", volatile=("*",))
    assert found.agreement is Agreement.VOLATILE
    assert "the Method declares" in found.words[0]


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.png", "a.txt", "a.bin", "stdout.log", "a.tsv"])
@given(before=st.binary(max_size=40), after=st.binary(max_size=40))
def test_no_content_breaks_the_comparison(name, before, after):
    found = told(name, before, after)
    assert (found.agreement is Agreement.SAME) is (before == after)
    assert before == after or found.words


@given(
    st.sampled_from(["bytes", "JSON", "table", "pixels", "lines"]),
    *[st.binary(max_size=30) | JSON.map(json.dumps).map(str.encode)] * 2,
    st.lists(st.sampled_from(["*", "a*", "[", "1"]), max_size=2),
)
def test_no_content_breaks_a_declared_comparison(by, before, after, volatile):
    found = told("a.bin", before, after, by=by, volatile=tuple(volatile), absolute_tolerance=0.5)
    assert (found.agreement is Agreement.SAME) is (before == after)
    assert found.agreement is not Agreement.DIFFERS or "*" not in volatile
    assert before == after or found.words


def test_what_is_not_what_its_name_says_is_compared_as_text_or_bytes():
    assert told("a.json", "{\n1\n", "{\n2\n").by == "lines"
    reason = "compared by bytes, because it is not valid JSON: Expecting value: line 1 column 1 (char 0)"
    assert told("a.json", b"\xff\x00", b"\xff\x01").words == ("1 of 2 bytes differ", reason)
    assert "compared by lines, because it is not valid JSON" in told("a.json", "{\n1\n", "{\n2\n").words[1]


# --- exactness -------------------------------------------------------------------

INTEGERS = st.integers(-(10**30), 10**30)
EXACT = st.integers(min_value=-(2**53), max_value=2**53) | INTEGERS | st.floats(allow_nan=True, allow_infinity=True)


def leaves(value, path=()):
    """All places of a JSON document that hold a value."""
    if isinstance(value, dict | list) and value:
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*path, key))
    else:
        yield path


def replaced(value, path, new):
    if not path:
        return new
    parts = dict(value) if isinstance(value, dict) else list(value)
    parts[path[0]] = replaced(value[path[0]], path[1:], new)
    return parts


VALUES = st.recursive(
    st.none() | st.booleans() | EXACT | st.text(max_size=5),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=3), part, max_size=3),
    max_leaves=8,
)


@given(VALUES, st.data())
def test_any_other_value_anywhere_in_json_differs(value, data):
    path = data.draw(st.sampled_from(list(leaves(value))))
    old = value
    for step in path:
        old = old[step]
    texts = [json.dumps(old)]
    other = data.draw(
        VALUES.filter(
            lambda new: json.dumps(new) not in texts and not (is_number(old) and is_number(new) and old == new)
        )
    )
    found = told("a.json", json.dumps(value), json.dumps(replaced(value, path, other)))
    assert (found.agreement, found.by) == (Agreement.DIFFERS, "JSON")


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1234567890123456788", "1234567890123456789"),
        ("1700000000000000001.0", "1700000000000000002.0"),
        ("0.1", "0.10000000000000000001"),
        ("0.30000000000000004", "0.30000000000000005"),
        ("1e400", "1e401"),
        ("1e400", "Infinity"),
        ("-1e400", "-Infinity"),
        ("5e-324", "3e-324"),
        ("1e-400", "0.0"),
        ("0.0", "-0.0"),
        ("NaN", "0.0"),
        ("NaN", "null"),
        ("NaN", '"NaN"'),
        ("Infinity", "-Infinity"),
        ("1", "true"),
        ("1e99999999999999999999", "1e99999999999999999998"),
        ("9" * 5000, "9" * 4999 + "8"),
        ('{"a": 1, "a": 2}', '{"a": 3, "a": 2}'),
        ('"\\u00e9"', '"e\\u0301"'),
        ('"\\ud800"', '"\\ud801"'),
    ],
)
def test_json_numbers_are_not_rounded_before_they_are_compared(before, after):
    for form in ("{}", '{{"a": [{}, 1]}}'):
        found = told("a.json", form.format(before), form.format(after) + "\n")
        assert found.agreement is Agreement.DIFFERS, found
        assert found.words


def test_large_numbers_may_be_within_a_tolerance():
    assert told("a.json", "1234567890123456788", "1234567890123456789", 1e-18).agreement is Agreement.EQUAL
    assert told("a.json", "1234567890123456788", "1234567890123456789", 1e-19).agreement is Agreement.DIFFERS
    assert told("a.json", "1e400", "1.0000001e400", 1e-6).agreement is Agreement.EQUAL
    assert told("a.json", "1e400", "Infinity", 0.9).agreement is Agreement.DIFFERS


def test_json_with_nan_is_compared_by_values():
    before, after = (
        '{"auc": NaN, "loss": 0.5, "most": -Infinity}',
        '{"auc": NaN, "loss": 0.50000001, "most": -Infinity}',
    )
    found = told("a.json", before, after, 1e-6)
    assert (found.agreement, found.by) == (Agreement.EQUAL, "JSON")
    found = told("a.json", before, after)
    assert (found.agreement, found.words) == (Agreement.DIFFERS, ("/loss was 0.5 and is 0.50000001",))


@pytest.mark.parametrize(("before", "after"), [("1e1", "10.0"), ("0.5", "5.0e-1"), ("0.1", "0.10"), ("2", "2.0")])
def test_json_numbers_may_be_written_in_another_way(before, after):
    assert told("a.json", before, after).agreement is Agreement.EQUAL


# --- text ------------------------------------------------------------------------


@given(st.text(max_size=20), st.text(max_size=20), st.text(min_size=1, max_size=1), st.text(min_size=1, max_size=1))
def test_any_other_character_anywhere_in_text_differs(begin, end, old, new):
    assume(old != new)
    found = told("a.txt", begin + old + end, begin + new + end)
    assert found.agreement is Agreement.DIFFERS


@given(st.binary(max_size=20), st.binary(max_size=20), st.binary(max_size=2), st.binary(max_size=2))
def test_any_other_byte_anywhere_in_an_unknown_format_differs(begin, end, old, new):
    assume(old != new)
    assert told("a.bin", begin + old + end, begin + new + end).agreement is Agreement.DIFFERS
    assert told("a.npy", begin + old + end, begin + new + end).agreement is Agreement.DIFFERS


@pytest.mark.parametrize("separator", ["\f", "\v", "\x1c", "\x85", "\u2028", "\u2029", "\r", "\n\n", ""])
def test_only_lf_and_crlf_end_a_line(separator):
    assert told("a.txt", "a\nb\n", f"a{separator}b\n").agreement is Agreement.DIFFERS


def test_windows_line_ends_and_marks_of_the_byte_order_are_understood():
    text = "größe,n\n1,2\n"
    windows = text.replace("\n", "\r\n")
    for other in (windows.encode(), windows.encode("utf-8-sig"), windows.encode("utf-16"), text.encode("utf-8-sig")):
        assert told("a.txt", text, other).agreement is Agreement.EQUAL
        assert told("a.csv", text, other).agreement is Agreement.EQUAL
        assert told("a.txt", text.replace("2", "3"), other).agreement is Agreement.DIFFERS
        assert told("a.csv", text.replace("2", "3"), other).agreement is Agreement.DIFFERS
    assert told("a.json", b'\xef\xbb\xbf{"a": 1}\r\n', '{"a": 1.0}').agreement is Agreement.EQUAL
    assert told("a.csv", text, windows.encode("utf-8-sig"), volatile=("größe",)).agreement is Agreement.EQUAL


def test_line_ends_count_in_what_may_not_be_text():
    found = told("a.dat", "a\nb\n", "a\r\nb\n")
    assert (found.agreement, found.by) == (Agreement.DIFFERS, "bytes")
    assert "only line ends differ" in found.words[1]
    assert told("a.dat", "a\nb\n", "a\r\nb\n", by="lines").agreement is Agreement.EQUAL


def test_text_without_its_last_line_end_differs():
    assert told("a.txt", "a\nb\n", "a\nb").words == ("only one of them ends with a line end",)


# --- the verdict -----------------------------------------------------------------


def an_output(agreement=Agreement.SAME):
    return OutputVerdict(path="outputs/a", agreement=agreement, by="bytes")


def graded(after, agreement=Agreement.SAME, status=Status.COMPLETED):
    return judge(a_record(), after, [an_output(agreement)], status=status)


def test_each_grade_holds_those_before_it():
    other_input = a_record(request=a_request(values={"threshold": 0.9}, files=()))
    other_code = a_method(code=a_method().code.model_copy(update={"files": ()}))
    other_packages = an_instance(packages={"numpy": "2.4.0", "prefect": "3.8.8"})
    assert graded(a_record(), status=Status.FAILED).grade is None
    assert graded(a_record(method=a_method(id="other"))).grade is None
    assert graded(other_input).grade is Grade.RERUN
    assert graded(a_record(method=other_code)).grade is Grade.REPEAT
    repeated = graded(a_record(instance=other_packages))
    assert repeated.grade is Grade.REPEAT
    assert repeated.environment == ("numpy was 2.3.1 and is 2.4.0",)
    assert graded(a_record(), Agreement.DIFFERS).grade is Grade.RECOMPUTE
    assert graded(a_record(), Agreement.VOLATILE).grade is Grade.REPRODUCE


def ran_in(*images):
    runs = [ScriptRun(id="a", task="a", runtime="docker", image=one, image_digest=digest) for one, digest in images]
    return a_record(instance=an_instance(runs=tuple(runs)))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (("sha256:a", None), ("sha256:a", "r@sha256:d"), ()),
        (("sha256:a", "r@sha256:d"), ("sha256:other-store", "r@sha256:d"), ()),
        (("sha256:a", None), ("sha256:b", None), ("the image of the scripts was sha256:a and is sha256:b",)),
        (("sha256:a", None), (None, None), ("the image of the scripts was sha256:a and is no container",)),
        ((None, None), (None, None), ()),
    ],
)
def test_scripts_in_another_image_ran_in_another_environment(before, after, words):
    verdict = judge(ran_in(before), ran_in(after), [], status=Status.COMPLETED)
    assert verdict.environment == words
    assert verdict.grade is (Grade.REPEAT if words else Grade.REPRODUCE)


@pytest.mark.parametrize("agreement", list(Agreement))
def test_only_what_agrees_reproduces(agreement):
    reproduced = agreement in {Agreement.SAME, Agreement.EQUAL, Agreement.VOLATILE}
    assert (graded(a_record(), agreement).grade is Grade.REPRODUCE) is reproduced


def test_a_verdict_reaches_its_grade_and_those_below_it():
    for number, grade in enumerate(GRADES):
        verdict = Verdict(replay_of="a", grade=grade)
        assert [verdict.reaches(one) for one in GRADES] == [other <= number for other in range(len(GRADES))]
    assert not Verdict(replay_of="a").reaches(Grade.RERUN)
    assert Verdict.from_json(Verdict(replay_of="a").to_json()) == Verdict(replay_of="a")


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("a.json", r'{"\ud800": 1}', r'{"\ud800": 2}'),
        ("a.json", r'["\udcff"]', r'["\udcfe"]'),
        ("a.json", "1", r'{"\ud800": 2}'),
    ],
)
def test_a_difference_with_a_lone_surrogate_can_be_recorded(name, before, after):
    verdict = told(name, before, after)
    assert verdict.agreement is Agreement.DIFFERS
    recorded = Verdict(replay_of="x", outputs=(verdict,))
    assert Verdict.from_json(recorded.to_json()) == recorded


@pytest.mark.parametrize(("before", "after"), [("0", "-0"), ("[1, 0]", "[1, -0]"), ("-0", "0.0"), ("0", "-0e5")])
def test_an_integer_zero_of_json_has_its_sign(before, after):
    assert told("a.json", before, after).agreement is Agreement.DIFFERS
    assert told("a.json", after, before).agreement is Agreement.DIFFERS
    assert told("a.json", after, f" {after} ").agreement is Agreement.EQUAL


@pytest.mark.parametrize(
    ("name", "part"),
    [("a.json", "[],"), ("a.json", '{"a":1},'), ("a.csv", "1\n"), ("a.csv", "1,2\n"), ("a.csv", "\r"), ("a.tsv", "\t")],
)
def test_more_values_than_fit_into_memory_are_compared_by_lines(monkeypatch, name, part):
    for module in (json_values, tables):  # lowered: 2,000,000 values in each form would take minutes
        monkeypatch.setattr(module, "MAX_VALUES", 1000)
    long = "[" + part * 1001 + "1]" if name == "a.json" else part * 1001
    verdict = told(name, long + "1", long + "2")
    assert (verdict.agreement, verdict.by) == (Agreement.DIFFERS, "lines")
    assert "it may have more than 1000 values" in verdict.words[-1]
    short = "[" + part * 100 + "1]" if name == "a.json" else part * 100
    assert told(name, short, f"\ufeff{short}").by == ("JSON" if name == "a.json" else "table")


@pytest.mark.long
def test_a_table_with_a_long_row_and_many_short_ones_is_compared_in_linear_time():
    rows = "a," * 100_000 + "\n" + "1\n" * 100_000
    begin = time.process_time()
    verdict = told("a.csv", rows + "1\n", rows + "2\n")
    assert verdict.words == ("column a differs in 1 of 100001 rows, largest relative difference 0.5",)
    assert time.process_time() - begin < 60  # 10^10 steps would take an hour


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("a\nb", "a\n", "1 of 2 lines differ, the first is line 2: it was 'b' and is ''"),
        ("a\nb\n", "a\n", "it had 2 lines and has 1"),
        ("a\n", "a", "only one of them ends with a line end"),
        ("", "\n", "it had 0 lines and has 1"),
        ("a\r\r\nb", "a\nb", "1 of 2 lines differ, the first is line 1: it was 'a\\r' and is 'a'"),
        ("ä\nb\nc", "ö\nb\nd", "2 of 3 lines differ, the first is line 1: it was 'ä' and is 'ö'"),
        ("a\n\n", "a\nb\n", "1 of 2 lines differ, the first is line 2: it was '' and is 'b'"),
        (
            "\ufeff\x1b[1m😀\n",
            "\x1b[1m\n",
            "1 of 1 lines differ, the first is line 1: it was '\\x1b[1m😀' and is '\\x1b[1m'",
        ),
    ],
)
def test_lines_that_differ_are_counted_and_the_first_is_shown(before, after, words):
    assert told("a.txt", before, after).words == (words,)
    assert told("a.txt", before.encode("utf-16"), after.encode("utf-16")).agreement is Agreement.DIFFERS
