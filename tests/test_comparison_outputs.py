"""Outputs are compared by bytes, then by their kind; drift is told in words and the verdict follows from all of it."""

from __future__ import annotations

import io
import json
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prefect_executions.comparison.outputs import compare_output, relative_difference
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


def told(name, before, after, tolerance=0.0, /, **declared):
    before, after = (data.encode() if isinstance(data, str) else data for data in (before, after))
    path, comparison = f"outputs/{name}", Comparison(**declared) if declared else None
    return compare_output(path, media_type(path), before, after, tolerance=tolerance, declared=comparison)


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


def picture(size=(4, 3), dots=(), mode="L", form="PNG", **how):
    drawn = Image.new(mode, size)
    for dot in dots:
        drawn.putpixel(dot, 9 if mode != "RGB" else (0, 9, 0))
    stream = io.BytesIO()
    drawn.save(stream, form, **how)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "1"])
def test_pictures_are_compared_by_their_pixels(mode):
    dots = [(0, 0), (2, 1)]
    plain, other = picture(dots=dots, mode=mode), picture(dots=dots, mode=mode, form="TIFF")
    assert told("p.png", plain, other).words == ("the same pixels in another file",)
    found = told("p.png", plain, picture(dots=dots[:1], mode=mode))
    step = 255 if mode == "1" else 9
    words = f"1 of 12 pixels differ, in a channel by up to {step}"
    assert (found.agreement, found.by, found.words) == (Agreement.DIFFERS, "pixels", (words,))
    assert told("p.png", plain, picture(size=(3, 4), mode=mode)).words == ("it was 4 x 3 pixels and is 3 x 4",)


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_pixels_may_differ_by_what_is_declared(mode):
    plain, other = picture(mode=mode), picture(dots=[(1, 1)], mode=mode)
    found = told("p.png", plain, other, absolute_tolerance=9)
    assert (found.agreement, found.words) == (Agreement.EQUAL, ("the same pixels in another file, or within 9",))
    assert told("p.png", plain, other, absolute_tolerance=8.9).agreement is Agreement.DIFFERS


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
    assert told("a.json", b"\xff\x00", b"\xff\x01").words == ("1 of 2 bytes differ",)


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
