"""Where in a shell script a placeholder stands: between which quotes, in which commands.

The grammar is POSIX's (XCU 2.2 to 2.7), with bash's ``$'…'``, ``<<<`` and
``((…))``. Nothing rests on it but how a reference is quoted: a value is never
part of the text that this reads.

Which words of a command are code for another program, where a user's text would be run, not read.

It knows the usual programs, so that the usual mistakes are refused when a
descriptor is read. A script that writes a value into a file and runs the file
is beyond it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import islice, takewhile

PLACEHOLDER = re.compile(r"\{\{[ \t]*([^{}\n]{1,200}?)[ \t]*\}\}")

_DELIMITER = re.compile(r"<<(?P<tabs>-?)[ \t]*(?P<word>(?:\\.|'[^'\n]*'|\"[^\"\n]*\"|[^\s;&|<>()'\"\\])+)")
MOST_PLACEHOLDERS = 1000

_MOST_NESTED = 64
_MOST_READ = 4000
_SEPARATORS = ";&|\n"


class Where(Enum):
    """What surrounds a placeholder."""

    BARE = auto()
    DOUBLE = auto()
    SINGLE = auto()
    ANSI = auto()
    HERE = auto()
    QUOTED_HERE = auto()
    ARITHMETIC = auto()
    EXPANSION = auto()
    SUBSTITUTION = auto()
    BACKTICK = auto()
    GROUP = auto()


_LIKE_BARE = frozenset({Where.BARE, Where.SUBSTITUTION, Where.BACKTICK, Where.GROUP})


@dataclass(frozen=True)
class Placeholder:
    """One placeholder: its place in the text, and what surrounds it.

    Attributes:
        where: The quotes around it; `Where.BARE` for none, whatever the nesting.
        commands: Of each command around it, the inmost last, the words before the placeholder's own word.
        alone: Whether it is a word of its own.
        begun: What stands before it in its own word.
    """

    start: int
    end: int
    name: str
    where: Where
    commands: tuple[tuple[str, ...], ...]
    alone: bool
    in_backtick_in_quotes: bool
    begun: str


class Unreadable(ValueError):  # noqa: N818 - it is told as a fault, with its place
    """The script cannot be followed; the message says why."""


@dataclass
class _Frame:
    kind: Where
    command: int = 0
    """Where the current command begins."""
    word: int | None = None
    """Where the current word begins."""
    cases: int = 0
    depth: int = 0
    waiting: list[tuple[str, bool, bool]] = field(default_factory=list)
    """Here-documents that begin with the next line: delimiter, whether quoted, whether tabs are stripped."""


def placeholders(text: str) -> tuple[Placeholder, ...]:
    """Return all placeholders of a script but those in comments.

    Raises:
        Unreadable: If a quote or parenthesis is not closed, the nesting is too deep, or there are too many.
    """
    found = tuple(islice(_Scan(text, 0, len(text), Where.BARE).all(), MOST_PLACEHOLDERS + 1))
    if len(found) > MOST_PLACEHOLDERS:
        raise Unreadable(f"more than {MOST_PLACEHOLDERS} placeholders; use the environment variables")
    return found


class _Scan:
    """One pass over a script, or over the body of a here-document."""

    def __init__(self, text: str, start: int, end: int, base: Where, outer: tuple[_Frame, ...] = ()) -> None:
        self.text = text
        self.at = start
        self.end = end
        self.outer = outer
        self.frames = [_Frame(base, command=start)]

    def all(self) -> Iterator[Placeholder]:
        while self.at < self.end:
            found = PLACEHOLDER.match(self.text, self.at, self.end)
            if found:
                yield self._placed(found)
                self.at = found.end()
                continue
            yield from self._step()
        if len(self.frames) > 1 or self.frames[0].waiting:
            raise Unreadable("a quote, parenthesis or here-document that is opened is not closed")

    def _placed(self, found: re.Match[str]) -> Placeholder:
        top = self.frames[-1]
        if top.kind in _LIKE_BARE and top.word is None:
            top.word = found.start()
        around = [frame for frame in (*self.outer, *self.frames) if frame.kind in _LIKE_BARE]
        kinds = [frame.kind for frame in self.frames]
        quoted_tick = any(
            kind is Where.BACKTICK and Where.DOUBLE in kinds[:number] for number, kind in enumerate(kinds)
        )
        return Placeholder(
            start=found.start(),
            end=found.end(),
            name=found[1],
            where=Where.BARE if top.kind in _LIKE_BARE else top.kind,
            commands=tuple(self._words(one.command, one.word or one.command) for one in around),
            alone=top.kind in _LIKE_BARE and top.word == found.start() and self._ends_a_word(found.end()),
            in_backtick_in_quotes=quoted_tick,
            begun=self._begun(around[-1], found.start()) if around else "",
        )

    def _begun(self, frame: _Frame, at: int) -> str:
        word = frame.command if frame.word is None else frame.word
        return self.text[max(word, at - _MOST_READ) : at]

    def _words(self, start: int, end: int) -> tuple[str, ...]:
        if end - start > 2 * _MOST_READ:  # a line that was made to take long
            return (*self.text[start : start + _MOST_READ].split(), *self.text[end - _MOST_READ : end].split())
        return tuple(self.text[start:end].split())

    def _ends_a_word(self, at: int) -> bool:
        return at >= self.end or self.text[at] in " \t\n;&|<>()`"

    def _step(self) -> Iterator[Placeholder]:
        kind = self.frames[-1].kind
        if kind in _LIKE_BARE:
            yield from self._bare()
        elif kind in {Where.SINGLE, Where.ANSI}:
            self._single(kind)
        elif kind is Where.ARITHMETIC:
            self._arithmetic()
        elif kind is Where.QUOTED_HERE:
            self.at += 1
        else:
            self._expanding(kind)

    def _single(self, kind: Where) -> None:
        character = self.text[self.at]
        if character == "'":
            self.frames.pop()
        self.at += 2 if character == "\\" and kind is Where.ANSI else 1

    def _arithmetic(self) -> None:
        top = self.frames[-1]
        if self.text.startswith("))", self.at) and not top.depth:
            self.frames.pop()
            self.at += 2
            return
        top.depth += {"(": 1, ")": -1}.get(self.text[self.at], 0)
        self.at += 1

    def _expanding(self, kind: Where) -> None:
        """Read on in double quotes, in a here-document, or in ``${…}``."""
        character = self.text[self.at]
        if self._opened():
            return
        if character == "\\":
            self.at += 2
            return
        if (character == '"' and kind is Where.DOUBLE) or (character == "}" and kind is Where.EXPANSION):
            self.frames.pop()
        elif character == '"' and kind is Where.EXPANSION:
            self._push(Where.DOUBLE)
        elif character == "'" and kind is Where.EXPANSION and not any(f.kind is Where.DOUBLE for f in self.frames):
            self._push(Where.SINGLE)
        self.at += 1

    def _opened(self) -> bool:
        """Go into what ``$`` or a backtick opens here, and say whether it does."""
        for sign, kind in (("$((", Where.ARITHMETIC), ("$(", Where.SUBSTITUTION), ("${", Where.EXPANSION)):
            if self.text.startswith(sign, self.at) and not self.text.startswith("${{", self.at):
                self.at += len(sign)
                self._push(kind)
                return True
        if self.text[self.at] != "`":
            return False
        self.at += 1
        if any(frame.kind is Where.BACKTICK for frame in self.frames):
            while self.frames.pop().kind is not Where.BACKTICK:
                pass
        else:
            self._push(Where.BACKTICK)
        return True

    def _push(self, kind: Where) -> None:
        if len(self.frames) + len(self.outer) >= _MOST_NESTED:
            raise Unreadable(f"it nests deeper than {_MOST_NESTED} levels")
        self.frames.append(_Frame(kind, command=self.at))

    def _bare(self) -> Iterator[Placeholder]:
        top = self.frames[-1]
        character = self.text[self.at]
        begins = top.word is None
        if begins and character not in " \t\n;&|":
            top.word = self.at
        if character == "#" and begins:
            self._comment()
        elif character in " \t" or (character in _SEPARATORS and not self._is_redirection(character)):
            yield from self._between(character)
        elif character == "\\":
            self.at += 2
        elif character in "'\"" or self.text.startswith("$'", self.at):
            self._quote(character)
        elif character in "()":
            self._parenthesis(character, begins=begins)
        elif self.text.startswith("<<", self.at):
            self._here()
        elif not self._opened():
            if begins:
                self._case()
            self.at += 1

    def _comment(self) -> None:
        stop = self.text.find("\n", self.at, self.end)
        self.at = self.end if stop < 0 else stop
        self.frames[-1].word = None

    def _quote(self, character: str) -> None:
        self.at += 2 if character == "$" else 1
        self._push({"'": Where.SINGLE, '"': Where.DOUBLE}.get(character, Where.ANSI))

    def _is_redirection(self, character: str) -> bool:
        return character == "&" and self.text[max(0, self.at - 1)] in "<>"

    def _between(self, character: str) -> Iterator[Placeholder]:
        top = self.frames[-1]
        top.word = None
        self.at += 1
        if character in _SEPARATORS:
            bodies = top.waiting if character == "\n" else []
            head = _Frame(Where.BARE, command=self.text.rfind("\n", 0, self.at - 1) + 1, word=self.at)
            for delimiter, quoted, tabs in bodies:
                yield from self._body(delimiter, head, quoted=quoted, tabs=tabs)
            bodies.clear()
            top.command = self.at

    def _case(self) -> None:
        top = self.frames[-1]
        if re.compile(r"case\s").match(self.text, self.at, self.end):
            top.cases += 1
        elif re.compile(r"esac(?![\w-])").match(self.text, self.at, self.end):
            top.cases -= 1

    def _parenthesis(self, character: str, *, begins: bool) -> None:
        top = self.frames[-1]
        if self.text.startswith("((", self.at) and begins:
            self.at += 2
            self._push(Where.ARITHMETIC)
            return
        self.at += 1
        if character == "(":
            top.word = None
            self._push(Where.GROUP)
        elif top.kind in {Where.SUBSTITUTION, Where.GROUP} and top.cases <= 0:
            self.frames.pop()
        else:
            top.word = None
            top.command = self.at

    def _here(self) -> None:
        found = _DELIMITER.match(self.text, self.at, self.end)
        if self.text.startswith("<<<", self.at) or not found:
            self.at += 3 if self.text.startswith("<<<", self.at) else 2
            self.frames[-1].word = None
            return
        word = found["word"]
        quoted = any(sign in word for sign in "'\"\\")
        self.frames[-1].waiting.append((re.sub(r"['\"\\]", "", word), quoted, bool(found["tabs"])))
        self.at = found.end()

    def _body(self, delimiter: str, head: _Frame, *, quoted: bool, tabs: bool) -> Iterator[Placeholder]:
        """Read a here-document; afterwards we stand behind its delimiter."""
        start = line = self.at
        while line < self.end:
            stop = self.text.find("\n", line, self.end)
            stop = self.end if stop < 0 else stop
            told = self.text[line:stop]
            if (told.lstrip("\t") if tabs else told) == delimiter:
                break
            line = stop + 1
        else:
            raise Unreadable(f"the here-document '{delimiter[:40]}' is not closed")
        kind = Where.QUOTED_HERE if quoted else Where.HERE
        outer = (*self.outer, *self.frames[:-1], head)
        if len(outer) >= _MOST_NESTED:
            raise Unreadable(f"it nests deeper than {_MOST_NESTED} levels")
        yield from _Scan(self.text, start, line, kind, outer).all()
        self.at = min(stop + 1, self.end)


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
