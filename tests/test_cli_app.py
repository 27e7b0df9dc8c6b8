"""The command line: parsing of options, safe output, exit codes, and each command."""

from __future__ import annotations

import csv
import inspect
import io
import json
import logging
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import requires
from pathlib import Path

import prefect
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from benches import OTHER_ID, begun, bench_at, kept, record_of
from prefect_executions import background
from prefect_executions.cli import exit_codes
from prefect_executions.cli.app import app, main
from prefect_executions.cli.arguments import parse_inputs, parse_time
from prefect_executions.cli.doctor import (
    _missing,
    _open_executions,
    check_api,
    check_prefect,
    check_runtime,
    check_unknown_settings,
    check_version,
)
from prefect_executions.cli.output import escape_controls, format_duration, format_number, format_size, log_text
from prefect_executions.cli.run import _facts, _next_commands
from prefect_executions.errors import NotFoundError, RequestError
from prefect_executions.executions.record import Metric, Metrics, Raised, Returned, Usage
from prefect_executions.executions.summary import error_text
from prefect_executions.flow.descriptor import DescriptorMethod
from prefect_executions.lifecycle.history import EntryKind, add_entry, advance, with_end_after
from prefect_executions.lifecycle.status import Observer, Reason, Status
from prefect_executions.settings import Settings
from prefect_executions.workbench.catalog import Catalog, StorageState
from records import (
    EXECUTION_ID,
    NOON,
    OUTPUTS,
    a_job_status,
    a_record,
    a_request,
    a_staged_input,
    an_instance,
    an_output,
)
from scenes import dead_process, forget_flows

COMMAND = str(Path(sys.executable).with_name("executions"))
HOSTILE = "\x1b]0;title\x07\x1b[31mred\x9b2J\u202egnp.exe"

FLOW = """
import sys, time
from prefect_executions import current_execution, method

@method(version="1.0.0")
def greet(name: str = "you", fail: bool = False, wait: float = 0) -> str:
    print("hello", name, flush=True)
    current_execution().output("greeting.txt").write_text(f"hello {name}")
    time.sleep(wait)
    if fail:
        raise ValueError("nobody is there")
    return name
"""


@pytest.fixture
def executions(home, capsys) -> Iterator[Callable[..., str]]:
    """Return a function that runs the command line in this process, checks its exit code and returns its output."""
    logger = logging.getLogger("prefect")
    level = logger.level

    def run(*arguments: str, code: int = 0) -> str:
        found = main(arguments)
        shown = capsys.readouterr()
        assert found == code, shown.err
        return shown.err if code and not shown.out else shown.out

    yield run
    logger.setLevel(level)  # `run --quiet` silences it for the end of its process


def executed(arguments: Sequence[str], home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"EXECUTIONS_HOME": str(home)} | more
    return subprocess.run(
        [COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=250, check=False
    )


def on_a_terminal(arguments: Sequence[str], home: Path, *, columns: int = 100) -> str:
    """Return what the command shows on a real pseudo-terminal of *columns* columns."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"EXECUTIONS_HOME": str(home), "COLUMNS": str(columns), "TERM": "xterm"}
    with subprocess.Popen([COMMAND, *arguments], env=environment, stdout=theirs, stderr=theirs, close_fds=True) as made:
        os.close(theirs)
        shown = b""
        while True:
            try:
                block = os.read(ours, 65536)
            except OSError:  # Linux: the other end is closed
                break
            if not block:
                break
            shown += block
        made.wait(60)
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


def words_on_a_terminal(arguments: Sequence[str], home: Path) -> str:
    """Return the words that the command shows on a terminal of 80 columns, without colours and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_a_terminal(arguments, home, columns=80)).split())


# --- options ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("n=5", 5),
        ("n=0.5", 0.5),
        ("n=true", True),
        ("n=null", None),
        ('n={"a": [1, 2]}', {"a": [1, 2]}),
        ("n=some text", "some text"),
        ("n=007", "007"),
        ('n="5"', "5"),
        ("n=NaN", "NaN"),
        ("n=", ""),
        ("n=a=b", "a=b"),
        ("n=@@file", "@file"),
    ],
)
def test_a_value_is_json_if_it_parses_else_text(pair, value):
    assert parse_inputs([pair], None) == {"n": value}


@pytest.mark.long
@given(st.text().filter(lambda text: not text.startswith("@")))
def test_any_text_can_be_given_as_a_json_string(text):
    assert parse_inputs([f"n={json.dumps(text)}"], None) == {"n": text}


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_parameters_accept_any_text(text):
    value = parse_inputs([f"n=@@{text}"], None)["n"]
    assert value == f"@{text}"


def test_a_value_is_read_from_a_file(tmp_path):
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "prompt.txt").write_text("two\nlines")
    given_ = [f"a=@{tmp_path / 'list.json'}", f"b=@{tmp_path / 'prompt.txt'}"]
    assert parse_inputs(given_, None) == {"a": [1, 2], "b": "two\nlines"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 151 + "]" * 151, "nested more than 150 levels"),
        ("[" * 100_000, "nested more than 150 levels"),
        ('{"n":' * 900 + "1" + "}" * 900, "nested more than 150 levels"),
        ('{"a": {"b": 1, "b": 2}}', "has the member 'b' twice"),
    ],
)
def test_a_value_that_is_too_deep_or_ambiguous_is_refused(tmp_path, text, message):
    (tmp_path / "params.json").write_text(f'{{"n": {text}}}' if text.count("[") != 100_000 else text)
    for given_, file in (([f"n={text}"], None), ([], str(tmp_path / "params.json"))):
        with pytest.raises(RequestError, match=message):
            parse_inputs(given_, file)
    deep = "[" * 150 + "]" * 150
    assert parse_inputs([f"n={deep}"], None) == {"n": json.loads(deep)}


def test_a_file_without_end_is_refused(tmp_path):
    for given_, file in (([], "/dev/zero"), (["n=@/dev/zero"], None)):
        with pytest.raises(RequestError, match="/dev/zero cannot be read: it has more than 67108864 bytes"):
            parse_inputs(given_, file)
    (tmp_path / "method.json").symlink_to("/dev/zero")
    with pytest.raises(NotFoundError, match=r"method\.json is not a file"):
        DescriptorMethod.from_file(tmp_path / "method.json")


def test_a_limit_beyond_every_database_lists_everything(executions, home):
    kept(bench_at(home))
    assert json.loads(executions("list", "--json", "--limit", "9" * 30))["executions"][0]["id"] == EXECUTION_ID


def test_the_password_of_an_address_is_not_printed(executions):
    printed = executions("import", "http://ada:hunter2@127.0.0.1:9/x.zip", code=exit_codes.WORLD)
    assert printed.count("http://127.0.0.1:9/x.zip") == 2
    assert "hunter2" not in printed


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_a_file_of_windows_is_read(tmp_path, encoding):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "inputs.json").write_bytes(f'{mark}{{"name": "Zoë"}}\r\n'.encode(encoding))
    (tmp_path / "prompt.txt").write_bytes(f"{mark}two\r\nlines".encode(encoding))

    assert parse_inputs([], str(tmp_path / "inputs.json")) == {"name": "Zoë"}
    assert parse_inputs([f"a=@{tmp_path / 'prompt.txt'}"], None) == {"a": "two\r\nlines"}


def test_a_file_with_numbers_that_json_lacks_is_refused_with_the_notation(tmp_path):
    (tmp_path / "inputs.json").write_text('{"a": [NaN]}')
    with pytest.raises(RequestError, match='write "NaN" or "Infinity"'):
        parse_inputs([], str(tmp_path / "inputs.json"))


def test_a_single_input_overrides_the_file_of_inputs(tmp_path):
    (tmp_path / "inputs.json").write_text('{"a": 1, "b": 2}')
    assert parse_inputs(["b=3"], str(tmp_path / "inputs.json")) == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("pairs", "file", "message"),
    [
        (["nothing"], None, "name=value"),
        (["=5"], None, "name=value"),
        (["a=1", "a=2"], None, "twice"),
        (["a=@no/such/file"], None, "no/such/file cannot be read"),
        ([], "no/such/file", "cannot be read"),
        ([], __file__, "is not a JSON object"),
        ([], "/dev/null", "is not a JSON object"),
    ],
)
def test_invalid_parameters_are_refused(pairs, file, message):
    with pytest.raises(RequestError, match=message):
        parse_inputs(pairs, file)


def test_a_time_is_a_date_a_time_or_an_age():
    assert parse_time("2026-09-01", NOON) == datetime(2026, 9, 1, tzinfo=UTC)
    assert parse_time("2026-09-01T12:00", NOON) == datetime(2026, 9, 1, 12, tzinfo=UTC)
    assert parse_time("2026-09-01T12:00+02:00", NOON) == datetime(2026, 9, 1, 10, tzinfo=UTC)
    assert parse_time("7d", NOON) == NOON - timedelta(days=7)
    assert parse_time("12h", NOON) == NOON - timedelta(hours=12)
    assert parse_time("2w", NOON) == NOON - timedelta(weeks=2)
    assert parse_time("-7d", NOON) == NOON - timedelta(days=7)


@pytest.mark.parametrize("text", ["", "yesterday", "7", "7y", "--7d", "--limit", "99999999999d", "2026-13-01"])
def test_an_invalid_time_is_refused(text):
    with pytest.raises(RequestError):
        parse_time(text, NOON)


# --- output ----------------------------------------------------------------------


@given(st.text(alphabet=st.characters()))
def test_shown_text_has_no_control_characters(text):
    shown = escape_controls(text)
    shown.encode()  # a half of a pair could not be written
    assert all(one.isprintable() or one.isspace() for one in shown)
    assert not set("\x1b\x07\x08\n\r\t\x9b\u202e\u2066\u2028").intersection(shown)


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_a_log_on_a_terminal_has_no_control_characters_in_any_block_sizes(blocks):
    whole, cut = "".join(log_text([b"".join(blocks)])), "".join(log_text(blocks))
    assert whole == escape_controls(whole, lines=True)
    assert not set("\x1b\x07\x08\r\x9b\u202e").intersection(whole)
    assert whole == cut


def test_colours_are_removed_from_logs_and_control_characters_escaped():
    assert "".join(log_text([b"\x1b[31mred\x1b[0m\x07 50%\r100%\r\n\x9b"])) == "red\\x07 50%\n100%\n\ufffd"


def test_sizes_and_durations_are_formatted_for_people():
    sizes = (0, 999, 1000, 1_234_567, 10**15)
    assert [format_size(size) for size in sizes] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.2 MB",
        "1000.0 TB",
    ]
    assert format_duration(timedelta(seconds=4.5)) == "4.50 s"
    assert format_duration(timedelta(seconds=3661)) == "1:01:01"
    assert format_duration(None) == ""


def test_a_value_longer_than_a_terminal_line_is_not_cut(home):
    link = "https://example.org/" + "x" * 300
    kept(bench_at(home), job_status=record_of(end=Status.FAILED).job_status.model_copy(update={"message": link}))
    assert f"{link}\n" in on_a_terminal(["show", EXECUTION_ID], home)


@pytest.mark.long
def test_an_empty_log_is_reported_on_a_terminal(home):
    kept(bench_at(home))
    begun(bench_at(home), record_of(OTHER_ID, Status.EXECUTING), {"outputs/stdout.log": b""})
    assert on_a_terminal(["logs", EXECUTION_ID], home).split() == ["24", "regions"]
    assert on_a_terminal(["logs", EXECUTION_ID, "--stderr"], home).strip() == "Standard error is empty."
    shown = on_a_terminal(["logs", OTHER_ID], home).strip()
    assert shown == f"Standard output is empty. Next: executions logs {OTHER_ID} --stderr"


@pytest.mark.long
def test_hostile_text_is_escaped_on_a_terminal(home):
    message = f"{HOSTILE} [bold]no markup[/bold]"
    kept(bench_at(home), job_status=record_of(end=Status.FAILED).job_status.model_copy(update={"message": message}))
    for arguments in (["show", EXECUTION_ID], ["logs", EXECUTION_ID]):
        shown = on_a_terminal(arguments, home)
        assert "\x1b]0;" not in shown
        assert "\u202e" not in shown
        assert "\x9b" not in shown
    assert "[bold]" in on_a_terminal(["show", EXECUTION_ID], home)


def test_json_keeps_hostile_text_unchanged(executions, home):
    job_status = record_of().job_status.model_copy(update={"message": HOSTILE})
    kept(bench_at(home), job_status=job_status)
    shown = executions("show", EXECUTION_ID, "--json")
    assert shown.replace("\n", "").isprintable()
    assert json.loads(shown)["jobStatus"]["message"] == HOSTILE


def test_show_as_json_begins_with_the_status_and_lists_the_documents_in_order(executions, home):
    kept(bench_at(home))
    members = list(json.loads(executions("show", EXECUTION_ID, "--json")))
    first = ["id", "status", "folder", "sealed", "archive", "jobStatus", "method", "request", "infrastructure"]
    assert members[: len(first)] == first
    assert members[len(first) : len(first) + 2] == ["instance", "agent"]


def test_an_empty_method_matches_no_execution(executions, home):
    kept(bench_at(home))
    assert json.loads(executions("list", "--json"))["executions"]
    assert json.loads(executions("list", "--method", "", "--json"))["executions"] == []


# --- commands --------------------------------------------------------------------


def test_every_command_has_json_and_a_help_line_of_at_most_72_characters(capsys):
    groups = {"ledger": ("rebuild",), "methods": ("list", "show"), "keys": ("create", "list", "trust")}
    groups |= {"shares": ("list", "revoke"), "server": ("status", "stop")}
    names = [(name,) for name in app if not name.startswith("-") and name not in groups]
    names += [(group, name) for group, below in groups.items() for name in below]
    for name in names:
        assert main([*name, "--help"]) == exit_codes.OK
        shown = capsys.readouterr().out
        assert "--json" in shown, name
        line = shown.strip().splitlines()[2]
        assert len(line) <= 72, name
        assert line.endswith("."), name
        command = app
        for part in name:
            command = command[part]
        description = inspect.cleandoc(command.help).partition("\nArgs:")[0]
        assert max(map(len, description.splitlines())) < 80, name  # a longer line would be broken twice
    assert groups.keys() < {*app}


def test_the_help_has_every_command_in_a_group_by_what_it_is_for(capsys):
    assert main(["--help"]) == exit_codes.OK
    shown = capsys.readouterr().out
    titles = [
        "Run a Method",
        "Look at executions",
        "Run again",
        "Verify and exchange bundles",
        "Free space",
        "Operate",
    ]
    places = [shown.index(title) for title in [*titles, "Options"]]
    assert places == sorted(places)
    for name in app:
        if not name.startswith("-"):
            (group,) = app[name].group
            assert group.name in titles, name


def test_list_prints_plain_lines_in_a_pipe(executions, home):
    kept(bench_at(home))
    begun(bench_at(home), record_of(OTHER_ID, Status.EXECUTING))
    rows = [line.split("\t") for line in executions("list").splitlines()]
    assert {row[0]: row[1] for row in rows} == {EXECUTION_ID: "COMPLETED", OTHER_ID: "EXECUTING"}
    assert {len(row) for row in rows} == {7}


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--status", "completed"], {EXECUTION_ID}),
        (["--status", "completed", "--status", "executing"], {EXECUTION_ID, OTHER_ID}),
        (["--status", "CANCELLED"], set()),
        (["--method", "segment-coins"], {EXECUTION_ID, OTHER_ID}),
        (["--method", "other"], set()),
        (["--since", NOON.date().isoformat()], {EXECUTION_ID, OTHER_ID}),
        (["--until", NOON.date().isoformat()], set()),
    ],
)
def test_list_filters_executions(executions, home, options, found):
    kept(bench_at(home))
    begun(bench_at(home), record_of(OTHER_ID, Status.EXECUTING))
    assert {row["id"] for row in json.loads(executions("list", "--json", *options))["executions"]} == found


def test_list_continues_after_a_page(executions, home):
    kept(bench_at(home))
    kept(bench_at(home), OTHER_ID)
    first = json.loads(executions("list", "--json", "--limit", "1"))
    second = json.loads(executions("list", "--json", "--limit", "1", "--after", first["after"]))
    assert [len(page["executions"]) for page in (first, second)] == [1, 1]
    assert {page["executions"][0]["id"] for page in (first, second)} == {EXECUTION_ID, OTHER_ID}
    assert second["after"] is None


@pytest.mark.parametrize("words", [["list", "--status", "completed"], ["list", "status:completed"]])
def test_a_page_ends_with_a_short_option_for_the_next_page(home, capsys, words):
    kept(bench_at(home))
    kept(bench_at(home), OTHER_ID)
    main([*words, "--limit", "1"])
    page, hint = capsys.readouterr()
    added = hint.partition("There are more; add:\n")[2]
    assert len(added.strip()) <= 80
    main([*words, *shlex.split(added)])
    assert {line.split("\t")[0] for line in (page + capsys.readouterr().out).splitlines()} == {EXECUTION_ID, OTHER_ID}


def test_list_prints_comma_separated_values(executions, home):
    kept(bench_at(home))
    (row,) = csv.DictReader(io.StringIO(executions("list", "--csv")))
    assert row["id"] == EXECUTION_ID
    assert row["status"] == "COMPLETED"


def test_show_prints_inputs_outputs_params_metrics_and_history(executions, home):
    kept(bench_at(home))
    shown = executions("show", EXECUTION_ID[:6])
    assert "status\tCOMPLETED" in shown
    for words in (
        "status\tCOMPLETED",
        "input\tthreshold\t0.3",
        "output\tregions.csv",
        "param\tfootprint\t3",
        "metric\tloss\t0.25\t2",
        "history\t",
    ):
        assert words in shown


def test_show_prints_every_file_of_a_list(executions, home):
    scenes = ["s3://survey/a.tif", "s3://survey/b.tif", "s3://survey/c.tif"]
    files = tuple(
        a_staged_input(input="scenes", name=scene[-5:], origin=scene, path=f"inputs/scenes/{scene[-5:]}")
        for scene in scenes
    )
    begun(bench_at(home), record_of(request=a_request(values={"scenes": scenes, "threshold": 0.3}, files=files)))
    lines = executions("show", EXECUTION_ID).splitlines()
    assert [line for line in lines if line.startswith("input\t")] == [
        *(f"input\tscenes\t{scene}" for scene in scenes),
        "input\tthreshold\t0.3",
    ]


def test_show_and_list_report_a_dead_process_and_show_the_last_progress(executions, home, capsys):
    job_status = a_job_status(Status.EXECUTING)
    for percent in (60, 70):
        job_status = add_entry(
            job_status, EntryKind.PROGRESS, job_status.updated, observer=Observer.HOOK, progress=percent, message="on"
        )
    bench, process = bench_at(home), dead_process()
    where = an_instance(hostname="vm", pid=process.pid, process=process)
    bundle = begun(bench, record_of(job_status=job_status, instance=where))
    bench.leases.release(EXECUTION_ID)
    main(["list", "--status", "executing"])
    assert (
        f"Not sealed, and the process is gone: {EXECUTION_ID[:8]}\nNext: executions settle" in capsys.readouterr().err
    )
    shown = executions("show", EXECUTION_ID)
    assert f"process\t{process.pid} on vm is gone; 'executions settle --once' seals" in shown
    assert [line.rsplit("\t", 1)[1] for line in shown.splitlines() if "progress 5" in line or "progress 7" in line] == [
        "progress 70 % on"
    ]
    assert json.loads(executions("show", EXECUTION_ID, "--json"))["processGone"] == f"{process.pid} on vm"

    paused = add_entry(job_status, EntryKind.PAUSED, job_status.updated, observer=Observer.PREFECT)
    bundle.write_document(paused)  # it has left its process on purpose
    assert "is gone" not in executions("show", EXECUTION_ID)
    main(["list"])
    assert "is gone" not in capsys.readouterr().err


def test_show_json_has_every_document(executions, home):
    bundle = kept(bench_at(home))
    document = json.loads(executions("show", EXECUTION_ID, "--json"))
    assert document["jobStatus"] == json.loads((bundle.folder / "metadata/jobStatus.json").read_bytes())
    assert document["request"] == json.loads((bundle.folder / "metadata/request.json").read_bytes())
    assert document["folder"] == str(bundle.folder)


@pytest.mark.parametrize("local", [True, False])
def test_an_output_is_written_to_a_file(executions, home, tmp_path, local):
    bundle = kept(bench_at(home))
    if not local:
        bundle.discard()
    target = tmp_path / "table.csv"
    assert str(target) in executions("outputs", EXECUTION_ID[:6], "regions.csv", "-o", str(target))
    assert target.read_bytes() == OUTPUTS["outputs/regions.csv"]


def test_a_damaged_output_leaves_no_file(executions, home, tmp_path):
    bundle = kept(bench_at(home))
    (bundle.folder / "outputs/regions.csv").write_bytes(b"forged")
    target = tmp_path / "table.csv"
    executions("outputs", EXECUTION_ID, "regions.csv", "-o", str(target))
    assert target.read_bytes() == OUTPUTS["outputs/regions.csv"]  # the archive's
    target.unlink()
    bundle.paths.output_zip.unlink()
    shutil.rmtree(home / "archive")
    assert "was changed on this workbench after it was sealed" in executions(
        "outputs", EXECUTION_ID, "regions.csv", "-o", str(target), code=exit_codes.WORLD
    )
    assert not list(tmp_path.glob("*.part"))
    assert not target.exists()


def test_outputs_are_listed_with_their_digests(executions, home):
    kept(bench_at(home))
    listed = {line.split("\t")[0] for line in executions("outputs", EXECUTION_ID).splitlines()}
    assert listed == {path.removeprefix("outputs/") for path in OUTPUTS}
    assert len(json.loads(executions("outputs", EXECUTION_ID, "--json"))["outputs"]) == len(OUTPUTS)


def test_logs_in_a_pipe_are_unchanged_bytes(home):
    content = bytes(range(256)) * 4
    kept(bench_at(home), outputs={**OUTPUTS, "outputs/stdout.log": content})
    done = subprocess.run(
        [COMMAND, "logs", EXECUTION_ID],
        env=os.environ | {"EXECUTIONS_HOME": str(home)},
        capture_output=True,
        check=True,
    )
    assert done.stdout == content


def test_prov_prints_the_requested_format(executions, home, tmp_path):
    bundle = kept(bench_at(home))
    assert "prefix" in json.loads(executions("prov", EXECUTION_ID, "--format", "json"))
    assert json.loads(executions("prov", EXECUTION_ID, "--json"))
    assert executions("prov", EXECUTION_ID, "--json", "--format", "json").endswith("}\n")
    executions("prov", EXECUTION_ID, "--json", "--format", "xml", code=exit_codes.REQUEST)
    executions("prov", EXECUTION_ID, "-o", str(tmp_path / "provo.xml"))
    assert (tmp_path / "provo.xml").read_bytes() == (bundle.folder / "metadata/provo.xml").read_bytes()


def test_verify_names_each_failed_check_and_exits_with_1(executions, home):
    bundle = kept(bench_at(home))
    assert executions("verify", EXECUTION_ID[:6]).splitlines() == [
        f"execution {EXECUTION_ID}, workbench and archive: verified",
        "segment-coins 1.2.0  COMPLETED  2026-09-22 12:00:08Z  unsigned",
    ]
    shown = executions("verify", EXECUTION_ID, "-v")
    assert "archive\tdigests\tok" in shown
    assert "archive\tsignature\tunchecked\tthe bundle is not signed" in shown
    assert "archive\tinclusion\tno proof" in shown
    assert "signature\tok" not in shown
    (bundle.folder / "outputs/regions.csv").write_bytes(b"forged")
    assert "workbench\tdigests\tFAILED\t'outputs/regions.csv'" in executions(
        "verify", EXECUTION_ID, code=exit_codes.FAILED
    )
    shown = words_on_a_terminal(["verify", EXECUTION_ID], home)
    assert re.search(r"'outputs/regions\.csv' is [0-9a-f]{12}…; the manifest says [0-9a-f]{12}…", shown)
    document = json.loads(executions("verify", EXECUTION_ID, "--json", code=exit_codes.FAILED))
    assert [(copy["place"], copy["passed"]) for copy in document["copies"]] == [("workbench", False), ("archive", True)]


def test_verify_reports_an_archive_that_lost_its_copy(executions, home):
    kept(bench_at(home))
    shutil.rmtree(home / "archive")
    executions("verify", EXECUTION_ID, code=exit_codes.WORLD)


@pytest.mark.long
def test_verify_shows_one_fault_of_several_checks_once_on_a_terminal(executions, home):
    bundle = kept(bench_at(home))
    (bundle.folder / "metadata/request.json").write_bytes(b"{}")
    fault = "metadata/request.json: "
    piped = executions("verify", str(bundle.folder), code=exit_codes.FAILED)
    shown = words_on_a_terminal(["verify", str(bundle.folder)], home)
    assert piped.count(f"same-execution\tFAILED\t{fault}") == 1
    assert shown.count("same-execution") == shown.count("(also fails: same-execution, ") == 1


def test_verify_refuses_what_is_no_bundle_before_it_reads_everything(executions, tmp_path):
    (tmp_path / "folder/below").mkdir(parents=True)
    (tmp_path / "folder/below/notes.txt").write_text("not a bundle")
    (tmp_path / "folder/link").symlink_to("nowhere")
    refused = executions("verify", str(tmp_path / "folder"), code=exit_codes.REQUEST)
    assert f"the folder {tmp_path / 'folder'} holds no bundle" in refused
    (tmp_path / "text.zip").write_text("not a zip")
    shutil.make_archive(str(tmp_path / "other"), "zip", tmp_path / "folder/below")
    for name, why in (("text.zip", "it is not a zip"), ("other.zip", "it contains no bundle")):
        fault, verdict = executions("verify", str(tmp_path / name), code=exit_codes.FAILED).splitlines()
        assert fault.startswith(f"zip\tcontainer\tFAILED\t{why}")
        assert verdict == "zip: FAILED (1 of 1 checks)"


@pytest.mark.parametrize("name", ["metadata/method.json", "auth_jwt.json", "x/y/manifest-sha256.txt", "a/bagit.txt"])
def test_verify_lists_the_faults_of_a_folder_that_has_any_document_of_a_bundle(executions, tmp_path, name):
    (tmp_path / "it" / name).parent.mkdir(parents=True)
    (tmp_path / "it" / name).write_text("{}")
    assert "FAILED" in executions("verify", str(tmp_path / "it"), code=exit_codes.FAILED)


def test_an_unsigned_bundle_is_never_reported_as_signed(executions, home):
    kept(bench_at(home))
    checks = executions("verify", "-v", EXECUTION_ID).splitlines()
    assert checks[-1] == "segment-coins 1.2.0  COMPLETED  2026-09-22 12:00:08Z  unsigned"
    assert "workbench\tsignature\tunchecked\tthe bundle is not signed" in checks
    assert executions("audit").splitlines() == [
        "1 execution: 0 violations",
        "note: 1 execution without a signature; no key is configured here",
    ]
    executions("keys", "create")
    assert "incomplete: unsigned: 1" in executions("audit").splitlines()


def test_verify_needs_nothing_but_the_zip(home, tmp_path):
    bundle = kept(bench_at(home))
    zipped = shutil.make_archive(str(tmp_path / "bundle"), "zip", bundle.folder.parent, bundle.folder.name)
    elsewhere = tmp_path / "elsewhere"
    done = executed(["verify", zipped], elsewhere)
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        0,
        f"execution {EXECUTION_ID}, zip: verified",
    )
    assert not elsewhere.exists()


def test_a_zip_or_folder_is_read_as_an_execution_is(executions, home, tmp_path):
    bundle = kept(bench_at(home))
    zipped = tmp_path / "one.zip"
    executions("export", EXECUTION_ID, "-o", str(zipped))
    shown = executions("show", EXECUTION_ID)
    for target in (str(zipped), str(bundle.folder)):
        where = f"bundle\t{target}, not verified; 'executions verify {target}' does it\n"
        assert executions("show", target) == shown.replace(f"bundle\t{bundle.folder}\narchive\tarchived\n", where)
        for command in (["outputs"], ["logs"], ["logs", "--stderr", "--json"], ["logs", "-f"], ["prov"]):
            assert executions(command[0], target, *command[1:]) == executions(command[0], EXECUTION_ID, *command[1:])
        executions("outputs", target, "regions.csv", "-o", str(tmp_path / "regions.csv"))
        assert (tmp_path / "regions.csv").read_bytes() == OUTPUTS["outputs/regions.csv"]
        assert executions("diff", target, EXECUTION_ID) == f"{EXECUTION_ID} and {EXECUTION_ID} do not differ\n"
    document = json.loads(executions("show", str(zipped), "--json"))
    assert (document["id"], document["folder"], document["sealed"]) == (EXECUTION_ID, None, True)


def test_in_the_workbench_folder_an_id_is_that_of_an_open_execution(executions, home, monkeypatch):
    begun(bench_at(home), record_of(end=Status.EXECUTING))
    monkeypatch.chdir(bench_at(home).folder)
    assert f"bundle\t{bench_at(home).folder / EXECUTION_ID}\n" in executions("show", EXECUTION_ID)


@pytest.mark.long
def test_reading_a_zip_needs_no_home(home, tmp_path):
    bundle = kept(bench_at(home))
    zipped = shutil.make_archive(str(tmp_path / "bundle"), "zip", bundle.folder.parent, bundle.folder.name)
    elsewhere = tmp_path / "elsewhere"
    assert executed(["logs", zipped], elsewhere).stdout == (bundle.folder / "outputs/stdout.log").read_text()
    assert not elsewhere.exists()


def test_a_zip_that_cannot_be_read_as_one_execution_is_refused_by_name(executions, home, tmp_path):
    bundle = kept(bench_at(home))
    kept(bench_at(home), OTHER_ID)
    two, lean, damaged = (str(tmp_path / name) for name in ("two.zip", "lean.zip", "damaged"))
    executions("export", EXECUTION_ID, OTHER_ID, "-o", two)
    executions("export", EXECUTION_ID, "-o", lean, "--level", "metadata")
    assert f"{two} holds 2 bundles" in executions("show", two, code=exit_codes.REQUEST)
    assert f"{lean} does not have outputs/stdout.log" in executions("logs", lean, code=exit_codes.NOT_THERE)
    assert "segment-coins" in executions("show", lean)
    shutil.copytree(bundle.folder, damaged)
    forged = b"*" * len(OUTPUTS["outputs/regions.csv"])
    for content, words in ((forged, "has the digest"), (forged + b"*", "has more than the recorded")):
        Path(damaged, "outputs/regions.csv").write_bytes(content)
        refused = executions("outputs", damaged, "regions.csv", "-o", f"{tmp_path / 'x'}", code=exit_codes.WORLD)
        assert f"outputs/regions.csv of {damaged} has" in refused
        assert words in refused
    with Path(damaged, "metadata/method.json").open("ab") as file:
        file.truncate(1 << 40)
    refused = executions("show", damaged, code=exit_codes.WORLD)
    assert f"{damaged}: metadata/method.json has {1 << 40} bytes; the limit for a document is" in refused
    assert not (tmp_path / "x").exists()
    (tmp_path / "text.zip").write_text("no zip")
    assert "it is not a zip" in executions("prov", str(tmp_path / "text.zip"), code=exit_codes.WORLD)
    assert "does not exist" in executions("show", str(tmp_path / "none.zip"), code=exit_codes.NOT_THERE)


def test_an_end_that_was_found_later_is_shown_as_an_interval(executions, home):
    ended = advance(
        a_job_status(Status.EXECUTING),
        Status.FAILED,
        NOON + timedelta(seconds=300),
        observer=Observer.HOOK,
        reason=Reason.LOST,
    )
    kept(bench_at(home), job_status=with_end_after(ended, NOON + timedelta(seconds=62.5)))
    shown = executions("show", EXECUTION_ID)
    assert "\nfinished\tbetween 2026-09-22 12:01:02Z and 2026-09-22 12:05:00Z\ntook\tat least 0:01:00\n" in shown
    assert "\t≥ 0:01:00\t" in executions("list")
    document = json.loads(executions("show", EXECUTION_ID, "--json"))["jobStatus"]
    assert document["finished"] < document["finishedBefore"] == document["history"][-1]["time"]


def test_the_returned_value_is_shown_shortened(executions, home):
    returned = Returned(type="builtins.list", value=["x" * 600])
    kept(bench_at(home), instance=an_instance(usage=Usage(returned=returned)))
    (line,) = [line for line in executions("show", EXECUTION_ID).splitlines() if line.startswith("returned\t")]
    assert line == f'returned\t["{"x" * 498}…'


def test_the_methods_own_time_is_shown_apart_from_a_long_wait(executions, home):
    kept(bench_at(home), instance=an_instance(usage=Usage(wall_seconds=0.06)))
    kept(bench_at(home), OTHER_ID, instance=an_instance(usage=Usage(wall_seconds=5.5)))
    assert "\ntook\t6.00 s, of which the Method 0.06 s\n" in executions("show", EXECUTION_ID)
    assert "\ntook\t6.00 s\n" in executions("show", OTHER_ID)


def test_a_file_of_a_package_with_relative_imports_is_refused_with_the_name_of_its_module(
    executions, tmp_path, monkeypatch
):
    package = tmp_path / "src/tidal/sub"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package.parent / "const.py").write_text("FACTOR = 3\n")
    (package / "mod.py").write_text("from ..const import FACTOR\ndef fn() -> None: ...\n")
    monkeypatch.chdir(tmp_path)
    refused = executions("run", "src/tidal/sub/mod.py:fn", code=exit_codes.REQUEST)
    assert f"Give the name of its module in the folder {tmp_path / 'src'}: tidal.sub.mod:fn\n" in refused
    monkeypatch.chdir(tmp_path / "src")
    refused = executions("run", "tidal/sub/mod.py:fn", code=exit_codes.REQUEST)
    assert refused.endswith("Give the name of its module: tidal.sub.mod:fn\n")


def test_a_run_that_failed_before_its_code_shows_no_time_of_the_method_and_no_internal_traceback(executions, home):
    raised = Raised(type="InputError", message="Input 'f' cannot be read", traceback="Traceback\n  staging.py\n")
    instance = an_instance(usage=Usage(wall_seconds=0.06, exception=raised))
    for execution_id, began in ((EXECUTION_ID, True), (OTHER_ID, False)):
        job_status = a_job_status(Status.SCHEDULED, execution_id=execution_id, started=began)
        steps = [Status.FAILED] if began else [Status.STARTED, Status.FAILED]
        for seconds, status in enumerate(steps, start=60):
            job_status = advance(job_status, status, NOON + timedelta(seconds=seconds), observer=Observer.HOOK)
        begun(bench_at(home), record_of(execution_id, job_status=job_status, instance=instance))
    shown = executions("show", EXECUTION_ID)
    assert ", of which the Method 0.06 s\n" in shown
    assert "staging.py" in shown
    shown = executions("show", OTHER_ID)
    assert "of which the Method" not in shown
    assert "staging.py" not in shown
    assert "\nerror\tInputError: Input 'f' cannot be read\n" in shown


def test_show_names_the_attempts_and_shortens_long_texts(executions, home):
    job_status = a_job_status(Status.EXECUTING)
    for kind, attempt, message in (
        (EntryKind.ATTEMPT_FAILED, 1, error_text(Raised(type="SystemExit", message="", traceback=""))),
        (EntryKind.ATTEMPT, 2, None),
        (EntryKind.NOTE, 2, "x" * 600),
    ):
        job_status = add_entry(
            job_status, kind, job_status.updated, observer=Observer.HOOK, message=message, attempt=attempt
        )
    metrics = Metrics(params={"long": "p" * 600}, metrics=(Metric(name="big", value=10**400, time=NOON),))
    begun(bench_at(home), record_of(job_status=job_status, metrics=metrics))
    shown = executions("show", EXECUTION_ID)
    entries = [line.rsplit("\t", 1)[1] for line in shown.splitlines() if line.startswith("history\t")]
    assert entries[-3:] == ["attempt 1 failed: SystemExit", "attempt 2", f"note {'x' * 500}…"]
    assert f'param\tlong\t"{"p" * 499}…\n' in shown
    assert format_number(10**400) == "1.00000e+400"
    assert [format_number(number) for number in (10**19, True, 7)] == [str(10**19), "True", "7"]


def test_show_says_which_input_is_incomplete(executions, home):
    request = a_request(values={"url": "https://example.org/", "threshold": 0.3}, files=(), rerun={"url": "caller"})
    begun(bench_at(home), record_of(request=request))
    shown = executions("show", EXECUTION_ID)
    assert "input\turl\thttps://example.org/ (incomplete; a rerun asks for it)\n" in shown.replace('"', "")
    assert "input\tthreshold\t0.3\n" in shown


@pytest.mark.long
def test_verify_and_import_say_that_listed_files_are_absent(home, tmp_path):
    kept(bench_at(home))
    zipped = str(tmp_path / "metadata.zip")
    assert executed(["export", EXECUTION_ID, "--level", "metadata", "-o", zipped], home).returncode == 0
    absent = "listed files are absent: it was exported with the level 'metadata'"
    for command in ("verify", "import"):
        done = executed([command, zipped], tmp_path / "elsewhere")
        assert (done.returncode, absent in done.stderr) == (0, True), done.stderr


def test_settle_seals_an_unfinished_execution(executions, home, prefect_server):
    forget_flows()
    begun(bench_at(home), record_of())
    assert f"{EXECUTION_ID}\tarchived" in executions("settle", "--once")
    assert "Nothing to settle" in executions("settle", "--once")


def test_an_execution_is_listed_from_its_first_moment(executions, home):
    bench = bench_at(home)
    begun(bench, record_of(job_status=a_job_status(Status.EXECUTING)))
    bench.leases.release(EXECUTION_ID)
    bench.ledger.remove(EXECUTION_ID)
    assert not bench.ledger.list().rows
    assert executions("list").startswith(f"{EXECUTION_ID}\tEXECUTING\t")


def test_a_rebuilt_ledger_gives_the_same_list(executions, home):
    kept(bench_at(home))
    kept(bench_at(home), OTHER_ID)
    before = executions("list", "--json")
    for path in home.glob("ledger.db*"):
        path.unlink()
    assert "2 executions" in executions("ledger", "rebuild")
    assert executions("list", "--json") == before


def test_methods_are_listed_and_shown(executions, home):
    kept(bench_at(home))
    assert executions("methods", "list").startswith("segment-coins\t1.2.0\tSegment coins")
    assert "input\tthreshold" in executions("methods", "show", "segment-coins")
    assert json.loads(executions("methods", "show", "segment-coins", "--json"))["description"]["inputs"]


# --- exit codes and messages -------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["list", "--bogus"], exit_codes.REQUEST),
        (["nonsense"], exit_codes.REQUEST),
        (["list", "--status", "happy"], exit_codes.REQUEST),
        (["list", "--since", "never"], exit_codes.REQUEST),
        (["list", "--json", "--csv"], exit_codes.REQUEST),
        (["list", "--after", "nonsense"], exit_codes.REQUEST),
        (["logs", "0b1e", "--follow", "--json"], exit_codes.REQUEST),
        (["show", "ffff"], exit_codes.NOT_THERE),
        (["verify", "no/such/folder"], exit_codes.NOT_THERE),
        (["methods", "show", "nothing"], exit_codes.NOT_THERE),
        (["outputs", "0b1e", "-o", "x"], exit_codes.REQUEST),
    ],
)
def test_each_kind_of_error_has_its_exit_code(executions, home, arguments, code):
    kept(bench_at(home))
    message = executions(*arguments, code=code)
    assert message.startswith("error: ")
    assert "Traceback" not in message


def test_an_unreadable_ledger_exits_with_4(executions, home):
    kept(bench_at(home))
    for path in home.glob("ledger.db*"):
        path.unlink()
    (home / "ledger.db").write_bytes(b"no database" * 1000)
    assert "ledger" in executions("list", code=exit_codes.WORLD)


def test_an_ambiguous_prefix_lists_the_candidates(executions, home):
    kept(bench_at(home))
    kept(bench_at(home), OTHER_ID)
    message = executions("show", "0b1e", code=exit_codes.REQUEST)
    assert EXECUTION_ID in message
    assert OTHER_ID in message


def test_debug_prints_the_traceback(executions, home):
    assert "Traceback" in executions("show", "ffff", "--debug", code=exit_codes.NOT_THERE)


def test_an_invalid_setting_is_named(executions, home, monkeypatch):
    monkeypatch.setenv("EXECUTIONS_INPUT_LIMIT", "much")
    assert "EXECUTIONS_INPUT_LIMIT" in executions("list", code=exit_codes.REQUEST)


def test_every_exit_code_is_documented():
    page = (Path(__file__).parents[1] / "docs/commands.md").read_text(encoding="utf-8")
    for name, code in vars(exit_codes).items():
        if name.isupper():
            assert f"| {code} |" in page, name
            assert f"\n{code} " in (exit_codes.__doc__ or ""), name


def test_other_errors_exit_with_4():
    assert exit_codes.code_of(NotFoundError("x")) == exit_codes.NOT_THERE
    assert exit_codes.code_of(OSError("x")) == exit_codes.WORLD


def test_a_closed_pipe_prints_no_error(home):
    kept(bench_at(home), outputs={**OUTPUTS, "outputs/stdout.log": b"line\n" * 1_000_000})
    with subprocess.Popen(
        [COMMAND, "logs", EXECUTION_ID],
        env=os.environ | {"EXECUTIONS_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as made:
        assert made.stdout
        assert made.stderr
        assert made.stdout.readline() == b"line\n"
        made.stdout.close()
        assert made.stderr.read() == b""
        assert made.wait(60) == exit_codes.NO_READER


@pytest.mark.parametrize("arguments", [["methods", "list"], ["methods", "show", "count-coins"]])
def test_ctrl_c_ends_a_command_with_a_line_and_its_code(home, monkeypatch, capsys, arguments):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prefect_executions.cli.list.open_catalog", interrupted)
    assert main(arguments) == exit_codes.INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.long
@pytest.mark.parametrize("arguments", [["--help"], ["list", "--help"]])
def test_help_into_a_closed_pipe_prints_no_error(arguments):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        done = subprocess.run([COMMAND, *arguments], stdout=nobody, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (exit_codes.NO_READER, b"")


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        *(
            pytest.param(arguments, marks=pytest.mark.long)
            for arguments in (["--help"], ["show", EXECUTION_ID], ["verify", EXECUTION_ID])
        ),
    ],
)
def test_commands_that_do_not_need_prefect_do_not_import_it(home, arguments):
    kept(bench_at(home))
    code = (
        "import sys\nfrom prefect_executions.cli.app import main\n"
        f"assert main({arguments!r}) == 0\n"
        "found = {'prefect', 's3fs', 'sqlalchemy', 'fastapi', 'numpy', 're2'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_does_not_load_the_search_language():
    code = (
        "import sys\nfrom prefect_executions.cli.app import main\n"
        "assert main(['--help']) == 0\n"
        "found = [name for name in sys.modules if name.startswith('prefect_executions.query.')]\n"
        "assert found == ['prefect_executions.query.filter'], found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# --- doctor ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefect", "package", "version", "outcome", "word"),
    [
        ("3.8.8", "fastapi", "0.150.0", "ok", ""),
        ("3.8.8", "fastapi", "0.139.2", "ok", ""),
        ("3.8.8", "fastapi", "0.151.0", "fail", "since 0.151 it breaks its deployments"),
        ("3.8.8", "fastapi", "0.155.1", "fail", "since 0.155 it breaks its server"),
        ("3.8.8", "fastapi", "1.0", "fail", "server"),
        ("3.8.8", "fastapi", "0.115.0", "warn", "older"),
        ("3.9.1", "fastapi", "0.150.0", "ok", ""),
        (
            "3.9.1",
            "fastapi",
            "0.165.0",
            "fail",
            "incompatible with Prefect 3.9.1: since 0.151 it breaks its deployments",
        ),
        ("3.10.0", "fastapi", "0.150.0", "ok", ""),
        ("3.8.8", "sqlalchemy", "2.0.58", "ok", ""),
        ("3.8.8", "sqlalchemy", "2.1.0", "warn", "schedules"),
        ("3.8.8", "sqlalchemy", "3.0", "warn", "schedules"),
        ("3.9.1", "sqlalchemy", "2.0.58", "ok", ""),
        ("3.9.1", "sqlalchemy", "2.1.9", "warn", "newer"),
        ("3.9.1", "pydantic", "2.14.4", "ok", ""),
        ("3.9.1", "pydantic", "3.0.0b1", "warn", "newer"),
    ],
)
def test_the_doctor_names_a_version_that_breaks_prefect(prefect, package, version, outcome, word):
    found = check_version(package, version, prefect)
    assert (found.outcome, found.subject) == (outcome, package)
    assert word in found.found
    assert (outcome == "ok") == (not found.advice)


@pytest.mark.parametrize(
    ("version", "outcome"),
    [("3.8.8", "ok"), ("3.9.0", "ok"), ("3.9.17", "ok"), ("3.8.7", "warn"), ("3.10.0", "warn"), ("4.0.0rc1", "warn")],
)
def test_the_doctor_knows_the_tested_versions_of_prefect(version, outcome):
    found = check_prefect(version)
    assert found.outcome == outcome
    assert (found.advice == "Run: pip install 'prefect>=3.8.8,<3.10'") is (outcome == "warn")


def test_the_doctor_and_the_package_allow_the_same_versions():
    required = [Requirement(line) for line in requires("prefect-executions") or [] if "extra ==" not in line]
    allowed = {requirement.name: requirement.specifier for requirement in required}
    assert str(allowed["prefect"]) == "<3.10,>=3.8.8"
    for package in ("fastapi", "sqlalchemy", "pydantic"):
        (advice,) = {check_version(package, "0.0", prefect).advice for prefect in ("3.8.8", "3.9.1")}
        assert advice == f"Run: pip install '{package}{','.join(reversed(str(allowed[package]).split(',')))}'"


@pytest.mark.parametrize(
    ("given", "outcomes", "words"),
    [
        ({}, ["ok"], "process can run scripts"),
        ({"CPUS": "1"}, ["ok"], "process can run scripts"),
        ({"GPUS": "1"}, ["fail"], "gpus"),
        ({"RUNTIME_IMAGE": "awk:1"}, ["warn", "ok"], "ignores it"),
        ({"RUNTIME": "dokcer"}, ["fail"], "choose one of process, docker, kubernetes"),
        ({"RUNTIME": "docker"}, ["fail"], "Docker engine"),
        ({"RUNTIME": "kubernetes"}, ["fail"], "No Kubernetes cluster"),
    ],
)
def test_the_doctor_checks_whether_scripts_can_run(given, outcomes, words, monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    for name, value in given.items():
        monkeypatch.setenv(f"EXECUTIONS_{name}", value)
    found = list(check_runtime(Settings.read()))
    assert [finding.outcome for finding in found] == outcomes
    assert words in found[0].found
    assert all(finding.advice for finding in found if finding.outcome != "ok")


@pytest.mark.parametrize(
    ("image", "outcome", "words"),
    [
        ("executions-test", "ok", "in executions-test"),
        ("", "warn", "refused"),
        ("no:1", "warn", "docker pull no:1"),
    ],
)
def test_the_doctor_checks_whether_the_image_is_available(need, image, outcome, words, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", need("EXECUTIONS_TEST_DOCKER", "a Docker engine"))
    docker = {"RUNTIME": "docker", "RUNTIME_IMAGE": image, "RUNTIME_NETWORK": "host"}
    for name, value in docker.items():
        monkeypatch.setenv(f"EXECUTIONS_{name}", value)
    (found,) = check_runtime(Settings.read())
    assert found.outcome == outcome
    assert words in found.found + found.advice


def test_the_doctor_names_a_misspelt_setting():
    variables = [
        "HOME",
        "EXECUTIONS_HOME",
        "executions_home",
        "EXECUTIONS_ARCHIV",
        "EXECUTIONS_QQQ",
        "EXECUTIONS_TEST_LONG",
    ]
    near, far = check_unknown_settings(variables)
    assert (near.outcome, near.subject, near.advice) == (
        "warn",
        "EXECUTIONS_ARCHIV",
        "Did you mean EXECUTIONS_ARCHIVE?",
    )
    assert (far.subject, far.advice) == ("EXECUTIONS_QQQ", "docs/settings.md lists all settings.")


@pytest.mark.long
def test_the_doctor_reports_the_version_of_a_configured_api(prefect_server):
    finding = check_api("remedy")
    assert (finding.outcome, finding.advice) == ("ok", "")
    assert finding.found.endswith(f" answers, version {prefect.__version__}")


@pytest.mark.long
def test_the_doctor_reports_each_finding_with_its_remedy(home, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    more = {"EXECUTIONS_ARCHIVE": str(tmp_path / "file/archive"), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = executed(["doctor", "--json"], home, **more)
    report = json.loads(done.stdout)
    outcomes = {finding["subject"]: finding["outcome"] for finding in report["findings"]}
    assert done.returncode == exit_codes.WORLD
    assert not report["healthy"]
    assert outcomes["archive"] == outcomes["Prefect's API"] == "fail"
    assert outcomes["ledger"] == outcomes["workbench"] == outcomes["fastapi"] == outcomes["EXECUTIONS_HOME"] == "ok"
    assert all(finding["advice"] for finding in report["findings"] if finding["outcome"] != "ok")


@pytest.mark.long
def test_the_doctor_shows_problems_first_and_no_settings(executions, home, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("EXECUTIONS_ARCHIV", "misspelt")
    lines = [line.split("\t") for line in executions("doctor", code=exit_codes.WORLD).splitlines()]
    outcomes = [line[0] for line in lines[:-1]]
    assert outcomes == sorted(outcomes, key=["fail", "warn", "ok"].index)
    assert lines[0][1] == "Prefect's API"
    assert "executions doctor" not in lines[0][2]
    assert "EXECUTIONS_ARCHIV" in [line[1] for line in lines[: outcomes.index("ok")]]
    assert "EXECUTIONS_HOME" not in [line[1] for line in lines[:-1]]
    assert lines[-1] == [f"1 of {len(outcomes)} checks failed"]


def test_the_doctor_tells_a_running_execution_from_a_dead_and_a_pending_one(home):
    bench = bench_at(home)
    dead = an_instance(process=dead_process())
    begun(bench, record_of(job_status=a_job_status(Status.EXECUTING), instance=dead))
    begun(bench, record_of(OTHER_ID, job_status=a_job_status(Status.EXECUTING, execution_id=OTHER_ID)))
    found = {finding.subject: finding for finding in _open_executions(Catalog(bench))}
    assert (found["unfinished"].outcome, found["unfinished"].found[:11]) == ("warn", "1 execution")
    assert (found["running"].outcome, found["running"].found) == ("ok", "1 execution not ended yet")
    for execution_id in (EXECUTION_ID, OTHER_ID):
        bench.leases.release(execution_id)


def test_the_doctor_reports_an_archive_that_lost_its_executions(home):
    bench = bench_at(home)
    kept(bench)
    assert _missing(bench) == []
    shutil.rmtree(home / "archive")
    (home / "archive").mkdir()  # as if its disk were not mounted
    [finding] = _missing(bench_at(home))
    assert (finding.outcome, finding.subject) == ("fail", "archive")
    assert EXECUTION_ID in finding.found


@pytest.mark.long
def test_the_doctor_prints_no_password(executions, home, monkeypatch):
    monkeypatch.setenv("EXECUTIONS_LEDGER", "postgresql://me:pl4nted-s3cret@127.0.0.1:9/ledger")
    monkeypatch.setenv("EXECUTIONS_ARCHIVE", "s3://me:pl4nted-s3cret@bucket/prefix")
    monkeypatch.setenv("EXECUTIONS_ARCHIVE_TIMEOUT", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "pl4nted-s3cret" not in executions("doctor", "--all", code=exit_codes.WORLD)


# --- run -------------------------------------------------------------------------


@pytest.fixture
def flow(tmp_path) -> str:
    (tmp_path / "greeting.py").write_text(FLOW)
    return f"{tmp_path / 'greeting.py'}:greet"


@pytest.mark.long
def test_a_run_without_an_api_starts_a_local_server_and_is_recorded(home, flow, tmp_path):
    embedded = {"PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_PROFILES_PATH": str(tmp_path / "profiles.toml")}
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= embedded | {"EXECUTIONS_HOME": str(home)}
    done = subprocess.run(
        [COMMAND, "run", flow, "-p", "name=Ada"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Starting a local Prefect server" in done.stderr
    shown = subprocess.run(
        [COMMAND, "server", "stop", "--json"], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(shown.stdout) == {"stopped": True}
    shown = dict(line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line)
    assert shown["status"] == "COMPLETED"
    assert "hello Ada\n" in done.stdout
    assert f"Next: executions show {shown['execution']}" in done.stdout
    assert executed(["verify", shown["execution"][:8]], home).returncode == 0
    assert executed(["logs", shown["execution"]], home).stdout == "hello Ada\n"


@pytest.mark.long
def test_watch_follows_the_runs_on_the_local_server(home, flow, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"} | {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_PROFILES_PATH": str(tmp_path / "profiles.toml"),
        "EXECUTIONS_HOME": str(home),
    }

    def run(*arguments: str) -> str:
        return subprocess.run([COMMAND, *arguments], env=environment, capture_output=True, text=True, check=True).stdout

    none = subprocess.run([COMMAND, "watch", "--all"], env=environment, capture_output=True, text=True, check=False)
    assert "No Prefect server is configured" in none.stderr
    run("run", flow, "--quiet")
    with subprocess.Popen(
        [COMMAND, "watch", "--all", "--json"], env=environment, stdout=subprocess.PIPE, text=True
    ) as watching:
        second = run("run", flow, "--quiet").strip()
        changes = (json.loads(line) for line in watching.stdout or ())
        found = next((line for line in changes if (line["id"], line["status"]) == (second, "COMPLETED")), None)
        watching.terminate()
    run("server", "stop")
    assert found


@pytest.mark.long
def test_a_run_with_json_prints_only_the_document_to_standard_output(prefect_server, home, flow):
    done = executed(["run", flow, "--json", "-p", "fail=true"], home)
    document = json.loads(done.stdout)
    assert done.returncode == exit_codes.FAILED
    assert (document["status"], document["reason"]) == ("FAILED", "error")
    assert document["error"] == {"type": "ValueError", "message": "nobody is there"}
    assert "hello you" in done.stderr
    assert executed(["verify", document["id"]], home).returncode == 0


@pytest.mark.long
def test_a_failed_run_shows_its_error_once(prefect_server, home, flow):
    done = executed(["run", flow, "-p", "fail=true"], home)
    assert done.returncode == exit_codes.FAILED
    assert (done.stdout + done.stderr).count("\nValueError: nobody is there") == 1
    shown = dict(line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line)
    assert shown["error"] == "ValueError: nobody is there"
    assert shown["outputs"] == "greeting.txt (9 B)"
    assert f"Next: executions show {shown['execution']}\n" in done.stdout


def test_a_failed_run_points_to_its_error_output_if_it_has_any():
    logs = [an_output("outputs/stderr.log", content) for content in (b"a warning", b"")]
    records = [a_record(job_status=a_job_status(Status.FAILED, outputs=[log])) for log in logs]
    proposed = [_next_commands(record, StorageState(None, sealed=True, archive="archived")) for record in records]
    assert [words.split()[:3] for words in proposed] == [["Next:", "executions", word] for word in ("logs", "show")]


def test_a_run_that_could_not_be_sealed_shows_its_error_and_the_remedy():
    open_record = a_record(job_status=a_job_status(Status.EXECUTING))
    storage = StorageState(None, sealed=False, archive="local")
    facts = dict(_facts(open_record, storage, OSError(28, "No space left on device")))
    assert facts["record"] == "not sealed yet"
    assert facts["error"] == "OSError: [Errno 28] No space left on device"
    assert _next_commands(open_record, storage).startswith("Next: executions doctor\n      executions settle --once\n")


def test_a_run_whose_archive_failed_points_to_the_remedy():
    assert "settle --once" in _next_commands(a_record(), StorageState(None, sealed=True, archive="pending"))


@pytest.mark.long
def test_a_quiet_run_prints_only_its_id(prefect_server, home, flow):
    done = executed(["run", flow, "--quiet"], home)
    assert (done.returncode, done.stderr) == (0, "")
    assert executed(["show", done.stdout.strip()], home).returncode == 0


def test_the_summary_of_a_run_has_its_last_metrics_and_its_first_outputs(prefect_server, executions, tmp_path):
    (tmp_path / "many.py").write_text("""
from prefect_executions import current_execution, method

@method
def many() -> None:
    execution = current_execution()
    for number in range(12):
        execution.output(f"tiles/{number:02}.bin").write_bytes(bytes(1234))
        execution.log_metrics({"loss": 1 / (number + 1)}, step=number)
    execution.log_metrics({"tiles": 12})
""")
    shown = dict(
        line.split("\t", 1) for line in executions("run", f"{tmp_path / 'many.py'}:many").splitlines() if "\t" in line
    )
    assert shown["metrics"] == "loss 0.0833333, tiles 12"
    assert shown["outputs"].startswith("tiles/00.bin (1.2 kB), tiles/01.bin (1.2 kB), ")
    assert shown["outputs"].endswith("tiles/07.bin (1.2 kB), and 4 more")


@pytest.mark.long
def test_an_interrupted_run_is_sealed(prefect_server, home, flow):
    environment = os.environ | {"EXECUTIONS_HOME": str(home)}
    with subprocess.Popen(
        [COMMAND, "run", flow, "-p", "wait=200"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as made:
        until = time.monotonic() + 120
        while not list(home.glob("workbench/*/outputs/greeting.txt")) and time.monotonic() < until:
            time.sleep(0.1)
        made.send_signal(signal.SIGINT)
        _, errors = made.communicate(timeout=120)
    assert made.returncode == exit_codes.INTERRUPTED
    assert b"Interrupted. The record of" in errors
    assert b"is sealed as" in errors
    (row,) = json.loads(executed(["list", "--json"], home).stdout)["executions"]
    assert (row["status"], row["reason"]) == ("CANCELLED", None)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["{flow}", "-p", "bogus=1"], exit_codes.REQUEST, "bogus"),
        (["{flow}", "-p", "wait=soon"], exit_codes.REQUEST, "input 'wait' should be a valid number"),
        (["{file}:nobody"], exit_codes.NOT_THERE, "has no 'nobody'. Its flows: greet."),
        (["{file}:sys"], exit_codes.REQUEST, "is a module"),
        (["{file}"], exit_codes.REQUEST, "names no function. Give path.py:function"),
        (["{file}:"], exit_codes.REQUEST, "names no function"),
        ([""], exit_codes.REQUEST, "'' names no function"),
        (["nowhere.py:greet"], exit_codes.NOT_THERE, "there is no file nowhere.py"),
        (["nowhere_at_all:greet"], exit_codes.NOT_THERE, "there is no module 'nowhere_at_all'"),
        (["{flow}", "-p", "name"], exit_codes.REQUEST, "name=value"),
    ],
)
@pytest.mark.usefixtures("prefect_server")
def test_an_impossible_run_is_refused_with_one_message(executions, flow, arguments, code, word):
    asked = [one.format(flow=flow, file=flow.partition(":")[0]) for one in arguments]
    message = executions("run", *asked, code=code)
    assert word in message
    assert "Traceback" not in message
    assert not list(Settings.read().home.glob("workbench/*"))


BROKEN = [
    ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ("import os\nos.nothing", "AttributeError: module 'os' has no attribute 'nothing'"),
    ("def greet(:", "SyntaxError: invalid syntax"),
    ("raise ValueError('not today')", "ValueError: not today"),
]


@pytest.fixture
def broken(tmp_path, monkeypatch) -> Iterator[Path]:
    """Return the path of a Method's file, in the working folder."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "broken.py"
    sys.modules.pop("broken", None)  # Prefect leaves a script there that raised


@pytest.mark.parametrize(("code", "word"), BROKEN)
@pytest.mark.parametrize("place", ["broken.py", "broken"])
def test_a_file_that_fails_to_import_is_reported_once_with_its_error(executions, broken, place, code, word):
    broken.write_text(code)
    _is_reported_once(executions("run", f"{place}:greet", code=exit_codes.REQUEST), place, word)


@pytest.mark.long
@pytest.mark.parametrize(("code", "word"), BROKEN)
@pytest.mark.parametrize("place", ["broken.py", "broken"])
def test_the_installed_command_reports_once_that_a_file_fails_to_import(home, broken, place, code, word):
    broken.write_text(code)
    done = executed(["run", f"{place}:greet"], home)
    assert done.returncode == exit_codes.REQUEST, done.stderr
    _is_reported_once(done.stderr, place, word)


def _is_reported_once(message: str, place: str, word: str) -> None:
    assert message.count(word) == 1
    assert f"{place} cannot be run: {word}" in message
    assert "Traceback" not in message


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_the_file_of_a_plain_function_runs_once(home, tmp_path):
    (tmp_path / "plain.py").write_text("print('ran')\n\ndef plain() -> int:\n    return 1\n")
    done = executed(["run", f"{tmp_path / 'plain.py'}:plain"], home)
    assert done.returncode == exit_codes.OK, done.stderr
    assert done.stdout.count("ran\n") == 1


@pytest.mark.usefixtures("prefect_server")
def test_inputs_are_read_from_standard_input(executions, home, flow, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"name": "Ada"}')))
    executions("run", flow, "--quiet", "--params", "-")
    background.drain()
    (request,) = home.glob("workbench/*/metadata/request.json")
    assert json.loads(request.read_text())["values"]["name"] == "Ada"
