"""Which words of a command are code for another program, where a user's text would be run, not read.

It knows the usual programs, so that the usual mistakes are refused when a
descriptor is read. A script that writes a value into a file and runs the file
is beyond it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile

from prefect_executions.descriptors.shell import Placeholder, Where

_EVALUATING = frozenset({"eval", "trap", "let", "alias", "ssh"})

# What says, per program, that the next word is code.
_SHELLS = re.compile(r"(ba|da|a|k|z)?sh|su|busybox")
_CODE_OPTIONS = (
    (_SHELLS, re.compile(r"-[A-Za-z]*c")),
    (re.compile(r"(pypy|python)[\d.]*|ipython"), re.compile(r"-[A-Za-z]*c")),
    (re.compile(r"(perl|ruby|lua|luajit|julia|Rscript|R|octave)[\d.]*"), re.compile(r"-[A-Za-z]*[eE]|--eval")),
    (re.compile(r"node(js)?|deno|bun"), re.compile(r"-[A-Za-z]*[ep]|--eval|--print")),
    (re.compile(r"php[\d.]*"), re.compile(r"-[rBRE]")),
    (re.compile(r"g?sed"), re.compile(r"-[A-Za-z]*e|--expression")),
)
_INTERPRETER = re.compile(
    r"(ba|da|a|k|z)?sh|(pypy|python)[\d.]*|(perl|ruby|lua|julia|Rscript|R|octave|node|php)[\d.]*|g?sed|[gmn]?awk"
)
_FIRST_WORD_IS_CODE = re.compile(r"[gmn]?awk|g?sed")
_TAKES_A_VALUE = frozenset({"-o", "+o", "-W", "-X", "-F", "-v", "--assign", "--field-separator"})
_CODE_ELSEWHERE = frozenset({"-f", "-e", "--file", "--expression"})
_BEFORE = frozenset(
    {"if", "then", "else", "elif", "do", "while", "until", "!", "{", "time", "exec", "command", "sudo", "env"}
)
_NAMING = frozenset({"read", "mapfile", "readarray", "declare", "typeset", "local", "export", "readonly", "unset"})
"""The builtins whose words are names of variables, but for what follows an ``=``."""
_READING = frozenset({"read", "mapfile", "readarray"})
_NAME_FOLLOWS = {"printf": {"-v"}, "test": {"-v", "-R"}, "[": {"-v", "-R"}, "[[": {"-v", "-R"}}
_VALUE_FOLLOWS = re.compile(r"-[A-Za-z]*[dinNOpstu]|\d*[<>]+[&|]?")
_OPEN_SUBSCRIPT = re.compile(r"\w*\[[^\]]*")
_MOST_READ = 4000  # of a line that was made to take long
_READS_PROGRAM = re.compile(
    r"\|&?[ \t]*(?:\S*/)?((ba|da|a|k|z)?sh|(pypy|python)[\d.]*|perl|ruby|node|Rscript)[ \t]*(-?[ \t]*)($|[;|&\n)`])"
)
_COMPARES_NUMBERS = re.compile(r"\s-(eq|ne|lt|le|gt|ge)\s")


def evaluated_by(found: Placeholder, text: str) -> str | None:
    """Return the program that would run a placeholder's value as code, or None."""
    own = text[max(text.rfind(sign, 0, found.start) for sign in " \t\n") + 1 : found.start]
    for command in found.commands:
        here = found.where is Where.HERE and command is found.commands[-1]
        program = next(iter(_programs(command, own, here=here)), None)
        if program:
            return program
    end = text.find("\n", found.end, found.end + _MOST_READ)
    end = min(len(text), found.end + _MOST_READ) if end < 0 else end
    piped = _READS_PROGRAM.search(text, found.end, end)
    if piped:
        return piped[1]
    begin = max(text.rfind("\n", 0, found.start) + 1, found.start - _MOST_READ)
    return "[[" if "[[ " in text[begin : found.start] and _COMPARES_NUMBERS.search(text, begin, end) else None


def names_a_variable(found: Placeholder) -> bool:
    """Whether a placeholder's value would be in the name of a variable: bash runs a ``$(…)`` between its brackets."""
    if not found.commands or found.where is Where.HERE:
        return False
    words = _names(found.commands[-1])
    first = _first(words)
    if first is None:
        return bool(_OPEN_SUBSCRIPT.fullmatch(found.begun))
    program = words[first]
    if program in _NAME_FOLLOWS:
        return words[-1] in _NAME_FOLLOWS[program]
    if program not in _NAMING or found.begun.startswith(("<", ">")):
        return False
    if "=" in found.begun:
        return any(re.fullmatch(r"-[A-Za-z]*i[A-Za-z]*", word) for word in words)
    return program not in _READING or not (_VALUE_FOLLOWS.fullmatch(words[-1]) or _VALUE_FOLLOWS.match(found.begun))


def _programs(words: Sequence[str], own: str, *, here: bool) -> Iterator[str]:
    """Yield the programs among *words* for which the next word, which begins with *own*, is code."""
    names = _names(words)
    first = _first(names)
    for number, name in enumerate(names):
        after = words[number + 1 :]
        if name in _EVALUATING and number == first:
            yield name
        elif here:
            own_words = tuple(takewhile(lambda word: not set(word) & set("|;&"), after))
            if _INTERPRETER.fullmatch(name) and not _has_program(own_words):
                yield name
        elif (_FIRST_WORD_IS_CODE.fullmatch(name) and _begins_program(after, own)) or any(
            program.fullmatch(name) and _says_code(option, after, own) for program, option in _CODE_OPTIONS
        ):
            yield name


def _names(words: Sequence[str]) -> list[str]:
    return [word.rpartition("/")[2].strip("'\"") for word in words]


def _first(names: Sequence[str]) -> int | None:
    """Where the program of a command stands: behind assignments, what may stand before it, and a function's head."""
    for at, name in enumerate(names):
        head = name.endswith("()") or name == "function" or (at and names[at - 1] == "function")
        if not head and name not in _BEFORE and "=" not in name:
            return at
    return None


def _says_code(option: re.Pattern[str], words: Sequence[str], own: str) -> bool:
    """Whether the last of *words*, or the word's own beginning, is an *option*, and only options stand before it."""
    *before, last = words or ("",)
    if option.match(own):
        before = [*before, last]
    elif not option.fullmatch(last):
        return False
    values = {at + 1 for at, word in enumerate(before) if word in _TAKES_A_VALUE}
    return all(word.startswith(("-", "+")) or not word or at in values for at, word in enumerate(before))


def _begins_program(words: Sequence[str], own: str) -> bool:
    if own.startswith("-") or (words and words[-1] in _TAKES_A_VALUE):
        return False
    return not _has_program(words)


def _has_program(words: Sequence[str]) -> bool:
    """Whether a word that is no option, so the program or its file, stands among *words*."""
    takes_a_value = False
    for word in words:
        if takes_a_value or word in _TAKES_A_VALUE:
            takes_a_value = not takes_a_value
        elif word in _CODE_ELSEWHERE or not word.startswith(("-", "<", ">")):
            return True
    return False
