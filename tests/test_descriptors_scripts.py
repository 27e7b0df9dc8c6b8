"""The scripts of a descriptor Method: every value arrives unchanged, and none is executed."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from prefect_executions.descriptors.inputs import values_of
from prefect_executions.descriptors.loader import document_of, method_of, read_method
from prefect_executions.descriptors.scripts import DEPLOY, EXECUTE, MAX_VARIABLE_BYTES, scripts_of
from prefect_executions.errors import InputError, MethodError

PAGE = Path(__file__).parents[1] / "docs" / "descriptors.md"
SHELLS = [shell for shell in ("/bin/sh", shutil.which("bash"), shutil.which("busybox")) if shell]


def a_method(*lines, deploy=(), **schemas):
    inputs = {name: schema if "schema" in schema else {"schema": schema} for name, schema in schemas.items()}
    parameters = [{"name": "execute-script", "value": list(lines)}, {"name": "deploy-script", "value": list(deploy)}]
    document = {"id": "m", "version": "1", "inputs": inputs, "additionalParameters": {"parameters": parameters}}
    return method_of(document, "m.json")


@pytest.mark.parametrize("lines", [("\ufeff#!/bin/sh\r", "echo $name\r"), ("#!/bin/sh\r\necho $name\r\n",)])
def test_a_script_from_windows_runs(tmp_path, lines):
    method = a_method(*lines, name={"type": "string"})
    data = json.dumps(document_of(method)).encode("utf-8-sig").replace(b", ", b",\r\n ")
    folder = tmp_path / "run"
    folder.mkdir()
    for described in (method, read_method(data, "m.json")):
        assert run(scripts_of(described, {"name": "Zoë"}, {}), folder) == "Zoë\n".encode()
    assert document_of(method)["additionalParameters"]["parameters"][0]["value"] == list(lines)


def run(made, folder, *, name=EXECUTE, shell=None):
    """Run a script as a runtime does, with nothing but its own environment, and return what it printed."""
    script = made.scripts[name]
    file = folder.with_name(f"{folder.name}.{name}")
    file.write_text(script.text, encoding="utf-8")
    command = (shell, "sh") if shell and shell.endswith("busybox") else (shell,) if shell else script.command
    secrets = {variable: secret.get_secret_value() for variable, secret in made.secrets.items()}
    ran = subprocess.run(
        [*command, str(file)],
        cwd=folder,
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", **made.environment, **secrets},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
    return ran.stdout


EVERYWHERE = (
    "printf %s {{ x-y }} > bare",
    "printf %s pre{{x-y}}post > joined",
    'printf %s "pre{{ x-y }}post" > double',
    "printf %s 'pre{{ x-y }}post' > single",
    'y={{ x-y }}; printf %s "$y" > assigned  # a comment with \'{{ x-y }} and {{ nobody }}',
    'printf %s "$(printf %s {{ x-y }}; printf .)" > substituted',
    'printf %s "$(printf %s "{{ x-y }}"; printf .)" > nested',
    'printf %s "$(case a in (b) ;; a) printf %s {{ x-y }};; esac; printf .)" > cased',
    'y=`printf %s {{ x-y }}; printf .`; printf %s "$y" > ticked',
    "(printf %s {{ x-y }}) > grouped",
    "case {{ x-y }} in {{ x-y }}) printf yes > matched;; esac",
    "cat <<A > here; cat <<-'B' > quoted",
    "<{{ x-y }}>'\"",
    "A",
    "\t\t$(false) `",
    "\tB",
    'printf %s "$x_y" > environment',
    "sh -c 'printf %s \"$1\" > argument' sh {{ x-y }}",
)
ARRIVE = {
    "bare": "{}",
    "joined": "pre{}post",
    "double": "pre{}post",
    "single": "pre{}post",
    "assigned": "{}",
    "substituted": "{}.",
    "nested": "{}.",
    "cased": "{}.",
    "ticked": "{}.",
    "grouped": "{}",
    "matched": "yes",
    "environment": "{}",
    "argument": "{}",
}

hostile = st.lists(
    st.sampled_from(
        (
            *("$(touch PWNED)", "`touch PWNED`", "'", '"', "\\", "\n", "\r", ";touch PWNED;", "' ;touch PWNED; '"),
            *(
                '";touch PWNED;"',
                "\nA\ntouch PWNED\n",
                "${x_y}",
                "$x_y",
                "${_input_x_y}",
                "$$",
                "$((1+1))",
                "{{ x-y }}",
            ),
            *("*", "?", "[a-z]", "~", "!", "#", "%s", "%n", "&", "|", "> PWNED", "-n", "--", "\t", " ", "\x01", "\x7f"),
            *("=", "{a,b}", "$'\\x41'", "\\n", "é", "𝄞", "\u2028", "esac", ")", "}", "x"),
        )
    )
    | st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=5),
    max_size=8,
).map("".join)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=hostile, shell=st.sampled_from(SHELLS))
def test_a_value_arrives_unchanged_between_all_quotes_and_is_never_executed(value, shell, tmp_path):
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()

    printed = run(scripts_of(READS_EVERYWHERE, {"x-y": value}, {}), folder, shell=shell)

    assert printed == b""
    arrived = {file.name: file.read_bytes().decode() for file in folder.iterdir()}
    assert arrived.pop("here") == f"<{value}>'\"\n"
    assert arrived.pop("quoted") == "$(false) `\n"
    assert arrived == {name: template.format("\0").replace("\0", value) for name, template in ARRIVE.items()}


READS_EVERYWHERE = a_method(*EVERYWHERE, **{"x-y": {"type": "string"}})


def _nested(inner):
    word, expected = inner
    end = f"Z{len(word)}"  # a here-document within another one ends with a word of its own
    return st.sampled_from(
        [
            (f'"$(printf %s {word}; printf .)"', f"{expected}."),
            (f'"<$( (printf %s {word}) ; printf .)>"', f"<{expected}.>"),
            (f"'q\"'{word}\"'\"", f"q\"{expected}'"),
            (f'"$(case k in k) printf %s {word};; esac; printf .)"', f"{expected}."),
            (f"$(printf k){word}", f"k{expected}"),
            (f'"${{nothing-}}"{word}', expected),
            (f'"$(cat <<{end}\n$(printf %s {word}; printf .)\n{end}\n)"', f"{expected}."),
        ]
    )


WORDS = [("{{ x }}", "\0"), ('"{{x}}-"', "\0-"), ("'{{x}}'", "\0")]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.sampled_from([("{{ x }}", "\0"), ('"{{x}}-"', "\0-"), ("'{{x}}'", "\0")]),
        lambda i: i.flatmap(_nested),
        max_leaves=3,
    ),
    hostile,
)
def test_a_value_arrives_at_any_depth_of_nesting(tmp_path, nested, value):
    word, expected = nested
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)

    arrived = run(scripts_of(a_method(f"printf %s {word}", x={"type": "string"}), {"x": value}, {}), folder)

    assert arrived.decode() == expected.replace("\0", value)
    assert not list(folder.iterdir())


def test_a_megabyte_arrives_where_no_environment_could_hold_it(tmp_path):
    value = "a'$(touch PWNED)\n" * (1024 * 64)
    (tmp_path / "run").mkdir()
    method = a_method("printf %s {{ x }} > a", 'printf %s "$x" > b', "ls -d . > c", x={"type": "string"})

    made = scripts_of(method, {"x": value}, {})
    run(made, tmp_path / "run")

    assert (made.unexported, dict(made.environment)) == (("x",), {})
    assert [(tmp_path / "run" / name).read_text() for name in "abc"] == [value, value, ".\n"]


def test_an_environment_is_filled_up_to_the_limit_of_the_system(tmp_path):
    longest = "x" * (MAX_VARIABLE_BYTES - len("x0=") - 1)
    method = a_method("env > /dev/null", **{f"x{number}": {"type": "string"} for number in range(10)})
    (tmp_path / "run").mkdir()

    made = scripts_of(method, {f"x{number}": longest for number in range(10)}, {})
    run(made, tmp_path / "run")

    assert sorted(made.environment) == [f"x{number}" for number in range(8)]
    assert made.unexported == ("x8", "x9")


def test_every_type_of_value_has_one_text(tmp_path):
    values = {"a": 7, "b": 0.1, "c": True, "d": ["p q", "'"], "e": {"k": None}, "f": None, "g": []}
    schemas = {name: {} for name in values} | {"d": {"schema": {}, "maxOccurs": 9}, "g": {"schema": {}, "maxOccurs": 9}}
    method = a_method("printf '<%s>' {{a}} {{b}} {{c}} {{d}} \"{{d}}\" {{e}} {{f}} {{g}} {{left}}", left={}, **schemas)
    (tmp_path / "run").mkdir()

    made = scripts_of(method, values, {})

    assert run(made, tmp_path / "run").decode() == '<7><0.1><true><p q><\'><["p q", "\'"]><{"k": null}><><>'
    assert dict(made.environment) == {
        "a": "7",
        "b": "0.1",
        "c": "true",
        "d": '["p q", "\'"]',
        "e": '{"k": null}',
        "f": "",
        "g": "[]",
    }


def test_a_secret_is_not_in_the_text_and_arrives(tmp_path):
    method = a_method("printf %s '{{ key }}' \"$key\"", key={"format": "secret"}, other={"format": "secret"})
    secret = SecretStr("s3cr'et $(touch PWNED)")
    (tmp_path / "run").mkdir()

    made = scripts_of(method, {"key": "env:KEY"}, {"key": secret})

    assert run(made, tmp_path / "run").decode() == secret.get_secret_value() * 2
    assert "s3cr" not in made.scripts[EXECUTE].text
    assert "s3cr" not in repr(made)
    assert dict(made.environment) == {}
    assert not list((tmp_path / "run").iterdir())


def test_ccps_file_is_its_content_in_base64_and_its_variable_the_path(tmp_path):
    (tmp_path / "it's").write_bytes(b"\0\xff" * 1000)
    (tmp_path / "run").mkdir()
    method = a_method('cmp input "$file"', deploy=["echo {{file}} | base64 -d > input"], file={"format": "file"})

    made = scripts_of(method, {"file": str(tmp_path / "it's")}, {})

    assert (run(made, tmp_path / "run", name=DEPLOY), run(made, tmp_path / "run")) == (b"", b"")


@pytest.mark.parametrize("value", ["a\0b", ["a\0b"], {"k": "\0"}, "\ud800"])
def test_a_value_that_cannot_be_passed_to_a_script_is_refused(value):
    with pytest.raises(InputError, match=r"^input 'x' has (a NUL character|half a surrogate pair)"):
        scripts_of(a_method("true", x={}), {"x": value}, {})


def test_a_secret_that_does_not_fit_an_environment_is_refused_without_its_value():
    for secret in ("\0", "x" * MAX_VARIABLE_BYTES):
        with pytest.raises(InputError, match="the secret of input 'x' has NUL or is too long"):
            scripts_of(a_method("true", x={"format": "secret"}), {"x": "env:X"}, {"x": SecretStr(secret)})


def test_a_first_line_chooses_the_shell_and_stays_first():
    made = scripts_of(a_method("#!/usr/bin/env -S bash -e", "echo {{ x }}", x={}), {"x": 1}, {})

    assert made.scripts[EXECUTE].command == ("/usr/bin/env", "-S", "bash", "-e")
    assert made.scripts[EXECUTE].text.startswith("#!/usr/bin/env -S bash -e\n# Inputs, quoted")


def test_a_script_without_placeholders_is_unchanged():
    made = scripts_of(a_method("echo 'unclosed", "$x' `", deploy=["", " "], x={}), {"x": "v"}, {})

    assert {name: script.text for name, script in made.scripts.items()} == {EXECUTE: "echo 'unclosed\n$x' `\n"}


REFUSED = [
    ('sh -c "ls {{ x }}"', "would be run as code by sh"),
    ("bash -lc 'ls {{ x }}'", "would be run as code by bash"),
    ('sudo /bin/sh -c "ls {{ x }}"', "code by sh"),
    ('if true; then eval "ls {{ x }}"; fi', "code by eval"),
    ("A=1 eval ls {{ x }}", "code by eval"),
    ('trap "rm {{ x }}" EXIT', "code by trap"),
    ("f() { eval ls {{ x }}; }; f", "code by eval"),
    ("function f { eval ls {{ x }}; }; f", "code by eval"),
    ("ssh host ls {{ x }}", "code by ssh"),
    ("python3 -c \"print('{{ x }}')\"", "code by python3"),
    ('python3 -c"print({{ x }})"', "code by python3"),
    ("perl -lane 'print {{ x }}' f", "code by perl"),
    ("Rscript -e 'print({{ x }})'", "code by Rscript"),
    ("awk -F, '/{{ x }}/' f", "code by awk"),
    ("sed 's/A/{{ x }}/' f", "code by sed"),
    ('sh -c "$(echo ls {{ x }})"', "code by sh"),
    ("echo ls {{ x }} | sh", "code by sh"),
    ("bash -o pipefail -ec 'ls {{ x }}'", "code by bash"),
    ("echo 'print({{ x }})' | python3 -", "code by python3"),
    ("python3 <<E | tee log\nprint({{ x }})\nE", "code by python3"),
    ("[[ {{ x }} -eq 1 ]] && ls", r"code by \[\["),
    ("let y={{ x }}", "code by let"),
    *[
        (line, "in the name of a variable")
        for line in (
            "a[{{ x }}]=1",
            'a["{{ x }}"]=1',
            "a=([{{ x }}]=1)",
            "b=2 a[{{ x }}]=1",
            "read -r {{ x }}",
            "IFS=, read -p who -r {{ x }} <<< 1",
            "while read {{ x }}; do :; done",
            "declare {{ x }}=1",
            'f() { local "{{ x }}=1"; }; f',
            "declare -i n={{ x }}",
            "unset {{ x }}",
            "printf -v {{ x }} %s 1",
            "[ -v {{ x }} ]",
            "test -v {{ x }}",
            "[[ -v {{ x }} ]]",
        )
    ],
    ("echo $(( {{ x }} + 1 ))", "is in an arithmetic expression"),
    ("(( {{ x }} > 1 )) && ls", "is in an arithmetic expression"),
    ("cat <<'E'\n{{ x }}\nE", "with a quoted delimiter"),
    ("echo ${y:-{{ x }}}", "is in"),
    ("echo $'a{{ x }}'", "is in"),
    ('echo "`echo {{ x }}`"', r"write \$\(…\) instead"),
    ('echo "${{ x }}"', r"has a \$ before it"),
    ("echo '{{ x }}", "is not closed"),
    ("echo $(ls {{ x }}", "is not closed"),
    ("cat <<E\n{{ x }}", "the here-document 'E' is not closed"),
    ("echo {{ manny }}", "there is no such input; did you mean"),
    ("echo --all={{ many }}", "is a list and must be a separate word"),
    ("{{ x }}" * 1001, "more than 1000 placeholders"),
    ("$(" * 70 + "{{ x }}" + ")" * 70, "nested deeper than"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_a_place_that_cannot_be_made_safe_is_refused_when_the_descriptor_is_read(line, message):
    with pytest.raises(MethodError, match=message) as refused:
        a_method("true", line, x={"type": "string"}, many={"schema": {}, "maxOccurs": 3})

    assert "/additionalParameters/parameters/0/value" in str(refused.value)


@pytest.mark.parametrize(
    "line",
    [
        "sh -c 'ls \"$1\"' sh {{ x }}",
        "python3 tool.py -c {{ x }}",
        "awk '{print $1}' {{ x }}",
        "awk -v x={{ x }} '{print x}' f",
        "awk -F {{ x }} -f program.awk f",
        "sed -n 1p {{ x }}",
        "grep -c -e {{ x }} f",
        "echo {{ x }} | base64 -d | python3 tool.py",
        "cat <<E | python3 tool.py\n{{ x }}\nE",
        "docker ps --format '{{.Names}}'",
        "read -p {{ x }} -r y <<< {{ x }}; read y < {{ x }}; read y <{{ x }}; read y <<E\n{{ x }}\nE",
        'export Y={{ x }} Z="a {{ x }}"; IFS={{ x }} read y; y=b[{{ x }}]; a["1"]={{ x }}; ls a[{{ x }}]*',
        "printf '%s' {{ x }}; [ -n {{ x }} ] && [ {{ x }} -eq 1 ]; while read y; do :; done < {{ x }}",
        "echo \\{{ item }} '{{ two words }}' # {{ nobody",
        "echo $((1 << 2)) $(( (1+2)*3 )) {{ x }}",
        "f() { case $1 in a|b) echo {{ x }};; (c) ;; esac; }; f a",
        "a=(1 {{ x }}); [[ $y =~ (a|b) ]] && echo {{ x }} 2>&1 <<< {{ x }}",
        'sh -c "exit {{ number }}"; echo $(( {{ number }} * 2 )); sed "s/a/{{ choice }}/; s/b/{{ bound }}/" f',
        '{{ many }} "{{ many }}" ({{ many }})',
    ],
)
def test_a_safe_placeholder_is_accepted(line):
    a_method(
        line,
        x={"type": "string"},
        number={"type": "integer"},
        choice={"enum": ["a", "b"]},
        bound={"default": "e", "readOnly": True},
        many={"schema": {}, "maxOccurs": 3},
    )


@settings(deadline=None)
@given(st.text(alphabet="{}x `'\"$()\\\n<#E;case", max_size=60))
def test_any_script_is_accepted_or_refused(line):
    try:
        method = a_method("true", line, x={"type": "string"})
    except MethodError:
        return
    assert "touch" not in scripts_of(method, {"x": "x"}, {}).scripts[EXECUTE].text


def test_the_script_of_the_page_is_that_of_its_example_and_does_what_it_says(tmp_path):
    example, script = (
        re.search(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[1]
        for language in ("json", "sh")
    )
    method = read_method(example.encode(), "method.json")
    values = values_of(method, {"text": "/ccp_data/a.txt", "word": "it's $(rm -rf .)", "most": 2})
    assert scripts_of(method, values, {}).scripts[EXECUTE].text == script

    (tmp_path / "run").mkdir()
    (tmp_path / "a.txt").write_text("one\nit's $(rm -rf .)\n")
    made = scripts_of(method, values | {"text": str(tmp_path / "a.txt")}, {})
    (tmp_path / "out").mkdir()
    file = tmp_path / "execute"
    file.write_text(made.scripts[EXECUTE].text)
    subprocess.run(["/bin/sh", file], check=True, env={"PATH": os.defpath, "OUTPUTS": str(tmp_path / "out")})

    assert (tmp_path / "out/lines.txt").read_text() == "2:it's $(rm -rf .)\n"
    assert (tmp_path / "out/summary.txt").read_text().strip() == "found 1 lines with 'it's $(rm -rf .)'"
