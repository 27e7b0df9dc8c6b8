"""Tables of the command line: they fit the terminal, and a pipe gets every cell whole."""

from __future__ import annotations

import re
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from benches import OTHER_ID, begun, bench_at, kept, record_of
from prefect_executions.cli.app import main
from prefect_executions.cli.output import format_number, wrap_words
from prefect_executions.cli.tables import (
    VERSION,
    Column,
    digest_column,
    id_column,
    name_column,
    short_ids,
    show_table,
    table_of,
    text_column,
    time_column,
    value_column,
)
from prefect_executions.lifecycle.status import Status
from records import EXECUTION_ID, a_job_status, a_method, a_request
from test_cli_app import on_a_terminal

HEAD = (id_column(), "status", name_column("method", 20), VERSION, time_column("started"), text_column("what"))
ROW = (EXECUTION_ID, "COMPLETED", "calibrate-photometric-zero-points-of-the-survey", "2.0.0-beta.3+build.20260901")
ROW += ("2026-09-22 12:00:00Z", "it took longer than the last " + 9 * "very long " + "time")


def lines_of(width: int, rows: list[tuple[object, ...]], head: tuple[str | Column, ...] = HEAD) -> list[str]:
    return table_of(head, rows, width=width).plain.split("\n")


def test_a_wide_terminal_shows_every_cell_whole():
    (_, row) = lines_of(400, [ROW])
    assert all(str(cell) in row for cell in ROW)


def test_a_narrow_terminal_shortens_ids_and_times_crops_names_and_wraps_sentences():
    head, first, *more = lines_of(100, [ROW])
    assert head.split() == ["id", "status", "method", "version", "started", "what"]
    *cells, what = first.split("  ")
    assert cells == [EXECUTION_ID[:8], "COMPLETED", "calibrate-photometr…", "2.0.0-beta.…", "2026-09-22 12:00Z"]
    assert " ".join([what, *(line.strip() for line in more)]) == ROW[5]


def test_columns_that_are_optional_are_left_out_before_a_name_is_unreadable():
    head, *_ = lines_of(90, [ROW])
    assert head.split() == ["id", "status", "method", "started", "what"]


CELL = st.text(st.characters(exclude_categories=["Cs"]), max_size=90)


@given(st.lists(st.tuples(*[CELL] * 6), min_size=1, max_size=5), st.integers(40, 200))
def test_no_line_is_wider_than_the_terminal(rows, width):
    head = (name_column("a"), text_column("b"), value_column("c"), Column("d", optional=True, least=5))
    head += (digest_column("e"), name_column("f", 9))
    assert all(cell_len(line) <= width for line in lines_of(width, rows, head))


@given(st.sets(st.uuids(), min_size=1, max_size=30))
def test_short_ids_are_unique_prefixes(ids):
    ids = [*map(str, ids)]
    short = short_ids(ids)
    assert all(whole.startswith(prefix) for whole, prefix in zip(ids, short, strict=True))
    assert len(set(short)) == len(ids)
    assert min(map(len, short)) >= 8


def test_ids_that_begin_alike_are_shown_as_far_as_they_differ_and_keep_their_generation():
    first, second = str(UUID(int=0)), str(UUID(int=1 << 92))
    assert short_ids([first, f"{first}.2", second]) == ["00000000-0", "00000000-0.2", "00000000-1"]


@pytest.mark.long
def test_an_execution_is_found_by_the_short_form_of_its_id(home):
    bench = bench_at(home)
    kept(bench, EXECUTION_ID)
    kept(bench, f"{EXECUTION_ID}.2")
    for known in (EXECUTION_ID, f"{EXECUTION_ID}.2"):
        shown = on_a_terminal(["list"], home, columns=70)
        assert short_ids([known])[0] in [line.split(" ")[0] for line in shown.splitlines()]
    assert bench.ledger.find(f"{EXECUTION_ID[:8]}.2") == f"{EXECUTION_ID}.2"
    bench.ledger.remove(EXECUTION_ID)
    shown, *_ = on_a_terminal(["show", f"{EXECUTION_ID[:8]}.2"], home).splitlines()
    assert shown.endswith(f"{EXECUTION_ID}.2")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1.6666666666666667, "1.66667"),
        (1.23456789012345e-09, "1.23457e-09"),
        (123456789.12345679, "123456789.1"),
        (1.5e300, "1.5e+300"),
        (123456789, "123456789"),
        (float("nan"), "nan"),
        (True, "True"),
        ("0.30000000000000004", "0.30000000000000004"),
    ],
)
def test_numbers_are_rounded_for_people(number, text):
    assert format_number(number) == text


def test_a_pipe_gets_every_cell_whole(capsys):
    show_table(HEAD, [ROW], title="run")
    show_table((value_column(), digest_column("sha-256")), [(1 / 3, "0" * 64)])
    assert capsys.readouterr().out.splitlines() == ["\t".join(["run", *ROW]), f"{1 / 3}\t{'0' * 64}"]


def test_long_values_are_wrapped_between_words_and_links_stay_whole():
    assert wrap_words("  the catalogue has no column", 14) == ["  the", "  catalogue", "  has no", "  column"]
    link = "https://example.org/" + "x" * 40
    assert wrap_words(f"see {link}", 14) == ["see", link]
    assert wrap_words("x" * 20, 8, fold=True) == ["x" * 8, "x" * 8, "x" * 4]


LONG_NAME = "calibrate-photometric-zero-points-of-the-northern-survey"


@pytest.mark.long
def test_every_table_fits_eighty_columns(home, tmp_path):
    bench, version = bench_at(home), "2.0.0-beta.3+build.20260901.abcdef"
    names = (f"tiles/{'very-' * 12}long-{number}-温度.dat" for number in range(3))
    outputs = {f"outputs/{name}": bytes(12345) for name in names}
    method = a_method(id=LONG_NAME, version=version, title="A title that is longer than a column is")
    request = a_request(method_id=LONG_NAME, method_version=version)
    status = a_job_status().model_copy(update={"process_id": LONG_NAME})
    kept(bench, method=method, outputs=outputs, request=request, job_status=status)
    kept(bench, OTHER_ID, end=Status.FAILED)
    begun(bench, record_of(str(uuid4()), Status.EXECUTING))
    main(["export", EXECUTION_ID, "-o", str(tmp_path / "one.zip")])
    commands = [
        ["list"],
        ["outputs", EXECUTION_ID],
        ["methods", "list"],
        ["methods", "show", LONG_NAME],
        ["diff", EXECUTION_ID, OTHER_ID],
        ["verify", "-v", EXECUTION_ID],
        ["audit", "--every"],
        ["gc", "--older-than", "2100-01-01", "--dry-run"],
        ["remove", EXECUTION_ID, OTHER_ID, "--dry-run"],
        ["import", str(tmp_path / "one.zip")],
        ["watch", EXECUTION_ID],
        ["--help"],
    ]
    for command in commands:
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_a_terminal(command, home, columns=80))
        assert "error: " not in shown, command
        wide = [line for line in shown.splitlines() if cell_len(line) > 80]
        assert wide == [], command
