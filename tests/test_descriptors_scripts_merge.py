"""Scripts that share a process: each in its own shell, and marks that say where each begins and ends."""

from __future__ import annotations

import subprocess

from hypothesis import given
from hypothesis import strategies as st

from prefect_executions.descriptors.scripts import Mark, MarkReader, Script, merge_scripts

MARK = "0f6b2c0e6a53"


def run(folder, **scripts):
    by_name = {name: Script(text=text) if isinstance(text, str) else text for name, text in scripts.items()}
    (folder / "entrypoint.sh").write_text(merge_scripts(by_name, MARK))
    return subprocess.run(["/bin/sh", folder / "entrypoint.sh"], capture_output=True, cwd=folder, check=False)


def read(*pieces):
    """Return the marks in *pieces*, and the bytes without them."""
    reader = MarkReader(MARK)
    parts = [part for piece in pieces for part in reader.feed(piece)] + [reader.finish()]
    return [part for part in parts if isinstance(part, Mark)], b"".join(p for p in parts if isinstance(p, bytes))


def test_scripts_run_one_after_the_other_with_marks(tmp_path):
    done = run(tmp_path, deploy="printf one; echo two >&2\n", execute="cd /; exit 7\n")

    assert (done.returncode, done.stderr) == (7, b"two\n")
    marks = [Mark("deploy", None), Mark("deploy", 0), Mark("execute", None), Mark("execute", 7)]
    assert read(done.stdout) == (marks, b"one")


def test_no_script_runs_after_a_failure(tmp_path):
    done = run(tmp_path, deploy="exit 3\n", execute="echo executed\n")
    assert (done.returncode, read(done.stdout)) == (3, ([Mark("deploy", None), Mark("deploy", 3)], b""))


def test_each_has_its_own_shell_and_no_text_breaks_what_comes_after_it(tmp_path):
    bash = Script(text='#!/bin/bash\nx=(a b); echo "${x[1]}"\n', command=("/usr/bin/env", "bash"))
    done = run(tmp_path, deploy="set -e; cat <<END\n$((1+1)) it's \\ \"\nEND\ncode=9; f() (\n", execute=bash)
    assert done.returncode == 2, "the shell's own word for what it cannot read"
    done = run(tmp_path, deploy="cat <<'END'\n$x '\nEND\ncode=9; here=/nowhere; exec 3>&1\n", execute=bash)
    assert (done.returncode, read(done.stdout)[1]) == (0, b"$x '\nb\n")


def test_output_that_resembles_a_mark_is_preserved(tmp_path):
    for text in (b"\x1e", b"\x1e" + MARK.encode(), b"\x1e" + MARK.encode() + b" end deploy\n", b"\x1eother begin x\n"):
        assert read(b"a" + text, b"b") == ([], b"a" + text + b"b")


@given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from([b"begin deploy", b"end execute 143"]))), st.data())
def test_marks_are_found_however_the_bytes_are_cut(parts, data):
    plain = [part for part in parts if not part.startswith((b"begin ", b"end "))]
    output = b"".join(part if part in plain else b"\x1e" + MARK.encode() + b" " + part + b"\n" for part in parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(output)), max_size=8)))
    pieces = [output[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(output)], strict=True)]
    marks, rest = read(*pieces)

    assert rest == b"".join(plain)
    assert len(marks) == len(parts) - len(plain)
