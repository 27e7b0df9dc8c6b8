"""A scanner of shell scripts: the quotes and commands around each placeholder, and which words are code.

The grammar is POSIX's (XCU 2.2 to 2.7), with bash's ``$'…'``, ``<<<`` and ``((…))``.
It only decides how a reference is quoted: values are never part of the scanned text.

`evaluated_by` knows the usual programs that run an argument as code (``sh -c``,
``eval``, ``awk``), so that usual mistakes are refused when a descriptor is read. It
cannot detect a script that writes a value into a file and runs the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import islice, takewhile

PLACEHOLDER = re.compile(r"\{\{[ \t]*([^{}\n]{1,200}?)[ \t]*\}\}")

_DELIMITER = re.compile(r"<<(?P<tabs>-?)[ \t]*(?P<word>(?:\\.|'[^'\n]*'|\"[^\"\n]*\"|[^\s;&|<>()'\"\\])+)")
MAX_PLACEHOLDERS = 1000

_MAX_NESTED = 64
_MAX_READ = 4000
_SEPARATORS = ";&|\n"


class Context(Enum):
    """The quotes or the construct around a placeholder."""

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


_UNQUOTED = frozenset({Context.BARE, Context.SUBSTITUTION, Context.BACKTICK, Context.GROUP})


@dataclass(frozen=True)
class Placeholder:
    """One placeholder: its offsets in the text and its surroundings.

    Attributes:
        context: The quotes around it; `Where.BARE` if there are none, at any depth of nesting.
        commands: For each command around it, the innermost last: the words before the placeholder's word.
        alone: Whether the placeholder is a complete word.
        begun: The part of its word before the placeholder.
    """

    start: int
    end: int
    name: str
    context: Context
    commands: tuple[tuple[str, ...], ...]
    alone: bool
    in_backtick_in_quotes: bool
    begun: str


class ShellSyntaxError(ValueError):
    """The script cannot be scanned; the message says why."""


@dataclass
class _Frame:
    kind: Context
    command: int = 0
    """The offset of the current command."""
    word: int | None = None
    """The offset of the current word."""
    cases: int = 0
    """How many ``case`` statements are open."""
    depth: int = 0
    """How many parentheses are open in an arithmetic expression."""
    waiting: list[tuple[str, bool, bool]] = field(default_factory=list)
    """Here-documents that begin on the next line: delimiter, whether quoted, whether tabs are stripped."""


def placeholders(text: str) -> tuple[Placeholder, ...]:
    """Return all placeholders of a script, except those in comments.

    Raises:
        Unreadable: If a quote or parenthesis is not closed, or there is too much nesting or too many placeholders.
    """
    found = tuple(islice(_Scan(text, 0, len(text), Context.BARE).all(), MAX_PLACEHOLDERS + 1))
    if len(found) > MAX_PLACEHOLDERS:
        raise ShellSyntaxError(f"more than {MAX_PLACEHOLDERS} placeholders; use the environment variables")
    return found


class _Scan:
    """One pass over a script, or over the body of a here-document."""

    def __init__(self, text: str, start: int, end: int, base: Context, outer: tuple[_Frame, ...] = ()) -> None:
        self.text = text
        self.at = start
        self.end = end
        self.outer = outer
        self.frames = [_Frame(base, command=start)]

    def all(self) -> Iterator[Placeholder]:
        while self.at < self.end:
            match = PLACEHOLDER.match(self.text, self.at, self.end)
            if match:
                yield self._placeholder(match)
                self.at = match.end()
                continue
            yield from self._step()
        if len(self.frames) > 1 or self.frames[0].waiting:
            raise ShellSyntaxError("a quote, parenthesis or here-document is not closed")

    def _placeholder(self, match: re.Match[str]) -> Placeholder:
        top = self.frames[-1]
        if top.kind in _UNQUOTED and top.word is None:
            top.word = match.start()
        commands = [frame for frame in (*self.outer, *self.frames) if frame.kind in _UNQUOTED]
        kinds = [frame.kind for frame in self.frames]
        quoted_tick = any(
            kind is Context.BACKTICK and Context.DOUBLE in kinds[:number] for number, kind in enumerate(kinds)
        )
        return Placeholder(
            start=match.start(),
            end=match.end(),
            name=match[1],
            context=Context.BARE if top.kind in _UNQUOTED else top.kind,
            commands=tuple(self._words(frame.command, frame.word or frame.command) for frame in commands),
            alone=top.kind in _UNQUOTED and top.word == match.start() and self._ends_a_word(match.end()),
            in_backtick_in_quotes=quoted_tick,
            begun=self._begun(commands[-1], match.start()) if commands else "",
        )

    def _begun(self, frame: _Frame, at: int) -> str:
        word = frame.command if frame.word is None else frame.word
        return self.text[max(word, at - _MAX_READ) : at]

    def _words(self, start: int, end: int) -> tuple[str, ...]:
        if end - start > 2 * _MAX_READ:  # a hostile line, meant to take long
            return (*self.text[start : start + _MAX_READ].split(), *self.text[end - _MAX_READ : end].split())
        return tuple(self.text[start:end].split())

    def _ends_a_word(self, at: int) -> bool:
        return at >= self.end or self.text[at] in " \t\n;&|<>()`"

    def _step(self) -> Iterator[Placeholder]:
        kind = self.frames[-1].kind
        if kind in _UNQUOTED:
            yield from self._bare()
        elif kind in {Context.SINGLE, Context.ANSI}:
            self._single(kind)
        elif kind is Context.ARITHMETIC:
            self._arithmetic()
        elif kind is Context.QUOTED_HERE:
            self.at += 1
        else:
            self._expanding(kind)

    def _single(self, kind: Context) -> None:
        character = self.text[self.at]
        if character == "'":
            self.frames.pop()
        self.at += 2 if character == "\\" and kind is Context.ANSI else 1

    def _arithmetic(self) -> None:
        top = self.frames[-1]
        if self.text.startswith("))", self.at) and not top.depth:
            self.frames.pop()
            self.at += 2
            return
        top.depth += {"(": 1, ")": -1}.get(self.text[self.at], 0)
        self.at += 1

    def _expanding(self, kind: Context) -> None:
        """Scan one step in double quotes, in a here-document, or in ``${…}``."""
        character = self.text[self.at]
        if self._opened():
            return
        if character == "\\":
            self.at += 2
            return
        if (character == '"' and kind is Context.DOUBLE) or (character == "}" and kind is Context.EXPANSION):
            self.frames.pop()
        elif character == '"' and kind is Context.EXPANSION:
            self._push(Context.DOUBLE)
        elif character == "'" and kind is Context.EXPANSION and not any(f.kind is Context.DOUBLE for f in self.frames):
            self._push(Context.SINGLE)
        self.at += 1

    def _opened(self) -> bool:
        """Enter a construct that ``$`` or a backtick opens at this offset; return whether there is one."""
        for sign, kind in (("$((", Context.ARITHMETIC), ("$(", Context.SUBSTITUTION), ("${", Context.EXPANSION)):
            if self.text.startswith(sign, self.at) and not self.text.startswith("${{", self.at):
                self.at += len(sign)
                self._push(kind)
                return True
        if self.text[self.at] != "`":
            return False
        self.at += 1
        if any(frame.kind is Context.BACKTICK for frame in self.frames):
            while self.frames.pop().kind is not Context.BACKTICK:
                pass
        else:
            self._push(Context.BACKTICK)
        return True

    def _push(self, kind: Context) -> None:
        if len(self.frames) + len(self.outer) >= _MAX_NESTED:
            raise ShellSyntaxError(f"it is nested deeper than {_MAX_NESTED} levels")
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
        self._push({"'": Context.SINGLE, '"': Context.DOUBLE}.get(character, Context.ANSI))

    def _is_redirection(self, character: str) -> bool:
        return character == "&" and self.text[max(0, self.at - 1)] in "<>"

    def _between(self, character: str) -> Iterator[Placeholder]:
        top = self.frames[-1]
        top.word = None
        self.at += 1
        if character in _SEPARATORS:
            bodies = top.waiting if character == "\n" else []
            head = _Frame(Context.BARE, command=self.text.rfind("\n", 0, self.at - 1) + 1, word=self.at)
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
            self._push(Context.ARITHMETIC)
            return
        self.at += 1
        if character == "(":
            top.word = None
            self._push(Context.GROUP)
        elif top.kind in {Context.SUBSTITUTION, Context.GROUP} and top.cases <= 0:
            self.frames.pop()
        else:
            top.word = None
            top.command = self.at

    def _here(self) -> None:
        match = _DELIMITER.match(self.text, self.at, self.end)
        if self.text.startswith("<<<", self.at) or not match:
            self.at += 3 if self.text.startswith("<<<", self.at) else 2
            self.frames[-1].word = None
            return
        word = match["word"]
        quoted = any(sign in word for sign in "'\"\\")
        self.frames[-1].waiting.append((re.sub(r"['\"\\]", "", word), quoted, bool(match["tabs"])))
        self.at = match.end()

    def _body(self, delimiter: str, head: _Frame, *, quoted: bool, tabs: bool) -> Iterator[Placeholder]:
        """Scan a here-document, up to the end of its delimiter."""
        start = line = self.at
        while line < self.end:
            stop = self.text.find("\n", line, self.end)
            stop = self.end if stop < 0 else stop
            content = self.text[line:stop]
            if (content.lstrip("\t") if tabs else content) == delimiter:
                break
            line = stop + 1
        else:
            raise ShellSyntaxError(f"the here-document '{delimiter[:40]}' is not closed")
        kind = Context.QUOTED_HERE if quoted else Context.HERE
        outer = (*self.outer, *self.frames[:-1], head)
        if len(outer) >= _MAX_NESTED:
            raise ShellSyntaxError(f"it is nested deeper than {_MAX_NESTED} levels")
        yield from _Scan(self.text, start, line, kind, outer).all()
        self.at = min(stop + 1, self.end)


_EVALUATING = frozenset({"eval", "trap", "let", "alias", "ssh"})

# For each program, the options whose value is code.
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
"""The builtins whose words are names of variables, except after ``=``."""
_READING = frozenset({"read", "mapfile", "readarray"})
_NAME_FOLLOWS = {"printf": {"-v"}, "test": {"-v", "-R"}, "[": {"-v", "-R"}, "[[": {"-v", "-R"}}
_VALUE_FOLLOWS = re.compile(r"-[A-Za-z]*[dinNOpstu]|\d*[<>]+[&|]?")
_OPEN_SUBSCRIPT = re.compile(r"\w*\[[^\]]*")
_READS_PROGRAM = re.compile(
    r"\|&?[ \t]*(?:\S*/)?((ba|da|a|k|z)?sh|(pypy|python)[\d.]*|perl|ruby|node|Rscript)[ \t]*(-?[ \t]*)($|[;|&\n)`])"
)
_COMPARES_NUMBERS = re.compile(r"\s-(eq|ne|lt|le|gt|ge)\s")


def evaluated_by(placeholder: Placeholder, text: str) -> str | None:
    """Return the program that would run a placeholder's value as code, or None."""
    start, end = placeholder.start, placeholder.end
    own = text[max(text.rfind(sign, 0, start) for sign in " \t\n") + 1 : start]
    for command in placeholder.commands:
        in_here_document = placeholder.context is Context.HERE and command is placeholder.commands[-1]
        program = next(_programs(command, own, in_here_document=in_here_document), None)
        if program:
            return program
    line_end = text.find("\n", end, end + _MAX_READ)
    line_end = min(len(text), end + _MAX_READ) if line_end < 0 else line_end
    piped = _READS_PROGRAM.search(text, end, line_end)
    if piped:
        return piped[1]
    line_start = max(text.rfind("\n", 0, start) + 1, start - _MAX_READ)
    compares = "[[ " in text[line_start:start] and _COMPARES_NUMBERS.search(text, line_start, line_end)
    return "[[" if compares else None


def names_a_variable(placeholder: Placeholder) -> bool:
    """Whether a placeholder's value would be in the name of a variable: bash runs a ``$(…)`` between its brackets."""
    if not placeholder.commands or placeholder.context is Context.HERE:
        return False
    words = _names(placeholder.commands[-1])
    begun = placeholder.begun
    first = _program_index(words)
    if first is None:
        return bool(_OPEN_SUBSCRIPT.fullmatch(begun))
    program = words[first]
    if program in _NAME_FOLLOWS:
        return words[-1] in _NAME_FOLLOWS[program]
    if program not in _NAMING or begun.startswith(("<", ">")):
        return False
    if "=" in begun:
        return any(re.fullmatch(r"-[A-Za-z]*i[A-Za-z]*", word) for word in words)
    return program not in _READING or not (_VALUE_FOLLOWS.fullmatch(words[-1]) or _VALUE_FOLLOWS.match(begun))


def _programs(words: Sequence[str], own: str, *, in_here_document: bool) -> Iterator[str]:
    """Yield the programs among *words* for which the next word, which begins with *own*, is code."""
    names = _names(words)
    first = _program_index(names)
    for number, name in enumerate(names):
        after = words[number + 1 :]
        if name in _EVALUATING and number == first:
            yield name
        elif in_here_document:
            own_words = tuple(takewhile(lambda word: not set(word) & set("|;&"), after))
            if _INTERPRETER.fullmatch(name) and not _has_program(own_words):
                yield name
        elif (_FIRST_WORD_IS_CODE.fullmatch(name) and _begins_program(after, own)) or any(
            program.fullmatch(name) and _ends_in_option(option, after, own) for program, option in _CODE_OPTIONS
        ):
            yield name


def _names(words: Sequence[str]) -> list[str]:
    return [word.rpartition("/")[2].strip("'\"") for word in words]


def _program_index(names: Sequence[str]) -> int | None:
    """Return the index of a command's program: after assignments, keywords, ``sudo`` and a function's head."""
    for at, name in enumerate(names):
        head = name.endswith("()") or name == "function" or (at and names[at - 1] == "function")
        if not head and name not in _BEFORE and "=" not in name:
            return at
    return None


def _ends_in_option(option: re.Pattern[str], words: Sequence[str], own: str) -> bool:
    """Whether the last of *words*, or the start of the word itself, is *option*, with only options before it."""
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
    """Whether *words* have a program or its file: a word that is not an option."""
    takes_a_value = False
    for word in words:
        if takes_a_value or word in _TAKES_A_VALUE:
            takes_a_value = not takes_a_value
        elif word in _CODE_ELSEWHERE or not word.startswith(("-", "<", ">")):
            return True
    return False
