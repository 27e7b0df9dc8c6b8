"""A slice of executed cells has what a function needs, in the order in which it ran, and nothing else."""

from __future__ import annotations

import pytest

from prefect_executions.capture.cells import slice_of

KNOWN = frozenset({"f", "made", "extra", "run", "x"})


def sliced(*cells: str, name: str = "f"):
    return slice_of(cells, name, cells[-1], known=KNOWN, is_run=lambda called: called == "run")


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["import os, re", "def f(): return re.sub"], ["import os, re", "def f(): return re.sub"]),
        (["a = 1", "b = 2", "def f(): return b"], ["b = 2", "def f(): return b"]),
        (["a = 1; b = 2", "def f(): return b"], ["b = 2", "def f(): return b"]),
        (["def g(): return K", "K = 1", "def f(): return g()"], ["def g(): return K", "K = 1", "def f(): return g()"]),
        (["def g(): return 1", "def g(): return 2", "def f(): g()"], ["def g(): return 2", "def f(): g()"]),
        (["def g(): return A", "def g(): return 2", "A = 1", "def f(): g()"], ["def g(): return 2", "def f(): g()"]),
        (["n = 0", "n += 1", "n += 1", "def f(): return n"], ["n = 0", "n += 1", "n += 1", "def f(): return n"]),
        (["K = 1", "T = [K]", "K = 2", "def f(): return T, K"], ["K = 1", "T = [K]", "K = 2", "def f(): return T, K"]),
        (
            ["def g(): return K", "K = 1", "T = g()", "K = 2", "def f(): return T"],
            ["def g(): return K", "K = 1", "T = g()", "K = 2", "def f(): return T"],
        ),
        (["d = {}", "d['a'] = 1", "d.keys", "def f(): return d"], ["d = {}", "d['a'] = 1", "def f(): return d"]),
        (["r = []", "r.append(1)", "r", "print(r)", "def f(): r"], ["r = []", "r.append(1)", "def f(): r"]),
        (["import a", "a.seed(0)", "def f(): a"], ["import a", "a.seed(0)", "def f(): a"]),
        (["x = 1", "def f(x): return x"], ["def f(x): return x"]),
        (["x = 1", "y = [x for x in (1, 2)]", "def f(): return y"], ["y = [x for x in (1, 2)]", "def f(): return y"]),
        (["x = 1", "class C:\n    x = 2", "def f(): C, x"],) * 2,
        (["class C:\n    def m(self): return K", "K = 1", "def f(): C()"],) * 2,
        (["from math import *", "def f(): return pi"], ["from math import *", "def f(): return pi"]),
        (["a = 1", "from __future__ import annotations", "def f(): a"],
         ["from __future__ import annotations", "a = 1", "def f(): a"]),
        (["if True:\n    a = 1", "def f(): return a"], ["if True:\n    a = 1", "def f(): return a"]),
        (["t = 'x'", "run(t)", "r = run(t)", "def f(): return t"], ["t = 'x'", "def f(): return t"]),
        (["def g(): pass", "g()", "def f(): g()"], ["def g(): pass", "def f(): g()"]),
        (["get_ipython().run_cell_magic('time', '', 'a = 1\\nb = 2\\n')", "def f(): b"], ["b = 2", "def f(): b"]),
        (["get_ipython().run_line_magic('matplotlib', 'inline')", "this is not Python", "def f(): 1"], ["def f(): 1"]),
        (["import a", "@a.b(\n  1)\n# why\ndef f():  # how\n    pass"],) * 2,
    ],
)  # fmt: skip
def test_the_needed_statements_are_kept_in_order(cells, expected):
    found = sliced(*cells)
    assert found.text == "\n\n".join(expected) + "\n"
    assert found.unmet == ()


@pytest.mark.parametrize(
    ("cells", "name", "why"),
    [
        (["def f(): return extra"], "extra", "no executed cell defines it"),
        (["made = run(1)", "def f(): return made"], "made", "it is the result of a run of 'run'"),
        (["made = get_ipython().getoutput('ls')", "def f(): return made"], "made", "a command of IPython"),
        (["made = await x", "x = 1", "def f(): return made"], "made", "'await' outside a function"),
    ],
)
def test_a_name_that_a_replay_lacks_is_listed(cells, name, why):
    [unmet] = [unmet for unmet in sliced(*cells).unmet if unmet.name == name]
    assert why in unmet.why


@pytest.mark.parametrize(
    "statement",
    [
        'os.environ["OPENAI_API_KEY"] = "T"',
        "os.environ['A'] = 'T'",
        "os.environ.update(A='T')",
        "os.environ |= {'A': 'T'}",
        "os.environ = {'A': 'T'}",
        "os.putenv('A', 'T')",
        "os.cfg['token'] = 'T'",
        "os.api_key = 'T'",
        "os.client.api_keys = ['T']",
        "password = 'T'; os.x = 1",
        "user, password = 'ada', 'T'",
        "password: str = 'T'",
        "os.client(api_key='T')",
        "os.cfg.set('token', 'T')",
        "os.cfg = {'headers': {'Authorization': 'T'}}",
        "os.x = 'sk-aaaaaaaaaaaaaaaaT'",
        "os.engine('postgresql://ada:T@host/db')",
        "os.x = 'aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fG5T'",
        "class Config:\n    token = 'T'",
        "if True:\n    os.token = 'T'",
        "get_ipython().run_cell_magic('time', '', 'password = \"T\"')",
    ],
)
def test_a_statement_that_holds_a_secret_or_changes_the_environment_is_listed_and_not_kept(statement):
    found = sliced("import os", statement, "x = 1", "def f(): return os, x, password, Config")
    assert "T'" not in found.text
    assert '"T' not in found.text
    assert ":T" not in found.text
    assert "aT" not in found.text
    assert found.text.endswith("x = 1\n\ndef f(): return os, x, password, Config\n")
    [why] = {unmet.why for unmet in found.unmet if "cell" not in unmet.why}
    assert why.startswith(("its statement holds a key or password", "its statement changes the environment"))


@pytest.mark.parametrize(
    "statement",
    [
        "os.cfg['max_tokens'] = 'T'", "os.x = os.environ['HOME']", "os.password = os.getenv('P')", "os.token = None",
        "os.cfg.set('sort_key', 'T')", "os.x = 'data/results/2024'", "os.url = 'https://host/data.csv'",
        "os.model = 'sentence-transformers/all-MiniLM-L6-v2'",
    ],
)  # fmt: skip
def test_a_statement_without_a_secret_is_kept(statement):
    found = sliced("import os", statement, "def f(): return os")
    assert statement in found.text
    assert found.unmet == ()


def test_a_cell_that_python_cannot_parse_does_not_hide_the_others():
    deep = "-" * 200_000 + "1"
    assert sliced("a = 1", deep, "x = " + "(" * 150 + ")" * 150, "def f(): a").text == "a = 1\n\ndef f(): a\n"


def test_an_unknown_name_without_a_value_is_not_listed():
    assert sliced("def f(): return never_defined, len").unmet == ()


def test_the_same_cells_executed_again_give_the_same_text():
    cells = ["import re", "K = 1", "def g(): return K", "def f(): return g(), re"]
    again = slice_of([*cells, "f()", *cells, "unrelated = 1"], "f", cells[-1], known=KNOWN, is_run=lambda _: False)
    assert again == sliced(*cells)


def test_the_definition_in_the_given_cell_counts_and_not_a_later_one():
    cells = ["def f(): return 1", "def f(): return 2"]
    assert slice_of(cells, "f", cells[0], known=KNOWN, is_run=lambda _: False).text == "def f(): return 1\n"


def test_a_cell_outside_the_history_has_no_slice():
    assert slice_of(["a = 1"], "f", "def f(): pass", known=KNOWN, is_run=lambda _: False) is None
    assert slice_of(["f = 1"], "g", "f = 1", known=KNOWN, is_run=lambda _: False) is None
