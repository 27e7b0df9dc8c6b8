"""Tables are compared by cells, and cells as numbers only in columns of numbers."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prefect_executions.comparison.outputs import compare_output
from prefect_executions.comparison.verdict import Agreement
from prefect_executions.mediatypes import media_type
from prefect_executions.methods.model import Comparison

CELLS = (
    st.integers(-(10**20), 10**20).map(str)
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.text(max_size=4)
    | st.sampled_from(["007", "7", "1e5", "1e400", "٣", "3", "+49", "nan", "inf", "", "1_0", "0x10", " 1", "²"])
)


def compared(before, after, tolerance=0.0, name="t.csv", **declared):
    before, after = (data.encode() if isinstance(data, str) else data for data in (before, after))
    comparison = Comparison(**declared) if declared else None
    return compare_output(name, media_type(name), before, after, tolerance=tolerance, declared=comparison)


def written(rows, delimiter=","):
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter).writerows(rows)
    return stream.getvalue()


def number_of(cell):
    try:
        return float(cell)
    except ValueError:
        return None


@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.tsv", "\t")])
@given(rows=st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1, max_size=4), data=st.data())
def test_any_other_cell_anywhere_in_a_table_differs(name, delimiter, rows, data):
    row, column = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, 1))
    cell = data.draw(CELLS)
    old = rows[row][column]
    assume(cell != old)
    assume(number_of(cell) is None or number_of(cell) != number_of(old))
    other = [list(line) for line in rows]
    other[row][column] = cell
    assert compared(written(rows, delimiter), written(other, delimiter), name=name).agreement is Agreement.DIFFERS


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1700000000000000099", "1700000000000000001"),
        ("007", "7"),
        ("7", "07"),
        ("1e400", "1e401"),
        ("1e400", "inf"),
        ("12", "١٢"),
        ("12", "\uff11\uff12"),
        ("1", "+1"),
        ("1", "1_"),
        ("1", "\u00a01"),
        ("0.1", "0.10000000000000000001"),
        ("0", "-0"),
        ("nan", ""),
        ("NaN", "0"),
        ("1", ""),
        ("1.0", "1,0"),
        ("x\ny", "x\r\ny"),
        ("a", "A"),
        ("a ", "a"),
    ],
)
@pytest.mark.parametrize("others", [["5"], ["x"], [""], []])
def test_cells_that_only_look_equal_differ(before, after, others):
    first, second = (
        written([["a", "b"], [cell, "1"], *([other, "1"] for other in others)]) for cell in (before, after)
    )
    assert compared(first, second).agreement is Agreement.DIFFERS


def test_what_looks_like_a_number_in_a_column_of_text_is_text():
    before, after = "id,n\n12e1,1\na7,2\n", "id,n\n120,1\na7,2\n"
    found = compared(before, after)
    words = "column id differs in 1 of 2 rows; it is compared as text, because it contains 'a7'"
    assert (found.agreement, found.words) == (Agreement.DIFFERS, (words,))
    assert compared("id,n\n12e1,1\n7,2\n", "id,n\n120,1\n7,2\n").agreement is Agreement.EQUAL


@pytest.mark.parametrize("missing", ["", "NA", "-", "n/a", "NaN", "null"])
def test_a_column_of_numbers_may_lack_some(missing):
    form = "a,b\n{},x\n" + f"{missing},y\n3,z\n"
    assert compared(form.format("1.0"), form.format("1.00")).agreement is Agreement.EQUAL
    assert compared(form.format("1.0"), form.format("1.01"), 0.1).agreement is Agreement.EQUAL
    assert compared(form.format("1.0"), form.format("1.01")).agreement is Agreement.DIFFERS


def test_headings_do_not_make_a_column_of_text():
    form = "region,area,2020\nx,{},5\ny,2.5,5\n"  # not a header: 2020 is a number
    assert compared(form.format("1.0"), form.format("1.00")).agreement is Agreement.EQUAL
    units = "time,area\ns,m2\n1,{}\n2,2.5\n"
    assert compared(units.format("1.0"), units.format("1.01"), 0.1).agreement is Agreement.EQUAL


@pytest.mark.parametrize(("name", "quoted"), [("t.csv", Agreement.EQUAL), ("t.tsv", Agreement.DIFFERS)])
def test_quotation_marks_are_a_part_of_values_only_in_tsv(name, quoted):
    separator = "\t" if name == "t.tsv" else ","
    before = separator.join(["a", "b"]) + "\n" + separator.join(["x", "y"]) + "\n"
    assert compared(before, before.replace("x", '"x"'), name=name).agreement is quoted


@pytest.mark.parametrize("broken", ['a,b\n"x"y,1\n', 'a,b\nx,"1\n'])
def test_a_table_with_damaged_quotation_is_compared_by_lines(broken):
    found = compared("a,b\nxy,1\n", broken)
    assert (found.agreement, found.by) == (Agreement.DIFFERS, "lines")
    assert "not a table" in found.words[-1]
